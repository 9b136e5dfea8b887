"""Three scales of a known family: shapes that agree, levels and spreads that fall as powers of N."""

import math

import numpy as np
import pytest

from mixtures.cross_scale import Place, calibrated, carried, floor_share, shares
from mixtures.ladder import fit_runs, unseen
from mixtures.ladder_files import load_ladder, predict_rows, report, write_ladder
from mixtures.mixture import Domains
from mixtures.propose import ProposeSettings, propose
from mixtures.runs import Runs
from mixtures.scale import Scale
from mixtures.scores import spearman
from mixtures.tables import Metrics, Ratios
from mixtures.validation import FitSettings
from pipelines.errors import DataError

QUICK = FitSettings(laws=("effective_data", "concave"))
DOMAINS = ("books", "code", "math", "web")
NAMES = ("prose", "programs", "proofs", "talk")
WORTH_DM = np.array([[0.6, 0.1, 0.2, 0.3], [0.1, 1.0, 0.5, 0.02], [0.02, 0.4, 1.0, 0.02], [1.0, 0.1, 0.1, 1.0]])
FALL_M = np.array([0.05, 0.30, 0.20, 0.02])  # by which power of N each spread shrinks
SMALL, MIDDLE, LARGE = (Scale.parse(text) for text in ("1M/1B", "60M/1B", "1B/25B"))


def truth(weights_PD, scale):
    """Shapes that all scales share, a level with a floor, spreads with rates of their own."""
    shape_PM = (0.1 + np.sqrt(weights_PD) @ WORTH_DM) ** -0.8
    size = scale.params / 1e6
    return 1.7 + 3.0 * size**-0.2 + shape_PM * size**-FALL_M


def runs(count, scale, seed, noise=0.01):
    random = np.random.default_rng(seed)
    weights_PD = random.dirichlet([0.7] * 4, count)
    ratios = Ratios(tuple(f"{scale}-{row:03d}" for row in range(count)), DOMAINS, weights_PD)
    values_PM = truth(weights_PD, scale) + random.normal(0, noise, (count, 4))
    return Runs.of(ratios, Metrics(ratios.ids, NAMES, values_PM), scale)


def rank_of_mean(fit, later):
    measured_PM = later.metrics.select(fit.metrics.names).values_PM
    return spearman(fit.predict(later.ratios).values_PM.mean(axis=1), measured_PM.mean(axis=1))


@pytest.fixture(scope="module")
def later():
    return runs(100, LARGE, 9, noise=0)


@pytest.fixture(scope="module")
def ladder():
    return fit_runs([runs(80, SMALL, 1), runs(40, MIDDLE, 2)], QUICK)


def test_spreads_carried_in_log_n_rank_the_mean_better_than_either_scale(ladder, later):
    carried_up, middle = ladder.at(LARGE), ladder.at(MIDDLE)
    small = fit_runs([runs(80, SMALL, 1)], QUICK).at(LARGE)
    assert rank_of_mean(small, later) < rank_of_mean(middle, later) < rank_of_mean(carried_up, later)
    assert rank_of_mean(carried_up, later) > 0.98
    expected_M = truth(ladder.rungs[0].runs.ratios.weights_PD, LARGE).std(axis=0)
    found = carried_up.report()["extrapolation"]["spread"]
    assert [found[name] for name in NAMES] == pytest.approx(expected_M, rel=0.15)


def test_the_level_is_carried_too_and_its_doubt_is_in_the_interval(ladder, later):
    fit = ladder.at(LARGE)
    prediction = fit.predict(later.ratios)
    error_PM = prediction.values_PM - later.metrics.select(prediction.names).values_PM
    assert np.abs(error_PM).mean() < 0.25  # the level itself falls by 1.5 from the small to the middle scale
    assert (np.abs(error_PM) <= prediction.half_PM[0.95]).mean() > 0.95


def test_intervals_are_never_narrower_than_where_the_law_was_fitted(ladder):
    weights_PD, one_M = ladder.rungs[1].runs.ratios.weights_PD, np.eye(4)[0]
    middle, large = ladder.at(MIDDLE), ladder.at(LARGE)
    far = ladder.at(Scale.parse("100B"))
    for level in (0.8, 0.95):
        widths = [fit.half_widths(weights_PD, one_M, level) for fit in (middle, large, far)]
        assert (widths[0] < widths[1]).all()
        assert (widths[1] < widths[2]).all()
        assert (large.contrast_widths(weights_PD, one_M, level) < widths[1]).all()


def test_scales_that_share_their_mixtures_do_not_see_what_they_predict():
    random = np.random.default_rng(4)
    drawn_PD = random.dirichlet([0.7] * 4, 104)
    found = []
    for scale in (SMALL, MIDDLE):
        ratios = Ratios(tuple(f"{scale}-{row:03d}" for row in range(24)), DOMAINS, drawn_PD[:24])
        values_PM = truth(ratios.weights_PD, scale) + random.normal(0, 0.02, (24, 4))
        found.append(Runs.of(ratios, Metrics(ratios.ids, NAMES, values_PM), scale))
    ladder = fit_runs(found, QUICK)
    small = ladder.rungs[0].fit
    assert np.array_equal(unseen(small, small.ratios.weights_PD), small.held_out_PM)
    assert np.array_equal(unseen(small, drawn_PD[24:]), small.law.predict(drawn_PD[24:]))
    new = Ratios(tuple(map(str, range(80))), DOMAINS, drawn_PD[24:])
    prediction = ladder.at(MIDDLE).predict(new)
    measured_PM = truth(new.weights_PD, MIDDLE) + random.normal(0, 0.02, (80, 4))
    order = [NAMES.index(name) for name in prediction.names]
    error_PM = np.abs(prediction.values_PM - measured_PM[:, order])
    assert (error_PM <= prediction.half_PM[0.8]).mean() > 0.72  # 0.60 where laws of other scales had seen the mixtures


@pytest.mark.parametrize(
    ("scale", "trust"),
    [("60M/1B", "fitted"), ("10M", "interpolated"), ("1B/25B", "extrapolated"), ("900B", "far"), ("1K", "far")],
)
def test_trust(ladder, scale, trust):
    fit = ladder.at(Scale.parse(scale))
    assert fit.report()["extrapolation"]["trust"] == trust
    assert (fit.target_place.spread_M > 0).all()
    assert np.isfinite(fit.predict(ladder.rungs[0].runs.ratios).values_PM).all()


def test_levels_fall_with_the_scale(ladder):
    levels = [ladder.at(Scale(10**power)).target_place.level_M for power in range(5, 13)]
    assert (np.diff(np.array(levels), axis=0) < 0).all()
    assert (np.array(levels) > 0).all()


# spreads fall to an eighth here: a single run says nothing of that
@pytest.mark.parametrize(("few", "error", "covered"), [(1, 0.25, 0.5), (2, 0.12, 0.7), (4, 0.12, 0.7), (8, 0.10, 0.8)])
def test_a_few_large_runs_calibrate_levels_and_spreads(few, error, covered, later):
    fit = fit_runs([runs(80, SMALL, 1), runs(few, LARGE, 3)], QUICK).at()
    prediction = fit.predict(later.ratios)
    error_PM = prediction.values_PM - later.metrics.select(prediction.names).values_PM
    assert np.abs(error_PM).mean() < error
    assert fit.report()["extrapolation"]["trust"] == "calibrated"
    assert (np.abs(error_PM) <= prediction.half_PM[0.95]).mean() > covered


def test_one_scale_alone_is_its_law_as_it_is(later):
    small = fit_runs([runs(30, SMALL, 1)], QUICK)
    assert small.at(LARGE) is small.at()
    assert small.at() is small.rungs[0].fit


def test_metrics_that_one_scale_lacks_are_left_and_named():
    large = runs(20, MIDDLE, 2).select(["programs", "prose"])
    found = fit_runs([runs(30, SMALL, 1), large], QUICK)
    assert found.at(LARGE).metrics.names == ("programs", "prose")
    assert report(found)["metrics_left"] == ["proofs", "talk"]


def test_names_decide_and_not_places():
    first, second = runs(30, SMALL, 1), runs(20, MIDDLE, 2)
    order = [2, 0, 3, 1]
    turned = Metrics(second.metrics.ids, tuple(NAMES[i] for i in order), second.metrics.values_PM[:, order])
    columns = Ratios(second.ratios.ids[::-1], DOMAINS[::-1], second.ratios.weights_PD[::-1, ::-1])
    one = fit_runs([first, second], QUICK).at(LARGE)
    two = fit_runs([first, Runs.of(columns, turned, MIDDLE)], QUICK).at(LARGE)
    assert np.array_equal(one.predict(first.ratios).values_PM, two.predict(first.ratios).values_PM)


def test_saved_and_loaded_it_predicts_the_same(ladder, later, tmp_path):
    write_ladder(ladder, tmp_path)
    again = load_ladder(tmp_path)
    for scale in (None, LARGE):
        one, two = (predict_rows(each, later.ratios, None, scale) for each in (ladder, again))
        assert np.array_equal(one.values_PM, two.values_PM)
        assert all(np.array_equal(one.half_PM[level], two.half_PM[level]) for level in one.half_PM)
    assert report(again) == report(ladder)


def test_rows_may_lie_at_scales_of_their_own(ladder, later):
    scales = [MIDDLE if row % 2 else LARGE for row in range(len(later.ratios.ids))]
    mixed = predict_rows(ladder, later.ratios, scales, None).values_PM
    middle, large = (predict_rows(ladder, later.ratios, None, scale).values_PM for scale in (MIDDLE, LARGE))
    assert np.array_equal(mixed[1::2], middle[1::2])
    assert np.array_equal(mixed[::2], large[::2])


def test_a_proposal_for_a_larger_scale(ladder):
    domains = Domains.of(dict.fromkeys(DOMAINS, 1000))
    found = propose(ladder.at(LARGE), domains, ProposeSettings(target="mean", resamples=8))
    assert found.basis == "law"
    best = truth(np.array([[found.mixture.weights[name] for name in DOMAINS]]), LARGE).mean()
    assert best < truth(np.full((1, 4), 0.25), LARGE).mean()
    assert found.p_better is not None
    assert found.p_better > 0.8


def test_the_gradient_is_the_slope_of_the_prediction(ladder):
    law, at_D = ladder.at(LARGE).law, np.array([0.3, 0.3, 0.2, 0.2])
    slope_MD = np.stack(
        [(law.predict(at_D[None] + step) - law.predict(at_D[None] - step))[0] / 2e-6 for step in 1e-6 * np.eye(4)], 1
    )
    assert law.gradient(at_D) == pytest.approx(slope_MD, rel=1e-5)
    assert np.array_equal(law.take([2, 0]).predict(at_D[None]), law.predict(at_D[None])[:, [2, 0]])


def place(at, level, spread):
    return Place(at, *(np.array([each], float) for each in (level, spread, 0.0, 0.0)))


def test_between_scales_and_beyond():
    two = [place(0, 4, 1), place(1, 3, 0.5)]
    assert carried(two, 0.5).spread_M == pytest.approx(math.sqrt(0.5))
    assert carried(two, 2).spread_M == pytest.approx(0.25)
    # above a floor of half the lowest level, 1.5: the excess 2.5, 1.5, then 0.9
    assert carried(two, 2).level_M == pytest.approx(2.4)
    assert carried(two, 2).error_M == pytest.approx(0.2)  # a third of the change
    assert carried(two, 50).spread_M == pytest.approx(0.5 / 4)  # by no more than a factor of four
    assert carried(two[:1], 9).level_M == carried(two, 0).level_M == 4


def test_a_level_that_may_be_negative_goes_on_in_a_line():
    assert carried([place(0, 1, 1), place(1, -1, 1)], 2).level_M == pytest.approx(-3)


def test_three_scales_show_the_floor():
    known = [0.0, 2.0, 4.0, 6.0]
    level_KM = np.array([[0.8 * 2 + 3 * math.exp(-0.6 * at), 0.8 * 2 + 2 * math.exp(-0.6 * at)] for at in known])
    assert floor_share(known, level_KM) == pytest.approx(0.8, abs=0.11)
    assert floor_share(known[:2], level_KM[:2]) == 0.5


def test_shares_go_to_the_shape_that_predicts():
    random = np.random.default_rng(0)
    right_PM = random.normal(size=(60, 3))
    wrong_PM = random.normal(size=(60, 3))
    assert shares(np.stack([wrong_PM, right_PM]), right_PM + 5) == pytest.approx([0, 1], abs=1e-9)
    noisy = np.stack([right_PM + random.normal(size=(60, 3)), right_PM + 0.5 * random.normal(size=(60, 3))])
    assert shares(noisy, right_PM) == pytest.approx([0.2, 0.8], abs=0.08)  # by the inverse of the variance


def test_calibration_shrinks_slopes_to_their_common_value():
    random = np.random.default_rng(0)
    expected = Place(0.0, np.zeros(20), np.ones(20), np.zeros(20), np.zeros(20))
    shape_PM = random.normal(size=(4, 20))
    measured_PM = 0.8 * shape_PM + 1 + random.normal(0, 0.1, (4, 20))
    found = calibrated(expected, shape_PM, measured_PM, 0.1)
    own_M = [np.polyfit(shape_PM[:, place], measured_PM[:, place], 1)[0] for place in range(20)]
    assert np.std(found.spread_M - 0.8) < 0.5 * np.std(np.array(own_M) - 0.8)
    assert found.spread_M.mean() == pytest.approx(0.8, abs=0.05)
    assert found.level_M == pytest.approx(np.ones(20), abs=0.3)


def test_one_run_moves_the_level_and_leaves_the_spread():
    expected = Place(0.0, np.zeros(2), np.ones(2), np.zeros(2), np.zeros(2))
    found = calibrated(expected, np.array([[1.0, -1.0]]), np.array([[3.0, 0.0]]), 0.1)
    assert found.level_M == pytest.approx([2, 1])
    assert found.spread_M == pytest.approx([1, 1])


def test_scales_that_differ_in_tokens_need_them(later):
    found = fit_runs([runs(20, Scale(10**6, 10**9), 1), runs(20, Scale(10**6, 10**10), 2)], QUICK)
    assert found.at(Scale(10**6, 10**11)).report()["extrapolation"]["trust"] == "extrapolated"
    with pytest.raises(DataError, match="the runs differ in tokens alone"):
        found.at(Scale(10**6))


def test_a_ladder_with_a_missing_scale_is_refused(ladder, tmp_path):
    write_ladder(ladder, tmp_path)
    (tmp_path / "scales" / "60M-1B" / "law.json").write_text("{}")
    with pytest.raises(DataError, match="is not a fitted law"):
        load_ladder(tmp_path)
    (tmp_path / "law.json").write_text('{"ladder": [{}]}')
    with pytest.raises(DataError, match="is not a fitted law"):
        load_ladder(tmp_path)
