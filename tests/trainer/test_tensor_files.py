"""Weights read and written one tensor at a time."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from pipelines.errors import DataError
from trainer.checkpoint import save_model
from trainer.export import export_hf
from trainer.model import new_model
from trainer.model_recipe import ModelSettings
from trainer.tensor_files import TensorFiles, write_tensors


@settings(max_examples=20, deadline=None)
@given(shapes=st.lists(st.lists(st.integers(1, 5), max_size=3), min_size=1, max_size=5))
def test_what_is_written_is_what_safetensors_reads(tmp_path_factory: pytest.TempPathFactory, shapes: list[list[int]]):
    file = tmp_path_factory.mktemp("files") / "x.safetensors"
    tensors = {f"t{n}": torch.randn(shape) for n, shape in enumerate(shapes)}
    pieces = [part for tensor in tensors.values() for part in tensor.flatten().split(3)]
    write_tensors(file, {name: tuple(t.shape) for name, t in tensors.items()}, pieces, digest := hashlib.sha256())
    found = load_file(file)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert digest.hexdigest() == hashlib.sha256(file.read_bytes()).hexdigest()


def test_shapes_are_known_before_numbers_are_read(tmp_path: Path):
    save_file({"a": torch.ones(3, 2), "b": torch.zeros(4)}, tmp_path / "one.safetensors")
    save_file({"c": torch.ones(1)}, tmp_path / "two.safetensors")
    files = TensorFiles(tmp_path)
    assert files.shapes == {"a": (3, 2), "b": (4,), "c": (1,)}
    assert torch.equal(files.get("a"), torch.ones(3, 2))


def test_only_files_that_the_index_names_are_read(tmp_path: Path):
    save_file({"a": torch.ones(3)}, tmp_path / "model-1.safetensors")
    save_file({"a": torch.zeros(3)}, tmp_path / "consolidated.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    assert torch.equal(TensorFiles(tmp_path).get("a"), torch.ones(3))
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}))
    with pytest.raises(DataError, match=r"model-2.safetensors is missing, though .* names it"):
        TensorFiles(tmp_path)
    for text in ("[]", "{", '{"weight_map": 3}', "[" * 100_000):
        index.write_text(text)
        with pytest.raises(DataError, match="is no index of weights"):
            TensorFiles(tmp_path)
    for name in ("../model-1.safetensors", str(tmp_path / "model-1.safetensors"), "", "..", 3):  # not hashed with it
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(DataError, match=r"expected files of its own folder|is missing, though"):
            TensorFiles(tmp_path)


def test_a_tensor_is_in_one_file_only(tmp_path: Path):
    save_file({"a": torch.ones(3)}, tmp_path / "model-1.safetensors")
    save_file({"a": torch.zeros(3)}, tmp_path / "model-2.safetensors")
    with pytest.raises(DataError, match=r"tensor a is in .*model-1.safetensors and .*model-2.safetensors"):
        TensorFiles(tmp_path)


PEAK = """
import resource, sys
from pathlib import Path
import torch
from trainer.checkpoint import load_model
from trainer.export import export_hf
from trainer.hf_import import import_hf
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
torch.ones(8, 8) @ torch.ones(8, 8)
before = peak()
folder = Path(sys.argv[1])
if sys.argv[2] == "pass": import_hf(folder / "hf", folder / "back"); export_hf(folder / "back/final", folder / "again")
else: model = load_model(folder / "native")
print("peak", peak() - before)
"""


@pytest.mark.slow
def test_a_large_model_is_never_twice_in_memory(tmp_path: Path):
    """1.26 GB of weights: import and export hold a part of it, loading holds it once."""
    shape = ModelSettings(
        layers=6, width=1024, heads=8, kv_heads=8, head_dim=128, ffn_width=2048, vocab_size=16_000, max_sequence=64,
        experts=16, experts_per_token=2, expert_width=1024, dense_layers=1,
    )  # fmt: skip
    save_model(tmp_path / "native", new_model(shape, 0))
    export_hf(tmp_path / "native", tmp_path / "hf", max_file_bytes=300 << 20)
    size = 4 * shape.parameters()
    assert size > 1.2e9

    def peak(how: str) -> int:
        command = [sys.executable, "-c", PEAK, str(tmp_path), how]
        return 1024 * int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])

    assert peak("pass") < 0.6 * size
    assert peak("load") < 1.4 * size
