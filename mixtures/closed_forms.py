"""Mixtures that need no experiment: proportional, temperature, uniform, UniMax.

They are the baselines that every proposal has to beat: in arXiv:2411.05735 no earlier method beats uniform
consistently. UniMax (arXiv:2304.09151) spreads a budget as evenly as an epoch cap allows.
"""

from mixtures.mixture import Domains
from pipelines.errors import DataError


def temperature(domains: Domains, tau: float = 1.0) -> dict[str, float]:
    """Weights in proportion to `unique_tokens ** (1 / tau)`; tau 1 is proportional, large tau uniform.

    Raises:
        DataError: tau is not positive.
    """
    if not tau > 0:
        raise DataError(f"temperature is {tau}, expected a positive number")
    largest = max(domains.unique_tokens.values())  # ratios first: no overflow at small tau
    scaled = {name: (count / largest) ** (1 / tau) for name, count in domains.unique_tokens.items()}
    total = sum(scaled.values())
    return {name: value / total for name, value in scaled.items()}


def proportional(domains: Domains) -> dict[str, float]:
    """Weights in proportion to unique tokens: every domain is read equally often."""
    return temperature(domains, 1.0)


def uniform(domains: Domains) -> dict[str, float]:
    """The same weight for every domain."""
    return {name: 1 / len(domains) for name in domains.names}


def unimax_budgets(domains: Domains, tokens: float, epochs: float) -> dict[str, float]:
    """Tokens to draw from each domain, evenly but at most `epochs` times what it holds.

    Domains are served from the smallest up, each taking an even share of what is left or its cap.

    Args:
        domains: what there is.
        tokens: the budget.
        epochs: cap on repetition.

    Returns:
        Domain -> tokens; they sum to less than `tokens` when every domain is at its cap.
    """
    budgets: dict[str, float] = {}
    left = float(tokens)
    held = domains.unique_tokens
    for position, name in enumerate(sorted(held, key=lambda name: (held[name], name))):
        budgets[name] = min(left / (len(held) - position), epochs * held[name])
        left -= budgets[name]
    return {name: budgets[name] for name in domains.names}


def unimax(domains: Domains, tokens: float, epochs: float) -> dict[str, float]:
    """UniMax weights: the budgets of `unimax_budgets` over their sum."""
    budgets = unimax_budgets(domains, tokens, epochs)
    total = sum(budgets.values())
    return {name: budget / total for name, budget in budgets.items()}
