import json

import numpy as np
import pytest
from scipy.optimize import minimize

from mixtures.design import DesignSettings, design_swarm
from mixtures.fitting import fit_laws
from mixtures.mixture import Domains, Mixture
from mixtures.propose import ProposeSettings, propose
from mixtures.tables import Metrics
from mixtures.validation import FitSettings
from mixtures.verbs import mix_design, mix_fit, mix_predict, mix_propose
from pipelines.errors import DataError

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
    assert found.price["books"] < 0
    assert max(found.epochs.values()) <= 2 + 1e-3


def test_a_price_predicts_what_more_tokens_bring(fit):
    tokens = 10**12
    held = {name: count * 10**9 for name, count in DOMAINS.unique_tokens.items()}
    asked = ProposeSettings(target="loss", tokens=tokens, epoch_cap=2, resamples=0)
    before = propose(fit, Domains.of(held), asked)
    after = propose(fit, Domains.of(held | {"books": 101 * 10**9}), asked)
    gained = after.predicted.loss - before.predicted.loss
    assert gained == pytest.approx(before.price["books"], rel=0.1)


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
    ratios = design_swarm(DOMAINS, 80, DesignSettings(kind="regmix"))
    fit = fit_laws(ratios, losses(ratios).select(["loss"]), FitSettings(laws=("trees",)))
    found = propose(fit, DOMAINS, ProposeSettings(target="loss", tokens=1000, epoch_cap=3, resamples=2))
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
        outcome = mix_fit(work / "design" / "ratios.csv", work / "metrics.csv", work / "fit", QUICK)
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
