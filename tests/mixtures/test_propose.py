import json

import numpy as np
import pytest
from ruamel.yaml import YAML
from scipy.optimize import minimize

from mixtures.design import DesignSettings, design_swarm
from mixtures.fitting import fit_laws
from mixtures.mixture import Domains, Mixture
from mixtures.propose import ProposeSettings, propose
from mixtures.tables import Metrics, Ratios
from mixtures.validation import FitSettings
from mixtures.verbs import mix_design, mix_fit, mix_predict, mix_propose
from pipelines.errors import DataError, RecipeError

PILE_CC = "metric/the_pile_pile_cc_val_loss"
DOMAINS = Domains.of({"web": 600, "code": 250, "books": 100, "math": 50})
WORTH_D = {"web": 0.3, "code": 0.1, "books": 1.0, "math": 0.4}
QUICK = FitSettings(laws=("exponential", "ridge", "effective_data", "concave"))


def losses(ratios, noise=0.003):
    """One loss that obeys a concave law, one that is noise alone."""
    worth_D = np.array([WORTH_D[name] for name in ratios.domains])
    random = np.random.default_rng(0)
    law_P = 2 + (0.1 + np.sqrt(ratios.weights_PD) @ worth_D) ** -0.5 + random.normal(0, noise, len(ratios.ids))
    return Metrics(ratios.ids, ("loss", "noise"), np.stack([law_P, random.normal(3, 0.1, len(ratios.ids))], axis=1))


def truth(weights):
    return 2 + (0.1 + sum(WORTH_D[name] * value**0.5 for name, value in weights.items())) ** -0.5


@pytest.fixture(scope="module")
def fit():
    ratios = design_swarm(DOMAINS, 32, DesignSettings())
    return fit_laws(ratios, losses(ratios), QUICK)


def test_the_proposal_is_close_to_the_true_optimum(fit):
    found = propose(fit, DOMAINS, ProposeSettings(target="loss"))
    oracle = minimize(lambda w: truth(dict(zip(WORTH_D, w, strict=True))), [0.25] * 4, bounds=[(1e-6, 1)] * 4,
                      constraints=[{"type": "eq", "fun": lambda w: w.sum() - 1}])  # fmt: skip
    assert found.basis == "law"
    assert truth(found.mixture.weights) - oracle.fun < 0.003
    assert truth(found.mixture.weights) < truth(found.prior) - 0.05
    assert found.p_better == pytest.approx(1, abs=0.05)
    assert found.predicted.lo95 < found.predicted.lo80 < found.predicted.loss < found.predicted.hi80


def test_caps_bind_and_have_a_price(fit):
    found = propose(fit, DOMAINS, ProposeSettings(target="loss", tokens=1000, epoch_cap=2))
    assert found.mixture.weights["books"] == pytest.approx(0.2)
    assert found.bounds["books"] == "cap"
    assert found.epochs["books"] == pytest.approx(2)
    assert found.prices.cap["books"] < 0
    assert max(found.epochs.values()) <= 2 + 1e-3


def test_a_price_predicts_what_more_tokens_bring(fit):
    tokens = 10**12
    held = {name: count * 10**9 for name, count in DOMAINS.unique_tokens.items()}
    asked = ProposeSettings(target="loss", tokens=tokens, epoch_cap=2, resamples=0)
    before = propose(fit, Domains.of(held), asked)
    after = propose(fit, Domains.of(held | {"books": 101 * 10**9}), asked)
    gained = after.predicted.loss - before.predicted.loss
    assert gained == pytest.approx(before.prices.cap["books"], rel=0.02)


def test_a_budget_that_just_fits_proposes_the_proportional_mixture(fit):
    found = propose(fit, DOMAINS, ProposeSettings(target="loss", tokens=1000, epoch_cap=1))
    assert found.mixture.weights == {"books": 0.1, "code": 0.25, "math": 0.05, "web": 0.6}
    assert found.basis == "prior"


def test_an_impossible_budget_is_explained(fit):
    with pytest.raises(DataError, match="needs 1K more tokens"):
        propose(fit, DOMAINS, ProposeSettings(tokens=2000, epoch_cap=1))


def test_noise_leaves_the_prior_standing(fit):
    found = propose(fit, DOMAINS, ProposeSettings(target="noise"))
    assert (found.basis, found.mixture.weights) == ("prior", found.prior)
    assert "prior stands" in found.reason
    assert found.p_better is None


def test_an_optimum_that_is_not_told_from_the_prior_leaves_the_prior_standing():
    ratios = design_swarm(DOMAINS, 32)
    near = Domains.of({"web": 300, "code": 250, "books": 250, "math": 200})  # its prior is already close to the optimum
    fit = fit_laws(ratios, losses(ratios, noise=0.1).select(["loss"]), QUICK)
    found = propose(fit, near, ProposeSettings(target="loss", confidence=0.99))
    assert (found.basis, found.evidence) == ("prior", "not distinguishable from proportional")
    assert found.reason.startswith("not distinguishable from proportional: a gain of")
    assert found.mixture.weights == found.prior != found.optimum
    assert (found.p_better or 1) < 0.99
    assert found.summary()["evidence"] == found.evidence
    anyway = propose(fit, near, ProposeSettings(target="loss", confidence=0))
    assert (anyway.basis, anyway.mixture.weights) == ("law", found.optimum)


def test_groups_and_licences_hold(fit):
    domains = Domains(domains=tuple(
        domain.model_copy(update={"licence": "nc" if domain.name == "books" else None}) for domain in DOMAINS.domains
    ))  # fmt: skip
    asked = ProposeSettings(target="loss", groups={"[cm]*": (0.0, 0.2)}, licences={"nc": 0.3}, resamples=2)
    found = propose(fit, domains, asked)
    weights = found.mixture.weights
    assert weights["books"] == pytest.approx(0.3, abs=2e-6)
    assert weights["code"] + weights["math"] <= 0.2 + 2e-6
    assert found.bounds == {"group '[cm]*'": "most", "licence 'nc'": "most"}
    assert set(found.prices.group) == set(found.bounds)
    assert max(found.prices.group.values()) < 0


def test_the_standings_name_the_best_and_their_chances_sum_to_one(fit):
    found = propose(fit, DOMAINS, ProposeSettings(target="loss", tokens=1000, epoch_cap=4))
    assert set(found.standings) >= {"optimum", "prior", "uniform", "unimax"}
    assert sum(each.p_best for each in found.standings.values()) == pytest.approx(1)
    regret = {name: each.expected_regret for name, each in found.standings.items()}
    assert min(regret, key=regret.__getitem__) == "optimum"
    assert regret["optimum"] < 0.1 * regret["prior"]
    assert all(low <= high for low, high in found.intervals.values())
    assert 0 < (found.smallest_told or 0) < 0.2


def test_a_simple_mixture_that_is_predicted_better_is_named():
    weights_PD = np.random.default_rng(0).dirichlet([60, 25, 10, 5], 24)  # none of them near uniform
    ratios = Ratios(tuple(f"r{n:02d}" for n in range(24)), DOMAINS.names, weights_PD)
    narrow = fit_laws(ratios, losses(ratios, noise=0.0001), QUICK)
    told = propose(narrow, DOMAINS, ProposeSettings(target="loss", resamples=4, confidence=0))
    assert told.standings["uniform"].predicted < told.standings["optimum"].predicted
    assert "uniform, outside of what was searched, is predicted" in told.reason


def test_the_table_of_caps_is_monotone_and_says_what_is_missing(fit, tmp_path):
    found = propose(fit, DOMAINS, ProposeSettings(target="loss", tokens=1000, epoch_cap=4, resamples=0))
    found.write(tmp_path)
    rows = {(row.tokens, row.epoch_cap): row for row in found.caps}
    losses_ = [rows[1000, cap].loss for cap in (None, 4, 2, 1)]
    assert losses_ == sorted(losses_)
    assert rows[1000, 1].loss == pytest.approx(found.prior_predicted.loss, abs=1e-6)
    assert "needs 1K more tokens" in (rows[2000, 1].infeasible or "")
    assert (tmp_path / "caps.csv").read_text().splitlines()[0] == "tokens,epoch_cap,loss,more,held,largest,infeasible"
    assert len((tmp_path / "caps.csv").read_text().splitlines()) == 8


@pytest.mark.parametrize("risk", ["lcb", "cvar"])
def test_a_risk_measure_bounds_the_prediction_and_stays_close(fit, risk):
    plain = propose(fit, DOMAINS, ProposeSettings(target="loss", kl=0, resamples=8))
    feared = propose(fit, DOMAINS, ProposeSettings(target="loss", kl=0, resamples=8, risk=risk, level=0.9))
    assert feared.basis == "law"
    assert feared.predicted.loss >= plain.predicted.loss - 1e-6
    assert risk in feared.reason
    with pytest.raises(RecipeError, match="taken over resamples"):
        propose(fit, DOMAINS, ProposeSettings(risk=risk, resamples=0))


def test_floors_and_pull_are_kept(fit):
    floored = propose(fit, DOMAINS, ProposeSettings(target="loss", floor={"code": 0.3}))
    assert floored.mixture.weights["code"] == pytest.approx(0.3)
    assert floored.bounds == {"code": "floor"}
    pulled = propose(fit, DOMAINS, ProposeSettings(target="loss", kl=100.0))
    assert pulled.mixture.weights == pytest.approx(pulled.prior, abs=0.01)


def test_the_order_of_the_domains_file_does_not_matter(fit):
    turned = Domains(domains=DOMAINS.domains[::-1])
    asked = ProposeSettings(target="loss", tokens=1000, epoch_cap=2)
    assert propose(fit, turned, asked) == propose(fit, DOMAINS, asked)


def test_other_domains_are_refused(fit):
    with pytest.raises(DataError, match="missing 'web'"):
        propose(fit, Domains.of({"code": 1, "books": 1, "math": 1}))


def test_trees_are_searched_and_stay_inside_the_caps():
    ratios = design_swarm(DOMAINS, 64, DesignSettings(kind="regmix"))
    fit = fit_laws(ratios, losses(ratios).select(["loss"]), FitSettings(laws=("trees",), folds=5))
    asked = ProposeSettings(target="loss", tokens=1000, epoch_cap=3, resamples=2, confidence=0)
    found = propose(fit, DOMAINS, asked)
    assert fit.chosen == "trees"
    assert max(found.epochs.values()) <= 3 + 1e-3
    assert truth(found.mixture.weights) < truth(found.prior)


def test_the_verbs_end_to_end_and_again_give_the_same_bytes(tmp_path):
    DOMAINS.write(tmp_path / "domains.yaml")
    runs = []
    for turn in ("one", "two"):
        work = tmp_path / turn
        mix_design(tmp_path / "domains.yaml", 12, work / "design", DesignSettings())
        ratios = design_swarm(DOMAINS, 12, DesignSettings())
        losses(ratios).write_csv(work / "metrics.csv")
        outcome = mix_fit([work / "design" / "ratios.csv"], [work / "metrics.csv"], (), work / "fit", QUICK)
        ratios.write_csv(work / "new.csv")
        mix_predict(work / "fit", work / "new.csv", work / "predictions")
        asked = ProposeSettings(target="loss", tokens=1000, epoch_cap=4)
        mix_propose(work / "fit", tmp_path / "domains.yaml", work / "proposal", asked)
        runs.append({path.relative_to(work): path.read_bytes() for path in sorted(work.rglob("*")) if path.is_file()})
        assert outcome.metrics["runs"] == 12
    assert runs[0] == runs[1]
    mixture = Mixture.read(tmp_path / "one" / "proposal" / "mixture.yaml")
    saved = json.loads((tmp_path / "one" / "proposal" / "proposal.json").read_text())
    assert saved["weights"] == mixture.weights
    assert set(saved) >= {"predicted", "prior_predicted", "best_observed", "epochs", "bounds", "p_better", "provenance"}


def test_a_cap_without_a_budget_is_refused(tmp_path):
    with pytest.raises(DataError, match="needs a token budget"):
        mix_propose(tmp_path, tmp_path, tmp_path, ProposeSettings(epoch_cap=4))


@pytest.mark.slow
def test_regmixs_method_on_its_swarm_ends_near_its_published_mixture(published):
    """Trees on 512 runs of 1M, the mean of the best 128 of 100,000 draws; RegMix's tables do not name its prior."""
    ratios = Ratios.read_csv(published / "regmix" / "train_mixture_1m.csv")
    metrics = Metrics.read_csv(published / "regmix" / "train_pile_loss_1m.csv").select([PILE_CC])
    fit = fit_laws(ratios, metrics, FitSettings(laws=("trees",), folds=3))
    held = zip(ratios.domains, ratios.weights_PD.mean(axis=0).tolist(), strict=True)
    domains = Domains.of({name: int(share * 250e9) for name, share in held})
    found = propose(fit, domains, ProposeSettings(support="draws", kl=0, resamples=0))
    theirs = YAML(typ="safe", pure=True).load((published / "regmix" / "regmix.yaml").read_text())["train"]
    apart = {name: abs(found.optimum[name] - weight) for name, weight in theirs.items()}
    assert apart["train_the_pile_pile_cc"] < 0.03
    assert sum(apart.values()) < 0.1
