"""Fields of a record: a JSON object parsed, a text template filled, the canonical bytes of a row.

A template names fields by path, `{question}`, `{code.0}`, `{content|paragraphs}` (the first that is there); a field
that is missing leaves no text, which the reader counts, instead of half a text.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

import orjson

PLACE = re.compile(r"\{([\w.|-]+)\}")


def parse_json(data: bytes) -> dict[str, Any] | str:
    """The object that the bytes spell, or why there is none (`bad_json`, `invalid_utf8`, `not_an_object`)."""
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        try:
            value = json.loads(data.decode())  # slower, but takes NaN and large integers
        except UnicodeDecodeError:
            return "invalid_utf8"
        except (ValueError, RecursionError):
            return "bad_json"
    return value if isinstance(value, dict) else "not_an_object"


def row_bytes(fields: Mapping[str, Any]) -> bytes:
    """Canonical JSON of a Parquet row: the same bytes whenever the row has the same values."""
    return json.dumps(fields, sort_keys=True, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass")


def filled(template: str, fields: Mapping[str, Any], join: str) -> str | None:
    """Fill a text template, or None when a field that it names is missing, null or empty."""
    if isinstance(found := fields.get(template[1:-1]), str) and template[:1] == "{" and template[-1:] == "}":
        return found or None  # the usual case: one field
    values = {}
    for place in PLACE.findall(template):
        found = (value_at(fields, key) for key in place.split("|"))
        values[place] = next((words for value in found if (words := words_of(value, join))), None)
        if values[place] is None:
            return None
    return PLACE.sub(lambda match: values[match.group(1)], template)


def value_at(fields: Any, key: str | None) -> Any:
    """The value at `a.b.0`, or None."""
    if isinstance(fields, dict) and key in fields:
        return fields[key]
    for part in (key or "").split("."):
        if isinstance(fields, dict):
            fields = fields.get(part)
        elif isinstance(fields, list) and part.isdecimal() and int(part) < len(fields):
            fields = fields[int(part)]
        else:
            return None
    return fields


def words_of(value: Any, join: str) -> str | None:
    """A value as text: lists joined, what is neither text nor list as JSON; None stays."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list):
        return join.join(filter(None, (words_of(item, join) for item in value)))
    return json.dumps(value, ensure_ascii=False)
