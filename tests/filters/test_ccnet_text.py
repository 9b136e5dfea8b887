"""Golden strings of cc_net's own tests."""

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from filters.ccnet_text import ccnet_normalize


def test_a_document_becomes_one_line():
    text = "Line ONE ends.\nSecond 3.14 in 2024 café\tx"
    assert ccnet_normalize(text) == "line one ends.second 0.00 in 0000 cafex"


def test_digits_of_every_script_are_zeros():
    assert ccnet_normalize("０２３４５６７８９ | 0123456789") == "000000000 | 0000000000"


def test_punctuation_of_every_script_is_ascii():
    found = ccnet_normalize("x，。、„”“«»」「《》´∶：？！（）；–—．～’…━〈〉【】％x")
    assert found == "x,.," + '"' * 9 + "'::?!();- - . ~'...-<>[]%x"


def test_control_characters_are_deleted():
    assert ccnet_normalize("０２３´∶：\x10 | ;012 hèllo") == "000'::" + " | ;000 hello"


@given(st.text())
def test_nothing_is_left_that_a_rule_names(text: str):
    for character in ccnet_normalize(text):
        assert unicodedata.category(character) != "Mn"
        assert unicodedata.category(character) != "Nd" or character == "0"
