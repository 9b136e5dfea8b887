"""What to ask of online mixing: a method and its numbers, each beside its source."""

from typing import Literal

from pydantic import Field

from pipelines.quantities import Tokens
from pipelines.recipe import Section


class DoremiSettings(Section):
    """DoReMi (arXiv:2305.10429).

    Attributes:
        eta: rate of the exponentiated gradient; the paper's.
        smoothing: share of the uniform mixture in every update; of the authors' program.
        rounds: the next round's reference is trained on this round's answer; ends early when that stands still.
    """

    eta: float = Field(default=1.0, gt=0)
    smoothing: float = Field(default=1e-4, ge=0, lt=1)
    rounds: int = Field(default=2, ge=1)


class DogeSettings(Section):
    """DoGE (arXiv:2310.15393).

    Attributes:
        mu: strength of the Bregman term that holds the weights; smaller moves them faster.
        smoothing: share of the uniform mixture in every update.
    """

    mu: float = Field(default=0.05, gt=0)
    smoothing: float = Field(default=0.0, ge=0, lt=1)


class AioliSettings(Section):
    """Aioli (arXiv:2411.05735).

    Attributes:
        eta: rate of the exponentiated gradient, once a round.
        one_hot: share of the domain that is learned about; the others share the rest.
        rounds: updates of the weights.
        sweeps: times that every domain is learned about in a round; of the authors' program.
        learning: share of a round's steps spent on it, at most.
        probe_tokens: of each held-out domain, scored after every piece of learning.
    """

    eta: float = Field(default=0.2, gt=0)
    one_hot: float = Field(default=0.625, gt=0, lt=1)
    rounds: int = Field(default=4, ge=1)
    sweeps: int = Field(default=1, ge=1)
    learning: float = Field(default=0.5, gt=0, le=1)
    probe_tokens: Tokens = Field(default=4096, gt=0)


class AdoSettings(Section):
    """ADO (arXiv:2410.11820).

    Attributes:
        memory: decay of the moving average of usage, which is a domain's credit.
        preference: share of the newest preference in the weights; the rest is their running mean.
        floor: least weight of a domain.
        warmup: share of the steps drawn from the prior, before the first curves.
        refits: fits of the curves after that, evenly spaced.
    """

    memory: float = Field(default=0.9, ge=0, lt=1)
    preference: float = Field(default=0.1, gt=0, le=1)
    floor: float = Field(default=0.01, ge=0, lt=1)
    warmup: float = Field(default=0.1, ge=0, lt=1)
    refits: int = Field(default=20, ge=1)


class OnlineSettings(Section):
    """Online mixing: weights that move while a small model trains.

    Attributes:
        method: how they move.
        doremi: its numbers; so the others.
    """

    method: Literal["doremi", "doge", "aioli", "ado"]
    doremi: DoremiSettings = DoremiSettings()
    doge: DogeSettings = DogeSettings()
    aioli: AioliSettings = AioliSettings()
    ado: AdoSettings = AdoSettings()
