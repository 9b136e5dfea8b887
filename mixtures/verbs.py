"""The verbs `loam mix design | fit | predict | propose`: plain functions that fill a folder.

Each reads plain files and writes plain files that the next one reads; nothing is pickled. They are quick and hold no
state, so that a second call on the same folder just writes the same bytes again.
"""

from pathlib import Path

from mixtures.design import DesignSettings, design_swarm
from mixtures.fitting import FitSettings, fit_laws, load_fit
from mixtures.mixture import Domains
from mixtures.propose import ProposeSettings, propose
from mixtures.tables import Metrics, Ratios
from pipelines.errors import DataError
from pipelines.store import Outcome


def mix_design(domains: Path, runs: int, work: Path, settings: DesignSettings) -> Outcome:
    """Write `ratios.csv`: a swarm of mixtures around the token-proportional prior."""
    ratios = design_swarm(Domains.read(domains), runs, settings)
    ratios.write_csv(work / "ratios.csv")
    return Outcome(metrics={"runs": len(ratios.ids), "domains": len(ratios.domains)})


def mix_fit(ratios: Path, metrics: Path, work: Path, settings: FitSettings) -> Outcome:
    """Cross-validate laws on a swarm; write the best one, its held-out predictions and `report.json`."""
    fit = fit_laws(Ratios.read_csv(ratios), Metrics.read_csv(metrics), settings)
    fit.write(work)
    chosen = next(each for each in fit.scores if each.law == fit.chosen)
    held_out = {"relative_rmse": chosen.relative, "spearman": chosen.spearman, "regret": chosen.regret}
    return Outcome(metrics={"runs": len(fit.ratios.ids), "chosen": fit.chosen, "penalty": fit.penalty, **held_out})


def mix_predict(fit: Path, ratios: Path, work: Path) -> Outcome:
    """Write `predictions.csv`: every metric of every new mixture, with 80% and 95% intervals."""
    table = Ratios.read_csv(ratios)
    load_fit(fit).predict(table).write(work / "predictions.csv")
    return Outcome(metrics={"mixtures": len(table.ids)})


def mix_propose(fit: Path, domains: Path, work: Path, settings: ProposeSettings) -> Outcome:
    """Write `mixture.yaml` and `proposal.json`: the lowest predicted loss within the bounds."""
    if (settings.epoch_cap is None) != (settings.tokens is None) and settings.epoch_cap:
        raise DataError("an epoch cap needs a token budget: give --tokens as well")
    proposal = propose(load_fit(fit), Domains.read(domains), settings)
    proposal.write(work)
    return Outcome(metrics=proposal.summary())
