"""Steps that ask whether dense proxies rank mixtures as a mixture of experts does.

Every mixture is trained twice, dense and with experts of as many active parameters; seeds, stages and order of data
are the same, so that nothing but the architecture differs. Further seeds of the prior say what seeds alone do.
"Agreement is not shown" is a legal answer.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flows.pairing_recipe import PairingSettings
from flows.recipe import RunRecipe
from flows.steps.language_model import sized
from flows.steps.mixing import BOTH, MIXTURES, validation_shards
from flows.steps.step import Place, Step, plain
from pipelines.files import write_atomically
from pipelines.shards import Blend, ShardSet
from pipelines.store import Outcome

SIDES = ("dense", "moe")


def pairing_steps(recipe: RunRecipe) -> list[Step]:
    """The steps from tokens to an answer; none when the recipe does not ask."""
    pairing = recipe.pairing
    return [] if pairing is None else [_swarm(pairing), *(_side(pairing, side) for side in SIDES), _pairing(pairing)]


def base_shards(place: Place) -> ShardSet:
    """What may be trained on: one shard for each base domain."""
    from pipelines.indexed import load_shards

    return load_shards(place.of("plain_tokens") / "train")


def _swarm(pairing: PairingSettings) -> Step:
    def action(place: Place, work: Path) -> Outcome:
        from mixtures.design import ANCHOR, design_swarm
        from mixtures.mixture import Domain, Domains
        from mixtures.tables import Ratios

        shards = base_shards(place).shards
        domains = Domains(domains=tuple(Domain(name=shard.name, unique_tokens=shard.tokens) for shard in shards))
        domains.write(work / "domains.yaml")
        drawn = dict(design_swarm(domains, pairing.mixtures, pairing.design).rows())
        again = {f"{ANCHOR}-seed{seed}": drawn[ANCHOR] for seed in _seeds(pairing)}
        Ratios.of({**drawn, **again}).write_csv(work / "ratios.csv")
        return Outcome(metrics={"domains": len(shards), "mixtures": len(drawn), "replicates": len(again)})

    settings = plain(mixtures=pairing.mixtures, replicates=pairing.replicates, design=pairing.design,
                     seed=pairing.dense.seed)  # fmt: skip
    return Step("pairing_swarm", action, "mixtures that both architectures read", settings, ["plain_tokens"], MIXTURES)


def _seeds(pairing: PairingSettings) -> range:
    """Seeds of the replicates; that of the dense recipe is the mixtures' own."""
    return range(pairing.dense.seed + 1, pairing.dense.seed + 1 + pairing.replicates)


def _side(pairing: PairingSettings, side: str) -> Step:
    model = pairing.sides()[side]

    def action(place: Place, work: Path) -> Outcome:
        from mixtures.design import ANCHOR
        from mixtures.tables import Ratios
        from trainer.proxies import ProxyJob, train_proxies

        shards = base_shards(place)
        seed_of = {f"{ANCHOR}-seed{seed}": seed for seed in _seeds(pairing)}
        rows = Ratios.read_csv(place.of("pairing_swarm") / "ratios.csv").rows()
        jobs = [ProxyJob(name, Blend.of(weights, shards), seed_of.get(name, model.seed)) for name, weights in rows]
        return train_proxies(jobs, sized(model, place), validation_shards(place), work, place.workers)

    about = "dense models" if side == "dense" else "mixtures of experts, as many active parameters"
    return Step(f"pairing_{side}", action, f"every mixture: {about}", plain(model=model, replicates=pairing.replicates),
                ["pairing_swarm", "plain_tokens", "tokenizer"], BOTH)  # fmt: skip


def _pairing(pairing: PairingSettings) -> Step:
    def action(place: Place, work: Path) -> Outcome:
        from flows.plots import agreement
        from mixtures.agreement import agree
        from mixtures.tables import Metrics, Ratios

        ratios = Ratios.read_csv(place.of("pairing_swarm") / "ratios.csv")
        dense, moe = (Metrics.read_csv(place.of(f"pairing_{side}") / "metrics.csv") for side in SIDES)
        found = agree(dense, moe, ratios, pairing.agreement)
        results = [json.loads(path.read_text()) for path in sorted(place.of("pairing_moe").glob("proxies/*.json"))]
        report = {**found.model_dump(mode="json"), "routing": routing(results), "models": _sizes(pairing, place)}
        write_atomically(work / "report.json", (json.dumps(report, indent=1, sort_keys=True) + "\n").encode())
        write_atomically(work / "agreement.svg", agreement(dense, moe, ("dense", "mixture of experts")).encode())
        kept = ("spearman", "decision_accuracy", "regret", "verdict")
        shown = {name: {key: found.metrics[name].model_dump()[key] for key in kept} for name in found.metrics}
        return Outcome(metrics={"answer": found.answer, "mixtures": found.mixtures, "agreement": shown})

    return Step("pairing", action, "do dense proxies rank the mixtures of a mixture of experts?",
                plain(agreement=pairing.agreement), ["pairing_swarm", "pairing_dense", "pairing_moe", "tokenizer"],
                (*BOTH, "flows"))  # fmt: skip


def _sizes(pairing: PairingSettings, place: Place) -> dict[str, dict[str, float]]:
    models = {side: sized(recipe, place) for side, recipe in pairing.sides().items()}
    return {side: {"parameters": m.model.parameters(), "active_parameters": m.model.active_parameters(),
                   "tokens": m.tokens} for side, m in models.items()}  # fmt: skip


def routing(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """How the experts meet each held-out domain, averaged over models and layers.

    Args:
        results: of the proxies with experts, with their `routing`.

    Returns:
        domain -> `load_entropy` and `router_entropy`, shares of their largest value, and `specialisation`: the share of
        the choices that would have to move for the domain's load to be the mean load of all domains.
    """
    found: dict[str, list[tuple[float, float, float]]] = {}
    for result in results:
        domains = result["routing"]
        for layer in next(iter(domains.values())):
            mean_E = np.mean([each[layer]["load"] for each in domains.values()], axis=0)
            for domain, each in domains.items():
                moved = float(np.abs(np.array(each[layer]["load"]) - mean_E).sum() / 2)
                found.setdefault(domain, []).append((each[layer]["load_entropy"], each[layer]["router_entropy"], moved))
    names = ("load_entropy", "router_entropy", "specialisation")
    return {domain: dict(zip(names, np.mean(rows, axis=0).round(6).tolist(), strict=True))
            for domain, rows in sorted(found.items())}  # fmt: skip
