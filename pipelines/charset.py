"""Which encoding bytes are in: byte order mark, valid UTF-8, HTTP header, the text's own word for it, then statistics.

A national encoding is read as its superset (GB 2312 and GBK as gb18030, EUC-KR as cp949, Shift_JIS as cp932, Big5 with
Hong Kong's additions), as browsers do. Labels are mapped by the table of the WHATWG Encoding Standard, names are those
of Python's codecs. The standard's order of evidence is kept but for one thing: servers say ISO-8859-1 of everything, so
that such a word loses against bytes that come in pairs. All work on bytes is done in C: regular expressions, codecs,
resiliparse's uchardet.
"""

import codecs
import re
from collections.abc import Iterator

META_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([\w-]{2,40})", re.IGNORECASE)
XML_CHARSET = re.compile(rb"^\s*<\?xml[^>]{0,100}encoding\s*=\s*[\"']([\w-]{2,40})")
META_BYTES = 4096
STATISTICS_BYTES = 1 << 18  # more tells no more, and uchardet reads 30 MB/s
BOMS = (
    (b"\xef\xbb\xbf", "utf-8"),
    (b"\xff\xfe\x00\x00", "utf-32-le"),  # before UTF-16, whose mark it begins with
    (b"\x00\x00\xfe\xff", "utf-32-be"),
    (b"\xff\xfe", "utf-16-le"),
    (b"\xfe\xff", "utf-16-be"),
    (b"\x84\x31\x95\x33", "gb18030"),
)
MAX_REPLACED = 0.02  # share of characters that no encoding explains, beyond which bytes are not text
MIN_HIGH_BYTES = 4  # fewer prove nothing: a single accent is taken for Western
PAIRED_SHARE = 0.9  # of the bytes beyond ASCII in Chinese, Japanese, Korean; far less in Latin scripts
PAIRS = re.compile(rb"(?:[\x81-\xfe][\x40-\x7e\x80-\xfe])+")
ASCII = bytes(range(128))
WIDE = ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")
ESCAPED = ("iso2022_jp", "iso2022_kr", "hz")
ESCAPED_LABELS = ("iso2022", "iso-2022", "iso_2022", "csiso2022", "hz")
NOT_TEXT = ("idna", "punycode", "utf-7", "unicode-escape", "raw-unicode-escape", "undefined", "utf_8_sig")
SUPERSETS = {
    "gbk": "gb18030", "gb2312": "gb18030", "euc_kr": "cp949", "shift_jis": "cp932", "big5": "big5hkscs",
    "iso8859-1": "cp1252", "iso8859-9": "cp1254", "iso8859-11": "cp874", "ascii": "cp1252",
    "utf-16": "utf-16-le", "utf-32": "utf-32-le",
}  # fmt: skip
"""What a name stands for in practice."""
ALTERNATIVES = {"cp932": ("shift_jis_2004",), "big5hkscs": ("cp950",), "cp950": ("big5hkscs",),
                "euc_jp": ("euc_jis_2004",)}  # fmt: skip
MULTIBYTE = ("gb18030", "big5hkscs", "cp950", "cp949", "cp932", "euc_jp")


def decode(payload: bytes, declared: str | None = None) -> tuple[str, str] | None:
    """Decode bytes whose encoding may be unknown.

    Args:
        payload: a page or a text.
        declared: what came with it says: charset of an HTTP header, or a recipe's `encoding`.

    Returns:
        text without byte order mark, and the encoding's name; None when no encoding explains the bytes.
    """
    for mark, encoding in BOMS:
        if payload.startswith(mark):
            return _checked(payload[len(mark) :], encoding)
    encoding = _without_high_bytes(payload, declared)
    if encoding is not None:
        return _checked(payload, encoding)
    try:
        return payload.decode(), "utf-8"  # valid UTF-8 is no accident
    except UnicodeDecodeError:
        pass
    best: tuple[float, str, str] | None = None
    for encoding in _candidates(payload, declared):
        found = _decoded(payload, encoding)
        if best is None or found[0] < best[0]:
            best = found
        if not found[0]:
            break
    if best is None or best[0] > MAX_REPLACED:
        best = min(_decoded(payload, "utf-8"), _decoded(payload, "cp1252"))
    return (best[1], best[2]) if best[0] <= MAX_REPLACED else None


def encoding_of(sample: bytes, declared: str | None = None) -> str | None:
    """The encoding of a stream that begins with `sample`, or None; a character cut off at its end does not count."""
    for end in range(len(sample), max(len(sample) - 4, 0), -1):
        try:
            sample[:end].decode()
        except UnicodeDecodeError:
            continue
        sample = sample[:end]
        break
    found = decode(sample, declared)
    return found[1] if found else None


def decode_within(data: bytes, encoding: str) -> tuple[str, bool]:
    """The text of one record of a file whose encoding is known, and whether that explains its bytes."""
    try:
        return data.decode(encoding), True
    except UnicodeDecodeError:
        text = data.decode(encoding, "replace")
        return text, encoding != "utf-8" and text.count("\ufffd") <= MAX_REPLACED * len(text)


def standard_name(label: str | None) -> str | None:
    """Python's name of the encoding of which a label speaks, or None for labels that mean nothing."""
    from resiliparse.parse.encoding import map_encoding_to_html5

    label = (label or "").strip().lower()
    if label in ("hz-gb-2312", "hz_gb_2312"):
        return "hz"
    try:
        name = codecs.lookup((label and map_encoding_to_html5(label, fallback_utf8=False)) or label).name
        "".encode(name)  # refuses base64 and its like, which are no encodings of text
    except (LookupError, ValueError):  # ValueError: a NUL in the label
        return None
    return None if name in NOT_TEXT else SUPERSETS.get(name, name)


def _without_high_bytes(payload: bytes, declared: str | None) -> str | None:
    """The encoding of bytes that would pass for ASCII and are not: with escape sequences, or two to four bytes wide."""
    sample = payload[:META_BYTES]
    if b"\x00" in sample:
        size = len(sample) & ~3
        zeros = [sample[n:size:4].count(0) / max(1, size // 4) for n in range(4)]
        for encoding, mask in zip(WIDE, ((0, 1, 0, 1), (1, 0, 1, 0), (0, 1, 1, 1), (1, 1, 1, 0)), strict=True):
            if size >= 8 and all((share > 0.5) == bool(bit) for share, bit in zip(zeros, mask, strict=True)):
                return encoding
    for label in (declared, _own_word(payload)):
        # the label is asked before the bytes: to look for "~{" takes longer than to decode
        name = standard_name(label) if label and label.strip().lower().startswith(ESCAPED_LABELS) else None
        if name in ESCAPED and (b"~{" if name == "hz" else b"\x1b") in payload:
            return name
    return "iso2022_jp" if b"\x1b" in payload and b"\x1b$B" in payload and payload.isascii() else None


def _own_word(payload: bytes) -> str | None:
    found = META_CHARSET.search(payload, 0, META_BYTES) or XML_CHARSET.search(payload, 0, META_BYTES)
    return found.group(1).decode("ascii", "ignore") if found else None


def _candidates(payload: bytes, declared: str | None) -> Iterator[str]:
    """Encodings to try, in order, without repeats."""
    from resiliparse.parse.encoding import detect_encoding

    sample = payload[:STATISTICS_BYTES]
    high = sample.translate(None, ASCII)
    # without HTML's mapping: it does not know some of uchardet's own names (UHC) and calls them UTF-8
    guessed = standard_name(detect_encoding(sample, html5_compatible=False)) if len(high) >= MIN_HIGH_BYTES else None
    said = [name for label in (declared, _own_word(payload)) if (name := standard_name(label))]
    said.sort(key=lambda name: name not in MULTIBYTE and name not in ("utf-8", *WIDE, *ESCAPED))
    open_to = guessed in MULTIBYTE and len(high) >= 16 and not set(said) & {*MULTIBYTE, "utf-8"}
    if guessed and open_to and sum(map(len, PAIRS.findall(sample))) >= PAIRED_SHARE * len(high):
        said.insert(0, guessed)
    yield from dict.fromkeys(said + ([guessed] if guessed else []))


def _decoded(payload: bytes, encoding: str) -> tuple[float, str, str]:
    """Share of characters that could not be decoded, text and name; the best of the codecs that a name may mean."""
    best: tuple[float, str, str] | None = None
    for codec in (encoding, *ALTERNATIVES.get(encoding, ())):
        text = payload.decode(codec, "replace")
        bad = text.count("\ufffd") / max(1, len(text))
        if best is None or bad < best[0]:
            best = (bad, text, codec)
        if not bad:
            break
    assert best is not None  # there is at least the encoding itself
    return best


def _checked(payload: bytes, encoding: str) -> tuple[str, str] | None:
    bad, text, name = _decoded(payload, encoding)
    return (text, name) if bad <= MAX_REPLACED else None
