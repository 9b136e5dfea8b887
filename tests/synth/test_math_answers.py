import gzip
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from synth import math_answers
from synth.answers import Verdict
from synth.math_answers import MathJudge


@pytest.fixture(scope="module")
def judge() -> Iterator[MathJudge]:
    with MathJudge() as found:
        yield found


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1/2", "0.5"), (r"\frac12", "0.5"), (r"50\%", "0.5"), (r"\{1, 2\}", r"\{2, 1\}"), ("(x+1)^2", "x^2+2x+1"),
        ("−3", "-3"), (r"\text{Evelyn}", "Evelyn"), ("x=5", "5"),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac{\pi}{2})"),
        ("10{,}000", "10,000"), (r"\sqrt{8}", r"2\sqrt{2}"), (r"\$18", "18"), ("5 cm", "5"),
    ],
)  # fmt: skip
def test_equal_in_value_is_verified_either_way(judge: MathJudge, one: str, other: str):
    assert judge.compare(one, other).verdict is Verdict.VERIFIED
    assert judge.compare(other, one).verdict is Verdict.VERIFIED


@pytest.mark.parametrize(("one", "other"), [("[1,2)", "[1,2]"), ("3", "-3"), ("0.33", "1/3"), ("(1,2)", "(2,1)")])
def test_another_value_is_refuted_either_way(judge: MathJudge, one: str, other: str):
    assert judge.compare(one, other).verdict is Verdict.REFUTED
    assert judge.compare(other, one).verdict is Verdict.REFUTED


@pytest.mark.parametrize(
    ("one", "other"),
    [("1 1/2", "11/2"), ("3 1/4", "31/4"), ("1 2", "12"), (r"a\leftarrow b", r"a\rightarrow b"), ("5 cm", "5 m")],
)
def test_what_only_looks_alike_is_not_verified(judge: MathJudge, one: str, other: str):
    assert judge.compare(one, other).verdict is not Verdict.VERIFIED
    assert judge.compare(other, one).verdict is not Verdict.VERIFIED


@pytest.mark.parametrize("answer", ["9^{99999999}", "((((((", "word salad here", r"\frac{}{"])
def test_what_cannot_be_decided_is_not_refuted(judge: MathJudge, answer: str):
    assert judge.compare(answer, "7").verdict is Verdict.UNDECIDED


def test_a_comparison_that_thinks_for_ever_ends(judge: MathJudge, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(math_answers, "MAX_EXPONENT", math_answers.re.compile("(?!)"))
    monkeypatch.setattr(math_answers, "WALL_S", 20.0)
    assert judge.compare("9^{9^{9^{9^{9}}}}", "7").verdict is Verdict.UNDECIDED
    assert judge.compare("1/2", "0.5").verdict is Verdict.VERIFIED  # the next one has a judge again


def test_chains_of_real_models_are_judged_as_their_graders_did(judge: MathJudge, shared: Path):
    """800 answers to MATH questions; the one difference is a grader that misread 10{,}000."""
    found = Counter()
    with gzip.open(shared / "reasoning" / "math_cot_100.jsonl.gz", "rt") as lines:
        for row in map(json.loads, lines):
            for chain, score in zip(row["code"], row["score"], strict=True):
                found[judge.judge(chain, row["gt"]).verdict, score] += 1
    assert found == {(Verdict.VERIFIED, True): 728, (Verdict.REFUTED, False): 71, (Verdict.VERIFIED, False): 1}
