"""The reference pages: every verb and every key of every recipe, written from the code that reads them.

`make docs` writes them and a test compares them with what is in `docs/reference/`, so that they cannot fall behind.
Meanings come from the `Attributes:` of the models' docstrings and from the help of the options; nothing is typed twice.
"""

import inspect
import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from flows.kinds import RECIPE_KINDS
from mixtures.mixture import Domains, Mixture
from pipelines.quantities import Bytes, Seconds, Tokens
from pipelines.recipe import ROOT, Section

PAGES = ROOT / "docs" / "reference"
GENERATED = "<!-- Written by `make docs` from the code; edit the docstrings and help texts there. -->"
QUANTITIES = {quantity.__metadata__[0]: name for quantity, name in ((Tokens, "tokens"), (Bytes, "size"),
              (Seconds, "duration"))}  # fmt: skip
BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
FILES: dict[str, type[Section]] = {"domains.yaml": Domains, "mixture.yaml": Mixture}


def main() -> None:
    """Write both pages."""
    for name, text in pages().items():
        (PAGES / name).write_text(text, encoding="utf-8")


def pages() -> dict[str, str]:
    """File name -> Markdown."""
    from flows.cli import app

    command = typer.main.get_command(app)
    verbs = "\n".join(line for path, verb in verbs_of(command, "loam") for line in _verb(path, verb))
    head = f"# The command line\n\n{GENERATED}\n\n{command.help}\n"
    intro = "What each kind of recipe may say. How recipes work is in [recipes.md](../recipes.md)."
    kinds = "\n".join(line for name, model in {**RECIPE_KINDS, **FILES}.items() for line in _tree(name, model))
    return {"cli.md": f"{head}\n{verbs}", "recipes.md": f"# Recipes, key by key\n\n{GENERATED}\n\n{intro}\n\n{kinds}"}


def verbs_of(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every verb below a click command, with the words that call it."""
    below = getattr(command, "commands", None)
    if below is None:
        yield path, command
    for name, verb in (below or {}).items():
        yield from verbs_of(verb, f"{path} {name}")


def _verb(path: str, verb: Any) -> list[str]:
    arguments = [p for p in verb.params if p.param_type_name == "argument"]
    options = [p for p in verb.params if p.param_type_name == "option" and p.name != "help"]
    usage = " ".join([path, *(_word(argument) for argument in arguments), *("[options]" if options else "").split()])
    rows = [(f"`{_word(p)}`", _sentence(p.help)) for p in arguments]
    rows += [(f"`{', '.join([*p.opts, *p.secondary_opts])}`", _sentence(p.help, p)) for p in options]
    return [f"## `{path}`", "", verb.help, "", f"    {usage}", "", *_table(("", "Meaning"), rows), ""]


def _word(argument: Any) -> str:
    return argument.metavar or argument.name.upper()


def _sentence(text: str | None, option: Any = None) -> str:
    default = getattr(option, "default", None)
    notes = ["required"] if getattr(option, "required", False) else []
    if option is not None and not notes and isinstance(default, (int, float, str, Path)) and default is not False:
        notes = [f"default {default}"]
    return "; ".join([(text or "").rstrip("."), *notes])


def _tree(name: str, model: type[BaseModel]) -> list[str]:
    """The page of one kind of recipe: its own keys, then those of each section, each model once."""
    lines = [f"## {name}", ""]
    waiting, seen = [("", model)], set()
    while waiting:
        where, current = waiting.pop(0)
        if current in seen:
            continue
        seen.add(current)
        title = [f"### {name}: `{where}` ({current.__name__})", ""] if where else []
        rows = [(f"`{key}`", _type(field.annotation, field.metadata), _default(field), _meaning(current, key))
                for key, field in current.model_fields.items()]  # fmt: skip
        lines += [*title, _first_paragraph(current), "", *_table(("Key", "Type", "Default", "Meaning"), rows), ""]
        for key, field in current.model_fields.items():
            below = f"{where}.{key}" if where else key
            waiting += [(f"{below}{suffix}", found) for suffix, found in _models(field.annotation)]
    return lines


def _models(annotation: Any, suffix: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """The models inside a type, with how a key leads to them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield suffix, annotation
    step = {dict: ".NAME", list: "[]", tuple: "[]"}.get(get_origin(annotation), "")
    for argument in get_args(annotation):
        yield from _models(argument, suffix + step)


def _type(annotation: Any, metadata: Any = ()) -> str:
    """A type in the words of a recipe: `tokens`, `list of text`, `one of a, b`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0], annotation.__metadata__)
    bounds = [
        f"{sign} {limit}" for m in metadata for b, sign in BOUNDS.items() if (limit := getattr(m, b, None)) is not None
    ]
    for validator in metadata:
        if isinstance(validator, tuple(type(q) for q in QUANTITIES)) and validator in QUANTITIES:
            return ", ".join([QUANTITIES[validator], *bounds])
    if origin is Literal:
        return "one of " + ", ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join("nothing" if a is type(None) else _type(a) for a in arguments)
    if origin in (list, tuple):
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return f"mapping to {_type(arguments[1])}"
    plain = {str: "text", int: "whole number", float: "number", bool: "yes or no", Path: "path", type(None): "nothing"}
    name = "section" if isinstance(annotation, type) and issubclass(annotation, BaseModel) else plain.get(annotation)
    return ", ".join([name or str(annotation), *bounds])


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True) if field.default is PydanticUndefined else field.default
    if isinstance(value, BaseModel):
        return "its defaults"
    if value in (None, {}, [], (), ""):
        return "none"
    listed = list(value) if isinstance(value, tuple) else value
    return f"`{listed}`" if "Section" not in repr(type(value)) and "=" not in repr(listed) else "its defaults"


def _meaning(model: type[BaseModel], key: str) -> str:
    """What the docstring of the model, or of one that it extends, says of a key."""
    for owner in model.__mro__:
        text = inspect.cleandoc(owner.__doc__ or "").partition("Attributes:\n")[2]
        found = re.search(
            rf"^    (?:\w+, )*{key}(?:, \w+)*: (.+?)(?=^    \w[\w, ]*: |\Z)", text, re.DOTALL | re.MULTILINE
        )
        if found:
            return " ".join(found.group(1).split())
    return ""


def _first_paragraph(model: type[BaseModel]) -> str:
    return " ".join(inspect.cleandoc(model.__doc__ or "").split("\n\n")[0].split())


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (head, ("---",) * len(head), *rows)]
    return ["| " + " | ".join(row) + " |" for row in cells]


if __name__ == "__main__":
    main()
