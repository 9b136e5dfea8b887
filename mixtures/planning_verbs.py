"""The verbs `loam mix schedule | reuse | agree`: plain functions that fill a folder from plain files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mixtures.agreement import Agreement, AgreementSettings, agree
from mixtures.changes import in_content
from mixtures.fitting import load_fit
from mixtures.forgetting import ScheduleSettings, plan_schedule
from mixtures.mixture import Domains, Mixture
from mixtures.reuse import Reuse, ReuseSettings, report_of
from mixtures.tables import Metrics, Ratios
from pipelines.errors import DataError
from pipelines.files import write_atomically
from pipelines.store import Outcome


def mix_schedule(
    main: Path, late: Path, domains: Path, fit: Path | None, work: Path, settings: ScheduleSettings
) -> Outcome:
    """Write `schedule.yaml`, `exposure.csv` and `report.json`: a main stage and one that shifts to another mixture."""
    first, second, held = Mixture.read(main), Mixture.read(late), Domains.read(domains)
    if settings.epoch_cap is None and first.epoch_cap is not None:
        settings = settings.model_copy(update={"epoch_cap": first.epoch_cap})
    plan = plan_schedule(first.weights, second.weights, held, settings, load_fit(fit) if fit else None)
    plan.schedule.check_caps(held)
    plan.schedule.write(work / "schedule.yaml")
    plan.schedule.write_exposure(work / "exposure.csv", held)
    exposure = {name: each.model_dump() for name, each in plan.schedule.exposure(held).items()}
    _write_json(work / "report.json", {**plan.model_dump(mode="json"), "exposure": exposure})
    stages = {stage.name: stage.tokens for stage in plan.schedule.stages}
    return Outcome(metrics={"stages": stages, **plan.summary()})


class Evidence(NamedTuple):
    """Old runs that may still tell something.

    Attributes:
        ratios: of the old runs, over the old domains.
        domains: the old domains.
        content: one row for each old and new domain, columns are clusters.
    """

    ratios: Path
    domains: Path
    content: Path | None = None


def mix_reuse(
    mixture: Path, domains: Path, runs: int | None, fit: Path | None, work: Path, settings: ReuseSettings,
    evidence: Evidence | None = None,
) -> Outcome:  # fmt: skip
    """Write a swarm over what changed, or the mixture that its fit proposes; always the virtual domains and a report.

    A swarm is `ratios.csv` over all domains, which the trainer reads, and `virtual.csv`, which the law is fitted to; a
    proposal is `mixture.yaml` over all domains and `proposal.json` over the virtual ones. Old runs that map exactly
    are written to `transferred.csv`; with a content table all runs are told in clusters in `content.csv`.

    Raises:
        DataError: both a number of runs and a fit are given, or neither.
    """
    if (runs is None) == (fit is None):
        raise DataError("give -n to design a swarm, or --fit to propose from its runs")
    reuse = Reuse.of(Mixture.read(mixture), Domains.read(domains), settings)
    old = _OldRuns.read(evidence) if evidence is not None else None
    metrics: dict[str, Any] = {"free": list(reuse.free), "dimensions": len(reuse.free)}
    told: dict[str, Any] = {}
    tables: dict[str, Ratios] = {}
    if runs is not None:
        tables["virtual.csv"] = virtual = reuse.design(runs, settings.design)
        tables["ratios.csv"] = reuse.expand(virtual)
        metrics["runs"] = len(virtual.ids)
    proposed = reuse.propose(load_fit(fit), settings.propose) if fit is not None else None
    if old is not None:
        more, told = _transfer(reuse, old, tables.get("ratios.csv"))
        tables |= more
    reuse.virtual_domains.write(work / "virtual_domains.yaml")  # from here on nothing is refused
    for name, table in tables.items():
        table.write_csv(work / name)
    if proposed is not None:
        found, proposal = proposed
        proposal.write(work)
        found.write(work / "mixture.yaml")  # over all domains, in place of the virtual one
        metrics |= proposal.summary() | {"weights": found.weights}
    metrics |= told
    _write_json(work / "report.json", report_of(reuse))
    return Outcome(metrics=metrics)


class _OldRuns(NamedTuple):
    """`Evidence`, read: before anything is written, so that nothing is left where a table is refused."""

    ratios: Ratios
    domains: Domains
    content: Ratios | None

    @classmethod
    def read(cls, evidence: Evidence) -> "_OldRuns":
        domains = Domains.read(evidence.domains)
        ratios = Ratios.read_csv(evidence.ratios).ordered(domains.names, "the table of old runs", "the old domains")
        return cls(ratios, domains, Ratios.read_csv(evidence.content) if evidence.content else None)


def _transfer(reuse: Reuse, evidence: _OldRuns, swarm: Ratios | None) -> tuple[dict[str, Ratios], dict[str, Any]]:
    """Tables of old runs by the file to write, and what to tell of them."""
    old, content = evidence.ratios, evidence.content
    found, left_out = reuse.changes.transferred(old, reuse.domains, evidence.domains.unique_tokens)
    written = {"transferred.csv": found}
    if content is not None:
        tables = [in_content(old, content), *([in_content(swarm, content)] if swarm else [])]
        both = {f"{run}-old" if n == 0 and swarm and run in swarm.ids else run: row
                for n, table in enumerate(tables) for run, row in table.rows()}  # fmt: skip
        written["content.csv"] = Ratios.of(both)
    return written, {"transferred": len(found.ids), "left_out": left_out}


def mix_agree(
    metrics: Path, against: Path, ratios: Path | None, work: Path, settings: AgreementSettings
) -> tuple[Outcome, Metrics, Metrics]:
    """Write `report.json`: how two tables of runs over the same mixtures agree; gives both for drawing."""
    proxy, truth = Metrics.read_csv(metrics), Metrics.read_csv(against)
    found = agree(proxy, truth, Ratios.read_csv(ratios) if ratios else None, settings)
    _write_json(work / "report.json", found.model_dump(mode="json"))
    return Outcome(metrics=_short(found)), proxy, truth


def _short(found: Agreement) -> dict[str, Any]:
    kept = ("spearman", "decision_accuracy", "regret", "verdict")
    shown = {name: each.model_dump(mode="json", include=set(kept)) for name, each in found.metrics.items()}
    return {"answer": found.answer, "mixtures": found.mixtures, "left_out": found.left_out, "agreement": shown}


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    write_atomically(path, (json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())
