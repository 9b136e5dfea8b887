"""`loam tune`: a model in Hugging Face format, fine-tuned whole or by low-rank updates."""

from pathlib import Path
from typing import Annotated

import typer

from flows.verb import AsJson, Inputs, Out, Sets, Workers, documents_of, given_text, run_verb
from pipelines.recipe import settings_from
from pipelines.store import Outcome


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(tune)


def tune(
    inputs: Inputs,
    out: Out,
    model: Annotated[Path, typer.Option(help="Hugging Face model folder with its tokenizer")],
    workers: Workers = 1,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Fine-tune a model on documents or shards: whole, or `--set lora={}`; the tuned model is in hf/."""
    from flows.commands.models import folder_digests
    from trainer.fine_tune import FineTuneSettings, fine_tune

    settings = settings_from(FineTuneSettings, sets)
    files, text = documents_of(inputs), given_text()
    data = (
        Path(inputs[0]) if len(inputs) == 1 and Path(inputs[0]).is_dir() and _holds_shards(Path(inputs[0])) else files
    )

    def action(work: Path) -> Outcome:
        return fine_tune(model, data, work, settings, workers, text)

    digests = folder_digests(model, "model") | ({"text": text} if text else {})
    run_verb("tune", out, settings, files, action, as_json, digests)


def _holds_shards(folder: Path) -> bool:
    return any(folder.rglob("*.idx"))
