"""Reading an answer that should be JSON, where no engine has seen to it that it is.

First strictly; then each slip that models are known for is mended once, from the outside in, and what was mended is
recorded in the ledger: a fence of code, prose around the object, a comma before a closing bracket, bare line breaks in
a string. Nothing is completed or guessed: an answer that breaks off, names a key twice or writes `NaN` is no JSON.
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
            return json.dumps(value, ensure_ascii=False), "+".join(mended) or STRICT
    return None, ""


def _parse(text: str, strict: bool) -> dict[str, Any] | None:
    try:
        value = json.loads(text, strict=strict, object_pairs_hook=_once, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


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
