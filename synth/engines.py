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
        window: requests per call of `vllm`.
        url: of the server, up to `/v1`.
        model_name: that the server knows the model by.
        concurrency: requests under way at the server at once.
        timeout_s: for one answer of the server.
        retries: of failures that may pass.
        api_key_variable: environment variable that holds the server's key; the key itself is written nowhere.
        responses: folder `responses/` of the run to replay.
    """

    name: Literal["transformers", "vllm", "endpoint", "replay"] = "transformers"
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: Literal["cpu", "cuda"] = "cpu"
    threads: int = Field(default=1, ge=1)
    window: int = Field(default=1024, ge=1)
    url: str | None = None
    model_name: str = "default"
    concurrency: int = Field(default=8, ge=1)
    timeout_s: float = Field(default=300, gt=0)
    retries: int = Field(default=6, ge=0)
    api_key_variable: str = "OPENAI_API_KEY"
    responses: Path | None = None


def open_engine(settings: EngineSettings, model: Path | None) -> Engine:
    """Make the engine that the settings name.

    Args:
        settings: the recipe's section.
        model: folder in Hugging Face format, for engines in this process.

    Raises:
        RecipeError: the engine needs a setting that is missing.
        DataError: the model folder or the log to replay is missing or incomplete.
        MissingExtra: the engine's stack is not installed.
    """
    if settings.name == "endpoint":
        from synth.engine_endpoint import EndpointEngine

        if settings.url is None:
            raise RecipeError("engine endpoint needs engine.url, such as http://localhost:8000/v1")
        key = os.environ.get(settings.api_key_variable, "")
        return EndpointEngine(
            settings.url, settings.model_name, settings.concurrency, settings.timeout_s, settings.retries, key
        )
    if settings.name == "replay":
        from synth.engine_replay import ReplayEngine

        if settings.responses is None:
            raise RecipeError("engine replay needs engine.responses, the folder `responses` of an earlier run")
        return ReplayEngine(settings.responses)
    if model is None:
        raise DataError(f"engine {settings.name} needs a model folder in Hugging Face format; give --model PATH")
    if settings.name == "vllm":
        from synth.engine_vllm import VllmEngine

        return VllmEngine(model, settings.dtype, settings.window)
    from synth.engine_transformers import TransformersEngine

    return TransformersEngine(model, settings.dtype, settings.device, settings.threads)
