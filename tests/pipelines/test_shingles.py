import itertools
import string

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from datatrove.utils.text import simplify_text
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.shingles import (
    GROWTH,
    code_points,
    collapse_whitespace,
    decode,
    simplify,
    utf8_buffers,
    words_of,
    xxh64,
)


def array_of(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)


@settings(deadline=None)  # the first call compiles
@given(st.binary(max_size=200), st.integers(0, 2**64 - 1))
def test_xxh64_is_the_c_librarys(data, seed):
    assert xxh64(array_of(data), 0, len(data), np.uint64(seed)) == xxhash.xxh64_intdigest(data, seed)


def test_xxh64_of_a_part_of_a_longer_array():
    data = bytes(range(256)) * 4
    assert xxh64(array_of(data), 3, 1000, np.uint64(0)) == xxhash.xxh64_intdigest(data[3:1000])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Hello, WORLD!  It's 3.14 on Monday – café №5…", "hello world it s 0 on monday cafe №0"),
        ("1.2.3 and 1,000 and 12|34", "0 0 and 0 and 0 0"),
        ("中文abc测试。", "中 文 abc 测 试"),
        ("ひらがな カタカナ", "ひ ら か な カ タ カ ナ"),  # voicing marks are marks: が is か
        ("ไทย", "ไ ท ย"),
        ("soft\u00adhyphen zero\u200bwidth", "softhyphen zerowidth"),
        ("e\u0301te\u0301 = été", "ete ete"),
        ("٣٫١٤ and ３", "0 and 0"),
        ("𠀀𠀁 😀", "𠀀 𠀁 😀"),
        ("", ""),
        ("...\x00\n\t—", ""),
    ],
)
def test_words(text, words):
    assert words_of(text) == words.split()


def test_numbers_can_stay_as_they_are():
    assert words_of("48 clips in 3.14 s", fold_numbers=False) == ["48", "clips", "in", "3", "14", "s"]


WESTERN = st.text(st.characters(max_codepoint=0x24F, exclude_categories=("Cf", "Cc")), max_size=80)
AS_OURS = str.maketrans({"·": " ", "§": " ", "¶": " ", "¡": " ", "¿": " ", "¨": " ", "¯": " ", "¸": " ", "´": " "})


@settings(deadline=None)  # the first call compiles
@given(WESTERN)
def test_words_are_those_of_datatroves_simplified_text(text):
    # punctuation that datatrove's list lacks is taken out first
    assert " ".join(words_of(text)) == " ".join(simplify_text(text.translate(AS_OURS)).split())


@settings(deadline=None)  # the first call compiles
@given(st.text(string.printable, max_size=60))
def test_case_punctuation_and_spaces_do_not_count(text):
    plain = "".join(c for c in text if c.isalnum() or c == " ")
    assert words_of(plain) == words_of("  " + plain.upper().replace(" ", " -- ") + "!?")


@settings(deadline=None)  # the first call compiles
@given(st.binary(max_size=60))
def test_any_bytes_are_read_within_bounds(data):
    out, units = np.empty(GROWTH * len(data), np.uint8), np.empty((len(data) // 2 + 1, 4), np.int64)
    used, words = simplify(array_of(data), 0, len(data), code_points(), True, True, out, units)
    assert out[:used].tobytes().count(b" ") == max(words - 1, 0)
    assert all(0 <= a < b <= len(data) for a, b in units[:words, 2:])


@settings(deadline=None)  # the first call compiles
@given(st.text(max_size=60))
def test_words_know_where_they_come_from(text):
    data = text.encode()
    out, units = np.empty(GROWTH * len(data), np.uint8), np.empty((len(data) // 2 + 1, 4), np.int64)
    used, words = simplify(array_of(data), 0, len(data), code_points(), True, True, out, units)
    again = [" ".join(words_of(data[a:b].decode())) for a, b in units[:words, 2:]]
    assert again == [out[a:b].tobytes().decode() for a, b in units[:words, :2]]
    assert " ".join(again).encode() == out[:used].tobytes()


@settings(deadline=None)  # the first call compiles
@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=1))
def test_decode_is_pythons(character):
    data = character.encode()
    assert decode(array_of(data), 0, len(data)) == (ord(character), len(data))


@pytest.mark.parametrize("data", [b"\xff", b"\x80", b"\xc3", b"\xe4\xb8", b"\xc3a", b"\xf4\x90\x80\x80"])
def test_broken_utf8_is_one_separator_byte(data):
    assert decode(array_of(data), 0, len(data)) == (0, 1)


@settings(deadline=None)  # the first call compiles
@given(st.lists(st.text(st.sampled_from("ab中é \t\n\u00a0\u2003\u3000\x85\x1c"), max_size=20), max_size=5))
def test_collapsed_whitespace_is_pythons_split_and_join(texts):
    data, ends = collapse_whitespace(pa.array(texts, pa.string()))
    joined = [data[a:b].tobytes().decode() for a, b in itertools.pairwise(ends)]
    assert joined == [" ".join(text.split()) for text in texts]


def test_buffers_of_a_slice_and_of_chunks():
    column = pa.chunked_array([["one", "two"], ["three"]]).slice(1)
    data, offsets = utf8_buffers(column)
    assert [data[a:b].tobytes() for a, b in itertools.pairwise(offsets)] == [b"two", b"three"]
