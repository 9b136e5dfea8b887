import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synth.json_answers import read_json_answer, read_list, read_object

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.text(max_size=4), VALUES, max_size=3)


@pytest.mark.parametrize(
    ("answer", "value", "how"),
    [
        ('{"a": 1}', {"a": 1}, "strict"),
        (' \n{"a": 1}\n', {"a": 1}, "strict"),
        ('```json\n{"a": 1}\n```', {"a": 1}, "fence"),
        ('```\n{"a": 1}\n```', {"a": 1}, "fence"),
        ('Sure:\n{"a": 1}', {"a": 1}, "prose"),
        ('{"a": 1} That is all.', {"a": 1}, "prose"),
        ('{"a": [1, 2,],}', {"a": [1, 2]}, "comma"),
        ('```json\n{"a": [1,\n]}\n```', {"a": [1]}, "fence+comma"),
        ('{"a": "one\ntwo"}', {"a": "one\ntwo"}, "line_break"),
        ('So: {"a": "b,]",} ok', {"a": "b,]"}, "prose+comma"),
        ('{"a": "\\",}"}', {"a": '",}'}, "strict"),
    ],
)
def test_what_was_mended_is_said(answer: str, value: dict, how: str):
    text, found = read_json_answer(answer)
    assert text is not None
    assert (json.loads(text), found) == (value, how)


@pytest.mark.parametrize(
    "answer",
    ["", "no", "{", '{"a": 1', '{"a": [1}', "[1]", '"a"', "{'a': 1}", '{"a": 1, "a": 2}', '{"a": NaN}',
     '{"a": Infinity}', '{"a": 1e999}',
     '{"a": "\\ud83d"}', '{"\\ude00": 1}', "}{", '{"a" 1}', "{a: 1}", '{"a": 1} and {"b": 2}', '{"a": ' * 100_000],
)  # fmt: skip
def test_nothing_is_guessed(answer: str):
    assert read_json_answer(answer) == (None, "")


@given(OBJECTS)
def test_json_is_read_as_it_is(value: dict):
    text, how = read_json_answer(json.dumps(value))
    assert text is not None
    assert (json.loads(text), how) == (value, "strict")


@given(OBJECTS, st.sampled_from(["```json\n{}\n```", "```\n{}\n```"]))
def test_a_fence_changes_nothing(value: dict, fence: str):
    text, how = read_json_answer(fence.replace("{}", json.dumps(value)))
    assert text is not None
    assert (json.loads(text), how) == (value, "fence")


@given(st.text(max_size=60))
def test_anything_at_all_is_an_object_or_nothing(answer: str):
    text, how = read_json_answer(answer)
    assert (text is None) == (how == "")
    assert text is None or isinstance(json.loads(text), dict)


@given(st.text(st.sampled_from('{}[]":, \\udc0e8d3a1n'), max_size=40))
def test_what_is_read_can_be_written(answer: str):
    text, _ = read_json_answer(answer)
    assert text is None or json.loads(text.encode()) == json.loads(text)


def test_objects_and_lists_are_read_alike():
    assert read_object('Here: {"a": 1} Done.', "a") == {"a": 1}
    assert read_object('{"a": 1}', "a", "b") == "wrong_shape"
    assert read_object('{"a": "\\ud800"}', "a") == "not_json"


@pytest.mark.parametrize(
    ("answer", "found"),
    [('{"a": [1]}', [1]),
     ('Sure:\n```json\n{"a": []}\n```', []), ('{"b": [1]}', "wrong_shape"), ('{"a": 1}', "wrong_shape"),
     ("a: [1]", "not_json"), ('{"a": [1}', "not_json"), ("} {", "not_json")],
)  # fmt: skip
def test_lists(answer: str, found: object):
    assert read_list(answer, "a") == found
