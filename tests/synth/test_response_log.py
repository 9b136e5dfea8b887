from pathlib import Path

import pytest

from pipelines.errors import DataError
from synth.engine_endpoint import EndpointEngine
from synth.protocol import Message, Request, Response, request_key
from synth.response_log import LOG, ResponseLog, read_log

ENGINE = EndpointEngine("http://127.0.0.1:1/v1", "m")
REQUEST = Request(messages=(Message(role="user", content="hi"),), max_tokens=5, temperature=0.5, top_p=0.9, seed=1)


def said(text: str) -> Response:
    return Response(text=text, finish_reason="stop")


def fill(folder: Path, *keys: str) -> None:
    with ResponseLog(folder, ENGINE) as log:
        for key in keys:
            log.add(key, {}, said(f"to {key}"))


def test_answers_are_found_again(tmp_path: Path):
    fill(tmp_path, "a")
    assert ResponseLog(tmp_path, ENGINE).get("a") == said("to a")
    assert ResponseLog(tmp_path, ENGINE).get("b") is None


def test_order_of_answers_leaves_no_trace(tmp_path: Path):
    fill(tmp_path / "one", "a", "c", "b")
    fill(tmp_path / "two", "c", "b", "a")
    assert (tmp_path / "one" / LOG).read_bytes() == (tmp_path / "two" / LOG).read_bytes()


@pytest.mark.parametrize("lost", [1, 20])
def test_a_torn_line_is_forgotten(tmp_path: Path, lost: int):
    fill(tmp_path, "a", "b")
    whole = (tmp_path / LOG).read_bytes()
    (tmp_path / LOG).write_bytes(whole[:-lost])
    with ResponseLog(tmp_path, ENGINE) as log:
        assert (log.get("a"), log.get("b")) == (said("to a"), None)
        log.add("b", {}, said("to b"))
    assert (tmp_path / LOG).read_bytes() == whole


def test_a_broken_line_in_the_middle_is_an_error(tmp_path: Path):
    fill(tmp_path, "a", "b")
    (tmp_path / LOG).write_bytes(b"{}\n" + (tmp_path / LOG).read_bytes())
    with pytest.raises(DataError, match=r"responses\.jsonl:1 is not a response"):
        ResponseLog(tmp_path, ENGINE)


def test_answers_to_questions_no_longer_asked_are_left_out(tmp_path: Path):
    fill(tmp_path, "a", "b")
    with ResponseLog(tmp_path, ENGINE) as log:
        log.get("b")
    assert list(read_log(tmp_path)[2]) == ["b"]


@pytest.mark.parametrize(
    "change",
    [{"seed": 2}, {"temperature": 0.6}, {"top_p": 1.0}, {"max_tokens": 6}, {"stop": ("x",)},
     {"metadata": {"attempt": "1"}},
     {"response_format": {"type": "json_object"}}, {"messages": (Message(role="user", content="ho"),)}],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_every_part_of_a_request_is_in_its_key(change: dict):
    identity = ENGINE.identity
    assert request_key(REQUEST.model_copy(update=change), identity) != request_key(REQUEST, identity)


@pytest.mark.parametrize("field", ["model", "digest", "backend", "version"])
def test_every_part_of_the_engine_is_in_the_key(field: str):
    other = ENGINE.identity.model_copy(update={field: "other"})
    assert request_key(REQUEST, other) != request_key(REQUEST, ENGINE.identity)
