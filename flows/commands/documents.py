"""Verbs on documents: extract, language, filter, safety, licences, dedup, quality, pii, decontaminate, tokenize, ..."""

import json
from pathlib import Path
from typing import Annotated

import typer

from flows.verb import AsJson, Inputs, Out, Sets, Workers, documents_of, run_on_documents, run_verb, wanted_of
from pipelines.errors import DataError, RecipeError
from pipelines.files import sha256_of
from pipelines.recipe import settings_from

Against = Annotated[list[str], typer.Option("--against", help="Files or index folder to compare with (repeatable).")]


def register(app: typer.Typer) -> None:
    """Add this group's verbs."""
    for verb in (extract, language, filter_, safety, licences, dedup, pii, decontaminate, tokenize, verify):
        app.command(verb.__name__.rstrip("_"))(verb)
    quality = typer.Typer(
        help="Train a fastText quality classifier, score documents with one, rank them by many.", no_args_is_help=True
    )
    quality.command("train")(quality_train)
    quality.command("score")(quality_score)
    quality.command("ensemble")(quality_ensemble)
    app.add_typer(quality, name="quality")


def extract(inputs: Inputs, out: Out, workers: Workers = 1, sets: Sets = None, as_json: AsJson = False) -> None:
    """WARC, ARC, WET or HTML files to documents."""
    from pipelines import extract as module
    from pipelines.warc import holds_pages

    settings = settings_from(module.ExtractSettings, sets)
    files = wanted_of(inputs, holds_pages)
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
    rules: Annotated[
        list[str],
        typer.Option(help="Rule sets: web_en, fineweb2, code, ... (docs/filters.md); with commas or repeated."),
    ],
    from_attributes: Annotated[
        Path | None, typer.Option(help="Output of an earlier filter: cut its values again, measure nothing.")
    ] = None,
    workers: Workers = 1,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Keep or drop documents by heuristic rules, with a reason and every rule's value."""
    from filters import heuristics as module

    settings = settings_from(module.FilterVerbSettings, sets, rules=rules)
    if not (settings.rules or settings.measure):
        raise RecipeError("--rules names no rule set; give one such as web_en")
    rules_by_domain = settings.by_domain()
    stored = module.attribute_files(from_attributes) if from_attributes else []
    run_on_documents(
        "filter",
        out,
        settings,
        inputs,
        lambda documents, work: module.filter_documents(documents, work, rules_by_domain, workers, stored),
        as_json,
        {f"attributes:{number:05d}": sha256_of(path) for number, path in enumerate(stored)},
    )


def dedup(
    inputs: Inputs,
    out: Out,
    method: Annotated[str, typer.Option(help="exact, url, minhash, lines, substring or semantic")] = "minhash",
    preset: Annotated[str | None, typer.Option(help="Of minhash: fineweb, curator or openseek_zh")] = None,
    against: Annotated[
        list[Path] | None, typer.Option(help="Output of an earlier dedup: drop what it holds, too (repeatable).")
    ] = None,
    embeddings: Annotated[
        list[str] | None, typer.Option(help="Of semantic: Parquet with id and embedding, or .npy in the input's order.")
    ] = None,
    workers: Workers = 1,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Drop duplicates, and say what matched whom."""
    from pipelines import dedup as module
    from pipelines.dedup_index import index_digest

    if preset and method != "minhash":
        raise RecipeError(f"--preset {preset} is of minhash; with --method {method} it would change nothing")
    settings = settings_from(module.DedupSettings, sets, method=method, preset=preset)
    indexes, vectors = against or [], documents_of(embeddings) if embeddings else []
    digests = {f"index:{number}": index_digest(folder) for number, folder in enumerate(indexes)}
    digests |= {f"embeddings:{number}:{path.name}": sha256_of(path) for number, path in enumerate(vectors)}
    run_on_documents(
        "dedup",
        out,
        settings,
        inputs,
        lambda documents, work: module.dedup(documents, work, settings, workers, indexes, vectors),
        as_json,
        digests,
    )


def safety(
    inputs: Inputs,
    out: Out,
    urls: Annotated[str | None, typer.Option(help="ut1 (loam fetch ut1), or a folder of lists of sites")] = None,
    words: Annotated[
        str | None, typer.Option(help="ldnoobw (loam fetch ldnoobw), or a folder of words by language")
    ] = None,
    workers: Workers = 1,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Drop documents from listed addresses and documents with listed words, with the reason."""
    from filters import safety as module

    settings = settings_from(module.SafetySettings, sets, urls=urls, words=words).below(Path())
    for line in settings.missing():
        raise DataError(line)
    lists = {f"{name}:{n}": sha256_of(file) for name, path in settings.paths.items()
             for n, file in enumerate(documents_of([path]))}  # fmt: skip
    run_on_documents(
        "safety", out, settings.model_copy(update=dict.fromkeys(settings.paths)), inputs,
        lambda documents, work: module.safety(documents, work, settings, workers), as_json, lists,
    )  # fmt: skip


def licences(inputs: Inputs, out: Out, workers: Workers = 1, sets: Sets = None, as_json: AsJson = False) -> None:
    """Say the licence of each document, and drop those that `allow` and `deny` keep out."""
    from filters import licences as module

    settings = settings_from(module.LicenceSettings, sets)
    run_on_documents(
        "licences",
        out,
        settings,
        inputs,
        lambda documents, work: module.filter_licences(documents, work, settings, workers),
        as_json,
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
    """Train a quality classifier: `positive` names the good domains; JSON lines say it by `label` (1 or 0)."""
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


def quality_ensemble(
    inputs: Annotated[list[str], typer.Argument(metavar="SCORES...", help="Files or folders of scores, any scorers.")],
    out: Out,
    labels: Annotated[Path | None, typer.Option(help="id and label (1 or 0): calibrate every scorer")] = None,
    fitted: Annotated[Path | None, typer.Option(help="ensemble.json of an earlier fit: apply it as it is")] = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Rank documents into 20 buckets by every scorer, and take the best (0 worst, 19 best)."""
    from filters import ensemble as module
    from filters.ensemble_scores import score_files

    settings = settings_from(module.EnsembleSettings, sets)
    if labels is not None and fitted is not None:
        raise RecipeError("--labels calibrates a new fit and --fitted applies an old one: give one of them")
    files = [file for given in inputs for file in score_files(given)]
    others = {"labels": labels, "fitted": fitted}
    digests = {name: sha256_of(documents_of([str(path)])[0]) for name, path in others.items() if path is not None}
    run_verb("quality-ensemble", out, settings, files,
             lambda work: module.ensemble(inputs, work, settings, labels, fitted), as_json, digests)  # fmt: skip
