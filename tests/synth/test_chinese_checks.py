"""Rules of verification on Chinese: question marks, words without spaces, phrases that speak of a text."""

import pytest

from synth.verification import Limits, check_prose, check_question, declines, is_question

LAW = (
    "《中华人民共和国民用航空法》自1996年3月1日起施行。民用航空器在境外飞行时，应当遵守飞入国的法律；"
    "未经批准，民用航空器不得飞越城市上空，但起飞、降落或者执行紧急任务的除外。"
)


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        ("民用航空器在什么情况下才可以飞越城市上空？", None),
        ("《中华人民共和国民用航空法》对飞越城市有何限制？", None),  # the name of a law is no copied sentence
        ("民用航空器在什么情况下才可以飞越城市上空", "not_a_question"),
        ("为何？", "not_a_question"),
        ("第一问？\n第二问？", "not_a_question"),
        ("为什么民用航空器在境外飞行时，应当遵守飞入国的法律呢？", "question_copies_document"),
        ("这篇文章主要讲了什么内容？", "meta_phrase"),
        ("When may aircraft fly over a city?", "language_mismatch"),
    ],
)
def test_questions(question: str, reason: str | None):
    assert check_question(question, LAW, Limits()) == reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("飞机进入别国领空，就要服从那里的法律。", None),
        ("该法一九九六年起施行，飞机平时不得飞越城市。", None),  # the same year in characters
        ("该法自1998年起施行。", "number_not_in_document"),
        ("这段文字说明飞机要守法。", "meta_phrase"),
        ("作为一名人工智能，我无法回答飞机的问题。", "refusal"),
        ("飞机不得飞越城市上空。" * 6, "repetition"),
    ],
)
def test_prose(text: str, reason: str | None):
    assert check_prose(text, LAW, Limits()) == reason


@pytest.mark.parametrize(
    "text", ["日本文化源远流长。", "以上文件均须提交。", "中原文明起源很早。", "飞机上文娱节目不多。"]
)
def test_words_that_only_look_like_speaking_of_a_text(text: str):
    assert check_prose(text, LAW + text, Limits()) is None


def test_marks_of_either_width_end_a_question():
    assert is_question("飞机能飞越城市吗？")
    assert is_question("飞机能飞越城市吗?")


def test_refusals():
    assert declines("很抱歉，我无法完成这个请求。", "今天下雨。")
