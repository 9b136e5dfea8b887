"""How a verb on files is performed: as a step of its own, with a manifest in `--out`, and what it prints."""

import functools
import inspect
import json
import os
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel

from pipelines.errors import DataError, RecipeError
from pipelines.executors import executor_is, parse_executor
from pipelines.files import expand_inputs, remove_empty_folders
from pipelines.locations import location, plain_name
from pipelines.manifest import Manifest
from pipelines.store import Outcome, parents_from_files, perform
from pipelines.templates import PLACE

Inputs = Annotated[list[str], typer.Argument(metavar="INPUT...", help="Paths, folders or globs.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for the outputs; manifest.json is written last.")]
Workers = Annotated[
    int,
    typer.Option(
        "--workers",
        "-w",
        min=0,
        callback=lambda count: count or os.cpu_count() or 1,
        help="Processes (0: one per core); never changes a byte.",
    ),
]
Sets = Annotated[list[str] | None, typer.Option("--set", help="A setting, key.key=value (repeatable).")]
Executor = Annotated[
    str | None, typer.Option("--executor", help="local, ray, slurm, or {kind: slurm, partition: cpu, time: 6h}.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the manifest's numbers as JSON.")]

Text = Annotated[
    str | None,
    typer.Option(
        "--text", help="The text of a record, from its fields: '{question}\\n\\n{answer}'; {text} if not given."
    ),
]
Action = Callable[[Path], Outcome]
_text: ContextVar[str | None] = ContextVar("text", default=None)  # template of the verb that runs
TOLD_WHOLE = {"rules": " (report.md in --out has all)"}  # tables that a file of the output has for people
TOLD_IF_ANY = ("validation_bytes",)  # of what was not asked for, not even that there is none
TOLD_TO_THE_LAST = ("weights",)  # the answer itself
BUCKETS = ("high", "mid", "low", "unscored", "dropped")  # from the lowest perplexity to the highest
LONGEST = 40  # of a name in a row, in letters
SHOWN = 12  # of the rows of a table of numbers; manifest.json and --json have them all


def offer_executors(app: typer.Typer) -> None:
    """Give every verb whose tasks may run elsewhere `--executor` beside its `--workers`."""
    for command in app.registered_commands:
        if command.callback is not None and _runs_blocks(command.callback):
            command.callback = _on_executor(command.callback)
    for group in app.registered_groups:
        if group.typer_instance is not None:
            offer_executors(group.typer_instance)


def _runs_blocks(verb: Callable[..., None]) -> bool:
    """Whether a verb has workers that run blocks: synthesis and training have engines of their own."""
    return "workers" in inspect.signature(verb).parameters and verb.__name__ not in ("synth", "train")


def _on_executor(verb: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(verb)
    def run(*arguments: Any, executor: str | None = None, **options: Any) -> None:
        with executor_is(parse_executor(executor) if executor else None, fixed=True):
            verb(*arguments, **options)

    return _with_option(run, verb, "executor", Executor)


def offer_texts(app: typer.Typer) -> None:
    """Give every verb on documents `--text`: what the text of a record is."""
    reads = {run_on_documents.__name__, given_text.__name__}
    for command in app.registered_commands:
        if command.callback is not None and not reads.isdisjoint(command.callback.__code__.co_names):
            command.callback = _on_text(command.callback)
    for group in app.registered_groups:
        if group.typer_instance is not None:
            offer_texts(group.typer_instance)


def _on_text(verb: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(verb)
    def run(*arguments: Any, text: str | None = None, **options: Any) -> None:
        token = _text.set(template_of("--text", text))
        try:
            verb(*arguments, **options)
        finally:
            _text.reset(token)

    return _with_option(run, verb, "text", Text)


def template_of(option: str, text: str | None) -> str | None:
    """What an option says that a text is.

    Raises:
        RecipeError: it names no field.
    """
    if text is not None and not PLACE.search(text):
        raise RecipeError(f"{option} {text!r} names no field; expected a template such as '{{question}} {{answer}}'")
    return text and text.replace("\\n", "\n")  # no shell's quotes make a line end of it


def given_text() -> str | None:
    """The template of `--text`, for a verb whose documents are not its INPUT."""
    return _text.get()


def _with_option(run: Callable[..., None], verb: Callable[..., None], name: str, kind: Any) -> Callable[..., None]:
    """Let `run` be called as `verb` is, with one option more."""
    signature = inspect.signature(verb)
    extra = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
    setattr(run, "__signature__", signature.replace(parameters=[*signature.parameters.values(), extra]))  # noqa: B010
    run.__annotations__ = {**verb.__annotations__, name: kind}
    return run


def run_verb(
    name: str,
    out: Path,
    settings: BaseModel,
    files: Sequence[Path],
    action: Action,
    as_json: bool,
    more_parents: Mapping[str, str] | None = None,
) -> Manifest:
    """Perform a verb over given files and print what became of them.

    Args:
        name: of the verb; the step's name in the manifest.
        out: target folder.
        settings: resolved settings.
        files: what the user gave; hashed into the manifest's parents.
        action: fills the working folder.
        as_json: print JSON.
        more_parents: digests of other inputs (a model, an index).
    """
    if inside := [file for file in files if file.resolve().is_relative_to(out.resolve())]:
        raise DataError(f"{inside[0]} is an input and lies in --out {out}; give another folder for the output")
    more = {plain_name(name): digest for name, digest in (more_parents or {}).items()}
    parents = parents_from_files(files) | more
    try:
        done = perform(name, out, action, settings.model_dump(mode="json"), parents)
    finally:  # of a synthesis that was refused
        remove_empty_folders(out.with_name(f".{out.name}.answers") / "responses", out.parent)
    if as_json:
        typer.echo(json.dumps(numbers_of(done.manifest) | {"out": str(out), "how": done.how}, ensure_ascii=False))
    else:
        typer.echo(describe(done.manifest, out, done.how))
    return done.manifest


def run_on_documents(
    name: str,
    out: Path,
    settings: BaseModel,
    inputs: Sequence[str],
    action: Callable[[list[Path], Path], Outcome],
    as_json: bool,
    more_parents: Mapping[str, str] | None = None,
) -> Manifest:
    """The same for a verb on documents, which gets them as Parquet whatever was given.

    Args:
        name: as for `run_verb`, and so are the others but two.
        out: target folder.
        settings: resolved settings.
        inputs: paths, folders or globs of Parquet or JSON Lines.
        action: `(documents, work)`.
        as_json: print JSON.
        more_parents: digests of other inputs.
    """
    from pipelines.inputs import as_documents, holds_documents, left_out
    from pipelines.textless import refuse_textless

    files, text = wanted_of(inputs, holds_documents), _text.get()

    def on_documents(work: Path) -> Outcome:
        documents = as_documents(files, work, text=text)
        refuse_textless(documents, files, work, text)
        outcome, lost = action(documents, work), left_out(work)
        return replace(outcome, metrics={**outcome.metrics, "metadata_left_out": lost}) if lost else outcome

    told = {"text": text} if text else {}
    return run_verb(name, out, settings, files, on_documents, as_json, {**(more_parents or {}), **told})


def numbers_of(manifest: Manifest) -> dict[str, Any]:
    """Counts and metrics of a manifest, for `--json`."""
    counts = manifest.counts.model_dump(mode="json") if manifest.counts else None
    return {"step": manifest.step, "id": manifest.id, "counts": counts, "metrics": manifest.metrics}


def describe(manifest: Manifest, out: Path, how: str) -> str:
    """The same for people, in a few lines; tables of numbers begin with the largest."""
    lines = [f"{manifest.step}: {out}" + (" (nothing to do: already there)" if how == "skipped" else "")]
    if manifest.counts is not None:
        counts = manifest.counts
        share = f" ({counts.kept / counts.docs_in:.1%})" if counts.docs_in else ""
        lines.append(f"  documents in {counts.docs_in}, kept {counts.kept}{share}")
        lines += (
            [] if counts.docs_in else ["  the input holds no document: nothing was done; see the paths after the verb"]
        )
        lines += [f"  dropped  {number:>8}  {reason}" for reason, number in _largest_first(counts.dropped)]
        lines += [f"  rejected {number:>8}  {reason}" for reason, number in _largest_first(counts.rejected)]
    for key, value in manifest.metrics.items():
        lines += _told(key, value)
    if isinstance(unmet := manifest.metrics.get("budget"), Mapping):
        units = [unit for unit in ("tokens", "usd") if f"needed_{unit}" in unmet]
        needed, left = (" and ".join(f"{_short(unmet[f'{what}_{unit}'])} {unit}" for unit in units)
                        for what in ("needed", "left"))  # fmt: skip
        lines.append(f"  the next request may take {needed} (its prompt, and the ceiling of its answer: max_tokens of "
                     f"its prompt file, or sampling.max_tokens); of the budget {left} are left")  # fmt: skip
    return "\n".join(lines)


def _told(key: str, value: object) -> list[str]:
    """A metric in words: one line, or one for each of the first rows of a table; nothing where it has no value."""
    if value is None:
        return []
    if isinstance(value, Mapping) and any(isinstance(inner, Mapping) for inner in value.values()):
        rows = {name: inner for name, inner in value.items() if isinstance(inner, Mapping)}
        told = [f"    {name}: {words}" for name, words in _rows(key, rows)]
        more = [f"    ... and {len(told) - SHOWN} more"] if len(told) > SHOWN else []
        return [f"  {key}:{TOLD_WHOLE.get(key, '')}", *told[:SHOWN], *more] if told else []
    if isinstance(value, Mapping):
        shown = in_a_row(value, len(value) if key in TOLD_TO_THE_LAST else SHOWN)
        return [f"  {key}: {shown or 'none'}"] if value or key not in TOLD_IF_ANY else []
    if isinstance(value, list):
        plain = [_short(item) for item in value if not isinstance(item, (Mapping, list))]
        more = f", ... and {len(plain) - SHOWN} more" if len(plain) > SHOWN else ""
        return [f"  {key}: {', '.join(plain[:SHOWN])}{more}"] if plain else []
    return [f"  {key}: {_short(value)}"]


def _rows(key: str, rows: Mapping[str, Mapping[str, object]]) -> Iterator[tuple[str, str]]:
    """Rows of a table with their words; those of rules by what they dropped, without what none failed."""
    if key == "rules":
        failing = {name: row for name, row in rows.items() if row.get("fail")}
        rows = dict(sorted(failing.items(), key=lambda item: (-_number(item[1], "first"), -_number(item[1], "fail"))))
    for name, row in rows.items():
        if words := in_a_row(row):
            yield name, words
        else:
            parts = {part: inner for part, inner in row.items() if isinstance(inner, Mapping)}
            yield from ((f"{name}/{part}", in_a_row(inner)) for part, inner in parts.items())


def _number(row: Mapping[str, object], name: str) -> int:
    value = row.get(name)
    return value if isinstance(value, int) else 0


def in_a_row(values: Mapping[str, object], most: int = SHOWN) -> str:
    """Numbers by name; counts from the largest to the smallest, the first `most` of many."""
    told = {name: value for name, value in values.items() if value is not None}
    plain = {name: value for name, value in told.items() if not isinstance(value, (Mapping, list))}
    counts = {name: value for name, value in plain.items() if isinstance(value, int)}
    if plain.keys() <= set(BUCKETS):
        plain = {name: plain[name] for name in BUCKETS if name in plain}
    shown = _largest_first(counts) if len(counts) == len(plain) > most else list(plain.items())
    more = f", ... and {len(shown) - most} more" if len(shown) > most else ""
    names = [textwrap.shorten(name, LONGEST, placeholder=" ...") for name, _ in shown[:most]]
    return ", ".join(f"{name} {_short(value)}" for name, (_, value) in zip(names, shown, strict=False)) + more


def _largest_first(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _short(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def documents_of(patterns: Sequence[str]) -> list[Path]:
    """Expand the INPUT of a verb on documents."""
    return expand_inputs(patterns)


def wanted_of(patterns: Sequence[str], is_wanted: Callable[[Path], bool]) -> list[Path]:
    """The same, where others that lie in a folder are left out, with a line on stderr; one that is named stays."""
    named = [str(pattern) for pattern in patterns if not location(pattern).is_dir()]
    found, kept = documents_of(patterns), set(documents_of(named) if named else [])
    wanted = [file for file in found if file in kept or is_wanted(file)]
    if wanted and len(wanted) < len(found):
        other = next(file for file in found if file not in wanted)
        typer.echo(f"loam: skipped {len(found) - len(wanted)} files of other formats, such as {other.name}", err=True)
    return wanted or found
