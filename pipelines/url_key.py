"""Addresses of the web in one form, and what two addresses of one page have in common.

The one choice that matters: there is one normaliser, a kernel over whole columns, and everybody who compares addresses
asks it (duplicates by URL with case and port, lists of sites without), so that a list and a duplicate never disagree on
what an address says. It changes only what cannot change the page: RFC 3986, section 6.2.2 (case, percent signs, dots in
paths) and 6.2.3 (default ports), RFC 3987 (any script in percent signs), RFC 5891 (names in Punycode).

Legend of suffixes: B bytes, N addresses.
"""

import re
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.compiled import inlined, kernel
from pipelines.shingles import utf8_buffers

SLASH, COLON, AT_SIGN, DOT, PERCENT, QUESTION, HASH, BACKSLASH, BRACKET = (ord(c) for c in "/:@.%?#\\[")
CAMPAIGN = re.compile(
    r"(utm_\w*|fbclid|gclid|dclid|gbraid|wbraid|msclkid|yclid|twclid|ttclid|igshid|mc_cid|mc_eid|_ga|_gl|spm|"
    r"phpsessid|jsessionid)(=.*)?",
    re.IGNORECASE,
)
"""Parameters that follow campaigns and sessions, as browsers strip them."""
SESSION = re.compile(r";jsessionid=[^/?#]*", re.IGNORECASE)
INDEX = re.compile(r"/(index\.(html?|php))?$")
MARKED = r"\?|;|/index\."  # what a page's key may leave out stands in such addresses only
_UNRESERVED = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"
_DECODED = _UNRESERVED + "!$'()*,:@"  # a percent sign before these says nothing, in paths and in queries
_RAW = _DECODED + "&+;=/?"  # what stands in an address as it is; the rest gets percent signs


def _among(characters: str) -> np.ndarray:
    table = np.zeros(256, np.bool_)
    table[[ord(character) for character in characters]] = True
    return table


DECODED_T, RAW_T = _among(_DECODED), _among(_RAW)
DIGITS_T = np.frombuffer(b"0123456789ABCDEF", np.uint8)


class Addresses(NamedTuple):
    """Normalised addresses: `host[:port]/path?query`, without scheme, login, default port and fragment.

    Attributes:
        bytes_B: uint8, all addresses.
        start_N: int64, first byte of each; `start_N[n + 1]` is one past its last.
        host_N: int64, one past the last byte of each host.
    """

    bytes_B: np.ndarray
    start_N: np.ndarray
    host_N: np.ndarray

    def texts(self) -> pa.Array:
        """The addresses as a column of strings."""
        offsets, data = pa.py_buffer(self.start_N.astype(np.int64).tobytes()), pa.py_buffer(self.bytes_B.tobytes())
        return pa.LargeStringArray.from_buffers(len(self.host_N), offsets, data).cast(pa.string())


@inlined
def _hex(code):
    if 48 <= code <= 57:
        return code - 48
    lower = code | 32
    return lower - 87 if 97 <= lower <= 102 else -1


@kernel
def _bounds(data_B, start, end):
    """First byte of the host, one past its last, the colon of its port (or where the path begins), and the path."""
    at = start
    while at < end and at - start < 16:
        if data_B[at] == COLON and at + 2 < end and data_B[at + 1] == SLASH and data_B[at + 2] == SLASH:
            start = at + 3
            break
        code = data_B[at] | 32
        if not (97 <= code <= 122 or 48 <= data_B[at] <= 57 or data_B[at] in (43, 45, 46)):
            break
        at += 1
    if end - start >= 2 and data_B[start] == SLASH and data_B[start + 1] == SLASH:
        start += 2
    path = start
    while path < end and data_B[path] not in (SLASH, QUESTION, HASH, BACKSLASH):
        path += 1
    host = start
    for at in range(start, path):
        if data_B[at] == AT_SIGN:
            host = at + 1
    colon = path
    inside = False  # colons of an IPv6 address stand between brackets
    for at in range(host, path):
        if data_B[at] == BRACKET:
            inside = True
        elif data_B[at] == 93:
            inside = False
        elif data_B[at] == COLON and not inside:
            colon = at
            break
    stop = colon
    while stop > host and data_B[stop - 1] == DOT:
        stop -= 1
    return host, stop, colon, path


@inlined
def _lower(code):
    return code | 32 if 65 <= code <= 90 else code


@kernel
def _put(data_B, at, end, fold, out_B, used, decoded_T, digits_T):
    """Write a character that does not stand in addresses as it is, or a percent sign and what it means.

    Returns:
        The byte after it, and what is used.
    """
    code = np.int64(data_B[at])
    at += 1
    plain = False
    if code == PERCENT and at + 1 < end and _hex(data_B[at]) >= 0 and _hex(data_B[at + 1]) >= 0:
        code = np.int64(16 * _hex(data_B[at]) + _hex(data_B[at + 1]))
        at += 2
        plain = decoded_T[code]
    if plain:
        out_B[used] = _lower(code) if fold else code
        return at, used + 1
    out_B[used], out_B[used + 1], out_B[used + 2] = PERCENT, digits_T[code >> 4], digits_T[code & 15]
    return at, used + 3


@kernel
def _without_dots(out_B, root, segment, used):
    """Drop the last segment of a path where it is `.`, and the one before it where it is `..`; gives what is used."""
    size = used - segment
    if size == 1 and out_B[segment] == DOT:
        return segment
    if size == 2 and out_B[segment] == DOT and out_B[segment + 1] == DOT:
        used = segment - 1
        while used > root + 1 and out_B[used - 1] != SLASH:
            used -= 1
        return max(used, root + 1)
    return used


@kernel
def _put_port(data_B, colon, path, out_B, used, raw_T, digits_T):
    """The port of an address, but for those that its scheme means anyway."""
    number, digits = 0, path - colon > 1
    for at in range(colon + 1, path):
        digits &= 48 <= data_B[at] <= 57
        number = number * 10 + (data_B[at] - 48) if number < 100_000 else number
    if path - colon <= 1 or (digits and number in (80, 443)):
        return used
    at = colon
    while at < path:
        if raw_T[data_B[at]]:
            out_B[used] = data_B[at]
            used, at = used + 1, at + 1
        else:
            at, used = _put(data_B, at, path, False, out_B, used, raw_T, digits_T)
    return used


@kernel
def _put_rest(data_B, at, end, fold, out_B, used, decoded_T, raw_T, digits_T):
    """Path and query of an address."""
    root = segment = used
    while at < end and data_B[at] not in (QUESTION, HASH):
        if data_B[at] == SLASH or data_B[at] == BACKSLASH:
            if segment < used <= segment + 2 and out_B[segment] == DOT:
                used = _without_dots(out_B, root, segment, used)
            if used == root or out_B[used - 1] != SLASH:
                out_B[used] = SLASH
                used += 1
            segment = used
            at += 1
        elif raw_T[data_B[at]]:  # nearly all; a call would cost more than the work
            out_B[used] = _lower(data_B[at]) if fold else data_B[at]
            used, at = used + 1, at + 1
        else:
            at, used = _put(data_B, at, end, fold, out_B, used, decoded_T, digits_T)
    if root < segment < used:
        used = _without_dots(out_B, root, segment, used)
    while used > root and out_B[used - 1] == SLASH:
        used -= 1
    if at + 1 < end and data_B[at] == QUESTION and data_B[at + 1] != HASH:
        out_B[used] = QUESTION
        used, at = used + 1, at + 1
        while at < end and data_B[at] != HASH:
            if raw_T[data_B[at]]:
                out_B[used] = _lower(data_B[at]) if fold else data_B[at]
                used, at = used + 1, at + 1
            else:
                at, used = _put(data_B, at, end, fold, out_B, used, decoded_T, digits_T)
    return used


@kernel
def _normalise(data_B, offsets_N, lists, decoded_T, raw_T, digits_T, out_B, start_N, host_N, odd_N):
    used = 0
    for n in range(len(offsets_N) - 1):
        first, end = offsets_N[n], offsets_N[n + 1]
        while first < end and data_B[first] <= 32:
            first += 1
        while end > first and data_B[end - 1] <= 32:
            end -= 1
        host, stop, colon, path = _bounds(data_B, first, end)
        start_N[n] = used
        for at in range(host, stop):
            odd_N[n] |= data_B[at] >= 128 or data_B[at] == PERCENT
            out_B[used] = _lower(data_B[at])
            used += 1
        host_N[n] = used
        if not lists:
            used = _put_port(data_B, colon, path, out_B, used, raw_T, digits_T)
        used = _put_rest(data_B, path, end, lists, out_B, used, decoded_T, raw_T, digits_T)
    start_N[len(offsets_N) - 1] = used


def normalise_addresses(column: pa.Array | pa.ChunkedArray, lists: bool = False) -> Addresses:
    """Bring a column of addresses to one form.

    Args:
        column: string (N,); null counts as empty.
        lists: leave out ports and the case of ASCII letters, which lists of sites do not tell apart.
    """
    column = pc.fill_null(column, "")
    found, odd_N = _pass(column, lists)
    if not odd_N.any():
        return found
    rewritten = pa.array([_with_plain_host(column[n].as_py()) for n in np.flatnonzero(odd_N).tolist()], pa.string())
    again, _ = _pass(rewritten, lists)
    pieces = np.split(found.bytes_B, found.start_N[1:-1])
    hosts_N = found.host_N - found.start_N[:-1]
    hosts_N[odd_N] = again.host_N - again.start_N[:-1]
    for place, n in enumerate(np.flatnonzero(odd_N).tolist()):
        pieces[n] = again.bytes_B[again.start_N[place] : again.start_N[place + 1]]
    starts_N = np.concatenate([[0], np.cumsum([len(piece) for piece in pieces])])
    return Addresses(np.concatenate(pieces), starts_N, starts_N[:-1] + hosts_N)


def _pass(column: pa.Array | pa.ChunkedArray, lists: bool) -> tuple[Addresses, np.ndarray]:
    data_B, offsets_N = utf8_buffers(column)
    count = len(offsets_N) - 1
    out_B = np.empty(3 * int(offsets_N[-1] - offsets_N[0]) + count, np.uint8)
    start_N, host_N, odd_N = np.zeros(count + 1, np.int64), np.zeros(count, np.int64), np.zeros(count, np.bool_)
    _normalise(data_B, offsets_N, lists, DECODED_T, RAW_T, DIGITS_T, out_B, start_N, host_N, odd_N)
    return Addresses(out_B[: start_N[-1]], start_N, host_N), odd_N


def _with_plain_host(text: str) -> str:
    """An address whose host, of any script or behind percent signs, is in ASCII where it can be."""
    found = re.fullmatch(r"[\0-\x20]*([A-Za-z0-9+.-]{0,15}://)?(//)?([^/?#\\]*)(.*)", text, re.DOTALL)
    assert found is not None  # it takes any text
    host = unquote_to_bytes(found[3]).decode("utf-8", "replace").rpartition("@")[2]
    name, colon, port = host.partition(":")
    if not name.isascii():
        import idna

        try:
            name = idna.encode(name.rstrip("."), uts46=True, transitional=False).decode("ascii")
        except (idna.IDNAError, UnicodeError):
            name = name.lower()
    return name + colon + port + found[4]


@inlined
def without_www(data_B, start, host):
    """First byte of a host without `www.` (for kernels)."""
    www = host - start > 4 and data_B[start] == 119 and data_B[start + 1] == 119 and data_B[start + 2] == 119
    return start + 4 if www and data_B[start + 3] == DOT else start


def page_keys(column: pa.Array | pa.ChunkedArray) -> list[str]:
    """The keys of pages: equal for two addresses of one page.

    Left out besides what normalising leaves out: `www.`, session ids, campaign parameters (`CAMPAIGN`) and
    `index.html`; parameters are sorted.

    Args:
        column: string (N,), addresses with or without scheme; null counts as empty.
    """
    texts = pc.replace_substring_regex(normalise_addresses(column).texts(), r"^www\.(.)", r"\1")
    marked = pc.match_substring_regex(texts, MARKED).to_pylist()
    return [_page_key(text) if mark else text for text, mark in zip(texts.to_pylist(), marked, strict=True)]


def _page_key(address: str) -> str:
    path, _, query = address.partition("?")
    path = INDEX.sub("", SESSION.sub("", path))
    parameters = [p for p in query.split("&") if p and not CAMPAIGN.fullmatch(p)]
    return path + ("?" + "&".join(sorted(parameters)) if parameters else "")
