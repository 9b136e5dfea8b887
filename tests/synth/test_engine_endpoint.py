import json
import socket
import threading
import time
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from pipelines.errors import DataError, StepError
from synth import engine_pace
from synth.engine_endpoint import CANARY, EndpointEngine
from synth.engine_transformers import TransformersEngine
from synth.protocol import Request, Response, request_key
from tests.synth.conftest import Server, completion, cut_body, cut_connection, status
from tests.synth.test_engines import answers, ask


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_pace, "FIRST_WAIT_S", 0.01)


def endpoint(server: Server, **options) -> EndpointEngine:
    return EndpointEngine(server.url, "m", **{"patience_s": 0.3, **options})


def canary(body: dict) -> bool:
    return body["messages"][0]["content"] == CANARY.messages[0].content


def test_a_server_is_asked_in_openai_shape(server: Server):
    server.answer = lambda body: completion("yes")
    [response] = answers(endpoint(server), ask(stop=("x",), metadata={"doc_id": "d"}))
    assert (response.text, response.usage.completion_tokens, response.raw["status"]) == ("yes", 3, 200)
    assert server.calls == [
        {"model": "m", "messages": [{"role": "user", "content": "Soil is"}], "max_tokens": 12, "temperature": 1.0,
         "top_p": 0.9, "seed": 1, "stop": ["x"]}
    ]  # fmt: skip


def test_a_real_model_behind_http_answers_as_in_process(server: Server, tiny_model: Path):
    inside = TransformersEngine(tiny_model)

    def serve(body: dict) -> tuple[int, dict]:
        fields = {key: value for key, value in body.items() if key != "model"}
        return completion(answers(inside, Request.model_validate(fields))[0].text, "length")

    server.answer = serve
    requests = [ask(seed=seed) for seed in range(5)]
    outside = answers(endpoint(server, concurrency=1), *requests)
    assert [r.text for r in outside] == [r.text for r in answers(inside, *requests)]


def test_many_requests_each_get_their_own_answer(server: Server):
    server.answer = lambda body: completion(str(body["seed"]))
    found = answers(endpoint(server, concurrency=4), *[ask(seed=seed) for seed in range(30)])
    assert [response.text for response in found] == [str(seed) for seed in range(30)]
    assert server.most <= 4


def test_a_server_that_bears_it_gets_more_at_once(server: Server):
    together = threading.Barrier(20)  # the last twenty only return when all of them are under way

    def answer(body: dict) -> tuple[int, dict]:
        if body["seed"] >= 30:
            together.wait(20)
        return completion("yes")

    server.answer = answer
    engine = endpoint(server, concurrency=20)
    assert engine.pace.limit == 8
    assert len(answers(engine, *[ask(seed=seed) for seed in range(50)])) == 50
    assert (server.most, engine.pace.limit) == (20, 20)


@pytest.mark.parametrize(
    "fault",
    [status(429), status(429, Retry_After="0"), status(429, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"),
     status(429, Retry_After="soon"), status(503), status(500), status(502), cut_connection, cut_body,
     lambda handler: (handler.send_response(200), handler.send_header("Content-Length", "0"), handler.end_headers())],
    ids=["429", "429 wait 0", "429 past date", "429 unreadable", "503", "500", "502", "dies", "cut body", "no body"],
)  # fmt: skip
def test_what_passes_is_tried_again(server: Server, fault):
    server.answer = lambda body: completion("yes") if len(server.calls) == 3 else fault
    engine = endpoint(server, patience_s=20)
    assert answers(engine, ask())[0].text == "yes"
    assert len(server.calls) == 3
    assert server.calls[0] == server.calls[1] == server.calls[2]


@pytest.mark.parametrize(
    "reply", [{}, [], {"choices": []}, {"choices": None}, {"choices": [{"message": None}]}, {"choices": ["x"]}], ids=str
)
def test_a_reply_without_an_answer_is_tried_again(server: Server, reply):
    server.answer = lambda body: (200, reply) if len(server.calls) == 1 else completion("yes")
    assert answers(endpoint(server, patience_s=20), ask())[0].text == "yes"


def test_strain_halves_the_window_once(server: Server):
    gate = threading.Barrier(8)

    def answer(body: dict):
        if len(server.calls) <= 8:
            gate.wait(20)  # eight are turned away together
            return status(429)
        return completion("yes")

    server.answer = answer
    engine = endpoint(server, concurrency=8, patience_s=20)
    found = engine.generate([ask(seed=seed) for seed in range(9)])
    next(found)
    assert 4 <= engine.pace.limit < 8
    assert len(list(found)) == 8


def test_a_wish_to_be_left_alone_holds_for_all(server: Server):
    times: list[float] = []

    def answer(body: dict):
        times.append(time.monotonic())
        return status(429, Retry_After="0.3") if len(times) == 1 else completion("yes")

    server.answer = answer
    assert len(answers(endpoint(server, concurrency=1, patience_s=20), ask(seed=1), ask(seed=2))) == 2
    assert times[1] - times[0] >= 0.3


def test_a_wish_beyond_patience_stops_the_step(server: Server):
    server.answer = lambda body: status(429, Retry_After="3600")
    with pytest.raises(StepError, match="asks to be left alone for 3600 s"):
        answers(endpoint(server), ask())


@pytest.mark.parametrize(
    ("code", "said", "finish"),
    [(400, "bad schema", "refused"), (422, "no such role", "refused"), (413, "", "prompt_too_long"),
     (400, "This model's maximum context length is 256 tokens", "prompt_too_long"),
     (400, "the request exceeds the available context size", "prompt_too_long")],
)  # fmt: skip
def test_what_would_be_refused_again_is_an_answer(server: Server, code: int, said: str, finish: str):
    server.answer = lambda body: status(code, said)
    [response] = answers(endpoint(server), ask())
    assert (response.finish_reason, response.error_class, len(server.calls)) == (finish, "deterministic", 1)
    assert (response.raw["status"], said in response.raw["body"]) == (code, True)


@pytest.mark.parametrize(("finish", "meant"), [("length", "length"), ("content_filter", "refused"), (None, "refused")])
def test_other_ends_are_told_apart(server: Server, finish, meant: str):
    server.answer = lambda body: completion("half", finish)
    assert answers(endpoint(server), ask())[0].finish_reason == meant


@pytest.mark.parametrize("code", [401, 402, 403, 404])
def test_a_wrong_key_or_name_stops_at_once(server: Server, code: int):
    server.answer = lambda body: status(code, "who are you?")
    with pytest.raises(DataError, match=rf"HTTP {code}.*engine\.api_key_variable"):
        answers(endpoint(server), ask(), ask(seed=2))


def test_a_filter_of_contents_is_no_wrong_key(server: Server):
    server.answer = lambda body: completion("yes") if body["seed"] == 1 else status(403, "flagged")
    found = answers(endpoint(server, concurrency=1), ask(seed=1), ask(seed=2))
    assert [response.finish_reason for response in found] == ["stop", "refused"]


def refused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_server_that_is_not_there_stops_the_step():
    engine = EndpointEngine(f"http://127.0.0.1:{refused_port()}/v1", "m", patience_s=0.2)
    with pytest.raises(StepError, match=r"answered nothing for .*ConnectError.*run again to resume"):
        answers(engine, ask(), ask(seed=2))


def test_an_address_that_is_none_is_said(server: Server):
    with pytest.raises(DataError, match=r"engine\.url"):
        answers(EndpointEngine("nonsense", "m", patience_s=0.2), ask())


@pytest.mark.parametrize(
    "fault", [cut_connection, cut_body, status(500), status(429)], ids=["dies", "cut", "500", "429"]
)
def test_a_server_that_dies_midway_loses_no_answer(server: Server, fault):
    server.answer = lambda body: completion("yes") if len(server.answered) < 5 else fault
    engine, got = endpoint(server, concurrency=1, retries=1), []
    with pytest.raises(StepError, match="all answers so far are kept"):
        got.extend(request.seed for request, _ in engine.generate([ask(seed=seed) for seed in range(10)]))
    assert got == [body["seed"] for body in server.answered] == [0, 1, 2, 3, 4]


def test_a_server_that_hangs_is_given_up(server: Server):
    server.answer = lambda body: server.hang
    with pytest.raises(StepError, match=r"no answer in 0\.1 s"):
        answers(endpoint(server, timeout_s=0.1, retries=1), ask())


def test_one_that_hangs_among_others_is_quarantined(server: Server):
    server.answer = lambda body: server.hang if body["seed"] == 3 else completion("yes")
    found = answers(endpoint(server, timeout_s=0.2, retries=1, patience_s=20), *[ask(seed=seed) for seed in range(8)])
    assert [r.finish_reason for r in found] == ["stop"] * 3 + ["poison"] + ["stop"] * 4
    assert Counter(body["seed"] for body in server.calls if not canary(body))[3] in (2, 3)


def test_who_only_stood_beside_is_not_blamed(server: Server):
    gate = threading.Barrier(4)

    def answer(body: dict):
        if canary(body):
            return completion("yes")
        if len(server.calls) <= 4:
            gate.wait(20)  # all four are under way when the server goes down
            return cut_connection
        return completion("yes") if body["seed"] else cut_connection

    server.answer = answer
    found = answers(endpoint(server, retries=0, patience_s=20), *[ask(seed=seed) for seed in range(4)])
    assert [r.finish_reason for r in found] == ["poison", "stop", "stop", "stop"]


@pytest.mark.parametrize("fault", [cut_connection, cut_body, status(500)], ids=["kills", "cut", "500"])
def test_a_request_that_breaks_the_server_is_poison(server: Server, fault):
    server.answer = lambda body: fault if body["seed"] == 0 and not canary(body) else completion("yes")
    engine = endpoint(server, retries=2, patience_s=20)
    found = answers(engine, *[ask(seed=seed) for seed in range(6)])
    assert [(r.finish_reason, r.error_class) for r in found] == [("poison", "poison")] + [("stop", "")] * 5
    asked = Counter(body["seed"] for body in server.calls if not canary(body))
    assert asked.pop(0) in (3, 4)  # three, and a last one if it never was alone
    assert asked == dict.fromkeys(range(1, 6), 1)


def test_the_only_request_is_poison_where_a_canary_lives(server: Server):
    server.answer = lambda body: completion("yes") if canary(body) else status(500)
    assert answers(endpoint(server, retries=1, patience_s=20), ask())[0].finish_reason == "poison"


def test_overload_is_nobodys_fault(server: Server):
    server.answer = lambda body: status(429) if len(server.calls) < 9 else completion("yes")
    engine = endpoint(server, concurrency=2, retries=1, patience_s=30)
    assert {r.finish_reason for r in answers(engine, ask(seed=1), ask(seed=2))} == {"stop"}


def test_an_answer_that_was_lost_on_the_way_is_taken_once(server: Server):
    def answer(body: dict):
        if len(server.calls) == 1:
            server.answered.append(body)  # it was made, and never came through
            return cut_connection
        return completion("yes")

    server.answer = answer
    requests = [ask(seed=seed) for seed in range(4)]
    found = [request.seed for request, _ in endpoint(server, patience_s=20).generate(requests)]
    assert sorted(found) == [0, 1, 2, 3]


def test_thinking_that_a_server_set_apart_is_put_back(server: Server):
    code, reply = completion("four")
    reply["choices"][0]["message"]["reasoning_content"] = "two and two"
    server.answer = lambda body: (code, reply)
    assert answers(endpoint(server), ask())[0].text == "<think>two and two</think>four"


def test_half_a_character_is_replaced(server: Server):
    server.answer = lambda body: completion("a\ud800b")
    [response] = answers(endpoint(server), ask())
    assert response.text.encode().decode().strip("\ufffd") == response.text
    assert (response.text[0], response.text[-1]) == ("a", "b")


def test_tokens_from_the_servers_cache_are_counted(server: Server):
    code, reply = completion("yes")
    reply["usage"]["prompt_tokens_details"] = {"cached_tokens": 5}
    server.answer = lambda body: (code, reply)
    assert answers(endpoint(server), ask())[0].usage.cached_tokens == 5


def test_whoever_stops_listening_leaves_nothing_behind(server: Server):
    server.answer = lambda body: completion("yes") if body["seed"] == 0 else server.hang
    engine = endpoint(server, timeout_s=600)
    found = engine.generate([ask(seed=seed) for seed in range(8)])
    assert next(found)[0].seed == 0
    found.close()  # returns at once, though seven hang
    assert "endpoint" not in {thread.name for thread in threading.enumerate()}


def test_the_same_request_carries_the_same_idempotency_key(server: Server):
    seen: list[str] = []

    def note(handler) -> None:
        seen.append(handler.headers["Idempotency-Key"])
        cut_connection(handler)

    server.answer = lambda body: note if len(server.calls) == 1 else completion("yes")
    engine, request = endpoint(server, patience_s=20), ask()
    assert answers(engine, request)[0].text == "yes"
    assert seen == [request_key(request, engine.identity)]


def test_latencies_are_seen_one_by_one(server: Server):
    server.answer = lambda body: completion("yes")
    engine = endpoint(server)
    assert len(answers(engine, ask(seed=1), ask(seed=2))) == len(engine.latencies_s) == 2


def test_a_server_may_lack_schemas(server: Server):
    assert endpoint(server).capabilities.json_schema
    assert not endpoint(server, json_schema=False).capabilities.json_schema


def test_keys_do_not_depend_on_the_address():
    one, two = (EndpointEngine(f"http://h:{port}/v1", "m").identity for port in (1, 2))
    assert request_key(ask(), one) == request_key(ask(), two)
    assert json.dumps(one.model_dump()).count("http") == 0


def test_answers_come_as_they_finish(server: Server):
    server.answer = lambda body: completion("yes") if body["seed"] else server.hang
    found = endpoint(server, timeout_s=600).generate([ask(seed=seed) for seed in (0, 1, 2)])
    first: list[tuple[Request, Response]] = list(islice(found, 2))
    assert {request.seed for request, _ in first} == {1, 2}
    found.close()
