"""`loam mix` on tables of several scales, with replicates, and from losses to benchmarks."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from tests.flows.conftest import Fails, Works

QUICK = ("--set", "laws=[exponential]")
DOMAINS = ("sand", "clay", "silt")


@pytest.fixture
def tables(tmp_path: Path):
    """Write a pair of tables of some runs at a scale, and give their paths."""

    def write(name: str, runs: int, size: float, seed: int, scale: tuple[str, str] | None = None) -> tuple[Path, Path]:
        random = np.random.default_rng(seed)
        weights_PD = np.round(random.dirichlet(np.ones(3), runs), 4)
        weights_PD[:, 2] = np.round(1 - weights_PD[:, :2].sum(axis=1), 4)
        loss_P = 2 + size**-0.2 + size**-0.1 * np.exp(weights_PD @ [-1.5, -0.4, 0.3])
        paths = tmp_path / f"{name}-ratios.csv", tmp_path / f"{name}-metrics.csv"
        heads = ["id", *DOMAINS, *(("params", "tokens") if scale else ())], ["id", "loss", "other"]
        rows = [[f"{name}{row}", *weights.tolist(), *(scale or ())] for row, weights in enumerate(weights_PD)]
        losses = [[f"{name}{row}", loss, 3 * loss + random.normal(0, 0.01)] for row, loss in enumerate(loss_P)]
        for path, head, lines in zip(paths, heads, (rows, losses), strict=True):
            with path.open("w", newline="") as file:
                csv.writer(file).writerows([head, *lines])
        return paths

    return write


def options(*pairs: tuple[tuple[Path, Path], str]) -> list[object]:
    return [part for (ratios, metrics), scale in pairs
            for part in ("--ratios", ratios, "--metrics", metrics, "--scale", scale)]  # fmt: skip


def read(path: Path) -> dict[str, dict[str, str]]:
    with path.open() as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def test_two_scales_predict_a_third(works: Works, tables, tmp_path: Path) -> None:
    small, middle, large = tables("s", 24, 1, 0), tables("m", 18, 60, 1), tables("l", 12, 1000, 2)
    fitted = works("mix", "fit", *options((middle, "60M/1B"), (small, "1M/1B")), *QUICK, "-o", "fit")["metrics"]
    assert (fitted["scales"], fitted["runs"]) == (["1M/1B", "60M/1B"], 42)
    told = works("mix", "predict", "--fit", "fit", "--ratios", large[0], "--scale", "1B/25B", "-o", "p")["metrics"]
    assert (told["mixtures"], told["scale"], told["trust"]) == (12, "1B/25B", "extrapolated")
    found, truth = read(tmp_path / "p" / "predictions.csv"), read(large[1])
    assert all(abs(float(found[run]["loss"]) / float(truth[run]["loss"]) - 1) < 0.05 for run in truth)
    assert all(float(row["loss_lo95"]) < float(row["loss_lo80"]) < float(row["loss"]) for row in found.values())
    works("mix", "predict", "--fit", "fit", "--ratios", large[0], "-o", "here")  # at the largest that was fitted
    assert float(read(tmp_path / "here" / "predictions.csv")["l0"]["loss"]) > float(found["l0"]["loss"])
    report = json.loads((tmp_path / "fit" / "report.json").read_text())
    assert report["scale"] == "60M/1B"
    assert [(row["scale"], row["use"]) for row in report["scales"]] == [("1M/1B", "law"), ("60M/1B", "law")]
    assert report["snr"] == "unknown: no mixture was run twice"
    (tmp_path / "domains.yaml").write_text("".join(f"- {{name: {name}, unique_tokens: 1B}}\n" for name in DOMAINS))
    works("mix", "propose", "--fit", "fit", "--domains", "domains.yaml", "--scale", "1B/25B",
          "--set", "resamples=4", "-o", "proposal")  # fmt: skip
    assert (tmp_path / "proposal" / "mixture.yaml").is_file()


def test_a_few_runs_of_the_larger_scale(works: Works, tables, tmp_path: Path) -> None:
    small, few = tables("s", 24, 1, 0), tables("f", 4, 1000, 1)
    works("mix", "fit", *options((small, "1M/1B"), (few, "1B/25B")), *QUICK, "-o", "fit")
    uses = [row["use"] for row in json.loads((tmp_path / "fit" / "report.json").read_text())["scales"]]
    assert uses == ["law", "level and spread"]
    large = tables("l", 12, 1000, 2)
    works("mix", "predict", "--fit", "fit", "--ratios", large[0], "-o", "p")
    found, truth = read(tmp_path / "p" / "predictions.csv"), read(large[1])
    assert all(abs(float(found[run]["loss"]) / float(truth[run]["loss"]) - 1) < 0.02 for run in truth)


def test_rows_with_scales_of_their_own(works: Works, tables, tmp_path: Path) -> None:
    parts = [tables(name, 8, size, 7, (f"{size}M", "1B")) for name, size in (("a", 1), ("b", 8), ("c", 60))]
    for place in (0, 1):
        head, *_ = parts[0][place].read_text().splitlines()
        lines = [line for part in parts for line in part[place].read_text().splitlines()[1:]]
        (tmp_path / f"all-{place}.csv").write_text("\n".join([head, *lines]) + "\n")
    works("mix", "fit", "--ratios", "all-0.csv", "--metrics", "all-1.csv", *QUICK, "-o", "fit")
    report = json.loads((tmp_path / "fit" / "report.json").read_text())
    assert set(report["errors_on_the_largest_scale"]) == {"joint", "cross_scale"}
    later = tables("d", 6, 400, 9, ("400M", "1B"))
    works("mix", "predict", "--fit", "fit", "--ratios", later[0], "-o", "p")
    found, truth = read(tmp_path / "p" / "predictions.csv"), read(later[1])
    errors = [abs(float(found[run]["loss"]) / float(truth[run]["loss"]) - 1) for run in truth]
    assert np.mean(errors) < 0.02


def test_what_is_wrong_with_scales(fails: Fails, tables) -> None:
    pair = tables("s", 5, 1, 0)
    ratios, metrics = ("--ratios", pair[0]), ("--metrics", pair[1])
    fails(3, "2 --ratios, 1 --metrics", "mix", "fit", *ratios, *ratios, *metrics, "-o", "x")
    fails(
        3, "scale 'big': expected parameters and tokens", "mix", "fit", *options((pair, "big"), (pair, "1M")), "-o", "x"
    )
    fails(3, "run 's0' is in two tables", "mix", "fit", *options((pair, "1M"), (pair, "1M")), "-o", "x")
    fails(3, "which scale", "mix", "fit", *ratios, *metrics, *ratios, *metrics, "-o", "x")


def test_link_losses_to_benchmarks(works: Works, fails: Fails, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    loss = random.normal(3, 0.2, 16)
    rows = [(f"r{place}", value, 0.25 + 0.6 / (1 + np.exp(4 * (value - 3)))) for place, value in enumerate(loss)]
    (tmp_path / "losses.csv").write_text("id,code\n" + "".join(f"{run},{value}\n" for run, value, _ in rows))
    (tmp_path / "quiz.csv").write_text("id,HellaSwag,MMLU\n" + "".join(
        f"{run},{value},{0.25 + 0.01 * (place % 3)}\n" for place, (run, _, value) in enumerate(rows)))  # fmt: skip
    done = works("mix", "link", "--metrics", "losses.csv", "--benchmarks", "quiz.csv", "-o", "link")["metrics"]
    assert (done["linked"], done["at chance"]) == (1, 1)
    assert done["benchmarks"]["HellaSwag"]["predictor"] == "code"
    assert (tmp_path / "link" / "links.csv").read_text().startswith("benchmark,chance,ceiling,")
    (tmp_path / "short.csv").write_text("id,quiz\nr0,0.5\n")
    fails(3, "missing", "mix", "link", "--metrics", "losses.csv", "--benchmarks", "short.csv", "-o", "x")
    fails(3, "no such file", "mix", "link", "--metrics", "nowhere.csv", "--benchmarks", "quiz.csv", "-o", "x")
