import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixtures.stopping import Curves, StopSettings, forecast, judge_runs, read_curves, replay
from pipelines.errors import DataError

STEPS_T = np.arange(1, 61) * 10


def curves_of(seed, runs=40, noise=0.01):
    """Power laws whose floor and speed differ by run, as mixtures make them, with a decay of the learning rate."""
    random = np.random.default_rng(seed)
    floor_R, speed_R = random.normal(3, 0.15, (runs, 1)), random.normal(0.35, 0.02, (runs, 1))
    shape_RT = floor_R + 4 * STEPS_T**-speed_R - 0.1 * (STEPS_T / STEPS_T[-1]) ** 4
    losses_RT = shape_RT + random.normal(0, noise, shape_RT.shape)
    return Curves.of(tuple(f"r{run}" for run in range(runs)), STEPS_T, losses_RT)


def test_a_run_that_is_far_behind_is_stopped_and_one_ahead_is_not():
    curves = curves_of(0)
    worst, best = int(np.argmax(curves.finals_R)), int(np.argmin(curves.finals_R))
    others = curves.rows(np.delete(np.arange(40), worst))
    found = forecast(others, curves.losses_RT[worst, :20])
    assert found is not None
    assert found.stop
    assert found.lo80 < curves.finals_R[worst] < found.hi80 or abs(found.final - curves.finals_R[worst]) < 0.1
    ahead = forecast(curves.rows(np.delete(np.arange(40), best)), curves.losses_RT[best, :20])
    assert ahead is not None
    assert not ahead.stop


def test_nothing_is_said_too_early_or_with_too_few_finished_runs():
    curves = curves_of(1)
    assert forecast(curves.rows(np.arange(1, 40)), curves.losses_RT[0, :5]) is None
    assert forecast(curves.rows(np.arange(1, 6)), curves.losses_RT[0, :30]) is None


def test_the_interval_covers_and_a_straight_line_is_found_exactly():
    steps = np.arange(1, 21)
    level_R = np.linspace(2, 3, 10)
    losses_RT = np.tile(level_R[:, None], (1, 20))
    losses_RT[:, -1] = 2 * level_R - 1
    curves = Curves.of(tuple("abcdefghij"), steps, losses_RT)
    found = forecast(curves, np.full(10, 2.25))
    assert found is not None
    assert found.final == pytest.approx(3.5)
    assert found.p_worse == pytest.approx(1)
    coverage = np.mean([replay(curves_of(seed), seed=seed).coverage for seed in range(10)])
    assert coverage == pytest.approx(0.8, abs=0.08)


def test_stopping_saves_steps_and_rarely_loses_the_best_run():
    found = [replay(curves_of(seed), seed=seed) for seed in range(10)]
    assert np.mean([each.falsely for each in found]) <= 0.01
    assert np.mean([each.saved for each in found]) > 0.3
    assert np.mean([each.stopped for each in found]) > 0.5


def test_what_cannot_be_judged_is_refused():
    curves = curves_of(0, runs=6)
    with pytest.raises(DataError, match="more than 6 runs"):
        replay(curves)
    with pytest.raises(DataError, match="do not increase"):
        Curves.of(("a",), np.array([2, 1]), np.ones((1, 2)))
    with pytest.raises(DataError, match="'b' holds a loss that is not finite"):
        Curves.of(("a", "b"), np.array([1, 2]), np.array([[1, 1], [1, np.nan]]))
    with pytest.raises(DataError, match="curves of 1 runs"):
        Curves.of(("a",), np.array([1, 2]), np.ones((2, 2)))
    with pytest.raises(DataError, match="a curve of 61 finite losses"):
        forecast(curves, np.ones(61))


@given(st.integers(0, 30), st.floats(-2, 2))
def test_a_shift_of_all_losses_changes_nothing(seed, shift):
    curves = curves_of(seed, runs=12)
    moved = Curves.of(curves.ids, STEPS_T, curves.losses_RT + shift)
    first = forecast(curves.rows(np.arange(1, 12)), curves.losses_RT[0, :20])
    second = forecast(moved.rows(np.arange(1, 12)), moved.losses_RT[0, :20])
    assert first is not None
    assert second is not None
    assert second.p_worse == pytest.approx(first.p_worse, abs=1e-6)
    assert second.final == pytest.approx(first.final + shift, abs=1e-6)


def table_of(path, curves, reached):
    """A table in which run r has its first `reached[r]` points."""
    lines = ["id," + ",".join(str(step) for step in curves.steps_T)]
    for run, losses_T in zip(curves.ids, curves.losses_RT.tolist(), strict=True):
        last = reached.get(run, len(losses_T))
        lines.append(",".join([run, *(repr(loss) if at < last else "" for at, loss in enumerate(losses_T))]))
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_table_of_curves_says_which_runs_to_stop(tmp_path):
    curves = curves_of(0)
    worst, best = (curves.ids[int(pick(curves.finals_R))] for pick in (np.argmax, np.argmin))
    path = table_of(tmp_path / "curves.csv", curves, {worst: 20, best: 20, "r3": 2})
    finished, running = read_curves(path)
    assert len(finished.ids) == 37
    assert [len(running[run]) for run in (worst, best, "r3")] == [20, 20, 2]
    found = judge_runs(path, StopSettings())
    assert found["stop"] == [worst]
    assert found["runs"]["r3"] is None  # too early
    assert found["replay"]["runs"] == 37 - 6


def test_bad_tables_of_curves_are_named(tmp_path):
    path = tmp_path / "curves.csv"
    for text, message in (
        ("id,one\na,1\n", "column 'one' is no step"),
        ("id,1,2\na,1,x\n", "row 'a', step 2: 'x' is not a finite loss"),
        ("id,1,2\na,1,1_0\n", "'1_0' is not a finite loss"),
        ("id,1,2\na,1,2\nb,,2\n", "'b' lacks a loss"),
        ("id,1,2\na,1,\n", "no run has a loss at the last step, 2"),
        ("id,1,2\na,1,inf\n", "not a finite loss"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            read_curves(path)
