"""Steps that find the mixture: swarm, proxies at every scale, laws and proposal. `search.py` has their order.

`mixtures` proposes and reads tables, `trainer` is handed Blends; only these steps know both. Where shards come from is
a `SwarmData`, so that a whole run and a recipe of domains that exist already (`flows/ablate_recipe.py`) share them.
Held-out loss is measured on documents that no mixture was trained on.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.recipe import AblateSettings
from flows.steps.language_model import sized
from flows.steps.search_cost import proxy_of
from flows.steps.step import Place, Step, plain
from pipelines.errors import DataError
from pipelines.files import write_atomically
from pipelines.manifest import read_manifest
from pipelines.shards import Blend, ShardSet
from pipelines.store import Outcome
from trainer.recipe import TrainRecipe

if TYPE_CHECKING:
    from mixtures.fitting import Fit
    from mixtures.ladder import Ladder
    from mixtures.proposal import Proposal
    from mixtures.scale import Scale
    from mixtures.tables import Metrics, Ratios

MIXTURES = ("pipelines", "mixtures")
BOTH = ("pipelines", "mixtures", "trainer")
CUT = re.compile(r"-\d{5}-of-\d{5}$")  # of a domain that is several shards
SEED = re.compile(r"-seed(\d+)$")  # of a run that is a replicate: `prior-seed3`
LEAST_MIXTURES = 4  # distinct ones, that a law can be fitted to


@dataclass(frozen=True)
class SwarmData:
    """Where the proxies of a flow read.

    Attributes:
        train: what may be trained on.
        validation: held-out documents, one shard for each name that a loss is measured of.
        sized: a training recipe with the vocabulary that the shards were made with.
        parents: steps that these come from.
        inputs: digests of outside files that they come from.
        licences: base domain -> licence, where it is known.
    """

    train: Callable[[Place], ShardSet]
    validation: Callable[[Place], ShardSet]
    sized: Callable[[TrainRecipe, Place], TrainRecipe] = sized
    parents: tuple[str, ...] = ()
    inputs: Callable[[], Mapping[str, str]] = dict
    licences: Mapping[str, str] = field(default_factory=dict)


def train_shards(place: Place) -> ShardSet:
    """What may be trained on: one shard for each domain and bucket."""
    from pipelines.indexed import load_shards

    return load_shards(place.of("tokens") / "train")


def validation_shards(place: Place) -> ShardSet:
    """Held-out documents, one shard for each base domain."""
    from pipelines.indexed import load_shards

    return load_shards(place.of("plain_tokens") / "validation")


def domain_tokens(shards: ShardSet) -> dict[str, int]:
    """Tokens of each domain, whose shards may be several."""
    held: dict[str, int] = {}
    for shard in shards.shards:
        name = CUT.sub("", shard.name)
        held[name] = held.get(name, 0) + shard.tokens
    return held


def swarm_step(ablate: AblateSettings, data: SwarmData) -> Step:
    """The mixtures of the smallest scale, the prior and its replicates among them."""

    def action(place: Place, work: Path) -> Outcome:
        from mixtures.design import design_swarm
        from mixtures.mixture import Domain, Domains

        domains = Domains(domains=tuple(
            Domain(name=name, unique_tokens=tokens, licence=data.licences.get(name.partition("/")[0]))
            for name, tokens in domain_tokens(data.train(place)).items()
        ))  # fmt: skip
        domains.write(work / "domains.yaml")
        ratios = design_swarm(domains, ablate.proxies, ablate.design)
        for name in ("", *ablate.larger):
            runs = ablate.larger[name].proxies if name else ablate.proxies
            with_replicates(ratios, runs, ablate, name).write_csv(work / ratios_file(name))
        return Outcome(metrics={"domains": len(domains), "mixtures": len(ratios.ids)})

    larger = {name: scale.proxies for name, scale in ablate.larger.items()}
    seeds = {name: proxy_of(ablate, name).seed for name in ("", *larger)}
    settings = plain(design=ablate.design, proxies=ablate.proxies, larger=larger, anchor_seeds=ablate.anchor_seeds,
                     seeds=seeds)  # fmt: skip
    return Step("swarm", action, "mixtures drawn around the prior", settings, data.parents, MIXTURES, data.inputs)


def ratios_file(scale: str) -> str:
    """Name of the table of mixtures of a scale; the small one has no name."""
    return f"ratios-{scale}.csv" if scale else "ratios.csv"


def proxies_step(scale: str) -> str:
    """Name of the step that trains the proxies of a scale."""
    return f"proxies_{scale}" if scale else "proxies"


def with_replicates(ratios: "Ratios", runs: int, ablate: AblateSettings, scale: str) -> "Ratios":
    """The first mixtures of the swarm, and the prior again for each further seed, as `prior-seed2`."""
    import numpy as np

    from mixtures.tables import Ratios

    first = proxy_of(ablate, scale).seed + 1
    seeds = range(first, first + ablate.anchor_seeds)
    ids = (*ratios.ids[:runs], *(f"{ratios.ids[0]}-seed{seed}" for seed in seeds))
    anchor_PD = np.repeat(ratios.weights_PD[:1], len(seeds), axis=0)
    return Ratios(ids, ratios.domains, np.concatenate([ratios.weights_PD[:runs], anchor_PD]), ratios.rounded)


def seed_of(run: str, usual: int) -> int:
    """The seed of a run, by its id."""
    found = SEED.search(run)
    return int(found.group(1)) if found else usual


def proxies_at(ablate: AblateSettings, data: SwarmData, horizon: int, scale: str) -> Step:
    """The proxies of one scale."""
    proxy = proxy_of(ablate, scale)

    def action(place: Place, work: Path) -> Outcome:
        from mixtures.tables import Ratios
        from trainer.proxies import ProxyJob

        shards = proxy_shards(ablate, data, proxy, horizon, place, work)
        ratios = Ratios.read_csv(place.of("swarm") / ratios_file(scale))
        jobs = [ProxyJob(run, Blend.of(weights, shards), seed_of(run, proxy.seed)) for run, weights in ratios.rows()]
        return train_all(jobs, ablate, proxy, data, place, work)

    about = f"the scale {scale}: some of the mixtures" if scale else "a small model for each mixture"
    settings = plain(proxy=proxy, **simulation(ablate, horizon))
    return Step(proxies_step(scale), action, f"{about}, same seed and data order", settings,
                ["swarm", *data.parents], BOTH, data.inputs)  # fmt: skip


def simulation(ablate: AblateSettings, horizon: int) -> dict[str, int]:
    """What simulated epochs depend on, for a step's settings; nothing where there are none."""
    return {"simulated_horizon": horizon} if ablate.simulate_epochs else {}


def proxy_shards(
    ablate: AblateSettings, data: SwarmData, proxy: TrainRecipe, horizon: int, place: Place, work: Path
) -> ShardSet:  # fmt: skip
    """What the proxies of a step read: the shards, or parts of them that are repeated as often as the final run would.

    Args:
        ablate: whether epochs are simulated.
        data: where the shards are.
        proxy: the model, for its tokens.
        horizon: tokens of the final run.
        place: of the run.
        work: the step's folder; parts are written to its scratch.
    """
    from pipelines.execute import SCRATCH
    from pipelines.simulated_epochs import simulate_epochs

    shards = data.train(place)
    if not ablate.simulate_epochs:
        return shards
    return simulate_epochs(shards, proxy.tokens, horizon, work / SCRATCH / "limited", ablate.proxy.seed)


def train_all(
    jobs: list, ablate: AblateSettings, proxy: TrainRecipe, data: SwarmData, place: Place, work: Path
) -> Outcome:  # fmt: skip
    """Train proxies where the recipe says; those that diverge are left out with a reason."""
    from pipelines.executors import executor_is
    from trainer.proxies import train_proxies

    with executor_is(ablate.executor):
        return train_proxies(jobs, data.sized(proxy, place), data.validation(place), work, place.workers, spare=True)


def law_step(ablate: AblateSettings, data: SwarmData, train: TrainRecipe, horizon: int) -> Step:
    """The laws fitted to all scales, and the proposal."""

    def action(place: Place, work: Path) -> Outcome:
        from mixtures.ladder_files import write_ladder
        from mixtures.mixture import Domains
        from mixtures.propose import propose

        ladder = fit_swarm(ablate, data, place)
        scale = scale_of(data.sized(train, place)) if ablate.larger else None
        fit = ladder.at(scale)
        write_ladder(ladder, work / "fit")
        settings = ablate.propose.model_copy(update={"tokens": horizon})
        proposal = propose(fit, Domains.read(place.of("swarm") / "domains.yaml"), settings)
        proposal.write(work)
        coefficient_M = fit.target(settings.target, settings.target_weights)
        objective = dict(zip(fit.metrics.names, coefficient_M.tolist(), strict=True))
        write_atomically(work / "objective.json", (json.dumps(objective, indent=1) + "\n").encode())
        noise = ladder.noise.model_dump(mode="json")
        decision = _decision(ablate, data, train, place, fit, proposal)
        failed = {name: _failed(place, name) for name in scales}
        return Outcome(metrics={"fit": fit.report(), "proposal": proposal.summary(), "noise": noise, "failed": failed,
                                "decision": decision, "scale": str(scale) if scale else None})  # fmt: skip

    scales = ("", *ablate.larger)
    settings = plain(fit=ablate.fit, propose=ablate.propose, targets=ablate.targets, tokens=horizon,
                     proxy=ablate.proxy, larger=ablate.larger, train=train)  # fmt: skip
    parents = ["swarm", *(proxies_step(name) for name in scales), *data.parents]
    return Step("law", action, "laws fitted, one chosen, a mixture proposed", settings, parents, MIXTURES, data.inputs)


def _decision(
    ablate: AblateSettings, data: SwarmData, train: TrainRecipe, place: Place, fit: "Fit", proposal: "Proposal"
) -> dict[str, Any] | None:  # fmt: skip
    """How few proxies would have decided the same; None where nothing was learned, or there are several scales."""
    import numpy as np

    from mixtures.cost import cost_to_decision

    if ablate.larger or fit.chosen == "constant":
        return None
    tried = [proposal.optimum, proposal.prior, *(weights for _, weights in fit.ratios.rows())]
    choices_XD = np.array([[weights[name] for name in fit.domains] for weights in tried])
    coefficient_M = fit.target(ablate.propose.target, ablate.propose.target_weights)
    flops, final = (data.sized(model, place).training_flops for model in (ablate.proxy, train))
    return cost_to_decision(fit, coefficient_M, choices_XD, flops, final).summary()


def scale_of(model: TrainRecipe) -> "Scale":
    """Where a training run lies between scales: parameters that a token meets, and tokens."""
    from mixtures.scale import Scale

    return Scale(model.model.active_parameters(), model.tokens)


def fit_swarm(ablate: AblateSettings, data: SwarmData, place: Place) -> "Ladder":
    """Fit laws to the proxies of all scales; metrics that are noise are left out."""
    from mixtures.ladder import fit_runs
    from mixtures.runs import Runs

    found = []
    for scale in ("", *ablate.larger):
        at = scale_of(data.sized(proxy_of(ablate, scale), place)) if ablate.larger else None
        found.append(Runs.of(*runs_of(ablate, place, scale), at))
    return fit_runs(sorted(found, key=lambda runs: runs.scale.order if runs.scale else (0, 0)), ablate.fit)


def _failed(place: Place, scale: str) -> dict[str, str]:
    """Why proxies of a scale were left out, by id."""
    return read_manifest(place.of(proxies_step(scale))).metrics["failed"]


def runs_of(ablate: AblateSettings, place: Place, scale: str) -> tuple["Ratios", "Metrics"]:
    """The runs of a scale that did not fail, with the targets that the recipe names.

    Raises:
        DataError: too few are left for a law.
    """
    from mixtures.tables import Metrics, Ratios

    step = proxies_step(scale)
    metrics = Metrics.read_csv(place.of(step) / "metrics.csv")
    metrics = metrics.select(ablate.targets) if ablate.targets else metrics
    ratios = Ratios.read_csv(place.of("swarm") / ratios_file(scale))
    rows = [row for row, run in enumerate(ratios.ids) if run in set(metrics.ids)]
    left = Ratios(tuple(ratios.ids[row] for row in rows), ratios.domains, ratios.weights_PD[rows], ratios.rounded)
    distinct = len({tuple(row) for row in left.weights_PD.tolist()})
    if distinct < LEAST_MIXTURES and not scale:
        raise DataError(
            f"{len(ratios.ids) - len(rows)} of {len(ratios.ids)} proxies diverged and {distinct} mixtures are left, a "
            f"law needs {LEAST_MIXTURES}; lower learning_rate of the proxy: {step}/proxies/ says which and why"
        )
    return left, metrics
