"""One form of addresses: cases with their answer, an independent reading by urllib, and what must hold of any text."""

import posixpath
import re
from urllib.parse import quote, unquote, urlsplit

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.url_key import normalise_addresses, page_keys


def page_key(url):
    return page_keys(pa.array([url], pa.string()))[0]


def listed(*urls):
    """As lists of sites read them, with the length of the host."""
    found = normalise_addresses(pa.array(urls, pa.string()), lists=True)
    return list(zip(found.texts().to_pylist(), (found.host_N - found.start_N[:-1]).tolist(), strict=True))


@pytest.mark.parametrize(
    ("url", "key"),
    [
        ("HTTPS://WWW.Example.COM:443/Path/", "example.com/Path"),
        ("example.com", "example.com"),
        ("http://example.com:8080/?b=2&a=1&fbclid=z", "example.com:8080?a=1&b=2"),
        ("http://[broken", "[broken"),
        ("http://[2001:DB8::1]:80/x", "[2001:db8::1]/x"),
        ("http://host:port/", "host:port"),
        ("http://user:secret@example.com/a/./b/../c//d#part", "example.com/a/c/d"),
        ("http://example.com/../../a/..", "example.com"),
        ("http://example.com\\a\\b", "example.com/a/b"),
        ("http://example.com/index.html?utm_source=x&UTM_Medium=y", "example.com"),
        ("http://example.com/%7ejohn/caf%c3%a9", "example.com/~john/caf%C3%A9"),
        ("http://example.com/~john/café", "example.com/~john/caf%C3%A9"),
        ("http://example.com/a%2fb?x=%26&y=100%", "example.com/a%2Fb?x=%26&y=100%25"),
        ("http://bücher.example/x;jsessionid=12?id=3", "xn--bcher-kva.example/x?id=3"),
        ("http://B%C3%BCcher.example:8080/", "xn--bcher-kva.example:8080"),
        ("http://example.com/p?id=1&id=2", "example.com/p?id=1&id=2"),
        ("", ""),
        (None, ""),
    ],
)
def test_page_keys(url, key):
    assert page_key(url) == key


@pytest.mark.parametrize(
    ("url", "form"),
    [
        ("HTTP://User:pw@Www.Example.COM.:8080/A//b%2Fc/?q=1#frag", "www.example.com/a/b%2Fc?q=1"),
        ("//example.com/", "example.com"),
        ("https://bücher.example/Straße", "xn--bcher-kva.example/stra%C3%9Fe"),
        ("http://ex%61mple.com/%E4%BD%A0", "example.com/%E4%BD%A0"),
        ("http://a.com?x=1", "a.com?x=1"),
        ("http://a.com/?", "a.com"),
    ],
)
def test_lists_know_neither_port_nor_case(url, form):
    assert listed(url) == [(form, len(re.split("[/?]", form)[0]))]


def test_what_cannot_be_the_same_page_keeps_a_key_of_its_own():
    urls = [
        "http://a.com/x",
        "http://a.com/X",
        "http://a.com:81/x",
        "http://b.a.com/x",
        "http://a.com/x?y",
        "http://a.com/x/z",
    ]
    assert len(set(page_keys(pa.array(urls)))) == len(urls)


def by_urllib(url):
    """The same form by other code, for addresses whose host is plain."""
    parts = urlsplit(url)
    port = "" if parts.port in (None, 80, 443) else f":{parts.port}"
    pieces = [
        re.sub("%2[fF]|[^/]+", lambda m: "%2F" if m[0].lower() == "%2f" else m[0], piece)
        for piece in parts.path.split("/")
    ]
    kept = "&+;=?"  # these and what stands for them differ
    path = "/".join(re.sub("((?:%[0-9A-Fa-f]{2})|.)", lambda m: _one(m[0], kept), piece) for piece in pieces)
    path = posixpath.normpath(path) if path else ""
    query = re.sub("((?:%[0-9A-Fa-f]{2})|.)", lambda m: _one(m[0], kept + "/"), parts.query)
    path = "/" + path.strip("/") if path.strip("/") not in ("", ".") else ""
    return (parts.hostname or "").rstrip(".") + port + path + (f"?{query}" if query else "")


def _one(unit, kept):
    """One character or triplet, in the form that RFC 3986 calls normal."""
    if len(unit) == 3:
        plain = unquote(unit, errors="surrogateescape")
        return plain if plain.isascii() and re.fullmatch(r"[\w.~!$'()*,:@-]", plain) else unit.upper()
    return quote(unit, "!$'()*,:@~" + kept)


PIECES = [
    "a",
    "Bc",
    "/",
    "//",
    "..",
    ".",
    "%41",
    "%2f",
    "%3D",
    "%c3%a9",
    "é",
    "=",
    "&",
    "+",
    ";",
    "~",
    " ",
    "|",
    "%",
    "*",
]


def joined(pieces, most):
    return st.lists(st.sampled_from(pieces), max_size=most).map("".join)


@given(joined(PIECES, 9), joined(PIECES, 6), st.sampled_from(["", ":80", ":8080"]))
def test_the_kernel_does_what_urllib_does(path, query, port):
    url = f"http://Host.Example{port}/{path}" + (f"?{query}" if query else "")
    url = url.rstrip(" ")
    assert normalise_addresses(pa.array([url])).texts().to_pylist() == [by_urllib(url)]


@given(st.text(max_size=60))
def test_any_text_has_a_form_and_the_form_has_itself(text):
    text = text.encode("utf-8", "ignore").decode()
    url = f"http://example.com/{text}"
    (form, other) = normalise_addresses(pa.array([url, "x.org"])).texts().to_pylist()
    assert other == "x.org"
    assert normalise_addresses(pa.array([form])).texts().to_pylist() == [form]
    assert page_key(url) == page_key(f"  https://EXAMPLE.com/{text} ")


ODD = [
    "http://",
    "//",
    "a.com",
    "WWW.",
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
    "&",
    "[",
    "]",
    "é",
]


@given(joined(ODD, 8))
def test_any_pieces_are_an_address_of_some_form(address):
    (form, host), (last, _) = listed(address, "x.org")
    assert last == "x.org"
    assert 0 <= host <= len(form.encode())
