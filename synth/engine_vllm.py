"""The vLLM engine: offline `vllm.LLM` in processes of its own, on GPUs or, with the CPU build, on the CPU.

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

from pipelines.errors import DataError, MissingExtra, StepError
from pipelines.llvm_library import make_scannable
from pipelines.model_folder import digest_model
from pipelines.vllm_rotation import rotation_on_cpu
from synth.protocol import Capabilities, Identity, Request, Response, Usage, encode_chat

BATCH_TOKENS = 4096  # of prompts that are read together on the CPU
SHUTDOWN_S = 30  # the default of 5 kills processes that are about to end by themselves
LATENTS = 512, 64  # the only ones of its decoding kernel: DeepSeek's
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB; the default takes half of the memory
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # stdout holds our results, and nothing else with --json
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
"""What vLLM is told by environment, where the user has not."""


class VllmEngine:
    """A model folder served by vLLM on this machine; the engine starts at the first request.

    Args:
        model: folder in Hugging Face format.
        dtype: of weights and activations.
        window: requests per call of vLLM.

    Raises:
        MissingExtra: vLLM is not installed.
        DataError: the folder is no model.
    """

    capabilities = Capabilities(json_schema=True, batch_invariant=False, literal_text=True)

    def __init__(self, model: Path, dtype: str = "float32", window: int = 1024) -> None:
        self.identity = Identity(
            model="local", digest=digest_model(model), backend="vllm", version=f"{installed_version()} {dtype}"
        )  # fmt: skip
        self.folder, self.dtype, self.window = model, dtype, window
        self.room = room_of(model)
        self.latencies_s: list[float] = []  # a window is answered as a whole
        self.engine: Any = None
        self.tokenizer: Any = None

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Response]]:
        """Answer window by window; a prompt without room for an answer is turned down before vLLM sees it.

        Raises:
            DataError: the CPU build has no kernel for the model's heads.
            StepError: vLLM did not start, or broke down.
        """
        if self.engine is None:
            self.engine = self._start()
        tokenizer = self.engine.get_tokenizer()
        for at in range(0, len(requests), self.window):
            window = requests[at : at + self.window]
            prompts = [(request, encode_chat(tokenizer, request.messages)) for request in window]
            for request, ids in prompts:
                if len(ids) + 1 > self.room:
                    usage = Usage(prompt_tokens=len(ids))
                    yield request, Response(text="", finish_reason="prompt_too_long", usage=usage)
            yield from self._answer([(request, ids) for request, ids in prompts if len(ids) + 1 <= self.room])

    def prompt_tokens(self, request: Request) -> int:
        """Exact; does not start vLLM."""
        if self.tokenizer is None:
            from transformers import AutoTokenizer

            self.tokenizer = AutoTokenizer.from_pretrained(str(self.folder), local_files_only=True)
        return len(encode_chat(self.tokenizer, request.messages))

    def close(self) -> None:
        """Stop vLLM's processes; the next request would start them again."""
        if self.engine is not None:
            self.engine.llm_engine.engine_core.shutdown(timeout=SHUTDOWN_S)
            self.engine = None

    def _start(self) -> Any:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        options: dict[str, Any] = {}
        try:
            vllm = importlib.import_module("vllm")
            make_scannable()
            if not on_gpu():
                check_heads(self.folder)
                # A prompt in parts rewinds its generator after each, which the CPU's generators cannot do.
                options = {"enable_chunked_prefill": False, "max_num_batched_tokens": max(self.room, BATCH_TOKENS)}
                options |= {"enforce_eager": True, "compilation_config": rotation_on_cpu(self.folder)}
            return vllm.LLM(
                model=str(self.folder), dtype=self.dtype, max_model_len=self.room, seed=0, disable_log_stats=True,
                load_format="safetensors", use_tqdm_on_load=False, **options,
            )  # fmt: skip
        except (ImportError, OSError, RuntimeError, ValueError) as error:
            raise StepError(
                f"vLLM did not start on {self.folder}: {_first_line(error)}; what its processes said stands above. "
                "Engine transformers needs no vLLM"
            ) from error

    def _answer(self, prompts: list[tuple[Request, list[int]]]) -> Iterator[tuple[Request, Response]]:
        if not prompts:
            return
        dead = importlib.import_module("vllm.v1.engine.exceptions").EngineDeadError
        try:
            outputs = self.engine.generate(
                [{"prompt_token_ids": ids} for _, ids in prompts],
                [self._sampling(request, len(ids)) for request, ids in prompts],
                use_tqdm=False,
            )
        except dead as error:
            raise StepError("vLLM broke down; what its processes said stands above. Run again to resume") from error
        for (request, ids), output in zip(prompts, outputs, strict=True):
            yield request, self._response(output.outputs[0], len(ids))

    def _response(self, answer: Any, prompt_tokens: int) -> Response:
        """Decode like the transformers engine: without the end token, and with a cut character at the end."""
        ids, text = list(answer.token_ids), answer.text
        stopped = answer.finish_reason == "stop"
        if not isinstance(answer.stop_reason, str):  # a stop string: vLLM has cut the text, which ids cannot tell
            ids = ids[:-1] if stopped else ids
            text = self.engine.get_tokenizer().decode(ids, skip_special_tokens=True)
        usage = Usage(prompt_tokens=prompt_tokens, completion_tokens=len(ids))
        return Response(text=text, finish_reason="stop" if stopped else "length", usage=usage)

    def _sampling(self, request: Request, prompt_tokens: int) -> Any:
        parameters = importlib.import_module("vllm.sampling_params")
        schema = (request.response_format or {}).get("json_schema", {}).get("schema")
        return parameters.SamplingParams(
            temperature=request.temperature, top_p=request.top_p, seed=request.seed, stop=list(request.stop) or None,
            max_tokens=min(request.max_tokens, self.room - prompt_tokens),
            structured_outputs=parameters.StructuredOutputsParams(json=schema) if schema else None,
        )  # fmt: skip


def room_of(folder: Path) -> int:
    """Tokens that a prompt and its answer may have together."""
    return int(_config(folder).get("max_position_embeddings", 4096))


def on_gpu() -> bool:
    """Whether vLLM will run on a GPU."""
    import torch

    return torch.cuda.is_available()


def check_heads(folder: Path) -> None:
    """The CPU build starts with any head, and breaks down at the first request.

    Raises:
        DataError: it has no kernel for the model's heads, or for the latents that stand for them.
    """
    config = _config(folder)
    if latent := config.get("kv_lora_rank"):
        rotated, expanded = config["qk_rope_head_dim"], importlib.import_module("vllm.envs").VLLM_MLA_DISABLE
        if not expanded and (latent, rotated) != LATENTS:
            raise DataError(
                f"{folder} has latents of {latent} and {rotated}, vLLM on the CPU takes {LATENTS[0]} and {LATENTS[1]}; "
                "set VLLM_MLA_DISABLE=1 in the environment, or use engine transformers"
            )
        if not expanded:
            return
        config["head_dim"] = config["qk_nope_head_dim"] + rotated
    known = importlib.import_module(
        "vllm.v1.attention.backends.cpu_attn"
    ).CPUAttentionBackend.get_supported_head_sizes()
    size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    if size not in known:
        raise DataError(
            f"{folder} has attention heads of {size}, vLLM on the CPU takes {', '.join(map(str, known))}; "
            "use engine transformers"
        )


def _config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_bytes())


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__).strip().rstrip(".")


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
