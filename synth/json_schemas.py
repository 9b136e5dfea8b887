"""JSON schemas of answers, in the form that engines enforce them: every key is asked for and no other is allowed."""

from collections.abc import Mapping
from typing import Any

TEXT: Mapping[str, Any] = {"type": "string"}
NUMBER: Mapping[str, Any] = {"type": "integer"}


def number_from(least: int, most: int) -> dict[str, Any]:
    """A whole number between two, both included."""
    return {**NUMBER, "minimum": least, "maximum": most}


def object_of(**properties: Mapping[str, Any]) -> dict[str, Any]:
    """An object with exactly these keys.

    Args:
        properties: schemas by key.
    """
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def list_of(items: Mapping[str, Any]) -> dict[str, Any]:
    """A list whose items are all like this."""
    return {"type": "array", "items": items}


def answer_format(name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    """The `response_format` of a request.

    Args:
        name: of the answer, for servers.
        schema: of the answer.
    """
    return {"type": "json_schema", "json_schema": {"name": name, "schema": schema, "strict": True}}
