import json

import numpy as np
import pytest
from scipy.optimize import minimize as scipy_minimize

from mixtures.effective_data import ConcaveFamily, EffectiveData
from mixtures.laws import FAMILIES, law_from_json
from mixtures.least_squares import Problems, cost_of, minimise

RANDOM = np.random.default_rng(0)
W_PD = RANDOM.dirichlet([0.6, 0.6, 0.6, 0.6], 80)
W_PD[:5] = np.eye(4)[[0, 1, 2, 3, 0]]  # zeros and ones must be harmless
PARAMETRIC = ["exponential", "ridge", "effective_data", "concave"]
TRUTHS = {
    "exponential": lambda w: 2 + np.exp(1 - w @ [3, 1, 0.5, -0.5]),
    "ridge": lambda w: 4 - w @ [1, 0, 0.3, 0.2] - np.sqrt(w) @ [0.1, 0.5, 0.3, 0],
    "effective_data": lambda w: 2 + (0.1 + w @ [1, 0.5, 0.1, 0.01]) ** -0.4,
    "concave": lambda w: 2 + (0.1 + w**0.4 @ [1, 0.5, 0.1, 0.01]) ** -0.6,
}


def fit(name, values_BP, penalty=None):
    family = FAMILIES[name]
    return family.fit(W_PD[: values_BP.shape[1]], values_BP, np.ones_like(values_BP), penalty or family.penalties[-1])


@pytest.mark.parametrize("name", PARAMETRIC)
def test_a_law_recovers_its_own_truth(name):
    fresh_PD = np.random.default_rng(1).dirichlet([0.6] * 4, 200)
    truth_P = TRUTHS[name](fresh_PD)
    predicted_P = fit(name, TRUTHS[name](W_PD)[None]).predict(fresh_PD)[:, 0]
    assert np.sqrt(np.mean((predicted_P - truth_P) ** 2)) < 0.02 * truth_P.std()


@pytest.mark.parametrize("name", PARAMETRIC)
def test_jacobian_is_the_derivative(name):
    curve = FAMILIES[name].curve(W_PD)
    theta_K = curve.starts()[0] + np.random.default_rng(2).normal(0, 0.1, curve.starts().shape[1])
    theta_K = np.clip(theta_K, curve.lower_K, curve.upper_K)
    _, slope_BPK = curve.jacobian(theta_K[None])
    for k in np.flatnonzero(curve.upper_K > curve.lower_K):
        step_K = 1e-6 * np.eye(len(theta_K))[k]
        change_P = (curve.values((theta_K + step_K)[None]) - curve.values((theta_K - step_K)[None]))[0] / 2e-6
        assert slope_BPK[0, :, k] == pytest.approx(change_P, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("name", PARAMETRIC)
def test_gradient_by_the_weights_is_the_derivative(name):
    law = fit(name, np.stack([TRUTHS["concave"](W_PD), TRUTHS["ridge"](W_PD)]))
    at_D = np.array([0.4, 0.3, 0.2, 0.1])
    for d in range(4):
        step_D = 1e-6 * np.eye(4)[d]
        change_B = (law.predict((at_D + step_D)[None]) - law.predict((at_D - step_D)[None]))[0] / 2e-6
        assert law.gradient(at_D)[:, d] == pytest.approx(change_B, rel=1e-4, abs=1e-7)


def test_the_solver_ends_no_higher_than_scipys_lbfgs():
    curve = EffectiveData(W_PD, concave=True)
    noise_P = np.random.default_rng(3).normal(0, 0.1, len(W_PD))
    values_P = TRUTHS["concave"](W_PD)
    targets_P = (values_P - values_P.mean()) / values_P.std() + noise_P
    problems = Problems(targets_P[None], np.full((1, len(W_PD)), 1 / len(W_PD)), np.array([1e-3]))
    _, ours_B = minimise(curve, problems, curve.starts()[:1])

    def objective(theta_K):
        return float(cost_of(curve, problems, theta_K[None])[0])

    oracle = scipy_minimize(objective, curve.starts()[0], method="L-BFGS-B", options={"maxiter": 2000, "maxfun": 10**5},
                            bounds=list(zip(curve.lower_K, curve.upper_K, strict=True)))  # fmt: skip
    assert ours_B[0] <= oracle.fun * 1.001


def test_a_count_of_zero_hides_a_run_and_two_doubles_it():
    values_P = TRUTHS["concave"](W_PD) + np.random.default_rng(4).normal(0, 0.05, len(W_PD))
    spoiled_P = np.where(np.arange(len(W_PD)) < 10, 1e6, values_P)
    counts_P = np.where(np.arange(len(W_PD)) < 10, 0.0, 1.0)
    counts_P[-1] = 2
    hidden = ConcaveFamily().fit(W_PD, spoiled_P[None], counts_P[None], 0.1)
    rows = np.r_[np.arange(10, len(W_PD)), len(W_PD) - 1]
    plain = ConcaveFamily().fit(W_PD[rows], values_P[rows][None], np.ones((1, len(rows))), 0.1)
    assert hidden.predict(W_PD) == pytest.approx(plain.predict(W_PD), abs=2e-4)


@pytest.mark.parametrize("name", list(FAMILIES))
def test_saved_as_json_and_read_back_equal(name):
    values_BP = np.stack([TRUTHS["concave"](W_PD), TRUTHS["ridge"](W_PD)])
    law = fit(name, values_BP)
    again = law_from_json(json.loads(json.dumps(law.to_json())))
    assert np.array_equal(again.predict(W_PD), law.predict(W_PD))
    assert again.take([1]).predict(W_PD)[:, 0] == pytest.approx(law.predict(W_PD)[:, 1], rel=1e-12)


def test_trees_use_every_round_and_beat_the_mean():
    law = fit("trees", TRUTHS["concave"](W_PD)[None])
    assert law.boosters[0].current_iteration() == 1000
    assert np.corrcoef(law.predict(W_PD)[:, 0], TRUTHS["concave"](W_PD))[0, 1] > 0.8


@pytest.mark.parametrize("name", list(FAMILIES))
def test_a_metric_that_does_not_vary_is_predicted_exactly(name):
    assert fit(name, np.full((1, len(W_PD)), 2.5)).predict(W_PD) == pytest.approx(2.5, abs=1e-6)
