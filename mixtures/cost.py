"""What a decision costs: proxy FLOPs against the final run's, and how few proxies would have decided the same.

The swarm is replayed in random orders: a law is fitted to each prefix and chooses a mixture, which is then judged by
the law of all runs. The smallest prefix that chooses within `eps` of the best in at least 95% of the orders is the cost
to decision (DataDecide asks the same of scales). FLOPs are counted as 6 N D. P runs, X mixtures to choose from,
R replays.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mixtures.fitting import LEAST_RUNS, Fit
from mixtures.scale import Scale
from pipelines.errors import DataError
from pipelines.recipe import Section

CONFIDENT = 0.95
REPLAYS = 40
GROWTH = 1.5  # of the prefixes


class Decision(Section):
    """How well a prefix of the swarm decides.

    Attributes:
        runs: its length.
        flops: of its runs.
        share_of_final: the same over the final run's; None where that is not known.
        p_within: share of replays whose choice is within `eps` of the best.
        mean_regret: mean of the chosen mixture's loss minus the best.
    """

    runs: int
    flops: float
    share_of_final: float | None
    p_within: float
    mean_regret: float


class CostReport(Section):
    """Cost to decision.

    Attributes:
        eps: regret that counts as none, in units of the target.
        swarm_flops, final_flops: of all proxies and of the final run.
        share_of_final: the first over the second.
        prefixes: how well growing prefixes decide.
        runs_to_decision, flops_to_decision: of the smallest prefix from which on P(within eps) is at least 95%; None
            when even the largest one short of the swarm is not that sure.
    """

    eps: float
    swarm_flops: float
    final_flops: float | None
    share_of_final: float | None
    prefixes: list[Decision]
    runs_to_decision: int | None
    flops_to_decision: float | None

    def summary(self) -> dict[str, Any]:
        """The report in a few lines: for manifests and people."""
        rows = {f"{each.runs} runs": {"p_within": each.p_within, "regret": each.mean_regret, "flops": each.flops,
                                      "share_of_final": each.share_of_final} for each in self.prefixes}  # fmt: skip
        return {"eps": self.eps, "swarm_flops": self.swarm_flops, "share_of_final": self.share_of_final,
                "runs_to_decision": self.runs_to_decision, "flops_to_decision": self.flops_to_decision,
                "prefixes": rows}  # fmt: skip


def flops_of(scale: Scale) -> float:
    """Training FLOPs of a run, 6 N D.

    Raises:
        DataError: the scale names no tokens.
    """
    if scale.tokens is None:
        raise DataError(f"scale {scale} names no tokens, so its cost is not known; write it as {scale}/1B")
    return 6.0 * scale.params * scale.tokens


def cost_to_decision(
    fit: Fit, coefficient_M: np.ndarray, choices_XD: np.ndarray, run_flops: float, final_flops: float | None = None,
    eps: float | None = None, replays: int = REPLAYS, seed: int = 0,
) -> CostReport:  # fmt: skip
    """Replay growing prefixes of a swarm.

    Args:
        fit: the law of all runs, which judges.
        coefficient_M: the objective, such as `Fit.target` gives.
        choices_XD: allowed mixtures to choose from, domains in the order of the fit.
        run_flops: of one proxy, see `flops_of`.
        final_flops: of the run that the mixture is for.
        eps: regret that counts as none; not given, the held-out error of the law.
        replays: random orders of the runs.
        seed: of the orders.
    """
    residual_P = (fit.metrics.values_PM - fit.held_out_PM) @ coefficient_M
    eps = float(np.sqrt(np.mean(residual_P**2))) if eps is None else eps
    count = len(fit.ratios.ids)
    random = np.random.default_rng(seed)
    place_RP = np.argsort(random.random((replays, count)), axis=1)  # when each run is met in each order
    truth_X = fit.law.predict(choices_XD) @ coefficient_M
    prefixes = []
    for runs in _prefixes(count):
        laws = fit.refit((place_RP < runs).astype(float))
        chosen_R = [int(np.argmin(law.predict(choices_XD) @ coefficient_M)) for law in laws]
        regret_R = truth_X[chosen_R] - truth_X.min()
        flops = runs * run_flops
        prefixes.append(Decision(
            runs=runs, flops=flops, share_of_final=flops / final_flops if final_flops else None,
            p_within=float((regret_R <= eps).mean()), mean_regret=float(regret_R.mean()),
        ))  # fmt: skip
    sure = _first_sure(prefixes)
    swarm = count * run_flops
    share = swarm / final_flops if final_flops else None
    return CostReport(
        eps=eps, swarm_flops=swarm, final_flops=final_flops, share_of_final=share, prefixes=prefixes,
        runs_to_decision=sure.runs if sure else None, flops_to_decision=sure.flops if sure else None,
    )  # fmt: skip


def _prefixes(count: int) -> list[int]:
    """Growing lengths, from the fewest that support a law to just short of the swarm."""
    lengths, length = [], float(2 * LEAST_RUNS)
    while length < 0.9 * count:
        lengths.append(int(length))
        length *= GROWTH
    return lengths


def _first_sure(prefixes: Sequence[Decision]) -> Decision | None:
    """The smallest prefix from which on all are sure."""
    found = None
    for each in reversed(prefixes):
        if each.p_within < CONFIDENT:
            break
        found = each
    return found
