"""Steps that train the full model on the chosen mixture, export it and evaluate it."""

from pathlib import Path

from flows.recipe import RunRecipe
from flows.steps.language_model import TRAINER, sized, tokenizer_folder
from flows.steps.mixing import train_shards, validation_shards
from flows.steps.step import Place, Step, plain
from flows.train_verb import check_mixture
from pipelines.shards import Blend
from pipelines.store import Outcome


def training_steps(recipe: RunRecipe) -> list[Step]:
    """The steps from a mixture to an evaluated model in Hugging Face format."""
    return [_train(recipe), _export(recipe), _evaluate(recipe)]


def _train(recipe: RunRecipe) -> Step:
    def action(place: Place, work: Path) -> Outcome:
        from mixtures.mixture import Mixture
        from trainer.loop import train
        from trainer.telemetry import Telemetry

        mixture, shards = Mixture.read(place.of("mixture") / "mixture.yaml"), train_shards(place)
        check_mixture(mixture, shards, recipe.train.fresh_tokens)
        validation = validation_shards(place)
        blend = Blend.of(mixture.weights, shards)
        return train(sized(recipe.train, place), blend, work, validation, [Telemetry(validation)])

    return Step("train", action, "the full model, stage by stage", plain(train=recipe.train),
                ["mixture", "tokens", "plain_tokens", "tokenizer"], ("pipelines", "mixtures", "trainer"))  # fmt: skip


def _export(recipe: RunRecipe) -> Step:
    def action(place: Place, work: Path) -> Outcome:
        from pipelines.indexed import IndexedTokens
        from trainer.export import check_export, export_hf

        checkpoint = place.of("train") / "final"
        exported = export_hf(checkpoint, work / "hf", tokenizer_folder(place))
        sample = IndexedTokens(validation_shards(place).shards[0].prefix).tokens[:256]
        difference = check_export(checkpoint, work / "hf", sample)
        return Outcome(metrics={"export": exported, "max_abs_logit_difference": difference})

    return Step("export", action, "Hugging Face format, logits compared with transformers", {},
                ["train", "plain_tokens", "tokenizer"], TRAINER)  # fmt: skip


def _evaluate(recipe: RunRecipe) -> Step:
    def action(place: Place, work: Path) -> Outcome:
        from trainer.evaluate import evaluate

        items = sorted((place.of("items") / "items").glob("*.jsonl"))
        model = place.of("export") / "hf"
        return evaluate(model, work, recipe.evaluate, place.of("plain_tokens") / "validation", items)

    return Step("evaluate", action, "bits per byte by domain, multiple-choice items", plain(evaluate=recipe.evaluate),
                ["export", "plain_tokens", "items"], TRAINER)  # fmt: skip
