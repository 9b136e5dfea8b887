"""Fields beside a text: what a user's record says of it, kept as metadata, such as a reference answer or a licence.

A document's metadata are words by name, of bounded size: a field is kept whole or not at all, since half a reference
would be a wrong one. Numbers, booleans and lists of strings are written as JSON. Rows (`kept_fields`) and columns
(`metadata_of`) follow the same rules, so that a record means the same in JSON Lines, Arrow and Parquet. Values that are
left out are counted by reason: `too_long`, `too_many` (fields of a record), `nested` (objects, vectors, dates, bytes:
what is neither words nor a number), `invalid_utf8`.
"""

import json
from collections import Counter
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
TOO_LONG, TOO_MANY, NESTED, TORN = "too_long", "too_many", "nested", "invalid_utf8"
MAP = pa.map_(pa.string(), pa.string())


def kept_fields(fields: Mapping[str, Any], known: Collection[str], lost: Counter[str] | None = None) -> dict[str, str]:
    """What a record's other fields become: those of an object `metadata`, then scalars and lists of strings.

    Args:
        fields: of the record.
        known: names of fields that are kept elsewhere (text, id, URL).
        lost: counts what is left out, by reason.
    """
    lost = Counter() if lost is None else lost
    inside = fields.get(METADATA)
    if isinstance(inside, list):  # an Arrow map
        inside = {str(pair[0]): pair[1] for pair in inside if isinstance(pair, tuple) and len(pair) == 2}
    found: dict[str, str] = {}
    if isinstance(inside, Mapping):
        _keep(found, inside, lost, nested=True)
        known = {*known, METADATA}
    _keep(found, {name: value for name, value in fields.items() if name not in known}, lost)
    return found


def _keep(found: dict[str, str], fields: Mapping[str, Any], lost: Counter[str], nested: bool = False) -> None:
    for name, value in fields.items():
        if value is None or name in found:
            continue
        words = _words(value, nested)
        if words is None or len(words) > MAX_CHARS or len(found) >= MAX_FIELDS:
            lost[NESTED if words is None else TOO_LONG if len(words) > MAX_CHARS else TOO_MANY] += 1
        else:
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


def metadata_of(table: pa.Table, known: Collection[str], lost: Counter[str] | None = None) -> pa.Array:
    """The same of the columns of a table: map (N,), null where nothing is kept.

    Args:
        table: whose `metadata`, if it has any, is no map.
        known: names of columns that are kept elsewhere.
        lost: counts what is left out, by reason.
    """
    lost = Counter() if lost is None else lost
    columns = dict(_columns(table, known, lost))
    if not columns or not table.num_rows:
        return pa.nulls(table.num_rows, MAP)
    words = pa.chunked_array([_words_of(column) for column in columns.values()], pa.string()).combine_chunks()
    if isinstance(words, pa.ChunkedArray):
        words = pa.concat_arrays(words.chunks)
    lost[TORN] += words.null_count - sum(column.null_count for column in columns.values())
    rows, width = table.num_rows, len(columns)
    words = words.take(pa.array(np.arange(rows * width).reshape(width, rows).T.ravel()))  # row by row
    short = pc.if_else(pc.less_equal(pc.utf8_length(words), MAX_CHARS), words, pa.scalar(None, pa.string()))
    lost[TOO_LONG] += short.null_count - words.null_count
    words = short
    there = pc.is_valid(words).to_numpy(zero_copy_only=False).reshape(rows, width)
    many = np.cumsum(there, axis=1) > MAX_FIELDS
    lost[TOO_MANY] += int((there & many).sum())
    there &= ~many
    names = pa.array(list(columns)).take(pa.array(np.tile(np.arange(width), rows)[there.ravel()]))
    counts = there.sum(axis=1)
    ends = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    offsets = pa.array(ends, mask=np.append(counts == 0, False))
    return pa.MapArray.from_arrays(offsets, names, words.filter(pa.array(there.ravel())))


def _columns(
    table: pa.Table, known: Collection[str], lost: Counter[str]
) -> Iterator[tuple[str, pa.ChunkedArray]]:  # fmt: skip
    """Columns that are kept; those inside `metadata` win over others of their name."""
    inside: list[str] = []
    if METADATA in table.column_names and pa.types.is_struct(kind := table[METADATA].type):
        for number in range(kind.num_fields):
            name, column = kind.field(number).name, pc.struct_field(table[METADATA], [number])
            inside.append(name)
            yield name, column
    for name, column in zip(table.column_names, table.columns, strict=True):
        if name in known or name in inside or (inside and name == METADATA):
            continue
        if _is_scalar(column.type):
            yield name, column
        else:
            lost[NESTED] += len(column) - column.null_count


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
