"""The section `flow_matching` of a training recipe: a second objective, in continuous space, beside the next token."""

from pydantic import Field

from pipelines.recipe import Section


class FlowSettings(Section):
    """A head that learns to carry noise to a vector, given what the decoder knows at a position (arXiv:2210.02747).

    Attributes:
        weight: of its loss in the total.
        width: hidden size of the head.
        layers: residual layers of the head.
        trunk: whether its gradient also reaches the decoder; without it the head only reads.
    """

    weight: float = Field(default=0.1, gt=0)
    width: int = Field(default=256, ge=1)
    layers: int = Field(default=2, ge=1)
    trunk: bool = True
