import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, Qwen2ForCausalLM

from pipelines.errors import DataError, MissingExtra, RecipeError
from synth.engine_replay import ReplayEngine
from synth.engine_transformers import TransformersEngine, draw_token
from synth.engines import EngineSettings, open_engine
from synth.protocol import Engine, Message, Request, Response, encode_chat, request_key, wire_record
from synth.response_log import ResponseLog


def ask(content: str = "Soil is", seed: int = 1, **change) -> Request:
    fields = {"max_tokens": 12, "temperature": 1.0, "top_p": 0.9, "seed": seed} | change
    return Request(messages=(Message(role="user", content=content),), **fields)


def answers(engine: Engine, *requests: Request) -> list[Response]:
    found = {request_key(q, engine.identity): a for q, a in engine.generate(requests)}
    return [found[request_key(request, engine.identity)] for request in requests]


def test_greedy_is_what_transformers_generates(tiny_model: Path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    prompt = encode_chat(tokenizer, ask().messages)
    model = Qwen2ForCausalLM.from_pretrained(tiny_model)
    ids = torch.tensor([prompt])
    expected = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12, pad_token_id=256
    )
    [response] = answers(TransformersEngine(tiny_model), ask(temperature=0))
    assert response.text == tokenizer.decode(expected[0, len(prompt) :], skip_special_tokens=True)
    assert (response.usage.prompt_tokens, response.usage.completion_tokens) == (len(prompt), 12)
    assert response.finish_reason == "length"


def test_an_answer_depends_on_its_request_alone(tiny_model: Path):
    one, two, three = ask(seed=1), ask(seed=2), ask("Clay is", seed=1)
    together = answers(TransformersEngine(tiny_model), one, two, three)
    apart = [answers(TransformersEngine(tiny_model), request)[0] for request in (three, two, one)]
    assert together == apart[::-1]
    assert together[0].text != together[1].text


def test_prompts_are_measured_before_they_are_asked(tiny_model: Path):
    engine = TransformersEngine(tiny_model)
    assert engine.prompt_tokens(ask()) == answers(engine, ask())[0].usage.prompt_tokens == len("Soil is\n\n")


def test_what_sums_depend_on_is_in_the_identity(tiny_model: Path):
    one, two = (TransformersEngine(tiny_model, threads=threads).identity for threads in (1, 2))
    assert one != two
    assert f"torch {torch.__version__}" in one.version


def test_a_revision_is_in_the_key():
    settings = EngineSettings(name="endpoint", url="http://localhost:1/v1", model_name="m")
    one, two = (open_engine(settings.model_copy(update={"revision": name}), None).identity for name in ("", "2"))
    assert request_key(ask(), one) != request_key(ask(), two)


def test_stop_strings_end_the_answer(tiny_model: Path):
    engine = TransformersEngine(tiny_model)
    [whole] = answers(engine, ask(temperature=0))
    [cut] = answers(engine, ask(temperature=0, stop=(whole.text[3:5],)))
    assert (cut.text, cut.finish_reason) == (whole.text[: whole.text.index(whole.text[3:5])], "stop")


def test_the_end_token_ends_the_answer(tiny_model: Path):
    engine = TransformersEngine(tiny_model)
    [before] = answers(engine, ask(temperature=0))
    assert engine.loaded is not None
    model, tokenizer = engine.loaded
    prompt = torch.tensor([encode_chat(tokenizer, ask().messages)])
    model.generation_config.eos_token_id = [256, int(model(prompt).logits[0, -1].argmax())]
    [after] = answers(engine, ask(temperature=0))
    assert (before.finish_reason, after.finish_reason) == ("length", "stop")
    assert (after.text, after.usage.completion_tokens) == ("", 0)


def test_a_prompt_without_room_is_said_to_be_too_long(tiny_model: Path):
    [response] = answers(TransformersEngine(tiny_model), ask("x" * 3000))
    assert (response.finish_reason, response.text) == ("prompt_too_long", "")


def test_chat_template_is_used_where_there_is_one(tiny_model: Path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    assert tokenizer.decode(encode_chat(tokenizer, ask().messages)) == "Soil is\n\n"
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    )
    assert tokenizer.decode(encode_chat(tokenizer, ask().messages)) == "[user]Soil is>"


def test_marks_in_a_message_are_text(tiny_model: Path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}<|endoftext|>{% endfor %}"
    said = "a<|endoftext|>[[slot 0]]0;<|endoftext|>"
    ids = encode_chat(tokenizer, [Message(role="system", content=said), Message(role="user", content=said)])
    assert tokenizer.decode(ids) == f"[system]{said}<|endoftext|>[user]{said}<|endoftext|>"
    assert ids.count(256) == 2  # those of the template


@pytest.mark.parametrize(("uniform", "token"), [(0.0, 1), (0.59, 1), (0.61, 0), (0.999, 0)])
def test_the_nucleus_is_drawn_from_by_share(uniform: float, token: int):
    logits = torch.log(torch.tensor([0.32, 0.48, 0.2]))  # the nucleus of 0.7 holds 1 (0.6 of it) and 0 (0.4)
    assert draw_token(logits, 1.0, 0.7, uniform) == token


def test_draws_follow_the_distribution():
    shares = torch.tensor([0.1, 0.2, 0.3, 0.4])
    drawn = [draw_token(torch.log(shares), 1.0, 1.0, (n + 0.5) / 1000) for n in range(1000)]
    assert [drawn.count(n) for n in range(4)] == pytest.approx([100, 200, 300, 400], abs=1)


def test_replay_answers_what_was_recorded(tmp_path: Path, tiny_model: Path):
    engine = TransformersEngine(tiny_model)
    with ResponseLog(tmp_path, engine) as log:
        for request, response in engine.generate([ask()]):
            log.add(request_key(request, engine.identity), wire_record(request, engine.identity), response)
    assert engine.latencies_s
    replayed = answers(ReplayEngine(tmp_path), ask(), ask(seed=9))
    assert replayed[0] == answers(engine, ask())[0]
    assert replayed[1].finish_reason == "not_recorded"


@pytest.mark.parametrize(
    ("settings", "error"),
    [({"name": "endpoint"}, RecipeError), ({"name": "endpoint", "url": "http://localhost:1/v1"}, RecipeError),
     ({"name": "replay"}, RecipeError), ({"name": "transformers"}, DataError),
     ({"name": "replay", "responses": "nowhere"}, DataError)],
    ids=str,
)  # fmt: skip
def test_engines_say_what_they_lack(settings: dict, error: type[Exception]):
    with pytest.raises(error):
        open_engine(EngineSettings(**settings), None)


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_the_way_out_is_named(tiny_model: Path):
    with pytest.raises(MissingExtra, match="make setup-vllm"):
        open_engine(EngineSettings(name="vllm"), tiny_model)
