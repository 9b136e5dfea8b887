"""Steps that test a proposal: prior, proposal and closed forms trained anew with fresh seeds, the verdict, the mixture.

A law's opinion is no evidence: only proxies that it has not seen are. So its optimum is trained even where the law
itself cannot tell it from the prior. Seeds are fresh, since those of the swarm chose the proposal. Mixtures that are
equal are trained once. The objective is that of the law: the same metrics with the same weights.
"""

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows.recipe import AblateSettings
from flows.steps.mixing import BOTH, SEED, SwarmData, proxy_shards, simulation, train_all
from flows.steps.search_cost import search_cost
from flows.steps.step import Place, Step, plain
from pipelines.files import write_atomically
from pipelines.shards import Blend
from pipelines.store import Outcome
from trainer.recipe import TrainRecipe

ARMS = "arms.json"
SAME = 1e-6  # weights that differ by no more are one mixture


def confirm_step(ablate: AblateSettings, data: SwarmData, horizon: int) -> Step:
    """Train every mixture that is compared, with fresh seeds, at the largest scale."""
    proxy = ablate.confirm_proxy

    def action(place: Place, work: Path) -> Outcome:
        from trainer.proxies import ProxyJob

        arms = arms_of(ablate, place, horizon)
        write_atomically(work / ARMS, _json(arms))
        shards = proxy_shards(ablate, data, proxy, horizon, place, work)
        blends = {name: Blend.of(arm["weights"], shards) for name, arm in arms.items() if arm["same_as"] is None}
        first = proxy.seed + 1 + ablate.anchor_seeds
        seeds = range(first, first + ablate.confirm_seeds)
        jobs = [ProxyJob(f"{name}-seed{seed}", blend, seed) for seed in seeds for name, blend in blends.items()]
        return train_all(jobs, ablate, proxy, data, place, work)

    settings = plain(proxy=proxy, confirm_seeds=ablate.confirm_seeds, against=ablate.against, propose=ablate.propose,
                     anchor_seeds=ablate.anchor_seeds, horizon=horizon, **simulation(ablate, horizon))  # fmt: skip
    about = f"prior, proposal, {', '.join(ablate.against)} trained anew, {ablate.confirm_seeds} fresh seeds each"
    return Step("confirm", action, about, settings, ["law", "swarm", *data.parents], BOTH, data.inputs)


def arms_of(ablate: AblateSettings, place: Place, horizon: int) -> dict[str, dict[str, Any]]:
    """The mixtures that are compared.

    Returns:
        Name -> `weights`, `same_as` (an earlier arm that it equals, or None) and `allowed` (whether the final run's
        caps, floors and groups permit it; only such a mixture may be chosen).
    """
    import numpy as np

    from mixtures.closed_forms import uniform, unimax
    from mixtures.mixture import Domains

    domains = Domains.read(place.of("swarm") / "domains.yaml")
    space = ablate.propose.model_copy(update={"tokens": horizon}).space(domains)
    weights = {"prior": proposed(place)["prior"], "proposal": proposed(place)["optimum"]}
    for name in ablate.against:
        weights[name] = uniform(domains) if name == "uniform" else unimax(domains, horizon, _one_cap(ablate))
    arms: dict[str, dict[str, Any]] = {}
    for name, mixture in weights.items():
        row_D = np.array([mixture.get(domain, 0.0) for domain in domains.names])
        twin = next((other for other, arm in arms.items() if arm["same_as"] is None
                     and max(abs(arm["weights"][d] - w) for d, w in zip(domains.names, row_D, strict=True)) <= SAME),
                    None)  # fmt: skip
        arms[name] = {"weights": dict(zip(domains.names, row_D.tolist(), strict=True)), "same_as": twin,
                      "allowed": bool(space.contains(row_D[None])[0])}  # fmt: skip
    return arms


def _one_cap(ablate: AblateSettings) -> float:
    """UniMax knows one cap for all: the least of those given, or four epochs, beyond which returns vanish."""
    caps = ablate.propose.epoch_cap
    if isinstance(caps, Mapping):
        return min(caps.values(), default=4.0)
    return caps or 4.0  # arXiv:2305.16264


def mixture_step(ablate: AblateSettings, data: SwarmData, train: TrainRecipe, horizon: int) -> Step:
    """The verdict, and the mixture to train on."""

    def action(place: Place, work: Path) -> Outcome:
        from mixtures.mixture import Mixture

        arms = read_arms(place)
        distinct = sum(arm["same_as"] is None for arm in arms.values())
        cost = search_cost(ablate, train, data.sized(train, place).model.vocab_size, distinct)
        found = {**verdict_of(ablate, place), "cost": cost}
        mixture = Mixture(
            name=found["chosen"], weights=arms[found["chosen"]]["weights"], tokens=horizon,
            epoch_cap=ablate.propose.epoch_cap, provenance=provenance_of(place, found),
        )  # fmt: skip
        mixture.write(work / "mixture.yaml")
        result = {**found, "fingerprint": mixture.fingerprint}
        write_atomically(work / "verdict.json", _json(result))
        return Outcome(metrics=result)

    settings = plain(ablate=ablate, train=train, tokens=horizon)
    return Step("mixture", action, "the verdict, and the mixture to train on", settings,
                list(dict.fromkeys(["confirm", "law", "swarm", *data.parents])), BOTH, data.inputs)  # fmt: skip


def read_arms(place: Place) -> dict[str, dict[str, Any]]:
    """What `confirm` compared."""
    return json.loads((place.of("confirm") / ARMS).read_text(encoding="utf-8"))


def verdict_of(ablate: AblateSettings, place: Place) -> dict[str, Any]:
    """Compare the proposal with every other arm, on the objective of the law, and say what to train on.

    Returns:
        The comparison with the prior (as `mixtures.compare.Verdict`), `comparisons` with all arms, `by_metric` of
        proposal and prior, `losses` of each arm by seed, the law's own `evidence`, `chosen` and the reasons of
        proxies that `failed`.
    """
    from mixtures.compare import compare_each

    arms, evidence = read_arms(place), proposed(place)["evidence"]
    table = losses_by_seed(place.of("confirm") / "metrics.csv")
    objective = objective_of(place)
    twin = {name: arm["same_as"] or name for name, arm in arms.items()}
    losses = {
        name: {seed: sum(objective[metric] * row[metric] for metric in objective)
               for (arm, seed), row in table.items() if arm == twin[name]}
        for name in arms
    }  # fmt: skip
    mine = {"proposal", twin["proposal"]}  # equal mixtures are one comparison: corrected for once, told for each
    others = {name: seeds for name, seeds in losses.items()
              if twin[name] == name and name not in mine and seeds and losses["proposal"]}  # fmt: skip
    verdicts = {name: one.model_dump(mode="json") for name, one in compare_each(losses["proposal"], others).items()}
    by_metric = {
        metric: {arm: {seed: row[metric] for (name, seed), row in table.items() if name == twin[arm]}
                 for arm in ("prior", "proposal")}
        for metric in next(iter(table.values()))
    }  # fmt: skip
    return {
        **verdicts.get("prior", {"verdict": "inconclusive", "difference": 0.0, "interval": None, "pairs": 0}),
        "comparisons": verdicts, "by_metric": _by_metric(by_metric), "objective": objective,
        "losses": {name: {str(seed): value for seed, value in sorted(one.items())} for name, one in losses.items()},
        "same_as": {name: arm["same_as"] for name, arm in arms.items() if arm["same_as"]},
        "evidence": evidence, "chosen": _chosen(ablate, arms, losses, verdicts), "failed": _failed(place),
    }  # fmt: skip


def _by_metric(found: Mapping[str, Mapping[str, Mapping[int, float]]]) -> dict[str, Any]:
    """Proposal minus prior for each held-out domain, corrected for their number: who pays for the gain."""
    from mixtures.compare import compare
    from mixtures.multiple import holm

    verdicts = {}
    for metric, arms in found.items():
        if seeds := sorted(set(arms["prior"]) & set(arms["proposal"])):
            pair = ([arms[name][seed] for seed in seeds] for name in ("prior", "proposal"))
            verdicts[metric] = compare(*pair)
    corrected = holm([one.p_value if one.p_value is not None else 1.0 for one in verdicts.values()])
    return {
        metric: {
            **one.model_dump(mode="json"),
            "p_adjusted": p,
            "verdict": one.verdict if p < 0.05 else "inconclusive",
        }
        for (metric, one), p in zip(verdicts.items(), corrected, strict=True)
    }


def _chosen(ablate: AblateSettings, arms: Mapping[str, Mapping[str, Any]],
            losses: Mapping[str, Mapping[int, float]], verdicts: Mapping[str, Mapping[str, Any]]) -> str:  # fmt: skip
    """What to train on: an arm that beats the proposal, the proposal where it beats the prior, else as the recipe says.

    Of several arms that beat the proposal, that with the lowest mean; one that the caps forbid is never chosen.
    """
    better = [name for name, one in verdicts.items() if one["verdict"] == "worse" and arms[name]["allowed"]]
    if better:
        return min(better, key=lambda name: sum(losses[name].values()) / len(losses[name]))
    told = verdicts.get("prior", {}).get("verdict", "worse")
    return "proposal" if told == "better" else ablate.unproven if told == "inconclusive" else "prior"


def objective_of(place: Place) -> dict[str, float]:
    """Metric -> its weight in the target that the law was asked to lower."""
    found = json.loads((place.of("law") / "objective.json").read_text(encoding="utf-8"))
    return {name: weight for name, weight in found.items() if weight}


def losses_by_seed(table: Path) -> dict[tuple[str, int], dict[str, float]]:
    """(arm, seed) -> held-out losses of a metrics table of the confirmation, nats per token."""
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    found = {}
    for row in rows:
        run = row.pop("id")
        match = SEED.search(run)
        assert match is not None, run
        found[run[: match.start()], int(match.group(1))] = {name: float(value) for name, value in row.items()}
    return found


def proposed(place: Place) -> dict[str, Any]:
    """What `law` proposed: its optimum, and whether it can tell that from the prior itself."""
    return json.loads((place.of("law") / "proposal.json").read_text(encoding="utf-8"))


def _failed(place: Place) -> dict[str, str]:
    """Why proxies of the confirmation were left out, by id."""
    from pipelines.manifest import read_manifest

    return read_manifest(place.of("confirm")).metrics["failed"]


def provenance_of(place: Place, found: Mapping[str, Any]) -> dict[str, str]:
    """Where a mixture is from: digests of the swarm's tables and of the shards, the law, the verdict."""
    given = proposed(place)["provenance"]
    return {key: value for key, value in given.items() if value is not None} | {
        "law": proposed(place)["law"],
        "verdict": f"proposal against prior: {found['verdict']}, {found['pairs']} seeds",
    }


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
