"""What the experts of a trained model do: who works with whom, since when, and on what.

All of it is counted on held-out text in evaluation mode, so that no bias moves and nothing is dropped by chance. The
measures are those of OLMoE (arXiv:2409.02060, section 5): co-activation of two experts, saturation (how much of the
final routing a checkpoint had already), specialisation by domain and by kind of token. Beside each stands what chance
alone would give: K of E experts agree by K / E, and a finite sample of tokens always has some mutual information.

Legend: N tokens, K experts per token, E experts, L layers with experts, C classes, X checkpoints.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipelines.errors import DataError
from pipelines.indexed import IndexedTokens
from pipelines.shards import ShardSet
from trainer.checkpoint import DESCRIPTION, HEAD_PREFIX, load_model, read_checkpoints
from trainer.expert_load import summarize_load
from trainer.lora import merged_state
from trainer.lora_settings import LoraSettings
from trainer.model import Decoder
from trainer.router import Router
from trainer.validation import check_held_out, held_out_losses

BALANCED = 0.2  # coefficient of variation below which a load counts as balanced
BARELY = 0.01  # of the mean load: an expert that gets less is as good as dead
PAIRS = 5  # most lifted pairs told for each layer


@dataclass(frozen=True)
class Routing:
    """Which experts every probed token visited.

    Attributes:
        chosen: layer -> int64 (N, K); E where a choice was dropped.
        entropy: layer -> mean entropy of the router's shares over log E.
        domain_N: number of each token's domain.
        token_N: each token's id.
        domains: names.
        experts: of each layer.
    """

    chosen: Mapping[int, np.ndarray]
    entropy: Mapping[int, float]
    domain_N: np.ndarray
    token_N: np.ndarray
    domains: tuple[str, ...]
    experts: int


class _Watch:
    """A forward hook that keeps what a router chose."""

    def __init__(self) -> None:
        self.chosen: list[np.ndarray] = []
        self.entropy, self.tokens = 0.0, 0

    def __call__(self, router: nn.Module, given: tuple[Tensor, ...], answer: tuple[Tensor, Tensor]) -> None:
        assert isinstance(router, Router)
        share_NE = router.shares(router.logits(given[0])).double()
        self.entropy += float(torch.special.entr(share_NE).sum()) / math.log(router.experts)
        self.tokens += len(share_NE)
        self.chosen.append(answer[1].cpu().numpy())


def watch_routing(model: Decoder, shards: ShardSet, sequence_length: int, tokens_per_domain: int) -> Routing:
    """Send held-out text through a model and keep what its routers chose.

    Args:
        model: with experts; left as it was found.
        shards: one per domain.
        sequence_length: window of context.
        tokens_per_domain: read from each shard's beginning.

    Raises:
        DataError: a shard holds fewer than two tokens, or one that the model does not know.
    """
    check_held_out(shards, model.settings.vocab_size, tokens_per_domain)
    watches = {layer: _Watch() for layer in model.routers()}
    hooks = [router.register_forward_hook(watches[layer]) for layer, router in model.routers().items()]
    domain_N, token_N = [], []
    try:
        for number, shard in enumerate(shards.shards):
            scored = held_out_losses(model, ShardSet((shard,)), sequence_length, tokens_per_domain)[shard.name][
                "tokens"
            ]
            token_N.append(np.asarray(IndexedTokens(shard.prefix).tokens)[:scored].astype(np.int64))
            domain_N.append(np.full(scored, number))
    finally:
        for hook in hooks:
            hook.remove()
    experts = model.settings.experts
    watches = {layer: watch for layer, watch in watches.items() if watch.tokens}  # a prediction module is not asked
    return Routing(
        chosen={layer: _joined(watch.chosen, experts) for layer, watch in watches.items()},
        entropy={layer: watch.entropy / watch.tokens for layer, watch in watches.items()},
        domain_N=np.concatenate(domain_N), token_N=np.concatenate(token_N),
        domains=tuple(shard.name for shard in shards.shards), experts=experts,
    )  # fmt: skip


def _joined(parts: Sequence[np.ndarray], none: int) -> np.ndarray:
    """Batches one below the other; where experts choose, tokens of one batch may have more of them than of another."""
    most = max(part.shape[1] for part in parts)
    wide = [np.pad(part, ((0, 0), (0, most - part.shape[1])), constant_values=none) for part in parts]
    return np.concatenate(wide)


def load_of(chosen_NK: np.ndarray, experts: int) -> np.ndarray:
    """Choices of each expert, int64 (E,)."""
    return np.bincount(chosen_NK.ravel(), minlength=experts + 1)[:experts]


def load_numbers(load_E: np.ndarray) -> dict[str, Any]:
    """How even a load is: `cv`, `max`, `min`, `used` as `summarize_load` has them, `entropy` over log E, dead experts.

    Args:
        load_E: choices of each expert.
    """
    share_E = load_E / max(1, load_E.sum())
    entropy = -sum(share * math.log(share) for share in share_E if share > 0) / math.log(len(load_E))
    mean = load_E.mean()
    return {
        **summarize_load(load_E), "entropy": round(float(entropy), 6),
        "dead": np.flatnonzero(load_E == 0).tolist(),
        "barely": np.flatnonzero((load_E > 0) & (load_E < BARELY * mean)).tolist(),
        "balanced": bool(load_E.std() < BALANCED * mean),
    }  # fmt: skip


def coactivation(chosen_NK: np.ndarray, experts: int) -> np.ndarray:
    """How often a token that visits expert i visits expert j too.

    Args:
        chosen_NK: experts of each token.
        experts: E.

    Returns:
        float64 (E, E): share of the tokens of the row's expert; 1 on the diagonal, 0 in rows of unused experts.
    """
    visited_NE = np.zeros((len(chosen_NK), experts + 1))
    np.put_along_axis(visited_NE, chosen_NK, 1.0, axis=1)
    both_EE = visited_NE[:, :experts].T @ visited_NE[:, :experts]
    return both_EE / np.maximum(np.diag(both_EE), 1)[:, None]


def lifted_pairs(chosen_NK: np.ndarray, experts: int) -> list[dict[str, Any]]:
    """The pairs of experts that go together most, beyond what their loads alone would give.

    Returns:
        Pairs by falling lift: share of tokens that visit both, over the product of the shares that visit each.
    """
    together_EE = coactivation(chosen_NK, experts)
    share_E = load_of(chosen_NK, experts) / len(chosen_NK)
    rows = [(together_EE[i, j] / share_E[j], i, j) for i in range(experts) for j in range(i) if share_E[i] * share_E[j]]
    best = sorted(rows, key=lambda row: (-row[0], row[1], row[2]))[:PAIRS]
    return [{"experts": [j, i], "lift": round(float(lift), 4),
             "share": round(float(together_EE[i, j] * share_E[i]), 6)} for lift, i, j in best]  # fmt: skip


def saturation(then_NK: np.ndarray, final_NK: np.ndarray, experts: int) -> float:
    """Share of a token's final experts that it visited at an earlier checkpoint already, mean over tokens.

    Args:
        then_NK: experts at the checkpoint.
        final_NK: experts of the final model, of the same tokens.
        experts: E; choices that are E are no choice.
    """
    then_NE, final_NE = (np.zeros((len(chosen), experts + 1), dtype=bool) for chosen in (then_NK, final_NK))
    np.put_along_axis(then_NE, then_NK, True, axis=1)
    np.put_along_axis(final_NE, final_NK, True, axis=1)
    both_N = (then_NE & final_NE)[:, :experts].sum(axis=1)
    return float(both_N.sum() / max(1, final_NE[:, :experts].sum()))


def specialisation(chosen_NK: np.ndarray, class_N: np.ndarray, classes: int, experts: int) -> dict[str, Any]:
    """Whether experts differ by the class of a token.

    Args:
        chosen_NK: experts of each token.
        class_N: class of each token.
        classes: C.
        experts: E.

    Returns:
        `share_CE`: of each class's choices, by expert; `information_bits`: mutual information of class and expert, less
        what a sample of this size has by chance (Miller-Madow); `of_most`: over the entropy of the classes, 1 when the
        expert tells the class; `largest`: the strongest preference, class, expert and share over the expert's mean.
    """
    count_CE = np.zeros((classes, experts + 1))
    np.add.at(count_CE, (np.repeat(class_N, chosen_NK.shape[1]), chosen_NK.ravel()), 1)
    count_CE = count_CE[:, :experts]
    total = count_CE.sum()
    joint_CE = count_CE / max(1.0, total)
    class_C, expert_E = joint_CE.sum(axis=1), joint_CE.sum(axis=0)
    expected_CE = np.outer(class_C, expert_E)
    with np.errstate(divide="ignore", invalid="ignore"):
        parts_CE = np.where(joint_CE > 0, joint_CE * np.log2(joint_CE / expected_CE), 0.0)
        share_CE = np.nan_to_num(count_CE / count_CE.sum(axis=1, keepdims=True))
        lift_CE = np.nan_to_num(joint_CE / expected_CE)
    seen = (int((class_C > 0).sum()) - 1) * (int((expert_E > 0).sum()) - 1)
    information = max(0.0, float(parts_CE.sum()) - seen / (2 * max(1.0, total) * math.log(2)))
    entropy = float(-sum(share * math.log2(share) for share in class_C if share > 0))
    at = np.unravel_index(int(lift_CE.argmax()), lift_CE.shape)
    return {
        "share_CE": [[round(float(share), 6) for share in row] for row in share_CE],
        "information_bits": round(information, 6), "of_most": round(information / entropy, 6) if entropy else 0.0,
        "largest": {"class": int(at[0]), "expert": int(at[1]), "lift": round(float(lift_CE[at]), 4)},
    }  # fmt: skip


def analyse(
    training: Path, shards: ShardSet, tokens_per_domain: int, class_V: np.ndarray | None, classes: Sequence[str]
) -> dict[str, Any]:
    """Everything about the experts of a finished training.

    Args:
        training: folder with `final/` and, for saturation, permanent `checkpoints/`.
        shards: held-out text, one shard per domain.
        tokens_per_domain: read from each shard's beginning.
        class_V: class of every token id, or None.
        classes: their names.

    Returns:
        `layers`: by layer, load, router entropy, pairs, co-activation, specialisation by domain and by token class;
        `saturation`: by checkpoint and layer, with what chance gives; `domains`, `classes`, `experts`, `tokens`.

    Raises:
        DataError: no model is there, or it has no experts.
    """
    model = load_model(training / "final")
    if not model.routers():
        raise DataError(f"{training / 'final'} is a dense model; only a mixture of experts has experts to look at")
    length = model.settings.max_sequence
    final = watch_routing(model, shards, length, tokens_per_domain)
    layers = {str(layer): _layer(final, layer, class_V, len(classes)) for layer in final.chosen}
    earlier = {str(step): {str(layer): round(saturation(then.chosen[layer], chosen, final.experts), 6)
                           for layer, chosen in final.chosen.items()}
               for step, then in _earlier(training, model, shards, length, tokens_per_domain)}  # fmt: skip
    return {
        "experts": final.experts, "experts_per_token": model.settings.experts_per_token, "tokens": len(final.token_N),
        "domains": list(final.domains), "classes": list(classes) if class_V is not None else [], "layers": layers,
        "saturation": earlier, "chance_of_saturation": round(model.settings.experts_per_token / final.experts, 6),
    }  # fmt: skip


def _layer(routing: Routing, layer: int, class_V: np.ndarray | None, classes: int) -> dict[str, Any]:
    chosen_NK, experts = routing.chosen[layer], routing.experts
    together_EE = coactivation(chosen_NK, experts)
    found = {
        "load": load_of(chosen_NK, experts).tolist(), **load_numbers(load_of(chosen_NK, experts)),
        "router_entropy": round(routing.entropy[layer], 6),
        "coactivation": [[round(float(share), 4) for share in row] for row in together_EE],
        "pairs": lifted_pairs(chosen_NK, experts),
        "by_domain": specialisation(chosen_NK, routing.domain_N, len(routing.domains), experts),
    }  # fmt: skip
    if class_V is not None:
        found["by_class"] = specialisation(chosen_NK, class_V[routing.token_N], classes, experts)
    return found


def _earlier(
    training: Path, model: Decoder, shards: ShardSet, length: int, tokens: int
) -> Iterator[tuple[int, Routing]]:
    """What the run's permanent checkpoints chose, the newest first; `model` takes on their weights."""
    asked = json.loads((training / "final" / DESCRIPTION).read_text())["recipe"] or {}
    lora = LoraSettings.model_validate(asked["lora"]) if asked.get("lora") else None
    for checkpoint in read_checkpoints(training / "checkpoints"):
        held = {name: t for name, t in checkpoint.tensors.items() if not name.startswith(HEAD_PREFIX)}
        weights = {n.removeprefix("model."): t for n, t in held.items() if n.startswith("model.")}
        model.load_state_dict(merged_state(weights, lora) if lora else weights)
        yield checkpoint.step, watch_routing(model, shards, length, tokens)
