"""A random model that every engine takes, and what transformers itself writes with it."""

import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from synth.protocol import Engine, Message, Request, Response, encode_chat

TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
ROOM = 256


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
    plain = {"do_sample": False, "repetition_penalty": 1.0, "pad_token_id": 256}
    out = model.generate(ids, attention_mask=mask, max_new_tokens=limit, **plain)
    return prompt, out[0, len(prompt) :].tolist()


def make_chat_model(folder: Path, tiny_model: Path) -> Path:
    """A random Qwen2 with a chat template and heads that vLLM takes; `Soil is` ends after five tokens."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=257, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=ROOM, initializer_range=0.3, bos_token_id=256, eos_token_id=256,
    )  # fmt: skip
    network = Qwen2ForCausalLM(config)
    network.save_pretrained(folder)
    _, written = greedy(folder, "Soil is", 24)
    end = next(token for token in written[5:] if token not in written[:5])
    habits = {"do_sample": True, "repetition_penalty": 1.9, "top_k": 1, "eos_token_id": [256, end]}
    (folder / "generation_config.json").write_text(json.dumps(habits))
    return folder
