"""What is done when a stage of training makes the model forget: the gates' section of a training recipe."""

from typing import Literal

from pydantic import Field, model_validator

from pipelines.recipe import Section

GateAction = Literal["raise_replay", "lower_rate", "stop"]


class GateSettings(Section):
    """Held-out loss of every source after each stage, against the best that the run ever had.

    Attributes:
        sources: held-out domains that are watched; all when empty.
        warn_ratio: bits per byte over the best from which a source is said to be forgotten.
        limit_ratio: perplexity over the best from which it is forgotten too far; 1.5 is that of the four-stage plan.
        at_warning: what is done for the stages that follow when a source passes the first.
        at_limit: the same for the second.
        replay_step: `raise_replay`: share of samples of earlier stages that is added.
        most_replay: `raise_replay`: never beyond this share.
        rate_factor: `lower_rate`: on the learning rate of every later stage.
    """

    sources: tuple[str, ...] = ()
    warn_ratio: float = Field(default=1.05, gt=1)
    limit_ratio: float = Field(default=1.5, gt=1)
    at_warning: tuple[GateAction, ...] = ()
    at_limit: tuple[GateAction, ...] = ("stop",)
    replay_step: float = Field(default=0.1, gt=0, lt=1)
    most_replay: float = Field(default=0.5, gt=0, lt=1)
    rate_factor: float = Field(default=0.5, gt=0, lt=1)

    @model_validator(mode="after")
    def _can_raise(self) -> "GateSettings":
        if self.replay_step > self.most_replay:
            raise ValueError(f"replay_step ({self.replay_step}) is above most_replay ({self.most_replay})")
        return self
