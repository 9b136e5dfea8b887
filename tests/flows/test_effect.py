"""The effect of synthetic domains: both arms differ in nothing else, and the verdicts follow the seeds."""

import json
from pathlib import Path
from typing import Any

import pytest

from flows.kinds import load_build
from flows.steps.effect import arms_of, compare_arms
from pipelines.errors import DataError, RecipeError
from pipelines.shards import Shard, ShardSet
from tests.flows.conftest import TINY, Loam

SIZES = {"web/high": 600, "web/low": 200, "synth_cot/high": 150, "synth_cot/low": 50}


def shards(sizes: dict[str, int]) -> ShardSet:
    return ShardSet(tuple(Shard(name, Path(name), 1, tokens, 2 * tokens, "0") for name, tokens in sizes.items()))


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (None, {"web/high": 0.6, "web/low": 0.2, "synth_cot/high": 0.15, "synth_cot/low": 0.05}),
        (0.5, {"web/high": 0.375, "web/low": 0.125, "synth_cot/high": 0.375, "synth_cot/low": 0.125}),
    ],
)
def test_the_other_domains_keep_their_proportions(share: float | None, expected: dict[str, float]):
    arms = arms_of(shards(SIZES), ("synth_cot",), share)
    assert arms["with"] == pytest.approx(expected)
    assert arms["without"] == pytest.approx(
        {"web/high": 0.75, "web/low": 0.25, "synth_cot/high": 0, "synth_cot/low": 0}
    )


def test_no_accepted_sample_is_said():
    with pytest.raises(DataError, match="see the rejects of synthesis"):
        arms_of(shards({"web": 10}), ("synth_cot",), None)


def test_a_domain_that_is_not_there_is_said_before_anything_runs():
    with pytest.raises(RecipeError, match="names 'typo'; there are: books, cot_gsm8k, encyclopedia"):
        load_build("effect", ["effect.domains=[typo]"])


def result(arm: str, seed: int, bits: float, passed: float) -> dict[str, Any]:
    item = {"items": 9, "acc_norm": 0.1, "acc_ppl": passed, "gold_probability": 0.5}
    domains = {"web": {"bits_per_byte": bits}}
    return {
        "id": f"{arm}-seed{seed}",
        "seed": seed,
        "evaluation": {"domains": domains, "benchmarks": {"pplpass_gsm_number": item}},
    }


def test_differences_are_paired_and_signed():
    spread = (0.0, 0.3, -0.2)  # of the seeds, the same in both arms: pairs take it out
    found = compare_arms([result(arm, seed, 2 + spread[seed] + shift + wobble * seed, 0.5 + gain + wobble * seed)
                          for arm, shift, gain, wobble in (("without", 0, 0, 0), ("with", 0.1, 0.2, 0.001))
                          for seed in range(3)], "bits_per_byte/web")  # fmt: skip
    bits, passed = found["bits_per_byte/web"], found["accuracy/pplpass_gsm_number"]
    assert (bits["verdict"], passed["verdict"]) == ("worse", "better")
    assert bits["difference"] == pytest.approx(0.101)
    assert passed["difference"] == pytest.approx(0.201)
    # Student's t at 97.5% with 2 degrees of freedom is 4.3027; the spread of the differences is 0.001
    half = 4.302653 * 0.001 / 3**0.5
    assert bits["interval95"] == pytest.approx([0.101 - half, 0.101 + half])
    assert found["gold_probability/pplpass_gsm_number"]["verdict"] == "inconclusive"
    assert (bits["primary"], bits["p_corrected"]) == (True, bits["p_value"])


def test_only_the_metric_that_was_named_stands_alone():
    # three pairs whose differences are 0.1, 0.11 and 0.12: p = 0.0027; of one benchmark they are twice as noisy
    shifts = (0.1, 0.11, 0.12)
    results = [result("without", seed, 2, 0.5) for seed in range(3)]
    results += [result("with", seed, 2 + shift, 0.5 + 2 * shift - 0.11) for seed, shift in enumerate(shifts)]
    for one in results:  # ten more benchmarks that tell nothing
        more = {f"quiz{n}": {"items": 9, "acc_norm": 0.1, "gold_probability": 0.5} for n in range(10)}
        one["evaluation"]["benchmarks"] |= more
    found = compare_arms(results, "bits_per_byte/web")
    passed = found["accuracy/pplpass_gsm_number"]
    assert (found["bits_per_byte/web"]["verdict"], passed["verdict"]) == ("worse", "inconclusive")
    assert passed["p_corrected"] == pytest.approx(22 * passed["p_value"])  # of 22 others the smallest
    assert compare_arms(results, "accuracy/pplpass_gsm_number")["accuracy/pplpass_gsm_number"]["verdict"] == "better"


def test_a_metric_that_is_not_measured_is_said():
    with pytest.raises(DataError, match="'accuracy/typo', which is not measured; there are: accuracy/pplpass_gsm_numb"):
        compare_arms([result(arm, seed, 1.0, 0.5) for arm in ("without", "with") for seed in range(2)], "accuracy/typo")


@pytest.mark.slow
def test_the_flow_from_raw_text_to_verdicts(loam: Loam):
    domains = ["effect.domains=[reference]", "effect.seeds=2", "effect.share=0.3"]
    sets = [word for one in domains for word in ("--set", one)]
    run = loam.run_tiny("--no-prefect", "--until", "effect", *sets)
    results = {path.stem: json.loads(path.read_text()) for path in sorted(run.glob("effect_proxies/proxies/*.json"))}
    assert sorted(results) == ["with-seed2", "with-seed3", "without-seed2", "without-seed3"]
    found = json.loads((run / "effect/effect.json").read_text())
    bits = [results[f"{arm}-seed{s}"]["evaluation"]["all_domains"]["bits_per_byte"]
            for arm in ("with", "without") for s in (2, 3)]  # fmt: skip
    difference = (bits[0] + bits[1] - bits[2] - bits[3]) / 2
    assert found["bits_per_byte/all"]["difference"] == pytest.approx(difference)
    assert [name for name, one in found.items() if one["primary"]] == ["bits_per_byte/all"]
    assert "bits_per_byte/reference" in found
    loam.ok("report", run, "--out", "page.html")
    page = (loam.folder / "page.html").read_text()
    assert "What synthetic data do" in page
    assert "bits_per_byte/all was named before" in page
    wrong = loam("run", TINY, "--no-prefect", "--until", "effect", *sets, "--set", "effect.primary=accuracy/typo")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (3, 1)
    assert "'accuracy/typo', which is not measured" in wrong.stderr
