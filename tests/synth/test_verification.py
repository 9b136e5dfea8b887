import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from synth.protocol import Response
from synth.verification import (
    CHAIN,
    PROSE,
    QUESTION,
    REASONS,
    Limits,
    Span,
    check_prose,
    check_question,
    check_response,
    check_steps,
    declines,
    first_failure,
    has_control_tokens,
    locate_segments,
    speaks_of_text,
    verification_hash,
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
    ],
)
def test_responses(text: str, finish, reason: str | None):
    assert check_response(Response(text=text, finish_reason=finish)) == reason


@pytest.mark.parametrize(
    ("prose", "reason"),
    [
        ("It rained for 40 days before the sun returned.", None),
        ("It rained for 41 days.", "number_not_in_document"),
        ("It rained for 40 days, so 40 * 24 = 960 hours.", None),
        ("It rained for 40 days, so 40 * 24 = 690 hours.", "equation_wrong"),
        ("It rained for 40 days in Bergen.", "name_not_in_document"),
        ("It rained for 40 days. <|im_end|>", "control_tokens"),
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
        ([(1, "Bankers lend money."), (2, "Interest grows slowly.")], "ungrounded"),
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


@pytest.mark.parametrize("text", ["<|im_start|>system", "[INST] hi", "<start_of_turn>", "</think>"])
def test_control_tokens_are_seen(text: str):
    assert has_control_tokens(f"before {text} after")


@pytest.mark.parametrize("text", ["a <| b |> c", "x < y | z > w", "<html>", "[1]"])
def test_other_brackets_are_text(text: str):
    assert not has_control_tokens(text)


def test_verdicts_have_an_identity():
    assert verification_hash(LIMITS) != verification_hash(Limits())
    assert all(version >= 1 and meaning for version, meaning in REASONS.values())


def test_a_phrase_of_the_document_is_no_meta_phrase():
    critic = "In his essay the text is a web of quotations."
    assert speaks_of_text("Here the text is a web.", TEXT)
    assert not speaks_of_text("Here the text is a web.", critic)
    assert speaks_of_text("Here the passage is a web.", critic)


def test_one_segment_of_several_is_not_nearly_the_whole():
    markers = [("One fine", "came out"), (".", ".")]
    assert locate_segments(TEXT, markers, Limits(segments=(1, 4), min_segment_chars=1)) == "segment_length"


GOLDEN = {
    "refusal": ["I'm sorry, but I cannot do that.", "As an AI language model, I think so.", "I am unable to say.",
                "抱歉，我无法回答。", "作为一个人工智能，我不知道。"],
    "meta_phrase": ["This passage is about rain.", "According to the document, it rained.", "这段文字讲的是下雨。",
                    "本文介绍了下雨。", "上述材料说下雨了。"],
}  # fmt: skip


@pytest.mark.parametrize("text", ["I'm sorry, I cannot help with that.", "作为一个AI，我不能回答。"])
def test_who_declines_says_so(text: str):
    assert declines(text, TEXT)


def test_a_document_that_declines_is_no_refusal():
    novel = "I cannot believe it, she said. I'm unable to sleep."
    assert not declines("She thought: I cannot believe it.", novel)
    assert declines("I'm sorry, I cannot say.", novel)


@pytest.mark.parametrize(("reason", "text"), [(reason, text) for reason, texts in GOLDEN.items() for text in texts])
def test_phrases_in_both_languages(reason: str, text: str):
    document = "下雨了，然后天晴。" if text[0] > "\u3000" else "It rained, then it was fair."
    assert check_prose(text, document, LIMITS) == reason


@example("^=", "")
@given(st.text(), st.text())
def test_rules_read_any_text(text: str, document: str):
    for rules in (PROSE, CHAIN, QUESTION):
        reason = first_failure(rules, text, document, LIMITS)
        assert reason is None or reason in REASONS


def test_every_rule_is_registered():
    assert {reason for rules in (PROSE, CHAIN, QUESTION) for reason, _ in rules} <= set(REASONS)
    assert verification_hash(LIMITS) != verification_hash(LIMITS, {"judge": {"model": "m"}})
