"""Rejects of synthesis, published beside the samples: what was not accepted, with reason and stage.

They are a configuration of their own, never part of `all`. What a screen quoted of an evaluation set stays behind: a
corpus that publishes its rejects must not spread benchmarks by them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.block import BATCH_ROWS, ROW_GROUP_ROWS
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
    """

    rows: int
    counts: Mapping[tuple[str, str], int]


def publish_rejects(files: Sequence[Path], work: Path) -> Rejects | None:
    """Write `rejects/train-00000-of-00001.parquet`.

    Args:
        files: Parquet of `synth.outputs.REJECTS`.
        work: the publication.

    Returns:
        None where there are none; nothing is written then.
    """
    rows = sum(pq.read_metadata(file).num_rows for file in files)
    if not rows:
        return None
    target = work / FOLDER / "train-00000-of-00001.parquet"
    target.parent.mkdir(parents=True, exist_ok=True)
    counts: dict[tuple[str, str], int] = {}
    with pq.ParquetWriter(target, PUBLISHED, compression="zstd") as writer:
        for file in files:
            with pq.ParquetFile(file) as parquet:
                for batch in parquet.iter_batches(BATCH_ROWS):
                    table = _published(pa.Table.from_batches([batch]))
                    for entry in table.group_by(["reason", "stage"]).aggregate([([], "count_all")]).to_pylist():
                        key = (entry["reason"], entry["stage"])
                        counts[key] = counts.get(key, 0) + entry["count_all"]
                    writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
    return Rejects(rows, dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))))


def _published(table: pa.Table) -> pa.Table:
    told = pc.if_else(pc.equal(table["reason"], "contaminated"), "", table["excerpt"])
    table = table.set_column(table.schema.get_field_index("excerpt"), "excerpt", told)
    return table.set_column(table.schema.get_field_index("facts"), "facts", table["facts"].cast(PAIRS)).cast(PUBLISHED)
