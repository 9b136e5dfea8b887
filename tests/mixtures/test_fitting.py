import csv

import numpy as np
import pytest

from mixtures.compare import compare
from mixtures.fitting import fit_laws, load_fit
from mixtures.laws import FAMILIES
from mixtures.scores import half_width, regret, score, spearman
from mixtures.tables import Metrics, Ratios
from mixtures.validation import FitSettings, fold_of_runs
from pipelines.errors import DataError

DOMAINS = ("web", "code", "books", "math")
QUICK = FitSettings(laws=("exponential", "ridge", "effective_data", "concave"))


def swarm(runs, seed=0, noise=0.01):
    """A swarm whose losses obey a concave law, with noise."""
    random = np.random.default_rng(seed)
    weights_PD = random.dirichlet([1.0] * 4, runs)
    worth_DM = np.array([[1.0, 0.1], [0.1, 1.0], [0.6, 0.1], [0.02, 0.4]])
    values_PM = 2 + (0.1 + np.sqrt(weights_PD) @ worth_DM) ** -0.5 + random.normal(0, noise, (runs, 2))
    ids = tuple(f"r{number:03d}" for number in range(runs))
    return Ratios(ids, DOMAINS, weights_PD), Metrics(ids, ("prose", "programs"), values_PM)


@pytest.fixture(scope="module")
def fitted():
    return fit_laws(*swarm(40), QUICK)


def test_the_right_law_is_chosen_and_predicts_new_mixtures(fitted):
    fresh, truth = swarm(200, seed=1, noise=0)
    assert fitted.chosen == "concave"
    errors_PM = fitted.predict(fresh).values_PM - truth.values_PM
    assert np.sqrt((errors_PM**2).mean(axis=0)).max() < 0.02


def test_every_law_and_the_mean_are_reported(fitted):
    report = fitted.report()
    assert [law["law"] for law in report["laws"]] == ["constant", *QUICK.laws]
    best = min(report["laws"], key=lambda law: law["selection"])
    assert best["law"] == report["chosen"]
    assert report["laws"][0]["gain"] == 0


def test_permuted_rows_and_columns_give_the_same_fit():
    ratios, metrics = swarm(20)
    order = np.random.default_rng(5).permutation(20)
    turned = Ratios(tuple(ratios.ids[i] for i in order), DOMAINS[::-1], ratios.weights_PD[order][:, ::-1])
    first, second = fit_laws(ratios, metrics, QUICK), fit_laws(turned, metrics, QUICK)
    assert np.array_equal(first.predict(ratios).values_PM, second.predict(ratios).values_PM)
    assert first.report() == second.report()


def test_save_and_load(fitted, tmp_path):
    fitted.write(tmp_path)
    again = load_fit(tmp_path)
    fresh, _ = swarm(5, seed=2)
    assert np.array_equal(again.predict(fresh).values_PM, fitted.predict(fresh).values_PM)
    assert again.report() == fitted.report()


def test_a_fit_with_exchanged_tables_is_refused(fitted, tmp_path):
    fitted.write(tmp_path)
    (tmp_path / "metrics.csv").write_text((tmp_path / "metrics.csv").read_text().replace("prose", "rhyme"))
    with pytest.raises(DataError, match="fit again"):
        load_fit(tmp_path)


def test_a_folder_without_a_law_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match="is not a fitted law"):
        load_fit(tmp_path)


def test_one_run_far_out_does_not_hide_that_a_law_was_learned():
    ratios, metrics = swarm(24, noise=0)
    weights_PD = ratios.weights_PD.copy()
    weights_PD[0] = [0, 0, 0, 1.0]
    ratios = Ratios(ratios.ids, DOMAINS, weights_PD)
    worth_D = np.array([1.0, 0.5, 0.7, 0.01])
    losses_PM = (np.sqrt(weights_PD) @ worth_D)[:, None] ** -1.0  # of the first run 100, of the others about 1
    fit = fit_laws(ratios, Metrics(metrics.ids, ("loss",), losses_PM), QUICK)
    assert fit.chosen != "constant"


def test_shuffled_losses_teach_nothing():
    ratios, metrics = swarm(30)
    random = np.random.default_rng(3)
    learned, ranks = 0, []
    for _ in range(8):
        shuffled = Metrics(metrics.ids, metrics.names, metrics.values_PM[random.permutation(30)])
        fit = fit_laws(ratios, shuffled, FitSettings(laws=("ridge", "effective_data", "gaussian", "stack"), folds=5))
        learned += fit.chosen != "constant"
        ranks.append(fit.scores[-1].spearman or 0.0)
    assert learned <= 1
    assert (
        np.mean(ranks) < 0.1
    )  # what was held out is anticorrelated with the mean of the rest; a leak would show as rank


def test_the_regret_of_the_optimum_counts_in_the_choice(fitted):
    chosen = next(each for each in fitted.scores if each.law == fitted.chosen)
    lost = regret(fitted.held_out_PM, fitted.metrics.values_PM)
    assert chosen.selection == pytest.approx(chosen.relative + 0.25 * lost, abs=1e-12)


def test_regret_by_hand():
    measured = np.array([[0.0, 2.0], [1.0, 1.0], [2.0, 0.0]])
    spread = measured[:, 0].std()
    # the first metric's best is found; for the second the worst is picked; all three are equal in the mean
    predicted = np.array([[-5.0, -9.0], [0.0, 0.0], [0.0, 0.0]])
    assert regret(predicted, measured) == pytest.approx((0 + 2) / spread / 2 / 2)


def test_equal_mixtures_share_a_fold():
    ratios, _ = swarm(30)
    doubled = Ratios(tuple(f"s{i}" for i in range(60)), DOMAINS, np.repeat(ratios.weights_PD, 2, axis=0))
    fold_P = fold_of_runs(doubled, 5, 0)
    assert (fold_P[::2] == fold_P[1::2]).all()
    assert np.bincount(fold_P).tolist() == [12] * 5


def test_intervals_cover_new_runs():
    hits = []
    for seed in range(6):
        fit = fit_laws(*swarm(40, seed), FitSettings(laws=("concave",)))
        fresh, truth = swarm(300, seed + 100)
        prediction = fit.predict(fresh)
        error_PM = np.abs(prediction.values_PM - truth.values_PM)
        hits.append([(error_PM <= prediction.half_PM[level]).mean() for level in (0.80, 0.95)])
    assert np.mean(hits, axis=0) == pytest.approx([0.80, 0.95], abs=0.05)


def test_half_width_is_the_conformal_rank_and_falls_back_to_student():
    assert half_width(np.arange(1.0, 20.0), 0.80) == 16  # ceil(20 x 0.8)
    assert half_width(np.array([1.0, -1.0, 1.0, -1.0]), 0.95) == pytest.approx(3.182446, abs=1e-5)  # t(3) x 1


def test_scores():
    assert spearman(np.array([1, 2, 3]), np.array([10, 20, 15])) == pytest.approx(0.5)
    assert spearman(np.array([1, 1, 1]), np.array([1, 2, 3])) is None
    assert score(np.array([0.0, 1.0]), np.array([2.0, 1.0])).regret == 1.0


@pytest.mark.parametrize(
    ("runs", "problem"), [(3, "3 distinct mixtures cannot support a law"), (0, "0 distinct mixtures")]
)
def test_too_few_runs(runs, problem):
    with pytest.raises(DataError, match=problem):
        fit_laws(*swarm(runs), QUICK)


def test_predicting_other_domains_is_an_error(fitted):
    with pytest.raises(DataError, match="unknown 'poems'; missing 'books'"):
        fitted.predict(Ratios.of({"x": {"web": 0.5, "code": 0.1, "math": 0.2, "poems": 0.2}}))


def test_targets(fitted):
    assert fitted.target("prose").tolist() == [1, 0]
    assert fitted.target("mean").tolist() == [0.5, 0.5]
    assert fitted.target("pro*").tolist() == [0.5, 0.5]
    assert fitted.target(weights={"prose": 3, "programs": 1}).tolist() == [0.75, 0.25]
    with pytest.raises(DataError, match="did you mean prose"):
        fitted.target("prosa")
    with pytest.raises(DataError, match="unknown: rhyme"):
        fitted.target(weights={"rhyme": 1})


def test_an_unknown_law_is_refused():
    with pytest.raises(ValueError, match="no law 'magic'; there are constant, ols"):
        FitSettings(laws=("magic",))


def test_predictions_file_has_bounds_in_order(fitted, tmp_path):
    fresh, _ = swarm(3, seed=4)
    fitted.predict(fresh).write(tmp_path / "p.csv")
    with (tmp_path / "p.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == list(fresh.ids)
    columns = ("prose_lo95", "prose_lo80", "prose", "prose_hi80", "prose_hi95")
    lo95, lo80, value, hi80, hi95 = (float(rows[0][column]) for column in columns)
    assert lo95 < lo80 < value < hi80 < hi95


@pytest.mark.parametrize(
    ("prior", "proposal", "verdict"),
    [
        ([3.0, 3.1, 3.2], [2.5, 2.61, 2.69], "better"),
        ([3.0, 3.1, 3.2], [3.5, 3.61, 3.69], "worse"),
        ([3.0, 3.1, 3.2], [2.9, 3.2, 3.1], "inconclusive"),
        ([3.0], [2.0], "inconclusive"),
        ([3.0, 3.0], [3.0, 3.0], "inconclusive"),
    ],
)
def test_verdicts(prior, proposal, verdict):
    assert compare(prior, proposal).verdict == verdict


def test_the_interval_is_students():
    found = compare([0.0, 0.0, 0.0], [1.0, 2.0, 3.0])
    assert (found.difference, *found.interval) == pytest.approx((2, 2 - 2.4841, 2 + 2.4841), abs=1e-4)


def test_comparison_needs_pairs():
    with pytest.raises(DataError, match="3 losses of the prior and 2"):
        compare([1, 2, 3], [1, 2])
    with pytest.raises(DataError, match="diverged"):
        compare([1.0, float("nan")], [1.0, 2.0])


def test_reading_back_the_swarm_of_a_fit(fitted, tmp_path):
    fitted.write(tmp_path)
    assert Ratios.read_csv(tmp_path / "ratios.csv").domains == tuple(sorted(DOMAINS))


def test_refits_are_laws_of_all_metrics_and_whole_counts_change_nothing(fitted):
    same, doubled = fitted.refit(np.array([np.ones(40), np.full(40, 2.0)]))
    fresh, _ = swarm(5, seed=9)
    weights_PD = fresh.ordered(fitted.domains).weights_PD
    assert same.predict(weights_PD) == pytest.approx(fitted.law.predict(weights_PD), abs=2e-3)
    assert doubled.predict(weights_PD).shape == (5, 2)


def test_many_runs_are_calibrated_by_more_folds_than_they_are_chosen_by():
    ratios, metrics = swarm(140)
    fit = fit_laws(ratios, metrics, FitSettings(laws=("ridge",)))
    one_fold = fold_of_runs(fit.ratios, 20, 0) == 3
    law = FAMILIES["ridge"].fit(fit.ratios.weights_PD[~one_fold], fit.metrics.values_PM[~one_fold].T,
                                np.ones((2, (~one_fold).sum())), fit.penalty)  # fmt: skip
    expected = law.predict(fit.ratios.weights_PD[one_fold])
    assert fit.held_out_PM[one_fold] == pytest.approx(expected, abs=1e-4)
