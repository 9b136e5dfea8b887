"""Under which terms published text is: what each document's metadata say, and what passages that it quotes say.

A document's own licence comes before the one that the recipe states of its source, since one source may hold many. A
sample of `cot_rag` holds passages of other documents, whose sources and licences count beside those of the sample.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.document import stated_licences

Terms = tuple[str, str]
"""Source and licence; empty where not stated."""


def count_terms(table: pa.Table, licences: dict[Terms, int], passages: dict[Terms, int]) -> None:
    """Add the documents of a table, and the passages in them, to counts.

    Args:
        table: with `source`, and `metadata` as a list of pairs.
        licences: documents by terms.
        passages: the same of passages.
    """
    lists = table["metadata"].combine_chunks()
    metadata = pa.MapArray.from_arrays(lists.offsets, lists.values.field("key"), lists.values.field("value"))
    stated = pc.fill_null(stated_licences(metadata), "")
    pairs = pa.table({"source": pc.fill_null(table["source"], ""), "licence": stated})
    for row in pairs.group_by(["source", "licence"]).aggregate([([], "count_all")]).to_pylist():
        terms = (row["source"], row["licence"])
        licences[terms] = licences.get(terms, 0) + row["count_all"]
    quoted = pc.drop_null(pc.map_lookup(metadata, pa.scalar("passages"), "first"))
    for passage in _passages(quoted.to_pylist()):
        terms = (passage.get("source") or "", passage.get("licence") or "")
        passages[terms] = passages.get(terms, 0) + 1


def _passages(values: Iterable[str]) -> Iterator[Mapping[str, Any]]:
    """Passages that metadata list; what is no such list is somebody else's."""
    for value in values:
        try:
            listed = json.loads(value)
        except ValueError:
            continue
        yield from (one for one in listed if isinstance(one, dict)) if isinstance(listed, list) else ()
