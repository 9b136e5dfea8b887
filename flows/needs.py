"""What a recipe needs from outside before it can run, and whether it is here: what `loam check` says.

Only names and sizes of local files are looked at, and nothing is fetched: a source in a repository is fetched by
`loam fetch`, a path is here when files match it, and a URL of another kind is read where it is when the recipe runs.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filters.safety import LIST_SOURCES
from flows.corpus import CorpusRecipe, Known
from flows.recipe import BuildRecipe
from pipelines import hub
from pipelines.errors import DataError
from pipelines.files import expand_inputs
from pipelines.locations import HTTP, is_url
from pipelines.quantities import human
from pipelines.source_settings import FileSource, HubSource, MachineSource

COMMIT_DIGITS = 40  # a revision of so many hex digits is a commit; anything else may move


@dataclass(frozen=True)
class Need:
    """One thing that a recipe reads from outside.

    Attributes:
        name: of the source, or what it is: `scorer`, `tokenizer`, `items`.
        where: repository and files, URL, or path.
        state: `here`, `missing`, `fetch` (needs a download) or `remote` (read where it is).
        licence: as the recipe states it.
        pinned: whether what it names can change: a branch is not pinned; None where that has no meaning.
        size_bytes: here, what lies on disk; else what is known of the download.
        documents: as its publisher counts them, or None.
        tokens: as its publisher counts them, or None.
        gated: whether its terms must be accepted first.
        note: what to know before fetching it.
    """

    name: str
    where: str
    state: str
    licence: str | None = None
    pinned: bool | None = None
    size_bytes: int | None = None
    documents: int | None = None
    tokens: int | None = None
    gated: bool = False
    note: str = ""


def needs_of(recipe: BuildRecipe) -> list[Need]:
    """Everything that a recipe reads from outside, sources first."""
    root = Path(recipe.root)
    known = recipe.known if isinstance(recipe, CorpusRecipe) else {}
    found = [
        _of_source(name, settings, root, known.get(name, Known()))
        for name, settings in sorted(recipe.sources.items())
        if not isinstance(settings, MachineSource)
    ]
    if recipe.tokenizer.path:
        found.append(_of_path("tokenizer", recipe.tokenizer.path, root))
    if isinstance(recipe, CorpusRecipe) and recipe.scorer is not None:
        scorer = recipe.scorer
        note = f"a copy of {scorer.dataset}: hf download {scorer.dataset} --local-dir {root / scorer.path}"
        found.append(_of_path("scorer", scorer.path, root, scorer.licence, note if scorer.dataset else ""))
    for name, path in recipe.safety.paths.items():
        found.append(_of_path(f"safety.{name}", path, root, note=LIST_SOURCES[name]))
    items = getattr(recipe, "items", None)
    found += [_of_path("items", name, root) for name in getattr(items, "files", [])]
    return found


def needs_lines(recipe: BuildRecipe) -> list[str]:
    """The needs for people: what is here, what is missing, what must be fetched, under which licence."""
    needs = needs_of(recipe)
    lines = ["needs:"] if needs else []
    for need in needs:
        known = {"documents": need.documents, "tokens": need.tokens, "bytes": need.size_bytes}
        sizes = [f"{human(value)} {unit}" for unit, value in known.items() if value]
        marks = [need.licence or "", *sizes, "terms to accept" if need.gated else ""]
        marks += ["not pinned"] if need.pinned is False else []
        lines.append(f"  {need.state:<8}{need.name}: {need.where}" + "".join(f"; {mark}" for mark in marks if mark))
        if need.note and need.state != "here":
            lines.append(f"          {need.note}")
    return [*lines, *_what_next(recipe, needs)]


def needs_rows(recipe: BuildRecipe) -> list[dict[str, Any]]:
    """The needs as plain values."""
    return [asdict(need) for need in needs_of(recipe)]


def _what_next(recipe: BuildRecipe, needs: list[Need]) -> list[str]:
    lines = []
    if fetch := [need.name for need in needs if need.state == "fetch"]:
        lines.append(f"{len(fetch)} sources must be fetched first (nothing downloads by itself): loam fetch RECIPE")
    over_http = [need.name for need in needs if need.state == "remote" and need.where.partition(":")[0] in HTTP]
    if over_http:
        lines.append(f"{len(over_http)} sources are read over HTTP, which LOAM_HTTP=1 allows: {', '.join(over_http)}")
    if missing := [need.name for need in needs if need.state == "missing"]:
        lines.append(f"not there: {', '.join(missing)}")
    if loose := [need.name for need in needs if need.pinned is False]:
        lines.append(f"{len(loose)} sources follow a branch; a commit as `revision` makes the run repeatable")
    if isinstance(recipe, CorpusRecipe) and not recipe.items.files:
        lines.append("no items.files: nothing is decontaminated")
    return lines


def _of_source(name: str, settings: FileSource | HubSource, root: Path, known: Known) -> Need:
    facts: dict[str, Any] = {"documents": known.documents, "tokens": known.tokens, "gated": known.gated}
    facts |= {"licence": settings.licence, "note": known.note, "size_bytes": known.bytes}
    if wanted := hub.wanted_of({name: settings}).get(name):
        state = "here" if all(hub.is_fetched(each, root) for each in wanted) else "fetch"
        where = " ".join(_in_words(each) for each in wanted)
        return Need(name, where, state, pinned=all(map(_is_pinned, wanted)), **facts)
    assert isinstance(settings, FileSource)  # a source of the Hub always wants something
    here = [path for path in settings.paths if not is_url(path)]
    lost = [path for path in here if not _found([path], root)]
    if not lost and len(here) < len(settings.paths):
        return Need(name, " ".join(settings.paths), "remote", **facts)
    where = " ".join(str(root / path) for path in lost or settings.paths)
    size = None if lost else sum(file.stat().st_size for file in _found(here, root))
    facts["size_bytes"] = size or known.bytes
    return Need(name, where, "missing" if lost else "here", **facts)


def _in_words(wanted: hub.Wanted) -> str:
    files = " ".join(wanted.files) or "/".join(filter(None, [wanted.subset, wanted.split]))
    return f"huggingface.co/datasets/{wanted.dataset} @{wanted.revision} {files}"


def _is_pinned(wanted: hub.Wanted) -> bool:
    """Whether the revision is a commit: a branch or a tag can move."""
    return len(wanted.revision) == COMMIT_DIGITS and not set(wanted.revision) - set("0123456789abcdef")


def _of_path(name: str, path: str, root: Path, licence: str | None = None, note: str = "") -> Need:
    found = _found([path], root)
    size = sum(file.stat().st_size for file in found) or None
    return Need(name, str(root / path), "here" if found else "missing", licence, size_bytes=size, note=note)


def _found(paths: list[str], root: Path) -> list[Path]:
    """Local files that the paths name."""
    try:
        return expand_inputs([root / path for path in paths])
    except DataError:
        return []
