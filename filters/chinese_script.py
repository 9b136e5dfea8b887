"""Traditional or simplified: which of the two character sets of Chinese a text is written in.

The one choice that matters: two old national standards are the evidence. A character of GB 2312 that Big5 lacks is a
simplified form, one of Big5 that GB 2312 lacks a traditional one; the many that both have say nothing. Source:
GB 2312-1980 and Big5 as Python's own codecs know them.
"""

import functools

import numpy as np
import pyarrow as pa

from filters.text_memory import buffers_of
from pipelines.compiled import kernel

CHINESE = ("cmn", "yue", "wuu", "zho", "lzh")


def _has(character: str, encoding: str) -> bool:
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


@functools.cache
def _side() -> np.ndarray:
    """int8 (65536,): -1 simplified only, 1 traditional only, 0 says nothing."""
    side = np.zeros(1 << 16, np.int8)
    for point in range(0x4E00, 0xA000):
        side[point] = _has(chr(point), "big5") - _has(chr(point), "gb2312")
    return side


def chinese_script(texts: pa.Array, codes: pa.Array) -> pa.Array:
    """Name the script of the Chinese texts.

    Args:
        texts: string (N,).
        codes: their languages, ISO 639-3.

    Returns:
        string (N,): `Hans`, `Hant` (ISO 15924), `Hani` where no character tells; null for other languages.
    """
    data, offsets = buffers_of(texts)
    balance_N = np.zeros(len(texts), np.int64)
    _balance(data, offsets, _side(), balance_N)
    names = np.array(["Hans", "Hani", "Hant"], object)[np.sign(balance_N) + 1]
    others = np.array([code not in CHINESE for code in codes.to_pylist()], bool)
    return pa.array(names, pa.string(), mask=others)


@kernel
def _balance(data, offsets, side, balance_N):
    for n in range(len(offsets) - 1):
        total = 0
        for i in range(offsets[n], offsets[n + 1] - 2):
            if 0xE4 <= data[i] <= 0xE9:  # three bytes: U+4000 to U+9FFF
                total += side[(data[i] & 15) << 12 | (data[i + 1] & 63) << 6 | (data[i + 2] & 63)]
        balance_N[n] = total
