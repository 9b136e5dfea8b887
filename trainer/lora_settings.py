"""The section `lora` of a training recipe: which weights get low-rank updates, and of what rank.

Patterns are matched against names of parameters, stacked experts included, and each must cover something: a pattern
that silently covers nothing trains a part of the model only, which is the commonest complaint about LoRA on experts.
"""

from pydantic import Field, model_validator

from pipelines.recipe import Section

PROJECTIONS = ("layers.*.self_attn.*_proj*", "layers.*.mlp.*_proj*")


class LoraSettings(Section):
    """Low-rank updates of weights that stay as they are (arXiv:2106.09685).

    Attributes:
        targets: shell patterns over names of parameters, such as `layers.*.mlp.experts.*`; the default is every
            projection of attention, dense layers, routed and shared experts, but no router and no module that predicts
            further tokens, which transformers leaves aside.
        rank: of each update; every expert of a stack has one of its own.
        alpha: updates are scaled by `alpha / rank`.
    """

    targets: tuple[str, ...] = Field(default=PROJECTIONS, min_length=1)
    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=32.0, gt=0)

    @model_validator(mode="after")
    def _distinct(self) -> "LoraSettings":
        if len(set(self.targets)) < len(self.targets):
            raise ValueError(f"targets repeat a pattern: {', '.join(self.targets)}")
        return self

    @property
    def scale(self) -> float:
        """Factor on every update."""
        return self.alpha / self.rank
