"""What every engine promises, asked of each with the same model: in process, over HTTP, replayed, and vLLM's (slow)."""

import importlib.util
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from pipelines.model_folder import digest_model
from synth.engine_endpoint import EndpointEngine
from synth.engine_replay import ReplayEngine
from synth.engine_transformers import TransformersEngine
from synth.engines import EngineSettings, open_engine
from synth.protocol import Engine, Message, Request, Response, encode_chat, request_key, wire_record
from synth.response_log import ResponseLog
from tests.synth.chat_model import ROOM, answers, ask, greedy
from tests.synth.conftest import Server, serving

needs_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM; make setup-vllm")
VLLM = [
    pytest.param(name, marks=[pytest.mark.slow, needs_vllm, pytest.mark.xdist_group(name)])
    for name in ("vllm", "vllm serve")
]
PROMPTS = ("Soil is", "Clay is", "Loam holds water.", "", "Ton, Sand und Schluff: Lehm", "土壤", "1 + 1 =", "x" * 40)


def text_of(response: Response) -> str:
    """The text but for a character that was cut at its end, which servers leave out."""
    return response.text.rstrip("\ufffd")


def serve(server: Server, inside: TransformersEngine) -> None:
    """Let the model answer over HTTP, as servers do: what is too long is refused."""

    def answer(body: dict):
        request = Request.model_validate({key: value for key, value in body.items() if key != "model"})
        with server.lock:
            [response] = answers(inside, request)
        usage = {"prompt_tokens": response.usage.prompt_tokens, "completion_tokens": response.usage.completion_tokens}
        if response.finish_reason == "prompt_too_long":
            return 400, {"error": {"message": f"This model's maximum context length is {ROOM} tokens."}}
        choice = {"message": {"content": response.text}, "finish_reason": response.finish_reason}
        return 200, {"choices": [choice], "model": "m", "usage": usage}

    server.answer = answer


class Recorded:
    """A replay of answers that were recorded a moment ago."""

    def __init__(self, inside: TransformersEngine, folder: Path) -> None:
        self.inside, self.folder = inside, folder
        self.identity, self.capabilities, self.latencies_s = inside.identity, inside.capabilities, []

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Response]]:
        """Record what is not recorded yet, then replay all."""
        with ResponseLog(self.folder, self.inside) as log:
            for request in requests:
                if log.get(key := request_key(request, self.identity)) is None:
                    [(_, response)] = self.inside.generate([request])
                    log.add(key, wire_record(request, self.identity), response)
        yield from ReplayEngine(self.folder).generate(requests)

    def prompt_tokens(self, request: Request) -> int:
        """As the engine that was recorded."""
        return self.inside.prompt_tokens(request)

    def close(self) -> None:
        """As the engine that was recorded."""
        self.inside.close()


@pytest.fixture(scope="module", params=["transformers", "endpoint", "replay", *VLLM])
def engine(
    request: pytest.FixtureRequest, chat_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    name, scratch = request.param, tmp_path_factory.mktemp("engine")
    if name == "endpoint":
        inside = TransformersEngine(chat_model)
        with closing(inside), serving() as server:
            serve(server, inside)
            yield EndpointEngine(server.url, "m", concurrency=4)
    elif name == "replay":
        with closing(Recorded(TransformersEngine(chat_model), scratch)) as engine:
            yield engine
    else:
        settings = EngineSettings(name=name.split()[0], serve=name == "vllm serve", window=24)
        with closing(open_engine(settings, chat_model, scratch)) as engine:
            yield engine


def over_http(engine: Engine) -> bool:
    return isinstance(engine, EndpointEngine)


def test_greedy_is_what_transformers_generates(engine: Engine, chat_model: Path):
    tokenizer, ends = AutoTokenizer.from_pretrained(chat_model), set()
    for content, response in zip(PROMPTS, answers(engine, *[ask(content) for content in PROMPTS]), strict=True):
        prompt, written = greedy(chat_model, content, 24)
        ended = len(written) < 24
        written = written[:-1] if ended else written
        assert text_of(response) == tokenizer.decode(written, skip_special_tokens=True).rstrip("\ufffd")
        assert response.finish_reason == ("stop" if ended else "length")
        counted = response.usage.completion_tokens - (ended and engine.identity.backend == "vllm serve")
        assert (response.usage.prompt_tokens, counted) == (len(prompt), len(written))
        ends.add(response.finish_reason)
    assert ends == {"stop", "length"}


def test_nothing_asked_is_nothing_answered(engine: Engine):
    assert answers(engine) == []


def test_every_request_is_answered_once_and_is_the_one_that_was_asked(engine: Engine):
    requests = [ask(content, max_tokens=3, seed=seed) for seed, content in enumerate(PROMPTS)]
    assert sorted(map(id, requests)) == sorted(id(asked) for asked, _ in engine.generate(requests))


def test_order_changes_nothing(engine: Engine):
    requests = [ask(content, max_tokens=8) for content in PROMPTS]
    assert answers(engine, *requests) == answers(engine, *requests[::-1])[::-1]


def test_company_changes_nothing(engine: Engine):
    requests = [ask(content, max_tokens=8) for content in PROMPTS[:4]]
    assert answers(engine, *requests) == [answers(engine, request)[0] for request in requests]


def test_the_same_request_twice_has_one_answer(engine: Engine):
    one, other = answers(engine, ask("Clay"), ask("Clay"))
    assert one == other


def test_a_seed_decides_the_draw(engine: Engine):
    one, other, same = answers(
        engine, ask("Clay", temperature=1.0), ask("Clay", temperature=1.0, seed=2), ask("Clay", temperature=1.0)
    )
    assert one == same
    assert one.text != other.text


def test_without_temperature_seeds_change_nothing(engine: Engine):
    one, other = answers(engine, ask("Clay", seed=1), ask("Clay", seed=2))
    assert one.text == other.text


def test_the_largest_seed_is_taken(engine: Engine):
    [response] = answers(engine, ask("Clay", seed=0x7FFFFFFF, temperature=1.0))
    assert response.error_class == ""


def test_a_tiny_nucleus_is_greedy(engine: Engine):
    narrow, first = answers(engine, ask("Clay", temperature=1.0, top_p=1e-6), ask("Clay"))
    assert narrow.text == first.text


def test_the_models_own_habits_of_sampling_are_not_ours(engine: Engine, chat_model: Path):
    assert json.loads((chat_model / "generation_config.json").read_text())["top_k"] == 1
    found = answers(engine, *[ask("Clay", temperature=1.0, top_p=1.0, seed=seed) for seed in range(6)])
    assert len({response.text for response in found}) == 6


def test_more_prompts_than_one_batch_takes_are_all_answered(engine: Engine):
    requests = [ask(f"{number:03d} " * 60, temperature=1.0, seed=number, max_tokens=4) for number in range(30)]
    found = answers(engine, *requests)
    assert {response.usage.prompt_tokens for response in found} == {247}
    assert all((r.finish_reason == "length") == (r.usage.completion_tokens == 4) for r in found if r.text)


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_a_ceiling_is_kept_and_said(engine: Engine, limit: int):
    [response] = answers(engine, ask("Clay is", max_tokens=limit))
    assert (response.finish_reason, response.usage.completion_tokens) == ("length", limit)


def test_an_end_in_time_is_said(engine: Engine):
    [response] = answers(engine, ask("Soil is"))
    assert response.finish_reason == "stop"
    assert 5 <= response.usage.completion_tokens < 24


def test_stop_strings_end_the_answer(engine: Engine):
    [whole] = answers(engine, ask("Clay is"))
    stop = whole.text[4:6]
    [cut] = answers(engine, ask("Clay is", stop=("never", stop)))
    assert (cut.text, cut.finish_reason) == (whole.text[: whole.text.index(stop)], "stop")
    assert 0 < cut.usage.completion_tokens < whole.usage.completion_tokens


def test_a_stop_string_that_does_not_come_changes_nothing(engine: Engine):
    whole, asked = answers(engine, ask("Clay is"), ask("Clay is", stop=("never to be seen",)))
    assert whole.text == asked.text


def test_a_prompt_without_room_is_said_to_be_too_long(engine: Engine):
    tight, none, fine = answers(engine, ask("x" * 248), ask("x" * 249), ask("Clay is"))  # 7 more are the template's
    assert (tight.finish_reason, tight.usage.prompt_tokens, tight.usage.completion_tokens) == ("length", 255, 1)
    assert (none.finish_reason, none.text, none.error_class) == ("prompt_too_long", "", "deterministic")
    assert fine.usage.completion_tokens == 24


def test_a_prompt_far_too_long_is_said_to_be_too_long(engine: Engine):
    assert answers(engine, ask("x" * 20_000))[0].finish_reason == "prompt_too_long"


def test_more_room_asked_than_there_is_is_cut(engine: Engine):
    [response] = answers(engine, ask("x" * 230, max_tokens=4000))
    assert response.usage.prompt_tokens + response.usage.completion_tokens <= ROOM
    assert response.finish_reason in ("stop", "length")


def test_an_empty_prompt_is_a_prompt(engine: Engine):
    [response] = answers(engine, ask(""))
    assert (response.error_class, response.usage.prompt_tokens) == ("", 7)


@pytest.mark.parametrize(
    "content", ["\x00\x01\x1b", "é ﬁ Å", "🌱" * 5, "\u202eabc\u2066", "a\r\n\tb ", "{{slot}} {% x %}"], ids=ascii
)
def test_every_character_is_a_prompt(engine: Engine, chat_model: Path, content: str):
    prompt = encode_chat(AutoTokenizer.from_pretrained(chat_model), ask(content).messages)
    [response] = answers(engine, ask(content, max_tokens=2))
    assert response.usage.prompt_tokens == len(prompt) == 7 + len(content.encode())


def test_answers_can_be_written_down(engine: Engine):
    for response in answers(engine, *[ask(c, temperature=1.5, top_p=1.0, seed=s) for s, c in enumerate(PROMPTS)]):
        assert Response.model_validate_json(response.model_dump_json()) == response


def test_several_turns_go_through_the_template(engine: Engine):
    turns = (Message(role="system", content="Dig."), Message(role="user", content="a"),
             Message(role="assistant", content="b"), Message(role="user", content="c"))  # fmt: skip
    request = Request(messages=turns, max_tokens=2, temperature=0.0, top_p=1.0, seed=1)
    [response] = answers(engine, request)
    assert response.usage.prompt_tokens == len("[system]Dig.[user]a[assistant]b[user]c>")


def test_marks_in_a_prompt_are_text_where_that_is_promised(engine: Engine):
    [response] = answers(engine, ask("a<|endoftext|>b", max_tokens=2))
    assert response.usage.prompt_tokens == 7 + (15 if literal(engine) else 3)


def literal(engine: Engine) -> bool:
    """Whether the model's own tokenizer is ours: a server tokenizes as it likes (the test's own uses our code)."""
    return engine.capabilities.literal_text or engine.identity.backend == "endpoint"


def test_who_answers_is_said(engine: Engine, chat_model: Path):
    identity = engine.identity
    assert identity.backend in ("transformers", "vllm", "vllm serve", "endpoint")
    assert identity.digest == ("" if identity.backend == "endpoint" else digest_model(chat_model))
    assert str(chat_model) not in identity.model_dump_json()
    assert "127.0.0.1" not in identity.model_dump_json()


def test_who_asks_changes_the_key_and_not_the_answer(engine: Engine):
    one, other = ask("Clay is", metadata={"doc_id": "a"}), ask("Clay is", metadata={"doc_id": "b"})
    assert request_key(one, engine.identity) != request_key(other, engine.identity)
    first, second = answers(engine, one, other)
    assert first.text == second.text


def test_answers_hold_no_clock_and_no_id(engine: Engine):
    before, after = answers(engine, ask("Clay is"))[0], answers(engine, ask("Clay is"))[0]
    assert before.model_dump_json() == after.model_dump_json()


def test_latencies_are_seconds(engine: Engine):
    answers(engine, ask("Clay is", max_tokens=1))
    assert all(0 <= seconds < 600 for seconds in engine.latencies_s)


FORM = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}


def schema(content: dict) -> dict:
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": content, "strict": True}}


@pytest.mark.parametrize("engine", VLLM, indirect=True)
@pytest.mark.parametrize("content", ["Clay is", "Soil is", "土壤"])
def test_a_schema_is_enforced(engine: Engine, content: str):
    assert engine.capabilities.json_schema
    [answer] = answers(engine, ask(content, max_tokens=60, response_format=schema(FORM)))
    assert (json.loads(answer.text), answer.finish_reason) in [({"a": 1}, "stop"), ({"a": 2}, "stop")]


@pytest.mark.parametrize("engine", VLLM, indirect=True)
def test_a_schema_for_one_is_none_for_others(engine: Engine):
    free, bound, same = answers(engine, ask("Clay is"), ask("Clay is", response_format=schema(FORM)), ask("Clay is"))
    assert free == same
    assert bound.text.startswith("{")


@pytest.mark.parametrize("engine", VLLM, indirect=True)
def test_the_schemas_of_the_recipes_are_taken(engine: Engine):
    from synth.backward import STAGES
    from synth.judge import STAGE

    forms = [stage.schema for stage in (*STAGES, STAGE) if stage.schema]
    found = answers(engine, *[ask("Clay is", max_tokens=40, response_format=form) for form in forms])
    assert {response.error_class for response in found} == {""}
    assert all(response.text.startswith("{") for response in found)


@pytest.mark.parametrize("engine", [VLLM[1]], indirect=True)
def test_a_server_that_is_killed_is_started_again(engine: Engine):
    from synth.engine_guard import end_group
    from synth.engine_serve import ServedVllm

    assert isinstance(engine, ServedVllm)
    [before] = answers(engine, ask("Clay is"))
    assert engine.process is not None
    first = engine.process.pid
    [server] = [int(pid) for pid in Path(f"/proc/{first}/task/{first}/children").read_text().split()]
    end_group(server)
    assert answers(engine, ask("Clay is"))[0] == before
    assert engine.process.pid != first
    engine.close()
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)
