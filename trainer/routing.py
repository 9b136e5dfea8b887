"""How a trained mixture of experts routes held-out text of each domain, in the few numbers that a proxy's result holds.

Load alone says that experts are used evenly over a whole batch; whether they specialise shows only by domain, on text
that was not trained on, in evaluation mode (no balancing bias is moved). Entropies are shares of their largest value.
More is told of one model by `trainer/expert_analytics.py`, whose watch this is.

Legend: E experts.
"""

from typing import Any

from pipelines.shards import ShardSet
from trainer.expert_analytics import Routing, load_numbers, load_of, watch_routing
from trainer.model import Decoder


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
        Modules that predict further tokens are not asked by held-out text, so they are no layers here.
    """
    found = {}
    for shard in shards.shards:
        routing = watch_routing(model, ShardSet((shard,)), sequence_length, max_tokens_per_domain)
        found[shard.name] = {str(layer): _summary(routing, layer) for layer in routing.chosen}
    return found


def _summary(routing: Routing, layer: int) -> dict[str, Any]:
    load_E = load_of(routing.chosen[layer], routing.experts)
    return {
        "load": [round(share, 6) for share in (load_E / max(1, load_E.sum())).tolist()],
        "load_entropy": load_numbers(load_E)["entropy"],
        "router_entropy": round(routing.entropy[layer], 6),
    }
