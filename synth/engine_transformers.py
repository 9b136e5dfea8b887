"""The engine of first resort: transformers in this process, from a model folder, on the CPU or one GPU.

Requests are decoded one at a time and each draws from its own counter-based generator, seeded by the request, so that
an answer depends on nothing but its request: not on order, batch or what was answered before a kill. That costs
throughput on large models, for which there are vLLM and servers.
"""

import importlib.metadata
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from pipelines.model_folder import digest_model
from synth.protocol import Capabilities, Identity, Request, Response, Usage, encode_chat


class TransformersEngine:
    """A causal language model in this process; weights are loaded at the first request.

    Args:
        model: folder in Hugging Face format.
        dtype: of weights and activations.
        device: `cpu` or `cuda`.
        threads: of each forward pass; fixed and part of the identity, as torch is: float sums depend on them.
    """

    capabilities = Capabilities(json_schema=False, batch_invariant=True, literal_text=True)

    def __init__(self, model: Path, dtype: str = "float32", device: str = "cpu", threads: int = 1) -> None:
        self.identity = Identity(
            model="local", digest=digest_model(model), backend="transformers",
            version=f"{importlib.metadata.version('transformers')} torch {torch.__version__} {dtype} {device} "
                    f"threads {threads}",
        )  # fmt: skip
        self.folder, self.dtype, self.device, self.threads = model, dtype, device, threads
        self.latencies_s: list[float] = []
        self.loaded: tuple[Any, Any] | None = None
        self.tokenizer: Any = None

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Response]]:
        """Answer in the order of the requests."""
        self.loaded = self.loaded or self._load()
        for request in requests:
            before = torch.get_num_threads()
            torch.set_num_threads(self.threads)
            started = time.monotonic()
            try:
                response = self._answer(*self.loaded, request)
            finally:
                torch.set_num_threads(before)
            self.latencies_s.append(time.monotonic() - started)
            yield request, response

    def prompt_tokens(self, request: Request) -> int:
        """Exact; needs no weights."""
        return len(encode_chat(self._tokenizer(), request.messages))

    def close(self) -> None:
        """Free the weights; the next request would load them again."""
        self.loaded = None

    def _load(self) -> tuple[Any, Any]:
        logging.disable_progress_bar()  # weights load in silence: progress is Loam's to show
        tokenizer = self._tokenizer()
        model: Any = AutoModelForCausalLM.from_pretrained(
            str(self.folder), local_files_only=True, use_safetensors=True, dtype=getattr(torch, self.dtype)
        )
        return model.to(self.device).eval(), tokenizer

    def _tokenizer(self) -> Any:
        self.tokenizer = self.tokenizer or AutoTokenizer.from_pretrained(str(self.folder), local_files_only=True)
        return self.tokenizer

    def _answer(self, model: Any, tokenizer: Any, request: Request) -> Response:
        prompt = encode_chat(tokenizer, request.messages)
        room = getattr(model.config, "max_position_embeddings", None) or len(prompt) + request.max_tokens
        if len(prompt) + 1 > room:
            return Response(text="", finish_reason="prompt_too_long", usage=Usage(prompt_tokens=len(prompt)))
        limit = min(request.max_tokens, room - len(prompt))
        end = _end_tokens(model, tokenizer)
        written: list[int] = []
        text, finish = None, "length"
        for token in _decode(model, prompt, request, limit):
            if token in end:
                finish = "stop"
                break
            written.append(token)
            if request.stop and (cut := _before_stop(tokenizer.decode(written), request.stop)) is not None:
                text, finish = cut, "stop"
                break
        text = tokenizer.decode(written, skip_special_tokens=True) if text is None else text
        usage = Usage(prompt_tokens=len(prompt), completion_tokens=len(written))
        return Response(text=text, finish_reason=finish, usage=usage)


def _before_stop(text: str, stops: Sequence[str]) -> str | None:
    """What stands before the first stop string; None where there is none."""
    cuts = [text.index(stop) for stop in stops if stop in text]
    return text[: min(cuts)] if cuts else None


def _end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """Ids that end an answer: the model's generation config may name several."""
    configured = model.generation_config.eos_token_id
    several = configured if isinstance(configured, list) else [configured]
    return {token for token in [*several, tokenizer.eos_token_id] if token is not None}


@torch.inference_mode()
def _decode(model: Any, prompt: list[int], request: Request, limit: int) -> Iterator[int]:
    """Yield at most `limit` tokens after the prompt, with a key-value cache."""
    rng = np.random.Generator(np.random.Philox(key=request.seed))
    ids, cache = torch.tensor([prompt], device=model.device), None
    for _ in range(limit):
        output = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = output.past_key_values
        token = draw_token(output.logits[0, -1], request.temperature, request.top_p, float(rng.random()))
        yield token
        ids = torch.tensor([[token]], device=model.device)


def draw_token(logits_V: torch.Tensor, temperature: float, top_p: float, uniform: float) -> int:
    """Draw a token by inverting the cumulative distribution of the nucleus.

    Args:
        logits_V: of the next token.
        temperature: 0 takes the likeliest token.
        top_p: the nucleus is the smallest set of likeliest tokens that holds this share.
        uniform: where to cut, in [0, 1).

    Returns:
        Token id.
    """
    if temperature == 0:
        return int(logits_V.argmax())
    probabilities_V, order_V = torch.softmax(logits_V.double() / temperature, -1).sort(descending=True, stable=True)
    cumulative_V = probabilities_V.cumsum(-1)
    nucleus = int(torch.searchsorted(cumulative_V, top_p)) + 1
    inside_V = cumulative_V[:nucleus]
    chosen = int(torch.searchsorted(inside_V, uniform * float(inside_V[-1]), right=True))
    return int(order_V[min(chosen, len(inside_V) - 1)])
