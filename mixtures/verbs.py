"""The verbs `loam mix design | fit | predict | propose`: plain functions that fill a folder.

Each reads plain files and writes plain files that the next one reads; nothing is pickled. They are quick and hold no state,
so that a second call on the same folder just writes the same bytes again.
"""

import json
from pathlib import Path
from typing import Any

from mixtures.design import DesignSettings, design_swarm
from mixtures.fitting import FitSettings, fit_laws, load_fit
from mixtures.mixture import read_domains, write_mixture
from mixtures.propose import ProposeSettings, as_json, propose
from mixtures.tables import read_metrics, read_ratios, write_ratios
from pipelines.errors import DataError
from pipelines.files import write_atomically
from pipelines.store import Outcome


def mix_design(domains: Path, work: Path, settings: DesignSettings) -> Outcome:
    """Write `ratios.csv`: a swarm of mixtures around the token-proportional prior."""
    ratios = design_swarm(read_domains(domains), settings)
    write_ratios(work / "ratios.csv", ratios)
    return Outcome(metrics={"runs": len(ratios.ids), "domains": len(ratios.domains)})


def mix_fit(ratios: Path, metrics: Path, work: Path, settings: FitSettings) -> Outcome:
    """Cross-validate laws on a swarm; write the best one, its held-out predictions and `report.json`."""
    fit = fit_laws(read_ratios(ratios), read_metrics(metrics), settings)
    fit.save(work)
    chosen = next(each for each in fit.scores if each.law == fit.chosen)
    held_out = {"relative_rmse": chosen.relative, "spearman": chosen.spearman, "regret": chosen.regret}
    return Outcome(metrics={"runs": len(fit.ratios.ids), "chosen": fit.chosen, "penalty": fit.penalty, **held_out})


def mix_predict(fit: Path, ratios: Path, work: Path) -> Outcome:
    """Write `predictions.csv`: every metric of every new mixture, with 80% and 95% intervals."""
    table = read_ratios(ratios)
    load_fit(fit).predict(table).write(work / "predictions.csv")
    return Outcome(metrics={"mixtures": len(table.ids)})


def mix_propose(fit: Path, domains: Path, work: Path, settings: ProposeSettings) -> Outcome:
    """Write `mixture.yaml` and `proposal.json`: the lowest predicted loss within the bounds."""
    if (settings.epoch_cap is None) != (settings.tokens is None) and settings.epoch_cap:
        raise DataError("an epoch cap needs a token budget: give --tokens as well")
    proposal = propose(load_fit(fit), read_domains(domains), settings)
    write_mixture(work / "mixture.yaml", proposal.mixture)
    write_atomically(work / "proposal.json", _json(as_json(proposal)))
    metrics: dict[str, Any] = {"basis": proposal.basis, "target": proposal.target, "p_better": proposal.p_better}
    losses = {"predicted": proposal.predicted.loss, "prior_predicted": proposal.prior_predicted.loss}
    return Outcome(metrics=metrics | losses)


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
