import json
import statistics

import numpy as np
import pytest

from trainer.spike_guard import SpikeGuard, SpikeSettings

SETTINGS = SpikeSettings(window=16, least=8, sigmas=4)


def calm(steps: int, seed: int = 0) -> list[tuple[float, float]]:
    random = np.random.default_rng(seed)
    return [(float(3 + 0.1 * a), float(1 + 0.05 * b)) for a, b in random.standard_normal((steps, 2)).clip(-2, 2)]


def test_a_spike_of_either_is_named():
    guard = SpikeGuard(SETTINGS)
    assert [guard.judge(*step) for step in calm(20)] == [None] * 20
    assert "loss 9 is" in str(guard.judge(9.0, 1.0))
    assert "gradient norm 5 is" in str(guard.judge(3.0, 5.0))
    assert guard.judge(2.0, 0.1) is None  # far below is no spike


def test_the_rule_is_sigmas_over_the_window():
    steps = calm(16)
    losses = [loss for loss, _ in steps]
    bound = statistics.mean(losses) + 4 * statistics.stdev(losses)
    for value, spikes in ((bound + 1e-6, True), (bound - 1e-6, False)):
        guard = SpikeGuard(SETTINGS)
        for step in steps:
            guard.judge(*step)
        assert (guard.judge(value, 1.0) is not None) == spikes


def test_nothing_is_judged_before_the_window_holds_enough():
    guard = SpikeGuard(SETTINGS)
    assert [guard.judge(value, 1.0) for value in (3.0, 3.1, 2.9, 99.0)] == [None] * 4


def test_a_level_that_stays_is_no_spike_for_ever():
    guard = SpikeGuard(SETTINGS)
    for step in calm(16):
        guard.judge(*step)
    found = [guard.judge(9.0 + step[0] / 100, step[1]) is not None for step in calm(20, seed=1)]
    assert found[0]
    assert not any(found[8:])
    assert guard.in_a_row == 0


def test_a_restored_guard_judges_alike():
    guard, other = SpikeGuard(SETTINGS), SpikeGuard(SETTINGS)
    for step in calm(13):
        guard.judge(*step)
    guard.judge(9.0, 1.0)
    other.restore(json.loads(json.dumps(guard.state())))
    assert other.state() == guard.state()
    assert other.in_a_row == 1
    later = [*calm(5, seed=2), (3.9, 1.0), (3.3, 1.3)]
    assert [guard.judge(*step) for step in later] == [other.judge(*step) for step in later]


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_a_flat_window_makes_no_spike_of_rounding(value: float):
    guard = SpikeGuard(SETTINGS)
    for _ in range(10):
        guard.judge(value, value)
    assert guard.judge(value * (1 + 1e-9), value) is None


def test_a_cleared_window_knows_nothing():
    guard = SpikeGuard(SpikeSettings(window=8, least=4))
    for _ in range(8):
        guard.judge(1.0, 1.0)
    assert guard.judge(9.0, 1.0)
    guard.clear()
    assert [guard.judge(9.0, 1.0) for _ in range(3)] == [None] * 3
    assert guard.state()["in_a_row"] == 0
