import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pipelines.errors import DataError, RecipeError
from pipelines.indexed import IndexedWriter, load_shards
from pipelines.shards import Blend, ShardSet
from trainer.metrics import read_metrics
from trainer.online import OnlineData, mix_online
from trainer.online_settings import OnlineSettings
from trainer.online_stream import OnlineStream
from trainer.recipe import TrainRecipe
from trainer.shard_stream import ShardReader, ShardStream
from trainer.stream import BlendStream, Part

ROOT = Path(__file__).resolve().parents[2]
RECIPE = TrainRecipe.model_validate({
    "name": "tiny",
    "model": {
        "layers": 1, "width": 16, "heads": 2, "kv_heads": 1, "head_dim": 8, "ffn_width": 24, "vocab_size": 32,
        "max_sequence": 16,
    },
    "stages": [{"tokens": 6144, "sequence_length": 16, "batch_tokens": 96, "learning_rate": 1e-2}],
    "checkpoint_every": 5, "validation_tokens": 100, "micro_batch_tokens": 32, "device": "cpu",
})  # fmt: skip
SHORT = RECIPE.model_copy(update={"stages": [RECIPE.stages[0].model_copy(update={"tokens": 2304})]})
EXPERTS = {"experts": 4, "expert_width": 8, "dense_layers": 0, "aux_loss": 0.01}
METHODS = ("doremi", "doge", "aioli", "ado")


def settings_of(method: str) -> OnlineSettings:
    return OnlineSettings.model_validate({"method": method, "aioli": {"rounds": 2, "probe_tokens": 64}})


def shards_of(folder: Path) -> ShardSet:
    """A domain that is learned at once, one of noise that nothing learns, and one between them, cut into two shards."""
    random = np.random.default_rng(0)
    makers = {
        "easy": lambda n: np.resize([1, 2, 3, 4], n),
        "noise": lambda n: random.integers(0, 32, n),
        "some-00000-of-00002": lambda n: np.resize(random.permutation(16), n),
        "some-00001-of-00002": lambda n: np.resize(random.permutation(16), n),
    }
    for name, maker in makers.items():
        with IndexedWriter(folder / name, 32) as writer:
            for document in range(20):
                writer.append(maker(30 + document), np.array([30 + document]))
    return load_shards(folder)


def data_of(folder: Path) -> OnlineData:
    shards = shards_of(folder / "train")
    held_out = ShardSet(tuple(shards.named(name) for name in ("easy", "noise", "some-00000-of-00002")))
    return OnlineData(shards, {"easy": 0.4, "noise": 0.4, "some": 0.2}, held_out)


def published(work: Path) -> dict[str, bytes]:
    files = (p for p in work.rglob("*") if p.is_file() and ".scratch" not in p.parts)
    return {p.relative_to(work).as_posix(): p.read_bytes() for p in files}


def test_steady_weights_draw_what_a_blend_draws(tmp_path: Path):
    shards, weights = shards_of(tmp_path), np.array([0.5, 0.25, 0.25])
    stream = OnlineStream(shards, ("easy", "noise", "some"), 3, 16)
    drawn = [stream.draw(weights, 8)[0] for _ in range(10)]
    blend = Blend.of({"easy": 0.5, "noise": 0.25, "some": 0.25}, shards)
    parts = [Part(weight, ShardStream(ShardReader(shard, 3), 16)) for weight, shard in blend.parts]
    batch = BlendStream(parts, 16, 80).batch(0, 80)
    assert np.array_equal(np.concatenate(drawn)[:, :-1], batch.inputs_BS)
    assert np.array_equal(np.concatenate(drawn)[:, 1:], batch.targets_BS)


def test_drawn_shares_follow_weights_that_move(tmp_path: Path):
    stream = OnlineStream(shards_of(tmp_path), ("easy", "noise", "some"), 3, 16)
    random = np.random.default_rng(1)
    for _ in range(50):
        _, domains = stream.draw(random.dirichlet([0.3, 0.3, 0.3]), 7)
        assert len(domains) == 7
    for row in stream.ledger().values():
        assert abs(row["requested"] - row["achieved"]) * 350 <= 2


def test_a_domain_of_no_weight_is_never_drawn(tmp_path: Path):
    stream = OnlineStream(shards_of(tmp_path), ("easy", "noise", "some"), 3, 16)
    _, domains = stream.draw(np.array([0.0, 1.0, 0.0]), 40)
    assert set(domains.tolist()) == {1}


def test_a_stream_goes_on_from_its_state(tmp_path: Path):
    shards, weights = shards_of(tmp_path), np.array([0.2, 0.5, 0.3])
    one, two = (OnlineStream(shards, ("easy", "noise", "some"), 3, 16) for _ in range(2))
    one.draw(weights, 13)
    two.restore(one.state())
    assert np.array_equal(one.draw(weights[::-1], 20)[0], two.draw(weights[::-1], 20)[0])


@pytest.mark.parametrize("method", METHODS)
def test_a_method_finds_weights_and_tells_what_it_drew(tmp_path: Path, method: str):
    outcome = mix_online(RECIPE, data_of(tmp_path), settings_of(method), tmp_path / "work")
    found = outcome.metrics
    assert list(found["weights"]) == ["easy", "noise", "some"]
    assert sum(found["weights"].values()) == pytest.approx(1)
    assert min(found["weights"].values()) > 0
    assert max(found["weights"].values()) - min(found["weights"].values()) > 1e-4  # it moved
    assert found == json.loads((tmp_path / "work" / "online.json").read_text())
    for each in found["rounds"]:
        drawn = each["domains"]
        assert sum(row["tokens"] for row in drawn.values()) == RECIPE.tokens
        assert all(abs(row["requested"] - row["achieved"]) <= 2 / 384 for row in drawn.values())
        assert set(each["held_out"]) == {"easy", "noise", "some-00000-of-00002"}
    steps = read_metrics(tmp_path / "work" / "round-1.jsonl")
    assert [line["step"] for line in steps] == list(range(1, 65))
    assert all(sum(line["weights"].values()) == pytest.approx(1, abs=2e-6) for line in steps)
    assert steps[-1]["losses"]["easy"] < steps[-1]["losses"]["noise"] - 0.5


def test_doremi_trains_a_reference_for_each_round(tmp_path: Path):
    found = mix_online(SHORT, data_of(tmp_path), settings_of("doremi"), tmp_path / "work").metrics
    assert [len(found["rounds"]), found["tokens"]] == [2, 4 * SHORT.tokens]
    assert found["weights"] == found["rounds"][1]["weights"] != found["rounds"][0]["weights"]
    references = {path.name for path in (tmp_path / "work" / ".scratch").glob("reference-*")}
    assert len(references) == 2


def test_aioli_and_ado_turn_from_noise_that_nothing_learns(tmp_path: Path):
    data = data_of(tmp_path)
    for method in ("aioli", "ado"):
        weights = mix_online(RECIPE, data, settings_of(method), tmp_path / method).metrics["weights"]
        prior = {"easy": 1 / 3, "noise": 1 / 3, "some": 1 / 3} if method == "aioli" else data.prior
        assert weights["noise"] < prior["noise"], method


@pytest.mark.parametrize("method", METHODS)
def test_no_order_of_names_or_files_changes_a_bit(tmp_path: Path, method: str):
    data, given = data_of(tmp_path), settings_of(method)
    assert data.validation is not None
    turned = OnlineData(ShardSet(data.shards.shards[::-1]), dict(reversed(list(data.prior.items()))), data.validation)
    mix_online(SHORT, data, given, tmp_path / "one")
    mix_online(SHORT, turned, given, tmp_path / "two")
    assert published(tmp_path / "one") == published(tmp_path / "two")


def test_experts_are_trained_too(tmp_path: Path):
    recipe = SHORT.model_copy(update={"model": SHORT.model.model_copy(update=EXPERTS)})
    for method in ("doremi", "doge"):
        mix_online(recipe, data_of(tmp_path), settings_of(method), tmp_path / method)
        (line, *_) = read_metrics(tmp_path / method / "round-1.jsonl")
        assert line["experts"]["0"]["used"] > 0


def test_what_cannot_work_is_refused(tmp_path: Path):
    data = data_of(tmp_path)
    short = RECIPE.model_copy(update={"stages": [RECIPE.stages[0].model_copy(update={"tokens": 960})]})
    with pytest.raises(RecipeError, match=r"aioli: 10 steps are too few .* it takes 12"):
        mix_online(short, data, settings_of("aioli"), tmp_path / "short")
    stages = [RECIPE.stages[0], RECIPE.stages[0].model_copy(update={"name": "two"})]
    with pytest.raises(RecipeError, match="has 2"):
        mix_online(RECIPE.model_copy(update={"stages": stages}), data, settings_of("ado"), tmp_path / "stages")
    with pytest.raises(DataError, match="aioli learns from held-out losses"):
        mix_online(RECIPE, OnlineData(data.shards, data.prior), settings_of("aioli"), tmp_path / "blind")


def in_a_child(folder: Path, work: Path, method: str) -> subprocess.Popen[bytes]:
    """Mix in another process."""
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
        "from test_online import RECIPE, mix_online, OnlineData, load_shards, ShardSet, settings_of\n"
        "shards = load_shards(Path(sys.argv[2]) / 'train')\n"
        "held = ShardSet(tuple(shards.named(n) for n in ('easy', 'noise', 'some-00000-of-00002')))\n"
        "data = OnlineData(shards, {'easy': 0.4, 'noise': 0.4, 'some': 0.2}, held)\n"
        "mix_online(RECIPE, data, settings_of(sys.argv[4]), Path(sys.argv[3]))\n"
    )
    here, environment = Path(__file__).parent, {**os.environ, "PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, "-c", code, str(here), str(folder), str(work), method]
    return subprocess.Popen(arguments, cwd=ROOT, env=environment)


def wait_for_lines(metrics: Path, lines: int, child: subprocess.Popen[bytes]) -> None:
    while child.poll() is None:
        if metrics.is_file() and metrics.read_bytes().count(b"\n") >= lines:
            return
        time.sleep(0.001)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_sigkill_at_any_step_changes_no_byte(tmp_path: Path, method: str):
    data = data_of(tmp_path)
    mix_online(RECIPE, data, settings_of(method), tmp_path / "undisturbed")
    work, killed = tmp_path / "killed", 0
    for lines in (7, 38):
        child = in_a_child(tmp_path, work, method)
        wait_for_lines(work / ".scratch" / "round-1" / "metrics.jsonl", lines, child)
        child.send_signal(signal.SIGKILL)
        killed += child.wait() == -signal.SIGKILL
    assert killed == 2
    mix_online(RECIPE, data, settings_of(method), work)
    assert published(work) == published(tmp_path / "undisturbed")
