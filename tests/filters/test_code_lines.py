import gzip
import json
import tarfile

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from filters.code_lines import WINDOW_BYTES, WINDOWS, windows_of
from filters.language_model import identify

PYTHON = '''def area(radius):
    """The area of a circle, which everybody knows from school, where it was written on the board."""
    return math.pi * radius ** 2


print(area(2.0))
'''
PROSE = "The village lies on a hill, and nobody in it wanted to work that afternoon; they sat and talked.\n"


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("x = foo(bar)", True),
        ("for (int i = 0; i < n; i++) {", True),
        ("use std::collections::HashMap;", True),
        ('    "name": "loam",', True),
        ("export PATH=$HOME/bin:$PATH", True),
        ("import typing", True),
        ("return self.value", True),
        ("// what follows is a comment", False),
        ("# Results", False),
        ("= = Description = =", False),
        ("He said (and meant) it: see www.example.com for more about that.", False),
        (r"Let $f(x) = x^2$ and \frac{a}{b} = c_{1}.", False),
        ("“The contract ends;", False),
        ("天气很好（真的），那天下午村里没有人想工作；", False),
        ("12 | 3.4 | -", False),
    ],
)
def test_a_line_is_code_or_not(line, code):
    assert (windows_of(pa.array([line])).texts.to_pylist() == [""]) is code


def test_docstrings_and_comments_count_for_neither_side():
    seen = windows_of(pa.array([PYTHON]))
    assert seen.is_code.tolist() == [True]
    assert seen.code_share.tolist() == [1]


def test_code_is_left_out_of_prose():
    seen = windows_of(pa.array([PROSE * 5 + "    x = foo(bar);\n" + PROSE]))
    assert seen.texts.to_pylist() == [PROSE * 6]
    assert seen.is_code.tolist() == [False]


def test_a_long_text_is_looked_at_in_four_places():
    seen = windows_of(pa.array(["short", "".join(f"{n:05d} " for n in range(5000))]))
    assert seen.rows.tolist() == [0, 1, 1, 1, 1]
    firsts = [int(text.split()[1]) for text in seen.texts.to_pylist()[1:]]
    assert firsts[0] == 1
    assert firsts[-1] > 4800
    assert np.ptp(np.diff(firsts)) <= 1
    assert all(len(text) == WINDOW_BYTES for text in seen.texts.to_pylist()[1:])


@given(st.lists(st.text(max_size=40).map(lambda text: text * 97), max_size=5))
def test_any_text_is_cut_at_whole_characters(texts):
    seen = windows_of(pa.array(texts, pa.string()))
    seen.texts.validate(full=True)
    for text, row in zip(seen.texts.to_pylist(), seen.rows, strict=True):
        size = len(texts[row].encode())
        assert len(text.encode()) <= (size if size <= WINDOWS * WINDOW_BYTES else WINDOW_BYTES + 3)


def test_files_of_many_programming_languages_are_code(shared):
    """Files of comments alone, licences among them, are English; the rest is code."""
    found: dict[str, list[str]] = {}
    for path in sorted((shared / "code").glob("*.tar.gz")):
        with tarfile.open(path) as archive:
            for member in archive:
                kind = member.name.rsplit(".", 1)[-1]
                if member.isfile() and kind not in ("txt", "LICENSE") and (file := archive.extractfile(member)):
                    found.setdefault(kind, []).append(file.read().decode("utf-8", "replace"))
    found = {kind: texts for kind, texts in found.items() if len(texts) >= 20}
    assert {"py", "go", "rs", "scala", "cc", "java", "ts"} <= found.keys()
    texts = [text for of in found.values() for text in of if text.strip()]
    codes, confidence = identify(pa.array(texts))
    is_code = np.array(codes.to_pylist()) == "zxx"
    assert is_code.mean() > 0.96
    assert np.isin(np.array(codes.to_pylist())[~is_code], ["eng", "und"]).mean() > 0.8
    assert np.median(confidence[is_code]) > 0.95
    assert confidence[is_code].min() > 0.85


def test_prose_and_mathematics_are_no_code(shared):
    with gzip.open(shared / "langid/tatoeba_112.tsv.gz", "rt", encoding="utf-8") as lines:
        sentences = [line.rstrip("\n").split("\t", 1)[1] for line in lines]
    with gzip.open(shared / "math/math.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    mathematics = ["\n".join(value for value in row.values() if isinstance(value, str)) for row in rows[:2000]]
    wiki = (shared / "encyclopedia/wikitext-2/valid.txt").read_text(encoding="utf-8").split("\n \n")
    assert windows_of(pa.array(sentences)).is_code.mean() < 0.0001
    assert windows_of(pa.array(mathematics)).is_code.mean() < 0.04  # drawings in Asymptote are code
    assert windows_of(pa.array(wiki)).is_code.mean() < 0.01
