"""The section `pairing` of a run: every mixture trained as a dense proxy and as a mixture of experts.

Both sides share stages, optimizer and seeds by construction: only the shape of the second model is written down, and it
must have as many active parameters as the first.
"""

from pydantic import Field, model_validator

from mixtures.agreement import AgreementSettings
from mixtures.design import DesignSettings
from pipelines.recipe import Section
from trainer.model_recipe import ModelSettings
from trainer.recipe import TrainRecipe

EQUAL_ACTIVE = 0.02  # a router adds about a hundredth to a small layer


class PairingSettings(Section):
    """The question whether dense proxies rank mixtures as a mixture of experts does.

    Attributes:
        mixtures: how many are drawn; the prior is one of them.
        replicates: further seeds of the prior, for the noise that differences are held against.
        design: how mixtures are drawn.
        dense: the dense proxy; its stages, optimizer and seed are those of the other side, too.
        experts: shape of the mixture of experts; as many active parameters.
        agreement: intervals and the k of regret@k.
    """

    mixtures: int = Field(default=16, ge=4)
    replicates: int = Field(default=3, ge=1)
    design: DesignSettings = DesignSettings(kind="dirichlet")
    dense: TrainRecipe
    experts: ModelSettings
    agreement: AgreementSettings = AgreementSettings()

    @model_validator(mode="after")
    def _equal_active(self) -> "PairingSettings":
        dense, sparse = self.dense.model, self.experts
        if dense.experts or not sparse.experts:
            raise ValueError("pairing.dense must have no experts, and pairing.experts must have some")
        for field in ("width", "tie_embeddings", "max_sequence"):
            if getattr(dense, field) != getattr(sparse, field):
                raise ValueError(f"pairing: {field} of both models must be equal")
        ours, theirs = dense.active_parameters(), sparse.active_parameters()
        if abs(ours - theirs) > EQUAL_ACTIVE * ours:
            raise ValueError(
                f"pairing: the dense model has {ours:,} active parameters beside its embedding, the mixture of experts "
                f"{theirs:,}; they may differ by {EQUAL_ACTIVE:.0%}: change expert_width or ffn_width"
            )
        return self

    def sides(self) -> dict[str, TrainRecipe]:
        """What is trained on each side."""
        return {"dense": self.dense, "moe": self.dense.model_copy(update={"model": self.experts})}
