"""Joint laws: derivatives, recovery of known truths, and honest errors on a scale above all that was fitted."""

import math
from dataclasses import replace

import numpy as np
import pytest

from mixtures.joint import KINDS, JointForm, fit_joint
from mixtures.joint_fit import fit_joint_model, fits_jointly, stacked, thinned
from mixtures.ladder import fit_runs
from mixtures.ladder_files import load_ladder, report, write_ladder
from mixtures.mixture import Domains
from mixtures.propose import ProposeSettings, propose
from mixtures.runs import Runs, split
from mixtures.scale import Scale
from mixtures.tables import Metrics, Ratios
from mixtures.validation import FitSettings
from pipelines.errors import DataError

QUICK = FitSettings(laws=("effective_data",))
SIZES, TOKENS = (122e6, 310e6, 680e6, 1235e6), (5e9, 10e9, 20e9)
DOMAINS = ("books", "code", "math", "news", "web")
NAMES = ("programs", "prose", "talk")


def truth(kind, weights_PD, size_P, tokens_P):
    """Losses (P, 3) of a law of which all terms are known."""
    random = np.random.default_rng(5)
    worth_MD = np.exp(random.normal(-0.3, 1.2, (3, 5)))
    bend_MD = random.uniform(0.3, 0.8, (3, 5))
    by_size_MD, by_tokens_MD = np.exp(random.normal(0, 0.5, (2, 3, 5)))
    size_P1, tokens_P1 = np.exp(size_P)[:, None], np.exp(tokens_P)[:, None]
    floor_M = np.array([0.9, 1.6, 1.3])
    powers_PMD = weights_PD[:, None, :] ** bend_MD
    if kind == "joint_effective":
        data_PM = 1 + 20 * (weights_PD @ worth_MD.T) * (tokens_P1 / 5e9) ** 0.5 * (size_P1 / 122e6) ** 0.2
        return floor_M + 80 / size_P1**0.27 + data_PM**-0.5
    mixture_PM = 0.35 / (worth_MD * powers_PMD).sum(axis=2)
    up_PM, along_PM = (weights_PD @ by_size_MD.T) ** 0.8, (weights_PD @ by_tokens_MD.T) ** 0.6
    if kind == "joint_additive":
        up_PM, along_PM = np.ones_like(up_PM), np.ones_like(along_PM)
    return floor_M + mixture_PM + 60 * up_PM / size_P1**0.25 + 150 * along_PM / tokens_P1**0.28


def family(kind, sizes=SIZES, noise=0.002, mixtures=16, seed=0):
    random = np.random.default_rng(seed)
    drawn_PD = random.dirichlet(np.ones(5), mixtures)
    rows = [(w, n, d) for n in sizes for d in TOKENS for w in range(mixtures)]
    weights_PD = drawn_PD[[w for w, _, _ in rows]]
    size_P, tokens_P = (np.log([row[place] for row in rows]) for place in (1, 2))
    values_PM = truth(kind, weights_PD, size_P, tokens_P)
    values_PM = values_PM * np.exp(random.normal(0, noise, values_PM.shape)) if noise else values_PM
    return weights_PD, size_P, tokens_P, values_PM


def runs_of(kind, sizes, **more):
    weights_PD, size_P, tokens_P, values_PM = family(kind, sizes, **more)
    ids = tuple(f"r{row:04d}" for row in range(len(size_P)))
    scales = [Scale(round(math.exp(n)), round(math.exp(d))) for n, d in zip(size_P, tokens_P, strict=True)]
    return split(Ratios(ids, DOMAINS, weights_PD), Metrics(ids, NAMES, values_PM), scales)


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_by_parameters_and_weights(kind):
    random = np.random.default_rng(0)
    weights_PD = random.dirichlet(np.ones(4), 5)
    weights_PD[0] = [0, 0.5, 0.5, 0]
    size_P, tokens_P = random.uniform(0, 3, (2, 5))
    form = JointForm(weights_PD, size_P, tokens_P, kind)
    theta_BK = form.prior_K + random.normal(0, 0.2, (2, len(form.prior_K)))
    steps = 1e-6 * np.eye(theta_BK.shape[1])
    slope_BPK = np.stack([(form.values(theta_BK + step) - form.values(theta_BK - step)) / 2e-6 for step in steps], 2)
    assert form.jacobian(theta_BK)[1] == pytest.approx(slope_BPK * form.free_K, abs=1e-8)

    def at(weights_D):
        return JointForm(weights_D[None], size_P[1:2], tokens_P[1:2], kind).values(theta_BK)[:, 0]

    one_D = weights_PD[1]
    slope_BD = np.stack([(at(one_D + step) - at(one_D - step)) / 2e-6 for step in 1e-6 * np.eye(4)], 1)
    found_BD = JointForm(one_D[None], size_P[1:2], tokens_P[1:2], kind).slope(theta_BK)
    assert found_BD == pytest.approx(slope_BD, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_largest_scale_is_predicted_to_half_a_percent(kind):
    weights_PD, size_P, tokens_P, values_PM = family(kind)
    top_P = size_P > math.log(1e9)
    counts_BP = np.tile((~top_P).astype(float), (3, 1))
    law = fit_joint(kind, weights_PD, size_P, tokens_P, values_PM.T, counts_BP)[0.1]
    exact_PM = truth(kind, weights_PD[top_P], size_P[top_P], tokens_P[top_P])
    predicted_PM = law.losses(weights_PD[top_P], size_P[top_P], tokens_P[top_P])
    assert np.abs(predicted_PM / exact_PM - 1).mean() < 0.005


def test_held_out_runs_do_not_touch_the_fit():
    weights_PD, size_P, tokens_P, values_PM = family("joint_additive")
    counts_BP = np.tile((size_P < math.log(1e9)).astype(float), (3, 1))
    other_PM = np.where(size_P[:, None] < math.log(1e9), values_PM, 99.0)
    one, two = (fit_joint("joint_additive", weights_PD, size_P, tokens_P, each.T, counts_BP, (0.1,))[0.1]
                for each in (values_PM, other_PM))  # fmt: skip
    assert np.array_equal(one.theta_BK, two.theta_BK)


def test_powers_of_size_and_tokens_are_recovered_without_noise():
    weights_PD, size_P, tokens_P, values_PM = family("joint_additive", noise=0)
    law = fit_joint("joint_additive", weights_PD, size_P, tokens_P, values_PM.T, np.ones_like(values_PM.T))[0.01]
    assert np.exp(law.theta_BK[:, 2]) == pytest.approx([0.25] * 3, abs=0.05)
    assert np.exp(law.theta_BK[:, 4]) == pytest.approx([0.28] * 3, abs=0.05)


def test_the_kind_that_extrapolates_is_chosen_and_its_intervals_hold():
    model = fit_joint_model(runs_of("joint_full", SIZES[:3]))
    assert model.law.kind == "joint_full"
    assert model.errors["joint_full"] < 0.5 * model.errors["joint_additive"]
    for part in runs_of("joint_full", SIZES[3:], seed=1):
        prediction = model.at(part.scale, QUICK).predict(part.ratios)
        error_PM = np.abs(prediction.values_PM / part.metrics.values_PM - 1)
        assert error_PM.mean() < 0.0075  # of mixtures that are new, too
        assert (error_PM * part.metrics.values_PM <= prediction.half_PM[0.95]).mean() > 0.85


def test_three_scales_are_fitted_jointly_and_two_are_not():
    many = runs_of("joint_additive", SIZES[:3])
    assert fits_jointly(many)
    assert not fits_jointly(many[:2])
    assert not fits_jointly([*many, *runs_of("joint_additive", SIZES[3:], mixtures=4)])  # too few to judge by
    assert not fits_jointly([Runs(each.ratios, Metrics(each.metrics.ids, NAMES, -each.metrics.values_PM), each.scale)
                             for each in many])  # fmt: skip


@pytest.fixture(scope="module")
def ladder():
    return fit_runs(runs_of("joint_full", SIZES[:3]), QUICK)


def test_the_better_of_joint_and_carried_laws_is_used(ladder):
    assert set(ladder.errors) == {"joint", "cross_scale"}
    assert ladder.errors["joint"] < ladder.errors["cross_scale"]
    assert report(ladder)["chosen"] == "joint_full"
    assert [row["scale"] for row in report(ladder)["scales"]] == ["122M/20B", "310M/20B", "680M/20B"]


def test_where_a_law_was_fitted_it_stays_unless_the_joint_law_is_better_there():
    found = fit_runs(runs_of("joint_full", SIZES[:3], mixtures=40, noise=0.01), QUICK)
    top, beyond = Scale.parse("680M/20B"), Scale.parse("1.235B/20B")
    own = found.rungs[-1].fit
    assert own is not None
    error = np.abs(own.held_out_PM / own.metrics.values_PM - 1).mean()
    assert (found.at(top).law.family in KINDS) == (found.errors["joint"] < error)
    assert (found.at(beyond).law.family in KINDS) == (found.errors["joint"] < found.errors["cross_scale"])


def test_tokens_out_of_line_are_known_to_the_joint_law_alone(ladder):
    carried = replace(ladder, errors={"joint": 1.0, "cross_scale": 0.0})
    assert carried.at(Scale.parse("1.235B/20B")).law.family == "cross_scale"
    early = carried.at(Scale.parse("1.235B/5B"))
    assert early.law.family == "joint_full"
    (new,) = (each for each in runs_of("joint_full", SIZES[3:], seed=1) if each.scale.tokens == 5e9)
    assert np.abs(early.predict(new.ratios).values_PM / new.metrics.values_PM - 1).mean() < 0.0075


def test_a_very_large_table_is_thinned_rather_than_left():
    many = runs_of("joint_additive", SIZES[:3], mixtures=8)
    assert len(thinned(many)) == 9
    wide = [Runs(each.ratios, Metrics(each.metrics.ids, tuple(f"m{i}" for i in range(240)),
                                      np.repeat(each.metrics.values_PM, 80, axis=1)), each.scale)
            for each in many]  # fmt: skip
    assert {each.scale.tokens for each in thinned(wide)} == {5e9, 20e9}
    assert fits_jointly(wide)


def test_saved_and_loaded_it_predicts_the_same(ladder, tmp_path):
    write_ladder(ladder, tmp_path)
    again, ratios = load_ladder(tmp_path), ladder.rungs[0].runs.ratios
    for scale in (None, Scale.parse("7B/100B")):
        one, two = (each.at(scale).predict(ratios) for each in (ladder, again))
        assert np.array_equal(one.values_PM, two.values_PM)
        assert np.array_equal(one.half_PM[0.8], two.half_PM[0.8])
    assert report(again) == report(ladder)


def test_a_proposal_from_a_joint_law(ladder):
    found = propose(ladder.at(Scale.parse("1.235B/20B")), Domains.of(dict.fromkeys(DOMAINS, 10**12)),
                    ProposeSettings(resamples=4))  # fmt: skip
    weights_1D = np.array([[found.mixture.weights[name] for name in DOMAINS]])
    at = (np.log([1235e6]), np.log([20e9]))
    better = truth("joint_full", np.full((1, 5), 0.2), *at).mean() - truth("joint_full", weights_1D, *at).mean()
    assert better > 0
    assert found.law == "joint_full"


def test_a_law_that_knows_tokens_needs_them(ladder):
    with pytest.raises(DataError, match="the law knows tokens; write 7B/25B"):
        ladder.at(Scale.parse("7B"))


def test_scales_without_tokens_are_laws_of_size_alone():
    whole = runs_of("joint_additive", SIZES)
    alone = [Runs(each.ratios, each.metrics, Scale(each.scale.params)) for each in whole
             if each.scale.tokens == 20e9]  # fmt: skip
    assert np.ptp(stacked(alone).tokens_P) == 0
    model = fit_joint_model(alone[:3])
    prediction = model.at(alone[3].scale, QUICK).predict(alone[3].ratios)
    assert np.abs(prediction.values_PM / alone[3].metrics.values_PM - 1).mean() < 0.02


def test_order_of_rows_and_columns_changes_nothing():
    weights_PD, size_P, tokens_P, values_PM = family("joint_full", SIZES[:3], mixtures=5)
    ids = tuple(f"r{row:04d}" for row in range(len(size_P)))
    scales = [Scale(round(math.exp(n)), round(math.exp(d))) for n, d in zip(size_P, tokens_P, strict=True)]
    order = np.random.default_rng(3).permutation(len(ids))
    turned = split(
        Ratios(tuple(ids[row] for row in order), DOMAINS[::-1], weights_PD[order][:, ::-1]),
        Metrics(tuple(ids[row] for row in order), NAMES, values_PM[order]),
        [scales[row] for row in order],
    )
    one = fit_joint_model(split(Ratios(ids, DOMAINS, weights_PD), Metrics(ids, NAMES, values_PM), scales))
    assert np.array_equal(one.law.theta_BK, fit_joint_model(turned).law.theta_BK)
