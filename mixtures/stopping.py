"""Stop a proxy that is going to lose: its final loss is forecast from its curve so far, with an interval.

Runs of one swarm share model, schedule and order of data, so that finished runs tell how a loss at this step becomes a
final loss; a line through them, with Student's interval of a new run, needs no assumption on the form of the curve or
the decay of the learning rate, which power laws of the single curve do. A run is stopped once it is worse than the best
finished one with the probability asked for. R runs, T steps.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from mixtures.scores import student_quantile
from mixtures.tables import LARGEST, number_in, read_table
from pipelines.errors import DataError
from pipelines.recipe import Section

LEAST_FINISHED = 6  # a line has two parameters; with fewer runs its interval is too wide to be of use
WINDOW = 3  # points whose median stands for the loss at a step: single batches are noisy
EARLIEST = 0.1  # share of the steps before which nothing is stopped
SURE = 0.99  # asked at every step of every run, so stricter than a single test would be


class StopSettings(Section):
    """When a run is stopped.

    Attributes:
        sure: probability of ending above the best finished run at which to stop.
        seed: of the order in which finished runs are replayed.
    """

    sure: Annotated[float, Field(gt=0.5, lt=1)] = SURE
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Curves:
    """Losses of runs of one swarm at the same steps.

    Attributes:
        ids: of the runs.
        steps_T: increasing.
        losses_RT: nats per token, the same for all: of training, or held out.
        finals_R: what the runs are judged by; the losses at the last step where nothing else is given.
    """

    ids: tuple[str, ...]
    steps_T: np.ndarray
    losses_RT: np.ndarray
    finals_R: np.ndarray

    @classmethod
    def of(
        cls, ids: tuple[str, ...], steps_T: np.ndarray, losses_RT: np.ndarray, finals_R: np.ndarray | None = None
    ) -> "Curves":
        """Curves, checked.

        Raises:
            DataError: shapes differ, steps do not increase, or a loss is not finite.
        """
        finals_R = losses_RT[:, -1] if finals_R is None else finals_R
        if losses_RT.shape != (len(ids), len(steps_T)) or finals_R.shape != (len(ids),) or not len(steps_T):
            raise DataError(f"curves of {len(ids)} runs at {len(steps_T)} steps were expected; found {losses_RT.shape}")
        if (np.diff(steps_T) <= 0).any():
            raise DataError("the steps of the curves do not increase; sort them and drop repeated ones")
        bad_R = ~np.isfinite(losses_RT).all(axis=1) | ~np.isfinite(finals_R)
        if bad_R.any():
            raise DataError(
                f"the curve of {ids[int(np.argmax(bad_R))]!r} holds a loss that is not finite; leave it out"
            )
        return cls(ids, np.asarray(steps_T), np.asarray(losses_RT, float), np.asarray(finals_R, float))

    def rows(self, rows: np.ndarray) -> "Curves":
        """Some of the runs."""
        ids = tuple(self.ids[row] for row in np.arange(len(self.ids))[rows])
        return Curves(ids, self.steps_T, self.losses_RT[rows], self.finals_R[rows])


def read_curves(path: Path) -> tuple[Curves, dict[str, np.ndarray]]:
    """Read a table of curves: `id`, then a column for each step with the loss; later cells of running runs are empty.

    Returns:
        The finished runs, and the losses so far of the others by id.

    Raises:
        DataError: a column is no step, a cell is no number, a loss is missing before one that is there, or no run is
            finished.
    """
    ids, names, cells = read_table(path)
    steps_T = np.array([number_in(name) for name in names])
    losses_RT = np.array([[number_in(cell) for cell in row] for row in cells])
    _check_numbers(path, ids, names, cells, steps_T, losses_RT)
    count_R = (~np.isnan(losses_RT)).sum(axis=1)
    for run, losses_T, count in zip(ids, losses_RT, count_R, strict=True):
        if np.isnan(losses_T[:count]).any():
            raise DataError(f"{path}: run {run!r} lacks a loss before its last one; fill it or leave the run out")
    done_R = count_R == len(steps_T)
    if not done_R.any():
        raise DataError(f"{path}: no run has a loss at the last step, {names[-1]}; a forecast needs finished runs")
    finished = Curves.of(tuple(np.array(ids)[done_R].tolist()), steps_T, losses_RT[done_R])
    rows = zip(ids, losses_RT, count_R, done_R, strict=True)
    return finished, {run: losses_T[:count] for run, losses_T, count, done in rows if not done}


def _check_numbers(
    path: Path, ids: Sequence[str], names: Sequence[str], cells: list[list[str]], steps_T: np.ndarray,
    losses_RT: np.ndarray,
) -> None:  # fmt: skip
    if (bad_T := ~np.isfinite(steps_T)).any():
        raise DataError(f"{path}: column {names[int(np.argmax(bad_T))]!r} is no step; expected id, then a column for "
                        "each step, named by its number")  # fmt: skip
    for run, losses_T, row in zip(ids, losses_RT, cells, strict=True):
        for name, loss, cell in zip(names, losses_T, row, strict=True):
            if cell and not abs(loss) <= LARGEST:
                raise DataError(f"{path}: row {run!r}, step {name}: {cell!r} is not a finite loss; fill it or leave "
                                "the run out")  # fmt: skip


class Forecast(Section):
    """What a run is going to end with.

    Attributes:
        final: expected final loss.
        lo80, hi80: its 80% interval.
        p_worse: probability that it ends above the best finished run.
        stop: whether that is sure enough.
    """

    final: float
    lo80: float
    hi80: float
    p_worse: float
    stop: bool


class Replay(Section):
    """What stopping would have done to finished runs.

    Attributes:
        runs: how many were asked.
        stopped: share that would have been stopped.
        falsely: share of all that would have been stopped and ended below the best other run that was finished.
        saved: share of all steps that would not have been made.
        coverage: share of the forecasts at the first checked step whose 80% interval holds the final loss.
    """

    runs: int
    stopped: float
    falsely: float
    saved: float
    coverage: float


def forecast(finished: Curves, losses_T: np.ndarray, sure: float = SURE) -> Forecast | None:
    """Forecast a run from its losses so far.

    Args:
        finished: other runs of the swarm, at the same steps.
        losses_T: the losses of the run at the first of these steps.
        sure: probability of ending above the best finished run at which to stop.

    Returns:
        None before a tenth of the steps, or with fewer than six finished runs.

    Raises:
        DataError: the run has more points than the finished ones, or a loss is not finite.
    """
    count = len(losses_T)
    if count > len(finished.steps_T) or not np.isfinite(losses_T).all():
        raise DataError(f"a curve of {count} finite losses was expected within {len(finished.steps_T)} steps")
    if not _may_judge(finished, count):
        return None
    from scipy.special import stdtr  # here, so that reading a recipe does not load SciPy

    so_far, others_R = _level(losses_T[None], count)[0], _level(finished.losses_RT, count)
    expected, deviation = _line(others_R, finished.finals_R, so_far)
    freedom = len(others_R) - 2
    half = student_quantile(freedom, 0.9) * deviation
    p_worse = float(stdtr(freedom, (expected - float(finished.finals_R.min())) / deviation))
    return Forecast(final=expected, lo80=expected - half, hi80=expected + half, p_worse=p_worse, stop=p_worse >= sure)


def _may_judge(finished: Curves, count: int) -> bool:
    early = max(WINDOW, math.ceil(EARLIEST * len(finished.steps_T)))
    return count >= early and len(finished.ids) >= LEAST_FINISHED


def _level(losses_RT: np.ndarray, count: int) -> np.ndarray:
    return np.median(losses_RT[:, max(0, count - WINDOW) : count], axis=1)


def _line(known_R: np.ndarray, finals_R: np.ndarray, at: float) -> tuple[float, float]:
    """Expected final loss at a loss so far, and the standard deviation of a new run about it."""
    middle, spread = float(known_R.mean()), float(((known_R - known_R.mean()) ** 2).sum())
    slope = float((known_R - middle) @ finals_R) / spread if spread > 0 else 0.0
    miss_R = finals_R - finals_R.mean() - slope * (known_R - middle)
    variance = float(miss_R @ miss_R) / (len(known_R) - 2)
    wider = 1 + 1 / len(known_R) + ((at - middle) ** 2 / spread if spread > 0 else 0.0)
    return float(finals_R.mean()) + slope * (at - middle), max(math.sqrt(variance * wider), 1e-12)


def replay(curves: Curves, sure: float = SURE, seed: int = 0, finished: int = LEAST_FINISHED) -> Replay:
    """Ask of finished runs what stopping would have done: they are met in random order, one after the other.

    Args:
        curves: finished runs.
        sure: as in `forecast`.
        seed: of the order.
        finished: how many runs are trained to the end before the first may be stopped.

    Raises:
        DataError: there are not more runs than `finished`.
    """
    if len(curves.ids) <= finished or finished < LEAST_FINISHED:
        raise DataError(f"a replay needs more than {max(finished, LEAST_FINISHED)} runs; found {len(curves.ids)}")
    order = np.random.default_rng(seed).permutation(len(curves.ids))
    kept, total = list(order[:finished]), len(curves.steps_T)
    stopped = falsely = steps = covered = 0
    for run in order[finished:]:
        done, first = curves.rows(np.array(kept)), True
        for count in range(1, total):
            found = forecast(done, curves.losses_RT[run, :count], sure)
            if found is None:
                continue
            covered += int(first and found.lo80 <= float(curves.finals_R[run]) <= found.hi80)
            first = False
            if found.stop:
                stopped, steps = stopped + 1, steps + total - count
                falsely += bool(curves.finals_R[run] < done.finals_R.min())
                break
        else:
            kept.append(run)
    asked = len(order) - finished
    return Replay(runs=asked, stopped=stopped / asked, falsely=falsely / asked, saved=steps / (total * len(order)),
                  coverage=covered / asked)  # fmt: skip


def judge_runs(path: Path, settings: StopSettings) -> dict[str, Any]:
    """Forecast the running runs of a table of curves, and replay the finished ones.

    Returns:
        `runs`: id -> forecast, None where it is too early; `stop`: ids to stop; `best`: the best finished run;
        `replay`: what stopping would have done to the finished runs, None where they are too few.
    """
    finished, running = read_curves(path)
    found = {run: forecast(finished, losses_T, settings.sure) for run, losses_T in running.items()}
    enough = len(finished.ids) > LEAST_FINISHED
    return {
        "best": finished.ids[int(np.argmin(finished.finals_R))],
        "runs": {run: each and each.model_dump(mode="json") for run, each in found.items()},
        "stop": [run for run, each in found.items() if each and each.stop],
        "replay": replay(finished, settings.sure, settings.seed).model_dump(mode="json") if enough else None,
    }
