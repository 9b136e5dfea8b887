"""Equations between plain numbers in a text ("95 + 15 = 110"), evaluated exactly.

Words beside the numbers are left out ("120 kids + 90 kids = 210 kids"), but a single letter is a variable: what has one
is no equation between numbers, and nothing is said of it. Only `+ - * /`, brackets and per cent are read, by a parser
of its own: no text of a model is ever evaluated by Python.
"""

import re
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise

_TIMES = re.compile(r"(?<=[\d)%])(\s*)(?:[x×·∙⋅✕]|\\times|\\cdot)(?=\s*[\d($.])", re.IGNORECASE)
_SYMBOLS = str.maketrans({"÷": "/", "−": "-", "–": "-", "＝": "=", "（": "(", "）": ")", "％": "%", "[": "(", "]": ")"})
_SEPARATOR = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_UNIT = re.compile(r"(?<=\d)-(?=[^\W\d_]{2})|(?<=\d)(?:st|nd|rd|th)\b|[^\W\d_]{2,}-?|\b[aAI]\b|[$€£¥￥°\\{}]")
_GAP = re.compile(r"(?<=[\d)%])\.?\s+(?=[\d(])")  # between two numbers that are two expressions
_SIDE = re.compile(r"[\d(.+\-][\d\s().+*/%-]*|$")
_TOKEN = re.compile(r"\s*(?:(\d+(?:\.\d+)?|\.\d+)|([-+*/()%]))")
MOST_CHARS = 200  # of one side; a longer one is no arithmetic of a chain of thought


def equations_of(line: str) -> Iterator[tuple[str, Fraction, str, Fraction]]:
    """Neighbouring sides of equations: as simplified, value of the left, the right, its value.

    Args:
        line: of a text; "3 * 4 = 12 = 10 + 2" holds two equations.
    """
    if "=" not in line and "＝" not in line:
        return
    plain = _UNIT.sub(" ", _TIMES.sub(r"\1*", _SEPARATOR.sub("", line.translate(_SYMBOLS))))
    sides = plain.split("=")
    for number, (left, right) in enumerate(pairwise(sides)):
        one, other = _last_run(left, whole=number > 0), _first_run(right)
        if one and other and (value := evaluate(one)) is not None and (result := evaluate(other)) is not None:
            yield one, value, other, result


def holds(value: Fraction, result: Fraction, written: str) -> bool:
    """Whether a value is what stands on the other side, in per cent or rounded to the places written there."""
    places = max((len(part) for part in re.findall(r"\.(\d+)", written)), default=0)
    exact = value.denominator == 1 and not places
    return any(abs(one - result) * 10**places < 1 - exact or one == result for one in (value, value / 100))


def evaluate(text: str) -> Fraction | None:
    """The value of an expression; None where it is none, or divides by zero."""
    tokens, at = [], 0
    text = text.strip()
    if len(text) > MOST_CHARS:
        return None
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            return None
        tokens.append(match.group().strip())
        at = match.end()
    try:
        value, end = _sum(tokens, 0, 0)
    except (ValueError, IndexError, ZeroDivisionError):
        return None
    return value if end == len(tokens) else None


def _sum(tokens: list[str], at: int, depth: int) -> tuple[Fraction, int]:
    value, at = _product(tokens, at, depth)
    while at < len(tokens) and tokens[at] in "+-":
        other, end = _product(tokens, at + 1, depth)
        value, at = (value + other if tokens[at] == "+" else value - other), end
    return value, at


def _product(tokens: list[str], at: int, depth: int) -> tuple[Fraction, int]:
    value, at = _factor(tokens, at, depth)
    while at < len(tokens) and tokens[at] in "*/":
        other, end = _factor(tokens, at + 1, depth)
        value, at = (value * other if tokens[at] == "*" else value / other), end
    return value, at


def _factor(tokens: list[str], at: int, depth: int) -> tuple[Fraction, int]:
    if depth > MOST_CHARS:
        raise ValueError("too deep")
    token = tokens[at]
    if token == "-":
        value, at = _factor(tokens, at + 1, depth + 1)
        return -value, at
    if token == "(":
        value, at = _sum(tokens, at + 1, depth + 1)
        if tokens[at] != ")":
            raise ValueError("no closing bracket")
        at += 1
    else:
        value, at = Fraction(token), at + 1
    while at < len(tokens) and tokens[at] == "%":
        value, at = value / 100, at + 1
    return value, at


def _last_run(side: str, whole: bool) -> str | None:
    """The expression that ends a side; `whole`: between two signs of equality the side is one expression or none."""
    side = side.strip()
    if whole:
        return side
    match = re.search(r"[\d\s().+*/%-]*$", side)
    start = match.start() if match else 0
    if start and (side[start - 1].isalpha() or (side[start - 1] in ":^" and side[start : start + 1] != " ")):
        return None  # a variable before it, a time, a power
    *before, found = _GAP.split(side[start:].strip())
    if before and re.fullmatch(r"\d+\s*/\s*\d+", found):
        return None  # a mixed number: 1 1/2
    while found.count(")") > found.count("("):
        found = found.rpartition(")")[2].strip()
    found = found.lstrip(".)*/+- ")
    return found if re.search(r"[-+*/]", found) else None


def _first_run(side: str) -> str | None:
    """The expression that begins a side, without the full stop or the bracket that ends the sentence."""
    side = side.strip()
    match = _SIDE.match(side)
    found, after = (match.group().rstrip(), side[match.end() :]) if match else ("", "")
    if after[:1].isalpha() or after[:1] in (":", "^"):
        return None  # a variable behind it, a time, a power
    found = _GAP.split(found)[0]
    found = re.sub(r"(?:[.(+*/-]|\s)+$", "", found)
    while found.count(")") > found.count("("):
        found = found.rpartition(")")[0].rstrip()
    return found or None
