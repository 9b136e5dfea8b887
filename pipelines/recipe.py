"""Recipes: typed YAML, the only way to ask for work.

YAML 1.2 is read by ruamel (PyYAML reads `3e-4` as a string, `no` as False and keeps the last of two equal keys in
silence), checked by pydantic, and every complaint names file, line, field and the nearest valid key. A recipe may
extend one other (`extends: name`, one level deep) and be changed from the command line (`--set a.b=c`).
"""

import difflib
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipelines.errors import RecipeError

ROOT = Path(__file__).resolve().parent.parent
RECIPE_FOLDERS = (
    *(ROOT / name / "recipes" for name in ("flows", "mixtures", "trainer", "synth", "filters", "pipelines")),
    ROOT / "flows" / "recipes" / "sources",
)


class Section(BaseModel):
    """Base of every recipe model: unknown keys are errors, numbers are finite, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


AnySection = TypeVar("AnySection", bound=Section)


def shipped_recipes() -> dict[str, Path]:
    """Every recipe that ships with Loam, by name."""
    return {path.stem: path for folder in RECIPE_FOLDERS for path in sorted(folder.glob("*.yaml"))}


def find_recipe(name: str) -> Path:
    """The file of a recipe given by path or by shipped name.

    Raises:
        RecipeError: neither exists; the message gives the nearest shipped names.
    """
    if (path := Path(name)).is_file():
        return path
    shipped = shipped_recipes()
    if name in shipped:
        return shipped[name]
    near = difflib.get_close_matches(name, shipped, n=3)
    meant = f"did you mean {' or '.join(near)}?" if near else "docs/reference/recipes.md lists those"
    raise RecipeError(f"no recipe {name!r}: not a file, and not a shipped one; {meant}")


def load_recipe(name: str, model: type[AnySection], sets: Sequence[str] = ()) -> AnySection:
    """Read, extend, override and check a recipe.

    Args:
        name: a path, or the name of a shipped recipe.
        model: what the recipe must be.
        sets: overrides, `a.b=value`, the value in YAML.

    Raises:
        RecipeError: names file:line, field and what would be valid.
    """
    path = find_recipe(name)
    tree = _read_yaml(path)
    lines = _lines_of(tree)
    plain = _plain(tree)
    if (base := plain.pop("extends", None)) is not None:
        base_path = find_recipe(str(path.parent / base) if (path.parent / base).is_file() else base)
        base_tree = _plain(_read_yaml(base_path))
        if "extends" in base_tree:
            raise RecipeError(f"{base_path}: a recipe that is extended cannot itself extend ({base_tree['extends']!r})")
        plain = merge(base_tree, plain)
    for assignment in sets:
        _assign(plain, assignment)
    try:
        return model.model_validate(plain)
    except ValidationError as error:
        is_told = _is_set(_first_problem(error)["loc"], sets)
        where = (Path("command line"), {}) if is_told else (path, lines)
        raise RecipeError(_explain(error, *where, model)) from None


def _is_set(field: Sequence[Any], sets: Sequence[str]) -> bool:
    """Whether an override gave a field, or one within it; kinds of a union stand between the keys of a field."""
    given = [assignment.partition("=")[0].split(".") for assignment in sets]
    found = [str(key) for key in field]
    return bool(found) and any(found == keys[: len(found)] or [k for k in found if k in keys] == keys for keys in given)


def settings_from(model: type[AnySection], sets: Sequence[str] | None = None, **given: Any) -> AnySection:
    """Settings of one verb from command-line options.

    Args:
        model: what the settings must be.
        sets: overrides, `a.b=value`.
        given: options with a name of their own; None means not given.

    Raises:
        RecipeError: names the field and what would be valid.
    """
    plain: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    for assignment in sets or ():
        _assign(plain, assignment)
    try:
        return model.model_validate(plain)
    except ValidationError as error:
        raise RecipeError(_explain(error, Path("command line"), {}, model)) from None


def dump_yaml(model: BaseModel) -> str:
    """A model as YAML, for people and for the run's folder."""
    return to_yaml(model.model_dump(mode="json"))


def to_yaml(tree: Any) -> str:
    """Plain values as YAML, in block style."""
    stream = io.StringIO()
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.dump(tree, stream)
    return stream.getvalue()


def _read_yaml(path: Path) -> Any:
    try:
        tree = YAML(typ="rt").load(path.read_text(encoding="utf-8"))
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise RecipeError(f"{path}{line}: not valid YAML: {problem}") from None
    except (OSError, ValueError, RecursionError) as error:  # a date that does not exist, brackets without end
        raise RecipeError(f"{path}: cannot be read: {error}") from None
    if not isinstance(tree, Mapping):
        raise RecipeError(f"{path}: a recipe is a mapping of keys to values, this is {type(tree).__name__}")
    return tree


def _plain(node: Any) -> Any:
    """Drop ruamel's round-trip types, keep str, int, float, bool, None, list, dict."""
    if isinstance(node, Mapping):
        return {str(key): _plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_plain(value) for value in node]
    for kind in (bool, int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return node


def _lines_of(node: Any, at: tuple = ()) -> dict[tuple, int]:
    """Line (from 1) of every key of a round-trip tree."""
    lines: dict[tuple, int] = {}
    items = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        here = (*at, key)
        where = getattr(node, "lc").key(key) if isinstance(node, Mapping) else getattr(node, "lc").item(key)  # noqa: B009
        lines[here] = where[0] + 1
        lines |= _lines_of(value, here)
    return lines


def merge(base: dict, over: dict) -> dict:
    """Lay one plain section over another; one of another `kind` takes its place, since it has other keys."""
    if base.get("kind", over.get("kind")) != over.get("kind", base.get("kind")):
        return over
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _assign(tree: dict, assignment: str) -> None:
    match = re.fullmatch(r"([A-Za-z0-9_./-]+)=(.*)", assignment, re.DOTALL)
    if match is None:
        raise RecipeError(f"--set {assignment!r}: expected key.key=value, such as --set ablate.proxies=32")
    *parents, last = match.group(1).split(".")
    for key in parents:
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            held = "a list, which is set whole: --set 'key=[{...}, {...}]'" if isinstance(tree, list) else "a value"
            raise RecipeError(f"--set {assignment!r}: {key!r} holds {held}, not a section")
    try:
        tree[last] = _plain(YAML(typ="rt").load(match.group(2)))
    except YAMLError:
        raise RecipeError(f"--set {assignment!r}: the value is not valid YAML") from None


def _first_problem(error: ValidationError) -> Any:
    """The one that is told: a slip of the pen explains most."""
    return min(error.errors(include_url=False), key=lambda problem: problem["type"] != "extra_forbidden")


def _explain(error: ValidationError, path: Path, lines: Mapping[tuple, int], model: type[BaseModel]) -> str:
    problems, first = error.errors(include_url=False), _first_problem(error)
    where = tuple(first["loc"])
    line = next((lines[where[:n]] for n in range(len(where), 0, -1) if where[:n] in lines), None)
    field = ".".join(map(str, where)) or "recipe"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        valid = sorted(_valid_keys(model, where[:-1]))
        near = difflib.get_close_matches(str(where[-1]), valid, n=1)
        message = "unknown key" + (f"; did you mean {near[0]!r}?" if near else f"; valid keys: {', '.join(valid)}")
    elif first["type"] == "missing":
        message = "is required and missing"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{path}{f':{line}' if line else ''}: {field}: {message}{more}"


def _valid_keys(model: type[BaseModel], where: tuple) -> set[str]:
    """Keys that the models found along `where` accept; unions give the keys of all their members."""
    found = [model]
    for key in where:
        annotations = [m.model_fields[key].annotation for m in found if key in m.model_fields]
        found = [m for a in annotations for m in _models_in(a)] or [m for m in found if _is_kind(m, key)] or found
    return {name for m in found for name in m.model_fields}


def _is_kind(model: type[BaseModel], key: object) -> bool:
    """Whether `key` is what pydantic puts where a union was told apart by `kind`."""
    return "kind" in model.model_fields and key in get_args(model.model_fields["kind"].annotation)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for argument in get_args(annotation) for m in _models_in(argument)]


class _Kind(Section):
    """Just enough of a recipe to tell which model reads it."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    kind: str = "run"


def kind_of(recipe: str) -> str:
    """The `kind` of a recipe, read before anything else is checked."""
    return load_recipe(recipe, _Kind).kind
