"""Places in texts where personal data may be, found by one compiled pass over the bytes.

The one choice that matters: patterns with checks run only on windows around what every kind of personal data holds: an
at sign, six digits, an address's dots or colons, a long word of letters and digits, the head of a key. A window is wide
enough for the longest match around it, so that the spans are those of the whole text (a test compares them).

Legend of suffixes: B bytes of all texts, N documents, W windows.
"""

import numpy as np
import pyarrow as pa

from filters.pii_patterns import ADDRESS, EMAIL, KEY_BLOCK, NUMBER, TOKEN
from pipelines.compiled import kernel
from pipelines.shingles import utf8_buffers

HEAD, TAIL = 100, 600
"""Characters before and after a place that belong to its window: the longest email has a name of 64 and names of 63."""
TOKEN_CHARS = 16
KEY_CHARS = 21_000  # of a block with a private key
DIGIT, HEX, LETTER, GAP, JOINER = 1, 2, 4, 8, 16
DOT, COLON, AT_SIGN, DASH, LETTER_B, LETTER_E = (ord(char) for char in ".:@-BE")


def _classes() -> np.ndarray:
    classes = np.zeros(256, np.uint8)
    for code in range(128):
        char = chr(code)
        classes[code] = (
            DIGIT * (char in "0123456789") | HEX * (char in "0123456789abcdefABCDEF") | LETTER * char.isalpha()
            | GAP * (char in " .-()") | JOINER * (char in "_-.+/=~")
        )  # fmt: skip
    return classes


CLASSES = _classes()


@kernel
def _note(windows_W4, used, doc, first, last, what):
    """Add a window, joined with those before it that it touches; returns the number of windows."""
    begin, end = max(first - HEAD, 0), last + TAIL
    while used and windows_W4[used - 1, 0] == doc and begin <= windows_W4[used - 1, 2]:
        begin, end = min(begin, windows_W4[used - 1, 1]), max(end, windows_W4[used - 1, 2])
        what |= windows_W4[used - 1, 3]
        used -= 1
    windows_W4[used, 0], windows_W4[used, 1], windows_W4[used, 2], windows_W4[used, 3] = doc, begin, end, what
    return used + 1


@kernel
def _scan_document(data_B, start, stop, doc, classes, windows_W4, used):
    char = -1  # index of the character that we are at
    number_at, digits, gap = 0, 0, 0
    quad_at, part, dots = 0, 0, 0
    colon_at, colons, hexes = 0, 0, 0
    token_at, length, letters, figures = 0, 0, 0, 0
    dashes = 0
    for at in range(start, stop + 1):
        code = data_B[at] if at < stop else np.uint8(0)  # the end of a document closes what is open
        if code & 0xC0 == 0x80:
            continue
        char += 1
        kind = classes[code]
        if kind & DIGIT:  # digits, with gaps of at most three signs between them
            number_at = number_at if digits else char
            digits, gap = digits + 1, 0
        elif digits:
            gap += 1
            if kind & GAP == 0 or gap > 3:
                used = _note(windows_W4, used, doc, number_at, char, NUMBER) if digits >= 6 else used
                digits = 0
        if kind & DIGIT:  # four numbers of at most three digits, dots between them
            quad_at = quad_at if part or dots else char
            part += 1
            used = _note(windows_W4, used, doc, quad_at, char, ADDRESS) if dots == 3 and part == 1 else used
        else:
            dots = dots + 1 if code == DOT and 0 < part <= 3 else 0
            part = 0
        if code == COLON:  # at most four hexadecimal digits between colons
            colon_at = colon_at if colons else char
            colons, hexes = colons + 1, 0
            used = _note(windows_W4, used, doc, colon_at, char, ADDRESS) if colons >= 3 else used
        elif kind & HEX and hexes < 4:
            hexes += 1
        else:
            colons, hexes = 0, 0
        if kind & (DIGIT | LETTER | JOINER):  # a long word of letters and digits
            if not length:
                token_at, letters, figures = char, 0, 0
            length += 1
            letters |= kind & LETTER
            figures |= kind & DIGIT
        else:
            if length >= TOKEN_CHARS and letters and figures:
                used = _note(windows_W4, used, doc, token_at, char, TOKEN)
            length = 0
        if code == AT_SIGN:
            used = _note(windows_W4, used, doc, char, char, EMAIL)
        dashes = dashes + 1 if code == DASH else 0
        if dashes == 5 and at + 2 < stop and data_B[at + 1] == LETTER_B and data_B[at + 2] == LETTER_E:
            used = _note(windows_W4, used, doc, char, char + KEY_CHARS, KEY_BLOCK)
    return used


@kernel
def _scan(data_B, offsets_N, classes, windows_W4):
    used = 0
    for doc in range(len(offsets_N) - 1):
        used = _scan_document(data_B, offsets_N[doc], offsets_N[doc + 1], doc, classes, windows_W4, used)
    return used


def candidates(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Windows of a column of texts that may hold personal data.

    Args:
        column: string (N,).

    Returns:
        int64 (W, 4): row, first character, end (may lie beyond the text), suspicions (`pii_patterns.EMAIL`, ...); in
        order, and windows of one row apart from each other.
    """
    data_B, offsets_N = utf8_buffers(column)
    room = int(offsets_N[-1] - offsets_N[0]) // TAIL + 2 * len(offsets_N) + 2
    windows_W4 = np.empty((room, 4), np.int64)
    return windows_W4[: _scan(data_B, offsets_N, CLASSES, windows_W4)]
