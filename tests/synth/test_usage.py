import pytest
from hypothesis import given
from hypothesis import strategies as st

from synth.protocol import Message, Request, Response, Usage
from synth.usage import MARK, NOTHING, UNKNOWN, believed, charged, reported_usage, usage_unknown

REQUEST = Request(messages=(Message(role="user", content="né"),), max_tokens=5, temperature=0, top_p=1, seed=1)
BOUND = Usage(prompt_tokens=3 + 64, completion_tokens=5)


@pytest.mark.parametrize(
    ("said", "usage"),
    [({"prompt_tokens": 7, "completion_tokens": 3}, (7, 0, 3)),
     ({"prompt_tokens": 7.0, "completion_tokens": 0}, (7, 0, 0)),
     ({"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 9}}, (7, 7, 3)),
     ({"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": [-1]}, (7, 0, 3)),
     ({"prompt_tokens": 2**53, "completion_tokens": 3}, (2**53, 0, 3))],
)  # fmt: skip
def test_numbers_of_tokens_are_believed(said: dict, usage: tuple):
    assert reported_usage(said) == Usage(prompt_tokens=usage[0], cached_tokens=usage[1], completion_tokens=usage[2])


@pytest.mark.parametrize(
    "said",
    [None, {}, [], "x", {"prompt_tokens": 7}, {"prompt_tokens": None, "completion_tokens": 3},
     *({"prompt_tokens": odd, "completion_tokens": 3}
       for odd in (-1, 10**24, float("inf"), float("nan"), "12", True, 1.5, 2**53 + 1, []))],
    ids=repr,
)  # fmt: skip
def test_what_is_no_number_of_tokens_is_charged_as_the_bound(said: object):
    assert reported_usage(said) is None
    answer = Response(text="x", finish_reason="stop", raw={MARK: UNKNOWN})
    assert charged(REQUEST, answer, NOTHING).usage == BOUND


def test_tries_that_brought_nothing_are_charged_too():
    answer = Response(text="x", finish_reason="stop", usage=Usage(prompt_tokens=7, completion_tokens=3))
    spent = Usage(prompt_tokens=70, cached_tokens=1, completion_tokens=30)
    assert charged(REQUEST, answer, spent).usage == Usage(prompt_tokens=77, cached_tokens=1, completion_tokens=33)


NAMES = st.sampled_from(["prompt_tokens", "completion_tokens", "prompt_tokens_details", "cached_tokens"])
VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)


@given(st.recursive(VALUES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner)))
def test_no_report_costs_less_than_nothing(said: object):
    usage = reported_usage(said)
    assert usage is None or all(0 <= count <= 2**53 for count in usage.model_dump().values())


def test_usage_beyond_measure_in_a_log_is_read_as_the_bound():
    logged = {"text": "x", "finish_reason": "stop", "raw": {"status": 200}}
    said = {"prompt_tokens": 10**24, "cached_tokens": 0, "completion_tokens": 1}
    read = Response.model_validate(believed({**logged, "usage": said}, REQUEST.payload("m")))
    assert (read.usage, usage_unknown(read), read.raw["status"]) == (BOUND, True, 200)
    fine = {**logged, "usage": {**said, "prompt_tokens": 7}}
    assert believed(fine, {}) == fine
