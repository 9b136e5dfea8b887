import re
import unicodedata

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.document import STREAM, table_of
from pipelines.normalize import Normalize, normalize_text, normalized

MESSY = st.text(st.sampled_from("ab \t\n\r\0\x0c\x85\u2028é\u0301e\ufeffÅ字"), max_size=60) | st.text(max_size=40)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\r\nb\rc\n", "a\nb\nc"),
        ("nul\0 bell\x07 page\x0c", "nul bell page"),
        ("tab\tstays", "tab\tstays"),
        ("trailing  \nspaces\t\n", "trailing\nspaces"),
        ("    indented\n\treturn", "    indented\n\treturn"),
        ("a\n\n\n\n\n\nb", "a\n\n\nb"),
        ("a\n \n\t\n  \n \nb", "a\n\n\nb"),
        ("e\u0301", "é"),
        ("\ufeff\n\n text", " text"),
        (" \n \t", ""),
    ],
)
def test_examples(text, expected):
    assert normalize_text(text) == expected


@given(MESSY)
def test_again_changes_nothing(text):
    once = normalize_text(text)
    assert normalize_text(once) == once


@given(MESSY)
def test_the_columns_agree_with_plain_python(text):
    lines = re.sub("\r\n?|[\x85\u2028\u2029]", "\n", text)
    kept = "".join(c for c in lines if c in "\t\n" or (unicodedata.category(c) != "Cc" and c != "\ufeff"))
    stripped = "\n".join(line.rstrip(" \t") for line in unicodedata.normalize("NFC", kept).split("\n"))
    assert normalize_text(text) == re.sub(r"\n{4,}", "\n\n\n", stripped).strip("\n")


def test_null_stays_null():
    assert normalized(pa.chunked_array([["a ", None]])).to_pylist() == ["a", None]


def test_what_becomes_empty_is_rejected():
    batch = Normalize().apply(table_of([{"id": "a", "text": " x "}, {"id": "b", "text": " \r\n"}]))
    assert batch["text"].to_pylist() == [" x", ""]
    assert batch["reason"].to_pylist() == [None, "no_text"]
    assert batch.schema.equals(STREAM)
