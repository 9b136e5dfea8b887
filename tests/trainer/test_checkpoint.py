import json
from pathlib import Path

import pytest
import torch

from pipelines.errors import DataError
from trainer.checkpoint import (
    discard_after,
    load_checkpoint,
    load_model,
    read_checkpoints,
    save_model,
    tidy_checkpoints,
    write_checkpoint,
)
from trainer.model import new_model
from trainer.model_recipe import ModelSettings

SETTINGS = ModelSettings(layers=1, width=16, heads=2, kv_heads=1, head_dim=8, ffn_width=16, vocab_size=32)


def write(folder: Path, *steps: int) -> None:
    for step in steps:
        write_checkpoint(folder, step, {"x": torch.full((3,), float(step))}, {"mark": step}, kept=2)


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_two_are_kept_newest_first(tmp_path: Path):
    write(tmp_path, 9, 10, 100)
    found = list(read_checkpoints(tmp_path))
    assert [(c.step, c.note["mark"], c.tensors["x"][0].item()) for c in found] == [(100, 100, 100.0), (10, 10, 10.0)]


@pytest.mark.parametrize("damage", ["byte", "cut", "json", "note", "list", "gone"])
def test_a_damaged_one_falls_back(tmp_path: Path, damage: str):
    write(tmp_path, 1, 2)
    last = tmp_path / "step-000000002"
    if damage == "byte":
        flip_a_byte(last / "state.safetensors")
    elif damage == "cut":
        (last / "state.safetensors").write_bytes((last / "state.safetensors").read_bytes()[:20])
    elif damage == "json":
        (last / "state.json").write_text('{"step": ')
    elif damage == "note":
        text = (last / "state.json").read_text()
        (last / "state.json").write_text(text.replace('"mark": 2', '"mark": 3'))
    elif damage == "list":
        (last / "state.json").write_text("[]")
    else:
        (last / "state.safetensors").unlink()
    assert [c.step for c in read_checkpoints(tmp_path)] == [1]


@pytest.mark.parametrize("kept", [1, 2])
def test_a_damaged_one_beyond_is_not_counted_among_those_kept(tmp_path: Path, kept: int):
    write(tmp_path, 10, 20)
    flip_a_byte(tmp_path / "step-000000020" / "state.safetensors")
    write_checkpoint(tmp_path, 15, {"x": torch.ones(1)}, {}, kept=kept)
    assert [c.step for c in read_checkpoints(tmp_path)] == [15, 10][:kept]


def test_what_lies_beyond_is_discarded_and_named(tmp_path: Path):
    write(tmp_path / "a", 10, 20)
    write(tmp_path / "b", 12, 18)
    gone = discard_after(12, tmp_path / "a", tmp_path / "b")
    assert sorted(path.name for path in gone) == ["step-000000018", "step-000000020"]
    assert [c.step for c in read_checkpoints(tmp_path / "a", tmp_path / "b")] == [12, 10]


@pytest.mark.parametrize("published", [False, True])
def test_a_kill_while_one_takes_anothers_place_loses_neither(tmp_path: Path, published: bool):
    write(tmp_path, 7)
    (tmp_path / "step-000000007").rename(tmp_path / ".step-000000007.old")
    if published:  # killed before the old one was removed, else before the new one had its name
        write_checkpoint(tmp_path / "other", 7, {"x": torch.zeros(1)}, {"mark": "new"})
        (tmp_path / "other" / "step-000000007").rename(tmp_path / "step-000000007")
    (tmp_path / ".step-000000008.tmp").mkdir()
    tidy_checkpoints(tmp_path)
    assert [c.note["mark"] for c in read_checkpoints(tmp_path)] == ["new" if published else 7]
    assert not list(tmp_path.glob(".step-*"))


def test_a_half_written_folder_is_not_seen(tmp_path: Path):
    write(tmp_path, 1)
    (tmp_path / "step-000000001").rename(tmp_path / ".step-000000002.tmp")
    assert list(read_checkpoints(tmp_path)) == []


def test_a_model_comes_back_as_it_was(tmp_path: Path):
    model = new_model(SETTINGS, 0).eval()
    save_model(tmp_path / "final", model)
    settings, tensors = load_checkpoint(tmp_path / "final")
    assert settings == SETTINGS
    assert tensors.keys() == model.state_dict().keys()
    tokens = torch.arange(8)[None]
    assert torch.equal(load_model(tmp_path / "final")(tokens), model(tokens))


def test_saving_twice_gives_the_same_bytes(tmp_path: Path):
    for name in ("a", "b"):
        save_model(tmp_path / name, new_model(SETTINGS, 0))
    for file in ("model.safetensors", "recipe.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_changed_weight_is_refused(tmp_path: Path):
    save_model(tmp_path, new_model(SETTINGS, 0))
    flip_a_byte(tmp_path / "model.safetensors")
    with pytest.raises(DataError, match="expected sha256"):
        load_checkpoint(tmp_path)


def test_a_wrong_shape_is_named(tmp_path: Path):
    save_model(tmp_path, new_model(SETTINGS, 0))
    about = json.loads((tmp_path / "recipe.json").read_text())
    about["model"]["ffn_width"] = 24
    (tmp_path / "recipe.json").write_text(json.dumps(about))
    with pytest.raises(DataError, match=r"recipe\.json: it was changed after it was written"):
        load_checkpoint(tmp_path)
    del about["digest"]
    (tmp_path / "recipe.json").write_text(json.dumps(about))
    with pytest.raises(
        DataError, match=r"layers\.0\.mlp\.down_proj\.weight: expected shape \(16, 24\), found \(16, 16\)"
    ):
        load_checkpoint(tmp_path)


def test_a_folder_without_a_model_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="not a model that loam trained"):
        load_checkpoint(tmp_path)
