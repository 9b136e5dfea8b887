"""RegMix's published runs: laws of 512 models of 1M parameters, and a few of 60M, predict 256 models of 60M."""

import numpy as np
import pytest

from mixtures.ladder import fit_runs
from mixtures.runs import Runs
from mixtures.scale import Scale
from mixtures.scores import spearman
from mixtures.tables import Metrics, Ratios
from mixtures.validation import FitSettings


@pytest.fixture
def regmix(published):
    def read(name, scale):
        ratios = Ratios.read_csv(published / "regmix" / f"{name}_mixture_{scale}.csv")
        metrics = Metrics.read_csv(published / "regmix" / f"{name}_pile_loss_{scale}.csv")
        return Runs.of(ratios, metrics, Scale.parse(f"{scale.upper()}/1B"))

    return read


def some(runs, rows):
    ids = tuple(runs.ratios.ids[row] for row in rows)
    values_PM = np.ascontiguousarray(runs.metrics.values_PM[rows])
    return Runs.of(Ratios(ids, runs.ratios.domains, runs.ratios.weights_PD[rows]),
                   Metrics(ids, runs.metrics.names, values_PM), runs.scale)  # fmt: skip


@pytest.mark.slow
def test_four_runs_of_60m_calibrate_the_law_of_1m(regmix):
    small, large = regmix("train", "1m"), regmix("test", "60m")
    drawn = np.random.default_rng(0).permutation(256)
    ladder = fit_runs([small, some(large, np.sort(drawn[:4]))], FitSettings(laws=("concave",)))
    later = some(large, np.sort(drawn[4:]))
    alone, together = (fit.predict(later.ratios) for fit in (ladder.rungs[0].fit, ladder.at()))
    measured_PM = later.metrics.select(together.names).values_PM
    ranks = [spearman(*pair) for pair in zip(together.values_PM.T, measured_PM.T, strict=True)]
    assert np.mean(ranks) > 0.985
    mean_P = measured_PM.mean(axis=1)
    assert spearman(together.values_PM.mean(axis=1), mean_P) > spearman(alone.values_PM.mean(axis=1), mean_P)
    error_PM = np.abs(together.values_PM - measured_PM)
    assert (error_PM / measured_PM).mean() < 0.04
    assert (error_PM <= together.half_PM[0.95]).mean() > 0.9
