from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synth.numerals import number_values, unfounded_numbers


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("10,000 or 3.5 of 7", {10000, Fraction(7, 2), 7}),
        ("1.5 million", {Fraction(3, 2), 1500000}),
        ("50%", {50, Fraction(1, 2)}),
        ("3/4 of it", {3, 4, Fraction(3, 4)}),
        ("two hundred and six bones", {2, 6, 206}),
        ("twenty-one dozen", {20, 1, 21, 12}),
        ("三百二十", {320}),
        ("二〇二四年", {2024}),
        ("一万二千", {12000}),
        ("none", set()),
    ],
)
def test_values(text: str, values: set[Fraction | int]):
    assert number_values(text) == values


@given(st.integers(0, 10**9))
def test_digits_are_their_value(number: int):
    assert Fraction(number) in number_values(f"about {number} of them")
    assert Fraction(number) in number_values(f"about {number:,} of them")


DOCUMENT = "In 2017 the tree was 100 metres tall, twenty metres more than the house, and grew 10% a year."


@pytest.mark.parametrize(
    ("chain", "missing"),
    [
        ("It was 100 metres tall.", []),
        ("The house is 20 metres lower.", []),
        ("In 2018 it grew.", ["2018"]),
        ("It was 110 metres tall.", ["110"]),
        ("100 + 10 = 110 metres.", []),
        ("100 + 10 = 112 metres.", ["112"]),
        ("10% of 100 is 10, so 110 in all.", []),
        ("100 + 10 = 110 metres.\nTwo such trees are 220 metres.", []),
        ("There are 3 of them.", []),
        ("It weighs 31.7 tonnes.", ["31.7"]),
    ],
)
def test_numbers_are_founded_or_named(chain: str, missing: list[str]):
    assert unfounded_numbers(chain, DOCUMENT) == missing


def test_chinese_numbers_are_held():
    assert unfounded_numbers("共有320人。", "全村三百二十人。") == []
    assert unfounded_numbers("共有321人。", "全村三百二十人。") == ["321"]


@given(st.lists(st.integers(10, 10**6), min_size=1, max_size=6))
def test_a_text_is_founded_on_itself(numbers: list[int]):
    text = " and then ".join(map(str, numbers))
    assert unfounded_numbers(text, text) == []


@given(st.text(), st.text())
def test_any_text_is_read(chain: str, document: str):
    assert all(isinstance(number, str) for number in unfounded_numbers(chain, document))
