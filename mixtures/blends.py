"""Mixtures as blends of files: Megatron's `data_path` and Energon's metadataset, with weights in their unit.

A mixture's weights are shares of tokens. Megatron's pretraining data packs documents into samples of one length, so
there a share of tokens is the share of samples; where a sample is one document (Energon, Megatron's fine-tuning data) a
domain of long documents needs a smaller weight. Domains that would be read too often are refused before anything runs.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from mixtures.mixture import Domains, Mixture
from pipelines.errors import DataError
from pipelines.quantities import human
from pipelines.shards import Blend, ShardSet

Samples = Literal["packed", "documents"]
ENERGON = {"__module__": "megatron.energon", "__class__": "MetadatasetV2"}
DEEPEST = 20  # nested blends in a metadataset
LARGEST = 1e100  # of a weight; beyond, sums overflow
EXACT = 1e-9


def sequence_weights(blend: Blend, samples: Samples = "packed") -> list[float]:
    """The weights that make a trainer which draws samples read the blend's shares of tokens.

    Args:
        blend: shares of tokens.
        samples: `packed` when every sample holds the same number of tokens, `documents` when it is one document.

    Returns:
        One share of samples for each part; they sum to 1.

    Raises:
        DataError: a shard holds no tokens or no documents.
    """
    for _, shard in blend.parts:
        if not shard.tokens or not shard.documents:
            raise DataError(f"shard {shard.name!r} holds {shard.documents} documents and {shard.tokens} tokens")
    counts = [share * (shard.documents / shard.tokens if samples == "documents" else 1.0)
              for share, shard in blend.parts]  # fmt: skip
    total = math.fsum(counts)
    return [count / total for count in counts]


def token_shares(samples: Mapping[str, float], shards: ShardSet) -> dict[str, float]:
    """Shares of tokens from shares of samples that are documents: the inverse of `sequence_weights`.

    Raises:
        DataError: a domain has no shard, or its shards hold no documents.
    """
    tokens: dict[str, float] = {}
    for name, share in samples.items():
        own = shards.all_named(name)
        if not (documents := sum(shard.documents for shard in own)):
            raise DataError(f"the shards of {name!r} hold no documents")
        tokens[name] = share * sum(shard.tokens for shard in own) / documents
    total = math.fsum(tokens.values())
    return {name: value / total for name, value in tokens.items()}


def check_epochs(weights: Mapping[str, float], domains: Domains, tokens: int, caps: Mapping[str, float]) -> None:
    """Refuse a mixture that reads a domain more often than its cap.

    Args:
        weights: domain -> share of the tokens.
        domains: what there is.
        tokens: training budget.
        caps: domain -> how often it may be read; a domain without one may be read at will.

    Raises:
        DataError: names the worst domain, how often it would be read, and what would help.
    """
    held = domains.unique_tokens
    passes = {name: weight * tokens / held[name] for name, weight in weights.items() if name in caps}
    over = sorted(
        (name for name in passes if passes[name] > caps[name] * (1 + 1e-5)), key=lambda n: caps[n] / passes[n]
    )
    if over:
        worst, more = over[0], f" (and {len(over) - 1} more)" if len(over) > 1 else ""
        cap, budget = caps[worst], weights[worst] * tokens
        raise DataError(
            f"domain {worst!r} would be read {passes[worst]:.3g} times in {human(tokens)} tokens, its cap is {cap:g}"
            f"{more}: give it at most {cap * held[worst] / tokens:.4g} of the weight, or "
            f"{human(budget / cap - held[worst])} more tokens"
        )


def blend_rows(mixture: Mixture, shards: ShardSet, samples: Samples) -> list[dict[str, Any]]:
    """One row for each shard: prefix, share of tokens, share of samples, what it holds and how often it is read."""
    blend = Blend.of(mixture.weights, shards)
    epochs = blend.epochs(mixture.tokens) if mixture.tokens else {}
    weights = sequence_weights(blend, samples)
    return [
        {"domain": shard.domain, "shard": shard.name, "prefix": str(shard.prefix), "token_share": share,
         "sample_weight": weight, "tokens": shard.tokens, "documents": shard.documents,
         "epochs": epochs.get(shard.name)}
        for (share, shard), weight in zip(blend.parts, weights, strict=True)
    ]  # fmt: skip


def held_by(mixture: Mixture, shards: ShardSet) -> Domains:
    """The tokens that the shards hold of each domain with weight.

    Raises:
        DataError: a domain has no shard.
    """
    wanted = [name for name, weight in mixture.weights.items() if weight > 0]
    return Domains.of({name: sum(shard.tokens for shard in shards.all_named(name)) for name in wanted})


def to_data_path(parts: Sequence[tuple[float, str]]) -> list[str]:
    """A Megatron `data_path`: weight, prefix, weight, prefix; zero weights are left out."""
    return [item for weight, prefix in parts if weight > 0 for item in (repr(weight), prefix)]


def from_data_path(items: Sequence[object], domain_of: Mapping[str, str] | None = None) -> dict[str, float]:
    """Weights from a Megatron `data_path`, which are relative and are divided by their sum.

    Args:
        items: weight, prefix, weight, prefix, ...
        domain_of: prefix -> domain; shards of one domain are added up. Without it each prefix is its own domain.

    Raises:
        DataError: not pairs, a weight is not a positive number, or a prefix has no domain.
    """
    if len(items) % 2 or not items:
        raise DataError(f"data_path holds {len(items)} items, expected pairs of weight and prefix")
    pairs = [(_weight(weight, "data_path", prefix), str(prefix)) for weight, prefix in _pairs(items)]
    for _, prefix in pairs:
        if domain_of is not None and prefix not in domain_of:
            raise DataError(f"data_path: prefix {prefix!r} belongs to no domain")
    return _shares([(weight, prefix if domain_of is None else domain_of[prefix]) for weight, prefix in pairs],
                   "data_path")  # fmt: skip


def to_energon(weights: Mapping[str, float]) -> dict[str, Any]:
    """An Energon metadataset that blends one dataset for each domain, `./<domain>` beside the file."""
    blend = [{"weight": weight, "path": f"./{name}"} for name, weight in weights.items() if weight > 0]
    return {**ENERGON, "splits": {"train": {"blend": blend}}}


def from_energon(tree: object, split: str = "train") -> dict[str, float]:
    """Weights from an Energon metadataset: relative shares of samples, nested blends multiplied out.

    Raises:
        DataError: there is no such split, it is not blended by weight, or a weight is not a positive number.
    """
    splits = tree.get("splits") if isinstance(tree, Mapping) else None
    if not isinstance(splits, Mapping) or split not in splits:
        raise DataError(f"energon: expected a metadataset with `splits: {split}:`")
    return _shares(_flat(splits[split], 1.0, DEEPEST), "energon")


def _flat(node: object, factor: float, deepest: int) -> list[tuple[float, str]]:
    if not isinstance(node, Mapping) or not deepest:
        raise DataError("energon: expected `path:` or `blend:` with a list of weight and path")
    if "blend" not in node:
        if not isinstance(node.get("path"), str):
            how = next((key for key in ("blend_epochized", "concat", "join") if key in node), None)
            raise DataError(f"energon: `{how}` counts no shares; expected `blend`" if how else
                            "energon: an entry has no `path`")  # fmt: skip
        return [(factor, node["path"].removeprefix("./"))]
    if not isinstance(node["blend"], list) or not node["blend"]:
        raise DataError("energon: `blend` holds no list of weight and path")
    parts = [part if isinstance(part, Mapping) else {} for part in node["blend"]]
    weights = [_weight(part.get("weight", 1.0), "energon", part.get("path", "a nested blend")) for part in parts]
    if not (total := math.fsum(weights)) > 0:
        raise DataError("energon: all weights are 0")
    return [leaf for part, weight in zip(parts, weights, strict=True)
            for leaf in _flat(part, factor * weight / total, deepest - 1)]  # fmt: skip


def _pairs(items: Sequence[object]) -> list[tuple[object, object]]:
    return list(zip(items[::2], items[1::2], strict=True))


def _weight(value: object, where: str, owner: object) -> float:
    try:
        share = float(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else math.nan
    except ValueError:
        share = math.nan
    if not 0 <= share <= LARGEST:
        raise DataError(f"{where}: the weight of {owner!r} is {value!r}, expected a number from 0 up")
    return share


def _shares(pairs: Sequence[tuple[float, str]], where: str) -> dict[str, float]:
    """Weights by domain, divided by their sum."""
    sums: dict[str, list[float]] = {}
    for weight, domain in pairs:
        sums.setdefault(domain, []).append(weight)
    total = whole(math.fsum(weight for weight, _ in pairs))
    if not total > 0:
        raise DataError(f"{where}: all weights are 0")
    return {domain: math.fsum(weights) / total for domain, weights in sums.items()}


def whole(total: float) -> float:
    """A sum of weights that is 1 but for rounding, as 1: dividing by it would change every weight's last bit."""
    return 1.0 if abs(total - 1) < EXACT else total
