"""Domains of a few thousand tokens as shards, and recipes that search for a mixture of them in seconds."""

from pathlib import Path

import numpy as np

from pipelines.indexed import IndexedWriter

DOMAINS = {"even": 60, "odd": 60, "low": 24}  # documents of 41 tokens
VOCABULARY = 32


def write_shards(folder: Path) -> Path:
    """Shards of three domains that differ in parity and order, with held-out documents."""
    random = np.random.default_rng(0)
    for split, part in (("train", 1), ("validation", 5)):
        for parity, (name, size) in enumerate(DOMAINS.items()):
            step = 1 if name == "low" else 3
            documents = [np.append((parity + 2 * np.cumsum(random.integers(1, 1 + step, 40))) % 30, 31)
                         for _ in range(size // part)]  # fmt: skip
            with IndexedWriter(folder / split / name, VOCABULARY) as writer:
                writer.append(np.concatenate(documents), np.array([len(one) for one in documents]))
    return folder


def write_recipe(path: Path, shards: Path, more: str = "", tokens: str = "20K") -> Path:
    """A recipe of kind `ablate` over the shards.

    Args:
        path: YAML file to write.
        shards: folder of `write_shards`.
        more: further lines of its section `ablate`, without indent.
        tokens: of the final run.
    """
    prefixes = "".join(f"  {name}: {{train: train/{name}, validation: validation/{name}}}\n" for name in DOMAINS)
    lines = "".join(f"  {line}\n" for line in more.splitlines())
    path.write_text(f"""kind: ablate
name: sharded
root: {shards}
shards:
{prefixes}ablate:
  proxies: 6
  proxy: {proxy(8, "3K")}
  propose: {{epoch_cap: 6}}
{lines}train: {proxy(16, tokens)}
""")
    return path


def proxy(width: int, tokens: str) -> str:
    """A training recipe of one layer, on one line."""
    model = (
        f"{{layers: 1, width: {width}, heads: 1, kv_heads: 1, head_dim: 8, ffn_width: 16, max_sequence: 32, "
        f"vocab_size: {VOCABULARY}}}"
    )
    stage = f"{{name: main, tokens: {tokens}, sequence_length: 32, batch_tokens: 256, learning_rate: 1e-2}}"
    return f"{{name: width{width}, model: {model}, stages: [{stage}], validation_tokens: 1K, seed: 1, device: cpu}}"
