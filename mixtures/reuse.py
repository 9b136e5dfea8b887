"""Mixture reuse: freeze what an old mixture says of the domains that did not change, and find only the rest anew.

All kept domains become ONE virtual domain whose inner proportions are the old mixture's, so a swarm has as many
dimensions as domains changed, plus one (olmix reports 74% less compute at 95% of the gain). Bounds are carried through:
the virtual domain's cap is that of its first member to run out, its floor that of its most demanding one; a group that
cannot be told over the virtual domain is an error, never dropped. P mixtures, D domains.
"""

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import numpy as np
from pydantic import Field

from mixtures.bounds import UNKNOWN, Bounds, caps_by_name
from mixtures.changes import Changes
from mixtures.design import DesignSettings, design_swarm
from mixtures.fitting import Fit, fit_laws
from mixtures.mixture import Domain, Domains, EpochCap, Mixture, check_same_names
from mixtures.proposal import Proposal
from mixtures.propose import ProposeSettings, propose
from mixtures.tables import Ratios
from pipelines.errors import DataError, RecipeError
from pipelines.recipe import Section

Bounded = TypeVar("Bounded", bound=Bounds)
VIRTUAL = "reused"
CARRIED = "carried"
EXACT = 1e-5  # weights are written in millionths


class ReuseSettings(Bounds):
    """What is frozen, and the bounds of the final run over the new domains.

    Attributes:
        free: kept domains or patterns that are found anew, too.
        split: old domain -> its parts, where names do not tell (`web` -> `web/high`, `web/low` they do).
        merged: new domain -> what it was made of, where names do not tell.
        design: how the swarm is drawn; its bounds are those given here.
        propose: what is minimised; its bounds are those given here.
    """

    free: tuple[str, ...] = ()
    split: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    merged: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    design: DesignSettings = DesignSettings()
    propose: ProposeSettings = ProposeSettings()


class Reuse(Section):
    """New domains seen through a frozen old mixture.

    Attributes:
        changes: between the old and the new domains.
        domains: the new ones.
        members: domain in the virtual one -> its share of it; they sum to 1.
        carried: the old mixture over the new domains, before anything is trained.
        bounds: over the virtual and the free domains.
        epoch_cap: over the new domains, as it was given; goes with the proposed mixture.
    """

    changes: Changes
    domains: Domains
    members: dict[str, float]
    carried: dict[str, float]
    bounds: Bounds
    epoch_cap: EpochCap | None = None

    @classmethod
    def of(cls, old: Mixture, domains: Domains, settings: ReuseSettings | None = None) -> "Reuse":
        """Freeze an old mixture.

        Args:
            old: the mixture to reuse.
            domains: the new domains.
            settings: what to free, and the bounds.

        Raises:
            DataError: nothing changed, nothing is left to freeze, or the bounds leave no room for the frozen part.
            RecipeError: a pattern means no domain, or a group spans frozen and free domains.
        """
        settings = settings or ReuseSettings()
        if VIRTUAL in domains.names:
            raise DataError(f"a domain is called {VIRTUAL!r}, which is the virtual domain's name; rename it")
        domains = domains.ordered(sorted(domains.names))
        changes = Changes.between(sorted(old.weights), domains.names, settings.split, settings.merged)
        carried = changes.carried(old.weights, domains)
        free = set(changes.changed) | set(_freed(settings.free, changes.kept))
        frozen = {name: carried[name] for name in changes.kept if name not in free}
        total = sum(frozen.values())
        if not free:
            raise DataError("no domain changed: the old mixture stands; `free` names kept domains to find anew")
        if total <= 0:
            raise DataError(
                "the old mixture gives no weight to any frozen domain; `loam mix design` draws a swarm over all"
            )
        members = {name: weight / total for name, weight in frozen.items()}
        return cls(changes=changes, domains=domains, members=members, carried=carried,
                   bounds=_over_virtual(settings, domains, members), epoch_cap=settings.epoch_cap)  # fmt: skip

    @property
    def free(self) -> tuple[str, ...]:
        """Domains whose weight is found anew, sorted."""
        return tuple(name for name in self.domains.names if name not in self.members)

    @property
    def virtual_domains(self) -> Domains:
        """The virtual domain, with the tokens of all its members, and the free ones."""
        held = self.domains.unique_tokens
        reused = Domain(name=VIRTUAL, unique_tokens=sum(held[name] for name in self.members), licence=VIRTUAL)
        own = (domain for domain in self.domains.domains if domain.name not in self.members)
        return Domains(domains=(reused, *own))

    def expand(self, ratios: Ratios) -> Ratios:
        """Mixtures over all domains: the virtual weight times each member's share, exactly."""
        rows = {run: self.expanded(weights) for run, weights in ratios.rows()}
        return Ratios.of(rows)

    def expanded(self, weights: Mapping[str, float]) -> dict[str, float]:
        """One mixture over all domains, from one over the virtual and the free."""
        check_same_names("the mixture", weights, "the virtual and free domains", (VIRTUAL, *self.free))
        return {name: weights[VIRTUAL] * self.members[name] if name in self.members else weights[name]
                for name in self.domains.names}  # fmt: skip

    def contract(self, ratios: Ratios) -> Ratios:
        """The reverse of `expand`.

        Raises:
            DataError: a run reads the frozen domains in other proportions than the old mixture.
        """
        ratios = ratios.ordered(self.domains.names)
        rows: dict[str, dict[str, float]] = {}
        for run, weights in ratios.rows():
            reused = sum(weights[name] for name in self.members)
            worst = max(abs(weights[name] - reused * share) for name, share in self.members.items())
            if worst > EXACT:
                raise DataError(
                    f"run {run!r} reads frozen domains in other proportions than the old mixture (by {worst:.2g}); fit "
                    "the runs of this reuse alone, or free the domains"
                )
            rows[run] = {VIRTUAL: reused, **{name: weights[name] for name in self.free}}
        return Ratios.of({run: _normal(weights) for run, weights in rows.items()})

    def design(self, runs: int, settings: DesignSettings | None = None) -> Ratios:
        """A swarm over the virtual and the free domains; its last row is the old mixture as it is carried over.

        Args:
            runs: how many, both anchors included.
            settings: how they are drawn; bounds are those of the reuse.

        Raises:
            DataError: fewer than two runs, or as for `design_swarm`.
        """
        if runs < 2:
            raise DataError(f"{runs} runs were asked for; expected at least 2: the prior and the old mixture")
        drawn = design_swarm(self.virtual_domains, runs - 1, _bounded(settings or DesignSettings(), self.bounds))
        space = self.bounds.space(self.virtual_domains)
        whole = {VIRTUAL: sum(self.carried[name] for name in self.members)}
        wanted_D = np.array([(whole | self.carried)[name] for name in space.names])
        carried_D = space.written(space.project(wanted_D[None])[0])
        table = Ratios((*drawn.ids, CARRIED), drawn.domains, np.concatenate([drawn.weights_PD, carried_D[None]]))
        return table.ordered((VIRTUAL, *self.free))

    def propose(self, fit: Fit, settings: ProposeSettings | None = None) -> tuple[Mixture, Proposal]:
        """The best mixture over all domains, and the case for it over the virtual and the free ones.

        Args:
            fit: of runs of this reuse, over the virtual or over all domains.
            settings: what is minimised; bounds are those of the reuse.

        Raises:
            DataError: the fit is over other domains or other mixtures.
        """
        if set(fit.domains) != {VIRTUAL, *self.free}:
            fit = fit_laws(self.contract(fit.ratios), fit.metrics, fit.settings)
        chosen = _bounded(settings or ProposeSettings(), self.bounds)
        proposal = propose(fit, self.virtual_domains, chosen)
        weights = self.expanded(proposal.mixture.weights)
        return proposal.mixture.model_copy(update={"weights": weights, "epoch_cap": self.epoch_cap}), proposal


def _bounded(settings: Bounded, bounds: Bounds) -> Bounded:
    return settings.model_copy(update={name: getattr(bounds, name) for name in Bounds.model_fields})


def _normal(weights: Mapping[str, float]) -> dict[str, float]:
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def _freed(patterns: Sequence[str], kept: Sequence[str]) -> Iterator[str]:
    for pattern in patterns:
        found = [name for name in kept if name == pattern or fnmatchcase(name, pattern)]
        if not found:
            raise RecipeError(f"free: {pattern!r} means no domain that was kept; there are {', '.join(kept[:5])}")
        yield from found


def _over_virtual(settings: ReuseSettings, domains: Domains, members: Mapping[str, float]) -> Bounds:
    """The bounds over the virtual and the free domains that say the same as those over all."""
    caps = caps_by_name(settings.epoch_cap, domains.names) if settings.tokens else {}
    held = domains.unique_tokens
    whole = sum(held[name] for name in members)
    check_same_names("the floor", settings.floor, "the domains", domains.names, subset=True)
    new_caps = {name: cap for name, cap in caps.items() if name not in members}
    if runs_out := [caps[name] * held[name] / share for name, share in members.items() if share > 0 and name in caps]:
        new_caps[VIRTUAL] = min(runs_out) / whole
    floors = {name: floor for name, floor in settings.floor.items() if name not in members}
    if needs := [_needed(name, floor, members) for name, floor in settings.floor.items() if name in members]:
        floors[VIRTUAL] = max(needs)
    labels = {name: name for name in domains.names}
    licences = {domain.name: domain.licence or UNKNOWN for domain in domains.domains}
    groups, on_groups = _groups("groups", settings.groups, labels, members)
    quotas, on_quotas = _groups("licences", {key: (0.0, most) for key, most in settings.licences.items()}, licences,
                                members)  # fmt: skip
    if limits := [*on_groups, *on_quotas]:
        least, most = max(limit[0] for limit in limits), min(limit[1] for limit in limits)
        if least > most:
            raise DataError(
                f"groups and licences ask the reused domains for at least {least:.4g} and at most {most:.4g}"
            )
        groups[VIRTUAL] = (least, most)
    return Bounds(tokens=settings.tokens, epoch_cap=new_caps or None, floor=floors, groups=groups,
                  licences={key: most for key, (_, most) in quotas.items()})  # fmt: skip


def _needed(name: str, floor: float, members: Mapping[str, float]) -> float:
    """The virtual weight at which a member has its floor."""
    if floor > members[name]:
        raise DataError(
            f"the floor of {name!r} is {floor:g}, but the reused mixture gives it {members[name]:.4g} of the frozen "
            "part at most: free it"
        )
    return floor / members[name] if floor else 0.0


def _groups(
    where: str, bounds: Mapping[str, tuple[float, float]], labels: Mapping[str, str], members: Mapping[str, float]
) -> tuple[dict[str, tuple[float, float]], list[tuple[float, float]]]:
    """Bounds on free domains as they are, and those on frozen ones as bounds of the virtual weight."""
    on_free: dict[str, tuple[float, float]] = {}
    on_virtual: list[tuple[float, float]] = []
    for key, (least, most) in bounds.items():
        meant = [name for name, label in labels.items() if label == key or fnmatchcase(label, key)]
        frozen = [name for name in meant if name in members]
        if not meant:
            raise RecipeError(f"{where}: {key!r} means no domain")
        if frozen and len(frozen) < len(meant):
            raise RecipeError(
                f"{where}: {key!r} spans frozen and free domains, which one weight cannot hold to a sum: add "
                f"{', '.join(map(repr, frozen[:3]))} to `free`"
            )
        if not frozen:
            on_free[key] = (least, most)
            continue
        share = sum(members[name] for name in frozen)
        if least > share:
            raise DataError(f"{where}: {key!r} asks for at least {least:g}, the frozen mixture has {share:.4g} of it")
        on_virtual.append((least / share if least else 0.0, min(1.0, most / share) if share else 1.0))
    return on_free, on_virtual


def report_of(reuse: Reuse) -> dict[str, Any]:
    """What was frozen and what is free, as JSON values."""
    return {
        "changes": reuse.changes.model_dump(mode="json"), "frozen": reuse.members, "free": list(reuse.free),
        "dimensions": {"all": len(reuse.domains) - 1, "virtual": len(reuse.free)}, "carried": reuse.carried,
        "bounds": reuse.bounds.model_dump(mode="json"),
    }  # fmt: skip
