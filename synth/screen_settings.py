"""Sections of a synthesis recipe that say how finished samples are screened."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from pipelines.decontaminate import DecontaminateSettings
from pipelines.model_cost import HubModel
from pipelines.recipe import Section
from synth.engines import EngineSettings
from synth.protocol import Sampling


class JudgeSettings(Section):
    """Who judges finished samples: another model than the one that wrote them.

    Attributes:
        engine: who answers.
        model: folder in Hugging Face format, for engines on this machine.
        hub: which model that is, and what it is assumed to cost; tells it from the generator where a server shows no
            weights.
        sampling: how tokens are drawn; the likeliest ones unless said otherwise.
        attempts: calls until one verdict can be read; each has its own seed.
        seed: of the draws.
    """

    engine: EngineSettings = EngineSettings()
    model: Path | None = None
    hub: HubModel | None = None
    sampling: Sampling = Sampling(temperature=0)
    attempts: int = Field(default=1, ge=1)
    seed: int = 0


class GroundingSettings(Section):
    """Which language model must find a document likelier after question and chain than without them.

    For answers from evidence (`cot_rag`) it rejects nothing and, with `evidence`, measures what the passages do.

    Attributes:
        model: folder in Hugging Face format; in a run, its own language model when not given.
        hub: which model that is, and what it is assumed to cost; for `loam check` only.
        evidence: also measure how much likelier the answer is after its passages than without them, and than after
            the distractors alone (`cot_rag`).
        scorer: what runs it: `transformers`, `vllm`, or `native` for a run of Loam or its checkpoint.
        max_tokens: of question, chain and document together; the model's own limit where that is smaller.
        prefix: token put before everything, so that the first token is scored too.
        dtype: of weights and activations.
        batch_tokens: tokens per forward pass, padding included.
        threads: fixed, since float sums depend on it.
        device: where the model runs.
    """

    model: Path | None = None
    hub: HubModel | None = None
    evidence: bool = False
    scorer: Literal["transformers", "native", "vllm"] = "transformers"
    max_tokens: int = Field(default=4096, ge=2)
    prefix: Literal["eos", "bos", "none"] = "eos"
    dtype: Literal["float32", "bfloat16"] = "float32"
    batch_tokens: int = Field(default=2048, ge=1)
    threads: int = Field(default=1, ge=1)
    device: Literal["cpu", "cuda"] = "cpu"


class ScreenSettings(Section):
    """What else is looked for in what the model wrote.

    Attributes:
        questions: a question that a sample of another document asks, too.
        language: another language than the document's (in another script is never accepted).
        personal_data: personal data that the document does not hold.
        words: folder of word lists by language (`en`, `zh`, ...), or `ldnoobw`; no word of them may be written that the
            document does not hold.
        benchmarks: evaluation sets that neither documents nor samples may hold: files, folders or globs.
        decontaminate: what counts as holding an item; in a run its own `decontaminate` when not given.
    """

    questions: bool = True
    language: bool = True
    personal_data: bool = True
    words: Path | None = None
    benchmarks: tuple[Path, ...] = ()
    decontaminate: DecontaminateSettings | None = None
