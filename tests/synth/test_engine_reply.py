"""Odd replies of a real server on this machine, each through the engine that reads it."""

import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from synth import engine_endpoint, engine_pace
from synth.engine_endpoint import EndpointEngine
from synth.usage import usage_unknown
from tests.synth.conftest import Server, completion
from tests.synth.test_engines import answers, ask


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_pace, "FIRST_WAIT_S", 0.01)


def endpoint(server: Server, **options) -> EndpointEngine:
    return EndpointEngine(server.url, "m", **{"patience_s": 0.3, **options})


def sent(data: bytes, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    """A reply of these bytes."""

    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(data)

    return reply


def replied(**changes: Any) -> dict[str, Any]:
    return {**completion("yes")[1], **changes}


@pytest.mark.parametrize("data", [b"[" * 200_000, b'{"choices":' + b"[" * 99_999, b"null", b"[1]", b"\xff",
                                  b'{"choices": []}'], ids=lambda data: repr(data[:12]))  # fmt: skip
def test_a_body_that_is_no_completion_is_poison_and_spares_the_others(server: Server, data: bytes):
    server.answer = lambda body: sent(data) if body["seed"] == 2 else completion("yes")
    found = answers(endpoint(server, retries=1), *[ask(seed=seed) for seed in range(4)])
    assert [response.finish_reason for response in found] == ["stop", "stop", "poison", "stop"]


@pytest.mark.parametrize("kind", ["rot13", "utf-16", "none"])
def test_json_is_read_as_utf8_whatever_the_headers_say(server: Server, kind: str):
    data = json.dumps(replied(model="né"), ensure_ascii=False).encode()
    server.answer = lambda body: sent(data, Content_Type=f"application/json; charset={kind}")
    assert answers(endpoint(server), ask())[0].raw["model"] == "né"


def test_half_surrogates_reach_no_field(server: Server):
    choice = {"message": {"content": "a\ud800"}, "finish_reason": "b\ud800"}
    server.answer = lambda body: (200, replied(choices=[choice], model="c\ud800"))
    [response] = answers(endpoint(server), ask())
    assert response.finish_reason == "refused"
    assert [text[0] for text in (response.text, response.raw["finish_reason"], response.raw["model"])] == [
        "a",
        "b",
        "c",
    ]
    response.model_dump_json().encode()


@pytest.mark.parametrize(
    ("usage", "code"),
    [
        (None, False),
        ({"prompt_tokens": 10**24, "completion_tokens": 1}, False),
        ({"prompt_tokens": 7, "completion_tokens": 3}, True),
    ],
    ids=str,
)
def test_usage_that_is_not_credible_is_charged_as_the_bound(server: Server, usage: dict | None, code: bool):
    server.answer = lambda body: (200, replied(usage=usage))
    [response] = answers(endpoint(server), ask())
    assert response.usage.model_dump() == {
        "prompt_tokens": 7 if code else len("Soil is") + 64, "cached_tokens": 0, "completion_tokens": 3 if code else 12
    }  # fmt: skip
    assert usage_unknown(response) != code


def test_paid_replies_without_an_answer_are_charged(server: Server):
    server.answer = lambda body: (200, replied(choices=[])) if len(server.calls) < 3 else completion("yes")
    [response] = answers(endpoint(server), ask())
    assert (response.text, response.usage.prompt_tokens, response.usage.completion_tokens) == ("yes", 21, 9)


@pytest.mark.parametrize("message", [{"tool_calls": [{"id": "a"}]}, {"content": None, "refusal": "no"}], ids=str)
def test_a_message_that_is_no_text_is_refused_at_once(server: Server, message: dict):
    server.answer = lambda body: (200, replied(choices=[{"message": message, "finish_reason": "stop"}]))
    assert answers(endpoint(server), ask())[0].finish_reason == "refused"
    assert len(server.calls) == 1


def test_a_reply_without_end_is_broken(server: Server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engine_endpoint, "MOST_BYTES", 1000)
    server.answer = lambda body: completion("yes" * (1000 if body["seed"] == 1 else 1))
    found = answers(endpoint(server, retries=0), ask(seed=0), ask(seed=1))
    assert [response.finish_reason for response in found] == ["stop", "poison"]
    assert "more than" in found[1].raw["body"]
