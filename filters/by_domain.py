"""Settings per domain: one set for all documents, or a mapping from domain to set with `*` for the rest.

The one choice that matters: a document belongs to the settings of its own name or of the nearest parent
(`reference/high` finds `reference`), so that recipes name domains once. Source: own.
"""

from collections.abc import Mapping
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import RecipeError
from pipelines.recipe import Section

AnySettings = TypeVar("AnySettings", bound=Section)
REST = "*"


def settings_for(domain: str | None, settings: AnySettings | Mapping[str, AnySettings]) -> AnySettings:
    """The settings of a domain.

    Raises:
        RecipeError: a mapping has neither the domain, nor a parent of it, nor `*`.
    """
    if isinstance(settings, Section):
        return settings
    parts = (domain or "").split("/")
    for size in range(len(parts), 0, -1):
        if (found := settings.get("/".join(parts[:size]))) is not None:
            return found
    if REST in settings:
        return settings[REST]
    raise RecipeError(
        f"no settings for domain {domain!r}: add it or {REST!r}; there are: {', '.join(sorted(settings))}"
    )


def distinct(settings: AnySettings | Mapping[str, AnySettings]) -> list[AnySettings]:
    """Every settings object once, in the order of the mapping."""
    if isinstance(settings, Section):
        return [settings]
    found: list[AnySettings] = []
    for one in settings.values():
        if one not in found:
            found.append(one)
    return found


def split_by_settings(
    batch: pa.Table, settings: AnySettings | Mapping[str, AnySettings]
) -> list[tuple[AnySettings, pa.Array]]:
    """Which rows of a batch fall under which settings.

    Returns:
        pairs of settings and int64 row numbers; every row is in exactly one pair.
    """
    if isinstance(settings, Section):
        return [(settings, pa.array(range(batch.num_rows), pa.int64()))]
    domains = batch["domain"].combine_chunks()
    pairs: list[tuple[AnySettings, pa.Array]] = []
    for domain in pc.unique(domains).to_pylist():
        same = pc.is_null(domains) if domain is None else pc.equal(domains, domain)
        rows = pc.indices_nonzero(pc.fill_null(same, False)).cast(pa.int64())
        pairs.append((settings_for(domain, settings), rows))
    return pairs
