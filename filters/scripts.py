"""Scripts: which letters a text is written in, as ISO 15924 codes.

The one choice that matters: a letter's script is the first word of its Unicode name, so that no table is shipped, and
two old national standards are the evidence for Chinese: a character of GB 2312 that Big5 lacks is a simplified form,
one of Big5 that GB 2312 lacks a traditional one; the many that both have say nothing. Source: the Unicode database,
GB 2312-1980 and Big5 as Python's own libraries know them.
"""

import functools
import unicodedata

import numpy as np
import pyarrow as pa

from filters.text_memory import buffers_of
from pipelines.compiled import kernel

_NAMES = """
LATIN:Latn CYRILLIC:Cyrl GREEK:Grek COPTIC:Copt ARMENIAN:Armn HEBREW:Hebr ARABIC:Arab SYRIAC:Syrc THAANA:Thaa NKO:Nkoo
DEVANAGARI:Deva BENGALI:Beng GURMUKHI:Guru GUJARATI:Gujr ORIYA:Orya TAMIL:Taml TELUGU:Telu KANNADA:Knda MALAYALAM:Mlym
SINHALA:Sinh THAI:Thai LAO:Laoo TIBETAN:Tibt MYANMAR:Mymr GEORGIAN:Geor HANGUL:Hang ETHIOPIC:Ethi CHEROKEE:Cher
CANADIAN:Cans KHMER:Khmr MONGOLIAN:Mong TIFINAGH:Tfng HIRAGANA:Kana KATAKANA:Kana BOPOMOFO:Bopo CJK:Hani YI:Yiii OL:Olck
BALINESE:Bali JAVANESE:Java SUNDANESE:Sund MEETEI:Mtei TAGALOG:Tglg NEW:Talu VAI:Vaii SYLOTI:Sylo
"""
_PAIRS = {name: code for name, _, code in (pair.partition(":") for pair in _NAMES.split())}
SCRIPTS = tuple(dict.fromkeys(_PAIRS.values()))
HAN, KANA = SCRIPTS.index("Hani"), SCRIPTS.index("Kana")
JAPANESE_SHARE = 0.05  # of kana among Han and kana; Japanese has about half, Chinese none
KNOWN = frozenset(SCRIPTS) - {"Kana"} | {"Hans", "Hant", "Jpan"}
"""What `script_of` can answer."""


@functools.cache
def _script_of_point() -> np.ndarray:
    """int16 (65536,): the number of a letter's script, -1 for what is no letter or in another one."""
    table = np.full(1 << 16, -1, np.int16)
    numbers = {name: SCRIPTS.index(code) for name, code in _PAIRS.items()}
    for point in range(0x41, 1 << 16):
        if unicodedata.category(chr(point))[0] in "LM":
            table[point] = numbers.get(unicodedata.name(chr(point), "").split(" ", 1)[0].split("-")[0], -1)
    return table


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


def script_of(texts: pa.Array, codes: pa.Array) -> pa.Array:
    """Name the script of most letters of each text.

    Args:
        texts: string (N,).
        codes: their languages, ISO 639-3: Japanese without kana is Japanese all the same.

    Returns:
        string (N,), ISO 15924: `Latn`, `Cyrl`, `Arab`...; `Hans` or `Hant` for Chinese, `Hani` where no character
        tells, `Jpan` for Japanese, `Hang` for Korean; null without letters, or with those of no script known here.
    """
    data, offsets = buffers_of(texts)
    letters_NS = np.zeros((len(texts), len(SCRIPTS)), np.int64)
    balance_N = np.zeros(len(texts), np.int64)
    _count(data, offsets, _script_of_point(), _side(), letters_NS, balance_N)
    han_N = letters_NS[:, HAN] + letters_NS[:, KANA]
    japanese_N = (letters_NS[:, KANA] > JAPANESE_SHARE * han_N) | np.array(
        [code == "jpn" for code in codes.to_pylist()]
    )
    letters_NS[:, HAN], letters_NS[:, KANA] = han_N, 0
    top_N = letters_NS.argmax(axis=1)
    names = np.array(SCRIPTS, object)[top_N]
    chinese = np.array(["Hans", "Hani", "Hant"], object)[np.sign(balance_N) + 1]
    names = np.where(top_N == HAN, np.where(japanese_N, "Jpan", chinese), names)
    return pa.array(names, pa.string(), mask=letters_NS.sum(axis=1) == 0)


@kernel
def _count(data, offsets, script_of_point, side, letters_NS, balance_N):
    for n in range(len(offsets) - 1):
        i = offsets[n]
        while i < offsets[n + 1]:
            c = np.int64(data[i])
            if c < 0x80:
                width = 1
            elif c < 0xE0:
                width, c = 2, (c & 31) << 6 | (data[i + 1] & 63)
            elif c < 0xF0:
                width, c = 3, (c & 15) << 12 | np.int64(data[i + 1] & 63) << 6 | (data[i + 2] & 63)
                balance_N[n] += side[c]
            else:
                width, c = 4, -1
            i += width
            script = script_of_point[c] if c >= 0 else -1
            if script >= 0:
                letters_NS[n, script] += 1
