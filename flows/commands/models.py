"""Verbs with models: perplexity, buckets, synth, import, export, train, eval."""

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.steps.step import digests_of
from flows.verb import (
    AsJson,
    Inputs,
    Out,
    Sets,
    Workers,
    documents_of,
    given_text,
    run_on_documents,
    run_verb,
    template_of,
)
from pipelines.errors import DataError, RecipeError
from pipelines.execute import SCRATCH
from pipelines.files import sha256_of
from pipelines.recipe import AnySection, kind_of, load_recipe, settings_from
from pipelines.store import Outcome

ScoringModel = Annotated[
    Path,
    typer.Option("--model", help="Hugging Face model folder with its tokenizer, a run's checkpoint, or a KenLM file"),
]
Scorer = Annotated[str | None, typer.Option(help="What runs the model: transformers (default), native, vllm or kenlm")]
ScoreRecipeName = Annotated[
    str | None,
    typer.Option("--recipe", help="A recipe of kind score, such as perplexity-buckets; options go before it"),
]


def register(app: typer.Typer) -> None:
    """Add this group's verbs."""
    for verb in (perplexity, buckets, synth, train, export):
        app.command()(verb)
    app.command("import")(import_)
    app.command("eval")(evaluate)


def folder_digests(folder: Path, label: str) -> dict[str, str]:
    """sha256 of every file of a folder that a verb reads, as parents."""
    if not folder.is_dir():
        raise DataError(f"--{label} {folder}: no such folder")
    return {f"{label}:{p.relative_to(folder)}": sha256_of(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def _with_recipe(
    model: type[AnySection], recipe: str | None, section: str, sets: list[str] | None, given: dict[str, Any]
) -> AnySection:
    """Settings of a verb: the defaults or a recipe's section, then the verb's options, then `--set`.

    A key may be that of the section or that of the recipe (`device`, `perplexity.device`), as `loam check` takes it.
    """
    from flows.score_recipe import ScoreRecipe

    of_recipe = [one for one in sets or () if re.match(rf"({'|'.join(ScoreRecipe.model_fields)})\.", one)]
    own = [one.removeprefix(f"{section}.") for one in sets or () if one not in of_recipe or one.startswith(section)]
    if recipe is None:
        return settings_from(model, own, **given)
    section_of = getattr(load_recipe(recipe, ScoreRecipe, of_recipe), section)
    known = section_of.model_dump(mode="json", exclude_unset=True)
    return settings_from(model, own, **{**known, **{key: v for key, v in given.items() if v is not None}})


def perplexity(
    inputs: Inputs,
    out: Out,
    model: ScoringModel,
    scorer: Scorer = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens of a document that are scored")] = None,
    recipe: ScoreRecipeName = None,
    workers: Workers = 1,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Negative log-likelihood of each document under a language model."""
    from filters import perplexity as module
    from filters.scorer_kenlm import pieces_model_of
    from flows.model_folders import checkpoint_of
    from trainer.export import export_hf

    native = scorer == "native"
    given = {"max_tokens": max_length, "scorer": "transformers" if native else scorer}
    settings = _with_recipe(module.PerplexitySettings, recipe, "perplexity", sets, given)
    source, tokenizer = checkpoint_of(model) if native else (model, None)

    def action(documents: list[Path], work: Path) -> Outcome:
        folder = source
        if native:  # the reference's own code scores it, which the export is proven equal to
            folder = work / SCRATCH / "model"
            export_hf(source, folder, tokenizer)
        return module.score_perplexity(documents, work, settings, folder, workers)

    if settings.scorer == "kenlm":
        parents = digests_of({"model": model, "pieces": pieces_model_of(model)})
    else:
        parents = folder_digests(source, "model") | digests_of({"tokenizer": tokenizer})
    run_on_documents("perplexity", out, settings, inputs, action, as_json, parents)


def buckets(
    inputs: Inputs,
    out: Out,
    cutoffs: Annotated[Path | None, typer.Option(help="cutoffs.json to apply instead of fitting anew")] = None,
    recipe: ScoreRecipeName = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Cut scores into high, mid and low per group; high is the lowest perplexity."""
    from filters import buckets as module
    from filters.ensemble_scores import score_files

    settings = _with_recipe(module.BucketSettings, recipe, "buckets", sets, {})
    files = [file for given in inputs for file in score_files(given)]
    run_verb("buckets", out, settings, files, lambda work: module.buckets(files, work, settings, cutoffs), as_json,
             digests_of({"cutoffs": cutoffs}))  # fmt: skip


def _require_models(**folders: Path | None) -> None:
    for option, folder in folders.items():
        if folder is not None and not folder.exists():
            raise DataError(f"--{option} {folder}: no such folder; expected a model in Hugging Face format")


def synth(
    inputs: Inputs,
    out: Out,
    recipe: Annotated[str, typer.Option(help="A recipe of kind synth, by name or path")] = "cot_backward",
    engine: Annotated[str | None, typer.Option(help="transformers, vllm, endpoint or replay")] = None,
    model: Annotated[Path | None, typer.Option(help="Model folder (transformers, vllm)")] = None,
    budget_tokens: Annotated[str | None, typer.Option(help="Hard ceiling of tokens in and out, such as 30M")] = None,
    budget_usd: Annotated[float | None, typer.Option(help="The same in US dollars, by the engine's prices")] = None,
    allow_model_change: Annotated[bool, typer.Option(help="--out may hold answers of another model")] = False,
    corpus: Annotated[list[str] | None, typer.Option(help="cot_rag: documents to retrieve from, or index/ of an "
                                                     "earlier run; INPUT when not given (repeatable)")] = None,
    corpus_text: Annotated[str | None, typer.Option(help="cot_rag: the text of a record of --corpus, as "
                                                    "--text says that of INPUT")] = None,
    clusters: Annotated[Path | None, typer.Option(help="cot_rag: clusters.parquet of the corpus's loam dedup")] = None,
    embeddings: Annotated[list[Path] | None, typer.Option(help="cot_rag: embeddings of the corpus's documents, "
                                                          "Parquet or .npy (repeatable)")] = None,
    benchmarks: Annotated[list[str] | None, typer.Option(help="Evaluation sets that neither documents nor samples may "
                                                         "hold (repeatable)")] = None,
    forms: Annotated[str | None, typer.Option(help="Samples in other forms too: sft, rl, or sft,rl")] = None,
    judge: Annotated[Path | None, typer.Option(help="Model folder of another model, which marks samples")] = None,
    grounding: Annotated[Path | None, typer.Option(help="Model folder: question and chain must make the document "
                                                   "likelier to it")] = None,
    workers: Workers = 1,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Synthesize text from documents; every answer is logged, verified, and accepted or rejected with a reason."""
    from flows.steps.screens import asked_for, screen_inputs, screening_of, with_plot
    from synth import generate
    from synth.kind import Library
    from synth.recipe import SynthSettings
    from synth.response_log import log_beside

    given = {"engine.name": engine, "budget_tokens": budget_tokens, "budget_usd": budget_usd,
             "forms.write": forms and f"[{forms}]"}  # fmt: skip
    overrides = [f"{name}={value}" for name, value in given.items() if value is not None]
    settings = asked_for(load_recipe(recipe, SynthSettings, [*overrides, *(sets or ())]), judge, grounding)
    _require_models(model=model, judge=judge, grounding=grounding)
    sought = documents_of(benchmarks) if benchmarks else []
    answers = {"log": log_beside(out), "replaces": out, "other_model": allow_model_change}
    indexes = [Path(one) for one in corpus or () if (Path(one) / "index.json").is_file()]
    passages = template_of("--corpus-text", corpus_text)
    library = Library(indexes or (documents_of(corpus) if corpus else ()), clusters, embeddings or (), passages)
    read = {f"library-{n}": file for n, file in enumerate([*library.corpus, *library.embeddings])}
    read |= {f"benchmark-{n}": file for n, file in enumerate(sought)}
    parents = {"model": model, "clusters": clusters, "buckets": settings.rephrase.buckets, **read,
               **screen_inputs(settings, judge, grounding)}  # fmt: skip

    def action(documents: list[Path], work: Path) -> Outcome:
        scratch = work / SCRATCH / "grounding"
        screening = screening_of(settings, sought, grounding, judge, scratch=scratch)
        outcome = generate.synthesize(
            documents, work, settings, model, workers, library=library, screening=screening, **answers
        )  # fmt: skip
        return with_plot(outcome, work)

    digests = digests_of(parents) | ({"corpus-text": passages} if passages else {})
    run_on_documents("synth", out, settings.asked, inputs, action, as_json, digests)


def train(
    recipe: Annotated[str, typer.Argument(help="A recipe of kind train (or run: then everything up to the model)")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for checkpoint and metrics")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of shards (train/ and validation/, or shards)")] = None,
    validation: Annotated[Path | None, typer.Option(help="Folder of held-out shards; validation/ of --data "
                                                    "when not given")] = None,
    mixture: Annotated[str | None, typer.Option(help="mixture.yaml, a run of loam ablate, or a fingerprint; "
                                                "proportional to tokens when not given")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="Tokenizer folder, for the size of the vocabulary")] = None,
    workers: Workers = 1,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Train a model on shards and a mixture."""
    from flows.ablate_show import find_mixture
    from flows.commands.runs import run_until
    from flows.train_verb import train_on
    from flows.training_report import PAGE, write_training_report
    from trainer.recipe import TrainRecipe

    if kind_of(recipe) == "run":
        if mixture is not None:
            raise RecipeError(f"{recipe} is of kind run, which finds its own mixture; --mixture is for kind train")
        run_until(recipe, "train", workers, sets, as_json)
        return
    if kind_of(recipe) == "ablate":
        raise RecipeError(f"{recipe} searches for a mixture: loam ablate does; --mixture then takes its name")
    if out is None or data is None:
        raise RecipeError(f"{recipe} is a recipe of kind train: give --data FOLDER and --out FOLDER")
    settings = load_recipe(recipe, TrainRecipe, sets or ())
    weights = find_mixture(mixture) if mixture is not None else None
    given = {"mixture": weights, "tokenizer": tokenizer, "validation": validation}

    def action(work: Path) -> Outcome:
        outcome = train_on(settings, data, weights, tokenizer, work, validation)
        write_training_report(work)
        return outcome

    run_verb("train", out, settings, documents_of([str(data)]), action, as_json, digests_of(given))
    if not as_json and (out / PAGE).is_file():
        typer.echo(f"report: {out / PAGE}")


def import_(
    model: Annotated[Path, typer.Argument(help="Hugging Face model folder")], out: Out, as_json: AsJson = False
) -> None:
    """A Hugging Face model to a native checkpoint."""
    from flows.train_verb import NoSettings
    from trainer.hf_import import import_hf

    files = documents_of([str(model)])
    run_verb("import", out, NoSettings(), files, lambda work: Outcome(metrics=import_hf(model, work)), as_json)


def export(
    source: Annotated[Path, typer.Argument(help="A run, or a native checkpoint folder")],
    out: Out,
    to: Annotated[str, typer.Option(help="hf")] = "hf",
    tokenizer: Annotated[Path | None, typer.Option(help="Tokenizer folder; a run brings its own")] = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """A trained model to a Hugging Face folder, tokenizer included; half the size with --set precision=bf16."""
    from flows.model_folders import checkpoint_of
    from trainer.export import ExportSettings, export_hf

    if to != "hf":
        raise RecipeError(f"--to {to!r} is not known; there is: hf")
    checkpoint, found = checkpoint_of(source)
    files, settings = documents_of([str(checkpoint)]), settings_from(ExportSettings, sets)

    def action(work: Path) -> Outcome:
        return Outcome(metrics=export_hf(checkpoint, work, tokenizer or found, precision=settings.precision))

    run_verb("export", out, settings, files, action, as_json, digests_of({"tokenizer": tokenizer or found}))


def evaluate(
    model: Annotated[Path, typer.Argument(help="Hugging Face model folder, or a run")],
    out: Out,
    items: Annotated[list[str] | None, typer.Option(help="Multiple-choice items, JSONL (repeatable)")] = None,
    documents: Annotated[list[str] | None, typer.Option(help="Held-out documents for bits per byte")] = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Bits per byte on held-out documents, and multiple-choice accuracy with its interval."""
    from flows.model_folders import hf_folder_of
    from flows.train_verb import evaluate_files
    from trainer.evaluate import EvaluateSettings

    settings = settings_from(EvaluateSettings, sets)
    folder = hf_folder_of(model)
    item_files = documents_of(items) if items else []
    document_files, text = documents_of(documents) if documents else [], given_text()
    if not item_files and not document_files:
        raise RecipeError("nothing to evaluate on: give --items and/or --documents")

    def action(work: Path) -> Outcome:
        return evaluate_files(folder, work, settings, document_files, item_files, text)

    digests = folder_digests(folder, "model") | ({"text": text} if text else {})
    run_verb("eval", out, settings, [*item_files, *document_files], action, as_json, digests)
