"""Stored values: rule values of an earlier filter, put back beside the documents that they belong to.

The one choice that matters: the attributes of an input file are expected where the filter wrote them, row by row; only
when ids do not agree there (other files, other order) are all attribute files searched. Source: own.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.block import Block
from pipelines.document import with_column
from pipelines.errors import DataError


class StoredValues(Block):
    """Add columns of attribute files to the documents with the same ids.

    Args:
        files: attribute files.
        parts: path of each task's input below a fate's folder, without suffix.
        columns: to add.

    Raises:
        DataError: no file has one of the columns.
    """

    name = "stored values"

    def __init__(self, files: Sequence[Path], parts: Sequence[str], columns: Sequence[str]) -> None:
        super().__init__()
        self.files = [str(file) for file in files]
        self.parts = list(parts)
        self.columns = list(columns)
        have = {name for file in files for name in pq.read_schema(file).names}
        if missing := [name for name in columns if name not in have]:
            stored = sorted({name.split(".")[0] for name in have if "." in name} - {"filter"})
            raise DataError(
                f"the attributes hold no {missing[0]}; they hold the rules of {', '.join(stored) or 'no rule set'}: "
                "filter without --from-attributes to measure others"
            )

    def run(self, data: Iterable[pa.Table], rank: int = 0, world_size: int = 1) -> Iterator[pa.Table]:
        """Add the columns to each batch."""
        own = [file for file in self.files if file.endswith(f"/{self.parts[rank]}.parquet")]
        self._here = self._read(own[:1])
        self._everywhere: pa.Table | None = None
        self._seen = 0
        yield from super().run(data, rank, world_size)

    def apply(self, batch: pa.Table) -> pa.Table:
        """Look up a batch."""
        ids = batch["id"].combine_chunks()
        stored = self._here.slice(self._seen, batch.num_rows)
        self._seen += batch.num_rows
        if not stored["id"].combine_chunks().equals(ids):
            stored = self._search(ids)
        for name in self.columns:
            batch = with_column(batch, name, stored[name])
        return batch

    def _search(self, ids: pa.Array) -> pa.Table:
        everywhere = self._everywhere = self._everywhere if self._everywhere is not None else self._read(self.files)
        rows = pc.index_in(ids, everywhere["id"].combine_chunks())
        if rows.null_count:
            missing = ids[pc.index(pc.is_null(rows), True).as_py()].as_py()
            raise DataError(f"no attributes of document {missing!r}; filter without --from-attributes to measure it")
        return everywhere.take(rows)

    def _read(self, files: Sequence[str]) -> pa.Table:
        tables = []
        for file in files:
            names = set(pq.read_schema(file).names)
            table = pq.read_table(file, columns=["id", *(name for name in self.columns if name in names)])
            for name in self.columns:
                if name not in names:
                    table = table.append_column(name, pa.nulls(table.num_rows, pa.float64()))
            tables.append(table.select(["id", *self.columns]).combine_chunks())
        return pa.concat_tables(tables) if tables else pa.table({"id": pa.array([], pa.string())})
