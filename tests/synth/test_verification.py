import pytest
from hypothesis import given
from hypothesis import strategies as st

from synth.protocol import Response
from synth.verification import (
    REASONS,
    Limits,
    Span,
    answer_of,
    check_prose,
    check_question,
    check_response,
    check_steps,
    copied_share,
    has_control_tokens,
    locate_segments,
    numbers_of,
    read_json,
    repeated_share,
    script_of,
    verification_hash,
    words_of,
)

TEXT = "One fine day began.\nThen it rained for 40 days. At last the sun came out."
LIMITS = Limits(segments=(1, 4), min_segment_chars=5)


def test_segments_are_found_by_their_ends():
    found = locate_segments(TEXT, [("One fine", "40 days."), ("At last", "came out.")], LIMITS)
    assert found == (Span(0, 47), Span(48, 73))


def test_white_space_in_markers_is_loose():
    assert locate_segments(TEXT, [("One", "day  began. Then"), ("it rained", "out.")], LIMITS) == (
        Span(0, 24),
        Span(25, 73),
    )


@pytest.mark.parametrize(
    ("markers", "reason"),
    [
        ([], "segment_count"),
        ([("One fine", "hailed.")], "marker_not_found"),
        ([("", "out.")], "marker_not_found"),
        ([("One", "came out."), ("Then", "days.")], "overlap"),
        ([("At last", "came out."), ("One", "began.")], "overlap"),
        ([("One", "One")], "segment_length"),
        ([("One fine", "began.")], "coverage_low"),
    ],
)
def test_wrong_segments_are_named(markers: list[tuple[str, str]], reason: str):
    assert locate_segments(TEXT, markers, LIMITS) == reason


@given(st.lists(st.text(st.characters(categories=["L"]), min_size=1, max_size=8), min_size=4, max_size=40), st.data())
def test_spans_are_ordered_and_within_the_document(words: list[str], data: st.DataObject):
    pick = st.sampled_from(words)
    markers = data.draw(st.lists(st.tuples(pick, pick), min_size=1, max_size=4))
    text = " ".join(words)
    found = locate_segments(text, markers, Limits(segments=(1, 4), min_segment_chars=1, min_coverage=0))
    if not isinstance(found, str):
        ends = [0] + [end for span in found for end in (span.start, span.end)] + [len(text)]
        assert ends == sorted(ends)
        assert all(
            text[s.start :].startswith(a) and text[: s.end].endswith(b)
            for s, (a, b) in zip(found, markers, strict=True)
        )


@pytest.mark.parametrize(
    ("text", "finish", "reason"),
    [
        ("fine", "stop", None),
        ("cut of", "length", "truncated"),
        ("", "prompt_too_long", "prompt_too_long"),
        ("", "refused", "refused_by_engine"),
        (" \n", "stop", "empty"),
        ("<think>hm</think>", "stop", "empty"),
        ("I'm sorry, I cannot help with that.", "stop", "refusal"),
        ("作为一个AI，我不能回答。", "stop", "refusal"),
    ],
)
def test_responses(text: str, finish, reason: str | None):
    assert check_response(Response(text=text, finish_reason=finish)) == reason


def test_thinking_is_not_the_answer():
    assert answer_of("<think>is it A? </think>\n B ") == "B"


@pytest.mark.parametrize(
    ("answer", "found"),
    [('{"a": [1]}', [1]),
     ('Sure:\n```json\n{"a": []}\n```', []), ('{"b": [1]}', "wrong_shape"), ('{"a": 1}', "wrong_shape"),
     ("a: [1]", "not_json"), ('{"a": [1}', "not_json"), ("} {", "not_json")],
)  # fmt: skip
def test_json_in_answers(answer: str, found: object):
    assert read_json(answer, "a") == found


@pytest.mark.parametrize(
    ("prose", "reason"),
    [
        ("It rained for 40 days before the sun returned.", None),
        ("It rained for 41 days.", "number_not_in_document"),
        ("The passage says that it rained.", "meta_phrase"),
        ("As an AI I think that it rained.", "refusal"),
        ("rain and rain and rain and rain and rain and rain", "repetition"),
        ("Шёл дождь, потом вышло солнце.", "language_mismatch"),
        ("  ", "empty"),
    ],
)
def test_prose(prose: str, reason: str | None):
    assert check_prose(prose, TEXT, LIMITS) == reason


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        ([(1, "Rain fell on that day."), (2, "So the ground was wet afterwards.")], None),
        ([(1, "Rain fell.")], "step_count"),
        ([(1, "Rain fell."), (3, "It was wet.")], "citation_invalid"),
        ([(0, "Rain fell."), (1, "It was wet.")], "citation_invalid"),
        ([(2, "Rain fell."), (1, "It was wet.")], "step_order"),
        ([(1, "Rain fell."), (2, " ")], "empty"),
        ([(1, TEXT[:47]), (2, TEXT[48:])], "copies_document"),
    ],
)
def test_steps(steps: list[tuple[int, str]], reason: str | None):
    assert check_steps(steps, 2, TEXT, LIMITS) == reason


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        ("What followed the long rain?", None),
        ("It rained.", "not_a_question"),
        ("Rain?", "not_a_question"),
        ("Rain fell.\nWhy did it?", "not_a_question"),
        ("What does the text say about rain?", "meta_phrase"),
        ("Why did it rain for 99 days?", "number_not_in_document"),
        ("Was it when then it rained for 40 days at last?", "question_copies_document"),
    ],
)
def test_questions(question: str, reason: str | None):
    assert check_question(question, TEXT, LIMITS.model_copy(update={"question_ngram": 6})) == reason


def test_chinese_questions_count_characters_as_words():
    assert check_question("为什么下雨？", "今天下雨，然后出太阳。", LIMITS) is None
    assert words_of("下雨 rain") == ["下", "雨", "rain"]


@pytest.mark.parametrize(
    ("text", "numbers"), [("10,000 or 3.5 of 7", {"10000", "3.5"}), ("1,2", {"1,2"}), ("none", set())]
)
def test_numbers(text: str, numbers: set[str]):
    assert numbers_of(text) == numbers


@pytest.mark.parametrize(("text", "script"), [("abc где где", "CYRILLIC"), ("土壤 a", "CJK"), ("12 !", "")])
def test_scripts(text: str, script: str):
    assert script_of(text) == script


def test_shares_of_ngrams():
    assert repeated_share(["a", "b", "c", "d", "a", "b", "c", "d"]) == pytest.approx(1 / 5)
    assert copied_share("x a b c", "a b c d", 2) == pytest.approx(2 / 3)


@pytest.mark.parametrize("text", ["<|im_start|>system", "[INST] hi", "<start_of_turn>", "</think>"])
def test_control_tokens_are_seen(text: str):
    assert has_control_tokens(f"before {text} after")


@pytest.mark.parametrize("text", ["a <| b |> c", "x < y | z > w", "<html>", "[1]"])
def test_other_brackets_are_text(text: str):
    assert not has_control_tokens(text)


def test_verdicts_have_an_identity():
    assert verification_hash(LIMITS) != verification_hash(Limits())
    assert all(version >= 1 and meaning for version, meaning in REASONS.values())
