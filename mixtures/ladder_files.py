"""Write a ladder of scales, read it back, and predict tables whose rows may lie at different scales.

A ladder of one scale is written as its fit. One of several is `law.json` with the list of scales, a folder for each,
and a report of all. P mixtures, M metrics.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from mixtures.fitting import LAW, LEVELS, METRICS, RATIOS, REPORT, Prediction, check_untouched, load_fit
from mixtures.joint_fit import JointModel
from mixtures.ladder import Ladder, Rung
from mixtures.noise import Noise
from mixtures.runs import Runs, split
from mixtures.scale import Scale
from mixtures.tables import Metrics, Ratios
from pipelines.errors import DataError
from pipelines.files import write_atomically

SCALES = "scales"


def report(ladder: Ladder) -> dict[str, Any]:
    """Quality at the largest scale, all scales, and the noise, as JSON values."""
    noise = ladder.noise
    whole = ladder.at().report() | {
        "replicates": noise.replicates,
        "seed_sd": noise.seed_sd,
        "seed_sd_by_mixture": noise.by_mixture,
        "snr": noise.snr or "unknown: no mixture was run twice",
        "not_fitted": noise.not_fitted,
    }
    if len(ladder.rungs) == 1:
        return whole
    rows = [
        {
            "scale": str(rung.scale),
            "runs": len(rung.runs.ratios.ids),
            "law": rung.fit.chosen if rung.fit else None,
            "use": "law" if rung.fit else "level and spread",
        }
        for rung in ladder.rungs
    ]
    more = {"errors_on_the_largest_scale": dict(ladder.errors)} if ladder.errors else {}
    return whole | {"scale": str(ladder.scale), "scales": rows, "metrics_left": list(ladder.left), **more}


def write_ladder(ladder: Ladder, folder: Path) -> None:
    """Write the fits of all scales and `report.json`."""
    if len(ladder.rungs) == 1:
        ladder.at().write(folder)
    else:
        rows = []
        rungs = {rung.scale: rung for rung in ladder.rungs}
        for runs in ladder.runs:
            place = f"{SCALES}/{str(runs.scale).replace('/', '-')}"
            (folder / place).mkdir(parents=True, exist_ok=True)
            fit = rungs[runs.scale].fit if runs.scale in rungs else None
            if fit is not None:
                fit.write(folder / place)
            else:
                runs.ratios.write_csv(folder / place / RATIOS)
                runs.metrics.write_csv(folder / place / METRICS)
            rows.append(
                {"scale": str(runs.scale), "folder": place, "law": fit is not None, "rung": runs.scale in rungs}
            )
        joint = {"joint": ladder.joint.to_json(), "errors": dict(ladder.errors)} if ladder.joint else {}
        law = {
            "version": 1,
            "ladder": rows,
            "noise": ladder.noise.model_dump(mode="json"),
            "left": list(ladder.left),
            **joint,
        }
        write_atomically(folder / LAW, _json(law))
    write_atomically(folder / REPORT, _json(report(ladder)))


def load_ladder(folder: Path) -> Ladder:
    """Read what `write_ladder` or `Fit.write` wrote.

    Raises:
        DataError: a file is missing or unreadable, or tables are not those that the laws were fitted to.
    """
    check_untouched(folder)
    path = folder / LAW
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        rows = saved.get("ladder")
        noise = Noise.model_validate(saved.get("noise") or {})
        left = tuple(map(str, saved.get("left") or ()))
        places = [(Scale.parse(row["scale"]), folder / str(row["folder"]), row) for row in rows or ()]
        errors = {str(name): float(value) for name, value in (saved.get("errors") or {}).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is not a fitted law ({type(error).__name__}: {error}); run `loam mix fit`") from None
    if rows is None:
        fit = load_fit(folder)
        scale = Scale.of_label(fit.settings.scale)
        return Ladder((Rung(Runs.of(fit.ratios, fit.metrics, scale), fit),), noise, left)
    every, rungs = [], []
    for scale, place, row in places:
        fit = load_fit(place) if row.get("law") else None
        ratios, metrics = (
            (fit.ratios, fit.metrics) if fit else (Ratios.read_csv(place / RATIOS), Metrics.read_csv(place / METRICS))
        )
        every.append(Runs.of(ratios, metrics, scale))
        rungs += [Rung(every[-1], fit)] if row.get("rung") else []
    joint = JointModel.from_json(every, saved["joint"]) if saved.get("joint") else None
    return Ladder(tuple(rungs), noise, left, joint, errors)


def predict_rows(ladder: Ladder, ratios: Ratios, scales: list[Scale] | None, scale: Scale | None) -> Prediction:
    """Predict mixtures at a scale, or each row at its own.

    Args:
        ladder: the fits.
        ratios: mixtures.
        scales: of the rows; None when all lie at `scale`.
        scale: of all rows; None is the largest scale of the ladder.

    Raises:
        DataError: the domains are not those of the fit.
    """
    if scales is None or scale is not None:
        return ladder.at(scale).predict(ratios)
    names = ladder.at().metrics.names
    blank_PM = Metrics(ratios.ids, names, np.zeros((len(ratios.ids), len(names))))
    place = {run: row for row, run in enumerate(ratios.ids)}
    values_PM = blank_PM.values_PM.copy()
    half_PM = {level: values_PM.copy() for level in LEVELS}
    for part in split(ratios, blank_PM, scales):
        found = ladder.at(part.scale).predict(part.ratios)
        rows = [place[run] for run in found.ids]
        values_PM[rows] = found.values_PM
        for level, half in found.half_PM.items():
            half_PM[level][rows] = half
    return Prediction(ratios.ids, names, values_PM, half_PM)


def trust(ladder: Ladder, scale: Scale | None) -> str:
    """How far predictions at a scale may be trusted: `fitted`, `calibrated`, `interpolated`, `extrapolated`, `far`."""
    if len(ladder.rungs) == 1:
        return "fitted" if scale is None or scale == ladder.scale else "one scale: levels are those of the fit"
    return str(ladder.at(scale).report()["extrapolation"]["trust"])


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()
