"""The verbs `loam mix design | fit | predict | propose | suggest`: plain functions that fill a folder.

Each reads plain files and writes plain files that the next one reads; nothing is pickled. They are quick and hold no
state, so that a second call on the same folder just writes the same bytes again.
"""

import fnmatch
import json
from collections.abc import Collection, Sequence
from pathlib import Path

from mixtures.design import DesignSettings, design_swarm
from mixtures.fitting import FitSettings
from mixtures.ladder import fit_runs
from mixtures.ladder_files import load_ladder, predict_rows, trust, write_ladder
from mixtures.mixture import Domains
from mixtures.propose import ProposeSettings, propose
from mixtures.runs import Runs, read_runs, scale_rows
from mixtures.scale import Scale
from mixtures.stopping import StopSettings, judge_runs
from mixtures.suggest import SuggestSettings, suggest
from mixtures.tables import Metrics, Ratios
from pipelines.errors import DataError
from pipelines.files import write_atomically
from pipelines.store import Outcome


def mix_design(
    domains: Path, runs: int, work: Path, settings: DesignSettings, candidates: Path | None = None
) -> Outcome:
    """Write `ratios.csv`: a swarm of mixtures around the token-proportional prior, or chosen from `candidates`."""
    pool = Ratios.read_csv(candidates) if candidates else None
    ratios = design_swarm(Domains.read(domains), runs, settings, pool)
    ratios.write_csv(work / "ratios.csv")
    return Outcome(metrics={"runs": len(ratios.ids), "domains": len(ratios.domains)})


def mix_fit(
    ratios: Sequence[Path], metrics: Sequence[Path], scales: Sequence[str], work: Path, settings: FitSettings
) -> Outcome:
    """Cross-validate laws on swarms of one scale or several; write the best ones and `report.json`."""
    given = read_runs(ratios, metrics, scales)
    _check_chance(settings, {name for runs in given for name in runs.metrics.names})
    ladder = fit_runs(given, settings)
    write_ladder(ladder, work)
    fit = ladder.at()
    chosen = next(each for each in fit.scores if each.law == fit.chosen)
    held_out = {"relative_rmse": chosen.relative, "spearman": chosen.spearman, "regret": chosen.regret}
    several = {"scales": [str(rung.scale) for rung in ladder.rungs]} if len(ladder.rungs) > 1 else {}
    not_fitted = {"not_fitted": sorted(ladder.noise.not_fitted)} if ladder.noise.not_fitted else {}
    runs = sum(len(each.ratios.ids) for each in ladder.runs)
    told = {"runs": runs, "chosen": fit.chosen, "penalty": fit.penalty, **held_out, **several, **not_fitted}
    return Outcome(metrics=told | _gaps(metrics, given))


def _gaps(metrics: Sequence[Path], given: Sequence[Runs]) -> dict[str, list[str]]:
    """Runs and metrics of the tables that were not measured in full, where there are any."""
    tables = [Metrics.read_csv(path, gaps=True) for path in metrics]
    used = {run for runs in given for run in runs.ratios.ids}
    shared = set.intersection(*(set(runs.metrics.names) for runs in given))
    left = {"runs_left_out": sorted({run for table in tables for run in table.ids} - used),
            "metrics_left_out": sorted({name for table in tables for name in table.names} - shared)}  # fmt: skip
    return {what: names for what, names in left.items() if names}


def _check_chance(settings: FitSettings, names: Collection[str]) -> None:
    for glob in settings.chance:
        if glob not in names and not fnmatch.filter(names, glob):
            raise DataError(f"chance: {glob!r} means no metric; there are {', '.join(sorted(names)[:4])}")


def mix_predict(fit: Path, ratios: Path, work: Path, scale: str | None = None) -> Outcome:
    """Write `predictions.csv`: every metric of every new mixture, with 80% and 95% intervals."""
    table, ladder = Ratios.read_csv(ratios), load_ladder(fit)
    target = Scale.parse(scale) if scale else None
    predict_rows(ladder, table, scale_rows(ratios), target).write(work / "predictions.csv")
    told = {"scale": scale, "trust": trust(ladder, target)} if scale else {}
    return Outcome(metrics={"mixtures": len(table.ids), **told})


def mix_propose(fit: Path, domains: Path, work: Path, settings: ProposeSettings, scale: str | None = None) -> Outcome:
    """Write `mixture.yaml` and `proposal.json`: the lowest predicted loss within the bounds."""
    target = Scale.parse(scale) if scale else None
    if target and target.tokens and settings.tokens is None:  # what is decided for is a run of so many tokens
        settings = settings.model_copy(update={"tokens": target.tokens})
    if (settings.epoch_cap is None) != (settings.tokens is None) and settings.epoch_cap:
        raise DataError("an epoch cap needs a token budget: give --tokens as well")
    proposal = propose(load_ladder(fit).at(target), Domains.read(domains), settings)
    proposal.write(work)
    return Outcome(metrics=proposal.summary())


def mix_suggest(
    fit: Path, domains: Path, work: Path, settings: SuggestSettings, candidates: Path | None = None
) -> Outcome:
    """Write `suggest.json` and, unless it advises to stop, `ratios.csv` and `runs.csv`: what to train next."""
    pool = Ratios.read_csv(candidates) if candidates else None
    found = suggest(load_ladder(fit).at(), Domains.read(domains), settings, pool)
    found.write(work)
    return Outcome(metrics=found.summary())


def mix_stop(curves: Path, work: Path, settings: StopSettings) -> Outcome:
    """Write `stop.json`: each running run's forecast, which to stop, and what stopping would have done before."""
    found = judge_runs(curves, settings)
    write_atomically(work / "stop.json", (json.dumps(found, indent=1, sort_keys=True) + "\n").encode())
    return Outcome(metrics=found)
