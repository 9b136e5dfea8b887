"""Rejects of synthesis, published beside the samples: what was not accepted, with reason and stage.

They are a configuration of their own, never part of `all`. An answer that failed at an early stage never met the
screens of finished samples, so what is told of each reject is searched here: where it holds items of evaluation sets or
personal data, reason and stage are published, and what was said stays behind.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from filters.pii import SPANS, MaskPii, PiiSettings
from pipelines.block import BATCH_ROWS, ROW_GROUP_ROWS
from pipelines.decontaminate import DecontaminateSettings
from pipelines.document import table_of
from synth.contamination import Benchmarks
from synth.outputs import REJECTS

FOLDER, CONFIG = "rejects", "rejects"
PAIRS = pa.list_(pa.struct([("key", pa.string()), ("value", pa.string())]))  # a map is what `datasets` cannot load
PUBLISHED = pa.schema([pa.field("facts", PAIRS) if f.name == "facts" else f for f in REJECTS])


@dataclass(frozen=True)
class Rejects:
    """What was published of them.

    Attributes:
        rows: how many.
        counts: by reason and stage.
        withheld: how many without what was said: it holds items of evaluation sets, or personal data.
    """

    rows: int
    counts: Mapping[tuple[str, str], int]
    withheld: int


@dataclass(frozen=True)
class Against:
    """What excerpts are searched for, besides personal data.

    Attributes:
        benchmarks: evaluation sets.
        settings: what counts as holding an item.
    """

    benchmarks: Sequence[Path] = ()
    settings: DecontaminateSettings | None = None


def publish_rejects(files: Sequence[Path], work: Path, against: Against) -> Rejects | None:
    """Write `rejects/train-00000-of-00001.parquet`.

    Args:
        files: Parquet of `synth.outputs.REJECTS`.
        work: the publication.
        against: evaluation sets that no excerpt may hold.

    Returns:
        None where there are none; nothing is written then.
    """
    rows = sum(pq.read_metadata(file).num_rows for file in files)
    if not rows:
        return None
    target = work / FOLDER / "train-00000-of-00001.parquet"
    target.parent.mkdir(parents=True, exist_ok=True)
    counts: dict[tuple[str, str], int] = {}
    benchmarks, withheld = Benchmarks(against.benchmarks, work, against.settings), 0
    with pq.ParquetWriter(target, PUBLISHED, compression="zstd") as writer:
        for file in files:
            with pq.ParquetFile(file) as parquet:
                for batch in parquet.iter_batches(BATCH_ROWS):
                    table = pa.Table.from_batches([batch])
                    barred = _barred(table, benchmarks)
                    withheld += int(pc.sum(barred).as_py() or 0)
                    table = _published(table, barred)
                    for entry in table.group_by(["reason", "stage"]).aggregate([([], "count_all")]).to_pylist():
                        key = (entry["reason"], entry["stage"])
                        counts[key] = counts.get(key, 0) + entry["count_all"]
                    writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
    ordered = dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
    return Rejects(rows, ordered, withheld)


def _barred(table: pa.Table, benchmarks: Benchmarks) -> pa.Array:
    """Of which rejects nothing may be told: bool (N,)."""
    facts = table["facts"].to_pylist()
    told = ["\n\n".join([excerpt or "", *(value or "" for _, value in pairs or ())])
            for excerpt, pairs in zip(table["excerpt"].to_pylist(), facts, strict=True)]  # fmt: skip
    documents = table_of([{"id": str(number), "text": text} for number, text in enumerate(told)])
    spans = MaskPii(PiiSettings(action="tag")).apply(documents)[SPANS]
    personal = pc.greater(pc.fill_null(pc.list_value_length(spans), 0), 0).to_pylist()
    held = benchmarks.search(documents.select(["id", "text"]), CONFIG)
    quoted = pc.equal(table["reason"], "contaminated").to_pylist()
    return pa.array([one or two or str(n) in held for n, (one, two) in enumerate(zip(quoted, personal, strict=True))])


def _published(table: pa.Table, barred: pa.Array) -> pa.Table:
    told = pc.if_else(barred, "", table["excerpt"])
    facts = [
        [] if hidden else pairs for hidden, pairs in zip(barred.to_pylist(), table["facts"].to_pylist(), strict=True)
    ]
    table = table.set_column(table.schema.get_field_index("excerpt"), "excerpt", told)
    kept = pa.array(facts, table.schema.field("facts").type)
    return table.set_column(table.schema.get_field_index("facts"), "facts", kept.cast(PAIRS)).cast(PUBLISHED)
