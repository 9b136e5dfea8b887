"""The bounds of a mixture as a recipe states them: horizon, epoch caps, floors, budgets of groups, quotas of licences.

One section serves the design of a swarm and the proposal, so that no run is trained on a mixture that could not be
proposed. Domains are meant by name or by a pattern of names (`web_en/*`); a pattern that means nothing is an error,
because a cap with a typo would hold nothing back.
"""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Annotated

from pydantic import Field, model_validator

from mixtures.mixture import Domains, EpochCap
from mixtures.simplex import Group, Simplex
from pipelines.errors import RecipeError
from pipelines.quantities import Tokens
from pipelines.recipe import Section

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
UNKNOWN = "unknown"  # the licence of a domain that names none


class Bounds(Section):
    """Which mixtures are allowed.

    Attributes:
        tokens: training budget T.
        epoch_cap: how often a domain may be read within T: one number, or domain or pattern -> number. A name beats a
            pattern and a longer pattern a shorter; a domain that none means is not capped.
        floor: domain -> least weight.
        groups: pattern of names -> least and most weight of those domains together.
        licences: licence or pattern -> most weight of the domains under it together; `unknown` means domains that
            name none.
    """

    tokens: Annotated[Tokens, Field(gt=0)] | None = None
    epoch_cap: EpochCap | None = None
    floor: dict[str, Share] = Field(default_factory=dict)
    groups: dict[str, tuple[Share, Share]] = Field(default_factory=dict)
    licences: dict[str, Share] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _least_below_most(self) -> "Bounds":
        for pattern, (least, most) in self.groups.items():
            if least > most:
                raise ValueError(f"group {pattern!r} asks for at least {least:g} and at most {most:g}")
        return self

    def space(self, domains: Domains) -> Simplex:
        """The mixtures of `domains` that these bounds allow.

        Raises:
            RecipeError: a pattern means no domain.
            DataError: no mixture is allowed; the message says which bounds conflict, and by how much.
        """
        caps = self.epoch_caps(domains) if self.tokens else None
        return Simplex.of(domains, self.tokens, caps, self.floor, self._groups(domains))

    def epoch_caps(self, domains: Domains) -> dict[str, float]:
        """Domain -> how often it may be read; domains without a cap are left out.

        Raises:
            RecipeError: a pattern means no domain.
        """
        return caps_by_name(self.epoch_cap, domains.names)

    def _groups(self, domains: Domains) -> tuple[Group, ...]:
        groups = [
            Group(f"group {pattern!r}", _meant(pattern, {name: name for name in domains.names}, "groups"), *interval)
            for pattern, interval in sorted(self.groups.items())
        ]
        licences = {domain.name: domain.licence or UNKNOWN for domain in domains.domains}
        quotas = [
            Group(f"licence {pattern!r}", _meant(pattern, licences, "licences"), 0.0, most)
            for pattern, most in sorted(self.licences.items())
        ]
        return (*groups, *quotas)


def caps_by_name(epoch_cap: float | Mapping[str, float] | None, names: tuple[str, ...]) -> dict[str, float]:
    """Domain -> how often it may be read, from one number or from patterns; see `Bounds.epoch_cap`.

    Raises:
        RecipeError: a pattern means no domain.
    """
    if not isinstance(epoch_cap, Mapping):
        return {} if epoch_cap is None else dict.fromkeys(names, epoch_cap)
    caps: dict[str, float] = {}
    for pattern in sorted(epoch_cap, key=lambda key: (len(key), -epoch_cap[key], key)):
        caps |= dict.fromkeys(_meant(pattern, {name: name for name in names}, "epoch_cap"), epoch_cap[pattern])
    return caps | {name: epoch_cap[name] for name in names if name in epoch_cap}


def _meant(pattern: str, labels: Mapping[str, str], where: str) -> tuple[str, ...]:
    """The domains whose label (name or licence) a pattern means."""
    found = tuple(name for name, label in labels.items() if label == pattern or fnmatchcase(label, pattern))
    if not found:
        known = ", ".join(sorted(set(labels.values()))[:5])
        raise RecipeError(f"{where}: {pattern!r} means no domain; there are {known}{' ...' if len(labels) > 5 else ''}")
    return found
