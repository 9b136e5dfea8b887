"""The vLLM engine: offline `vllm.LLM` in this process, on GPUs or, with the CPU build, on the CPU.

Requests go in windows, each logged before the next, because one call is all or nothing. vLLM promises the same answer
to the same seed only within the same batch: what makes a resumed run repeat is the response log, never generating
again. Written for vLLM 0.32; everything of vLLM that Loam touches is in this file.
"""

import importlib
import importlib.metadata
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipelines.errors import MissingExtra
from pipelines.model_folder import digest_model
from synth.protocol import Capabilities, Identity, Request, Response, Usage, encode_chat


class VllmEngine:
    """A model folder served by vLLM in this process; the engine starts at the first request.

    Args:
        model: folder in Hugging Face format.
        dtype: of weights and activations.
        window: requests per call of vLLM.

    Raises:
        MissingExtra: vLLM is not installed.
    """

    capabilities = Capabilities(json_schema=True, batch_invariant=False)

    def __init__(self, model: Path, dtype: str = "float32", window: int = 1024) -> None:
        self.identity = Identity(
            model="local", digest=digest_model(model), backend="vllm", version=f"{installed_version()} {dtype}"
        )  # fmt: skip
        self.folder, self.dtype, self.window = model, dtype, window
        self.room = int(json.loads((model / "config.json").read_bytes()).get("max_position_embeddings", 4096))
        self.engine: Any = None

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Response]]:
        """Answer window by window; a prompt without room for an answer is turned down before vLLM sees it."""
        if self.engine is None:
            self.engine = self._start()
        tokenizer = self.engine.get_tokenizer()
        for at in range(0, len(requests), self.window):
            prompts = [
                (request, encode_chat(tokenizer, request.messages)) for request in requests[at : at + self.window]
            ]
            for request, ids in prompts:
                if len(ids) + 1 > self.room:
                    yield (
                        request,
                        Response(text="", finish_reason="prompt_too_long", usage=Usage(prompt_tokens=len(ids))),
                    )
            fitting = [(request, ids) for request, ids in prompts if len(ids) + 1 <= self.room]
            yield from self._answer(fitting)

    def _start(self) -> Any:
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; the default takes half of the memory
        import torch

        return importlib.import_module("vllm").LLM(
            model=str(self.folder), dtype=self.dtype, max_model_len=self.room, seed=0,
            enforce_eager=not torch.cuda.is_available(), disable_log_stats=True,
        )  # fmt: skip

    def _answer(self, prompts: list[tuple[Request, list[int]]]) -> Iterator[tuple[Request, Response]]:
        if not prompts:
            return
        outputs = self.engine.generate(
            [{"prompt_token_ids": ids} for _, ids in prompts],
            [self._sampling(request, len(ids)) for request, ids in prompts],
            use_tqdm=False,
        )
        for (request, ids), output in zip(prompts, outputs, strict=True):
            answer = output.outputs[0]
            usage = Usage(prompt_tokens=len(ids), completion_tokens=len(answer.token_ids))
            finish = "stop" if answer.finish_reason == "stop" else "length"
            yield request, Response(text=answer.text, finish_reason=finish, usage=usage)

    def _sampling(self, request: Request, prompt_tokens: int) -> Any:
        parameters = importlib.import_module("vllm.sampling_params")
        schema = (request.response_format or {}).get("json_schema", {}).get("schema")
        return parameters.SamplingParams(
            temperature=request.temperature, top_p=request.top_p, seed=request.seed, stop=list(request.stop) or None,
            max_tokens=min(request.max_tokens, self.room - prompt_tokens),
            structured_outputs=parameters.StructuredOutputsParams(json=schema) if schema else None,
        )  # fmt: skip


def installed_version() -> str:
    """Version of vLLM, whichever build of it is installed.

    Raises:
        MissingExtra: none is.
    """
    for name in ("vllm", "vllm-cpu"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    raise MissingExtra("the vllm engine needs vLLM, which is not installed; run `make setup-vllm`, or use transformers")
