"""Lists of domains and addresses, matched the way that they are meant.

The one choice that matters: a domain covers itself and what lies below it, label by label, and an address covers what
begins with it at a slash or a question mark; list and document pass the same normaliser (case, percent signs, IDNA,
login, port), and entries live as sorted 64-bit hashes, so that millions of them cost eight bytes each. Two
addresses collide with a chance of 10^-4 in a thousand million lookups in a million entries. Sources: RFC 3986,
RFC 5891, the squidGuard conventions of the UT1 lists (University of Toulouse).

Legend of suffixes: B bytes, N addresses, E entries.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.compiled import inlined, kernel
from pipelines.shingles import utf8_buffers, xxh64

_SECOND_LEVEL_NAMES = "ac co com edu gob gov go ltd me mil ne net nom or org sch"
SECOND_LEVEL = frozenset(_SECOND_LEVEL_NAMES.split())
"""Names that registries of countries put before theirs: `co.uk` and `com.br` are suffixes, not somebody's domain."""
SLASH, COLON, AT_SIGN, DOT, PERCENT, QUESTION, HASH, BACKSLASH, BRACKET, AMPERSAND = (ord(c) for c in "/:@.%?#\\[&")


class Addresses(NamedTuple):
    """Normalised addresses: `host/path?query`, without scheme, login, port and fragment.

    Attributes:
        bytes_B: uint8, all addresses.
        start_N: int64, first byte of each; `start_N[n + 1]` is one past its last.
        host_N: int64, one past the last byte of each host.
    """

    bytes_B: np.ndarray
    start_N: np.ndarray
    host_N: np.ndarray


@inlined
def _hex(code):
    if 48 <= code <= 57:
        return code - 48
    lower = code | 32
    return lower - 87 if 97 <= lower <= 102 else -1


@kernel
def _host_bounds(data_B, start, end):
    """First and one past the last byte of the host of an address, and where the path begins."""
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
    stop = path
    if host < path and data_B[host] != BRACKET:
        for at in range(host, path):
            if data_B[at] == COLON:
                stop = at
                break
    while stop > host and data_B[stop - 1] == DOT:
        stop -= 1
    return host, stop, path


@kernel
def _normalise(data_B, offsets_N, out_B, start_N, host_N, odd_N):
    used = 0
    for n in range(len(offsets_N) - 1):
        first, end = offsets_N[n], offsets_N[n + 1]
        while first < end and data_B[first] <= 32:
            first += 1
        while end > first and data_B[end - 1] <= 32:
            end -= 1
        host, stop, path = _host_bounds(data_B, first, end)
        start_N[n] = used
        at = host
        while at < end:
            if at == stop:
                host_N[n], at = used, path
                if at >= end:
                    break
            code = data_B[at]
            at += 1
            if code == PERCENT and at + 1 < end and _hex(data_B[at]) >= 0 and _hex(data_B[at + 1]) >= 0:
                code = np.uint8(16 * _hex(data_B[at]) + _hex(data_B[at + 1]))
                at += 2
                odd_N[n] |= at <= path  # a host with percent signs may hide dots, ports and letters of any script
            elif code == HASH and at > path:
                break
            if code >= 128:
                odd_N[n] = True
            if 65 <= code <= 90:
                code |= 32
            if at > path and code == BACKSLASH:
                code = SLASH
            if at > path and code == SLASH and used > host_N[n] and out_B[used - 1] == SLASH:
                continue
            out_B[used] = code
            used += 1
        if stop >= end:
            host_N[n] = used
        while used > host_N[n] and out_B[used - 1] in (SLASH, QUESTION):
            used -= 1
    start_N[len(offsets_N) - 1] = used


def normalise_address(text: str) -> tuple[str, int]:
    """One address in Python: what the kernel does, and hosts and paths of any script besides.

    Returns:
        `host/path?query`, and the length of the host.
    """
    text = text.strip("".join(map(chr, range(33))))
    text = re.sub(r"^[A-Za-z0-9+.-]{0,15}://", "", text, count=1)
    text = text.removeprefix("//") if not text.startswith("///") else text[2:]
    split = re.search(r"[/?#\\]", text)
    host, rest = (text[: split.start()], text[split.start() :]) if split else (text, "")
    host = unquote_to_bytes(host).decode("utf-8", "replace").rpartition("@")[2].lower()
    if not host.startswith("["):
        host = host.partition(":")[0]
    host = _ascii_host(host.rstrip("."))
    rest = unquote_to_bytes(rest.partition("#")[0]).decode("utf-8", "replace").lower().replace("\\", "/")
    rest = re.sub("/+", "/", rest).rstrip("/?")
    return host + rest, len(host.encode())


def _ascii_host(host: str) -> str:
    if host.isascii():
        return host
    import idna

    try:
        return idna.encode(host, uts46=True, transitional=False).decode("ascii")
    except (idna.IDNAError, UnicodeError):
        return host


def normalise_addresses(column: pa.Array | pa.ChunkedArray) -> Addresses:
    """Bring a column of addresses to one form.

    Args:
        column: string (N,); null counts as empty.
    """
    column = pc.fill_null(column, "")
    data_B, offsets_N = utf8_buffers(column)
    size, count = int(offsets_N[-1] - offsets_N[0]), len(offsets_N) - 1
    out_B, start_N, host_N = np.empty(size, np.uint8), np.zeros(count + 1, np.int64), np.zeros(count, np.int64)
    odd_N = np.zeros(count, np.bool_)
    _normalise(data_B, offsets_N, out_B, start_N, host_N, odd_N)
    if not odd_N.any():
        return Addresses(out_B[: start_N[-1]], start_N, host_N)
    pieces = [out_B[start_N[n] : start_N[n + 1]] for n in range(count)]
    hosts = (host_N - start_N[:-1]).tolist()
    for n in np.flatnonzero(odd_N).tolist():
        text, hosts[n] = normalise_address(column[n].as_py())
        pieces[n] = np.frombuffer(text.encode(), np.uint8)
    starts_N = np.concatenate([[0], np.cumsum([len(piece) for piece in pieces])])
    return Addresses(np.concatenate(pieces), starts_N, starts_N[:-1] + np.array(hosts))


class Entries(NamedTuple):
    """A compiled list.

    Attributes:
        domains_E: uint64, sorted hashes of domains.
        domain_category_E: int32, the category of each.
        addresses_E: uint64, sorted hashes of addresses with a path.
        address_category_E: int32, the category of each.
        refused: entries that are public suffixes or empty: they would cover the whole web of a country.
    """

    domains_E: np.ndarray
    domain_category_E: np.ndarray
    addresses_E: np.ndarray
    address_category_E: np.ndarray
    refused: int


@kernel
def _without_www(data_B, start, host):
    www = host - start > 4 and data_B[start] == 119 and data_B[start + 1] == 119 and data_B[start + 2] == 119
    return start + 4 if www and data_B[start + 3] == DOT else start


@kernel
def _hash_entries(data_B, start_N, host_N, hash_N, path_N):
    for n in range(len(host_N)):
        first, end = start_N[n], start_N[n + 1]
        path_N[n] = end > host_N[n]
        hash_N[n] = xxh64(data_B, _without_www(data_B, first, host_N[n]) if path_N[n] else first, end, np.uint64(0))


def is_public_suffix(host: str, suffixes: frozenset[str]) -> bool:
    """Whether a host is a registry's and nobody's: by the public suffix list if given, else by the usual names."""
    labels = host.split(".")
    if len(labels) < 2 or host in suffixes:
        return True
    if suffixes:
        return f"!{host}" not in suffixes and ".".join(["*", *labels[1:]]) in suffixes
    return len(labels) == 2 and len(labels[1]) == 2 and labels[0] in SECOND_LEVEL


def compile_entries(lists: Iterable[tuple[int, pa.Array]], suffixes: frozenset[str] = frozenset()) -> Entries:
    """Compile lists of domains and addresses.

    Args:
        lists: category and entries, string (E,); where two hold the same entry, the first category stays.
        suffixes: rules of the public suffix list; empty: a rule of thumb.
    """
    hashes, kinds, categories, refused = [], [], [], 0
    for category, entries in lists:
        found = normalise_addresses(entries)
        count = len(found.host_N)
        hash_N, path_N = np.zeros(count, np.uint64), np.zeros(count, np.bool_)
        _hash_entries(found.bytes_B, found.start_N, found.host_N, hash_N, path_N)
        bad_N = _suffixes_among(found, suffixes) & ~path_N
        refused += int(bad_N.sum())
        hashes.append(hash_N[~bad_N])
        kinds.append(path_N[~bad_N])
        categories.append(np.full(int((~bad_N).sum()), category, np.int32))
    hash_E = np.concatenate([*hashes, np.zeros(0, np.uint64)])
    path_E, category_E = (
        np.concatenate([*kinds, np.zeros(0, bool)]),
        np.concatenate([*categories, np.zeros(0, np.int32)]),
    )
    domains_E, first_D = np.unique(hash_E[~path_E], return_index=True)
    addresses_E, first_A = np.unique(hash_E[path_E], return_index=True)
    return Entries(domains_E, category_E[~path_E][first_D], addresses_E, category_E[path_E][first_A], refused)


def _suffixes_among(found: Addresses, suffixes: frozenset[str]) -> np.ndarray:
    """Bool (N,): hosts that are public suffixes (looked at in Python only where they are short)."""
    bad_N = np.zeros(len(found.host_N), bool)
    text = found.bytes_B.tobytes()
    short = 24 if not suffixes else 80
    for n in np.flatnonzero(found.host_N - found.start_N[:-1] <= short).tolist():
        host = text[found.start_N[n] : found.host_N[n]].decode()
        bad_N[n] = (suffixes or host.count(".") < 2) and is_public_suffix(host, suffixes)
    return bad_N


@inlined
def _place(sorted_E, wanted):
    low, high = 0, len(sorted_E)
    while low < high:
        middle = (low + high) >> 1
        if sorted_E[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return low if low < len(sorted_E) and sorted_E[low] == wanted else -1


@kernel
def _match(data_B, start_N, host_N, domains_E, domain_category_E, addresses_E, address_category_E, domain_N, address_N):
    for n in range(len(host_N)):
        start, host, end = start_N[n], host_N[n], start_N[n + 1]
        domain_N[n], address_N[n] = -1, -1
        numeric = host > start
        for at in range(start, host):
            numeric &= data_B[at] == DOT or 48 <= data_B[at] <= 57
        for at in range(start, host):  # the whole host first, then what lies above it
            if at == start or (data_B[at - 1] == DOT and not numeric):
                place = _place(domains_E, xxh64(data_B, at, host, np.uint64(0)))
                if place >= 0:
                    domain_N[n] = domain_category_E[place]
                    break
        if len(addresses_E):
            first = _without_www(data_B, start, host)
            for at in range(host + 1, end + 1):
                if at == end or data_B[at] == SLASH or data_B[at] == QUESTION or data_B[at] == AMPERSAND:
                    place = _place(addresses_E, xxh64(data_B, first, at, np.uint64(0)))
                    if place >= 0:
                        address_N[n] = address_category_E[place]
                        break


def match_addresses(found: Addresses, entries: Entries) -> tuple[np.ndarray, np.ndarray]:
    """Which list covers each address.

    Returns:
        int32 (N,) category whose domains cover it, and int32 (N,) category whose addresses do; -1 where none does.
    """
    domain_N, address_N = np.empty(len(found.host_N), np.int32), np.empty(len(found.host_N), np.int32)
    _match(found.bytes_B, found.start_N, found.host_N, *entries[:4], domain_N, address_N)
    return domain_N, address_N
