"""Steps that find the mixture: swarm, proxies, laws and proposal, confirmation, verdict.

`mixtures` proposes and reads tables, `trainer` is handed Blends; only this module knows both. Held-out loss is measured
per base domain on the documents that `plain_tokens` held out, which no mixture was trained on.
"""

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows.recipe import RunRecipe
from flows.steps.language_model import sized
from flows.steps.step import Place, Step, plain
from pipelines.files import write_atomically
from pipelines.shards import Blend, ShardSet
from pipelines.store import Outcome

MIXTURES = ("pipelines", "mixtures")
BOTH = ("pipelines", "mixtures", "trainer")


def mixing_steps(recipe: RunRecipe) -> list[Step]:
    """The steps from tokenized domains to a chosen mixture."""
    return [_swarm(recipe), _proxies(recipe), _law(recipe), _confirm(recipe), _mixture(recipe)]


def train_shards(place: Place) -> ShardSet:
    """What may be trained on: one shard for each domain and bucket."""
    from pipelines.indexed import load_shards

    return load_shards(place.of("tokens") / "train")


def validation_shards(place: Place) -> ShardSet:
    """Held-out documents, one shard for each base domain."""
    from pipelines.indexed import load_shards

    return load_shards(place.of("plain_tokens") / "validation")


def _swarm(recipe: RunRecipe) -> Step:
    def action(place: Place, work: Path) -> Outcome:
        from mixtures.design import design_swarm
        from mixtures.mixture import Domain, Domains

        shards = train_shards(place).shards
        domains = Domains(domains=tuple(Domain(name=shard.name, unique_tokens=shard.tokens) for shard in shards))
        domains.write(work / "domains.yaml")
        ratios = design_swarm(domains, recipe.ablate.proxies, recipe.ablate.design)
        ratios.write_csv(work / "ratios.csv")
        return Outcome(metrics={"domains": len(shards), "mixtures": len(ratios.ids)})

    settings = plain(design=recipe.ablate.design, proxies=recipe.ablate.proxies)
    return Step("swarm", action, "mixtures drawn around the prior", settings, ["tokens"], MIXTURES)


def _proxies(recipe: RunRecipe) -> Step:
    def action(place: Place, work: Path) -> Outcome:
        from mixtures.tables import Ratios
        from trainer.proxies import ProxyJob, train_proxies

        shards = train_shards(place)
        ratios = Ratios.read_csv(place.of("swarm") / "ratios.csv")
        jobs = [ProxyJob(name, Blend.of(weights, shards), recipe.ablate.proxy.seed) for name, weights in ratios.rows()]
        model = sized(recipe.ablate.proxy, place)
        return train_proxies(jobs, model, validation_shards(place), work, place.workers)

    return Step("proxies", action, "a small model for each mixture, same seed and data order",
                plain(proxy=recipe.ablate.proxy), ["swarm", "tokens", "plain_tokens", "tokenizer"],
                BOTH)  # fmt: skip


def _law(recipe: RunRecipe) -> Step:
    def action(place: Place, work: Path) -> Outcome:
        from mixtures.fitting import fit_laws
        from mixtures.mixture import Domains
        from mixtures.propose import propose
        from mixtures.tables import Metrics, Ratios

        ratios = Ratios.read_csv(place.of("swarm") / "ratios.csv")
        metrics = Metrics.read_csv(place.of("proxies") / "metrics.csv")
        if recipe.ablate.targets:
            metrics = metrics.select(recipe.ablate.targets)
        fit = fit_laws(ratios, metrics, recipe.ablate.fit)
        fit.write(work / "fit")
        horizon = recipe.ablate.propose.tokens or sum(stage.tokens for stage in recipe.train.stages)
        settings = recipe.ablate.propose.model_copy(update={"tokens": horizon})
        proposal = propose(fit, Domains.read(place.of("swarm") / "domains.yaml"), settings)
        proposal.write(work)
        return Outcome(metrics={"fit": fit.report(), "proposal": proposal.summary()})

    settings = plain(fit=recipe.ablate.fit, propose=recipe.ablate.propose, targets=recipe.ablate.targets,
                     tokens=[stage.tokens for stage in recipe.train.stages])  # fmt: skip
    return Step("law", action, "laws fitted, one chosen, a mixture proposed", settings, ["swarm", "proxies"], MIXTURES)


def _confirm(recipe: RunRecipe) -> Step:
    def action(place: Place, work: Path) -> Outcome:
        from trainer.proxies import ProxyJob, train_proxies

        shards = train_shards(place)
        tested = {"prior"} if proposed(place)["basis"] == "prior" else {"prior", "proposal"}
        blends = {name: Blend.of(weights, shards) for name, weights in candidates(place).items() if name in tested}
        seeds = range(recipe.ablate.proxy.seed + 1, recipe.ablate.proxy.seed + 1 + recipe.ablate.confirm_seeds)
        jobs = [ProxyJob(f"{name}-seed{seed}", blend, seed) for name, blend in blends.items() for seed in seeds]
        model = sized(recipe.ablate.proxy, place)
        return train_proxies(jobs, model, validation_shards(place), work, place.workers)

    settings = plain(proxy=recipe.ablate.proxy, confirm_seeds=recipe.ablate.confirm_seeds)
    return Step("confirm", action, "prior and proposal trained anew, several seeds each", settings,
                ["law", "swarm", "tokens", "plain_tokens", "tokenizer"], BOTH)  # fmt: skip


def proposed(place: Place) -> dict[str, Any]:
    """What `law` proposed, and on which basis: the law, or the prior because nothing better is known."""
    return json.loads((place.of("law") / "proposal.json").read_text())


def candidates(place: Place) -> Mapping[str, Mapping[str, float]]:
    """Weights of the prior (proportional to tokens) and of the proposal."""
    from mixtures.closed_forms import proportional
    from mixtures.mixture import Domains, Mixture

    domains = Domains.read(place.of("swarm") / "domains.yaml")
    return {"prior": proportional(domains), "proposal": Mixture.read(place.of("law") / "mixture.yaml").weights}


def target_losses(table: Path, targets: list[str]) -> dict[str, float]:
    """Mean held-out loss over the target domains for each run of a metrics table, nats per token."""
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = targets or [name for name in rows[0] if name != "id"]
    return {row["id"]: sum(float(row[name]) for name in names) / len(names) for row in rows}


def _mixture(recipe: RunRecipe) -> Step:
    def action(place: Place, work: Path) -> Outcome:
        from mixtures.compare import compare
        from mixtures.mixture import Mixture

        losses = target_losses(place.of("confirm") / "metrics.csv", recipe.ablate.targets)
        groups = {
            name: [v for k, v in losses.items() if k.startswith(f"{name}-seed")] for name in ("prior", "proposal")
        }
        basis = proposed(place)["basis"]
        if basis == "prior":  # the same mixture: nothing was trained twice
            groups["proposal"] = groups["prior"]
        verdict = compare(groups["prior"], groups["proposal"])
        proven = {"better": "proposal", "worse": "prior", "inconclusive": recipe.ablate.unproven}[verdict.verdict]
        weights = dict(candidates(place)[proven])
        horizon = sum(stage.tokens for stage in recipe.train.stages)
        Mixture(name=proven, weights=weights, tokens=horizon, epoch_cap=recipe.ablate.propose.epoch_cap).write(
            work / "mixture.yaml"
        )
        result = {**verdict.model_dump(mode="json"), "losses": groups, "chosen": proven, "basis": basis}
        write_atomically(work / "verdict.json", (json.dumps(result, indent=1, sort_keys=True) + "\n").encode())
        return Outcome(metrics=result)

    settings = plain(targets=recipe.ablate.targets, unproven=recipe.ablate.unproven,
                     tokens=[stage.tokens for stage in recipe.train.stages])  # fmt: skip
    return Step("mixture", action, "the verdict, and the mixture to train on", settings,
                ["confirm", "law", "swarm"], MIXTURES)  # fmt: skip
