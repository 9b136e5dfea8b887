from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import logsumexp
from scipy.stats import spearmanr

from mixtures.mixmin import ComponentScores, agreement, ensemble_losses, mixmin
from mixtures.tables import Metrics, Ratios
from pipelines.errors import DataError


def scores_of(seed: int, domains: int = 3, rows: int = 60) -> ComponentScores:
    """Two held-out sets of short rows whose likelihoods differ by a few nats."""
    random = np.random.default_rng(seed)
    tokens = {"a": random.integers(1, 5, rows), "b": random.integers(1, 5, rows // 2)}
    nll = {f"d{n}": {name: 3.0 * each + random.normal(0, 1.5, len(each)) for name, each in tokens.items()}
           for n in range(domains)}  # fmt: skip
    return ComponentScores.of(nll, tokens)


def loss_of(scores: ComponentScores, weights_D: np.ndarray, targets: tuple[str, ...]) -> float:
    """The definition: mean over targets of nats per token of the ensemble."""
    with np.errstate(divide="ignore"):
        nats_N = -logsumexp(np.log(weights_D) - scores.nll_ND, axis=1)
    owns = [scores.target_N == scores.targets.index(name) for name in targets]
    return float(np.mean([nats_N[own].sum() / scores.tokens_N[own].sum() for own in owns]))


@pytest.mark.parametrize("seed", range(4))
def test_the_optimum_is_scipys(seed: int):
    scores = scores_of(seed, domains=4)
    found = mixmin(scores)
    best = minimize(
        lambda w: loss_of(scores, np.maximum(w, 1e-12) / np.maximum(w, 1e-12).sum(), ("a", "b")), np.full(4, 0.25),
        bounds=[(0, 1)] * 4, constraints={"type": "eq", "fun": lambda w: w.sum() - 1}, method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 500},
    )  # fmt: skip
    assert found.loss == pytest.approx(best.fun, abs=2e-6)
    assert list(found.weights.values()) == pytest.approx(best.x, abs=5e-3)
    assert found.loss == pytest.approx(loss_of(scores, np.array(list(found.weights.values())), ("a", "b")))


def test_two_disjoint_domains_get_their_shares():
    # d0 alone explains three rows of four, d1 the fourth: w = (3/4, 1/4), loss = the entropy of that
    far = 500.0
    scores = ComponentScores.of(
        {"d0": {"a": np.array([0, 0, 0, far])}, "d1": {"a": np.array([far, far, far, 0])}}, {"a": np.ones(4)}
    )
    found = mixmin(scores)
    assert found.weights == pytest.approx({"d0": 0.75, "d1": 0.25}, abs=1e-3)
    assert found.loss == pytest.approx(0.75 * np.log(4 / 3) + 0.25 * np.log(4), abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 6))
def test_the_certificate_holds_against_any_weights(seed: int, domains: int):
    scores = scores_of(seed, domains, rows=30)
    found = mixmin(scores)
    assert found.gap <= 1e-6
    others = np.random.default_rng(seed).dirichlet(np.full(domains, 0.5), 50)
    assert min(loss_of(scores, other, ("a", "b")) for other in others) >= found.loss - found.gap
    assert found.loss <= min(*found.single.values(), found.uniform) + 1e-6


def test_a_target_can_be_chosen():
    scores = scores_of(5)
    found = mixmin(scores, ["b"])
    assert found.loss == pytest.approx(loss_of(scores, np.array(list(found.weights.values())), ("b",)))
    assert found.loss < loss_of(scores, np.array(list(mixmin(scores, ["a"]).weights.values())), ("b",))
    with pytest.raises(DataError, match="unknown 'c'"):
        mixmin(scores, ["c"])


def test_no_order_of_names_changes_a_bit():
    random, tokens = np.random.default_rng(0), {"a": np.arange(1, 21), "b": np.arange(1, 8)}
    nll = {d: {t: random.uniform(1, 9, len(each)) for t, each in tokens.items()} for d in ("x", "y", "z")}
    turned = ComponentScores.of(
        {d: dict(reversed(nll[d].items())) for d in ("z", "x", "y")}, dict(reversed(tokens.items()))
    )
    assert mixmin(ComponentScores.of(nll, tokens)) == mixmin(turned)


def test_ensemble_losses_are_the_definition():
    scores = scores_of(1)
    ratios = Ratios.of({"p": {"d2": 0.2, "d0": 0.5, "d1": 0.3}, "q": {"d2": 1.0}})
    found = ensemble_losses(scores, ratios)
    assert (found.ids, found.names) == (("p", "q"), ("a", "b"))
    expected = [[loss_of(scores, np.array(w), (t,)) for t in ("a", "b")] for w in ([0.5, 0.3, 0.2], [0.0, 0.0, 1.0])]
    assert found.values_PM == pytest.approx(np.array(expected))
    with pytest.raises(DataError, match="missing 'd1'"):
        ensemble_losses(scores, Ratios.of({"p": {"d0": 1.0, "d2": 0.0}}))


def left_out(x: np.ndarray, y: np.ndarray, degree: int) -> float:
    """Root mean square error of polynomials fitted without the run that they foretell."""
    misses = [y[i] - np.polyval(np.polyfit(np.delete(x, i), np.delete(y, i), degree), x[i]) for i in range(len(x))]
    return float(np.sqrt(np.mean(np.square(misses))))


def test_agreement_is_rank_correlation_and_left_out_error():
    random = np.random.default_rng(2)
    truth = random.standard_normal(20)
    ensemble = Metrics(tuple(map(str, range(20))), ("a", "b"), np.stack([truth, random.standard_normal(20)], 1))
    measured = Metrics(ensemble.ids[::-1], ("b", "a", "c"), np.stack([truth[::-1]] * 3, 1) * 2 + 5)
    found = agreement(ensemble, measured)
    assert found["a"] == {"spearman": 1.0, "relative": pytest.approx(0, abs=1e-9)}
    assert found["b"]["spearman"] == pytest.approx(spearmanr(ensemble.values_PM[:, 1], truth).statistic, abs=1e-6)
    line, mean = (left_out(ensemble.values_PM[:, 1], truth, degree) for degree in (1, 0))
    assert found["b"]["relative"] == pytest.approx(line / mean, abs=1e-6)


def test_scores_are_read_back_and_bad_ones_are_named(tmp_path: Path):
    scores = scores_of(3)
    scores.write(tmp_path / "scores.npz")
    assert mixmin(ComponentScores.read(tmp_path / "scores.npz")) == mixmin(scores)
    assert {entry.date_time[0] for entry in ZipFile(tmp_path / "scores.npz").infolist()} == {1980}  # no clock
    (tmp_path / "torn.npz").write_bytes((tmp_path / "scores.npz").read_bytes()[:100])
    with pytest.raises(DataError, match=r"torn.npz: not the scores"):
        ComponentScores.read(tmp_path / "torn.npz")
    with pytest.raises(DataError, match=r"none.npz: not the scores"):
        ComponentScores.read(tmp_path / "none.npz")
    with pytest.raises(DataError, match="row 1 has no finite likelihood under 'd'"):
        ComponentScores.of({"d": {"a": np.array([1, np.nan])}}, {"a": np.ones(2)})
    with pytest.raises(DataError, match="held-out set 'a' has no scored token"):
        ComponentScores.of({"d": {"a": np.array([1.0])}}, {"a": np.zeros(1)})
