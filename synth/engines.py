"""Choosing an engine: from the recipe's section to an object that answers requests.

Every engine is imported where it is chosen, so that none of their stacks is needed for another.
"""

import os
from pathlib import Path
from typing import Literal

from pydantic import Field

from pipelines.errors import DataError, RecipeError
from pipelines.recipe import Section
from synth.protocol import Engine


class EngineSettings(Section):
    """Which engine answers, and how it is set up.

    Attributes:
        name: `transformers` (in this process), `vllm`, `endpoint` (a server), `replay` (an earlier run's answers).
        dtype: of weights and activations, in this process.
        device: of `transformers`.
        threads: of `transformers`.
        serve: of `vllm`: start `vllm serve` and ask it over HTTP, rather than vLLM's offline engine in this process.
        start_timeout_s: until `vllm serve` must be ready.
        window: requests per call of vLLM's offline engine.
        url: of the server, up to `/v1`.
        model_name: that the server (`endpoint`) knows the model by; it must be given.
        revision: of the model behind the server (`endpoint`), in words of your own; another one asks everything anew,
            and only with one are answers shared between runs.
        json_schema: the server (`endpoint`) enforces JSON schemas; where it does not, answers are read strictly, with
            small slips mended and counted.
        concurrency: most requests under way at a server at once; fewer while it shows strain.
        timeout_s: for one answer of the server.
        retries: further attempts at a request that fails while others are answered; then it is quarantined.
        patience_s: how long a server that answers nobody is waited for.
        retry_quarantined: ask again what an earlier run quarantined.
        price_per_million_prompt: US dollars, for the ledger and `budget_usd`.
        price_per_million_completion: the same for tokens that are written.
        api_key_variable: environment variable that holds the server's key; the key itself is written nowhere.
        responses: folder `responses/` of the run to replay.
    """

    name: Literal["transformers", "vllm", "endpoint", "replay"] = "transformers"
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: Literal["cpu", "cuda"] = "cpu"
    threads: int = Field(default=1, ge=1)
    serve: bool = False
    start_timeout_s: float = Field(default=900, gt=0)
    window: int = Field(default=1024, ge=1)
    url: str | None = None
    model_name: str | None = None
    revision: str = ""
    json_schema: bool = True
    concurrency: int = Field(default=64, ge=1)
    timeout_s: float = Field(default=300, gt=0)
    retries: int = Field(default=6, ge=0)
    patience_s: float = Field(default=300, gt=0)
    retry_quarantined: bool = False
    price_per_million_prompt: float | None = Field(default=None, ge=0)
    price_per_million_completion: float | None = Field(default=None, ge=0)
    api_key_variable: str = "OPENAI_API_KEY"
    responses: Path | None = None


def open_engine(settings: EngineSettings, model: Path | None, scratch: Path = Path()) -> Engine:
    """Make the engine that the settings name.

    Args:
        settings: the recipe's section.
        model: folder in Hugging Face format, for engines on this machine.
        scratch: folder for the log of a server that the engine starts.

    Raises:
        RecipeError: the engine needs a setting that is missing.
        DataError: the model folder or the log to replay is missing or incomplete.
        MissingExtra: the engine's stack is not installed.
    """
    asked = {"concurrency": settings.concurrency, "timeout_s": settings.timeout_s, "retries": settings.retries,
             "patience_s": settings.patience_s}  # fmt: skip
    if settings.name == "endpoint":
        from synth.engine_endpoint import EndpointEngine

        if settings.url is None:
            raise RecipeError("engine endpoint needs engine.url, such as http://localhost:8000/v1")
        if not settings.model_name:
            raise RecipeError("engine endpoint needs engine.model_name, the name that the server knows the model by; "
                              "answers are found again by it")  # fmt: skip
        key = os.environ.get(settings.api_key_variable, "")
        return EndpointEngine(settings.url, settings.model_name, api_key=key, json_schema=settings.json_schema,
                              revision=settings.revision, **asked)  # fmt: skip
    if settings.name == "replay":
        from synth.engine_replay import ReplayEngine

        if settings.responses is None:
            raise RecipeError("engine replay needs engine.responses, the folder `responses` of an earlier run")
        return ReplayEngine(settings.responses)
    if model is None:
        raise DataError(f"engine {settings.name} needs a model folder in Hugging Face format; give --model PATH")
    if settings.name == "vllm" and settings.serve:
        from synth.engine_serve import ServedVllm

        return ServedVllm(model, settings.dtype, scratch, settings.start_timeout_s, **asked)
    if settings.name == "vllm":
        from synth.engine_vllm import VllmEngine

        return VllmEngine(model, settings.dtype, settings.window)
    from synth.engine_transformers import TransformersEngine

    return TransformersEngine(model, settings.dtype, settings.device, settings.threads)
