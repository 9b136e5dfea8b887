"""Update rules of online mixing, as pure functions of numbers: no model, no state, no randomness.

Each rule maps what a step measured to new weights on the simplex; the loop that measures is `online.py`. Formulas are
those of the papers and of the authors' programs: DoReMi (arXiv:2305.10429), DoGE (arXiv:2310.15393), Aioli
(arXiv:2411.05735), ADO (arXiv:2410.11820).

Legend: D domains, M held-out losses, R training mixes of a round, G numbers of a gradient.
"""

import numpy as np


def exponentiated(weights_D: np.ndarray, scores_D: np.ndarray, rate: float) -> np.ndarray:
    """Exponentiated gradient: `w * exp(rate * score)`, divided by its sum.

    Args:
        weights_D: float64 (D,), on the simplex; a zero stays zero.
        scores_D: float64 (D,), larger is better.
        rate: step size.
    """
    moved_D = rate * np.asarray(scores_D, float)
    raised_D = weights_D * np.exp(moved_D - moved_D.max())  # the largest exponent is 0: no overflow
    return raised_D / raised_D.sum()


def smoothed(weights_D: np.ndarray, share: float) -> np.ndarray:
    """`(1 - share) * w + share / D`: no domain is lost for ever."""
    return (1 - share) * weights_D + share / len(weights_D)


def doremi(weights_D: np.ndarray, excess_D: np.ndarray, rate: float, smoothing: float) -> np.ndarray:
    """DoReMi's weights after a step (algorithm 1).

    Args:
        weights_D: before the step.
        excess_D: mean over a domain's tokens of `max(proxy loss - reference loss, 0)`, nats.
        rate: eta, 1 in the paper.
        smoothing: c, 1e-4 in the authors' program.
    """
    return smoothed(exponentiated(weights_D, excess_D, rate), smoothing)


def doge_scores(gradients_DG: np.ndarray) -> np.ndarray:
    """How far a step along each domain's gradient helps all domains: `<g_i, sum_j g_j> / mean norm`, float64 (D,).

    The division is that of the authors' program: it takes the scale of the gradients out, which differs between models.
    """
    wide_DG = np.asarray(gradients_DG, float)
    size = np.linalg.norm(wide_DG, axis=1).mean()
    return wide_DG @ wide_DG.sum(axis=0) / (size if size > 0 else 1.0)


def doge(weights_D: np.ndarray, scores_D: np.ndarray, learning_rate: float, mu: float) -> np.ndarray:
    """DoGE's weights after a step: `w * exp(learning rate * score / mu)`, divided by its sum."""
    return exponentiated(weights_D, scores_D, learning_rate / mu)


def one_hot_mixes(domains: int, one_hot: float) -> np.ndarray:
    """Aioli's mixes to learn from, (D, D): row j gives `one_hot` to domain j, the others share the rest."""
    rest = (1 - one_hot) / (domains - 1)
    return np.full((domains, domains), rest) + (one_hot - rest) * np.eye(domains)


def aioli_influence(mixes_RD: np.ndarray, drops_RM: np.ndarray) -> np.ndarray:
    """Solve `mixes @ A_m = drops of loss m` for every loss.

    Args:
        mixes_RD: the mixes that were trained on, equally long; of full rank.
        drops_RM: by how much each held-out loss fell under each mix.

    Returns:
        float64 (M, D): how much one share of domain d lowers loss m.
    """
    return np.linalg.solve(mixes_RD, drops_RM).T


def aioli(weights_D: np.ndarray, influence_MD: np.ndarray, rate: float) -> np.ndarray:
    """Aioli's weights of the next round: `w * exp(rate * column sums of A)`, divided by its sum.

    The matrix is first moved so that its least entry is 0, where that is negative, and divided by its sum: the step
    then depends on the pattern of influence, not on how fast losses fall at this point of the training.
    """
    least = min(float(influence_MD.min()), 0.0)
    moved_MD = influence_MD - least
    total = moved_MD.sum()
    if total <= 0:
        return weights_D.copy()  # nothing was learned in the round
    return exponentiated(weights_D, moved_MD.sum(axis=0) * len(weights_D) / total, rate)


def ado_preference(
    prior_D: np.ndarray, usage_D: np.ndarray, exponent_D: np.ndarray, above_D: np.ndarray, tokens_D: np.ndarray
) -> np.ndarray:
    """ADO's preference: `prior * sqrt(usage) * alpha * (loss - eps) / n`, divided by its sum.

    `alpha * (loss - eps) / n` is how fast a power law `eps + beta * n^-alpha` falls per token.

    Args:
        prior_D: shares before any evidence.
        usage_D: moving average of the shares that were drawn: credit for a falling loss.
        exponent_D: alpha of each domain's law.
        above_D: what the law says is left to gain, `beta * n^-alpha`, nats.
        tokens_D: n, tokens of the domain seen so far; above 0.
    """
    speed_D = prior_D * np.sqrt(usage_D) * exponent_D * above_D / tokens_D
    total = speed_D.sum()
    return speed_D / total if total > 0 else prior_D.copy()


def floored(weights_D: np.ndarray, floor: float) -> np.ndarray:
    """The weights with no entry below `floor`, taken in proportion from what the others have above it."""
    least = min(floor, 1 / len(weights_D))
    above_D = np.maximum(weights_D - least, 0.0)
    room = 1 - least * len(weights_D)
    if above_D.sum() <= 0:
        return np.full(len(weights_D), 1 / len(weights_D))
    return least + above_D * (room / above_D.sum())
