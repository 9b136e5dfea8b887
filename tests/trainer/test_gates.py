"""Stage gates: a source that is forgotten is told, acted on, and the decision outlives a kill."""

import math
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import DataError
from pipelines.indexed import IndexedWriter, load_shards, origin_path
from pipelines.shards import Blend
from tests.trainer.cycles import shards_of
from trainer.gate_settings import GateSettings
from trainer.gates import bytes_of, compared
from trainer.loop import train
from trainer.metrics import read_metrics
from trainer.recipe import TrainRecipe

MODEL = {
    "layers": 1, "width": 16, "heads": 1, "kv_heads": 1, "head_dim": 8, "ffn_width": 24, "vocab_size": 32,
    "max_sequence": 16,
}  # fmt: skip
STAGE = {"tokens": 1536, "sequence_length": 8, "batch_tokens": 64, "learning_rate": 3e-2}
RECIPE = TrainRecipe.model_validate({
    "name": "forgetful", "model": MODEL, "checkpoint_every": 6, "validation_tokens": 100, "device": "cpu",
    "stages": [{"name": name, "blend": name, **STAGE} for name in ("even", "odd", "again")],
    "gates": {"at_warning": ["raise_replay"], "at_limit": ["raise_replay", "lower_rate"], "replay_step": 0.3},
})  # fmt: skip


def run(recipe: TrainRecipe, folder: Path, work: str) -> list[dict]:
    shards = shards_of(folder / "shards")
    one = {name: Blend.of({name: 1.0}, shards) for name in ("even", "odd")}
    train(recipe, {**one, "again": one["odd"]}, folder / work, shards)
    return read_metrics(folder / work / "metrics.jsonl")


def gated(**changes: object) -> TrainRecipe:
    assert RECIPE.gates is not None
    return RECIPE.model_copy(update={"gates": RECIPE.gates.model_copy(update=changes)})


@given(best=st.floats(0.1, 12), rise=st.floats(0, 3))
def test_ratios_are_those_of_bits_and_perplexity(best: float, rise: float):
    found = compared(best + rise, best, GateSettings())
    assert found["bits_ratio"] == pytest.approx((best + rise) / best, abs=1e-6)
    assert found["perplexity_ratio"] == pytest.approx(math.exp(best + rise) / math.exp(best), rel=1e-5)
    bits, perplexity = (best + rise) / best >= 1.05, math.exp(rise) >= 1.5
    assert found["verdict"] == ("limit" if perplexity else "warning" if bits else "pass")


def test_a_forgotten_source_is_told_and_acted_on(tmp_path: Path):
    lines = run(RECIPE, tmp_path, "work")
    gates = [line for line in lines if line["kind"] == "gate"]
    assert [gate["verdict"] for gate in gates] == ["pass", "limit", "pass"]  # replay mended it
    even = gates[1]["sources"]["even"]
    assert (even["verdict"], even["best_step"], gates[1]["sources"]["odd"]["verdict"]) == ("limit", 24, "pass")
    measured = {line["step"]: line["domains"]["even"]["loss"] for line in lines if line["kind"] == "held_out"}
    assert even["perplexity_ratio"] == pytest.approx(math.exp(measured[48] - measured[24]), rel=1e-5)
    assert gates[1]["decision"]["replay"] == 0.3
    rates = {line["stage"]: line["lr"] for line in lines if line["kind"] == "step"}
    assert rates["again"] == pytest.approx(rates["odd"] / 2)
    assert measured[72] < measured[48]
    assert gates[1]["decision"]["reason"].startswith("even is at ")


def test_a_stop_ends_the_run(tmp_path: Path):
    lines = run(gated(at_limit=("stop",)), tmp_path, "work")
    assert max(line["step"] for line in lines) == 48
    assert (tmp_path / "work" / "final").is_dir()


def test_sources_that_are_not_watched_stop_nothing(tmp_path: Path):
    lines = run(gated(at_limit=("stop",), sources=("odd",)), tmp_path, "work")
    assert max(line["step"] for line in lines) == 72
    with pytest.raises(DataError, match="gates watch 'code', of which nothing is held out; there is: even, odd"):
        run(gated(sources=("code",)), tmp_path, "other")


@pytest.mark.parametrize("step", [24, 47, 60])
def test_a_run_killed_anywhere_decides_the_same(tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch):
    """Ended after a step as a kill would end it: nothing is finished, and what was logged since stays in the files."""
    run(RECIPE, tmp_path, "whole")
    import trainer.loop as loop

    taken = loop.train_step

    class Killed(BaseException):
        pass

    def until(run, *rest):
        if run.step == step:
            raise Killed
        return taken(run, *rest)

    monkeypatch.setattr(loop, "train_step", until)
    with pytest.raises(Killed):
        run(RECIPE, tmp_path, "killed")
    monkeypatch.setattr(loop, "train_step", taken)
    run(RECIPE, tmp_path, "killed")
    files = {w: {p.relative_to(tmp_path / w): p.read_bytes() for p in (tmp_path / w).rglob("*") if p.is_file()
                 and ".scratch" not in p.parts} for w in ("whole", "killed")}  # fmt: skip
    assert files["whole"] == files["killed"]
    shutil.rmtree(tmp_path / "killed")


def test_replay_never_rises_beyond_its_most(tmp_path: Path):
    lines = run(
        gated(replay_step=0.001, most_replay=0.0015, warn_ratio=1.001, at_limit=("raise_replay",)), tmp_path, "work"
    )
    decisions = [line.get("decision") for line in lines if line["kind"] == "gate"]
    assert [decision["replay"] for decision in decisions if decision] == [0.001, 0.0015]


def test_bytes_of_the_scored_tokens_follow_the_sidecar(tmp_path: Path):
    with IndexedWriter(tmp_path / "d", 32) as writer:
        for length in (10, 20, 30):
            writer.append(np.arange(length) % 32, np.array([length]))
    shard = load_shards(tmp_path).shards[0]
    assert bytes_of(shard, 15) is None
    pq.write_table(pa.table({"id": ["a", "b", "c"], "bytes": [40, 100, 90]}), origin_path(shard.prefix))
    assert bytes_of(shard, 59) == 230
    assert bytes_of(shard, 19) == 40 + 100 * 10 / 20


@pytest.mark.parametrize(
    ("sidecar", "message"), [(None, "cannot be read"), ([40, 100], "has 2 rows, its shard 20 documents")]
)
def test_a_damaged_sidecar_is_told_before_the_first_step(tmp_path: Path, sidecar: list[int] | None, message: str):
    path = Path(origin_path(shards_of(tmp_path / "shards").named("odd").prefix))
    path.write_bytes(b"torn")
    if sidecar is not None:
        pq.write_table(pa.table({"id": ["a", "b"], "bytes": sidecar}), path)
    with pytest.raises(DataError, match=f"odd.*{message}"):
        run(RECIPE, tmp_path, "work")
    assert not (tmp_path / "work").exists()
