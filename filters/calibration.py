"""How well a score tells good from bad, and what probability it stands for.

The one choice that matters: everything that is reported about a calibration is measured out of fold, on documents that
did not shape the map, so that an isotonic fit cannot praise itself. Sources: DeLong 1988 (area under the curve), Platt
1999 (with his smoothed targets), isotonic regression by pool-adjacent-violators (scipy), Guo 2017 (reliability).
"""

from typing import Any, Literal

import numpy as np

from pipelines.errors import DataError

Method = Literal["isotonic", "platt"]
FOLDS, BINS = 5, 10
FEWEST = 10
"""Documents of each class below which a calibration is a guess."""


def auc_interval(labels_N: np.ndarray, scores_N: np.ndarray) -> tuple[float, float, float]:
    """The area under the curve with its 95% interval (DeLong's variance); NaN with one class only.

    Args:
        labels_N: bool (N,).
        scores_N: float (N,).
    """
    from scipy.stats import rankdata

    positives_P, negatives_M = scores_N[labels_N], scores_N[~labels_N]
    if not len(positives_P) or not len(negatives_M):
        return float("nan"), float("nan"), float("nan")
    ranks_N = rankdata(np.concatenate([positives_P, negatives_M]))
    size_p, size_m = len(positives_P), len(negatives_M)
    # the share of the other class that each document beats
    beats_P = (ranks_N[:size_p] - rankdata(positives_P)) / size_m
    beats_M = 1 - (ranks_N[size_p:] - rankdata(negatives_M)) / size_p
    area = float(beats_P.mean())
    spread = sum(np.var(beats, ddof=1) / len(beats) for beats in (beats_P, beats_M) if len(beats) > 1)
    half = 1.959964 * float(np.sqrt(spread))
    return area, max(0.0, area - half), min(1.0, area + half)


def fit_map(labels_N: np.ndarray, scores_N: np.ndarray, method: Method) -> dict[str, Any]:
    """Fit the map from a score to the probability of being good.

    Args:
        labels_N: bool (N,).
        scores_N: float (N,), higher is better.
        method: a step function that never falls, or a logistic curve.

    Returns:
        plain values, as `apply_map` reads them.
    """
    if method == "isotonic":
        from scipy.optimize import isotonic_regression

        values_K, groups_N = np.unique(scores_N, return_inverse=True)
        weight_K = np.bincount(groups_N).astype(float)
        mean_K = np.bincount(groups_N, labels_N) / weight_K
        fitted_K = np.asarray(isotonic_regression(mean_K, weights=weight_K).x)
        # the ends of every level are enough: between two levels the map is a line
        start_K = np.r_[True, fitted_K[1:] != fitted_K[:-1]]
        kept_K = start_K | np.r_[start_K[1:], True]
        return {"method": method, "scores": values_K[kept_K].tolist(), "probabilities": fitted_K[kept_K].tolist()}
    slope, offset = _platt(labels_N, scores_N)
    return {"method": method, "slope": slope, "offset": offset}


def _platt(labels_N: np.ndarray, scores_N: np.ndarray) -> tuple[float, float]:
    """Newton's method on the cross entropy with smoothed targets; a little ridge keeps separable classes finite."""
    positives = int(labels_N.sum())
    high, low = (positives + 1) / (positives + 2), 1 / (len(labels_N) - positives + 2)
    target_N = np.where(labels_N, high, low)
    centre, scale = float(np.mean(scores_N)), float(np.std(scores_N)) or 1.0
    inputs_N2 = np.stack([(scores_N - centre) / scale, np.ones(len(scores_N))], axis=1)
    weights_2 = np.zeros(2)
    for _ in range(50):
        probability_N = 1 / (1 + np.exp(-inputs_N2 @ weights_2))
        gradient_2 = inputs_N2.T @ (probability_N - target_N) + 1e-3 * weights_2
        hessian_22 = (inputs_N2 * (probability_N * (1 - probability_N))[:, None]).T @ inputs_N2 + 1e-3 * np.eye(2)
        step_2 = np.linalg.solve(hessian_22, gradient_2)
        weights_2 -= step_2
        if np.abs(step_2).max() < 1e-10:
            break
    slope = float(weights_2[0] / scale)
    return slope, float(weights_2[1] - slope * centre)


def apply_map(calibration: dict[str, Any], scores_N: np.ndarray) -> np.ndarray:
    """Probabilities of scores: float64 (N,); NaN stays NaN."""
    if calibration["method"] == "isotonic":
        found_N = np.interp(scores_N, calibration["scores"], calibration["probabilities"])
        return np.where(np.isnan(scores_N), np.nan, found_N)
    return 1 / (1 + np.exp(-(calibration["slope"] * scores_N + calibration["offset"])))


def reliability(labels_N: np.ndarray, probabilities_N: np.ndarray) -> dict[str, Any]:
    """How far probabilities are from what happened.

    Args:
        labels_N: bool (N,).
        probabilities_N: float (N,), 0..1.

    Returns:
        `table`: for each tenth of the probability its documents, mean probability and share of good ones;
        `expected_error`: the mean distance of the two, weighted by documents; `brier`: the mean squared error.
    """
    bin_N = np.minimum((probabilities_N * BINS).astype(int), BINS - 1)
    table = []
    for number in range(BINS):
        inside_N = bin_N == number
        if inside_N.any():
            predicted, observed = float(probabilities_N[inside_N].mean()), float(labels_N[inside_N].mean())
            table.append({"from": number / BINS, "documents": int(inside_N.sum()), "predicted": round(predicted, 6),
                          "observed": round(observed, 6)})  # fmt: skip
    error = sum(row["documents"] * abs(row["predicted"] - row["observed"]) for row in table) / max(1, len(labels_N))
    brier = float(np.mean((probabilities_N - labels_N) ** 2)) if len(labels_N) else 0.0
    return {"table": table, "expected_error": round(error, 6), "brier": round(brier, 6)}


def calibrate(labels_N: np.ndarray, scores_N: np.ndarray, keys_N: np.ndarray, method: Method) -> dict[str, Any]:
    """Fit a calibration on labels and say how good it is.

    Args:
        labels_N: bool (N,).
        scores_N: float (N,), higher is better, finite.
        keys_N: uint64 (N,), what decides the folds.
        method: of the map.

    Returns:
        the map, and out of fold: the area under the curve with interval, and the reliability.

    Raises:
        DataError: a class has fewer than `FEWEST` documents.
    """
    counts = {name: int((labels_N == value).sum()) for name, value in (("good", True), ("bad", False))}
    for name, count in counts.items():
        if count < FEWEST:
            raise DataError(
                f"only {count} {name} labelled documents have a score; a calibration needs {FEWEST} of each"
            )
    fold_N = (keys_N % np.uint64(FOLDS)).astype(int)
    probabilities_N = np.full(len(labels_N), float(labels_N.mean()))
    for fold in range(FOLDS):
        inside_N = fold_N == fold
        if len(set(labels_N[~inside_N].tolist())) == 2:
            others = fit_map(labels_N[~inside_N], scores_N[~inside_N], method)
            probabilities_N[inside_N] = apply_map(others, scores_N[inside_N])
    area, low, high = (round(value, 6) for value in auc_interval(labels_N, scores_N))
    return {**fit_map(labels_N, scores_N, method), **counts, "auc": area, "auc_lo95": low, "auc_hi95": high,
            "reliability": reliability(labels_N, probabilities_N)}  # fmt: skip
