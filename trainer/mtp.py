"""Multi-token prediction: modules that each guess one token further than the last (arXiv:2412.19437, section 2.2).

Module k joins what the model knows at a position with the embedding of the token k places on, runs one more layer over
it, and predicts the token after that with the model's own output projection. The order of the two halves and the norms
are those of DeepSeek's files, and what is handed on is normed, as in Megatron, so that both are read without change. In
a packed row no guess reaches into another document.

Legend: B batch, T positions, D width, N positions that have a target.
"""

import torch
from torch import Tensor, nn

from trainer.attention import Linear, RMSNorm
from trainer.layer import Layer
from trainer.model_recipe import ModelSettings
from trainer.rope import Context


class PredictionModule(nn.Module):
    """One module: two norms, a projection of both halves to one, a layer, and a norm before the output projection."""

    def __init__(self, model: ModelSettings, number: int) -> None:
        super().__init__()
        self.enorm = RMSNorm(model.width, model.norm_eps)
        self.hnorm = RMSNorm(model.width, model.norm_eps)
        self.eh_proj = Linear(2 * model.width, model.width)
        self.layer = Layer(model, model.layers + number)
        self.norm = RMSNorm(model.width, model.norm_eps)

    def join(self, embedded_BTD: Tensor, hidden_BTD: Tensor, compute: torch.dtype) -> Tensor:
        """The residual stream that the module's layer reads, fp32 (B, T, D)."""
        both = torch.cat((self.enorm(embedded_BTD), self.hnorm(hidden_BTD)), dim=-1)
        return self.eh_proj(both.to(compute)).float()

    def forward(self, embedded_BTD: Tensor, hidden_BTD: Tensor, context: Context, compute: torch.dtype) -> Tensor:
        """Normed hidden states, `compute` (B, T, D), from further tokens' embeddings and what is known so far."""
        joined_BTD = self.join(embedded_BTD, hidden_BTD, compute)
        return self.norm(self.layer(joined_BTD, context, compute)).to(compute)


def shifted(tokens_BT: Tensor, places: int) -> Tensor:
    """Each position's token `places` further on; the last ones, which have none, keep the last token."""
    last_B1 = tokens_BT[:, -1:].expand(-1, min(places, tokens_BT.shape[1]))
    return torch.cat((tokens_BT[:, places:], last_B1), dim=1)


def has_target(shape: tuple[int, int], depth: int, documents_BT: Tensor | None) -> Tensor:
    """Positions whose token `depth + 1` places on lies in the row and in their own document.

    The target of a row's last position is left out: its document is not known, since it lies beyond the row's inputs.

    Args:
        shape: rows and positions.
        depth: of the module, from 1.
        documents_BT: int64, negative for padding; None for one document.

    Returns:
        bool (B, T).
    """
    batch, positions = shape
    if documents_BT is None:
        return (torch.arange(positions) < positions - depth - 1).expand(batch, positions)
    found_BT = torch.zeros_like(documents_BT, dtype=torch.bool)
    reach = depth + 1
    found_BT[:, : max(0, positions - reach)] = documents_BT[:, :-reach] == documents_BT[:, reach:]
    return found_BT & (documents_BT >= 0)


def shares_of_targets(documents_BT: Tensor, rows: int, depths: int) -> list[list[float]]:
    """What makes the mean over a batch of the means over its parts: a part counts by its targets, not by its rows.

    Args:
        documents_BT: int64, of the whole batch.
        rows: of a part; the last one may have fewer.
        depths: prediction modules.

    Returns:
        For each part and module, its share of the module's targets over its share of the rows; 0 where there are none.
    """
    batch, positions = documents_BT.shape
    found_DB = torch.stack(
        [has_target((batch, positions), depth, documents_BT).sum(1) for depth in range(1, depths + 1)]
    )
    total_D = found_DB.sum(1).clamp(min=1)
    parts = [found_DB[:, begin : begin + rows] for begin in range(0, batch, rows)]
    return [(part_DR.sum(1) / total_D * (batch / part_DR.shape[1])).tolist() for part_DR in parts]
