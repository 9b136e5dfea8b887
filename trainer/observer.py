"""Who watches a training run, and what they may ask of it: the seam for metrics, trackers and stage gates.

The loop knows nothing of files or servers beside its checkpoints; it calls a list of observers in order. What an
observer decides at the end of a stage changes what is trained next, so the decision is written into the checkpoints:
a run that was killed after it goes on with it, and never asks again. Observers see values that depend on the recipe and
the data alone; clocks are their own affair.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from trainer.run import Run


@dataclass(frozen=True)
class StageDecision:
    """What shall be different from the next stage on.

    Attributes:
        stop: end the run here; the model as it is becomes the result.
        replay: least share of samples from earlier stages' data in every later stage; None leaves what they ask for.
        rate_factor: every later stage's learning rate is multiplied by it.
        reason: for the log, in words.
    """

    stop: bool = False
    replay: float | None = None
    rate_factor: float = 1.0
    reason: str = ""

    def __post_init__(self) -> None:
        assert self.replay is None or 0 <= self.replay < 1
        assert self.rate_factor > 0

    def and_then(self, other: "StageDecision") -> "StageDecision":
        """Both together: the stricter of each; reasons are joined."""
        shares = [share for share in (self.replay, other.replay) if share is not None]
        return StageDecision(
            stop=self.stop or other.stop,
            replay=max(shares) if shares else None,
            rate_factor=self.rate_factor * other.rate_factor,
            reason="; ".join(filter(None, (self.reason, other.reason))),
        )

    def as_note(self) -> dict[str, Any]:
        """JSON values, for a checkpoint."""
        return asdict(self)


class Observer(Protocol):
    """Something that watches a run. Subclass it and override what is of interest; the rest does nothing.

    `run.notes[name]` keeps JSON values of an observer in every checkpoint, and gives them back after a kill;
    `run.log(line)` adds a line to `metrics.jsonl`, which is cut to the checkpoint when a killed run goes on.
    """

    def on_start(self, run: "Run") -> None:
        """Called once per process, with the run at its last good checkpoint or at step 0."""

    def on_step(self, step: int, values: Mapping[str, Any]) -> None:
        """Called after every optimizer step.

        Args:
            step: optimizer steps done, all stages together.
            values: the step's line of `metrics.jsonl`: stage, losses, rate, gradient norm, tokens so far.
        """

    def on_stage_end(self, stage: int, run: "Run") -> StageDecision | None:
        """Called once after the last step of a stage, however often the run is killed.

        Args:
            stage: its number, from 0.
            run: the model may be evaluated; it must be left as it was found.

        Returns:
            What shall change, or None.
        """

    def on_end(self, run: "Run") -> None:
        """Called when the run is over and its model is saved."""
