"""The Block: a columnar transformation of a stream of documents, run by datatrove's executors.

A block is a datatrove `PipelineStep` whose stream is Arrow tables (`document.STREAM`) instead of single documents. It
never removes a row: it marks it (`with_fate`), so that the writer at the end knows what became of every document.
"""

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datatrove.pipeline.base import PipelineStep

from pipelines.document import DROPPED, FATE, REASON, REJECTED, SCHEMA, STREAM, conform
from pipelines.errors import DataError
from pipelines.files import write_atomically

BATCH_ROWS, BATCH_BYTES = 1024, 32 << 20
ROW_GROUP_ROWS = 10_000
ROW_GROUP_BYTES = 64 << 20  # whole books are megabytes each: rows alone would not bound the memory


class Block(PipelineStep):
    """Base of blocks that transform documents: override `apply`."""

    type = "block"

    def run(self, data: Iterable[pa.Table], rank: int = 0, world_size: int = 1) -> Iterator[pa.Table]:
        """Pass live rows of each batch through `apply`; rows already dropped or rejected go past it."""
        for batch in data:
            alive = pc.is_null(batch[FATE])
            live, done = batch.filter(alive), batch.filter(pc.invert(alive))
            changed = self.apply(live)  # also when nothing lives: every batch gets the same columns
            yield pa.concat_tables([changed, done], promote_options="default") if done.num_rows else changed

    @abstractmethod
    def apply(self, batch: pa.Table) -> pa.Table:
        """Return the batch with columns changed, added (attributes) or rows marked; never with rows removed.

        The batch may be empty; the result has the same columns all the same.
        """


class ReadDocuments(PipelineStep):
    """Source of a pipeline over Parquet documents: rank r reads file r.

    Args:
        files: one Parquet file per task.
    """

    type = "reader"
    name = "documents"

    def __init__(self, files: list[str]) -> None:
        super().__init__()
        self.files = files

    def run(self, data: object = None, rank: int = 0, world_size: int = 1) -> Iterator[pa.Table]:
        """Yield stream tables of at most `BATCH_ROWS` rows, fewer where rows are large."""
        try:
            with pq.ParquetFile(self.files[rank]) as file:
                for batch in file.iter_batches(_rows_of_batch(file.metadata)):
                    yield conform(pa.Table.from_batches([batch]), STREAM, self.files[rank])
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{self.files[rank]} is not readable Parquet: {error}") from None


def _rows_of_batch(metadata: Any) -> int:
    """Rows that hold about `BATCH_BYTES`, by the file's own average."""
    size = sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))
    return max(1, min(BATCH_ROWS, BATCH_BYTES * max(1, metadata.num_rows) // max(1, size)))


class WriteDocuments(PipelineStep):
    """End of a pipeline: one Parquet file per task for each fate.

    Writes `<kept>/<part>.parquet` always (even empty, so that the list of shards depends on nothing but the input), and
    when they have rows: `dropped/<part>.parquet` (documents and reason), `rejects/<part>.parquet` (id, reason, origin),
    `attributes/<part>.parquet` (id and every column that a block added). Files appear whole, by rename.

    Args:
        out: folder to write into.
        parts: path of each task's files below the fate, without suffix: `web_en/part-00000`.
        kept: name of the folder for documents that live.
    """

    type = "writer"
    name = "documents"

    def __init__(self, out: str, parts: list[str], kept: str = "kept") -> None:
        super().__init__()
        self.out = out
        self.parts = parts
        self.kept = kept

    def run(self, data: Iterable[pa.Table], rank: int = 0, world_size: int = 1) -> None:
        """Consume the stream."""
        part = f"{self.parts[rank]}.parquet"
        files = {
            self.kept: _PartFile(Path(self.out) / self.kept / part, SCHEMA),
            "dropped": _PartFile(Path(self.out) / "dropped" / part),
            "rejects": _PartFile(Path(self.out) / "rejects" / part),
            "attributes": _PartFile(Path(self.out) / "attributes" / part),
        }
        seen = 0
        for batch in data:
            fate = batch[FATE]
            files[self.kept].append(batch.filter(pc.is_null(fate)).select(SCHEMA.names))
            files["dropped"].append(batch.filter(pc.equal(fate, DROPPED)).select([*SCHEMA.names, REASON]))
            files["rejects"].append(batch.filter(pc.equal(fate, REJECTED)).select(["id", REASON, "source", "origin"]))
            if added := [name for name in batch.column_names if name not in STREAM.names]:
                files["attributes"].append(batch.select(["id", *added]))
            seen += batch.num_rows
            write_atomically(Path(self.out) / ".scratch" / "progress" / str(rank), str(seen).encode())
        for file in files.values():
            file.close()


class _PartFile:
    """A Parquet file written in row groups under a temporary name; without a schema it exists only if it gets rows."""

    def __init__(self, path: Path, schema: pa.Schema | None = None) -> None:
        self.path = path
        self.temporary = path.with_name(f".{path.name}.tmp")
        self.writer: pq.ParquetWriter | None = None
        self.pending: list[pa.Table] = []
        if schema is not None:
            self._open(schema)

    def append(self, table: pa.Table) -> None:
        if not table.num_rows:
            return
        self.pending.append(table)
        rows, size = sum(t.num_rows for t in self.pending), sum(t.nbytes for t in self.pending)
        if rows >= ROW_GROUP_ROWS or size >= ROW_GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        self._flush()
        if self.writer is not None:
            self.writer.close()
            self.temporary.replace(self.path)

    def _flush(self) -> None:
        if not self.pending:
            return
        table = pa.concat_tables(self.pending, promote_options="default").combine_chunks()
        self.pending = []
        if self.writer is None:
            self._open(table.schema)
        assert self.writer is not None
        self.writer.write_table(table.cast(self.writer.schema), row_group_size=ROW_GROUP_ROWS)

    def _open(self, schema: pa.Schema) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.temporary.unlink(missing_ok=True)  # a writer that failed in this process may hold it, and end it late
        self.writer = pq.ParquetWriter(self.temporary, schema, compression="zstd")
