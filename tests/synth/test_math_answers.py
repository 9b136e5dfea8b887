import gzip
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synth import math_answers
from synth.answers import Verdict
from synth.math_answers import MathJudge


@pytest.fixture(scope="module")
def judge() -> Iterator[MathJudge]:
    with MathJudge() as found:
        yield found


EQUAL = [
    ("1/2", "0.5"), (r"\frac12", "0.5"), (r"\dfrac{1}{2}", r"\frac{1}{2}"), ("1,000", "1000"), ("10{,}000", "10,000"),
    ("2.5e3", "2500"), ("2.5E-3", "0.0025"), ("1e5", r"10^5"), (r"2.5\times 10^3", "2.5e3"), ("2e-2", "2(e-1)"),
    (r"\{1, 2\}", r"\{2, 1\}"), ("1, 2", r"\{2, 1\}"), ("(1, 2)", "1, 2"), (r"\{(1,2),(3,4)\}", "(1,2),(3,4)"),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac{\pi}{2})"), (r"\emptyset", r"\{\}"),
    (r"[1,2)\cup(3,4]", r"(3,4]\cup[1,2)"), (r"[1,2)\cup[2,3]", "[1,3]"), ("x<5", r"(-\infty,5)"),
    (r"(1,\infty)", "(1,∞)"),
    ("5 cm", "5"), (r"5\text{ cm}", "5 cm"), (r"\$18", "18"), (r"90^\circ", "90"),
    (r"50\%", "0.5"), (r"25\%", "25"), ("25%", r"25\%"), ("0.5%", "0.5"), (r"12.5\%", r"\frac18"),
    ("(x+1)^2", "x^2+2x+1"), (r"\sqrt{8}", r"2\sqrt{2}"), ("2π", r"2\pi"), ("x=5", "5"),
    (r"\boxed{\boxed{5}}", "5"), ("−3", "-3"), (r"x − 1", "x-1"),
    (r"\text{Evelyn}", "Evelyn"), ("evelyn", "Evelyn"), (r"\text{EVEN}", r"\text{even}"), ("No", r"\text{no}"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{bmatrix}1\\2\end{bmatrix}"),
]  # fmt: skip
OTHER = [
    ("[1,2)", "[1,2]"), ("3", "-3"), ("0.33", "1/3"), ("(1,2)", "(2,1)"), (r"\{1,2\}", "(1,2)"), (r"\{1,2\}", "[1,2]"),
    (r"\left\{1,2\right\}", r"\left(1,2\right)"), (r"\lbrace 1,2\rbrace", "(1,2)"), (r"\{1,2\}", r"\{1,3\}"),
    (r"\{\{1,2\},\{3,4\}\}", r"\{(1,2),(3,4)\}"), (r"25\%", r"2500\%"), (r"25\%", "2.5"), ("2.5e3", "250"),
    ("5 cm", "6 cm"), (r"\frac12", r"\frac13"), ("x+A-a", "x"), ("x^2", "y^2"), ("10,20", "1020"),
]  # fmt: skip
UNSURE = [
    ("x^2 + A", "x^2 + a"), ("(a,b)", "(A,B)"), (r"\Gamma", r"\gamma"), ("AB", "ab"), ("[2,1]", "(2,1)"),
    ("5 cm", "5 m"),
    ("5 cm", "50 mm"), (r"\begin{pmatrix}1\\2\end{pmatrix}", "(1,2)"), ("12 cats", "12 dogs"), ("seven", "7"),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), EQUAL)
def test_equal_in_value_is_verified_either_way(judge: MathJudge, one: str, other: str):
    assert judge.compare(one, other).verdict is Verdict.VERIFIED
    assert judge.compare(other, one).verdict is Verdict.VERIFIED


@pytest.mark.parametrize(("one", "other"), OTHER)
def test_another_value_is_refuted_either_way(judge: MathJudge, one: str, other: str):
    assert judge.compare(one, other).verdict is Verdict.REFUTED
    assert judge.compare(other, one).verdict is Verdict.REFUTED


@pytest.mark.parametrize(("one", "other"), UNSURE)
def test_what_may_be_meant_alike_is_undecided_either_way(judge: MathJudge, one: str, other: str):
    assert judge.compare(one, other).verdict is Verdict.UNDECIDED
    assert judge.compare(other, one).verdict is Verdict.UNDECIDED


ANSWERS = st.sampled_from(sorted({answer for pair in (*EQUAL, *OTHER, *UNSURE) for answer in pair}))


@settings(max_examples=60, deadline=None)
@given(ANSWERS, ANSWERS)
def test_symmetric_and_reflexive(judge: MathJudge, one: str, other: str):
    assert judge.compare(one, other).verdict is judge.compare(other, one).verdict
    assert judge.compare(one, one).verdict is Verdict.VERIFIED
    assert judge.compare(f"$ {one} $.", one).verdict is Verdict.VERIFIED


@pytest.mark.parametrize(
    ("one", "other"), [("1 1/2", "11/2"), ("3 1/4", "31/4"), ("1 2", "12"), (r"a\leftarrow b", r"a\rightarrow b")]
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
