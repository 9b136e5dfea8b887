import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from mixtures.mixture import Domains
from mixtures.simplex import Simplex, kl
from pipelines.errors import DataError

ABC = Domains.of({"a": 100, "b": 100, "c": 800})


def test_caps_are_epochs_times_tokens_over_budget():
    space = Simplex.of(ABC, tokens=1000, epoch_cap=4)
    assert space.upper_D.tolist() == [0.4, 0.4, 1.0]


def test_impossible_budget_says_how_many_tokens_are_missing():
    domains = Domains.of({"web": 200_000_000_000, "code": 50_000_000_000})
    with pytest.raises(DataError, match=r"500B tokens at 1 epochs.*250B unique tokens; needs 250B more tokens"):
        Simplex.of(domains, tokens=500_000_000_000, epoch_cap=1)


def test_budget_that_just_fits_forces_the_proportional_mixture():
    space = Simplex.of(ABC, tokens=1000, epoch_cap=1)
    assert space.project(np.array([[0.8, 0.1, 0.1]]))[0] == pytest.approx([0.1, 0.1, 0.8])


@pytest.mark.parametrize(
    ("floor", "problem"),
    [({"a": 0.5}, "floor of 'a' is 0.5 but its epoch cap allows 0.4"), ({"c": 0.8, "b": 0.4}, "floors sum to 1.2"),
     ({"z": 0.1}, "unknown 'z'")],
)  # fmt: skip
def test_impossible_floors(floor, problem):
    with pytest.raises(DataError, match=problem):
        Simplex.of(ABC, tokens=1000, epoch_cap=4, floor=floor)


def test_projection_scales_the_free_and_clips_the_capped():
    space = Simplex.of(ABC, tokens=1000, epoch_cap=2)
    assert space.project(np.array([[0.6, 0.1, 0.3]]))[0] == pytest.approx([0.2, 0.2, 0.6])


def test_projection_leaves_allowed_mixtures_alone():
    space = Simplex.of(ABC, tokens=1000, epoch_cap=4)
    assert space.project(np.array([[0.3, 0.0, 0.7]]))[0] == pytest.approx([0.3, 0.0, 0.7], abs=1e-12)


def test_projection_opens_a_zero_when_the_caps_leave_no_other_room():
    space = Simplex.of(ABC, tokens=1000, epoch_cap=4)
    assert space.project(np.array([[0.5, 0.5, 0.0]]))[0] == pytest.approx([0.4, 0.4, 0.2])


@given(st.lists(st.floats(1e-4, 1), min_size=4, max_size=4), st.lists(st.floats(0.3, 1), min_size=4, max_size=4))
def test_projection_is_the_kl_minimum(raw, caps):
    base_D = np.array(raw) / sum(raw)
    space = Simplex(tuple("abcd"), np.zeros(4), np.array(caps))
    ours_D = space.project(base_D[None])[0]
    assert space.contains(ours_D[None], 1e-9).all()
    oracle = minimize(
        lambda w: kl(np.maximum(w, 1e-15), base_D), np.array(caps) / sum(caps), method="SLSQP",
        jac=lambda w: np.log(np.maximum(w, 1e-15) / base_D) + 1, bounds=[(1e-9, cap) for cap in caps],
        constraints=[{"type": "eq", "fun": lambda w: w.sum() - 1}], options={"ftol": 1e-12},
    )  # fmt: skip
    assert kl(ours_D, base_D) <= oracle.fun + 1e-6
