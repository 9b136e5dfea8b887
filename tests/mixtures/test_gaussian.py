import json

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from mixtures.gaussian import PRIOR, SPREAD, Evidence, GaussianFamily
from mixtures.laws import law_from_json

RANDOM = np.random.default_rng(0)
W_PD = RANDOM.dirichlet([0.7] * 3, 40)
VALUES_P = 3 - np.sqrt(W_PD) @ [1.0, 0.4, 0.1] + RANDOM.normal(0, 0.01, 40)
ONES = np.ones((1, 40))


def dense(roots_ND, hyper_K, counts_N):
    """The covariance, entry by entry."""
    away = (roots_ND[:, None] - roots_ND[None]) / np.exp(hyper_K[1:-1])
    smooth = np.exp(2 * hyper_K[0]) * np.exp(-0.5 * (away**2).sum(axis=2))
    return smooth, smooth + np.diag(np.exp(2 * hyper_K[-1]) / counts_N + 1e-10)


@pytest.fixture(scope="module")
def law():
    return GaussianFamily().fit(W_PD, VALUES_P[None], ONES, 1.0)


def test_the_evidence_is_scipys_density_and_the_prior():
    targets_N, counts_N = (VALUES_P - VALUES_P.mean())[:12], np.r_[np.ones(6), np.full(6, 2.0)]
    evidence = Evidence(np.sqrt(W_PD[:12]), targets_N, counts_N, penalty=1.0)
    hyper_K = np.array([0.1, 0.3, -0.2, 0.5, -1.5])
    density = multivariate_normal(np.zeros(12), dense(np.sqrt(W_PD[:12]), hyper_K, counts_N)[1]).logpdf(targets_N)
    prior_K, spread_K = (np.array([a, s, s, s, n]) for a, s, n in (PRIOR, SPREAD))
    pull = 0.5 * (((hyper_K - prior_K) / spread_K) ** 2).sum()
    value, _ = evidence.value_and_slope(hyper_K)
    assert 12 * value == pytest.approx(-density - 6 * np.log(2 * np.pi) + pull)


def test_the_gradient_of_the_evidence_is_its_derivative():
    evidence = Evidence(np.sqrt(W_PD), VALUES_P - VALUES_P.mean(), np.ones(40), penalty=1.0)
    hyper_K = np.array([0.1, 0.3, -0.2, 0.5, -1.5])
    _, slope_K = evidence.value_and_slope(hyper_K)
    for k in range(5):
        step_K = 1e-6 * np.eye(5)[k]
        ends = [evidence.value_and_slope(hyper_K + sign * step_K)[0] for sign in (1, -1)]
        assert slope_K[k] == pytest.approx((ends[0] - ends[1]) / 2e-6, abs=1e-6)


def test_predictions_are_the_posterior_mean(law):
    fresh_PD = np.random.default_rng(1).dirichlet([0.7] * 3, 6)
    hyper_K = np.concatenate([law.log_amplitude_B, law.log_scale_BD[0], law.log_noise_B])
    roots = np.sqrt(np.concatenate([W_PD, fresh_PD]))
    smooth, noisy = dense(roots, hyper_K, np.ones(46))
    centre, spread = VALUES_P.mean(), VALUES_P.std()
    expected = centre + spread * smooth[40:, :40] @ np.linalg.solve(noisy[:40, :40], (VALUES_P - centre) / spread)
    assert law.predict(fresh_PD)[:, 0] == pytest.approx(expected, rel=1e-8)


def test_the_slope_by_weights_is_the_derivative(law):
    at_D = np.array([0.5, 0.3, 0.2])
    for d in range(3):
        step_D = 1e-6 * np.eye(3)[d]
        change = (law.predict((at_D + step_D)[None]) - law.predict((at_D - step_D)[None]))[0, 0] / 2e-6
        assert law.gradient(at_D)[0, d] == pytest.approx(change, rel=1e-5)


def test_a_left_out_run_is_never_seen():
    spoiled, counts = VALUES_P.copy(), np.ones(40)
    spoiled[:8], counts[:8] = 99.0, 0.0
    hidden = GaussianFamily().fit(W_PD, spoiled[None], counts[None], 1.0)
    plain = GaussianFamily().fit(W_PD[8:], VALUES_P[8:][None], np.ones((1, 32)), 1.0)
    assert hidden.predict(W_PD) == pytest.approx(plain.predict(W_PD), abs=1e-5)


def test_saved_as_plain_numbers(law):
    again = law_from_json(json.loads(json.dumps(law.to_json())))
    assert np.array_equal(again.predict(W_PD), law.predict(W_PD))
    assert np.array_equal(again.gradient(W_PD[0]), law.gradient(W_PD[0]))


def test_refits_keep_length_scales_and_follow_the_counts(law):
    counts = np.random.default_rng(2).multinomial(40, np.full(40, 1 / 40)).astype(float)[None]
    again = GaussianFamily().refit(law, W_PD, VALUES_P[None], counts, 1.0)
    assert np.array_equal(again.log_scale_BD, law.log_scale_BD)
    assert np.array_equal(again.coefficient_BP[0] == 0, counts[0] == 0)
    assert np.abs(again.predict(W_PD) - law.predict(W_PD)).max() < 0.05


def test_more_runs_than_hyper_parameters_see():
    many_PD = np.random.default_rng(3).dirichlet([0.7] * 3, 260)
    truth_P = 3 - np.sqrt(many_PD) @ [1.0, 0.4, 0.1]
    law = GaussianFamily().fit(many_PD, truth_P[None], np.ones((1, 260)), 1.0)
    assert np.count_nonzero(law.coefficient_BP) == 260
    assert np.abs(law.predict(many_PD)[:, 0] - truth_P).max() < 0.02
