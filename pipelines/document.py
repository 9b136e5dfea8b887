"""The Document: one text with id, scores and the place that it came from.

On disk and between blocks documents travel as Arrow tables with one schema, so that every block is columnar.
datatrove's `Document` is the form that raw readers yield; `table_of` turns those into a table.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datatrove.data import Document

from pipelines.errors import DataError
from pipelines.extra_fields import MAP, METADATA, metadata_of

SCORES = pa.struct(
    [
        ("language", pa.float64()),  # confidence of the language label, 0..1
        ("quality", pa.float64()),  # probability of the high-quality class, 0..1
        ("sum_nll_nats", pa.float64()),  # -sum log p over the scored tokens; null when unscored
        ("scored_tokens", pa.int64()),
        ("scored_bytes", pa.int64()),  # UTF-8 bytes of the scored part
    ]
)
ORIGIN = pa.struct(
    [
        ("file", pa.string()),  # path of the raw file, relative to its source's root
        ("member", pa.string()),  # name inside an archive, else null
        ("offset", pa.int64()),  # byte offset of the record in the (decompressed, unless WARC) file
        ("row", pa.int64()),  # row or line number, else null
        ("length", pa.int64()),  # bytes of the record
        ("sha256", pa.string()),  # of those bytes: what `loam trace` checks
    ]
)
SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        ("url", pa.string()),
        ("source", pa.string()),
        ("domain", pa.string()),
        ("language", pa.string()),  # ISO 639-3
        ("scores", SCORES),
        (METADATA, MAP),
        ("origin", ORIGIN),
    ]
)
FATE, REASON = "fate", "reason"
DROPPED, REJECTED = "dropped", "rejected"
STREAM = pa.schema([*SCHEMA, (FATE, pa.string()), (REASON, pa.string())])
"""What flows between blocks: a document, and what became of it (null fate: still alive)."""
LICENCE_KEYS = ("licence", "license")
"""Keys of the metadata under which a source states its licence; the first one that says something counts."""
COLUMNS = frozenset(STREAM.names) - {METADATA}
LABELS = ("source", "domain", "language")
"""Columns that a record's fields of the same names fill, where they are words."""


def conform(
    table: pa.Table, schema: pa.Schema = SCHEMA, file: str | Path | None = None, lost: Counter[str] | None = None
) -> pa.Table:
    """Bring a table to the document schema: missing columns become null.

    Of a table without a map `metadata`, which no step of Loam wrote, other columns become that (`extra_fields`); of
    one with it they stay behind. No file says what becomes of a document here: `fate` and `reason` begin as null. A
    user's column that has a name of ours, `scores` or `origin`, and is of another kind is one of the others.

    Args:
        table: with `id` and `text`.
        schema: of documents, kept or in a stream.
        file: that the table is from, for the message.
        lost: counts values of other columns that are left out, by reason.

    Raises:
        DataError: `id` or `text` is missing or no text; or a column of a table of Loam's is of another kind.
    """
    where = f"{file}: " if file else ""
    for name in ("id", "text"):
        if name not in table.column_names:
            found = ", ".join(table.column_names)
            raise DataError(f"{where}documents need a column {name!r}; found: {found}; a verb is told which field is "
                            "the text by --text '{field}'")  # fmt: skip
    is_ours = METADATA in table.column_names and pa.types.is_map(table[METADATA].type)
    known = {name for name in COLUMNS - {FATE, REASON} if name in table.column_names}
    columns: dict[str, Any] = {}
    for field in schema:
        if field.name in known or (field.name == METADATA and is_ours):
            try:
                columns[field.name] = _cast(table[field.name], field.type)
                continue
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                if is_ours or field.name in ("id", "text"):
                    raise DataError(f"{where}column {field.name!r} cannot be read as {field.type}: {error}") from None
                known.remove(field.name)
        columns[field.name] = pa.nulls(table.num_rows, field.type)
    if not is_ours and METADATA in columns:
        columns[METADATA] = metadata_of(table, known, lost)
    return pa.table([columns[field.name] for field in schema], schema=schema)


def _cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    if column.type.equals(kind):
        return column
    if pa.types.is_struct(kind) and pa.types.is_struct(column.type):
        have = {column.type.field(i).name for i in range(column.type.num_fields)}
        parts = [
            _cast(pc.struct_field(column, [f.name]), f.type).combine_chunks()
            if f.name in have else pa.nulls(len(column), f.type) for f in kind
        ]  # fmt: skip
        return pa.chunked_array([pa.StructArray.from_arrays(parts, fields=list(kind))])
    return column.cast(kind)


def reject_nulls(table: pa.Table, name: str, row: int = 0) -> pa.Table:
    """Reject rows of a stream without text (`no_text`) or without id (`no_id`): no document may have a null there.

    Bytes that are no UTF-8, which Arrow takes on trust, count as nothing: `invalid_utf8`.

    Args:
        table: as `conform` makes it.
        name: of the file, for the ids of rows that have none: `name/row`.
        row: number of the first row in the file.
    """
    torn = pa.scalar(False)
    for column in ("id", "text"):
        if not _is_utf8(table[column]):
            values, bad = _without_torn(table[column])
            table, torn = with_column(table, column, values), pc.or_(torn, bad)
    no_text, no_id = pc.is_null(table["text"]), pc.is_null(table["id"])
    if table["id"].null_count:
        places = pa.array([f"{name}/{number}" for number in range(row, row + table.num_rows)], pa.string())
        table = with_column(table, "id", pc.if_else(no_id, places, table["id"]))
    table = with_column(table, "text", pc.fill_null(table["text"], ""))
    reasons = pc.if_else(no_text, "no_text", pc.if_else(no_id, "no_id", pa.scalar(None, pa.string())))
    return with_fate(table, REJECTED, pc.if_else(torn, "invalid_utf8", reasons))


def _is_utf8(column: pa.ChunkedArray) -> bool:
    """Whether all strings of a column are what Arrow takes them for."""
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _without_torn(column: pa.ChunkedArray) -> tuple[pa.Array, pa.Array]:
    """A column with null where bytes are no UTF-8, and where that is."""
    values = []
    for raw in column.cast(pa.binary()).to_pylist():
        try:
            values.append(None if raw is None else raw.decode())
        except UnicodeDecodeError:
            values.append(False)
    bad = [value is False for value in values]
    return pa.array([None if value is False else value for value in values], pa.string()), pa.array(bad)


def table_of(documents: Iterable[Document | Mapping[str, Any]]) -> pa.Table:
    """Build a stream table from datatrove documents or from plain mappings.

    Keys of a datatrove document's `metadata` that name a column fill it; the others go to `metadata` as strings.
    """
    rows = list(documents)
    if rows and all(isinstance(row, Document) for row in rows):
        return _table_of_documents(rows)
    return pa.Table.from_pylist(rows, schema=STREAM)


def _table_of_documents(documents: Sequence[Any]) -> pa.Table:
    """Column by column: five times the speed of `from_pylist`, which sorts every value of every row into its place."""
    metas = [document.metadata for document in documents]
    columns = {"id": [document.id for document in documents], "text": [document.text for document in documents]}
    arrays, none = [], []  # one empty list for all, since the collector looks at each
    for field in STREAM:
        if field.name == "metadata":
            extras = [none if meta.keys() <= COLUMNS else _extras(meta) for meta in metas]
            arrays.append(pa.array(extras, field.type))
        elif pa.types.is_struct(field.type):
            arrays.append(_struct_of([meta.get(field.name) for meta in metas], field.type))
        else:
            values = columns.get(field.name) or [meta.get(field.name) for meta in metas]
            arrays.append(pa.array(values, field.type))
    return pa.table(arrays, schema=STREAM)


def _extras(meta: Mapping[str, Any]) -> list[tuple[str, str]]:
    rest = kept if isinstance(kept := meta.get(METADATA), Mapping) else {}
    own = {key: str(value) for key, value in meta.items()
           if key not in COLUMNS and value is not None and value is not rest}  # fmt: skip
    return list({**rest, **own}.items())


def _struct_of(values: Sequence[Mapping[str, Any] | None], kind: pa.StructType) -> pa.Array:
    missing = pa.array([value is None for value in values])
    if missing.true_count == len(values):
        return pa.nulls(len(values), kind)
    parts = [pa.array([value and value.get(field.name) for value in values], field.type) for field in kind]
    return pa.StructArray.from_arrays(parts, fields=list(kind), mask=missing)


def stated_licences(metadata: pa.Array) -> pa.Array:
    """What sources state: string (N,), `licence` or `license` of the metadata, null where there is neither."""
    found = pa.nulls(len(metadata), pa.string())
    for key in LICENCE_KEYS:
        value = pc.map_lookup(metadata, pa.scalar(key), "first")
        blank = pc.equal(pc.utf8_trim_whitespace(value), "")
        found = pc.coalesce(found, pc.if_else(blank, pa.scalar(None, pa.string()), value))
    return found


def with_column(table: pa.Table, name: str, values: pa.Array | pa.ChunkedArray) -> pa.Table:
    """Replace a column, or add it at the end (an added column is an attribute, kept beside the documents)."""
    index = table.schema.get_field_index(name)
    if index < 0:
        return table.append_column(name, values)
    return table.set_column(index, table.schema.field(index), values)


def with_scores(table: pa.Table, **scores: pa.Array) -> pa.Table:
    """Set fields of the `scores` struct, keeping the others."""
    column = table["scores"].combine_chunks()
    parts = [scores.get(field.name, pc.struct_field(column, [field.name])) for field in SCORES]
    parts = [part.cast(field.type) for part, field in zip(parts, SCORES, strict=True)]
    return with_column(table, "scores", pa.StructArray.from_arrays(parts, fields=list(SCORES)))


def with_fate(table: pa.Table, fate: str, reasons: pa.Array | pa.ChunkedArray) -> pa.Table:
    """Mark rows whose reason is not null as dropped or rejected; rows marked before keep their mark."""
    if isinstance(reasons, pa.ChunkedArray):
        reasons = reasons.combine_chunks()
    alive = pc.is_null(table[FATE])
    marked = pc.and_(alive, pc.is_valid(reasons))
    fates = pc.if_else(marked, pa.scalar(fate), table[FATE])
    return with_column(with_column(table, FATE, fates), REASON, pc.if_else(marked, reasons, table[REASON]))
