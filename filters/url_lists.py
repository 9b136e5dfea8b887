"""Lists of domains and addresses, matched the way that they are meant.

The one choice that matters: a domain covers itself and what lies below it, label by label, and an address covers what
begins with it at a slash or a question mark; list and document pass the same normaliser (`pipelines/url_key.py`), and
entries live as sorted 64-bit hashes, so that millions of them cost eight bytes each. Two addresses collide with a
chance of 10^-4 in a thousand million lookups in a million entries. Source: the squidGuard conventions of the UT1 lists
(University of Toulouse).

Legend of suffixes: B bytes, N addresses, E entries.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from pipelines.compiled import inlined, kernel
from pipelines.shingles import xxh64
from pipelines.url_key import Addresses, normalise_addresses, without_www

_SECOND_LEVEL_NAMES = "ac co com edu gob gov go ltd me mil ne net nom or org sch"
SECOND_LEVEL = frozenset(_SECOND_LEVEL_NAMES.split())
"""Names that registries of countries put before theirs: `co.uk` and `com.br` are suffixes, not somebody's domain."""
DOT, SLASH, QUESTION, AMPERSAND = (ord(c) for c in "./?&")


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
def _hash_entries(data_B, start_N, host_N, hash_N, path_N):
    for n in range(len(host_N)):
        first, end = start_N[n], start_N[n + 1]
        path_N[n] = end > host_N[n]
        hash_N[n] = xxh64(data_B, without_www(data_B, first, host_N[n]) if path_N[n] else first, end, np.uint64(0))


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
        found = normalise_addresses(entries, lists=True)
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
            first = without_www(data_B, start, host)
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
