"""What every engine in this process promises, asked of each with the same model; vLLM's share is slow."""

import importlib.util
import json
import multiprocessing
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from pipelines.errors import DataError, StepError
from synth.engines import EngineSettings, open_engine
from synth.protocol import Engine, Message, Request, Response, encode_chat
from trainer.checkpoint import save_model
from trainer.export import export_hf
from trainer.model import Decoder
from trainer.recipe import ModelSettings

needs_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM; make setup-vllm")
VLLM = pytest.param("vllm", marks=[pytest.mark.slow, needs_vllm])
TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
PROMPTS = ("Soil is", "Clay is", "Loam holds water.", "", "Ton, Sand und Schluff: Lehm", "土壤", "1 + 1 =", "x" * 40)
DENSE = ModelSettings(
    layers=2, width=64, heads=2, kv_heads=1, head_dim=32, ffn_width=96, vocab_size=320, max_sequence=128
)
MOE = ModelSettings(
    layers=3, width=64, heads=2, kv_heads=1, head_dim=32, ffn_width=96, vocab_size=320, max_sequence=128,
    experts=8, experts_per_token=3, expert_width=32, shared_experts=2, dense_layers=1, routed_scaling=2.5,
)  # fmt: skip


def ask(content: str = "Soil is", **change) -> Request:
    fields = {"max_tokens": 24, "temperature": 0.0, "top_p": 0.9, "seed": 1} | change
    return Request(messages=(Message(role="user", content=content),), **fields)


def answers(engine: Engine, *requests: Request) -> list[Response]:
    found = list(engine.generate(requests))
    assert len(found) == len(requests)
    return [next(response for asked, response in found if asked is request) for request in requests]


def greedy(folder: Path, content: str, limit: int) -> tuple[list[int], list[int]]:
    """Prompt and what transformers itself generates, as ids, the end token included."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    prompt = encode_chat(tokenizer, ask(content).messages)
    ids = torch.tensor([prompt])
    mask = torch.ones_like(ids)
    out = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=limit, pad_token_id=256)
    return prompt, out[0, len(prompt) :].tolist()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A random Qwen2 with a chat template and heads that vLLM takes; `Soil is` ends after five tokens."""
    folder = tmp_path_factory.mktemp("chat")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=257, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=256, initializer_range=0.3, bos_token_id=256, eos_token_id=256,
    )  # fmt: skip
    network = Qwen2ForCausalLM(config)
    network.save_pretrained(folder)
    _, written = greedy(folder, "Soil is", 24)
    end = next(token for token in written[5:] if token not in written[:5])
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [256, end]}))
    return folder


@pytest.fixture(scope="module", params=["transformers", VLLM])
def engine(request: pytest.FixtureRequest, model: Path) -> Iterator[Engine]:
    with closing(open_engine(EngineSettings(name=request.param, window=24), model)) as engine:
        yield engine


def test_greedy_is_what_transformers_generates(engine: Engine, model: Path):
    tokenizer, ends = AutoTokenizer.from_pretrained(model), set()
    for content, response in zip(PROMPTS, answers(engine, *[ask(content) for content in PROMPTS]), strict=True):
        prompt, written = greedy(model, content, 24)
        ended = len(written) < 24
        written = written[:-1] if ended else written
        assert response.text == tokenizer.decode(written, skip_special_tokens=True)
        assert response.finish_reason == ("stop" if ended else "length")
        assert (response.usage.prompt_tokens, response.usage.completion_tokens) == (len(prompt), len(written))
        ends.add(response.finish_reason)
    assert ends == {"stop", "length"}


def test_a_seed_decides_the_draw(engine: Engine):
    one, other, same = answers(
        engine, ask("Clay", temperature=1.0), ask("Clay", temperature=1.0, seed=2), ask("Clay", temperature=1.0)
    )
    assert one == same
    assert one.text != other.text


def test_more_prompts_than_one_batch_takes_are_all_answered(engine: Engine):
    requests = [ask(f"{number:03d} " * 60, temperature=1.0, seed=number, max_tokens=4) for number in range(30)]
    found = answers(engine, *requests)
    assert {response.usage.prompt_tokens for response in found} == {247}
    assert all((r.finish_reason == "length") == (r.usage.completion_tokens == 4) for r in found)


def test_stop_strings_end_the_answer(engine: Engine):
    [whole] = answers(engine, ask("Clay is"))
    stop = whole.text[4:6]
    [cut] = answers(engine, ask("Clay is", stop=("never", stop)))
    assert (cut.text, cut.finish_reason) == (whole.text[: whole.text.index(stop)], "stop")
    assert 0 < cut.usage.completion_tokens < whole.usage.completion_tokens


def test_a_prompt_without_room_is_said_to_be_too_long(engine: Engine):
    tight, none, fine = answers(engine, ask("x" * 248), ask("x" * 249), ask("Clay is"))  # 7 more are the template's
    assert (tight.finish_reason, tight.usage.prompt_tokens, tight.usage.completion_tokens) == ("length", 255, 1)
    assert (none.finish_reason, none.text, none.usage.prompt_tokens) == ("prompt_too_long", "", 256)
    assert fine.usage.completion_tokens == 24


@pytest.mark.parametrize("engine", [VLLM], indirect=True)
def test_a_schema_is_enforced(engine: Engine):
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    assert engine.capabilities.json_schema
    [answer] = answers(engine, ask("Clay is", max_tokens=100, response_format=form))
    assert (json.loads(answer.text), answer.finish_reason) in [({"a": 1}, "stop"), ({"a": 2}, "stop")]


@pytest.mark.slow
@needs_vllm
@pytest.mark.parametrize("shape", [DENSE, MOE], ids=["qwen3", "dots1"])
def test_vllm_writes_what_transformers_writes_from_an_export(tmp_path: Path, tiny_model: Path, shape: ModelSettings):
    torch.manual_seed(1)
    network = Decoder(shape)
    with torch.no_grad():
        for name, tensor in sorted(network.state_dict().items()):
            tensor.normal_(1.0 if "norm" in name else 0.0, 0.2)
    save_model(tmp_path / "native", network)
    export_hf(tmp_path / "native", tmp_path / "hf", tiny_model)
    requests = [ask(content, max_tokens=40) for content in PROMPTS]
    before = set(multiprocessing.active_children())
    with closing(open_engine(EngineSettings(name="vllm"), tmp_path / "hf")) as engine:
        found = answers(engine, *requests)
        assert set(multiprocessing.active_children()) > before
    assert set(multiprocessing.active_children()) == before
    assert found == answers(open_engine(EngineSettings(), tmp_path / "hf"), *requests)
    assert len({response.text for response in found}) == len(PROMPTS)


@pytest.mark.slow
@needs_vllm
@pytest.mark.skipif(torch.cuda.is_available(), reason="GPU kernels take other heads")
def test_heads_without_a_cpu_kernel_are_named(tiny_model: Path):
    engine = open_engine(EngineSettings(name="vllm"), tiny_model)
    with pytest.raises(DataError, match="attention heads of 8, vLLM on the CPU takes 32, 64"):
        answers(engine, ask())


@pytest.mark.slow
@needs_vllm
def test_a_model_that_vllm_cannot_load_is_one_line(tmp_path: Path, model: Path):
    for file in model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((model / "config.json").read_bytes()) | {"architectures": ["NobodyKnows"], "model_type": "no"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(StepError, match=r"vLLM did not start on [^\n]*$"):
        answers(open_engine(EngineSettings(name="vllm"), tmp_path), ask())
