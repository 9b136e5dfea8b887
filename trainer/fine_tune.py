"""Fine-tune a model in Hugging Face format, whole or by low-rank updates, and give it back in that format.

Import, shards, training and export are the same code as everywhere else: what differs is that training starts from the
model's weights and that a recipe is made of a few settings. The model's own tokenizer makes the shards, so that nothing
can be tuned on tokens that it does not mean.

    from trainer.fine_tune import fine_tune

    tuned = fine_tune("OLMoE-1B-7B-0924", ["answers.jsonl"], "tuned", tokens="20M", learning_rate="1e-5")
    print(tuned.metrics["held_out"])  # tuned/hf is what transformers and vLLM load
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from pipelines.errors import DataError, RecipeError
from pipelines.execute import SCRATCH
from pipelines.manifest import Counts
from pipelines.quantities import Tokens
from pipelines.recipe import Section
from pipelines.shards import Blend, ShardSet
from pipelines.store import Outcome
from trainer.lora_settings import LoraSettings
from trainer.recipe import OptimizerSettings, StageSettings, TrainRecipe


class FineTuneSettings(Section):
    """What fine-tuning asks for; the model's shape is its own.

    Attributes:
        tokens: trained on, rounded up to whole batches.
        sequence_length: tokens of a sample; the model's longest when that is less.
        batch_tokens: tokens of one optimizer step.
        learning_rate: the peak.
        warmup: share of the steps with a rising rate.
        schedule: shape after the warmup.
        min_lr_share: the last rate as a share of the peak.
        optimizer: AdamW's or Muon's numbers; no decay, since the weights are to stay near to what they are.
        lora: train low-rank updates only; None trains every weight.
        aux_loss: coefficient of the routers' balance loss; 0 leaves routers to the data.
        bias_update_rate: step of the routers' balancing bias, where they have one; 0 leaves it as it was learnt.
        validation_share: of the documents, held out and measured at the end; for documents, not for shards.
        epoch_cap: most passes over the data.
        grad_clip: largest global gradient norm.
        precision: of the matrix products.
        separate_documents: attention does not cross documents.
        recompute: hold less and compute it again in the backward pass.
        micro_batch_tokens: tokens of one forward pass; 0 takes the whole batch at once.
        checkpoint_every: optimizer steps between checkpoints.
        threads: of torch.
        device: `auto` takes a GPU when there is one.
        seed: of the order of data and of updates.
    """

    tokens: Tokens = Field(gt=0)
    sequence_length: int = Field(default=1024, ge=2)
    batch_tokens: Tokens = Field(default=16_384, gt=0)
    learning_rate: float = Field(default=1e-5, gt=0)
    warmup: float = Field(default=0.03, ge=0, lt=1)
    schedule: Literal["cosine", "wsd", "linear", "constant"] = "linear"
    min_lr_share: float = Field(default=0.1, ge=0, le=1)
    optimizer: OptimizerSettings = OptimizerSettings(weight_decay=0.0)
    lora: LoraSettings | None = None
    aux_loss: float = Field(default=0.0, ge=0)
    bias_update_rate: float = Field(default=0.0, ge=0)
    validation_share: float = Field(default=0.02, ge=0, lt=1)
    epoch_cap: float | None = Field(default=None, gt=0)
    grad_clip: float = Field(default=1.0, gt=0)
    precision: Literal["fp32", "bf16"] = "bf16"
    separate_documents: bool = True
    recompute: bool = False
    micro_batch_tokens: Tokens = Field(default=0, ge=0)
    checkpoint_every: int = Field(default=200, ge=1)
    threads: int = Field(default=1, ge=1, le=1024)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = Field(default=0, ge=0, lt=2**32)


def fine_tune(
    model: Path | str, data: Path | str | Sequence[Path | str], out: Path | str,
    settings: FineTuneSettings | None = None, workers: int = 1, text: str | None = None, **given: Any,
) -> Outcome:  # fmt: skip
    """Fine-tune a model on documents or shards.

    May be called again on the same folder after a kill: training goes on where it was.

    Args:
        model: folder in Hugging Face format, with its tokenizer.
        data: a folder of shards that this tokenizer made, or files of documents (Parquet, JSONL).
        out: folder to fill: `train/` (metrics, `final/`, `adapter/` with `lora`) and `hf/`, the tuned model.
        settings: what is asked for.
        workers: processes that make shards; changes no byte.
        text: template of a record's text from its fields, `{question} {answer}`; `{text}` when not given.
        given: the settings' fields, in place of `settings`.

    Returns:
        Metrics of the training, and of the export under `export`; what became of the documents, where there were any.

    Raises:
        RecipeError: the settings do not hold, a pattern of `lora` covers nothing, or shards were to have a `text`.
        DataError: the model cannot be imported, or the data cannot be read or holds nothing to train on.
    """
    from trainer.checkpoint import open_checkpoint
    from trainer.export import export_hf
    from trainer.hf_import import import_hf
    from trainer.loop import train
    from trainer.telemetry import Telemetry

    model, out = Path(model), Path(out)
    asked = settings or _settings(given)
    shards, validation, counts = _shards(data, model, out / "tokens", asked, workers, text)
    base = out / SCRATCH / "base"
    import_hf(model, base)
    start = base / "final"
    shape, _ = open_checkpoint(start)
    blend = Blend.of({shard.name: shard.tokens / shards.tokens for shard in shards.shards}, shards)
    recipe = recipe_of(asked, shape, model.name)
    outcome = train(recipe, blend, out / "train", validation, [Telemetry(validation)], start)
    exported = export_hf(out / "train" / "final", out / "hf", model)
    for done in (base, out / "tokens" / SCRATCH, out / "train" / SCRATCH):
        shutil.rmtree(done, ignore_errors=True)  # without documents there were no shards to make
    return Outcome(counts, {**outcome.metrics, "export": exported})


def recipe_of(settings: FineTuneSettings, shape: Any, name: str) -> TrainRecipe:
    """The training recipe that settings make of a model.

    Args:
        settings: what is asked for.
        shape: `ModelSettings` of the model.
        name: of the result.

    Raises:
        RecipeError: the batch is no multiple of the length of a sample.
    """
    length = min(settings.sequence_length, shape.max_sequence)
    if shape.experts:
        rate = settings.bias_update_rate if shape.router.has_bias else 0.0
        router = shape.router.model_copy(update={"aux_loss": settings.aux_loss, "bias_update_rate": rate})
        shape = shape.model_copy(update={"router": router})
    of_stage = StageSettings.model_fields.keys() & FineTuneSettings.model_fields.keys()
    of_run = TrainRecipe.model_fields.keys() & FineTuneSettings.model_fields.keys()
    try:
        stage = StageSettings(name="tune", **_fields(settings, of_stage - {"sequence_length"}), sequence_length=length)
        return TrainRecipe(name=name, model=shape, stages=[stage], **_fields(settings, of_run))
    except ValidationError as error:
        raise RecipeError(f"fine-tuning: {error.errors(include_url=False)[0]['msg']}") from None


def _fields(settings: FineTuneSettings, names: set[str]) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in sorted(names)}


def _settings(given: dict[str, Any]) -> FineTuneSettings:
    try:
        return FineTuneSettings.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise RecipeError(f"fine-tuning: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _shards(
    data: Path | str | Sequence[Path | str], model: Path, work: Path, settings: FineTuneSettings, workers: int,
    text: str | None,
) -> tuple[ShardSet, ShardSet | None, Counts | None]:  # fmt: skip
    """Shards to train on, held-out ones where there are any, and what became of documents, which are encoded first."""
    from pipelines.indexed import load_shards

    files = [Path(one) for one in ([data] if isinstance(data, (str, Path)) else data)]
    folder, counts = files[0], None
    if not folder.is_dir():
        folder, counts = work, _encoded(files, model, work, settings, workers, text)
    elif text is not None:
        raise RecipeError(f"{folder} holds shards, and a text ({text!r}) is made of the fields of documents; "
                          "leave the text out, or give files of documents")  # fmt: skip
    shards = load_shards(folder / "train" if (folder / "train").is_dir() else folder)
    held_out = load_shards(folder / "validation") if any((folder / "validation").rglob("*.idx")) else None
    return shards, held_out, counts


def _encoded(
    files: list[Path], model: Path, work: Path, settings: FineTuneSettings, workers: int, text: str | None
) -> Counts | None:
    """Make the shards of documents in `work`; there is at least one to train on."""
    from pipelines.encode import EncodeSettings, encode
    from pipelines.inputs import as_documents
    from pipelines.textless import refuse_textless

    asked = EncodeSettings(validation_share=settings.validation_share, seed=settings.seed)
    try:
        documents = as_documents(files, work, workers, text)
        refuse_textless(documents, files, work, text)
        counts = encode(documents, work, model, asked, workers, name="documents").counts
        if counts is not None and not any((work / ("train" if asked.validation_share else "")).glob("*.idx")):
            raise DataError(_nothing_left(files, counts, text))
    except DataError:
        shutil.rmtree(work, ignore_errors=True)  # the next call may give other files or another text
        raise
    return counts


def _nothing_left(files: list[Path], counts: Counts, text: str | None) -> str:
    """Why no document is left to train on: how many there were, and what became of each."""
    lost = {**counts.dropped, **counts.rejected}
    fates = [f"{number:,} {reason}" for reason, number in sorted(lost.items())]
    fates += [f"{counts.kept:,} held out (validation_share)"] if counts.kept else []
    more = f" and {len(files) - 1:,} more" if len(files) > 1 else ""
    wanted = f"the text {text}" if text else "a field `text` that is not empty"
    return (f"{files[0]}{more}: no document to train on of {counts.docs_in:,} ({', '.join(fates) or 'none is there'}); "
            f"expected records with {wanted}; add some, or say what the text is, "
            "such as --text '{question}\\n{answer}'")  # fmt: skip
