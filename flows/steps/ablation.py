"""The steps of an ablation: text to shards where there are none, then the search that a whole run has too."""

from collections.abc import Mapping
from pathlib import Path

from flows.ablate_recipe import AblationRecipe
from flows.steps.build import ingest_steps
from flows.steps.language_model import sized, tokenizer_folder
from flows.steps.mixing import SwarmData, train_shards
from flows.steps.search import licences_of, search_steps
from flows.steps.step import Place, Step, digests_of, plain, require
from pipelines.files import sha256_of
from pipelines.indexed import idx_path, load_shard, load_shards
from pipelines.shards import ShardSet
from pipelines.store import Outcome
from trainer.recipe import TrainRecipe


def ablation_steps(recipe: AblationRecipe) -> list[Step]:
    """The steps from domains to a chosen mixture and its report."""
    build = [] if recipe.shards else [*ingest_steps(recipe), _tokenizer(recipe), _tokens(recipe)]
    search = search_steps(recipe.ablate, data_of(recipe), recipe.train)
    return [*build, *search, _report(recipe, [step.name for step in (*build, *search)])]


def data_of(recipe: AblationRecipe) -> SwarmData:
    """Where the proxies of an ablation read."""
    if recipe.shards:
        licences = {name: one.licence for name, one in recipe.shards.items() if one.licence}
        return SwarmData(
            lambda _: _given(recipe, "train"), lambda _: _given(recipe, "validation"),
            lambda model, _: sized_by_path(recipe, model), inputs=lambda: _digests(recipe), licences=licences,
        )  # fmt: skip
    return SwarmData(train_shards, lambda place: load_shards(place.of("tokens") / "validation"), sized,
                     ("tokens", "tokenizer"), licences=licences_of(recipe.sources))  # fmt: skip


def _given(recipe: AblationRecipe, split: str) -> ShardSet:
    prefixes = recipe.shard_prefixes("train" if split == "train" else "validation")
    return ShardSet(tuple(load_shard(prefix, name) for name, prefix in sorted(prefixes.items())))


def sized_by_path(recipe: AblationRecipe, model: TrainRecipe) -> TrainRecipe:
    """A training recipe over the vocabulary that the recipe's tokenizer has, where it names one."""
    from trainer.recipe import with_vocabulary

    return with_vocabulary(model, Path(recipe.root) / recipe.tokenizer.path) if recipe.tokenizer.path else model


def _digests(recipe: AblationRecipe) -> Mapping[str, str]:
    """sha256 of the shards that the recipe names, and of its tokenizer."""
    found = digests_of({"tokenizer": recipe.tokenizer.path and Path(recipe.root) / recipe.tokenizer.path})
    for split, shards in (("train", _given(recipe, "train")), ("validation", _given(recipe, "validation"))):
        for shard in shards.shards:
            found |= {f"{split}:{shard.name}.idx": sha256_of(idx_path(shard.prefix)),
                      f"{split}:{shard.name}.bin": shard.sha256}  # fmt: skip
    return found


def _tokenizer(recipe: AblationRecipe) -> Step:
    given = recipe.tokenizer.path and Path(recipe.root) / recipe.tokenizer.path
    settings = recipe.tokenizer.model_copy(update={"path": str(given)}) if given else recipe.tokenizer

    def action(place: Place, work: Path) -> Outcome:
        from pipelines.tokenizer import train_tokenizer

        return train_tokenizer(require(place.documents("ingest", "documents"), "ingest"), work, settings)

    about = "the recipe's tokenizer, or one trained on the domains"
    return Step("tokenizer", action, about, plain(tokenizer=recipe.tokenizer), ["ingest"],
                inputs=lambda: digests_of({"tokenizer": given}))  # fmt: skip


def _tokens(recipe: AblationRecipe) -> Step:
    def action(place: Place, work: Path) -> Outcome:
        from pipelines.encode import encode

        return encode(place.documents("ingest", "documents"), work, tokenizer_folder(place), recipe.encode,
                      place.workers)  # fmt: skip

    return Step("tokens", action, "shards by domain, with held-out documents", plain(encode=recipe.encode),
                ["ingest", "tokenizer"])  # fmt: skip


def _report(recipe: AblationRecipe, parents: list[str]) -> Step:
    def action(place: Place, work: Path) -> Outcome:
        from flows.report import write_report

        write_report(place.folder, work / "report.html")
        return Outcome()

    return Step("report", action, "one static HTML file", plain(run=recipe.name, about=recipe.about), parents,
                ("pipelines", "mixtures", "flows"))  # fmt: skip
