"""Reading an answer that should be JSON, where no engine has seen to it that it is; all answers are read here.

First strictly; then each slip that models are known for is mended once, from the outside in, and what was mended is
recorded in the ledger: a fence of code, prose around the object, a comma before a closing bracket, bare line breaks in
a string. Nothing is completed or guessed: an answer that breaks off, names a key twice, or holds what cannot be written
down again (`NaN`, a number beyond all floats, half a surrogate pair) is no JSON.
"""

import json
import re
from typing import Any

STRICT = "strict"
_FENCE = re.compile(r"\A```[A-Za-z]*[ \t]*\r?\n(.*?)\r?\n?```\Z", re.DOTALL)
_COMMA = re.compile(r'("(?:[^"\\]|\\.)*")|,(?=\s*[}\]])', re.DOTALL)  # strings are passed over whole


def read_json_answer(answer: str) -> tuple[str | None, str]:
    """The one JSON object of an answer.

    Args:
        answer: what the model wrote, without its thinking.

    Returns:
        The object as canonical JSON, None where there is none; and how it was read: `strict`, or what was mended,
        joined by `+`.
    """
    found, how = _read(answer)
    return (None if found is None else _written(found)), how


def read_object(answer: str, *keys: str) -> dict[str, Any] | str:
    """The JSON object of an answer with these keys, or the reason why there is none."""
    found, _ = _read(answer)
    if found is None:
        return "not_json"
    return found if all(key in found for key in keys) else "wrong_shape"


def read_list(answer: str, key: str) -> list[Any] | str:
    """The list under a key of the JSON object of an answer, or the reason why there is none."""
    found = read_object(answer, key)
    if isinstance(found, str):
        return found
    return found[key] if isinstance(found[key], list) else "wrong_shape"


def _read(answer: str) -> tuple[dict[str, Any] | None, str]:
    text, mended, strict = answer.strip(), [], True
    for mend in (None, "fence", "prose", "comma", "line_break"):
        if mend == "line_break":
            strict, changed = False, text
        else:
            changed = _MENDS[mend](text) if mend else text
            if mend and changed == text:
                continue
        text = changed
        if mend:
            mended.append(mend)
        if (value := _parse(text, strict)) is not None:
            return value, "+".join(mended) or STRICT
    return None, ""


def _parse(text: str, strict: bool) -> dict[str, Any] | None:
    try:
        value = json.loads(text, strict=strict, object_pairs_hook=_once, parse_constant=_refuse)
        _written(value).encode()
    except (ValueError, RecursionError):  # a UnicodeEncodeError is a ValueError
        return None
    return value if isinstance(value, dict) else None


def _written(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def _without_fence(text: str) -> str:
    match = _FENCE.match(text)
    return match.group(1).strip() if match else text


def _without_prose(text: str) -> str:
    """From the first brace to the last."""
    first, last = text.find("{"), text.rfind("}")
    return text[first : last + 1] if 0 <= first < last else text


def _without_commas(text: str) -> str:
    return _COMMA.sub(lambda match: match.group(1) or "", text)


_MENDS = {"fence": _without_fence, "prose": _without_prose, "comma": _without_commas}
