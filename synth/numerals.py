"""Numbers in a text by value, and which of a chain's are founded on its document.

A number is founded when the document holds its value, in digits or words ("10,000", "ten thousand", 一万), or when the
chain arrives at it: by arithmetic on founded numbers of the same line. Chains compute (nearly every solution of GSM8K
does), so that a rule without derivation rejects most human ones; but one operation on any two numbers of a long
document reaches nearly every number, so that the operands must stand in the line itself.
"""

import re
from collections.abc import Iterable, Iterator
from fractions import Fraction

from synth.equations import equations_of, holds

_UNIT_WORDS = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
nineteen
"""
_TEN_WORDS = "twenty thirty forty fifty sixty seventy eighty ninety"
_UNITS, _TENS = _UNIT_WORDS.split(), _TEN_WORDS.split()
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12,
           "k": 1000, "bn": 10**9, "百": 100, "千": 1000, "万": 10**4, "萬": 10**4, "亿": 10**8,
           "億": 10**8}  # fmt: skip
_WORDS = {word: value for value, word in enumerate(_UNITS)} | {
    word: 10 * value for value, word in enumerate(_TENS, 2)
} | {"dozen": 12, "dozens": 12, "half": Fraction(1, 2), "quarter": Fraction(1, 4), "twice": 2, "double": 2, "triple": 3,
     "once": 1, "both": 2, "pair": 2, "couple": 2, "third": 3, "fourth": 4, "fifth": 5}  # fmt: skip
_HAN = {character: value for value, character in enumerate("零一二三四五六七八九")} | {"两": 2, "兩": 2, "〇": 0}
_HAN_UNITS = {"十": 10, "百": 100, "千": 1000}
_HAN_LARGE = {"万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8}
_DIGITS = re.compile(
    r"(?P<number>\d{1,3}(?:[,\u202f ]\d{3})+(?![\d,])(?:\.\d+)?|\d+(?:\.\d+)?|(?<![\d.])\.\d+)"
    r"(?:\s?(?P<percent>[%％])|[\s-]?(?P<scale>hundred|thousand|million|billion|trillion|bn|[百千万萬亿億])(?![a-z])"
    r"|(?P<letter>k)\b)?", re.IGNORECASE,
)  # fmt: skip
_FRACTION = re.compile(r"(?<![\d.,/])(\d+)\s?/\s?(\d+)(?![\d/])|\\d?frac\{(\d+)\}\{(\d+)\}")
_ENGLISH = re.compile(
    r"(?<!\d[\s-])\b(?:(?:" + "|".join([*_UNITS, *_TENS, "hundred", "thousand", "million", "billion"])
    + r")\b(?:[\s-]+(?:and\s+)?)?)+", re.IGNORECASE,
)  # fmt: skip
_SINGLE = re.compile(r"\b(?:" + "|".join(word for word in _WORDS if word not in _UNITS and word not in _TENS) + r")\b",
                     re.IGNORECASE)  # fmt: skip
_HAN_NUMBER = re.compile("[零〇一二两兩三四五六七八九十百千万萬亿億]+")
_LINE = re.compile(r"\n|(?<=[.!?;。！？；])\s*(?=\S)(?!\d)")
CONSTANTS = tuple(map(Fraction, (7, 12, 24, 28, 30, 31, 52, 60, 100, 365, 1000, 3600)))
"""What everyone knows: days of a week, hours of a day, per cent, metres of a kilometre."""
MOST_OPERANDS = 12  # numbers of one line that are combined; a line of more is a table


def number_values(text: str) -> set[Fraction]:
    """Every number of a text by value, in digits, words, per cent (also as share), fractions (also as quotient)."""
    found = {value for value, _ in digit_numbers(text)}
    found |= {value / 100 for value, percent in digit_numbers(text) if percent}
    for one, other, top, bottom in _FRACTION.findall(text):
        if denominator := int(other or bottom):
            found.add(Fraction(int(one or top), denominator))
    for run in _ENGLISH.findall(text):
        found |= _english(run.lower())
    found |= {Fraction(_WORDS[word.lower()]) for word in _SINGLE.findall(text)}
    return found | {Fraction(value) for run in _HAN_NUMBER.findall(text) if (value := _han(run)) is not None}


def digit_numbers(text: str) -> Iterator[tuple[Fraction, bool]]:
    """Numbers in digits, scaled ("1.5 million"), and whether each is per cent."""
    for match in _DIGITS.finditer(text):
        value = Fraction(re.sub(r"[,\u202f ]", "", match["number"]))
        scale = (match["scale"] or match["letter"] or "").lower()
        yield value, match["percent"] is not None
        if scale:
            yield value * _SCALES[scale], False


def _english(run: str) -> set[Fraction]:
    """Values of number words in a row: of the whole ("two hundred and six") and of its parts."""
    total, current, found = 0, 0, set()
    for word in re.findall(r"[a-z]+", run):
        if word == "and":
            continue
        scale = _SCALES.get(word, 0)
        if scale == 100:
            current = (current or 1) * 100
        elif scale:
            total, current = total + (current or 1) * scale, 0
        else:
            value = int(_WORDS[word])
            found.add(Fraction(value))
            joined = current % 10 == 0 and current and value < (10 if current % 100 else 100)
            current = current + value if joined else value
    return found | {Fraction(total + current)}


def _han(run: str) -> int | None:
    """Value of a numeral in Han characters, by place (二〇二四) or by units (三百二十); None for 万 alone."""
    if all(character in _HAN for character in run):
        return int("".join(str(_HAN[character]) for character in run))
    total, section, digit = 0, 0, None
    for character in run:
        if character in _HAN:
            digit = _HAN[character]
        elif character in _HAN_UNITS:
            section, digit = section + (1 if digit is None else digit) * _HAN_UNITS[character], None
        else:
            total, section, digit = total + (section + (digit or 0)) * _HAN_LARGE[character], 0, None
    value = total + section + (digit or 0)
    return value or None


def unfounded_numbers(chain: str, document: str, more: Iterable[Fraction] = ()) -> list[str]:
    """Numbers of two digits or more that neither the document holds nor the chain arrives at.

    Args:
        chain: text whose numbers are asked about, line by line (sentence by sentence).
        document: what it must be founded on.
        more: values that count as the document's.

    Returns:
        The numbers as written, without separators, in order; single digits also count and enumerate.
    """
    founded = number_values(document) | set(more)
    missing, before = [], set[Fraction]()
    for line in _LINE.split(chain):
        if not any(character.isdigit() for character in line):
            founded |= {value for value in number_values(line) if value < 10}
            continue
        asked = list(digit_numbers(line))
        open_ = [value for value, percent in asked if not _founded(value, percent, founded)]
        held = {value for value in number_values(line) if value in founded or value < 10}
        results, wrong = _results(line)
        held |= set() if results else before
        settled = True
        while open_ and settled:
            settled = [value for value in open_ if value in results or (value not in wrong and _derived(value, held))]
            held |= set(settled)
            open_ = [value for value in open_ if value not in held]
        missing += [_plain(value) for value in open_ if _telling(value)]
        founded |= held
        before = {value for value in number_values(line) if value in held}
    return missing


def _telling(value: Fraction) -> bool:
    return value >= 10 or value.denominator != 1


def _plain(value: Fraction) -> str:
    return str(value.numerator) if value.denominator == 1 else f"{float(value):g}"


def _founded(value: Fraction, percent: bool, founded: set[Fraction]) -> bool:
    """Whether a value is known, as it is, as the share that it is of a hundred, or rounded to what is written."""
    return value in founded or (percent and value / 100 in founded) or (
        value.denominator != 1 and any(_rounds(known, value) for known in founded)
    )  # fmt: skip


def _rounds(exact: Fraction, written: Fraction) -> bool:
    """Whether a number is written rounded to as many places as it shows."""
    places = len(str(float(written)).partition(".")[2]) if written.denominator != 1 else 0
    return abs(exact - written) * 10**places <= Fraction(1, 2) and (places > 0 or exact == written)


def _results(line: str) -> tuple[set[Fraction], set[Fraction]]:
    """Numbers that the equations of a line give, and those that they wrongly claim."""
    right, wrong = set(), set()
    for _, value, written, result in equations_of(line):
        (right if holds(value, result, written) else wrong).update({result, value})
    return right, wrong - right


def _derived(value: Fraction, held: set[Fraction]) -> bool:
    """Whether one operation on a number of the line and another one or a constant gives a value, or the sum of all."""
    operands = sorted(held, reverse=True)[:MOST_OPERANDS]
    for number, one in enumerate(operands):
        for other in (*operands[number + 1 :], *CONSTANTS):
            results = [one + other, abs(one - other), one * other, one / other if other else 0]
            if any(_rounds(Fraction(result), value) for result in results):
                return True
            if (
                one
                and other
                and (_rounds(other / one, value) or _rounds(100 * min(one, other) / max(one, other), value))
            ):
                return True
    return len(operands) > 2 and sum(operands) == value
