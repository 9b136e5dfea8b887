r"""How an answer of mathematics is written: what of its writing never matters, and what a parser would overlook.

math-verify reads generously: it writes every variable small, takes `\{1,2\}` for `(1,2)`, drops units and reads 2.5e3
as a product with e. What these functions find decides where its word is not taken. They know text only, no values.
"""

import itertools
import re
from collections.abc import Iterator
from typing import Literal

SAME = str.maketrans("−–—，。：（）", "---,.:()") | {ord("π"): "\\pi ", ord("∞"): "\\infty "}
TEXT = re.compile(r"\\(?:text|mathrm|textbf|mathbf|mbox)\s*\{([^{}]*)\}")
NAME = re.compile(r"(?<![\\A-Za-z])(?:No|[A-Z][a-z]{2,})(?![A-Za-z])")
"""A word whose first letter may be large."""
WORD = re.compile(r"[^\W\d_]{3,}")
UNIT = re.compile(r"\d[\s}]*([A-Za-zµ°][A-Za-zµ°/ ]{0,40})(?:\^\{?-?\d\}?)?$")
_UNITS = """
mm cm m km in inch inches ft feet yd yards mi miles mg g kg lb oz ml l ms s min h hours minutes seconds days
"""
MEASURES = frozenset(_UNITS.split())
"""Units that another unit can stand for: 5 cm is 50 mm, which nothing here computes."""
SCIENTIFIC = re.compile(r"(?<![\w.\\}])(\d+(?:\.\d+)?|\.\d+)[eE]([+-]?\d{1,3})(?![\w.])")
PERCENT = re.compile(r"\s*(?:\\?%|\bpercent\b)")
LETTER = re.compile(r"\\[A-Za-z]+|[A-Za-z]")
SPARE = "qzwuvkjhgprstlmnbcyoaxf"
"""Letters that may stand for a capital; not d, e and i, which mean something."""
GROUP = re.compile(r"(\\\{|[(\[])([^()\[\]{}]*|[^()\[\]]*)(\\\}|[)\]])")
"""Brackets without brackets inside."""

Difference = Literal["set", "shape", ""]


def plain(answer: str) -> str:
    """An answer without what never matters: white space, dollars, the commands of text and size, a full stop.

    Case does not matter in text and names (`Evelyn`), and does in mathematics.
    """
    answer = TEXT.sub(lambda match: match.group(1).casefold(), answer.translate(SAME))
    answer = NAME.sub(lambda match: match.group().casefold(), answer)
    answer = re.sub(r"\\[dt]frac", r"\\frac", re.sub(r"\\(?:(?:left|right)(?![a-zA-Z])|[,;:! ])", "", answer))
    answer = re.sub(r"(?<=\d)\s+(?=\d)", "_", answer)  # 1 1/2 is not 11/2
    return re.sub(r"[\s$]", "", answer).rstrip(".")


def readings(one: str, other: str) -> Iterator[tuple[str, str]]:
    """Ways to read two answers, each way both: as written, with powers of ten, without a lone percent sign."""
    return itertools.product(_forms(one, lone_percent(one, other)), _forms(other, lone_percent(other, one)))


def _forms(answer: str, without_percent: bool) -> list[str]:
    found = [answer]
    if SCIENTIFIC.search(answer):  # besides: 2e-3 may be twice e, less three
        found.append(SCIENTIFIC.sub(r"\1 \\cdot 10^{\2}", answer))
    return found + ([PERCENT.sub("", answer)] if without_percent else [])


def lone_percent(one: str, other: str) -> bool:
    """Whether the first answer alone has a percent sign."""
    return bool(PERCENT.search(one)) and not PERCENT.search(other)


def apart(one: str, other: str) -> tuple[str, str] | None:
    """The same answers with other letters for capitals, where a letter is both large and small; None where none is."""
    texts = [TEXT.sub("", answer) for answer in (one, other)]
    letters = {found for text in texts for found in LETTER.findall(SCIENTIFIC.sub("", text))}
    both = sorted(letter for letter in letters if letter != letter.lower() and letter.lower() in letters)
    spare = [letter for letter in SPARE if letter not in letters and letter.upper() not in letters]
    if not both or len(both) > len(spare):
        return None
    names = dict(zip(both, spare, strict=False))
    found = [LETTER.sub(lambda match: names.get(match.group(), match.group()), answer) for answer in (one, other)]
    return found[0], found[1]


def other_brackets(one: str, other: str) -> Difference:
    r"""What the brackets around lists differ in: a `set` against a tuple, or else their `shape`; empty if in nothing.

    Looked at are the brackets around the whole, where both have some, and those around the innermost lists.
    """
    outer, inner = zip(*map(_brackets, (one, other)), strict=True)
    pairs = [pair for pair in (outer, inner) if all(pair) and pair[0] != pair[1]]
    if not pairs:
        return ""
    return "set" if any(("{" in found[0]) != ("{" in found[1]) for found in pairs) else "shape"


def _brackets(answer: str) -> tuple[str, str]:
    """Brackets around the whole of a list, and the kinds of those around its innermost lists."""
    text = re.sub(r"\\(?:left|right)(?![a-zA-Z])|[\s$]", "", answer.translate(SAME))
    text = re.sub(r"\\[lr]brace(?![a-zA-Z])", lambda match: "\\{" if "l" in match.group()[:2] else "\\}", text)
    outer = ""
    if whole := re.fullmatch(r"(\\\{|[(\[])(.*)(\\\}|[)\]])", text, re.DOTALL):
        depth, alone = 0, "," in whole.group(2)
        for mark in re.findall(r"\\[{}]|[()\[\]]", whole.group(2)):
            depth += 1 if mark[-1] in "{([" else -1
            alone = alone and depth >= 0
        outer = (whole.group(1) + whole.group(3)).replace("\\", "") if alone and depth == 0 else ""
    kinds = {left[-1] for left, content, _ in GROUP.findall(text) if "," in content}
    return outer, "".join(sorted("{" if kind == "{" else "(" for kind in kinds))


def is_matrix(answer: str) -> bool:
    """Whether an answer is written as a matrix."""
    return "matrix}" in answer


def unit_of(answer: str) -> str:
    """The unit behind a number, which the parser drops; empty if there is none."""
    found = UNIT.search(TEXT.sub(r" \1", answer).strip(" .$"))
    return found.group(1).strip() if found else ""


def words_of_answer(answer: str) -> set[str]:
    """Words of an answer, which the parser takes for products of variables."""
    return set(WORD.findall(re.sub(r"\\(?:begin|end)\{[a-z]*\}|\\[A-Za-z]+", " ", answer)))
