"""Quantities with units: `1.33T` tokens, `512MB`, `6h`.

A bare number is accepted too. The written form is kept nowhere: a resolved recipe holds plain numbers, so that two
spellings of the same quantity give the same fingerprint.
"""

import math
import re
from typing import Annotated

from pydantic import BeforeValidator

TOKEN_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
SIZE_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
              "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}  # fmt: skip
TIME_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
QUANTITY = re.compile(r"([0-9][0-9_]*\.?[0-9]*(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z]*)")


def parse_quantity(value: object, units: dict[str, int], kind: str) -> float:
    """Turn `value` into a number of base units.

    Raises:
        ValueError: not a number followed by one of `units`; the message lists them.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return _finite(float(value), value, kind)
    match = QUANTITY.fullmatch(value.strip()) if isinstance(value, str) else None
    unit = match.group(2) if match else None
    if match is None or unit not in units:
        raise ValueError(f"{value!r} is not {kind}: write a number with one of {', '.join(u for u in units if u)}")
    return _finite(float(match.group(1).replace("_", "")) * units[unit], value, kind)


def _finite(number: float, value: object, kind: str) -> float:
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is not {kind}: write a finite number")
    return number


def _tokens(value: object) -> int:
    return round(parse_quantity(value, TOKEN_UNITS, "a number of tokens"))


def _size(value: object) -> int:
    spelled = value.upper() if isinstance(value, str) else value
    return round(parse_quantity(spelled, SIZE_UNITS, "a size in bytes"))


def _seconds(value: object) -> float:
    return parse_quantity(value, TIME_UNITS, "a duration")


Tokens = Annotated[int, BeforeValidator(_tokens)]
"""A number of tokens: `1.33T`, `250B`, `30M`, or an integer."""

Bytes = Annotated[int, BeforeValidator(_size)]
"""A size in bytes: `512MB`, `4GiB`, or an integer."""

Seconds = Annotated[float, BeforeValidator(_seconds)]
"""A duration in seconds: `90s`, `15m`, `6h`, `2d`, or a number."""


def human(count: float) -> str:
    """Write a count the way people read it: 1330000000000 -> '1.33T'."""
    for unit, scale in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if abs(count) >= scale:
            return f"{count / scale:.3g}{unit}"
    return f"{count:.3g}" if count % 1 else f"{count:.0f}"


def human_bytes(size: float) -> str:
    """Write a size the way people read it: 500000000000 -> '500 GB'."""
    for unit, scale in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if abs(size) >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size:.0f} bytes"
