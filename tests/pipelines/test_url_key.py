import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.url_key import normalized_url


@pytest.mark.parametrize(
    ("url", "normal"),
    [
        ("HTTPS://WWW.Example.COM:443/Path/", "example.com/Path"),
        ("example.com", "example.com"),
        ("http://example.com:8080/?b=2&a=1&fbclid=z", "example.com:8080?a=1&b=2"),
        ("http://[broken", "http://[broken"),
        ("http://host:port/", "http://host:port/"),
        ("http://user:secret@example.com/a/./b/../c//d#part", "example.com/a/c/d"),
        ("http://example.com/index.html?utm_source=x&UTM_Medium=y", "example.com"),
        ("http://example.com/%7ejohn/caf%c3%a9", "example.com/~john/caf%C3%A9"),
        ("http://example.com/~john/café", "example.com/~john/caf%C3%A9"),
        ("http://example.com/a%2fb", "example.com/a%2Fb"),
        ("http://bücher.example/x;jsessionid=12?id=3", "xn--bcher-kva.example/x?id=3"),
        ("http://example.com/p?id=1&id=2", "example.com/p?id=1&id=2"),
    ],
)
def test_normalized_url(url, normal):
    assert normalized_url(url) == normal


@given(st.text(max_size=60))
def test_any_text_has_a_key_that_is_its_own(text):
    assert normalized_url(f"http://example.com/{text}") == normalized_url(f"  https://EXAMPLE.com/{text} ")
