import pytest

from synth.answers import Verdict, boxed, extract_answer, judge_choice


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{1} no, \boxed{2}", "2"),
        (r"\boxed{3} then \boxed{unclosed", "3"),
        (r"\boxed{unclosed then \boxed{3}", "3"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{\boxed{1}+\boxed{2}}", "{1}+{2}"),
        (r"\boxed{\left\{ 1, 2 \right.}", r"\left\{ 1, 2 \right."),
        ("48 + 24 = 72\n#### 72", "72"),
        ("The answer is 7.5. Done.", "7.5"),
        ("所以答案是：12。", "12"),
        ("no idea", None),
        ("", None),
        (r"<|begin_of_thought|>\boxed{1}<|end_of_thought|><|begin_of_solution|>\boxed{2}<|end_of_solution|>", "2"),
        (r"<think>\boxed{1}</think>the answer is 2", "2"),
        (r"<think>\boxed{1}</think>as I said", "1"),
    ],
)
def test_the_last_answer_behind_the_thinking_stands(text: str, answer: str | None):
    assert extract_answer(text) == answer


def test_braces_nest():
    assert boxed(r"\boxed{\sqrt{\frac{a}{b_{1}}}}") == r"\sqrt{\frac{a}{b_{1}}}"


@pytest.mark.parametrize(
    ("text", "gold", "verdict"),
    [
        (r"\boxed{B}", "B", Verdict.VERIFIED),
        (r"\boxed{\text{(C)}}", "C", Verdict.VERIFIED),
        ("The answer is (D).", "D", Verdict.VERIFIED),
        (r"\boxed{A}", "B", Verdict.REFUTED),
        (r"\boxed{A or B}", "B", Verdict.UNDECIDED),
        ("I cannot say", "B", Verdict.UNDECIDED),
    ],
)
def test_choices_are_compared_by_their_letter(text: str, gold: str, verdict: Verdict):
    assert judge_choice(text, gold).verdict is verdict
