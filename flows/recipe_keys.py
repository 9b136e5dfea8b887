"""The keys of a recipe as Markdown tables: type, default and meaning of each, section by section.

Read from the pydantic models that check recipes: the type from the annotation, the meaning from the `Attributes:` of
the docstring or, where a key holds a section, from what that section says of itself.
"""

import inspect
import json
import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from pipelines.quantities import Bytes, Seconds, Tokens

QUANTITIES = {"tokens": get_args(Tokens)[1], "size": get_args(Bytes)[1], "duration": get_args(Seconds)[1]}
BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
PLAIN = {str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path", type(None): "nothing"}


def tree(name: str, model: type[BaseModel]) -> list[str]:
    """The page of one kind of recipe: its own keys, then those of each section, each model once."""
    lines = [f"## {name}", ""]
    for current, places in _places(model).items():
        title = [f"### {name}: " + ", ".join(f"`{place}`" for place in places), ""] if current is not model else []
        rows = [
            (f"`{key}`", _type(field.annotation, field.metadata), _default(field), _meaning(current, key))
            for key, field in current.model_fields.items()
        ]
        lines += [*title, _first_paragraph(current), "", *table(("Key", "Type", "Default", "Meaning"), rows), ""]
    return lines


def _places(model: type[BaseModel]) -> dict[type[BaseModel], list[str]]:
    """Every model that a recipe is made of, and the keys under which it stands; what lies deeper is listed once."""
    found: dict[type[BaseModel], list[str]] = {model: [""]}
    waiting = [("", model)]
    while waiting:
        where, current = waiting.pop(0)
        for key, field in current.model_fields.items():
            for suffix, below in _models(field.annotation):
                place = f"{where}.{key}{suffix}".lstrip(".")
                waiting += [] if below in found else [(place, below)]
                found.setdefault(below, []).append(place)
    return found


def _models(annotation: Any, suffix: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """The models inside a type, with how a key leads to them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield suffix, annotation
    step = {dict: ".NAME", list: "[]", tuple: "[]"}.get(get_origin(annotation) or object, "")
    for argument in get_args(annotation):
        yield from _models(argument, suffix + step)


def _type(annotation: Any, metadata: Any = ()) -> str:
    """A type in the words of a recipe: `tokens`, `list of text`, `whole number, ≥ 1`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0], arguments[1:])
    limits = [(sign, getattr(m, bound, None)) for m in _flat(metadata) for bound, sign in BOUNDS.items()]
    quantity = next((name for name, validator in QUANTITIES.items() if validator in metadata), None)
    return ", ".join(
        [quantity or _name(annotation, origin, arguments), *(f"{s} {n}" for s, n in limits if n is not None)]
    )


def _flat(metadata: Any) -> list[Any]:
    """Bounds inside `Field(...)` of an `Annotated` type count like those beside it."""
    return [part for m in metadata for part in (m.metadata if isinstance(m, FieldInfo) else [m])]


def _name(annotation: Any, origin: Any, arguments: Any) -> str:
    if origin is Literal:
        return "one of " + ", ".join(f"`{value}`" for value in arguments) if len(arguments) > 1 else f"`{arguments[0]}`"
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_type, arguments)))
    if origin in (list, tuple):
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return f"names, each with {_type(arguments[1])}"
    return PLAIN.get(annotation, "section")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True) if field.default is PydanticUndefined else field.default
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json", exclude_defaults=True)
        return f"`{json.dumps(value)}`" if value else "as below"
    if isinstance(value, dict) and any(isinstance(each, BaseModel) for each in value.values()):
        return "as below"
    if value in (None, {}, [], (), ""):
        return "none"
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def _meaning(model: type[BaseModel], key: str) -> str:
    """What the docstring of a model, or of one that it extends, says of a key; else what the section there says."""
    entry = re.compile(rf"^    (?:\w+, )*{key}(?:, \w+)*: (.+?)(?=^    \w[\w, ]*: |\Z)", re.DOTALL | re.MULTILINE)
    for owner in model.__mro__:
        text = inspect.cleandoc(owner.__doc__ or "").partition("Attributes:\n")[2]
        if found := entry.search(text):
            return " ".join(found.group(1).split())
    below = [_first_paragraph(each) for _, each in _models(model.model_fields[key].annotation)]
    return below[0] if len(below) == 1 else ""


def _first_paragraph(model: type[BaseModel]) -> str:
    return " ".join(inspect.cleandoc(model.__doc__ or "").split("\n\n")[0].split())


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """A Markdown table."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (head, ("---",) * len(head), *rows)]
    return ["| " + " | ".join(row) + " |" for row in cells]
