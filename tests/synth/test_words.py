import pytest

from synth.words import copied_share, repeated_share, script_of_words, shared_stems, stems_of, words_of


def test_every_cjk_character_is_a_word():
    assert words_of("下雨 rain") == ["下", "雨", "rain"]


def test_shares_of_ngrams():
    assert repeated_share(["a", "b", "c", "d", "a", "b", "c", "d"]) == pytest.approx(1 / 5)
    assert copied_share("x a b c", "a b c d", 2) == pytest.approx(2 / 3)


def test_stems_are_beginnings_and_pairs():
    assert stems_of("Rain rained on 石灰岩") == {"rain", "石灰", "灰岩"}


@pytest.mark.parametrize(("text", "share"), [("rained heavily", 0.5), ("an ox", 1.0), ("stone wall", 0.0)])
def test_shared_stems(text: str, share: float):
    assert shared_stems(text, "Rain fell") == share


@pytest.mark.parametrize(
    ("text", "script"), [("abc где где", "CYRILLIC"), ("土壤 a", "CJK"), ("Linux是什么？", "CJK"), ("12 !", "")]
)
def test_scripts(text: str, script: str):
    assert script_of_words(text) == script
