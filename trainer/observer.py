"""Who watches a training run, and what they may ask of it: the seam for trackers and stage gates.

Beside its checkpoints the loop only writes `metrics.jsonl`, and calls a list of observers in order. What an
observer decides at the end of a stage changes what is trained next, so the decision is written into the checkpoints:
a run that was killed after it goes on with it, and never asks again. Observers see values that depend on the recipe and
the data alone; clocks are their own affair.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from trainer.run import Run
from trainer.stage_decision import StageDecision


class Observer(Protocol):
    """Something that watches a run. Subclass it and override what is of interest; the rest does nothing.

    `run.notes[name]` keeps JSON values of an observer in every checkpoint, and gives them back after a kill;
    `run.log(line)` adds a line to `metrics.jsonl`, which is cut to the checkpoint when a killed run goes on.
    """

    def on_start(self, run: Run) -> None:
        """Called once per process, with the run at its last good checkpoint or at step 0."""

    def on_step(self, step: int, values: Mapping[str, Any]) -> None:
        """Called after every optimizer step.

        Args:
            step: optimizer steps done, all stages together.
            values: the step's line of `metrics.jsonl`: stage, losses, rate, gradient norm, tokens so far.
        """

    def on_stage_end(self, stage: int, run: Run) -> StageDecision | None:
        """Called once after the last step of a stage, however often the run is killed.

        Args:
            stage: its number, from 0.
            run: the model may be evaluated; it must be left as it was found.

        Returns:
            What shall change, or None.
        """

    def on_end(self, run: Run) -> None:
        """Called when the run is over and its model is saved."""
