"""The effect of synthetic domains: both arms differ in nothing else, and the verdicts follow the seeds."""

from pathlib import Path
from typing import Any

import pytest

from flows.kinds import load_build
from flows.steps.effect import arms_of, compare_arms
from pipelines.errors import DataError, RecipeError
from pipelines.shards import Shard, ShardSet

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
                          for seed in range(3)])  # fmt: skip
    bits, passed = found["bits_per_byte/web"], found["accuracy/pplpass_gsm_number"]
    assert (bits["verdict"], passed["verdict"]) == ("worse", "better")
    assert bits["difference"] == pytest.approx(0.101)
    assert passed["difference"] == pytest.approx(0.201)
    # Student's t at 97.5% with 2 degrees of freedom is 4.3027; the spread of the differences is 0.001
    half = 4.302653 * 0.001 / 3**0.5
    assert bits["interval95"] == pytest.approx([0.101 - half, 0.101 + half])
    assert found["gold_probability/pplpass_gsm_number"]["verdict"] == "inconclusive"
