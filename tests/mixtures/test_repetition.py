import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixtures.fitting import fit_laws, load_fit
from mixtures.repetition import Discount, RepeatedLaw, Repetition
from mixtures.tables import Metrics, Ratios
from mixtures.validation import FitSettings
from pipelines.errors import DataError

DOMAINS = ("web", "code", "books")


def test_worth_by_hand():
    discount = Discount(np.array([0.1, 0.1, 0.1]))
    # one epoch, two epochs: U (1 + 15 (1 - e^(-1/15))), and without end: U (1 + 15)
    worth = discount.worth(np.array([0.1, 0.2, 1e9]))
    assert worth == pytest.approx([0.1, 0.1 * (1 + 15 * (1 - np.exp(-1 / 15))), 1.6])
    assert worth[1] == pytest.approx(0.19674, abs=1e-5)


def test_four_epochs_are_nearly_as_good_as_new_data():
    """Muennighoff et al.: up to four epochs the loss is hardly different from that of unique data."""
    assert Discount(np.array([0.1])).worth(np.array([0.4]))[0] == pytest.approx(0.4, rel=0.10)


@given(st.floats(0.001, 0.5), st.floats(0, 1))
def test_the_slope_is_the_derivative_and_worth_never_exceeds_the_weight(once, weight):
    discount = Discount(np.array([once]))
    assert discount.worth(np.array([weight]))[0] <= weight
    step = 1e-7
    change = (discount.worth(np.array([weight + step])) - discount.worth(np.array([weight])))[0] / step
    assert discount.slope(np.array([weight]))[0] == pytest.approx(change, abs=1e-3)


def swarm(runs=30, seed=0, once=(1.0, 0.1, 0.05)):
    random = np.random.default_rng(seed)
    weights_PD = random.dirichlet([1.0] * 3, runs)
    worth_PD = Discount(np.array(once), half_life=3.0).worth(weights_PD)
    values_PM = (2 + (0.1 + np.sqrt(worth_PD) @ [1.0, 0.7, 0.5]) ** -0.7)[:, None] + random.normal(0, 1e-3, (runs, 1))
    ids = tuple(f"r{number:03d}" for number in range(runs))
    return Ratios(ids, DOMAINS, weights_PD), Metrics(ids, ("loss",), values_PM)


KNOWN = Repetition(tokens=1000, unique_tokens={"web": 1000, "code": 100, "books": 50}, half_life=3.0)


def test_nothing_repeated_is_the_same_law_bit_for_bit():
    ratios, metrics = swarm()
    plenty = Repetition(tokens=1000, unique_tokens=dict.fromkeys(DOMAINS, 5000))
    settings = FitSettings(laws=("concave",), folds=5)
    plain = fit_laws(ratios, metrics, settings)
    repeated = fit_laws(ratios, metrics, settings.model_copy(update={"repetition": plenty}))
    assert np.array_equal(plain.predict(ratios).values_PM, repeated.predict(ratios).values_PM)
    assert np.array_equal(plain.law.gradient(ratios.weights_PD[0]), repeated.law.gradient(ratios.weights_PD[0]))


def test_repeated_swarms_are_predicted_better_when_the_law_knows(tmp_path):
    ratios, metrics = swarm()
    settings = FitSettings(laws=("concave",), folds=5)
    knowing = fit_laws(ratios, metrics, settings.model_copy(update={"repetition": KNOWN}))
    fresh, exact = swarm(200, seed=1)

    def error(fit):
        return np.sqrt(np.mean((fit.predict(fresh).values_PM - exact.values_PM) ** 2))

    assert error(knowing) < 0.6 * error(fit_laws(ratios, metrics, settings))
    knowing.write(tmp_path)
    again = load_fit(tmp_path)
    assert np.array_equal(again.predict(fresh).values_PM, knowing.predict(fresh).values_PM)
    [refitted] = again.refit(np.ones((1, 30)))
    assert refitted.predict(fresh.weights_PD) == pytest.approx(knowing.law.predict(fresh.weights_PD), abs=1e-2)


def test_gradient_through_the_discount():
    ratios, metrics = swarm()
    fit = fit_laws(ratios, metrics, FitSettings(laws=("concave",), folds=5, repetition=KNOWN))
    at_D = np.array([0.3, 0.4, 0.3])
    for d in range(3):
        step_D = 1e-6 * np.eye(3)[d]
        change = (fit.law.predict((at_D + step_D)[None]) - fit.law.predict((at_D - step_D)[None]))[0] / 2e-6
        assert fit.law.gradient(at_D)[:, d] == pytest.approx(change, rel=1e-4, abs=1e-8)


def test_a_longer_horizon_makes_a_scarce_domain_worth_less():
    ratios, metrics = swarm(once=(1.0, 1.0, 1.0))
    fit = fit_laws(ratios, metrics, FitSettings(laws=("concave",), folds=5))
    scarce = Repetition(tokens=10**6, unique_tokens={"web": 10**6, "code": 1000, "books": 10**6})
    far = fit.at_horizon(scarce)
    assert isinstance(far.law, RepeatedLaw)
    mixture = Ratios.of({"x": {"web": 0.2, "code": 0.6, "books": 0.2}})
    assert far.predict(mixture).values_PM[0, 0] > fit.predict(mixture).values_PM[0, 0]
    spared = Ratios.of({"x": {"web": 0.8, "code": 0.0, "books": 0.2}})
    assert far.predict(spared).values_PM == pytest.approx(fit.predict(spared).values_PM)


def test_domains_are_matched_by_name():
    ratios, metrics = swarm(once=(1.0, 1.0, 1.0))
    wrong = Repetition(tokens=1000, unique_tokens={"web": 10, "code": 10, "poems": 10})
    with pytest.raises(DataError, match="poems"):
        fit_laws(ratios, metrics, FitSettings(laws=("concave",), repetition=wrong))


def test_settings_that_would_divide_by_nothing_or_try_nothing_are_refused():
    for wrong in ({"tokens": 0, "unique_tokens": {"web": 1}}, {"tokens": 1, "unique_tokens": {"web": 0}}):
        with pytest.raises(ValueError, match="greater than 0"):
            Repetition.model_validate(wrong)
    for laws in ((), ("stack",)):
        with pytest.raises(ValueError, match="stack only combines others"):
            FitSettings(laws=laws)
