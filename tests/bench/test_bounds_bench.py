"""Projection of 20,000 mixtures into bounds by KL, against scipy's SLSQP: CPU seconds per thousand rows."""

import numpy as np
import pytest
from scipy.optimize import minimize

from mixtures.mixture import Domains
from mixtures.simplex import Group, Simplex, kl
from tests.bench.cpu_time import cpu_seconds

pytestmark = pytest.mark.bench

DOMAINS = Domains.of({f"d{number:02d}": 10**9 * (1 + number) for number in range(17)})
NAMES = DOMAINS.names
GROUPS = {
    "caps": [],
    "disjoint groups": [Group("a", NAMES[:5], 0.1, 0.3), Group("b", NAMES[5:9], 0.2, 0.5),
                        Group("c", NAMES[9:12], 0.0, 0.05)],
    "overlapping groups": [Group("a", NAMES[:8], 0.1, 0.3), Group("b", NAMES[4:12], 0.2, 0.35),
                           Group("c", NAMES[9:14], 0.0, 0.25), Group("d", NAMES[::2], 0.3, 0.6)],
}  # fmt: skip


def by_slsqp(space: Simplex, base_D: np.ndarray) -> np.ndarray:
    limits = [{"type": "eq", "fun": lambda w: w.sum() - 1}]
    for member_D, low, high in zip(space.groups_GD, space.group_lower_G, space.group_upper_G, strict=True):
        limits += [{"type": "ineq", "fun": lambda w, m=member_D, h=high: h - m @ w},
                   {"type": "ineq", "fun": lambda w, m=member_D, lo=low: m @ w - lo}]  # fmt: skip
    return minimize(
        lambda w: kl(np.maximum(w, 1e-12), base_D), base_D, method="SLSQP", constraints=limits,
        jac=lambda w: np.log(np.maximum(w, 1e-12) / base_D) + 1,
        bounds=list(zip(np.maximum(space.lower_D, 1e-12), space.upper_D, strict=True)),
        options={"ftol": 1e-12, "maxiter": 300},
    ).x  # fmt: skip


@pytest.mark.parametrize("kind", GROUPS)
def test_project(kind, capsys):
    space = Simplex.of(DOMAINS, int(DOMAINS.total * 0.8), 2.0, None, GROUPS[kind])
    base_PD = np.random.default_rng(0).dirichlet(np.full(17, 0.3), 20_000) + 1e-9
    found: dict[str, np.ndarray] = {}
    ours = cpu_seconds(lambda: found.update(ours=space.project(base_PD)))
    theirs = cpu_seconds(lambda: found.update(theirs=np.array([by_slsqp(space, base_D) for base_D in base_PD[:50]])))
    projected_PD = found["ours"]
    pairs = list(zip(projected_PD, found["theirs"], base_PD, strict=False))
    worse = max(kl(own_D, base_D) - kl(np.maximum(other_D, 0), base_D) for own_D, other_D, base_D in pairs
                if space.contains(other_D[None], 1e-7)[0])  # fmt: skip
    assert space.contains(projected_PD, 1e-6).all()
    with capsys.disabled():
        print(
            f"\n{kind}: {ours / 20:.4f} s per thousand, SLSQP {theirs * 20:.2f} s; KL above SLSQP's at most {worse:.1e}"
        )
