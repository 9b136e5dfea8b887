"""Verbs on documents: extract, language, filter, dedup, quality, pii, decontaminate, tokenize, verify."""

import json
from pathlib import Path
from typing import Annotated

import typer

from flows.verb import AsJson, Inputs, Out, Sets, Workers, documents_of, run_verb
from pipelines.errors import DataError, RecipeError
from pipelines.files import sha256_of
from pipelines.recipe import settings_from
from pipelines.store import Outcome

Against = Annotated[list[str], typer.Option("--against", help="Files or index folder to compare with (repeatable).")]


def register(app: typer.Typer) -> None:
    """Add this group's verbs."""
    for verb in (extract, language, filter_, dedup, pii, decontaminate, tokenize, verify):
        app.command(verb.__name__.rstrip("_"))(verb)
    quality = typer.Typer(
        help="Train a fastText quality classifier, or score documents with one.", no_args_is_help=True
    )
    quality.command("train")(quality_train)
    quality.command("score")(quality_score)
    app.add_typer(quality, name="quality")


def extract(inputs: Inputs, out: Out, workers: Workers = 1, sets: Sets = None, as_json: AsJson = False) -> None:
    """WARC, ARC, WET or HTML files to documents."""
    from pipelines import extract as module

    settings = settings_from(module.ExtractSettings, sets)
    files = documents_of(inputs)
    run_verb("extract", out, settings, files, lambda work: module.extract(files, work, settings, workers), as_json)


def language(inputs: Inputs, out: Out, workers: Workers = 1, sets: Sets = None, as_json: AsJson = False) -> None:
    """Language (ISO 639-3) and confidence of each document."""
    from filters import language as module
    from pipelines.readers import as_documents

    settings = settings_from(module.LanguageSettings, sets)
    files = documents_of(inputs)

    def action(work: Path) -> Outcome:
        return module.language(as_documents(files, work), work, settings, workers)

    run_verb("language", out, settings, files, action, as_json)


def filter_(
    inputs: Inputs,
    out: Out,
    rules: Annotated[str, typer.Option(help="Rule set: gopher_quality, gopher_repetition, c4, fineweb, web_en, ...")],
    workers: Workers = 1,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Keep or drop documents by heuristic rules, with a reason and every rule's value."""
    from filters import heuristics as module
    from pipelines.readers import as_documents

    settings = settings_from(module.FilterSettings, sets, rules=rules)
    files = documents_of(inputs)

    def action(work: Path) -> Outcome:
        return module.filter_documents(as_documents(files, work), work, settings, workers)

    run_verb("filter", out, settings, files, action, as_json)


def dedup(
    inputs: Inputs,
    out: Out,
    method: Annotated[str, typer.Option(help="exact, url or minhash")] = "minhash",
    against: Annotated[Path | None, typer.Option(help="Index of an earlier dedup: drop what it holds, too.")] = None,
    workers: Workers = 1,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Drop duplicates, and say what matched whom."""
    from pipelines import dedup as module
    from pipelines.readers import as_documents

    settings = settings_from(module.DedupSettings, sets, method=method)
    files = documents_of(inputs)
    if against is not None and not against.is_dir():
        raise DataError(f"{against} is not the index folder of an earlier dedup (its --out, or the index/ in it)")
    index = {f"index:{p.name}": sha256_of(p) for p in sorted(against.rglob("*")) if p.is_file()} if against else {}

    def action(work: Path) -> Outcome:
        return module.dedup(as_documents(files, work), work, settings, workers, against)

    run_verb("dedup", out, settings, files, action, as_json, index)


def pii(inputs: Inputs, out: Out, workers: Workers = 1, sets: Sets = None, as_json: AsJson = False) -> None:
    """Mask personal data; where each span was goes to spans.parquet."""
    from filters import pii as module
    from pipelines.readers import as_documents

    settings = settings_from(module.PiiSettings, sets)
    files = documents_of(inputs)

    def action(work: Path) -> Outcome:
        return module.mask_pii(as_documents(files, work), work, settings, workers)

    run_verb("pii", out, settings, files, action, as_json)


def decontaminate(
    inputs: Inputs, out: Out, against: Against, workers: Workers = 1, sets: Sets = None, as_json: AsJson = False
) -> None:
    """Drop documents that hold evaluation items; every hit with its span."""
    from pipelines import decontaminate as module
    from pipelines.readers import as_documents

    settings = settings_from(module.DecontaminateSettings, sets)
    files, items = documents_of(inputs), documents_of(against)

    def action(work: Path) -> Outcome:
        return module.decontaminate(as_documents(files, work), items, work, settings, workers)

    digests = {f"against:{number}:{path.name}": sha256_of(path) for number, path in enumerate(items)}
    run_verb("decontaminate", out, settings, files, action, as_json, digests)


def tokenize(
    inputs: Inputs,
    out: Out,
    tokenizer: Annotated[Path, typer.Option(help="tokenizer.json, a tiktoken file, or a folder")],
    name: Annotated[str, typer.Option(help="Name of the shard")] = "documents",
    workers: Workers = 1,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Documents to a Megatron shard: NAME.bin, NAME.idx and NAME.origin.parquet."""
    from pipelines import encode as module
    from pipelines.readers import as_documents

    settings = settings_from(module.EncodeSettings, ["validation_share=0", *(sets or ())])
    files = documents_of(inputs)

    def action(work: Path) -> Outcome:
        return module.encode(as_documents(files, work), work, tokenizer, settings, workers, name=name)

    digests = {f"tokenizer:{path.name}": sha256_of(path) for path in documents_of([str(tokenizer)])} | {"name": name}
    run_verb("tokenize", out, settings, files, action, as_json, digests)


def verify(
    prefix: Annotated[Path, typer.Argument(help="Path of a shard without .bin or .idx")],
    vocab_size: Annotated[int | None, typer.Option(help="Every token must be below it")] = None,
    eos_id: Annotated[int | None, typer.Option(help="Token that must end every document")] = None,
    as_json: AsJson = False,
) -> None:
    """Check a shard with code that shares nothing with the writer."""
    from pipelines.verify import verify as check

    report = check(prefix, vocab_size, eos_id)
    if as_json:
        typer.echo(json.dumps(report.to_dict(), ensure_ascii=False))
    else:
        typer.echo("\n".join(report.lines()))
    if not report.passed:
        failed = next(c for c in report.checks if not c.passed)
        raise DataError(f"{prefix}: {failed.name}: expected {failed.expected}, found {failed.found}")


def quality_train(inputs: Inputs, out: Out, sets: Sets = None, as_json: AsJson = False) -> None:
    """Train a quality classifier: --set positive=[DOMAIN] says what is good; JSON lines say it by `label` (1 or 0)."""
    from filters import quality as module

    settings = settings_from(module.QualitySettings, sets)
    files = documents_of(inputs)
    run_verb("quality-train", out, settings, files, lambda work: module.train_quality(files, work, settings), as_json)


def quality_score(
    inputs: Inputs,
    out: Out,
    model: Annotated[Path, typer.Option(help="model.bin of `loam quality train`")],
    workers: Workers = 1,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Score documents with a quality classifier."""
    from filters import quality as module
    from pipelines.readers import as_documents

    if not model.is_file():
        raise RecipeError(f"--model {model}: no such file; `loam quality train` writes model.bin")
    settings = settings_from(module.QualitySettings, sets)
    files = documents_of(inputs)

    def action(work: Path) -> Outcome:
        return module.score_quality(as_documents(files, work), work, settings, model, workers)

    run_verb("quality-score", out, settings, files, action, as_json, {"model": sha256_of(model)})
