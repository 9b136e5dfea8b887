"""The router: which experts a token visits, and how much each of them counts.

Scores are fp32 whatever the model computes in. Whoever is not to be visited (a choice beyond an expert's capacity, a
padded position) is marked by the expert number E, so that all routers give one form: weights and experts, (N, K).

Legend: B batch, T positions, D width, N = B * T tokens, E experts, K experts per token, G groups, S experts of a group,
M = N * K, C capacity.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.balance import balance_loss, sequence_balance_loss, z_loss
from trainer.eager import not_compiled
from trainer.model_recipe import ModelSettings
from trainer.router_settings import RouterSettings


class Router(nn.Module):
    """Chooses experts and weighs them; see `RouterSettings`.

    Counts are taken once per training pass: not in evaluation, not for padding, and not again when a pass is recomputed
    for its gradient.

    Attributes:
        e_score_correction_bias: fp32 (E,), the balancing bias; saved with the model. None where the router has none.
        load_E: int64 (E,), choices counted since the last `rebalance`, those beyond capacity included.
        dropped: int64 scalar, choices dropped since then for want of capacity.
        aux_loss: sum of the weighted balance losses of the last training pass; None when there is none.
        z_loss: its weighted z-loss; None when there is none.
        keeps_bias: the balancing bias stays as it is, as where the model is frozen but for low-rank updates.
    """

    e_score_correction_bias: Tensor | None
    load_E: Tensor
    dropped: Tensor

    def __init__(self, model: ModelSettings) -> None:
        super().__init__()
        self.settings, self.experts, self.experts_per_token = model.router, model.experts, model.experts_per_token
        self.weight = nn.Parameter(torch.empty(model.experts, model.width))
        self.register_buffer("e_score_correction_bias", torch.zeros(model.experts) if model.router.has_bias else None)
        self.register_buffer("load_E", torch.zeros(model.experts, dtype=torch.int64), persistent=False)
        self.register_buffer("dropped", torch.zeros((), dtype=torch.int64), persistent=False)
        self._step_load_E: Tensor | None = None
        self.aux_loss: Tensor | None = None
        self.z_loss: Tensor | None = None
        self.keeps_bias = False

    @not_compiled  # compiled code could not tell a pass from its recomputation, and would count both
    def forward(self, x_BTD: Tensor, real_BT: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Choose.

        Args:
            x_BTD: hidden states.
            real_BT: False for padding; None when there is none.

        Returns:
            Weights, fp32 (N, K), and chosen experts, int64 (N, K), E for none. K is `experts_per_token`, or, where
            experts choose, the most experts that any token got.
        """
        real_N = None if real_BT is None else real_BT.flatten()
        logits_NE = self.logits(x_BTD)
        scores_NE = self.scores(logits_NE)
        if self.settings.choice == "experts":
            chosen_NK = _choose_tokens(scores_NE.detach(), self._capacity(scores_NE, real_N), real_N)
        else:
            with torch.no_grad():
                chosen_NK = self._choose_experts(logits_NE, scores_NE)
                if real_N is not None:
                    chosen_NK = chosen_NK.masked_fill(~real_N.unsqueeze(1), self.experts)
        whole = self.settings.choice == "tokens" and real_N is None  # before any is dropped
        weights_NK = self._weights(logits_NE, scores_NE, chosen_NK, whole)
        wanted_NK = chosen_NK
        if self.settings.choice == "tokens" and self._is_limited:
            chosen_NK = _within_capacity(
                weights_NK.detach(), chosen_NK, self._capacity(scores_NE, real_N), self.experts, self.settings.drop
            )
            weights_NK = weights_NK * (chosen_NK < self.experts)
        self._account(x_BTD.shape[0], logits_NE, wanted_NK, chosen_NK, real_N)
        return weights_NK, chosen_NK

    @property
    def keeps_all(self) -> bool:
        """Whether every (real) token now visits exactly its `experts_per_token` experts."""
        return self.settings.choice == "tokens" and not self._is_limited

    @property
    def _is_limited(self) -> bool:
        return self.settings.choice == "experts" or (self.training and self.settings.capacity_factor is not None)

    def logits(self, x_BTD: Tensor) -> Tensor:
        """fp32 (N, E); in bf16 near ties would fall differently from pass to pass."""
        return F.linear(x_BTD.flatten(0, 1).float(), self.weight)

    def scores(self, logits_NE: Tensor) -> Tensor:
        """fp32 (N, E), each in (0, 1)."""
        return logits_NE.sigmoid() if self.settings.score == "sigmoid" else logits_NE.softmax(dim=-1)

    def shares(self, logits_NE: Tensor) -> Tensor:
        """Scores divided by their sum, fp32 (N, E): what balance losses and reports look at."""
        scores_NE = self.scores(logits_NE)
        return scores_NE / scores_NE.sum(dim=-1, keepdim=True) if self.settings.score == "sigmoid" else scores_NE

    def _choose_experts(self, logits_NE: Tensor, scores_NE: Tensor) -> Tensor:
        """The best experts of each token within its best groups, int64 (N, K)."""
        ranked_NE = logits_NE if self.settings.score == "softmax_chosen" else scores_NE
        if self.e_score_correction_bias is not None:
            ranked_NE = ranked_NE + self.e_score_correction_bias
        return within_groups(ranked_NE, self.settings).topk(self.experts_per_token, dim=-1).indices

    def _weights(self, logits_NE: Tensor, scores_NE: Tensor, chosen_NK: Tensor, whole: bool) -> Tensor:
        """Weights of the chosen, fp32 (N, K); 0 where none is chosen, which cannot be where all are `whole`."""
        index_NK = chosen_NK if whole else chosen_NK.clamp(max=self.experts - 1)
        if self.settings.score == "softmax_chosen":
            weights_NK = logits_NE.gather(1, index_NK).softmax(dim=-1)
        else:
            weights_NK = scores_NE.gather(1, index_NK)
            if self.settings.normalize:
                weights_NK = weights_NK / (weights_NK.sum(dim=-1, keepdim=True) + 1e-20)
        weights_NK = weights_NK * self.settings.scaling
        return weights_NK if whole else weights_NK.masked_fill(chosen_NK == self.experts, 0.0)

    def _capacity(self, scores_NE: Tensor, real_N: Tensor | None) -> int:
        assert self.settings.capacity_factor is not None
        tokens = len(scores_NE) if real_N is None else int(real_N.sum())
        mean = tokens * self.experts_per_token / self.experts
        return min(max(1, math.ceil(self.settings.capacity_factor * mean)), len(scores_NE))

    def _account(
        self, batch: int, logits_NE: Tensor, wanted_NK: Tensor, chosen_NK: Tensor, real_N: Tensor | None
    ) -> None:
        """Count the choices of a training pass and make its losses."""
        recomputed = in_backward()
        if not recomputed:
            self.aux_loss = self.z_loss = self._step_load_E = None
        if not self.training:
            return
        load_E = torch.bincount(wanted_NK.flatten(), minlength=self.experts + 1)[: self.experts]
        if not recomputed:
            self.load_E += load_E
            self.dropped += ((chosen_NK == self.experts) & (wanted_NK < self.experts)).sum()
            self._step_load_E = self.load_E.clone() if self.settings.global_aux_loss else None
        # a recomputed pass must make the same tensors in the same order, and leaves them to the first
        aux, z = self._losses(batch, logits_NE, load_E, wanted_NK, real_N)
        if not recomputed:
            self.aux_loss, self.z_loss = aux, z

    def _losses(
        self, batch: int, logits_NE: Tensor, load_E: Tensor, wanted_NK: Tensor, real_N: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        settings = self.settings
        parts = []
        if settings.aux_loss or settings.sequence_aux_loss or settings.global_aux_loss:
            share_NE = self.shares(logits_NE)
            if settings.aux_loss:
                parts.append(settings.aux_loss * balance_loss(share_NE, load_E, real_N))
            if settings.sequence_aux_loss:
                loss = sequence_balance_loss(share_NE, wanted_NK, batch, real_N)
                parts.append(settings.sequence_aux_loss * loss)
            if settings.global_aux_loss:
                assert self._step_load_E is not None
                parts.append(settings.global_aux_loss * balance_loss(share_NE, self._step_load_E, real_N))
        z = settings.z_loss * z_loss(logits_NE, real_N) if settings.z_loss else None
        return (torch.stack(parts).sum() if parts else None), z

    def rebalance(self, moves: bool = True) -> Tensor:
        """Move the bias against the load counted since the last call, and start counting anew.

        Args:
            moves: False leaves the bias, as after a step that was skipped.

        Returns:
            int64 (E,): the load.
        """
        load_E = self.load_E.clone()
        moves = moves and not self.keeps_bias and self.settings.bias_update_rate > 0
        if moves and self.e_score_correction_bias is not None:
            mean = load_E.sum() / self.experts
            self.e_score_correction_bias += self.settings.bias_update_rate * torch.sign(mean - load_E)
            if self.settings.center_bias:
                self.e_score_correction_bias -= self.e_score_correction_bias.mean()
        self.load_E.zero_()
        self.dropped.zero_()
        return load_E


def in_backward() -> bool:
    """Whether autograd is at work: a forward pass within a backward pass is one made a second time for its gradient."""
    return torch._C._current_graph_task_id() != -1


def within_groups(ranked_NE: Tensor, settings: RouterSettings) -> Tensor:
    """Scores with -inf for the experts of all groups that a token may not visit.

    A group's score is the sum of its `scores_per_group` best (node-limited routing, arXiv:2412.19437, section 2.1.2).

    Args:
        ranked_NE: (biased) scores.
        settings: groups, groups per token, scores per group.
    """
    if settings.groups == 1 or settings.groups_per_token == settings.groups:
        return ranked_NE
    ranked_NGS = ranked_NE.unflatten(1, (settings.groups, -1))
    group_NG = ranked_NGS.topk(settings.scores_per_group, dim=-1).values.sum(dim=-1)
    best_NG = torch.zeros_like(group_NG, dtype=torch.bool)
    best_NG.scatter_(1, group_NG.topk(settings.groups_per_token, dim=-1).indices, True)
    return ranked_NGS.masked_fill(~best_NG.unsqueeze(-1), -math.inf).flatten(1)


def _choose_tokens(scores_NE: Tensor, capacity: int, real_N: Tensor | None) -> Tensor:
    """Each expert's best tokens (arXiv:2202.09368), as experts of tokens in rising order, int64 (N, K)."""
    ranked_NE = scores_NE if real_N is None else scores_NE.masked_fill(~real_N.unsqueeze(1), -math.inf)
    taken_NE = torch.zeros_like(scores_NE, dtype=torch.bool)
    taken_NE.scatter_(0, ranked_NE.topk(capacity, dim=0).indices, True)
    if real_N is not None:
        taken_NE &= real_N.unsqueeze(1)
    most = max(1, int(taken_NE.sum(dim=1).max()))
    chosen_NK = taken_NE.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]
    return chosen_NK.masked_fill(~taken_NE.gather(1, chosen_NK), scores_NE.shape[1])


def _within_capacity(weights_NK: Tensor, chosen_NK: Tensor, capacity: int, experts: int, drop: str) -> Tensor:
    """Choices with E in place of those that come after an expert's first `capacity`, by weight or by position."""
    chosen_M = chosen_NK.flatten()
    places = torch.arange(len(chosen_M), device=chosen_M.device)
    first_M = weights_NK.flatten().argsort(descending=True, stable=True) if drop == "score" else places
    order_M = first_M[chosen_M[first_M].argsort(stable=True)]
    counts_E = torch.bincount(chosen_M, minlength=experts + 1)
    rank_M = torch.empty_like(places).scatter_(0, order_M, places) - (counts_E.cumsum(0) - counts_E)[chosen_M]
    return chosen_M.masked_fill(rank_M >= capacity, experts).view_as(chosen_NK)
