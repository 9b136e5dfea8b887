"""After each stage: has the model forgotten a source, and what then?

Every held-out domain is compared with the best loss that the run ever measured on it. Two ratios count: bits per byte
(which is the ratio of losses, since the text stays the same) warns; perplexity, the exponential of the difference,
limits. What is done at either is the recipe's to say. Decisions go into `metrics.jsonl` and into the checkpoints, so
that a run that was killed goes on with them.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import DataError
from pipelines.indexed import IndexedTokens, origin_path
from pipelines.shards import Shard, ShardSet
from trainer.gate_settings import GateAction, GateSettings
from trainer.metrics import read_metrics
from trainer.observer import Observer
from trainer.stage_decision import StageDecision
from trainer.validation import HeldOut, held_out_losses

if TYPE_CHECKING:
    from trainer.run import Run

NOTE = "gates"  # name of what checkpoints keep of it
VERDICTS = ("pass", "warning", "limit")


class StageGates(Observer):
    """Measures after every stage, and decides.

    Args:
        settings: of the recipe.
        validation: held-out shards, one per domain.

    Raises:
        DataError: a watched source has no held-out shard.
    """

    def __init__(self, settings: GateSettings, validation: ShardSet | None) -> None:
        known = [shard.name for shard in validation.shards] if validation else []
        if missing := [name for name in settings.sources if name not in known]:
            raise DataError(f"gates watch {missing[0]!r}, of which nothing is held out; there is: {', '.join(known)}")
        if validation is None or not known:
            raise DataError("the recipe has gates, but there are no held-out shards: give --data with validation/")
        self._settings = settings
        self._validation = validation
        self._watched = settings.sources or tuple(known)
        for name in self._watched:
            bytes_of(validation.named(name), 1)  # a damaged sidecar is said now, not after the first stage

    def on_start(self, run: "Run") -> None:
        """Keep the share of replay that was asked for so far."""
        run.notes.setdefault(NOTE, {"replay": 0.0})

    def on_stage_end(self, stage: int, run: "Run") -> StageDecision | None:
        """Measure what was not measured at this step, compare, log, decide."""
        lines = read_metrics(run.metrics)
        measured = [line for line in lines if line["kind"] == "held_out"]
        if not measured or measured[-1]["step"] != run.step:
            measured.append(self._measure(run))
            run.log(measured[-1])
        sources = {name: self._judged(name, measured) for name in self._watched}
        verdict = max((one["verdict"] for one in sources.values()), key=VERDICTS.index)
        actions: tuple[GateAction, ...] = {
            "pass": (), "warning": self._settings.at_warning, "limit": self._settings.at_limit
        }[verdict]  # fmt: skip
        later = [settings.replay for settings in run.recipe.stages[stage + 1 : stage + 2]]
        decision = self._decide(verdict, actions, sources, run.notes[NOTE], max([0.0, *later]))
        run.log({"kind": "gate", "step": run.step, "stage": run.recipe.stages[stage].name, "verdict": verdict,
                 "sources": sources, **({"decision": decision.as_note()} if decision else {})})  # fmt: skip
        return decision

    def _measure(self, run: "Run") -> dict[str, Any]:
        recipe = run.recipe
        losses = held_out_losses(
            run.model, self._validation, recipe.longest_sample, recipe.validation_tokens, recipe.separate_documents
        )
        return {"kind": "held_out", "step": run.step, "domains": losses}

    def _judged(self, name: str, measured: list[dict[str, Any]]) -> dict[str, Any]:
        """One source now against its best so far."""
        now: HeldOut = measured[-1]["domains"][name]
        best = min(measured, key=lambda line: line["domains"][name]["loss"])
        least = best["domains"][name]["loss"]
        found = compared(now["loss"], least, self._settings)
        size = bytes_of(self._validation.named(name), now["tokens"])
        if size:
            found["bits_per_byte"] = round(now["loss"] * now["tokens"] / math.log(2) / size, 6)
        return {"loss": now["loss"], "best": least, "best_step": best["step"], **found}

    def _decide(
        self, verdict: str, actions: tuple[GateAction, ...], sources: Mapping[str, Any], note: dict[str, Any],
        asked: float,
    ) -> StageDecision | None:  # fmt: skip
        """What shall change; `asked` is the share of replay that the next stage has by the recipe."""
        if not actions:
            return None
        if "raise_replay" in actions:
            raised = min(max(note["replay"], asked) + self._settings.replay_step, self._settings.most_replay)
            note["replay"] = round(max(note["replay"], raised), 6)
        worst = max(sources, key=lambda name: sources[name]["perplexity_ratio"])
        told = (
            f"{worst} is at {sources[worst]['perplexity_ratio']:.3f} times its best perplexity and "
            f"{sources[worst]['bits_ratio']:.3f} times its best bits per byte ({verdict}): {', '.join(actions)}"
        )
        return StageDecision(
            stop="stop" in actions,
            replay=note["replay"] if "raise_replay" in actions else None,
            rate_factor=self._settings.rate_factor if "lower_rate" in actions else 1.0,
            reason=told,
        )


def compared(loss: float, best: float, settings: GateSettings) -> dict[str, Any]:
    """The two ratios of a loss to the best one, and what they mean.

    Args:
        loss: nats per token now.
        best: the least that the run ever had on the same text.
        settings: thresholds.

    Returns:
        `bits_ratio`: of bits per byte; `perplexity_ratio`; `verdict`: `pass`, `warning` or `limit`.
    """
    bits = loss / best if best > 0 else math.inf if loss > 0 else 1.0
    perplexity = math.exp(min(loss - best, 700.0))  # e^709 is the largest that a float holds
    verdict = "limit" if perplexity >= settings.limit_ratio else "warning" if bits >= settings.warn_ratio else "pass"
    return {"bits_ratio": round(bits, 6), "perplexity_ratio": round(perplexity, 6), "verdict": verdict}


def bytes_of(shard: Shard, tokens: int) -> float | None:
    """UTF-8 bytes of the first tokens of a shard, from its sidecar; None where it has none.

    Args:
        shard: held-out text.
        tokens: scored from its beginning; a document that they end in counts in proportion.

    Raises:
        DataError: the sidecar cannot be read, or is another shard's.
    """
    sidecar = origin_path(shard.prefix)
    if not Path(sidecar).is_file():
        return None
    try:
        if "bytes" not in pq.read_schema(sidecar).names:
            return None
        sizes = pq.read_table(sidecar, columns=["bytes"])["bytes"].to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{sidecar} cannot be read: {error}; run `loam tokenize` again") from None
    lengths = IndexedTokens(shard.prefix).lengths.tolist()
    if len(sizes) != len(lengths):
        raise DataError(
            f"{sidecar} has {len(sizes)} rows, its shard {len(lengths)} documents; run `loam tokenize` again"
        )
    total, left = 0.0, tokens + 1  # the first token is context alone
    for length, size in zip(lengths, sizes, strict=True):
        total += size * min(1.0, left / length) if length else 0.0
        left -= length
        if left <= 0:
            break
    return total


def gates_of(settings: GateSettings | None, validation: ShardSet | None) -> list[Observer]:
    """The gates that a recipe asks for, none or one.

    Raises:
        DataError: as for `StageGates`.
    """
    return [StageGates(settings, validation)] if settings is not None else []
