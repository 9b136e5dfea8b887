"""A training step of a mixture of experts beside transformers' own implementations of the same model; CPU seconds.

Both models are dots.llm1 with the same weights and batch; a step is loss, backward, clipping and fused AdamW. Rounds
alternate in one process, and the ratio is the median over pairs. `batched_mm` copies each token's experts, so it is
asked only for the small batch.
"""

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.bench.cpu_time import cpu_seconds
from trainer.checkpoint import load_model, save_model
from trainer.device import torch_threads
from trainer.export import export_hf
from trainer.model import Decoder, new_model
from trainer.model_recipe import ModelSettings

pytestmark = pytest.mark.bench
EXPERTS, CHOSEN, POSITIONS, VOCABULARY = 64, 6, 256, 4096
ROUNDS, WARMUP = 5, 3  # in the first steps oneDNN still builds code for rows that it has not met
SHAPES = {  # width, expert width, rows of a batch, transformers' implementations
    "2048-tokens-256-wide": (256, 128, 8, ("grouped_mm", "eager")),
    "2048-tokens-512-wide": (512, 256, 8, ("grouped_mm",)),
    "256-tokens-256-wide": (256, 128, 1, ("grouped_mm", "eager", "batched_mm")),
}


def models(folder: Path, width: int, expert_width: int) -> tuple[Decoder, Any]:
    """One model twice: ours, and transformers' class with its weights."""
    from transformers import AutoModelForCausalLM

    settings = ModelSettings(
        layers=4, width=width, heads=width // 64, kv_heads=width // 64, head_dim=64, ffn_width=4 * width,
        vocab_size=VOCABULARY, max_sequence=POSITIONS, tie_embeddings=False, experts=EXPERTS,
        experts_per_token=CHOSEN, expert_width=expert_width, shared_experts=2, dense_layers=1,
    )  # fmt: skip
    save_model(folder / "ours", new_model(settings, seed=0))
    export_hf(folder / "ours", folder / "theirs")
    theirs = AutoModelForCausalLM.from_pretrained(folder / "theirs", dtype=torch.float32, local_files_only=True)
    return load_model(folder / "ours").train(), theirs.train()


def step_of(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        found = loss()
        found.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return float(found.detach())

    return step


@pytest.mark.parametrize("shape", SHAPES)
def test_a_step_beside_transformers(tmp_path: Path, shape: str):
    width, expert_width, rows, implementations = SHAPES[shape]
    tokens = torch.randint(0, VOCABULARY, (rows, POSITIONS + 1), generator=torch.Generator().manual_seed(0))
    inputs, targets = tokens[:, :-1], tokens[:, 1:].contiguous()
    ours, theirs = models(tmp_path, width, expert_width)
    our_step = step_of(ours, lambda: ours.loss(inputs, targets).total)
    their_step = step_of(theirs, lambda: theirs(inputs, labels=targets, shift_labels=targets, use_cache=False).loss)
    flops = ours.settings.flops_per_token(POSITIONS) * tokens[:, 1:].numel()
    with torch_threads(1):
        assert our_step() == pytest.approx(their_step(), abs=1e-5)  # the same work
        for implementation in implementations:
            theirs.set_experts_implementation(implementation)
            pairs = [(cpu_seconds(our_step), cpu_seconds(their_step)) for _ in range(WARMUP + ROUNDS)][WARMUP:]
            mine, other = (min(column) for column in zip(*pairs, strict=True))
            ratio = statistics.median(b / a for a, b in pairs)
            print(f"\n{shape}, {implementation}: {mine:.3f} s ({flops / mine / 1e9:.0f} GFLOP/s) beside {other:.3f} s, "
                  f"ratio {ratio:.2f}")  # fmt: skip
