"""`loam track`, `loam report` and `loam experts` on what `loam train` wrote."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from flows.experts_report import load_at_the_end
from flows.training_report import PAGE, thinned, training_sections, write_training_report
from tests.flows.conftest import Command, Fails, Works
from tests.flows.small_shards import write_small_shards

MODEL = """kind: train
name: small
model: {layers: 2, width: 16, heads: 1, kv_heads: 1, head_dim: 8, ffn_width: 24, vocab_size: 64, max_sequence: 32,
        experts: 4, expert_width: 8}
stages: [{tokens: 2K, sequence_length: 16, batch_tokens: 128, learning_rate: 1e-2}]
validation_tokens: 400
checkpoint_every: 8
checkpoint_permanent: 8
device: cpu
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "small.yaml").write_text(MODEL)
    return write_small_shards(tmp_path / "data", ["code", "web"])


def test_experts_of_a_training(works: Works, fails: Fails, data: Path, tmp_path: Path):
    works("train", "small.yaml", "--data", data, "--out", "trained")
    assert (tmp_path / "trained" / ".journal" / "provenance.jsonl").is_file()
    done = works("experts", "trained", "--data", data, "--out", "looked", "--set", "tokens_per_domain=200")
    found = json.loads((tmp_path / "looked" / "experts.json").read_text())
    assert done["metrics"]["layers"] == len(found["layers"]) == 1
    assert sorted(map(int, found["saturation"])) == [8, 16]
    assert list(found["training_load"]) == ["1"]
    page = (tmp_path / "looked" / "experts.html").read_text()
    assert page.count("<svg") == 5  # load, spread, co-activation, saturation, domains
    assert done["metrics"]["tokens_of"] == "held-out text"
    assert "400 tokens of held-out text, 2 domains" in page
    fails(3, "holds no training", "experts", data, "--data", data, "--out", "nothing")


@pytest.mark.parametrize("given", [".", "train"])
def test_experts_on_training_shards_say_so(works: Works, call: Command, data: Path, tmp_path: Path, given: str):
    works("train", "small.yaml", "--data", data, "--out", "trained")
    sets = ("--set", "tokens_per_domain=200")
    code, out, err = call("experts", "trained", "--data", data / "validation", "--out", "held-out", *sets)
    assert (code, err) == (0, "")
    assert "tokens_of: held-out text" in out
    (data / "validation").rename(tmp_path / "elsewhere")
    code, out, err = call("experts", "trained", "--data", data / given, "--out", "looked", *sets)
    assert code == 0, err
    assert "the numbers are of training shards, not of held-out text" in err
    assert len(err.splitlines()) == 1
    assert "tokens_of: training shards" in out
    page = (tmp_path / "looked" / "experts.html").read_text()
    assert "400 tokens of training shards, 2 domains" in page
    assert "spread, training shards" in page
    assert "held" not in page


def test_dead_experts_are_counts(works: Works, call: Command, data: Path, tmp_path: Path):
    """A router that looks at nothing but its bias sends every token to the same two of four experts."""
    import torch

    from trainer.checkpoint import load_model, save_model

    works("train", "small.yaml", "--data", data, "--out", "trained")
    model = load_model(tmp_path / "trained" / "final")
    with torch.no_grad():
        router = model.routers()[1]
        router.weight.zero_()
        assert router.e_score_correction_bias is not None
        router.e_score_correction_bias.copy_(torch.tensor([1.0, 1.0, 0.0, 0.0]))
    save_model(tmp_path / "trained" / "final", model)
    code, out, _ = call("experts", "trained", "--data", data, "--out", "looked")
    assert code == 0
    assert "  dead_experts:\n    layer 1: dead 2, of 4\n" in out


def test_a_prediction_module_is_no_layer(works: Works, data: Path, tmp_path: Path):
    (tmp_path / "further.yaml").write_text(MODEL.replace("expert_width: 8}", "expert_width: 8, mtp_layers: 1}"))
    works("train", "further.yaml", "--data", data, "--out", "trained")
    works("experts", "trained", "--data", data, "--out", "looked", "--set", "tokens_per_domain=200")
    assert list(load_at_the_end(tmp_path / "trained" / "expert_load.parquet")) == ["1", "2"]
    (tmp_path / "trained" / "final").rename(tmp_path / "gone")  # as while it still goes
    for page in (tmp_path / "trained" / PAGE, tmp_path / "looked" / "experts.html",
                 write_training_report(tmp_path / "trained", tmp_path / "page.html")):  # fmt: skip
        assert '<td class="text">module 1 for further tokens</td>' in page.read_text()
        assert "layer 2" not in page.read_text()


WATCHED = """
gates: {warn_ratio: 1.0001, at_warning: [raise_replay]}
spikes: {window: 3, least: 2, sigmas: 0.0001, most_in_a_row: 20}
validate_every: 4
"""


def test_a_training_has_a_page(works: Works, call: Command, data: Path, tmp_path: Path):
    (tmp_path / "watched.yaml").write_text(MODEL + WATCHED)
    for out in ("trained", "again"):
        code, _, err = call("train", "watched.yaml", "--data", data, "--out", out)
        assert (code, "skipped" in err) == (0, True)  # a spike is told at once
    page = (tmp_path / "trained" / ".journal" / "report.html").read_text()
    heads = re.findall("<h2>(.*?)</h2>", page)
    assert heads == ["Loss", "Rate and gradient", "What it read", "Expert load", "Gates", "Skipped steps", "Speed",
                     "Made with"]  # fmt: skip
    assert page.count("<svg") == 5  # loss, rate and gradient, load, spread, speed
    assert "held out: code" in page
    summary = json.loads((tmp_path / "trained" / "training.json").read_text())
    (stage,) = summary["stages"]
    numbers = {
        row[0]: row[1:] for row in re.findall('<tr><td class="text">(.*?)</td><td>(.*?)</td><td>(.*?)</td></tr>', page)
    }
    assert numbers[f"stage {stage['name']}"] == (f"{stage['first_loss']:.4g}", f"{stage['last_loss']:.4g}")
    assert numbers["held out: web"][1] == f"{summary['held_out']['web']['loss']:.4g}"
    assert f"all</td><td>{summary['parameters']:,}<" in page
    assert f"active for a token</td><td>{summary['active_parameters']:,}<" in page
    assert re.search(r"memory, largest</td><td class=\"text\">[0-9.]+ [MG]B<", page)
    assert 'begun</td><td class="text">once<' in page
    assert "standard deviations above" in page
    code, out, _ = call("train", "watched.yaml", "--data", data, "--out", "trained")
    assert (code, out.splitlines()[-1]) == (0, "report: trained/.journal/report.html")
    code, out, _ = call("report", "trained")
    assert (code, out) == (0, "trained/.journal/report.html\n")
    assert (tmp_path / out.strip()).read_text() == page  # the same journal gives the same page
    first, second = (training_sections(tmp_path / name) for name in ("trained", "again"))
    assert first == second  # what no clock decides is the same in both
    assert "report.html" not in (tmp_path / "trained" / "manifest.json").read_text()


def test_a_training_that_still_goes_has_a_page(works: Works, call: Command, data: Path, tmp_path: Path):
    works("train", "small.yaml", "--data", data, "--out", "trained")
    work = tmp_path / ".live.0123456789ab.work"
    (tmp_path / "trained").rename(work)
    lines = (work / "metrics.jsonl").read_text().splitlines(keepends=True)
    (work / "metrics.jsonl").write_text("".join(lines[:5]) + lines[5][:20])
    (work / "training.json").unlink()
    (work / "expert_load.parquet").unlink()
    code, out, _ = call("report", "live", "--out", "page.html")
    assert (code, out) == (0, "page.html\n")
    assert "5 steps, 640 tokens, not over yet" in (tmp_path / "page.html").read_text()


def test_long_curves_are_thinned_and_keep_their_ends():
    assert thinned([1.0, 2.0]) == [1.0, 2.0]
    assert thinned([]) == []
    many = thinned(list(map(float, range(10_000))), lambda window: window[-1])
    assert (len(many), many[-1]) == (1000, 9999.0)


def test_track_says_what_it_needs(works: Works, fails: Fails, data: Path):
    works("train", "small.yaml", "--data", data, "--out", "trained")
    fails(2, "--to 'paper' is not known; there are: mlflow, wandb", "track", "trained", "--to", "paper", "--out", "t")
    fails(3, "holds no training", "track", data, "--to", "mlflow", "--out", "t")
    for extra in ("mlflow", "wandb"):
        if importlib.util.find_spec(extra) is None:
            fails(5, f"pip install -e '.[{extra}]'", "track", "trained", "--to", extra, "--out", "t")
        else:
            first, again = (works("track", "trained", "--to", extra, "--out", "t") for _ in range(2))
            assert (first["added"], again["added"], first["finished"]) == (16, 0, True)
