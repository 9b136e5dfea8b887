"""What a proposal says: the mixture, the case for it, the case against it.

It is written twice: `mixture.yaml` is what a trainer reads, `proposal.json` is everything, `caps.csv` the table of
budgets and caps.
"""

import csv
import io
import json
from pathlib import Path
from typing import Any, Literal

from mixtures.mixture import Mixture
from mixtures.prices import CapRow, Prices, told_caps
from mixtures.stability import Stability, Standing
from pipelines.files import write_atomically
from pipelines.recipe import Section

Evidence = Literal["distinguishable", "not distinguishable from proportional", "nothing learned"]


class Estimate(Section):
    """A predicted loss with its 80% and 95% interval for one new run at the swarm's scale."""

    loss: float
    lo80: float
    hi80: float
    lo95: float
    hi95: float


class BestRun(Section):
    """The run of the swarm with the lowest measured target.

    Attributes:
        id: of the run.
        measured: its target; the luckiest of many, so on average too low.
        predicted: what the law makes of it.
        allowed: whether the bounds permit its mixture.
    """

    id: str
    measured: float
    predicted: float
    allowed: bool


class Proposal(Section):
    """A proposed mixture and the case for it.

    Attributes:
        mixture: what to train on.
        basis: `law`, or `prior` when nothing better is known or told apart; `reason` says why.
        evidence: whether the optimum is told from the prior.
        target: what was optimised.
        optimum: the weights with the lowest predicted target, also where the prior is proposed.
        predicted, prior_predicted: of the proposal and of the proportional prior inside the same bounds.
        prior: the prior's weights.
        p_better: chance that a new run of the optimum beats a new run of the prior, over refits to resampled swarms
            with held-out errors of the law added; None without refits.
        improvement: prior minus optimum, predicted; with the 10% and 90% points over refits where there are any.
        smallest_told: the least true improvement that this swarm would tell from none (95% level, 80% power).
        intervals: domain -> central 80% of its weight over the optima of resampled swarms.
        stability: how far these optima lie apart, and the pull towards the prior that holds them together.
        standings: proposal, prior, uniform, UniMax and the best run: chance to be the best, expected regret.
        best_observed: the best run of the swarm, whatever the bounds say.
        epochs: how often each domain is read within the budget; empty without one.
        bounds: domain, group or licence -> which end of its bound holds the optimum back.
        prices: what these bounds cost.
        caps: the best predicted target for other budgets and caps.
        law: family of the fit.
        provenance: hashes of the swarm and of the domains, scale label.
    """

    mixture: Mixture
    basis: Literal["law", "prior"]
    reason: str
    evidence: Evidence
    target: str
    optimum: dict[str, float]
    predicted: Estimate
    prior_predicted: Estimate
    prior: dict[str, float]
    p_better: float | None
    improvement: dict[str, float]
    smallest_told: float | None
    intervals: dict[str, tuple[float, float]]
    stability: Stability
    standings: dict[str, Standing]
    best_observed: BestRun
    epochs: dict[str, float]
    bounds: dict[str, str]
    prices: Prices
    caps: list[CapRow]
    law: str
    provenance: dict[str, str | None]

    def write(self, folder: Path) -> None:
        """Write `mixture.yaml`, `proposal.json` and `caps.csv` into `folder`."""
        self.mixture.write(folder / "mixture.yaml")
        whole = {"weights": self.mixture.weights, **self.model_dump(mode="json")}
        text = json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        write_atomically(folder / "proposal.json", text.encode())
        if self.caps:
            write_atomically(folder / "caps.csv", _table(self.caps).encode())

    def summary(self) -> dict[str, Any]:
        """The proposal in a few lines: for manifests and people."""
        return {
            "basis": self.basis,
            "reason": self.reason,
            "evidence": self.evidence,
            "law": self.law,
            "target": self.target,
            "predicted": self.predicted.loss,
            "prior_predicted": self.prior_predicted.loss,
            "p_better": self.p_better,
            "smallest_told": self.smallest_told,
            "weights": dict(sorted(self.mixture.weights.items(), key=lambda one: (-one[1], one[0]))),
            "standings": {name: each.model_dump(mode="json") for name, each in self.standings.items()},
            "stability": self.stability.model_dump(mode="json"),
            "price_of_a_billion_tokens": self.prices.cap or None,
            "price_of_a_point_of_floor": self.prices.floor or None,
            "price_of_a_point_of_group": self.prices.group or None,
            "caps": told_caps(self.caps) or None,
        }


def _table(rows: list[CapRow]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["tokens", "epoch_cap", "loss", "more", "held", "largest", "infeasible"])
    for row in rows:
        largest = " ".join(f"{name}={weight:g}" for name, weight in row.largest.items())
        writer.writerow([row.tokens, row.epoch_cap, row.loss, row.more, " ".join(row.held), largest, row.infeasible])
    return stream.getvalue()
