"""`loam mix schedule`, `reuse` and `agree` on files, and training on a schedule."""

import json
from pathlib import Path

import numpy as np
import pytest

from mixtures.fitting import fit_laws
from mixtures.mixture import Domains, Mixture
from mixtures.schedule import Schedule
from mixtures.tables import Metrics, Ratios
from mixtures.validation import FitSettings
from pipelines.indexed import IndexedWriter
from tests.flows.conftest import Fails, Works


@pytest.fixture
def soil(tmp_path: Path) -> Path:
    """Domains, two mixtures and a fitted law: sand lowers the loss on `dry`, clay that on `wet`."""
    Domains.of({"sand": 6000, "clay": 4000}).write(tmp_path / "domains.yaml")
    Mixture(name="a", weights={"sand": 0.8, "clay": 0.2}).write(tmp_path / "a.yaml")
    Mixture(name="b", weights={"sand": 0.1, "clay": 0.9}).write(tmp_path / "b.yaml")
    sand_P = np.linspace(0, 1, 24)
    ratios = Ratios(tuple(f"r{i:02d}" for i in range(24)), ("sand", "clay"), np.stack([sand_P, 1 - sand_P], axis=1))
    noise = np.random.default_rng(0).normal(0, 1e-3, (24, 2))
    values = np.stack([2 + np.exp(-sand_P), 2 + np.exp(sand_P - 1)], axis=1) + noise
    metrics = Metrics(ratios.ids, ("dry", "wet"), values)
    fit_laws(ratios, metrics, FitSettings(laws=("exponential",))).write(tmp_path / "fit")
    ratios.write_csv(tmp_path / "ratios.csv")
    metrics.write_csv(tmp_path / "small.csv")
    Metrics(ratios.ids, ("dry", "wet"), values - 0.5).write_csv(tmp_path / "large.csv")
    return tmp_path


TWO_STAGES = ("mix", "schedule", "--mixture", "a.yaml", "--anneal", "b.yaml", "--domains", "domains.yaml")


def test_schedule_protects_replays_and_is_what_the_trainer_reads(works: Works, soil: Path):
    done = works(*TWO_STAGES, "--fit", "fit", "--tokens", "4096", "--share", "0.25", "--epoch-cap", "4", "--replay",
                 "sand=0.2", "--protect", "dry=0.1", "-o", "plan")["metrics"]  # fmt: skip
    assert done["stages"] == {"main": 3072, "anneal": 1024}
    assert 0 < done["shift"] < 1
    assert done["held_back_by"] == "dry"
    assert Schedule.read(soil / "plan" / "schedule.yaml").stages[1].weights["sand"] > 0.2
    assert works("check", "plan/schedule.yaml")["recipe"]["kind"] == "schedule"
    for split in ("train", "validation"):
        for name, size in (("sand", 150), ("clay", 100)):
            with IndexedWriter(soil / "data" / split / name, 32) as writer:
                writer.append(np.random.default_rng(size).integers(0, 31, 40 * size), np.full(size, 40))
    (soil / "t.yaml").write_text("""
kind: train
name: small
model: {layers: 1, width: 16, heads: 1, kv_heads: 1, head_dim: 16, ffn_width: 32, max_sequence: 32, vocab_size: 32}
stages: [{name: any, tokens: 1K, sequence_length: 32, batch_tokens: 128, learning_rate: 1e-3}]
""")
    told = works("train", "t.yaml", "--data", "data", "--mixture", "plan/schedule.yaml", "-o", "model")["metrics"]
    wanted = {stage.name: stage for stage in Schedule.read(soil / "plan" / "schedule.yaml").stages}
    assert [(stage["name"], stage["tokens"]) for stage in told["stages"]] == [("main", 3072), ("anneal", 1024)]
    for stage in told["stages"]:
        drawn = stage["domains"]
        shares = {name: drawn[name]["tokens"] / stage["tokens"] for name in drawn}
        assert shares == pytest.approx(wanted[stage["name"]].weights, abs=32 / 1024)


def test_stages_that_name_blends_want_a_schedule(fails: Fails, soil: Path):
    with IndexedWriter(soil / "data" / "sand", 32) as writer:
        writer.append(np.arange(400) % 32, np.full(10, 40))
    stage = "tokens: 1K, sequence_length: 32, batch_tokens: 128, learning_rate: 1e-3"
    (soil / "two.yaml").write_text(f"""
kind: train
name: two
model: {{layers: 1, width: 16, heads: 1, kv_heads: 1, head_dim: 16, ffn_width: 32, max_sequence: 32, vocab_size: 32}}
stages: [{{name: a, blend: wiki, {stage}}}, {{name: b, blend: code, {stage}}}]
""")
    fails(
        2,
        "draw from blends of their own: a 'wiki', b 'code'; leave `blend` out",
        "train",
        "two.yaml",
        "--data",
        "data",
        "-o",
        "m",
    )


def test_a_schedule_without_a_law_only_counts(works: Works, soil: Path):
    works(*TWO_STAGES, "--tokens", "4K", "-o", "plan")
    report = json.loads((soil / "plan" / "report.json").read_text())
    assert (report["shift"], report["protected"], report["predicted"]) == (1, {}, {})
    assert report["exposure"]["clay"]["epochs"]["anneal"] == pytest.approx(0.9 * 800 / 4000)


def test_schedules_that_cannot_be(fails: Fails, soil: Path):
    fails(3, "needs a fitted law: give --fit", *TWO_STAGES, "--tokens", "4K", "--protect", "dry=0", "-o", "x")
    fails(3, "needs 10K more tokens", *TWO_STAGES, "--tokens", "20K", "--epoch-cap", "1", "-o", "x")
    fails(2, "--replay 'sand': expected name=number", *TWO_STAGES, "--tokens", "4K", "--replay", "sand", "-o", "x")
    fails(2, "replay: 'loam' means no domain", *TWO_STAGES, "--tokens", "4K", "--replay", "loam=0.1", "-o", "x")


def test_reuse_designs_and_proposes(works: Works, fails: Fails, soil: Path):
    Domains.of({"sand": 6000, "clay": 4000, "peat": 2000}).write(soil / "new.yaml")
    given = ("mix", "reuse", "--mixture", "a.yaml", "--domains", "new.yaml")
    works(*given, "-n", 8, "--tokens", "10K", "--epoch-cap", "4", "-o", "swarm")
    ratios = Ratios.read_csv(soil / "swarm" / "ratios.csv")
    weights = dict(zip(ratios.domains, ratios.weights_PD.T, strict=True))
    assert weights["sand"] == pytest.approx(4 * weights["clay"])
    Metrics(ratios.ids, ("loss",), 2 + (weights["peat"][:, None] - 0.3) ** 2).write_csv(soil / "new.csv")
    works("mix", "fit", "--ratios", "swarm/virtual.csv", "--metrics", "new.csv", "-o", "law")
    done = works(*given, "--fit", "law", "-o", "best")["metrics"]
    assert done["weights"].keys() == {"sand", "clay", "peat"}
    assert Mixture.read(soil / "best" / "mixture.yaml").weights == done["weights"]
    fails(
        3, "no domain changed", "mix", "reuse", "--mixture", "a.yaml", "--domains", "domains.yaml", "-n", 8, "-o", "x"
    )
    fails(2, "--old-ratios and --old-domains belong together", *given, "-n", 8, "--old-ratios", "ratios.csv", "-o", "x")


def test_reuse_refuses_old_runs_before_it_writes(fails: Fails, soil: Path):
    Domains.of({"sand": 6000, "clay": 4000, "loam": 3000}).write(soil / "new.yaml")
    (soil / "old.csv").write_text("id,sand,silt\na,0.5,0.5\n")
    fails(3, "the table of old runs does not match the old domains: unknown 'silt'; missing 'clay'", "mix", "reuse",
          "--mixture", "a.yaml", "--domains", "new.yaml", "-n", "4", "--old-ratios", "old.csv", "--old-domains",
          "domains.yaml", "-o", "next")  # fmt: skip
    fails(3, "1 runs were asked for; expected at least 2", "mix", "reuse", "--mixture", "a.yaml", "--domains",
          "new.yaml", "-n", "1", "-o", "next")  # fmt: skip
    assert not list(soil.glob(".next.*"))


def test_agree_tells_and_draws(works: Works, fails: Fails, soil: Path):
    given = ("mix", "agree", "--metrics", "small.csv", "--against")
    done = works(*given, "large.csv", "--ratios", "ratios.csv", "-o", "same")["metrics"]
    assert done["agreement"]["dry"]["spearman"]["value"] == pytest.approx(1)
    assert done["mixtures"] == 24
    assert (soil / "same" / "agreement.svg").read_text().startswith("<svg")
    (soil / "other.csv").write_text("id,dry\nq1,1\nq2,2\n")
    fails(3, "0 mixtures are in both tables", *given, "other.csv", "-o", "x")
