import resource
from pathlib import Path

import pytest
import torch

from pipelines.errors import StepError
from trainer.checkpoint import read_checkpoints
from trainer.checkpoint_writer import CheckpointWriter


@pytest.fixture
def writer(tmp_path: Path):
    writer = CheckpointWriter(tmp_path / "rolling", tmp_path / "stays", 2)
    yield writer
    writer.close()


def steps_in(folder: Path) -> list[int]:
    return [checkpoint.step for checkpoint in read_checkpoints(folder)]


def test_what_is_written_is_the_state_at_the_call(writer: CheckpointWriter, tmp_path: Path):
    state = {"x": torch.zeros(1 << 20)}
    note = {"losses": [1.0]}
    writer.prepare(state)
    for step in range(1, 6):
        state["x"].fill_(step)
        writer.save(step, state, note, stays=False)
        state["x"].fill_(-1)  # the loop goes on at once
        note["losses"].append(float(step))
    writer.wait()
    newest, older = read_checkpoints(tmp_path / "rolling")
    for checkpoint, step in ((newest, 5), (older, 4)):
        assert checkpoint.step == step
        assert torch.equal(checkpoint.tensors["x"], torch.full((1 << 20,), float(step)))
        assert checkpoint.note["losses"] == [1.0, *map(float, range(1, step))]


def test_permanent_ones_are_not_counted_among_the_last(writer: CheckpointWriter, tmp_path: Path):
    for step in range(1, 10):
        writer.save(step, {"x": torch.ones(1)}, {}, stays=step % 3 == 0)
    writer.wait()
    assert steps_in(tmp_path / "stays") == [9, 6, 3]
    assert steps_in(tmp_path / "rolling") == [8, 7]


def test_a_state_may_grow_and_change_its_type(writer: CheckpointWriter, tmp_path: Path):
    for state in ({"x": torch.ones(2)}, {"x": torch.ones(3, dtype=torch.int64), "y": torch.ones(1)}):
        writer.save(len(state), state, {}, stays=False)
        writer.wait()
    newest = next(read_checkpoints(tmp_path / "rolling"))
    assert newest.tensors["x"].tolist() == [1, 1, 1]
    assert newest.tensors["x"].dtype == torch.int64


def test_a_checkpoint_that_cannot_be_written_is_told_at_the_next(writer: CheckpointWriter, tmp_path: Path):
    (tmp_path / "rolling").write_text("in the way")
    writer.save(1, {"x": torch.ones(1)}, {}, stays=False)
    with pytest.raises(StepError, match=r"could not be written to .*run again to resume"):
        writer.save(2, {"x": torch.ones(1)}, {}, stays=False)


def test_a_full_disk_is_told_in_one_line_and_leaves_the_one_before(writer: CheckpointWriter, tmp_path: Path):
    writer.save(1, {"x": torch.ones(1)}, {}, stays=False)
    writer.wait()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))  # what a full disk is to the writer
    try:
        writer.save(2, {"x": torch.ones(1 << 20)}, {}, stays=False)
        with pytest.raises(StepError, match=r"could not be written to .*make room and run again to resume"):
            writer.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in (tmp_path / "rolling").iterdir()] == ["step-000000001"]
    writer.save(2, {"x": torch.ones(1 << 20)}, {}, stays=False)
    writer.wait()
    assert steps_in(tmp_path / "rolling") == [2, 1]
