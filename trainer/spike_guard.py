"""Spikes of the loss or of the gradient: seen against a window of steps, and skipped.

A step whose loss or gradient norm stands far above those of the last steps is not taken: the weights stay, the samples
are gone, and the skip is written down with them. The rule is that of OLMo's skipping optimizer: a window of 128 steps,
six standard deviations. What is judged is read from the window alone, and the window lies in the checkpoints, so that a
killed run judges as one left alone would. A stage begins with an empty window.
"""

import math
import statistics
from collections import deque

from pydantic import Field

from pipelines.recipe import Section

SMALLEST_SPREAD = 1e-3  # of the mean: a window of equal values would make a spike of any rounding


class SpikeSettings(Section):
    """When a step is skipped.

    Attributes:
        window: steps whose loss and gradient norm are remembered.
        sigmas: standard deviations above the window's mean that make a spike.
        least: steps in the window before anything is judged.
        most_in_a_row: skipped steps, one after another, after which the run stops: its loss has moved for good.
    """

    window: int = Field(default=128, ge=2)
    sigmas: float = Field(default=6.0, gt=0)
    least: int = Field(default=64, ge=2)
    most_in_a_row: int = Field(default=10, ge=1)


class SpikeGuard:
    """The window of a run.

    Attributes:
        in_a_row: steps skipped one after another, up to the last one.
    """

    def __init__(self, settings: SpikeSettings) -> None:
        self.settings = settings
        self.in_a_row = 0
        self._windows: dict[str, deque[float]] = {
            name: deque(maxlen=settings.window) for name in ("loss", "gradient norm")
        }

    def judge(self, loss: float, grad_norm: float) -> str | None:
        """Look at a step before it is taken.

        Its values enter the window in either case, so that a change that lasts is not skipped for ever.

        Args:
            loss: nats per token, finite.
            grad_norm: before clipping, finite.

        Returns:
            Why the step must be skipped, or None.
        """
        reasons = []
        for (name, window), value in zip(self._windows.items(), (loss, grad_norm), strict=True):
            if len(window) >= self.settings.least:
                mean = statistics.fmean(window)
                # fmean and fsum round once, whatever the order: the same bits from the same window
                spread = math.sqrt(math.fsum((past - mean) ** 2 for past in window) / (len(window) - 1))
                sigmas = (value - mean) / max(spread, SMALLEST_SPREAD * abs(mean), 1e-12)
                if sigmas > self.settings.sigmas:
                    reasons.append(f"{name} {value:.4g} is {sigmas:.1f} standard deviations above {mean:.4g}")
            window.append(value)
        self.in_a_row = self.in_a_row + 1 if reasons else 0
        return "; ".join(reasons) or None

    def clear(self) -> None:
        """Forget the window: a new stage reads other text, and its loss says nothing of the last one's."""
        self.in_a_row = 0
        for window in self._windows.values():
            window.clear()

    def state(self) -> dict[str, list[float] | int]:
        """JSON values for a checkpoint; floats come back as they were."""
        return {"in_a_row": self.in_a_row, **{name: list(window) for name, window in self._windows.items()}}

    def restore(self, state: dict[str, list[float] | int]) -> None:
        """Put back what `state` gave."""
        for name, window in self._windows.items():
            values = state[name]
            assert isinstance(values, list)
            window.clear()
            window.extend(values)
        in_a_row = state["in_a_row"]
        assert isinstance(in_a_row, int)
        self.in_a_row = in_a_row
