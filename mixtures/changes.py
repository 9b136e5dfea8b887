"""What became of a set of domains: kept, added, removed, split, merged, and which old runs still are evidence.

A run that read `web` read its parts `web/high` and `web/low` in proportion to their tokens, so it maps exactly onto the
split domains, and a merge is exact for runs that read the merged domains in that proportion. What cannot be mapped
exactly is left out and said. Where domains are described by their content (shares of clusters), all runs can be told in
clusters instead, whatever their domains are called. P runs, D domains, C clusters.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import Field

from mixtures.mixture import Domains, check_same_names
from mixtures.tables import Ratios
from pipelines.errors import DataError
from pipelines.recipe import Section

EXACT = 1e-4  # weights are written in four to six decimals: what two shares of one run may differ by


class Changes(Section):
    """How old domains became new ones; every name is in exactly one place on either side.

    Attributes:
        kept: same name, same content.
        added: new names without a past.
        removed: old names without a future.
        split: old name -> its parts.
        merged: new name -> what it was made of.
    """

    kept: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    split: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    merged: dict[str, tuple[str, ...]] = Field(default_factory=dict)

    @classmethod
    def between(
        cls, old: Sequence[str], new: Sequence[str], split: Mapping[str, Sequence[str]] | None = None,
        merged: Mapping[str, Sequence[str]] | None = None,
    ) -> "Changes":  # fmt: skip
        """Compare two sets of names.

        Args:
            old: names before.
            new: names after. `web/high` and `web/low` are parts of an old `web` that is no more; a new `web` that was
                not there is the merger of old names below it.
            split: old name -> parts, where names do not tell.
            merged: new name -> what it was made of, where names do not tell.

        Raises:
            DataError: a split or merger names what is not there, or a name twice.
        """
        split, merged = dict(split or {}), dict(merged or {})
        check_same_names("split", list(split), "the old domains", old, subset=True)
        check_same_names("merged", list(merged), "the new domains", new, subset=True)
        left_old = sorted(set(old) - set(split) - {part for parts in merged.values() for part in parts})
        left_new = sorted(set(new) - set(merged) - {part for parts in split.values() for part in parts})
        kept = tuple(name for name in left_old if name in left_new)
        left_old, left_new = ([name for name in names if name not in kept] for names in (left_old, left_new))
        for name in left_old:
            if parts := [each for each in left_new if each.startswith(f"{name}/")]:
                split[name] = parts
                left_new = [each for each in left_new if each not in parts]
        for name in left_new:
            if parts := [each for each in left_old if each.startswith(f"{name}/") and each not in split]:
                merged[name] = parts
        gone = {*split, *(part for parts in merged.values() for part in parts)}
        found = cls(
            kept=kept, added=tuple(name for name in left_new if name not in merged),
            removed=tuple(name for name in left_old if name not in gone),
            split={name: tuple(sorted(split[name])) for name in sorted(split)},
            merged={name: tuple(sorted(merged[name])) for name in sorted(merged)},
        )  # fmt: skip
        found._check("old", old, [*kept, *found.removed, *split, *(p for parts in merged.values() for p in parts)])
        found._check("new", new, [*kept, *found.added, *merged, *(p for parts in split.values() for p in parts)])
        return found

    @staticmethod
    def _check(side: str, names: Sequence[str], placed: Sequence[str]) -> None:
        check_same_names("the changes", placed, f"the {side} domains", names)
        if repeated := next((name for name in placed if placed.count(name) > 1), None):
            raise DataError(f"{side} domain {repeated!r} is split or merged twice")

    @property
    def changed(self) -> tuple[str, ...]:
        """New names whose weight must be found anew, sorted."""
        return tuple(sorted([*self.added, *self.merged, *(part for parts in self.split.values() for part in parts)]))

    def carried(self, weights: Mapping[str, float], domains: Domains) -> dict[str, float]:
        """An old mixture over the new domains: parts by their tokens, mergers added up, nothing for what is new.

        Args:
            weights: of the old mixture.
            domains: the new domains.

        Raises:
            DataError: all that the old mixture read was removed.
        """
        held = domains.unique_tokens
        found = dict.fromkeys(domains.names, 0.0) | {name: weights.get(name, 0.0) for name in self.kept}
        for name, parts in self.split.items():
            total = sum(held[part] for part in parts)
            found |= {part: weights.get(name, 0.0) * held[part] / total for part in parts}
        found |= {name: sum(weights.get(part, 0.0) for part in parts) for name, parts in self.merged.items()}
        total = sum(found.values())
        if total <= 0:
            raise DataError("nothing that the old mixture read is left among the new domains; design a new swarm")
        return {name: weight / total for name, weight in found.items()}

    def transferred(self, ratios: Ratios, domains: Domains, old_tokens: Mapping[str, int]) -> tuple[Ratios, list[str]]:
        """Old runs over the new domains, those that can be mapped exactly.

        A run that read a removed domain cannot, nor can one whose merged domains were not read in proportion to their
        tokens.

        Args:
            ratios: old runs, over the old domains.
            domains: the new domains.
            old_tokens: unique tokens of the merged domains before.

        Returns:
            The mapped runs, and the ids of those left out.

        Raises:
            DataError: the table's domains are not those before the change, or no run can be mapped.
        """
        before = [*self.kept, *self.removed, *self.split, *(p for parts in self.merged.values() for p in parts)]
        ratios = ratios.ordered(sorted(before), "the table of old runs", "the old domains")
        exact_P = self._exact(ratios, old_tokens)
        if not exact_P.any():
            raise DataError(
                "no old run can be mapped exactly onto the new domains: all read removed domains, or merged ones out "
                "of proportion"
            )
        rows = ratios.rows()
        kept = {run: self.carried(weights, domains) for (run, weights), good in zip(rows, exact_P, strict=True) if good}
        return Ratios.of(kept), [run for (run, _), good in zip(rows, exact_P, strict=True) if not good]

    def _exact(self, ratios: Ratios, old_tokens: Mapping[str, int]) -> np.ndarray:
        column = {name: ratios.weights_PD[:, place] for place, name in enumerate(ratios.domains)}
        exact_P = np.ones(len(ratios.ids), bool)
        for name in self.removed:
            exact_P &= column[name] <= EXACT
        for name, parts in self.merged.items():
            check_same_names(f"the parts of {name!r}", parts, "the old tokens", tuple(old_tokens), subset=True)
            share = np.array([old_tokens[part] for part in parts], float)
            read_PD = np.stack([column[part] for part in parts], axis=1)
            due_PD = read_PD.sum(axis=1, keepdims=True) * share / share.sum()
            exact_P &= (np.abs(read_PD - due_PD) <= EXACT).all(axis=1)
        return exact_P


def in_content(ratios: Ratios, content: Ratios) -> Ratios:
    """Mixtures told in clusters of content, so that runs over other domains become comparable.

    Args:
        ratios: mixtures over domains.
        content: one row for each domain, its id; columns are clusters, shares of the domain's tokens.

    Returns:
        The same runs; columns are clusters, sorted by name.

    Raises:
        DataError: a domain has no row.
    """
    check_same_names("the ratios table", ratios.domains, "the rows of the content table", content.ids, subset=True)
    content = content.ordered(sorted(content.domains))
    domains = sorted(ratios.domains)
    rows = [content.ids.index(name) for name in domains]
    weights_PC = ratios.ordered(domains).weights_PD @ content.weights_PD[rows]
    return Ratios(ratios.ids, content.domains, weights_PC / weights_PC.sum(axis=1, keepdims=True))
