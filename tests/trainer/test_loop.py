import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError

from pipelines.errors import DataError, RecipeError, StepError
from pipelines.indexed import IndexedTokens, IndexedWriter, load_shards
from pipelines.shards import Blend, ShardSet
from tests.trainer.cycles import shards_of
from trainer.checkpoint import load_model
from trainer.fill_in_middle import FillInMiddle
from trainer.loop import train
from trainer.metrics import read_metrics
from trainer.model import new_model
from trainer.recipe import TrainRecipe
from trainer.validation import held_out_losses

ROOT = Path(__file__).resolve().parents[2]
RECIPE = TrainRecipe.model_validate({
    "name": "tiny",
    "model": {
        "layers": 2, "width": 16, "heads": 2, "kv_heads": 1, "head_dim": 8, "ffn_width": 24, "vocab_size": 32,
        "max_sequence": 16, "experts": 4, "expert_width": 8, "dense_layers": 1,
    },
    "stages": [
        {"name": "short", "tokens": 1024, "sequence_length": 8, "batch_tokens": 64, "learning_rate": 1e-2},
        {"name": "long", "tokens": 1024, "sequence_length": 16, "batch_tokens": 64, "learning_rate": 5e-3},
    ],
    "checkpoint_every": 5, "validate_every": 8, "validation_tokens": 100, "micro_batch_tokens": 32, "device": "cpu",
})  # fmt: skip
STAGE = RECIPE.stages[0].model_dump()
DENSE = RECIPE.model_copy(update={"model": RECIPE.model.model_copy(update={"experts": 0})})


def blend_of(shards: ShardSet) -> Blend:
    return Blend.of({"even": 0.7, "odd": 0.3}, shards)


def published(work: Path) -> dict[str, bytes]:
    files = (p for p in work.rglob("*") if p.is_file() and ".scratch" not in p.parts)
    return {p.relative_to(work).as_posix(): p.read_bytes() for p in files}


def test_a_run_learns_and_tells(tmp_path: Path):
    shards = shards_of(tmp_path / "shards")
    outcome = train(RECIPE, blend_of(shards), tmp_path / "work", shards)
    lines = read_metrics(tmp_path / "work" / "metrics.jsonl")
    steps = [line for line in lines if line["kind"] == "step"]
    assert [line["step"] for line in steps] == list(range(1, 33))
    assert steps[-1]["loss"] < steps[0]["loss"] - 0.5
    assert steps[-1]["tokens"] == RECIPE.tokens == outcome.metrics["tokens"] == 2048
    assert list(steps[0]["experts"]) == ["1"]
    assert [line["step"] for line in lines if line["kind"] == "held_out"] == [8, 16, 24, 32]
    short = outcome.metrics["stages"][0]
    assert (short["domains"]["even"]["tokens"], short["domains"]["odd"]["tokens"]) == (712, 312)  # 89 of 128 samples
    loads = pq.read_table(tmp_path / "work" / "expert_load.parquet").to_pandas()
    assert loads["tokens"].sum() == 2048 * 2
    held = held_out_losses(load_model(tmp_path / "work" / "final"), shards, 16, 100)
    assert held == outcome.metrics["held_out"]


def test_held_out_loss_scores_every_token_once(tmp_path: Path):
    shards = shards_of(tmp_path / "shards")
    train(DENSE, blend_of(shards), tmp_path / "work")
    model = load_model(tmp_path / "work" / "final")
    tokens = torch.from_numpy(np.fromfile(shards.named("even").prefix.with_suffix(".bin"), "<u2")[:38].astype(np.int64))
    each = []
    for start in range(0, 37, 16):
        window = tokens[start : start + 17]
        logits = model(window[None, :-1])[0]
        each.append(torch.nn.functional.cross_entropy(logits, window[1:], reduction="none"))
    expected = float(torch.cat(each).detach().double().mean())
    assert held_out_losses(model, shards, 16, 37)["even"] == {"loss": pytest.approx(expected, abs=2e-6), "tokens": 37}


def test_held_out_loss_of_documents_apart_is_that_of_each_alone(tmp_path: Path):
    shards = shards_of(tmp_path / "shards")
    shard = shards.named("even")
    model = new_model(DENSE.model.model_copy(update={"max_sequence": 128}), seed=3).eval()
    tokens = torch.from_numpy(np.fromfile(shard.prefix.with_suffix(".bin"), "<u2").astype(np.int64))
    ends = np.cumsum(IndexedTokens(shard.prefix).lengths)[:3].tolist()
    length = ends[-1]
    each = []
    for begin, end in zip([0, *ends[:-1]], ends, strict=True):
        logits = model(tokens[None, begin:end])[0]
        each.append(torch.nn.functional.cross_entropy(logits, tokens[begin + 1 : end + 1], reduction="none"))
    expected = float(torch.cat(each).detach().double().mean())
    found = held_out_losses(model, shards, length, length, separate_documents=True)["even"]
    assert found == {"loss": pytest.approx(expected, abs=2e-6), "tokens": length}
    assert found["loss"] != held_out_losses(model, shards, length, length)["even"]["loss"]
    recipe = DENSE.model_copy(update={"separate_documents": True})
    outcome = train(recipe, blend_of(shards), tmp_path / "work", validation=shards)
    trained = load_model(tmp_path / "work" / "final")
    assert outcome.metrics["held_out"] == held_out_losses(
        trained, shards, recipe.longest_sample, recipe.validation_tokens, separate_documents=True
    )


def test_micro_batches_sum_to_the_batch(tmp_path: Path):
    shards = shards_of(tmp_path / "shards")
    losses = []
    for micro in (0, 16):
        recipe = DENSE.model_copy(update={"micro_batch_tokens": micro})
        train(recipe, blend_of(shards), tmp_path / str(micro))
        losses.append([line["loss"] for line in read_metrics(tmp_path / str(micro) / "metrics.jsonl")])
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def in_a_child(folder: Path, work: Path) -> subprocess.Popen[bytes]:
    """Train in another process, from a recipe file."""
    (folder / "recipe.json").write_text(RECIPE.model_dump_json())
    code = (
        "import sys; from pathlib import Path; from pipelines.indexed import load_shards\n"
        "from pipelines.shards import Blend; from trainer.loop import train; from trainer.recipe import TrainRecipe\n"
        "folder, work = map(Path, sys.argv[1:]); shards = load_shards(folder / 'shards')\n"
        "recipe = TrainRecipe.model_validate_json((folder / 'recipe.json').read_bytes())\n"
        "train(recipe, Blend.of({'even': 0.7, 'odd': 0.3}, shards), work, shards)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", code, str(folder), str(work)], cwd=ROOT, env=environment)


def wait_for_lines(metrics: Path, lines: int, child: subprocess.Popen[bytes]) -> None:
    while child.poll() is None:
        if metrics.is_file() and metrics.read_bytes().count(b"\n") >= lines:
            return
        time.sleep(0.001)


def test_sigkill_at_any_step_changes_no_byte(tmp_path: Path):
    shards = shards_of(tmp_path / "shards")
    train(RECIPE, blend_of(shards), tmp_path / "undisturbed", shards)
    work = tmp_path / "killed"
    killed = 0
    for lines in (7, 23):  # between checkpoints of the first stage, then of the second
        child = in_a_child(tmp_path, work)
        wait_for_lines(work / "metrics.jsonl", lines, child)
        child.send_signal(signal.SIGKILL)
        killed += child.wait() == -signal.SIGKILL
    assert killed == 2
    train(RECIPE, blend_of(shards), work, shards)
    assert published(work) == published(tmp_path / "undisturbed")


def test_a_torn_checkpoint_and_torn_logs_change_no_byte(tmp_path: Path):
    shards = shards_of(tmp_path / "shards")
    work = tmp_path / "work"
    train(RECIPE, blend_of(shards), work, shards)
    before = published(work)
    newest = max((work / ".scratch" / "checkpoints").iterdir())
    (newest / "state.safetensors").write_bytes(b"torn")
    (work / "metrics.jsonl").write_bytes(before["metrics.jsonl"] + b'{"kind": "st')
    train(RECIPE, blend_of(shards), work, shards)
    assert published(work) == before


def test_logs_shorter_than_the_checkpoints_begin_anew(tmp_path: Path):
    shards = shards_of(tmp_path / "shards")
    work = tmp_path / "work"
    train(RECIPE, blend_of(shards), work, shards)
    before = published(work)
    (work / "metrics.jsonl").write_bytes(b"")
    train(RECIPE, blend_of(shards), work, shards)
    assert published(work) == before


def test_another_recipe_is_refused(tmp_path: Path):
    shards = shards_of(tmp_path / "shards")
    train(DENSE, blend_of(shards), tmp_path / "work")
    with pytest.raises(DataError, match="checkpoints of another recipe"):
        train(DENSE.model_copy(update={"seed": 1}), blend_of(shards), tmp_path / "work")


def test_a_loss_that_is_not_finite_names_its_step(tmp_path: Path):
    shards = shards_of(tmp_path / "shards")
    stages = [DENSE.stages[0].model_copy(update={"learning_rate": 1e30, "warmup": 0.0})]
    with pytest.raises(StepError, match=r"step \d+ \(stage short\) has loss .* norm nan"):
        train(DENSE.model_copy(update={"stages": stages}), blend_of(shards), tmp_path / "work")


def test_a_vocabulary_is_required(tmp_path: Path):
    shards = shards_of(tmp_path / "shards")
    recipe = DENSE.model_copy(update={"model": DENSE.model.with_vocabulary(0)})
    with pytest.raises(RecipeError, match="vocab_size"):
        train(recipe, blend_of(shards), tmp_path / "work")


def test_shards_of_another_tokenizer_are_told_at_once(tmp_path: Path):
    shards = shards_of(tmp_path / "shards")
    small = DENSE.model_copy(update={"model": DENSE.model.with_vocabulary(15)})
    with pytest.raises(DataError, match="domain odd has token 15, the model knows 15"):
        train(small, blend_of(shards), tmp_path / "work")
    with pytest.raises(DataError, match=r"held-out shard odd at .* has token 15, the model knows 15"):
        train(small, blend_of(shards), tmp_path / "other", shards)
    with IndexedWriter(tmp_path / "short" / "even", 32) as writer:
        writer.append(np.array([1]), np.array([1]))
    with pytest.raises(DataError, match="holds 1 tokens, two are needed"):
        train(DENSE, blend_of(shards), tmp_path / "third", load_shards(tmp_path / "short"))
    assert not (tmp_path / "third").exists()  # before a step was taken


def test_metrics_hold_no_clock(tmp_path: Path):
    shards = shards_of(tmp_path / "shards")
    train(DENSE, blend_of(shards), tmp_path / "work")
    keys = {key for line in read_metrics(tmp_path / "work" / "metrics.jsonl") for key in line}
    assert keys == {"kind", "step", "stage", "loss", "lr", "grad_norm", "tokens"}
    assert json.loads((tmp_path / "work" / "training.json").read_text())["steps"] == 32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stages": [{**STAGE, "tokens": 10**15}]}, "more than 2147483648 samples"),
        ({"stages": [{**STAGE, "batch_tokens": 8 * 10**18}]}, "more than 2147483648 samples"),
        ({"optimizer": {"betas": [0.9, 1.0]}}, "less than 1"),
        ({"optimizer": {"betas": [float("nan"), 0.9]}}, "finite number"),
        ({"threads": 10**6}, "less than or equal to 1024"),
    ],
)
def test_a_run_that_cannot_be_is_refused(change: dict, message: str):
    with pytest.raises(ValidationError, match=message):
        TrainRecipe.model_validate(RECIPE.model_dump(mode="json") | change)


def test_a_domain_to_cut_must_be_there(tmp_path: Path):
    cut = FillInMiddle(prefix=29, suffix=30, middle=31, domains=("even", "odds"))
    recipe = RECIPE.model_copy(update={"stages": [RECIPE.stages[0].model_copy(update={"fill_in_middle": cut})]})
    with pytest.raises(DataError, match="fill_in_middle names domain 'odds'; there is: even, odd"):
        train(recipe, blend_of(shards_of(tmp_path / "shards")), tmp_path / "work")
