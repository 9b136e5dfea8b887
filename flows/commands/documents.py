"""Verbs on documents: extract, language, filter, dedup, quality, pii, decontaminate, tokenize, verify."""

import json
from pathlib import Path
from typing import Annotated

import typer

from flows.verb import AsJson, Inputs, Out, Sets, Workers, documents_of, run_on_documents, run_verb
from pipelines.errors import DataError, RecipeError
from pipelines.files import sha256_of
from pipelines.recipe import settings_from

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

    settings = settings_from(module.LanguageSettings, sets)
    run_on_documents(
        "language",
        out,
        settings,
        inputs,
        lambda documents, work: module.language(documents, work, settings, workers),
        as_json,
    )


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

    settings = settings_from(module.FilterSettings, sets, rules=rules)
    run_on_documents(
        "filter",
        out,
        settings,
        inputs,
        lambda documents, work: module.filter_documents(documents, work, settings, workers),
        as_json,
    )


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

    settings = settings_from(module.DedupSettings, sets, method=method)
    if against is not None and not against.is_dir():
        raise DataError(f"{against} is not the index folder of an earlier dedup (its --out, or the index/ in it)")
    index = {f"index:{p.name}": sha256_of(p) for p in sorted(against.rglob("*")) if p.is_file()} if against else {}
    run_on_documents(
        "dedup",
        out,
        settings,
        inputs,
        lambda documents, work: module.dedup(documents, work, settings, workers, against),
        as_json,
        index,
    )


def pii(inputs: Inputs, out: Out, workers: Workers = 1, sets: Sets = None, as_json: AsJson = False) -> None:
    """Mask personal data; where each span was goes to spans.parquet."""
    from filters import pii as module

    settings = settings_from(module.PiiSettings, sets)
    run_on_documents(
        "pii",
        out,
        settings,
        inputs,
        lambda documents, work: module.mask_pii(documents, work, settings, workers),
        as_json,
    )


def decontaminate(
    inputs: Inputs, out: Out, against: Against, workers: Workers = 1, sets: Sets = None, as_json: AsJson = False
) -> None:
    """Drop documents that hold evaluation items; every hit with its span."""
    from pipelines import decontaminate as module

    settings = settings_from(module.DecontaminateSettings, sets)
    items = documents_of(against)
    digests = {f"against:{number}:{path.name}": sha256_of(path) for number, path in enumerate(items)}
    run_on_documents(
        "decontaminate", out, settings, inputs,
        lambda documents, work: module.decontaminate(documents, items, work, settings, workers), as_json, digests,
    )  # fmt: skip


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

    settings = settings_from(module.EncodeSettings, ["validation_share=0", *(sets or ())])
    digests = {f"tokenizer:{path.name}": sha256_of(path) for path in documents_of([str(tokenizer)])} | {"name": name}
    run_on_documents(
        "tokenize",
        out,
        settings,
        inputs,
        lambda documents, work: module.encode(documents, work, tokenizer, settings, workers, name=name),
        as_json,
        digests,
    )


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

    if not model.is_file():
        raise RecipeError(f"--model {model}: no such file; `loam quality train` writes model.bin")
    settings = settings_from(module.QualitySettings, sets)
    run_on_documents(
        "quality-score",
        out,
        settings,
        inputs,
        lambda documents, work: module.score_quality(documents, work, settings, model, workers),
        as_json,
        {"model": sha256_of(model)},
    )
