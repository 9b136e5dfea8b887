import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.online_rules import (
    ado_preference,
    aioli,
    aioli_influence,
    doge,
    doge_scores,
    doremi,
    exponentiated,
    floored,
    one_hot_mixes,
    smoothed,
)

WEIGHTS = np.array([0.5, 0.3, 0.2])
weights = st.lists(st.floats(0.01, 1), min_size=2, max_size=6).map(lambda raw: np.array(raw) / sum(raw))


def test_exponentiated_gradient_by_hand():
    moved = exponentiated(np.array([0.5, 0.5]), np.array([np.log(3), 0.0]), 1.0)
    assert moved == pytest.approx([0.75, 0.25])
    assert exponentiated(WEIGHTS, np.array([1e6, 0, 0]), 1.0) == pytest.approx([1, 0, 0])  # no overflow


@given(weights, st.floats(-50, 50))
def test_equal_scores_move_nothing(before: np.ndarray, score: float):
    assert exponentiated(before, np.full(len(before), score), 2.0) == pytest.approx(before)


def test_smoothing_keeps_every_domain():
    assert smoothed(np.array([1.0, 0.0]), 0.1) == pytest.approx([0.95, 0.05])


def test_doremi_by_hand():
    # w exp(lam) = .5 * 2, .3 * 1, .2 * 1 -> over 1.5; then 10% of the uniform mixture
    moved = doremi(WEIGHTS, np.array([np.log(2), 0, 0]), 1.0, 0.1)
    assert moved == pytest.approx(0.9 * np.array([1.0, 0.3, 0.2]) / 1.5 + 0.1 / 3)


def test_doge_by_hand():
    gradients = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])  # sum: (0, 1)
    assert doge_scores(gradients).tolist() == [0, 1, 0]
    assert doge(WEIGHTS, np.array([0, 1, 0]), 0.1, 0.05) == pytest.approx(
        np.array([0.5, 0.3 * np.exp(2), 0.2]) / (0.7 + 0.3 * np.exp(2))
    )


def test_doge_scores_are_rows_of_the_gram_matrix_over_the_mean_norm():
    gradients = np.random.default_rng(0).standard_normal((5, 40))
    size = np.linalg.norm(gradients, axis=1).mean()
    assert doge_scores(gradients) == pytest.approx((gradients @ gradients.T).sum(axis=1) / size)
    assert doge_scores(np.zeros((2, 3))).tolist() == [0, 0]


def test_aioli_finds_the_influence_that_made_the_drops():
    truth = np.random.default_rng(1).uniform(-0.2, 1, (3, 4))  # losses x domains
    mixes = one_hot_mixes(4, 0.625)
    assert mixes.sum(axis=1) == pytest.approx(np.ones(4))
    assert mixes[0].tolist() == [0.625, 0.125, 0.125, 0.125]
    assert aioli_influence(mixes, mixes @ truth.T) == pytest.approx(truth)


def test_aioli_by_hand():
    influence = np.array([[3.0, 0.0], [1.0, 0.0]])  # column sums 4, 0 of 4 -> 2, 0 when the mean is 1
    assert aioli(np.array([0.5, 0.5]), influence, 0.5) == pytest.approx([np.e / (np.e + 1), 1 / (np.e + 1)])
    shifted = np.array([[2.0, -1.0], [0.0, -1.0]])  # the least entry becomes 0
    assert aioli(np.array([0.5, 0.5]), shifted, 0.5) == pytest.approx([np.e / (np.e + 1), 1 / (np.e + 1)])
    assert aioli(WEIGHTS, np.zeros((2, 3)), 0.5) == pytest.approx(WEIGHTS)


def test_ado_prefers_what_still_falls_per_token():
    prior, usage = np.array([0.5, 0.5]), np.array([0.64, 0.04])
    found = ado_preference(prior, usage, np.array([0.2, 0.4]), np.array([1.0, 2.0]), np.array([400.0, 100.0]))
    # .5 * .8 * .2 * 1 / 400 = .0002 and .5 * .2 * .4 * 2 / 100 = .0008
    assert found == pytest.approx([0.2, 0.8])


def test_ado_speed_is_the_slope_of_the_power_law():
    eps, beta, alpha, tokens = 2.0, 30.0, 0.3, 5e4
    step = 1.0
    slope = ((eps + beta * (tokens - step) ** -alpha) - (eps + beta * (tokens + step) ** -alpha)) / (2 * step)
    above = beta * tokens**-alpha
    one = np.ones(2)
    found = ado_preference(one, one, np.array([alpha, 1.0]), np.array([above, 1.0]), np.array([tokens, 1.0]))
    assert found[0] / found[1] == pytest.approx(slope)


def test_a_floor_holds():
    assert floored(np.array([0.0, 0.5, 0.5]), 0.1) == pytest.approx([0.1, 0.45, 0.45])
    assert floored(np.array([1.0, 0.0]), 0.9) == pytest.approx([0.5, 0.5])  # more than there is


@given(weights, st.floats(0, 0.2), st.integers(0, 5))
def test_every_rule_stays_on_the_simplex(before: np.ndarray, share: float, seed: int):
    scores = np.random.default_rng(seed).standard_normal(len(before))
    influence = np.random.default_rng(seed).standard_normal((3, len(before)))
    for after in (doremi(before, scores, 1.0, share), doge(before, scores, 0.1, 0.05), aioli(before, influence, 0.2),
                  floored(before, share)):  # fmt: skip
        assert after.sum() == pytest.approx(1)
        assert after.min() >= 0


@given(weights, st.integers(0, 5))
def test_rules_follow_domains_not_places(before: np.ndarray, seed: int):
    random = np.random.default_rng(seed)
    order, scores = random.permutation(len(before)), random.standard_normal(len(before))
    influence = random.standard_normal((3, len(before)))
    assert doremi(before, scores, 1, 0.1)[order] == pytest.approx(doremi(before[order], scores[order], 1, 0.1))
    assert aioli(before, influence, 0.2)[order] == pytest.approx(aioli(before[order], influence[:, order], 0.2))
