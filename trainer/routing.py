"""How a trained mixture of experts routes held-out text of each domain.

Load alone says that experts are used evenly over a whole batch; whether they specialise shows only by domain, on text
that was not trained on, in evaluation mode (no balancing bias is moved). Entropies are shares of their largest value.

Legend: B batch, T positions, D width, N tokens, E experts, K experts per token.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pipelines.shards import ShardSet
from trainer.model import Decoder
from trainer.router import Router
from trainer.validation import held_out_losses


@dataclass
class _Seen:
    """What one router did."""

    load_E: Tensor | None = None
    entropy: float = 0.0
    tokens: int = 0
    experts: int = field(default=0)

    def watch(self, router: Router, given: tuple[Tensor], answer: tuple[Tensor, Tensor]) -> None:
        """A forward hook."""
        share_NE = router.shares(router.logits(given[0])).double()
        self.experts = share_NE.shape[1]
        chosen_E = torch.bincount(answer[1].flatten(), minlength=self.experts + 1)[: self.experts]
        self.load_E = chosen_E if self.load_E is None else self.load_E + chosen_E
        self.entropy += float(torch.special.entr(share_NE).sum())
        self.tokens += len(share_NE)

    def summary(self) -> dict[str, Any]:
        assert self.load_E is not None
        share_E = self.load_E.double() / self.load_E.sum()
        most = torch.log(torch.tensor(float(self.experts), dtype=torch.float64))
        return {
            "load": [round(share, 6) for share in share_E.tolist()],
            "load_entropy": round(float(torch.special.entr(share_E).sum() / most), 6),
            "router_entropy": round(self.entropy / self.tokens / float(most), 6),
        }


def routing_by_domain(
    model: Decoder, shards: ShardSet, sequence_length: int, max_tokens_per_domain: int
) -> dict[str, dict[str, dict[str, Any]]]:
    """Send held-out text of each domain through a model with experts.

    Args:
        model: left as it was found.
        shards: one per domain.
        sequence_length: window of context.
        max_tokens_per_domain: read from the shard's beginning.

    Returns:
        domain -> layer -> `load` (share of the choices by expert), `load_entropy` of these shares and `router_entropy`,
        the mean over tokens of the entropy of the router's normalized scores; both over log E, so that 1 is even.
    """
    found = {}
    for shard in shards.shards:
        with _watched(model) as seen:
            held_out_losses(model, ShardSet((shard,)), sequence_length, max_tokens_per_domain)
        found[shard.name] = {str(layer): each.summary() for layer, each in seen.items()}
    return found


@contextmanager
def _watched(model: Decoder) -> Iterator[dict[int, _Seen]]:
    seen = {layer: _Seen() for layer in model.routers()}
    hooks = [router.register_forward_hook(seen[layer].watch) for layer, router in model.routers().items()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
