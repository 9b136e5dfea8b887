import gzip

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from filters.url_lists import (
    compile_entries,
    is_public_suffix,
    match_addresses,
    normalise_address,
    normalise_addresses,
)


def normalised(*addresses):
    found = normalise_addresses(pa.array(addresses, pa.string()))
    text = found.bytes_B.tobytes()
    return [text[found.start_N[n] : found.start_N[n + 1]].decode() for n in range(len(addresses))]


def covered(entries, *addresses):
    """By domain, by address or not at all."""
    compiled = compile_entries([(0, pa.array(entries))])
    domain, address = match_addresses(normalise_addresses(pa.array(addresses, pa.string())), compiled)
    return ["domain" if d >= 0 else "address" if a >= 0 else None for d, a in zip(domain, address, strict=True)]


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("HTTP://User:pw@Www.Example.COM.:8080/A//b%2Fc/?q=1#frag", "www.example.com/a/b/c/?q=1"),
        ("example.com", "example.com"),
        ("//example.com/", "example.com"),
        ("https://bücher.example/Straße", "xn--bcher-kva.example/straße"),
        ("http://ex%61mple.com/%E4%BD%A0", "example.com/你"),
        ("http://[2001:db8::1]:80/x", "[2001:db8::1]:80/x"),
        ("http://a.com?x=1", "a.com?x=1"),
        ("", ""),
        (None, ""),
    ],
)
def test_addresses_have_one_form(address, expected):
    assert normalised(address) == [expected]


PARTS = [
    "http://",
    "//",
    "a.com",
    "WWW.",
    "x",
    "/",
    "?",
    "#",
    "%41",
    "%",
    "%2f",
    ":80",
    "@",
    ".",
    "\\",
    " ",
    "-",
    "&",
    "[",
]


@given(st.lists(st.sampled_from(PARTS), max_size=8).map("".join))
def test_the_kernel_does_what_python_does(address):
    text, host = normalise_address(address)
    found = normalise_addresses(pa.array([address]))
    assert normalised(address) == [text]
    assert found.host_N[0] - found.start_N[0] == host


@given(st.text(max_size=40))
def test_any_text_is_an_address_of_some_form(address):
    address = address.encode("utf-8", "ignore").decode()
    assert normalised(address, "x.org", address)[1] == "x.org"


def test_a_domain_covers_what_lies_below_it_label_by_label():
    addresses = ["http://bad.com/x", "http://a.b.BAD.com", "http://notbad.com", "http://bad.com.org", "http://bad.co"]
    assert covered(["bad.com"], *addresses) == ["domain", "domain", None, None, None]
    assert covered(["deep.bad.com"], "http://bad.com", "http://x.deep.bad.com") == [None, "domain"]


def test_an_address_covers_what_begins_with_it_at_a_boundary():
    entries = ["host.com/Page", "www.other.com/a?b=1"]
    addresses = ["http://www.host.com/page", "https://host.com/page/more", "http://host.com/page?x", "http://host.com/pages",
                 "http://host.com", "http://sub.host.com/page", "http://other.com/a?b=1&c=2",
                 "http://other.com/a?b=12"]  # fmt: skip
    assert covered(entries, *addresses) == ["address", "address", "address", None, None, None, "address", None]


def test_numbers_are_covered_whole():
    assert covered(["10.0.0.1", "0.1"], "http://10.0.0.1/x", "http://9.0.0.1") == ["domain", None]


def test_names_of_any_script_meet_their_ascii_form():
    assert covered(["xn--bcher-kva.example"], "http://BÜCHER.example") == ["domain"]
    assert covered(["bücher.example"], "http://xn--bcher-kva.example/x") == ["domain"]


def test_public_suffixes_cover_nobody():
    compiled = compile_entries([(0, pa.array(["com", "co.uk", "", "a.co.uk"]))])
    assert compiled.refused == 3
    assert len(compiled.domains_E) == 1
    rules = frozenset(["com", "*.ck", "!www.ck", "blogspot.com"])
    hosts = ["blogspot.com", "a.blogspot.com", "x.ck", "www.ck", "com"]
    assert [is_public_suffix(host, rules) for host in hosts] == [True, False, True, False, True]


def test_the_first_category_of_an_entry_stays():
    compiled = compile_entries([(3, pa.array(["a.com"])), (1, pa.array(["a.com", "b.com"]))])
    found = normalise_addresses(pa.array(["http://a.com", "http://b.com"]))
    assert match_addresses(found, compiled)[0].tolist() == [3, 1]


def test_every_entry_of_a_real_list_covers_itself_and_nothing_like_it(shared):
    with gzip.open(shared / "lists/ut1/gambling_domains.txt.gz", "rt") as lines:
        entries = [line.strip() for line in lines if line.strip()]
    compiled = compile_entries([(0, pa.array(entries))])
    for form, expected in (
        ("http://{}/", True),
        ("https://sub.{}/x", True),
        ("http://not{}/", False),
        ("http://{}.invalid", False),
    ):
        domain, _ = match_addresses(normalise_addresses(pa.array([form.format(e) for e in entries])), compiled)
        share = np.mean(domain >= 0)
        assert share > 0.999 if expected else share < 0.001, form
