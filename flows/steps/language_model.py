"""Steps around the small language model: tokenizer, its shards, its training, perplexity, buckets and synthesis."""

from pathlib import Path

from flows.recipe import RunRecipe
from flows.steps.build import items_of
from flows.steps.step import Place, Step, digests_of, plain, require
from pipelines.shards import Blend, ShardSet
from pipelines.store import Outcome
from trainer.recipe import TrainRecipe

FILTERS = ("pipelines", "filters")
TRAINER = ("pipelines", "trainer")


def language_model_steps(recipe: RunRecipe) -> list[Step]:
    """The steps from clean documents to bucketed, synthesized and tokenized ones."""
    return [
        _tokenizer(recipe),
        _plain_tokens(recipe),
        _language_model(recipe),
        _perplexity(recipe),
        _buckets(recipe),
        _bucketed(recipe),
        _synth(recipe),
        _tokens(recipe),
    ]


def tokenizer_folder(place: Place) -> Path:
    """Where the run's tokenizer is."""
    return place.of("tokenizer") / "tokenizer"


def sized(recipe: TrainRecipe, place: Place) -> TrainRecipe:
    """The recipe with the vocabulary of the run's tokenizer."""
    from trainer.recipe import with_vocabulary

    return with_vocabulary(recipe, tokenizer_folder(place))


def held_out_ids(place: Place) -> list[Path]:
    """Files with the ids of the held-out documents: decided once, in `plain_tokens`."""
    return sorted((place.of("plain_tokens") / "validation").rglob("*.origin.parquet"))


def proportional(shards: ShardSet) -> Blend:
    """Every shard in proportion to its tokens."""
    return Blend.of({shard.name: shard.tokens / shards.tokens for shard in shards.shards}, shards)


def _tokenizer(recipe: RunRecipe) -> Step:
    def action(place: Place, work: Path) -> Outcome:
        from pipelines.tokenizer import train_tokenizer

        return train_tokenizer(require(place.documents("decontaminate"), "decontaminate"), work, recipe.tokenizer)

    given = {"tokenizer": recipe.tokenizer.path}
    return Step("tokenizer", action, "byte-level BPE", plain(tokenizer=recipe.tokenizer), ["decontaminate"],
                inputs=lambda: digests_of(given))  # fmt: skip


def _plain_tokens(recipe: RunRecipe) -> Step:
    def action(place: Place, work: Path) -> Outcome:
        from pipelines.encode import encode

        files = place.documents("decontaminate")
        return encode(files, work, tokenizer_folder(place), recipe.encode, place.workers)

    return Step("plain_tokens", action, "shards by domain, with held-out documents", plain(encode=recipe.encode),
                ["decontaminate", "tokenizer"])  # fmt: skip


def _language_model(recipe: RunRecipe) -> Step:
    def action(place: Place, work: Path) -> Outcome:
        from pipelines.indexed import load_shards
        from trainer.export import export_hf
        from trainer.loop import train
        from trainer.telemetry import Telemetry

        tokens = place.of("plain_tokens")
        model = sized(recipe.language_model, place)
        blend, validation = proportional(load_shards(tokens / "train")), load_shards(tokens / "validation")
        outcome = train(model, blend, work, validation, [Telemetry(validation)])
        exported = export_hf(work / "final", work / "hf", tokenizer_folder(place))
        return Outcome(metrics={**outcome.metrics, "export": exported})

    return Step("language_model", action, "small dense model, for perplexity and synthesis",
                plain(language_model=recipe.language_model), ["plain_tokens", "tokenizer"], TRAINER)  # fmt: skip


def _perplexity(recipe: RunRecipe) -> Step:
    def action(place: Place, work: Path) -> Outcome:
        from filters.perplexity import score_perplexity

        model = place.of("language_model") / "hf"
        return score_perplexity(place.documents("decontaminate"), work, recipe.perplexity, model, place.workers)

    return Step("perplexity", action, "negative log-likelihood of every document", plain(perplexity=recipe.perplexity),
                ["decontaminate", "language_model"], FILTERS)  # fmt: skip


def _buckets(recipe: RunRecipe) -> Step:
    def action(place: Place, work: Path) -> Outcome:
        from filters.buckets import buckets

        return buckets(place.documents("perplexity", "scores"), work, recipe.buckets)

    return Step("buckets", action, "high, mid, low per domain; high is lowest perplexity",
                plain(buckets=recipe.buckets), ["perplexity"], FILTERS)  # fmt: skip


def _bucketed(recipe: RunRecipe) -> Step:
    def action(place: Place, work: Path) -> Outcome:
        from filters.buckets import assign

        return assign(
            place.documents("decontaminate"), place.of("buckets") / "buckets.parquet",
            place.documents("perplexity", "scores"), work, place.workers,
        )  # fmt: skip

    return Step("bucketed", action, "documents by domain and bucket", {}, ["decontaminate", "perplexity", "buckets"],
                FILTERS)  # fmt: skip


def _synth(recipe: RunRecipe) -> Step:
    def action(place: Place, work: Path) -> Outcome:
        from flows.steps.screens import screening_of, with_plot
        from synth.generate import synthesize
        from synth.response_log import log_beside

        model, out = place.of("language_model") / "hf", place.of("synth")
        judged = sorted(place.folder.parent.glob("*/synth/judge"))
        screening = screening_of(
            recipe.synth, items_of(place), model, earlier=judged, decontaminate=recipe.decontaminate
        )
        documents, held_out = place.documents("bucketed"), held_out_ids(place)
        others = sorted(place.folder.parent.glob("*/synth/responses"))  # the same question has the same answer there
        outcome = synthesize(
            documents, work, recipe.synth, model, place.workers, held_out, screening=screening,
            log=log_beside(out), earlier=others, replaces=out, other_model=True,
        )  # fmt: skip
        return with_plot(outcome, work)

    return Step("synth", action, f"samples by {recipe.synth.recipe}",
                plain(synth=recipe.synth.asked, decontaminate=recipe.decontaminate),
                ["bucketed", "language_model", "plain_tokens", "items"], ("pipelines", "synth", "filters"),
                lambda: _named(recipe))  # fmt: skip


def _named(recipe: RunRecipe) -> dict[str, str]:
    from flows.steps.screens import screen_inputs

    return digests_of(screen_inputs(recipe.synth))


def _tokens(recipe: RunRecipe) -> Step:
    def action(place: Place, work: Path) -> Outcome:
        from pipelines.encode import encode

        files = [*place.documents("bucketed"), *place.documents("synth", "samples")]
        tokenizer, held_out = tokenizer_folder(place), held_out_ids(place)
        return encode(files, work, tokenizer, recipe.encode, place.workers, held_out=held_out)

    return Step("tokens", action, "shards by domain and bucket", plain(encode=recipe.encode),
                ["bucketed", "synth", "tokenizer", "plain_tokens"])  # fmt: skip
