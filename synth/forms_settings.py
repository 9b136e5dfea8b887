"""Which other forms of the samples are written."""

from typing import Literal

from pydantic import Field, model_validator

from pipelines.recipe import Section

Form = Literal["sft", "rl"]


class FormsSettings(Section):
    """Samples as conversations (`sft`) and as problems with answers that can be checked (`rl`).

    Attributes:
        write: which forms.
        min_pass_rate: of problems; what no chain solves teaches nothing either.
        max_pass_rate: of problems; open-r1 takes 0.1 to 0.6.
    """

    write: tuple[Form, ...] = ()
    min_pass_rate: float = Field(default=0, ge=0, le=1)
    max_pass_rate: float = Field(default=1, ge=0, le=1)

    @model_validator(mode="after")
    def _band(self) -> "FormsSettings":
        if self.min_pass_rate > self.max_pass_rate:
            raise ValueError(f"min_pass_rate {self.min_pass_rate} is above max_pass_rate {self.max_pass_rate}")
        return self
