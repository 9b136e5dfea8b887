"""The character table: what each Unicode code point means to the rules, as bit flags that kernels look up.

The one choice that matters: classes come from Unicode properties (category, Sentence_Terminal), not from hand-written
lists, so that every script is covered; the classes that steer word splitting follow the documented behaviour of spaCy's
rule tokenizer, because the published thresholds were tuned on its words. Source: Unicode data of this Python.
"""

import functools
import unicodedata

import numpy as np

TABLE_SIZE = 0x20000
"""Code points from here on (CJK extensions, private use) share the last entry, that of a Han character."""

SPACE = 1 << 0  # str.isspace
ALPHA = 1 << 1  # str.isalpha
LOWER = 1 << 2  # lower case, or a letter of a script without case
UPPER = 1 << 3  # upper case, or a letter of a script without case
DIGIT = 1 << 4  # 0-9
AFFIX = 1 << 5  # a word of its own at the start or the end of a chunk: quotes, brackets, commas, icons
MARK = 1 << 6  # punctuation, symbol of ASCII or control: a word of only these is no word to Gopher
TERMINAL = 1 << 7  # ends a sentence
PUNCTUATION = 1 << 8  # category P*
CJK = 1 << 9  # Han, Hiragana, Katakana: each character is a word
LINE_BREAK = 1 << 10  # where str.splitlines splits
CURRENCY = 1 << 11
HYPHEN = 1 << 12
ICON = 1 << 13  # category So
BEFORE_DOT = 1 << 14  # a final dot after it is a word of its own
QUOTE = 1 << 15
CLUSTER = 1 << 16  # scripts written without spaces, other than CJK: a letter with its marks is a word
COMBINING = 1 << 17  # category M, and the letters that such scripts write before or after the one they belong to
OPERATOR = 1 << 18  # category Sm: mathematical signs

_QUOTES = "'\"”“`‘´’‚,„»«"
_AFFIXES = set("…,:;!?¿؟¡()[]{}<>_#*&。？！，、；：～·।،۔؛٪—–" + _QUOTES + "「」『』（）〔〕【】《》〈〉⟦⟧")
_ASCII_SYMBOLS = set("$+<=>^`|~")
_LINE_BREAKS = set("\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029")
_CJK_RANGES = ((0x2E80, 0x2FDF), (0x3005, 0x3007), (0x3041, 0x30FA), (0x30FC, 0x30FF), (0x3400, 0x4DBF),
               (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x1B000, 0x1B2FF))  # fmt: skip
_CLUSTER_RANGES = ((0x0E01, 0x0E4E), (0x0E81, 0x0EDF), (0x0F40, 0x0FBC), (0x1000, 0x103F), (0x1050, 0x109F),
                   (0x1780, 0x17D3), (0x1950, 0x19DF), (0x1A20, 0x1AAD), (0xAA60, 0xAA7F))  # fmt: skip
"""Thai, Lao, Tibetan, Myanmar, Khmer, Tai Le, New Tai Lue, Tai Tham, Myanmar Extended-A."""
_FOLLOWERS = set("\u0e30\u0e32\u0e33\u0e45\u0e46\u0eb0\u0eb2\u0eb3\u0ec6")  # Thai and Lao vowels after the letter


def _flags(char: str, terminal: frozenset[str]) -> int:
    category = unicodedata.category(char)
    cased = category in ("Lu", "Ll", "Lt")
    alpha = char.isalpha()
    affix = char in _AFFIXES or category == "So"
    tests = (
        (SPACE, char.isspace()),
        (ALPHA, alpha),
        (LOWER, alpha and (category == "Ll" or not cased)),
        (UPPER, alpha and (category in ("Lu", "Lt") or not cased)),
        (DIGIT, char in "0123456789"),
        (AFFIX, affix),
        (MARK, category[0] == "P" or category == "Cc" or char in _ASCII_SYMBOLS or char in terminal),
        (TERMINAL, char in terminal),
        (PUNCTUATION, category[0] == "P"),
        (CJK, any(a <= ord(char) <= b for a, b in _CJK_RANGES)),
        (LINE_BREAK, char in _LINE_BREAKS),
        (CURRENCY, category == "Sc"),
        (HYPHEN, char in "-–—~"),
        (ICON, category == "So"),
        (QUOTE, char in _QUOTES),
        (CLUSTER, (alpha or category[0] == "M") and any(a <= ord(char) <= b for a, b in _CLUSTER_RANGES)),
        (COMBINING, category[0] == "M" or char in _FOLLOWERS),
        (OPERATOR, category == "Sm"),
        (BEFORE_DOT, char in "0123456789%²-+" or (alpha and (category == "Ll" or not cased)) or char in _AFFIXES),
    )
    return sum(bit for bit, holds in tests if holds)


@functools.cache
def character_table() -> np.ndarray:
    """Flags of every code point.

    Returns:
        uint32 (`TABLE_SIZE`,); larger code points take the last entry.
    """
    import regex

    everything = "".join(map(chr, (c for c in range(TABLE_SIZE) if not 0xD800 <= c <= 0xDFFF)))
    terminal = frozenset(regex.findall(r"\p{Sentence_Terminal}", everything)) | {"｡", "．"}
    table = np.zeros(TABLE_SIZE, np.uint32)
    for char in everything:
        table[ord(char)] = _flags(char, terminal)
    table[-1] = ALPHA | LOWER | UPPER | CJK | BEFORE_DOT
    table.setflags(write=False)
    return table
