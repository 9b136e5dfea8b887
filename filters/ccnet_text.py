"""Text as cc_net's KenLM models and perplexity cut-offs expect it.

The published cut-offs hold for this exact form alone: lower case, accents off (canonical decomposition, combining marks
dropped), every digit a "0" of its own, punctuation of other scripts mapped to ASCII, control characters, line feeds
among them, deleted. Each rule maps single characters to strings that no other rule touches, so that one table does all.

Source: facts of facebookresearch/cc_net, text_normalizer; golden strings of its tests in tests/filters.
"""

import functools
import sys
import unicodedata

PUNCTUATION = str.maketrans(
    {
        **dict.fromkeys("，、", ","),
        **dict.fromkeys("„”“«»」「《》", '"'),
        **dict.fromkeys("´’", "'"),
        **dict.fromkeys("∶：", ":"),
        **dict.fromkeys("–━►", "-"),
        **dict(zip("。？！（）；～〈〉【】％", ".?!();~<>[]%", strict=True)),
        "—": " - ",
        "．": ". ",
        "…": "...",
    }
)
CONTROL = [*range(32), *range(127, 160)]


@functools.cache
def _table() -> dict[int, str | None]:
    table: dict[int, str | None] = {}
    for code in range(sys.maxunicode + 1):
        category = unicodedata.category(chr(code))
        if category == "Mn":
            table[code] = None
        elif category == "Nd":
            table[code] = "0"
    return {**table, **dict.fromkeys(CONTROL, None), **PUNCTUATION}


def ccnet_normalize(text: str) -> str:
    """Normalize a document, which becomes one line."""
    return unicodedata.normalize("NFD", text.strip().lower()).translate(_table())
