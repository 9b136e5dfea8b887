"""Fields beside a text: what a user's record says of it, kept as metadata, such as a reference answer or a licence.

A document's metadata are words by name, of bounded size: a field is kept whole or not at all, since half a reference
would be a wrong one. Numbers, booleans and lists of strings are written as JSON. Rows (`kept_fields`) and columns
(`metadata_of`) follow the same rules, so that a record means the same in JSON Lines, Arrow and Parquet.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

MAX_FIELDS = 64
"""Fields of a record that are kept, the first ones."""
MAX_CHARS = 65_536
"""Characters of a value that is kept."""
METADATA = "metadata"
MAP = pa.map_(pa.string(), pa.string())


def kept_fields(fields: Mapping[str, Any], known: Collection[str]) -> dict[str, str]:
    """What a record's other fields become: those of an object `metadata`, then scalars and lists of strings.

    Args:
        fields: of the record.
        known: names of fields that are kept elsewhere (text, id, URL).
    """
    inside = fields.get(METADATA)
    if isinstance(inside, list):  # an Arrow map
        inside = {str(pair[0]): pair[1] for pair in inside if isinstance(pair, tuple) and len(pair) == 2}
    found: dict[str, str] = {}
    if isinstance(inside, Mapping):
        _keep(found, ((name, _words(value, nested=True)) for name, value in inside.items()))
        known = {*known, METADATA}
    _keep(found, ((name, _words(value)) for name, value in fields.items() if name not in known))
    return found


def _keep(found: dict[str, str], fields: Iterator[tuple[str, str | None]]) -> None:
    for name, words in fields:
        if words is not None and len(words) <= MAX_CHARS and name not in found and len(found) < MAX_FIELDS:
            found[_whole(name)] = _whole(words)


def _words(value: Any, nested: bool = False) -> str | None:
    """A value as words; None for one that is not kept. What is nested counts only where the user calls it metadata."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, (bool, int, float)) or (isinstance(value, list) and all(isinstance(v, str) for v in value)):
        return json.dumps(value, ensure_ascii=False)
    return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str) if nested else None


def _whole(words: str) -> str:
    """Words without half a surrogate pair, which no file can hold."""
    return words if words.isascii() else words.encode(errors="replace").decode()


def metadata_of(table: pa.Table, known: Collection[str]) -> pa.Array:
    """The same of the columns of a table: map (N,), null where nothing is kept.

    Args:
        table: whose `metadata`, if it has any, is no map.
        known: names of columns that are kept elsewhere.
    """
    columns = dict(_columns(table, known))
    if not columns or not table.num_rows:
        return pa.nulls(table.num_rows, MAP)
    words = pa.chunked_array([_words_of(column) for column in columns.values()], pa.string()).combine_chunks()
    if isinstance(words, pa.ChunkedArray):
        words = pa.concat_arrays(words.chunks)
    rows, width = table.num_rows, len(columns)
    words = words.take(pa.array(np.arange(rows * width).reshape(width, rows).T.ravel()))  # row by row
    words = pc.if_else(pc.less_equal(pc.utf8_length(words), MAX_CHARS), words, pa.scalar(None, pa.string()))
    there = pc.is_valid(words).to_numpy(zero_copy_only=False).reshape(rows, width)
    there &= np.cumsum(there, axis=1) <= MAX_FIELDS
    names = pa.array(list(columns)).take(pa.array(np.tile(np.arange(width), rows)[there.ravel()]))
    counts = there.sum(axis=1)
    ends = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    offsets = pa.array(ends, mask=np.append(counts == 0, False))
    return pa.MapArray.from_arrays(offsets, names, words.filter(pa.array(there.ravel())))


def _columns(table: pa.Table, known: Collection[str]) -> Iterator[tuple[str, pa.ChunkedArray]]:
    """Columns that are kept; those inside `metadata` win over others of their name."""
    inside: list[str] = []
    if METADATA in table.column_names and pa.types.is_struct(kind := table[METADATA].type):
        for number in range(kind.num_fields):
            name, column = kind.field(number).name, pc.struct_field(table[METADATA], [number])
            inside.append(name)
            yield name, column
    for name, column in zip(table.column_names, table.columns, strict=True):
        is_kept = name not in known and name not in inside and _is_scalar(column.type)
        if is_kept:
            yield name, column


def _is_scalar(kind: pa.DataType) -> bool:
    types = pa.types
    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_list(kind) or types.is_large_list(kind):
        return _is_string(kind.value_type)
    return _is_string(kind) or types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)


def _is_string(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _words_of(column: pa.ChunkedArray) -> pa.Array:
    """A column as `_words` writes its values; Python's own for all but strings and whole numbers."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if _is_string(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        column = column.cast(pa.string())
        return pa.concat_arrays([_sound(chunk) for chunk in column.chunks]) if column.num_chunks else _sound([])
    try:
        return _sound([_words(value, nested=True) for value in column.to_pylist()])
    except UnicodeDecodeError:
        return pa.nulls(len(column), pa.string())


def _sound(words: Any) -> pa.Array:
    """Strings, with null where bytes are no UTF-8, which Arrow takes on trust."""
    words = pa.array(words, pa.string()) if isinstance(words, list) else words
    try:
        words.validate(full=True)
    except pa.ArrowInvalid:
        raw = words.cast(pa.binary()).to_pylist()
        sound = [value is not None and value.decode(errors="ignore").encode() == value for value in raw]
        words = pc.if_else(pa.array(sound), words, pa.scalar(None, pa.string()))
    return words
