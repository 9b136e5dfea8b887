"""Attention within documents and of latent form beside plain ways; weights through files beside transformers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.bench.cpu_time import cpu_seconds
from trainer.attention import attend, separation
from trainer.checkpoint import save_model
from trainer.export import export_hf
from trainer.hf_import import import_hf
from trainer.model import new_model
from trainer.model_recipe import ModelSettings

pytestmark = pytest.mark.bench
ROUNDS = 5


def paired(ours: Callable[[], object], theirs: Callable[[], object], rounds: int = ROUNDS) -> tuple[float, float]:
    """CPU seconds of both, the least of some rounds in turn."""
    ours(), theirs()
    times = [(cpu_seconds(ours), cpu_seconds(theirs)) for _ in range(rounds)]
    return min(time for time, _ in times), min(time for _, time in times)


def backward(attention: Callable[[], torch.Tensor]) -> Callable[[], None]:
    return lambda: attention().square().sum().backward()


@pytest.mark.parametrize("positions", [256, 1024, 4096])
@pytest.mark.parametrize("documents", [2, 8, 64])
def test_documents_one_by_one(positions: int, documents: int):
    torch.set_num_threads(1)
    rows = 4096 // positions
    q, k, v = (torch.randn(rows, positions, 4, 64, requires_grad=True) for _ in range(3))
    number_BT = (torch.arange(positions) // (positions // documents)).expand(rows, -1)

    def masked() -> torch.Tensor:
        allowed = (number_BT[:, None, :, None] == number_BT[:, None, None, :]).tril()
        return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), allowed)

    ours, theirs = paired(backward(lambda: attend(q, k, v, separation(number_BT), torch.float32)), backward(masked), 3)
    print(f"\n{positions} positions, {documents} documents a row: {ours * 1e3:.0f} ms, masked {theirs * 1e3:.0f} ms, "
          f"{theirs / ours:.2f} times")  # fmt: skip


@pytest.mark.parametrize(("positions", "size", "value_dim"), [(256, 192, 128), (1024, 192, 128), (1024, 48, 32)])
def test_values_padded_to_keys(positions: int, size: int, value_dim: int):
    torch.set_num_threads(1)
    q, k = (torch.randn(4, positions, 4, size, requires_grad=True) for _ in range(2))
    v = torch.randn(4, positions, 4, value_dim, requires_grad=True)

    def plain() -> torch.Tensor:
        return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), is_causal=True)

    ours, theirs = paired(backward(lambda: attend(q, k, v, None, torch.float32)), backward(plain))
    print(f"\n{positions} positions, {size} and {value_dim}: {ours * 1e3:.0f} ms, unpadded {theirs * 1e3:.0f} ms, "
          f"{theirs / ours:.2f} times")  # fmt: skip


def test_weights_pass_through_files(tmp_path: Path):
    """A round trip of files: in and out, against transformers' reading and writing of the same folder."""
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    shape = ModelSettings(
        layers=4, width=512, heads=8, kv_heads=8, head_dim=64, ffn_width=1024, vocab_size=16_000, max_sequence=64,
        experts=32, experts_per_token=4, expert_width=512, dense_layers=1,
    )  # fmt: skip
    save_model(tmp_path / "native", new_model(shape, 0))
    export_hf(tmp_path / "native", tmp_path / "hf")

    def ours() -> None:
        import_hf(tmp_path / "hf", tmp_path / "back")
        export_hf(tmp_path / "back" / "final", tmp_path / "again")

    def theirs() -> None:
        model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
        model.save_pretrained(tmp_path / "theirs")

    own, other = paired(ours, theirs, 3)
    size = 4 * shape.parameters() / 1e6
    print(f"\n{size:.0f} MB in and out: {own:.2f} s, transformers {other:.2f} s, {other / own:.2f} times")
