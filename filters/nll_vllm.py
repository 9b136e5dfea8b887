"""Negative log-likelihood of windows by vLLM's prompt log-probabilities.

Prefix caching is off: a cached prefix has no log-probabilities, and with it results depended on what was asked before
(vLLM issue 42019). vLLM has no pass that only scores, so that each window also generates one token, which is dropped.
Peak memory follows `max_num_batched_tokens` times the vocabulary in float32, which vLLM's profiling does not see; the
budget of a pass bounds it.
"""

import functools
import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.errors import MissingExtra, StepError
from pipelines.llvm_library import make_scannable
from pipelines.vllm_rotation import rotation_on_cpu

VLLM_EXTRA_TOKENS = 2  # of its context: the prefix, and the token that it insists on generating
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine lives in this worker, which may have no children
}


def windows_nll_N(engine: Any, windows: Sequence[Sequence[int]]) -> np.ndarray:
    """Score windows.

    Args:
        engine: of `open_vllm`.
        windows: at least two tokens each; the first is context.

    Returns:
        float64 (N,): minus the log-probability of each window's scored tokens, in nats.
    """
    if not windows:
        return np.zeros(0)
    parameters = importlib.import_module("vllm.sampling_params")
    sampling = parameters.SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
    outputs = engine.generate([{"prompt_token_ids": list(ids)} for ids in windows], sampling, use_tqdm=False)
    return np.array(
        [
            -sum(entry[token].logprob for token, entry in zip(ids[1:], output.prompt_logprobs[1:], strict=True))
            for ids, output in zip(windows, outputs, strict=True)
        ]
    )


@functools.lru_cache(maxsize=1)
def open_vllm(model: str, dtype: str, max_tokens: int, batch_tokens: int, digest: str) -> Any:
    """Start an engine in this process; the digest tells two models apart that stood at one path.

    Args:
        model: folder in Hugging Face format.
        dtype: of weights and activations.
        max_tokens: scored tokens of the longest window.
        batch_tokens: tokens of one pass.
        digest: of the model.

    Raises:
        MissingExtra: vLLM is not installed.
        StepError: it did not start.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        vllm = importlib.import_module("vllm")
    except ImportError:
        raise MissingExtra("scorer vllm needs vLLM, which is not installed; run `make setup-vllm`") from None
    import torch

    make_scannable()
    room = max_tokens + VLLM_EXTRA_TOKENS
    options: dict[str, Any] = {}
    if not torch.cuda.is_available():
        options = {"enforce_eager": True, "compilation_config": rotation_on_cpu(Path(model))}
    try:
        return vllm.LLM(
            model=model, dtype=dtype, max_model_len=room, enable_prefix_caching=False, enable_chunked_prefill=False,
            max_num_batched_tokens=max(room, batch_tokens), seed=0, disable_log_stats=True,
            load_format="safetensors", use_tqdm_on_load=False, **options,
        )  # fmt: skip
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        raise StepError(f"vLLM did not start on {model}: {str(error).strip().splitlines()[0]}; "
                        "scorer transformers needs no vLLM") from error  # fmt: skip
