"""What a recipe needs from outside before it can run, and whether it is here: what `loam check` says.

Only names and sizes of local files are looked at, and nothing is fetched: a source in a repository is fetched by
`loam fetch`, a path is here when files match it, and a URL of another kind is read where it is when the recipe runs.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filters.list_sources import LISTS, how_to_get, list_path
from flows.ablate_recipe import AblationRecipe
from flows.corpus import CorpusRecipe, Known
from flows.recipe import BuildRecipe
from pipelines import github, hub
from pipelines.errors import DataError
from pipelines.files import expand_inputs
from pipelines.locations import HTTP, is_url
from pipelines.quantities import human, human_bytes
from pipelines.source_settings import FileSource, HubSource, MachineSource

SHOWN_DIGITS = 12  # of a commit
ORDER = {"missing": 0, "fetch": 1, "remote": 2, "here": 3}


@dataclass(frozen=True)
class Need:
    """One thing that a recipe reads from outside.

    Attributes:
        name: of the source, or what it is: `scorer`, `tokenizer`, `items`.
        where: repository and files, URL, or path.
        state: `here`, `missing`, `fetch` (`loam fetch` brings it) or `remote` (read where it is).
        licence: as the recipe states it.
        pinned: whether it is known which commit will be read; None where that has no meaning.
        commit: which one.
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
    commit: str | None = None
    size_bytes: int | None = None
    documents: int | None = None
    tokens: int | None = None
    gated: bool = False
    note: str = ""


def needs_of(recipe: BuildRecipe | AblationRecipe) -> list[Need]:
    """Everything that a recipe reads from outside, sources first."""
    root = Path(recipe.root)
    known = recipe.known if isinstance(recipe, CorpusRecipe) else {}
    found = [
        _of_source(name, settings, root, known.get(name, Known()))
        for name, settings in sorted(recipe.sources.items())
        if not isinstance(settings, MachineSource)
    ]
    if isinstance(recipe, CorpusRecipe) and recipe.scorer is not None:
        found.append(_of_scorer(recipe, root))
    if isinstance(recipe, AblationRecipe):
        for name, prefix in recipe.shard_prefixes("train").items():
            found.append(_of_path(name, f"{prefix}.bin", Path(), recipe.shards[name].licence))
        for name, prefix in recipe.shard_prefixes("validation").items():
            found.append(_of_path(f"{name}, held out", f"{prefix}.bin", Path()))
    if recipe.tokenizer.path:
        found.append(_of_tokenizer(recipe, recipe.tokenizer.path, root))
    if isinstance(recipe, BuildRecipe):
        found += [_of_list(name, path, root) for name, path in recipe.safety.paths.items()]
    items = getattr(recipe, "items", None)
    found += [_of_path("items", name, root) for name in getattr(items, "files", [])]
    return found


def needs_lines(recipe: BuildRecipe | AblationRecipe, name: str, notes: bool = False) -> list[str]:
    """The needs for people, what is not here first.

    Args:
        recipe: whose needs.
        name: that it was asked for by.
        notes: every note and the whole of long addresses, too.
    """
    needs = sorted(needs_of(recipe), key=lambda need: ORDER[need.state])
    lines = [*_what_next(recipe, name, needs), *(["needs:"] if needs else [])]
    for need in needs:
        counted = {"documents": need.documents, "tokens": need.tokens}
        sizes = [f"{human(value)} {unit}" for unit, value in counted.items() if value]
        sizes += [human_bytes(need.size_bytes)] if need.size_bytes else []
        marks = [need.licence or "", *sizes, "terms to accept" if need.gated else ""]
        shown = need.commit and need.commit[:SHOWN_DIGITS]
        marks += [f"commit {shown}"] if shown and f"@{shown}" not in need.where else []
        marks += ["revision not pinned yet"] if need.pinned is False else []
        where = need.where if notes else _short(need.where)
        lines.append(f"  {need.state:<8}{need.name}: {where}" + "".join(f"; {mark}" for mark in marks if mark))
        if need.note and (notes or need.state == "missing"):  # where to get what is not here
            lines.append(f"          {need.note}")
    return lines


def needs_rows(recipe: BuildRecipe | AblationRecipe) -> list[dict[str, Any]]:
    """The needs as plain values."""
    return [asdict(need) for need in needs_of(recipe)]


def _short(where: str) -> str:
    first, *others = where.split(" ")
    files = [part for part in others if not part.startswith("@")]
    kept = [first, *(part for part in others if part.startswith("@")), *files[:1]]
    return " ".join(kept) + (f" and {len(files) - 1} more" if len(files) > 1 else "")


def _what_next(recipe: BuildRecipe | AblationRecipe, name: str, needs: Sequence[Need]) -> list[str]:
    """One line for each kind of thing that is still to be done."""
    lines = []
    if missing := [need.name for need in needs if need.state == "missing"]:
        lines.append(f"not there: {', '.join(missing)}")
    if fetch := [need.name for need in needs if need.state == "fetch"]:
        lines.append(f"{len(fetch)} to fetch (nothing downloads by itself): loam fetch {name}")
    if loose := [need.name for need in needs if need.pinned is False]:
        lines.append(f"{len(loose)} with a revision not pinned yet: loam fetch pins it")
    over_http = [need.name for need in needs if need.state == "remote" and need.where.partition(":")[0] in HTTP]
    if over_http:
        lines.append(f"{len(over_http)} read over HTTP, which LOAM_HTTP=1 allows: {', '.join(over_http)}")
    if s3 := [need.name for need in needs if need.state == "remote" and need.where.startswith("s3:")]:
        lines.append(f"{len(s3)} read from S3 (pip install -e '.[s3]', and an account: docs/cli.md)")
    if isinstance(recipe, CorpusRecipe) and not recipe.items.files:
        lines.append("no items.files: nothing is decontaminated")
    return lines or ["everything that it reads is here"]


def _of_source(name: str, settings: FileSource | HubSource, root: Path, known: Known) -> Need:
    facts: dict[str, Any] = {"documents": known.documents, "tokens": known.tokens, "gated": known.gated}
    facts |= {"licence": settings.licence, "note": known.note, "size_bytes": known.bytes}
    if wanted := hub.wanted_of({name: settings}).get(name):
        state = "here" if all(hub.is_fetched(each, root) for each in wanted) else "fetch"
        where = " ".join(_in_words(each) for each in wanted)
        commits = [hub.pinned_commit(each, root) for each in wanted]
        return Need(name, where, state, pinned=all(commits), commit=commits[0], **facts)
    assert isinstance(settings, FileSource)  # a source of the Hub always wants something
    here = [path for path in settings.paths if not is_url(path)]
    lost = [path for path in here if not _found([path], root)]
    if not lost and len(here) < len(settings.paths):
        return Need(name, " ".join(settings.paths), "remote", **facts)
    where = " ".join(str(root / path) for path in lost or settings.paths)
    if lost:
        return Need(name, where, "missing", **facts)
    size = sum(file.stat().st_size for file in _found(here, root))  # what is here is known better than what was said
    return Need(name, where, "here", licence=settings.licence, size_bytes=size)


def _in_words(wanted: hub.Wanted) -> str:
    files = " ".join(wanted.files) or "/".join(filter(None, [wanted.subset, wanted.split]))
    return f"huggingface.co/datasets/{wanted.dataset} @{wanted.revision[:SHOWN_DIGITS]} {files}"


def _of_scorer(recipe: CorpusRecipe, root: Path) -> Need:
    scorer = recipe.scorer
    assert scorer is not None
    here = _of_path("scorer", scorer.path, root, scorer.licence)
    if here.state == "here" or scorer.dataset is None:
        return here
    wanted = hub.wanted_model(scorer.dataset, scorer.revision)
    commit = hub.pinned_commit(wanted, root)
    where = f"huggingface.co/{scorer.dataset} @{wanted.revision[:SHOWN_DIGITS]}"
    return Need("scorer", where, "fetch", scorer.licence, pinned=commit is not None, commit=commit,
                note=f"comes to {root / scorer.path}")  # fmt: skip


def _of_tokenizer(recipe: BuildRecipe | AblationRecipe, path: str, root: Path) -> Need:
    """The tokenizer; one inside the scorer's folder comes with it."""
    need = _of_path("tokenizer", path, root)
    scorer = getattr(recipe, "scorer", None)
    comes_along = scorer is not None and scorer.dataset and Path(path).is_relative_to(scorer.path)
    if need.state == "missing" and comes_along:
        return Need("tokenizer", need.where, "fetch", note="comes with the scorer")
    return need


def _of_list(name: str, path: str, root: Path) -> Need:
    """A list of `safety`, by path or by a name that `loam fetch` knows."""
    need = _of_path(f"safety.{name}", str(list_path(path, Path(root))), Path())
    if need.state == "here" or path not in LISTS:
        return need if need.state == "here" else Need(need.name, need.where, "missing", note=how_to_get(name, path))
    wanted = LISTS[path]
    return Need(need.name, f"github.com/{wanted.repository}", "fetch", wanted.licence, pinned=True,
                commit=github.commit_of(wanted, root), note=wanted.about)  # fmt: skip


def _of_path(name: str, path: str, root: Path, licence: str | None = None) -> Need:
    found = _found([path], root)
    size = sum(file.stat().st_size for file in found) or None
    return Need(name, str(root / path), "here" if found else "missing", licence, size_bytes=size)


def _found(paths: Sequence[str], root: Path) -> list[Path]:
    """Local files that the paths name."""
    try:
        return expand_inputs([root / path for path in paths])
    except DataError:
        return []
