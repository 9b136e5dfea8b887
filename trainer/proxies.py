"""Many small training runs at once: one proxy model per mixture, and their held-out losses as one table.

Each proxy is trained by the same loop as the full model, many at once (`pool.py`). A proxy's result is one file,
written when it is whole: it is never trained twice, and a kill loses at most what the running ones did since their last
checkpoint. The seed decides weights and data order and does not depend on the mixture: two proxies with one seed differ
in nothing but what they read.
"""

import csv
import io
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pipelines.errors import DataError
from pipelines.execute import SCRATCH
from pipelines.files import sha256_of, write_atomically
from pipelines.journal import record
from pipelines.manifest import digest_of
from pipelines.shards import Blend, Shard, ShardSet
from pipelines.store import Outcome
from trainer.device import torch_threads
from trainer.evaluate import EvaluateSettings, evaluate
from trainer.job_results import JobResults
from trainer.loop import train
from trainer.pool import local_workers, perform_jobs, perform_on_cluster
from trainer.recipe import TrainRecipe
from trainer.step import DivergedError

ROUTED_TOKENS = 4096  # per domain: shares of 8 experts are then known to about half a percent


@dataclass(frozen=True)
class Exam:
    """What every proxy is asked besides its held-out loss, after export.

    Attributes:
        tokenizer: folder of the tokenizer that made the shards.
        validation: folder of held-out shards, for bits per byte.
        items: files of multiple-choice items.
        settings: how much is measured.
    """

    tokenizer: Path
    validation: Path
    items: tuple[Path, ...]
    settings: EvaluateSettings

    def identity(self) -> str:
        """Digest of all that the results depend on, the held-out shards aside."""
        items = {path.name: sha256_of(path) for path in self.items}
        return digest_of({"items": items, "settings": self.settings.model_dump(mode="json")})


@dataclass(frozen=True)
class ProxyJob:
    """One proxy to train.

    Attributes:
        id: names its result; letters, digits, dots, dashes and underscores.
        blend: what it reads.
        seed: of its weights and of the order of documents within each domain.
    """

    id: str
    blend: Blend
    seed: int


@dataclass(frozen=True)
class _Swarm(JobResults[ProxyJob]):
    """What all proxies of a call share."""

    recipe: TrainRecipe
    validation: ShardSet
    work: Path
    exam: Exam | None
    exam_digest: str | None
    spare: bool

    @property
    def folder(self) -> Path:
        """Where proxies' results are written."""
        return self.work / "proxies"

    def identity(self, job: ProxyJob) -> str:
        """Digest of all that a proxy's result depends on."""
        described = {"recipe": self.recipe.model_dump(mode="json"), "seed": job.seed, "blend": job.blend.identity,
                     "held_out": self.validation.identity, "exam": self.exam_digest}  # fmt: skip
        return digest_of(described)


def train_proxies(
    jobs: Sequence[ProxyJob], recipe: TrainRecipe, validation: ShardSet, work: Path, workers: int = 1,
    exam: Exam | None = None, spare: bool = False,
) -> Outcome:  # fmt: skip
    """Train every job and measure it on every held-out shard.

    Writes `proxies/<id>.json` as they finish and `metrics.csv` at the end: id, then nats per token of each domain.
    Proxies run where `pipelines.executors` says: processes of this machine, a Slurm array, a Ray cluster.

    Args:
        jobs: ids are unique.
        recipe: of every proxy; its seed is replaced by the job's.
        validation: held-out shards, one per domain.
        work: folder to fill; may hold results of a killed call.
        workers: processes; changes no byte.
        exam: what each proxy is asked when it is trained; the answers stand in its result as `evaluation`.
        spare: a proxy that diverges is left out of `metrics.csv`, with its reason, instead of ending the swarm.

    Returns:
        Metrics: proxies, parameters and tokens of each, domains measured, and the reason of each that `failed`.

    Raises:
        DataError: ids are not unique or not names, all proxies failed, or as for `trainer.loop.train`.
        DivergedError: a proxy diverged and is not spared.
        StepError: a checkpoint could not be written.
    """
    _check_ids(jobs)
    swarm = _Swarm(recipe, validation, work, exam, exam.identity() if exam else None, spare)
    pending = [job for job in jobs if not swarm.is_done(job)]
    started = time.perf_counter()
    if (processes := local_workers(workers)) is not None:
        perform_jobs(pending, partial(_train_one, swarm=swarm), len(jobs) - len(pending), processes, "proxies")
    elif pending:
        moved = [replace(job, blend=absolute_blend(job.blend)) for job in jobs]
        there = _there(swarm)
        identities = [swarm.identity(job) for job in jobs]
        perform_on_cluster(moved, partial(_train_missing, swarm=there), identities, there.work, "proxies")
    seconds = time.perf_counter() - started
    if pending:
        record("proxies", trained=len(pending), workers=workers, seconds=round(seconds, 3),
               tokens_per_s=round(len(pending) * recipe.tokens / seconds))  # fmt: skip
    results = [swarm.read(job) for job in jobs]
    domains = [shard.name for shard in validation.shards]
    failed = {result["id"]: result["failed"] for result in results if "failed" in result}
    if len(failed) == len(results):
        raise DataError(f"all {len(failed)} proxies failed; the first: {next(iter(failed.values()), 'there is none')}")
    write_atomically(work / "metrics.csv", _table([r for r in results if "failed" not in r], domains).encode())
    return Outcome(metrics={
        "proxies": len(jobs), "parameters": recipe.model.parameters(), "tokens_each": recipe.tokens, "domains": domains,
        **({"failed": failed} if spare else {}),
    })  # fmt: skip


def _there(swarm: _Swarm) -> _Swarm:
    """The same for a task elsewhere, whose working folder is another."""
    validation = ShardSet(tuple(absolute(shard) for shard in swarm.validation.shards))
    return replace(swarm, work=swarm.work.resolve(), validation=validation)


def absolute_blend(blend: Blend) -> Blend:
    """The same blend with absolute paths, for a task elsewhere."""
    return Blend(tuple((weight, absolute(shard)) for weight, shard in blend.parts))


def absolute(shard: Shard) -> Shard:
    """The same shard with an absolute path."""
    return replace(shard, prefix=shard.prefix.resolve())


def _train_missing(job: ProxyJob, swarm: _Swarm) -> None:
    """Train one proxy unless its result is there."""
    if not swarm.is_done(job):
        _train_one(job, swarm)


def _train_one(job: ProxyJob, swarm: _Swarm) -> None:
    """Train one proxy and write its result."""
    folder = swarm.work / SCRATCH / "proxies" / job.id
    result: dict[str, Any] = {"id": job.id, "seed": job.seed, "job": swarm.identity(job)}
    try:
        outcome = train(swarm.recipe.model_copy(update={"seed": job.seed}), job.blend, folder, swarm.validation)
        stages: list[dict[str, Any]] = outcome.metrics["stages"]
        first, last = stages[0]["first_loss"], stages[-1]["last_loss"]
        if swarm.spare and last >= first:
            raise DivergedError(f"training {job.id}: the loss began at {first} and ended at {last}")
    except DivergedError as error:  # a full disk is no result: it ends the swarm, which goes on when there is room
        if not swarm.spare:
            raise
        result["failed"] = error.reason
    else:
        result |= {"train_loss": last, "held_out": outcome.metrics["held_out"],
                   "domains": {stage["name"]: stage["domains"] for stage in stages}}  # fmt: skip
        if swarm.recipe.model.experts:
            result["routing"] = _routing(folder, swarm)
        if swarm.exam is not None:
            result["evaluation"] = _examine(folder, swarm.exam)
    write_atomically(swarm.path(job), (json.dumps(result, indent=1, sort_keys=True) + "\n").encode())
    shutil.rmtree(folder, ignore_errors=True)


def _routing(folder: Path, swarm: _Swarm) -> dict[str, Any]:
    from trainer.checkpoint import load_model
    from trainer.routing import routing_by_domain

    length = max(stage.sequence_length for stage in swarm.recipe.stages)
    with torch_threads(swarm.recipe.threads):
        return routing_by_domain(load_model(folder / "final"), swarm.validation, length, ROUTED_TOKENS)


def _examine(folder: Path, exam: Exam) -> dict[str, Any]:
    from trainer.export import export_hf

    export_hf(folder / "final", folder / "hf", exam.tokenizer)
    return dict(evaluate(folder / "hf", folder / "exam", exam.settings, exam.validation, exam.items).metrics)


def _check_ids(jobs: Sequence[ProxyJob]) -> None:
    ids = [job.id for job in jobs]
    if len(set(ids)) < len(ids):
        repeated = next(name for name in ids if ids.count(name) > 1)
        raise DataError(f"two proxies are called {repeated!r}; ids must differ")
    for name in ids:
        if not name.replace("-", "").replace("_", "").replace(".", "").isalnum() or name.startswith("."):
            raise DataError(f"proxy id {name!r}: use letters, digits, dots, dashes and underscores")


def _table(results: Sequence[dict[str, Any]], domains: Sequence[str]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["id", *domains])
    for result in results:
        writer.writerow([result["id"], *(f"{result['held_out'][name]['loss']:.6f}" for name in domains)])
    return stream.getvalue()
