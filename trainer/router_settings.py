"""How tokens find their experts: the router's section of a model recipe.

A published router is a row of fields, not a class of its own; the defaults are DeepSeek-V3's without groups
(arXiv:2412.19437). What is learnt by a checkpoint (scores, groups, normalization, scaling) and what only training uses
(losses, bias rate, capacity) stand together, since both change the result.

| router, arXiv | fields |
|---|---|
| Switch, 2101.03961 | top-1, `score: softmax, normalize: false, aux_loss: 0.01, capacity_factor: 1.25` |
| Mixtral, 2401.04088 | `score: softmax_chosen` (the same numbers as `softmax` with `normalize: true`) |
| OLMoE, 2409.02060 | `score: softmax, normalize: false, aux_loss: 0.01, z_loss: 0.001` |
| DeepSeek-V2, 2405.04434 | `score: softmax, normalize: false, groups: 8, groups_per_token: 3, scores_per_group: 1` |
| DeepSeek-V3, 2412.19437 | `groups: 8, groups_per_token: 4, scores_per_group: 2, sequence_aux_loss: 1e-4` |
| expert choice, 2202.09368 | `choice: experts, score: softmax, normalize: false, capacity_factor: 1.0` |
"""

from typing import Any, Literal

from pydantic import Field, model_validator

from pipelines.recipe import Section


class RouterSettings(Section):
    """A router.

    Attributes:
        choice: who chooses: `tokens` their `experts_per_token` best experts, or `experts` their best tokens of the
            micro-batch. The latter sees later tokens, so the model is no causal one: for research, never exported.
        score: of an expert for a token: `softmax` over all experts, `softmax_chosen` over those chosen (by logit), or
            `sigmoid` of each alone.
        normalize: divide the chosen scores by their sum; without effect on `softmax_chosen`, whose sum is one.
        scaling: factor on the weights of the chosen experts.
        bias_update_rate: step of the balancing bias, which chooses but does not weigh (arXiv:2408.15664); only
            `sigmoid` has one, 1e-3 unless said; 0 turns its moves off.
        center_bias: keep the biases' mean at 0, so that they do not drift together.
        groups: equal groups of neighbouring experts (nodes, in training on a cluster); 1 turns them off.
        groups_per_token: groups that a token may visit.
        scores_per_group: how many of its best (biased) scores a group's own score sums. DeepSeek-V2 takes 1,
            DeepSeek-V3 and transformers 2, Megatron `experts_per_token / groups_per_token`: other experts are chosen.
        aux_loss: coefficient of the balance loss over a micro-batch (arXiv:2101.03961, eq. 4, with shares of choices).
        sequence_aux_loss: of the same loss over each sequence, averaged (arXiv:2412.19437, eq. 17).
        global_aux_loss: of the same loss with the load of the whole optimizer step so far (arXiv:2501.11873).
        z_loss: of the mean squared log-sum-exp of the router's logits (arXiv:2202.08906, eq. 5).
        capacity_factor: most tokens of an expert over the mean, per micro-batch; in training, choices beyond it add
            nothing. None drops none.
        drop: which tokens a full expert drops: those with the lowest `score`, or the last by `position`.
    """

    choice: Literal["tokens", "experts"] = "tokens"
    score: Literal["softmax", "softmax_chosen", "sigmoid"] = "sigmoid"
    normalize: bool = True
    scaling: float = Field(default=1.0, gt=0)
    bias_update_rate: float = Field(default=1e-3, ge=0)
    center_bias: bool = False
    groups: int = Field(default=1, ge=1)
    groups_per_token: int = Field(default=1, ge=1)
    scores_per_group: int = Field(default=2, ge=1)
    aux_loss: float = Field(default=0.0, ge=0)
    sequence_aux_loss: float = Field(default=0.0, ge=0)
    global_aux_loss: float = Field(default=0.0, ge=0)
    z_loss: float = Field(default=0.0, ge=0)
    capacity_factor: float | None = Field(default=None, gt=0)
    drop: Literal["score", "position"] = "score"

    @model_validator(mode="before")
    @classmethod
    def _no_bias_by_default(cls, given: Any) -> Any:
        """Softmax routers and expert choice have no bias, so its rate is 0 where none is given."""
        if isinstance(given, dict) and (given.get("score", "sigmoid") != "sigmoid" or given.get("choice") == "experts"):
            return {"bias_update_rate": 0.0, **given}
        return given

    @model_validator(mode="after")
    def _consistent(self) -> "RouterSettings":
        if self.groups_per_token > self.groups:
            raise ValueError(f"groups_per_token ({self.groups_per_token}) is more than groups ({self.groups})")
        if self.choice == "experts":
            self._check_expert_choice()
        if self.bias_update_rate and not self.has_bias:
            raise ValueError(
                f"bias_update_rate ({self.bias_update_rate:g}) needs choice: tokens and score: sigmoid; set it to 0"
            )
        return self

    def _check_expert_choice(self) -> None:
        if self.capacity_factor is None or self.score == "softmax_chosen" or self.groups > 1 or self.normalize:
            raise ValueError(
                "choice: experts needs a capacity_factor, a score over all experts, normalize: false and one group"
            )
        if self.aux_loss or self.sequence_aux_loss or self.global_aux_loss:
            raise ValueError("choice: experts is balanced by itself; set its balance losses to 0")

    @property
    def has_bias(self) -> bool:
        """Whether experts have a balancing bias, which is part of the model."""
        return self.score == "sigmoid" and self.choice == "tokens"

    def check(self, experts: int, experts_per_token: int) -> None:
        """Refuse what does not fit the model.

        Args:
            experts: routed experts of a layer.
            experts_per_token: of them, that a token visits.

        Raises:
            ValueError: groups are unequal, or have fewer experts than must be chosen from or summed.
        """
        if experts % self.groups:
            raise ValueError(f"router.groups ({self.groups}) must divide experts ({experts})")
        size = experts // self.groups
        if self.groups > 1 and self.scores_per_group > size:
            raise ValueError(f"router.scores_per_group ({self.scores_per_group}) is more than a group's {size} experts")
        if self.groups_per_token * size < experts_per_token:
            raise ValueError(
                f"router.groups_per_token ({self.groups_per_token}) groups of {size} experts are fewer than "
                f"experts_per_token ({experts_per_token})"
            )
