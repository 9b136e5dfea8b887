"""The search for a mixture as steps: swarm, proxies, law (`mixing`), then confirmation and verdict (`confirming`)."""

from collections.abc import Mapping

from flows.recipe import AblateSettings, RunRecipe
from flows.steps.confirming import confirm_step, mixture_step
from flows.steps.mixing import SwarmData, law_step, proxies_at, swarm_step, train_shards, validation_shards
from flows.steps.step import Step
from pipelines.source_settings import SourceSettings
from trainer.recipe import TrainRecipe


def mixing_steps(recipe: RunRecipe) -> list[Step]:
    """The steps of a whole run from tokenized domains to a chosen mixture."""
    data = SwarmData(train_shards, validation_shards, parents=("tokens", "plain_tokens", "tokenizer"),
                     licences=licences_of(recipe.sources))  # fmt: skip
    return search_steps(recipe.ablate, data, recipe.train)


def search_steps(ablate: AblateSettings, data: SwarmData, train: TrainRecipe) -> list[Step]:
    """The steps from shards to a chosen mixture.

    Args:
        ablate: how to search.
        data: where proxies read.
        train: the final run; its tokens are the horizon of caps unless `ablate.propose` has its own.
    """
    horizon = ablate.propose.tokens or sum(stage.tokens for stage in train.stages)
    proxies = [proxies_at(ablate, data, horizon, name) for name in ("", *ablate.larger)]
    return [
        swarm_step(ablate, data), *proxies, law_step(ablate, data, train, horizon),
        confirm_step(ablate, data, horizon), mixture_step(ablate, data, train, horizon),
    ]  # fmt: skip


def licences_of(sources: Mapping[str, SourceSettings]) -> dict[str, str]:
    """Base domain -> licence, of domains whose sources all state the same."""
    stated: dict[str, set[str | None]] = {}
    for name, source in sources.items():
        stated.setdefault(source.domain or name, set()).add(source.licence)
    return {domain: one for domain, found in stated.items() for one in found if len(found) == 1 and one}
