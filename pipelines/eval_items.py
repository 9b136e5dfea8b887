"""The texts of evaluation sets, from local files in whatever shape they are published.

JSON Lines, JSON, Parquet, Arrow, CSV with and without a header, and plain text, packed or in zip and tar archives; an
item's texts are found by the usual names of fields at any depth. The one choice that matters: a field is taken because
of its name, never because it is long: a licence that every item repeats would "contaminate" half the web.
"""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq

from pipelines.archives import STREAM_ERRORS, members_of
from pipelines.errors import DataError

ITEMS = pa.schema([("benchmark", pa.string()), ("item", pa.string()), ("field", pa.string()), ("text", pa.string())])
INDEX_MARK = {b"loam": b"evaluation items"}
# Around the text of an item, and not part of it
LABELS = re.compile(r"\A\s*(?:question|q|问题|问)[:：]|\b(?:answer|a|答案|答)[:：]\s*\Z", re.IGNORECASE)
_QUESTION_NAMES = """
question query problem prompt input instruction context passage article story sentence premise hypothesis text content
body goal ctx ctx_a ctx_b stem statement informal_statement formal_statement claim document paragraph question_text
question_stem input_text original_question problem_statement sentence1 sentence2 dialogue conversation utterance
narrative scenario abstract source_text informal_prefix header
"""
_ANSWER_NAMES = """
choices options endings distractors sol1 sol2 opa opb opc opd ope a b c d e option_a option_b option_c option_d ending0
ending1 ending2 ending3 answer answers solution solutions target targets output response completion continuation
canonical_solution reference_solution chain_of_thought rationale explanation informal_proof proof steps correct_answer
best_answer incorrect_answers correct_answers distractor1 distractor2 distractor3 support answera answerb answerc
answer_a answer_b answer_c mc1_targets mc2_targets gold_answer long_answer
"""
_PART_NAMES = "test train dev val valid validation eval data main default questions items part all"
CANARIES = frozenset(("canary", "canary_string", "canary_guid"))  # put into a set that it may be found by
QUESTIONS, ANSWERS = frozenset(_QUESTION_NAMES.split()) | CANARIES, frozenset(_ANSWER_NAMES.split())
KNOWN = QUESTIONS | ANSWERS
PARTS = frozenset(_PART_NAMES.split())
REPEATED = 20  # a text that so many items share belongs to none of them


def read_items(against: Sequence[Path], fields: Sequence[str] | None) -> pa.Table:
    """Read evaluation sets.

    Args:
        against: files; each is a benchmark, called by its stem (by its folder where the stem says `test` and the like).
            One that `write_index` wrote brings the benchmarks that it holds.
        fields: of an item that are taken; null: by `KNOWN` names at any depth; `*`: every string.

    Returns:
        `ITEMS`, one row per text, in the order of the files.

    Raises:
        DataError: a file cannot be read, or no item in it has any of the fields.
    """
    tables = []
    for benchmark, path in names_of(against).items():
        if (known := _read_index(path)) is not None:
            tables.append(known)
            continue
        rows = list(_texts(benchmark, path, fields))
        often = Counter((row["field"], row["text"]) for row in rows if row["field"].lower() not in QUESTIONS)
        kept = [row for row in _with_one_canary(rows) if often[row["field"], row["text"]] <= REPEATED]
        tables.append(pa.Table.from_pylist(kept, schema=ITEMS))
    return pa.concat_tables([ITEMS.empty_table(), *tables])


def _with_one_canary(rows: Iterable[dict[str, str]]) -> Iterator[dict[str, str]]:
    """Rows, of canaries only one of each: it is of the set, and would be found as often as there are items."""
    seen: set[str] = set()
    for row in rows:
        if row["field"].lower() not in CANARIES:
            yield row
        elif row["text"] not in seen:
            seen.add(row["text"])
            yield row | {"item": "canary"}


def write_index(items: pa.Table, path: Path) -> None:
    """Keep items for later calls, which then need the evaluation sets no longer."""
    pq.write_table(items.cast(ITEMS).replace_schema_metadata(INDEX_MARK), path, compression="zstd")


def _read_index(path: Path) -> pa.Table | None:
    if path.suffix != ".parquet":
        return None
    try:
        if (pq.read_schema(path).metadata or {}).get(b"loam") != INDEX_MARK[b"loam"]:
            return None
        return pq.read_table(path).replace_schema_metadata(None).cast(ITEMS)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from None


def names_of(against: Sequence[Path]) -> dict[str, Path]:
    """A name for each file: its stem, its folder's name where the stem only says which part it is."""
    names: dict[str, Path] = {}
    for path in against:
        stem = path.name.split(".")[0]
        generic = re.sub(r"[-_.\d]+", " ", stem.lower()).split()
        name = path.absolute().parent.name if set(generic) <= PARTS else stem
        name = f"{path.absolute().parent.name}_{stem}" if name in names else name
        if name in names:
            raise DataError(f"two evaluation files are called {name}: {names[name]} and {path}; rename one")
        names[name] = path
    return names


def _texts(benchmark: str, path: Path, fields: Sequence[str] | None) -> Iterator[dict[str, str]]:
    seen: Counter[str] = Counter()
    found = 0
    for number, (name, item) in enumerate(_items(path)):
        seen.update(item.keys())
        label = str(item["id"]) if item.get("id") is not None else name or str(number)
        once = dict.fromkeys(_strings(item, fields))
        for field, text in once:
            found += 1
            yield {"benchmark": benchmark, "item": label, "field": field, "text": LABELS.sub("", text)}
    if not found:
        asked = ", ".join(fields or ("question, context, answer and the like",))
        raise DataError(
            f"{path}: no item has text in the fields {asked}; "
            f"found: {', '.join(seen) or 'no items'}; name others with decontaminate.fields"
        )


def _strings(
    value: Any, fields: Sequence[str] | None, field: str = "", taken: bool = False
) -> Iterator[tuple[str, str]]:
    """Field and text of every string below `value` that is asked for."""
    if isinstance(value, Mapping):
        for key, below in value.items():
            if fields is None:
                wanted = str(key).lower() in KNOWN
            else:
                wanted = taken or key in fields or ("*" in fields and key != "id")
            below_answer = field.lower() in ANSWERS  # {"answers": [{"text": ...}]} is no question
            yield from _strings(below, fields, field if below_answer else str(key), wanted)
    elif isinstance(value, list | tuple):
        for below in value:
            yield from _strings(below, fields, field, taken)
    elif isinstance(value, str) and taken and value.strip():
        yield field, value


def _items(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Name (empty: its number) and fields of every item of a file or an archive."""
    kind = path.name.lower()
    for suffix in (".gz", ".zst", ".zstd"):
        kind = kind.removesuffix(suffix)
    try:
        for member, stream in members_of(path):
            if member is None:
                yield from (("", item) for item in _parse(kind, stream.read(), path))
                continue
            inner = PurePosixPath(member)
            if any(part.startswith((".", "__MACOSX")) for part in inner.parts):
                continue
            rows = list(_parse(inner.name.lower(), stream.read(), path))
            stem = inner.with_suffix("").as_posix()
            yield from ((stem if len(rows) == 1 else f"{stem}:{n}", item) for n, item in enumerate(rows))
    except (*STREAM_ERRORS, pa.ArrowException) as error:  # bad JSON and UTF-8 are ValueErrors
        raise DataError(f"{path}: cannot be read as evaluation items: {str(error).splitlines()[0]}") from None


def _parse(kind: str, data: bytes, path: Path) -> Iterator[Mapping[str, Any]]:
    if kind.endswith(".parquet"):
        yield from pq.read_table(io.BytesIO(data)).to_pylist()
    elif kind.endswith((".arrow", ".feather")):
        yield from feather.read_table(io.BytesIO(data)).to_pylist()
    elif kind.endswith((".csv", ".tsv")):
        yield from _table(data.decode("utf-8-sig"), "\t" if kind.endswith(".tsv") else ",")
    elif kind.endswith((".jsonl", ".json", ".ndjson")):
        yield from _records(data, path)
    else:
        yield {"text": data.decode("utf-8-sig")}


def _table(text: str, delimiter: str) -> Iterator[Mapping[str, Any]]:
    """Rows of CSV; the first is a header when one of its cells is the name of a field."""
    rows = [row for row in csv.reader(io.StringIO(text), delimiter=delimiter) if row]
    if rows and {cell.strip().lower() for cell in rows[0]} & (KNOWN - set("abcde")):
        yield from (dict(zip(rows[0], row, strict=False)) for row in rows[1:])
    else:
        for row in rows:  # MMLU's form: question, choices, letter; a number in front is a number of the row
            first = next((n for n, cell in enumerate(row) if not cell.strip().isdigit()), 0)
            yield {"question": row[first], "choices": row[first + 1 :]}


def _records(data: bytes, path: Path) -> Iterator[Mapping[str, Any]]:
    """JSON Lines, a JSON array, or an object that holds one."""
    lines = [(number, line) for number, line in enumerate(data.split(b"\n"), start=1) if line.strip()]
    if not lines:
        return
    try:
        json.loads(lines[0][1])
        values = [(number, json.loads(line)) for number, line in lines]
    except ValueError:
        if len(lines) > 1 and lines[0][1].strip()[-1:] not in (b"{", b"["):
            raise
        values = [(1, json.loads(data))]
    if len(values) == 1:
        values = [(1, value) for value in _unwrapped(values[0][1])]
    for number, value in values:
        if not isinstance(value, dict):
            raise DataError(f"{path}:{number}: an item is a JSON object, this is {type(value).__name__}")
        yield value


def _unwrapped(value: Any) -> list[Any]:
    """The items of a JSON document: itself, or the list that it is or holds."""
    if isinstance(value, list):
        return value
    if isinstance(value, dict):
        held = [v for v in value.values() if isinstance(v, list) and v and isinstance(v[0], dict)]
        if len(held) == 1 and not {str(key).lower() for key in value} & QUESTIONS:
            return held[0]
    return [value]
