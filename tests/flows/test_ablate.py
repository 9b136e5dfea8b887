"""`loam ablate` over shards: what it writes, says and refuses, and `loam train` on what it found."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mixtures.mixture import Mixture
from tests.flows.ablation import DOMAINS, proxy, write_recipe, write_shards
from tests.flows.conftest import Fails, Loam, Works, only

STEPS = ["swarm", "proxies", "law", "confirm", "mixture", "report"]


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which a search was made: `sh`, `r.yaml` and `runs/sharded@...`."""
    folder = tmp_path_factory.mktemp("searched")
    write_recipe(folder / "r.yaml", write_shards(folder / "sh"))
    Loam(folder).ok("ablate", "r.yaml", "--no-prefect", "--workers", 1)
    return folder


@pytest.fixture
def run(searched: Path) -> Path:
    return only(searched.glob("runs/sharded@*"))


@pytest.fixture
def table() -> Callable[[Path], list[dict[str, str]]]:
    return lambda path: list(csv.DictReader(path.open(newline="")))


def verdict(run: Path) -> dict[str, Any]:
    return json.loads((run / "mixture" / "verdict.json").read_text())


def test_the_swarm_holds_the_prior_again_with_other_seeds(run: Path, table: Callable):
    rows = {row.pop("id"): row for row in table(run / "swarm" / "ratios.csv")}
    assert list(rows) == ["prior", *(f"mix-{n:04d}" for n in range(1, 6)), "prior-seed2", "prior-seed3"]
    assert rows["prior"] == rows["prior-seed2"] == rows["prior-seed3"]
    seeds = {path.stem: json.loads(path.read_text())["seed"] for path in (run / "proxies" / "proxies").glob("*.json")}
    assert seeds == {name: {"prior-seed2": 2, "prior-seed3": 3}.get(name, 1) for name in rows}


def test_noise_is_measured_from_the_replicates(run: Path, table: Callable):
    import numpy as np

    from pipelines.manifest import read_manifest

    noise = read_manifest(run / "law").metrics["noise"]
    losses = {row["id"]: row for row in table(run / "proxies" / "metrics.csv")}
    for name in DOMAINS:
        replicates = [float(losses[run_id][name]) for run_id in ("prior", "prior-seed2", "prior-seed3")]
        assert noise["seed_sd"][name] == pytest.approx(np.std(replicates, ddof=1))


def test_every_arm_is_trained_with_the_same_fresh_seeds(run: Path, table: Callable):
    ids = {row["id"] for row in table(run / "confirm" / "metrics.csv")}
    arms = {name.rpartition("-")[0] for name in ids}
    assert arms >= {"prior", "proposal", "uniform"}
    assert ids == {f"{arm}-seed{seed}" for arm in arms for seed in (4, 5, 6)}  # 1 chose, 2 and 3 are the noise
    assert verdict(run)["losses"].keys() == {"prior", "proposal", "uniform", "unimax"}


def test_the_verdict_follows_from_the_losses(run: Path, table: Callable):
    from mixtures.compare import compare_each

    found = verdict(run)
    losses = {name: {int(seed): loss for seed, loss in one.items()} for name, one in found["losses"].items()}
    told = compare_each(losses["proposal"], {name: losses[name] for name in found["comparisons"]})
    assert {name: one["verdict"] for name, one in found["comparisons"].items()} == {
        name: one.verdict for name, one in told.items()
    }
    row = next(row for row in table(run / "confirm" / "metrics.csv") if row["id"] == "prior-seed4")
    assert losses["prior"][4] == pytest.approx(sum(float(row[name]) for name in DOMAINS) / 3)


def test_mixture_yaml_says_where_it_is_from(run: Path):
    mixture = Mixture.read(run / "mixture" / "mixture.yaml")
    assert mixture.weights.keys() == DOMAINS.keys()
    assert (mixture.tokens, mixture.epoch_cap, mixture.name) == (20_000, 6, verdict(run)["chosen"])
    assert mixture.provenance.keys() >= {"swarm", "domains", "law", "verdict"}
    assert mixture.fingerprint == verdict(run)["fingerprint"]


def test_cost_counts_every_proxy(run: Path):
    cost = verdict(run)["cost"]
    assert {name: part["runs"] for name, part in cost["parts"].items()} == {"swarm": 8, "confirmation": 12}
    assert cost["search_flops"] == sum(part["flops"] for part in cost["parts"].values())
    assert cost["search_share_of_final"] == pytest.approx(cost["search_flops"] / cost["final_flops"])


def test_show_and_report_tell_the_verdict(searched: Path, run: Path):
    loam = Loam(searched)
    shown = loam.ok("show", "sharded")
    assert "proposal against prior: " in shown
    assert f"mixture {verdict(run)['fingerprint']}" in shown
    assert "comparisons" in json.loads(loam.ok("show", "sharded", "--json"))["steps"]["mixture"]["metrics"]
    page = (run / "report" / "report.html").read_text()
    assert page.count("<svg") >= 4
    assert "<script" not in page
    for heading in ("Confirmation", "Mixtures", "Noise of seeds", "Cost"):
        assert f">{heading}<" in page
    loam.ok("report", "sharded", "--out", "again.html")
    assert (searched / "again.html").read_text() == page


def test_again_nothing_is_done_and_plan_knows(searched: Path):
    loam = Loam(searched)
    told = json.loads(loam.ok("ablate", "r.yaml", "--no-prefect", "--workers", 2, "--json"))
    assert told["idle"]
    assert list(told["steps"]) == STEPS
    assert told["verdict"]["chosen"] in ("prior", "proposal", "uniform", "unimax")
    rows = json.loads(loam.ok("plan", "r.yaml", "--json"))["steps"]
    assert [row["state"] for row in rows] == ["done"] * 6


def test_two_workers_write_the_same_bytes(searched: Path, tmp_path: Path):
    write_recipe(tmp_path / "r.yaml", searched / "sh")
    Loam(tmp_path).ok("ablate", "r.yaml", "--no-prefect", "--workers", 2)
    one, two = (only(folder.glob("runs/sharded@*")) for folder in (searched, tmp_path))
    assert tree(one) == tree(two)


def tree(run: Path) -> dict[str, bytes]:
    """Every file of every step."""
    files = (path for step in STEPS for path in (run / step).rglob("*") if path.is_file())
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("name", ["run", "folder", "fingerprint of the run", "fingerprint", "file"])
def test_train_takes_a_mixture_by_any_of_its_names(searched: Path, run: Path, name: str):
    given = {"run": "sharded", "folder": run, "fingerprint of the run": run.name.partition("@")[2],
             "fingerprint": verdict(run)["fingerprint"], "file": run / "mixture" / "mixture.yaml"}[name]  # fmt: skip
    (searched / "t.yaml").write_text("kind: train\n" + block(proxy(8, "1K")))
    out = f"model-{name.replace(' ', '-')}"
    told = json.loads(Loam(searched).ok("train", "t.yaml", "--data", "sh", "--mixture", given, "-o", out, "--json"))
    assert told["metrics"]["mixture"] == verdict(run)["fingerprint"]


def block(flow: str) -> str:
    """A mapping on one line as the keys of a file."""
    return "".join(f"{key}: {json.dumps(value)}\n" for key, value in _yaml(flow).items())


def _yaml(text: str) -> dict[str, Any]:
    from ruamel.yaml import YAML

    return YAML(typ="safe", pure=True).load(text)


@pytest.fixture
def training(tmp_path: Path) -> Path:
    """An empty folder with shards and a recipe of kind train."""
    write_shards(tmp_path / "sh")
    (tmp_path / "t.yaml").write_text("kind: train\n" + block(proxy(8, "1K")))
    return tmp_path


@pytest.mark.parametrize(
    ("weights", "words"),
    [("{even: 0.5, odd: 0.5}", "missing 'low'"), ("{even: 0.4, odd: 0.4, low: 0.1, web: 0.1}", "unknown 'web'")],
)
def test_a_mixture_of_other_domains_is_refused_by_name(fails: Fails, training: Path, weights: str, words: str):
    (training / "m.yaml").write_text(f"name: mine\nweights: {weights}\n")
    fails(3, words, "train", "t.yaml", "--data", "sh", "--mixture", "m.yaml", "-o", "model")


def test_a_mixture_that_would_pass_its_cap_is_refused(fails: Fails, training: Path):
    (training / "m.yaml").write_text("name: mine\nweights: {even: 0, odd: 0, low: 1}\nepoch_cap: 1\n")
    words = "would read low 1.04 times in 1024 tokens, its cap is 1"
    fails(3, words, "train", "t.yaml", "--data", "sh", "--mixture", "m.yaml", "-o", "model")


def test_a_name_that_no_mixture_has_is_told(fails: Fails, training: Path):
    fails(3, "no file, run or fingerprint of that name; there are: none in runs/",
          "train", "t.yaml", "--data", "sh", "--mixture", "abcdef123456", "-o", "model")  # fmt: skip
    fails(2, "which finds its own mixture", "train", "quickstart", "--mixture", "abcdef123456")


def test_check_and_plan_tell_cost_and_what_is_infeasible(works: Works, tmp_path: Path):
    write_recipe(tmp_path / "r.yaml", write_shards(tmp_path / "sh"), tokens="100K")
    allowed = works("check", "r.yaml")["allowed"]
    assert allowed["feasible"] is False
    assert "needs 10.8K more tokens" in allowed["reason"]  # 100K at 6 epochs of 5,904
    found = works("plan", "r.yaml", "--set", "train.stages=[{tokens: 10K, sequence_length: 32, batch_tokens: 256, "
                  "learning_rate: 1e-2}]")  # fmt: skip
    assert found["allowed"]["domains"]["low"] == pytest.approx(
        {"unique_tokens": 984, "prior": 1 / 6, "least": 0, "most": 0.5904, "prior_epochs": 10_000 / 5904}, rel=1e-3
    )
    assert found["search"]["runs"] == 20
    assert [row["state"] for row in found["steps"]] == ["to do"] * 6


BAD = {
    "sources: {a: {kind: jsonl, paths: [a.jsonl]}}": "one of the two",
    "shards.odd.validation=train/odd": "is trained on and held out",
    "ablate.targets=[web]": "ablate.targets names 'web', on which nothing is measured; there are: even, low, odd",
    "ablate.larger={Big: {proxies: 3}}": "is required and missing",
    "ablate.proxie=3": "did you mean 'proxies'?",
}


@pytest.mark.parametrize(("change", "words"), BAD.items())
def test_a_recipe_that_cannot_be_meant_is_refused(fails: Fails, tmp_path: Path, change: str, words: str):
    path = write_recipe(tmp_path / "r.yaml", tmp_path)
    sets = ("--set", change)
    if "=" not in change:
        path.write_text(path.read_text() + change + "\n")
        sets = ()
    fails(2, words, "ablate", "r.yaml", "--no-prefect", *sets)


def test_shards_that_are_not_there_are_told(fails: Fails, tmp_path: Path):
    write_recipe(tmp_path / "r.yaml", tmp_path / "nowhere")
    fails(3, "even", "ablate", "r.yaml", "--no-prefect")


def test_a_proxy_that_diverges_is_left_out_and_told(works: Works, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from trainer import proxies
    from trainer.step import DivergedError

    write_recipe(tmp_path / "r.yaml", write_shards(tmp_path / "sh"), "against: []\nconfirm_seeds: 2")
    train = proxies.train

    def diverge(recipe: Any, blend: Any, folder: Path, validation: Any) -> Any:
        if folder.name in ("mix-0002", "proposal-seed4"):
            raise DivergedError(f"training {recipe.name}: step 3 (stage main) has loss nan")
        return train(recipe, blend, folder, validation)

    monkeypatch.setattr(proxies, "train", diverge)
    found = works("ablate", "r.yaml", "--no-prefect", "--workers", 1)
    run = tmp_path / found["run"]
    ids = [row["id"] for row in csv.DictReader((run / "proxies" / "metrics.csv").open(newline=""))]
    assert ids == ["prior", "mix-0001", "mix-0003", "mix-0004", "mix-0005", "prior-seed2", "prior-seed3"]
    assert found["verdict"]["pairs"] == 1
    assert "loss nan" in found["verdict"]["failed"]["proposal-seed4"]
    assert "mix-0002" in (run / "report" / "report.html").read_text()


def test_two_scales_and_simulated_epochs(works: Works, tmp_path: Path):
    more = f"larger: {{wide: {{proxies: 4, proxy: {proxy(16, '4K')}}}}}\nsimulate_epochs: true\nconfirm_seeds: 2"
    write_recipe(tmp_path / "r.yaml", write_shards(tmp_path / "sh"), more)
    found = works("ablate", "r.yaml", "--no-prefect", "--workers", 1)
    run = tmp_path / found["run"]
    assert list(found["steps"]) == ["swarm", "proxies", "proxies_wide", *STEPS[2:]]
    arms = 4 - len(found["verdict"]["same_as"])  # equal mixtures are trained once
    assert {name: part["runs"] for name, part in found["verdict"]["cost"]["parts"].items()} == {
        "swarm": 8, "wide": 6, "confirmation": 2 * arms,
    }  # fmt: skip
    prior = json.loads((run / "proxies_wide" / "proxies" / "prior.json").read_text())
    for name in DOMAINS:  # what 20 thousand tokens of the prior read of each domain
        assert prior["domains"]["main"][name]["epochs"] == pytest.approx(20_000 / 5904, rel=0.15)
    assert not list(run.rglob("limited"))
