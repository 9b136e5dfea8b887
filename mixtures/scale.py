"""The scale of a training run: parameters N and tokens D, written `60M/1.2B`.

Laws across scales live on one axis, the logarithm of the parameters; where all runs have the same parameters it is the
logarithm of the tokens. Losses are power laws in both, so that the logarithm is where they bend least.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.errors import DataError
from pipelines.quantities import TOKEN_UNITS, parse_quantity

UNITS = (("T", 10**12), ("B", 10**9), ("M", 10**6), ("K", 10**3))


@dataclass(frozen=True, order=True)
class Scale:
    """How large a training run is.

    Attributes:
        params: N, parameters of the model.
        tokens: D, tokens that it reads; None when it is not known.
    """

    params: int
    tokens: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Scale":
        """Read `60M/1.2B`, or `60M` alone.

        Raises:
            DataError: the text is no such thing, or a number is not positive.
        """
        params, slash, tokens = (part.strip() for part in text.partition("/"))
        try:
            found = cls(quantity(params), quantity(tokens) if slash else None)
        except ValueError:
            raise DataError(f"scale {text!r}: expected parameters and tokens, such as 60M/1.2B, or 60M alone") from None
        return found

    @classmethod
    def of_label(cls, text: str | None) -> "Scale | None":
        """The scale that a label tells, if it tells one: a single scale may be called `tiny`."""
        try:
            return cls.parse(text) if text else None
        except DataError:
            return None

    def __str__(self) -> str:
        return written(self.params) + (f"/{written(self.tokens)}" if self.tokens is not None else "")

    @property
    def order(self) -> tuple[float, float]:
        """What scales are sorted by; unknown tokens come first."""
        return self.params, self.tokens or 0


def quantity(value: str) -> int:
    """A count such as `60M`, `6e7` or `60000000`.

    Raises:
        ValueError: it is none, or not positive.
    """
    if re.fullmatch(r"[0-9.eE+]+", value):
        value = repr(float(value)) if "." in value or "e" in value.lower() else value
    count = round(parse_quantity(value.replace("+", ""), TOKEN_UNITS, "a count"))
    if count <= 0:
        raise ValueError(f"{value!r} is not positive")
    return count


def written(count: int) -> str:
    """A count that reads back equal, as short as that allows: 60000000 -> '60M'."""
    for unit, size in UNITS:
        short = f"{count / size:.6g}"
        if count >= size and "e" not in short and round(float(short) * size) == count:
            return short + unit
    return str(count)


def axis_of(scales: Sequence[Scale]) -> str:
    """Along what laws are carried: `params`, or `tokens` where all scales have the same parameters."""
    return "tokens" if len({scale.params for scale in scales}) == 1 and len(scales) > 1 else "params"


def coordinate(scale: Scale, axis: str) -> float:
    """Where a scale lies: log N or log D.

    Raises:
        DataError: the axis is tokens and the scale has none.
    """
    if axis == "params":
        return math.log(scale.params)
    if scale.tokens is None:
        raise DataError(f"scale {scale}: the runs differ in tokens alone; write it as {scale}/20B")
    return math.log(scale.tokens)
