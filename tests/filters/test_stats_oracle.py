"""Every statistic against a few lines of plain Python, on any text that hypothesis finds."""

import re
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from filters.characters import ALPHA, CJK, DIGIT, MARK, PUNCTUATION, TERMINAL, character_table
from filters.text_memory import decode, lexicon, scratch
from filters.text_stats import PARTS, STATS, text_stats
from filters.word_split import split_words

LEXICON, TABLE = lexicon(), character_table()
WORDS = ["the", "of", "and", "sand", "clay", "loam", "Ünïcode", "中文", "do", "a"]
ODD = [" ", "  ", "\n", "\n\n", "\t", ".", "...", "…", "!", "- ", "• ", "#", "{", "\r\n", "\u2028", "。", "lorem ipsum",
       "javascript", "uses cookies", "\x00", "$x+1$", "\\frac", "[12]", "\u0e17\u0e35\u0e48"]  # fmt: skip
texts = st.one_of(
    st.text(st.characters(max_codepoint=0x1FFFE), max_size=120),  # from 0x1FFFF on all count as Han
    st.lists(st.sampled_from([*WORDS, *ODD]), max_size=60).map(" ".join),
    st.lists(st.sampled_from([*WORDS, *ODD]), max_size=60).map("".join),
).map(lambda text: text.encode("utf-8", "ignore").decode())


def words_of(text: str) -> list[str]:
    data = np.frombuffer(text.encode() or b" ", np.uint8)
    memory = scratch(len(data))
    n = decode(data, 0, len(text.encode()), LEXICON.table, memory.cps, memory.cls)
    count = split_words(memory.cps, memory.cls, n, memory.starts, memory.ends, LEXICON.abbreviations, LEXICON.units)
    return [text[a:b] for a, b in zip(memory.starts[:count], memory.ends[:count], strict=True)]


def flag(char: str, bit: int) -> bool:
    return bool(TABLE[ord(char)] & bit)


def share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def duplicates(pieces: list[str]) -> tuple[int, int]:
    seen: set[str] = set()
    again = [piece for piece in pieces if piece in seen or seen.add(piece)]  # type: ignore[func-returns-value]
    return len(again), sum(map(len, again))


def ngrams(words: list[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def top_chars(words: list[str], n: int) -> int:
    if not (counted := Counter(ngrams(words, n))):
        return 0
    gram, count = counted.most_common(1)[0]  # of equals the first seen
    return count * len(" ".join(gram))


def duplicate_chars(words: list[str], n: int) -> int:
    seen, chars, i = set(), 0, 0
    while i + n <= len(words):
        gram = tuple(words[i : i + n])
        if gram in seen:
            chars += sum(map(len, gram))
            i += n
        else:
            seen.add(gram)
            i += 1
    return chars


def covered_chars(words: list[str], n: int) -> int:
    counted = Counter(ngrams(words, n))
    covered = {i + k for i, gram in enumerate(ngrams(words, n)) if counted[gram] > 1 for k in range(n)}
    return sum(len(words[i]) for i in covered)


def characters(text: str) -> dict[str, float]:
    visible = [c for c in text if not c.isspace()]
    return {
        "chars": len(text),
        "alphanumeric": share(sum(flag(c, ALPHA | DIGIT) for c in text), len(text)),
        "letters": share(sum(c.isalpha() for c in text), len(text)),
        "cjk": share(sum(flag(c, CJK) for c in visible), len(visible)),
        "spaces": share(len(text) - len(visible), len(text)),
    }


def lines(text: str) -> dict[str, float]:
    split = text.splitlines()
    real = [line for line in text.split("\n") if line.strip()]
    lengths = sorted(map(len, text.split("\n")), reverse=True)
    return {
        "bullet_lines": share(sum(line.lstrip().startswith(("•", "-")) for line in split), len(split)),
        "ellipsis_lines": share(sum(line.rstrip().endswith(("...", "…")) for line in split), len(split)),
        "lines": len(real),
        "line_punct": share(sum(flag(line[-1], TERMINAL) for line in real), len(real)),
        "short_lines": share(sum(len(line) <= 30 for line in real), len(real)),
        "longest_line": max(map(len, real), default=0),
        "mean_line": share(sum(map(len, real)), len(real)),
        "third_longest_line": lengths[2] if len(lengths) > 2 else 0,
        "fineweb_line_chars": share(duplicates(real)[1], len(text.replace("\n", ""))),
    }


def words(text: str) -> dict[str, float]:
    every = words_of(text)
    proper = [word for word in every if not all(flag(c, MARK) for c in word)]
    return {
        "words": len(proper),
        "word_length": share(sum(map(len, proper)), len(proper)),
        "hashes": share(text.count("#"), len(every) or 1),
        "ellipses": share(text.count("...") + text.count("…"), len(every) or 1),
        "alpha_words": share(sum(any(flag(c, ALPHA) for c in word) for word in every), len(every)),
        "stop_words": len({"the", "be", "to", "of", "and", "that", "have", "with"} & set(every)),
        "newlines": share(text.count("\n"), len(every) or 1),
    }


def repetition(text: str) -> dict[str, float]:
    every, size = words_of(text), len(text)
    paragraphs, split = re.split(r"\n{2,}", text.strip()), re.split(r"\n+", text)
    found = {"paragraph_frac": share(duplicates(paragraphs)[0], len(paragraphs)),
             "paragraph_chars": share(duplicates(paragraphs)[1], size),
             "line_frac": share(duplicates(split)[0], len(split)),
             "line_chars": share(duplicates(split)[1], size)}  # fmt: skip
    found |= {f"top_{n}_gram": share(top_chars(every, n), size) for n in (2, 3, 4)}
    return found | {f"dup_{n}_gram": share(duplicate_chars(every, n), size) for n in range(5, 11)}


def covered(text: str) -> dict[str, float]:
    every = [word for word in words_of(text) if not all(flag(c, PUNCTUATION) for c in word)]
    size, found = sum(map(len, every)), {}
    for name, pattern in (("line", r"\n+"), ("paragraph", r"\n\n+")):
        pieces = [piece.strip() for piece in re.split(pattern, text.strip("\n")) if piece.strip()]
        again = [piece for piece in pieces if pieces.count(piece) > 1]
        found[f"covered_{name}_frac"] = share(len(again), len(pieces))
        found[f"covered_{name}_chars"] = share(sum(map(len, again)), sum(map(len, pieces)))
    for n in (2, 3, 4):
        counted = Counter(ngrams(every, n))
        best = max(((count, len("".join(gram))) for gram, count in counted.items()), default=(0, 0))
        found[f"covered_top_{n}_gram"] = min(1.0, share(best[0] * best[1], size)) if best[0] > 1 else 0.0
    return found | {f"covered_dup_{n}_gram": share(covered_chars(every, n), size) for n in range(5, 11)}


def language(text: str) -> dict[str, float]:
    same = words(text) | repetition(text)
    found = {f"language_{name}": same[name] for name in ("words", "word_length", "alpha_words", "newlines")}
    found |= {name: same[name.removeprefix("language_")] for name in PARTS["language"] if "gram" in name}
    return found | {"language_stop_words": 0}


ORACLES = {"characters": characters, "lines": lines, "words": words, "repetition": repetition, "covered": covered,
           "language": language}  # fmt: skip


@pytest.mark.parametrize("part", ORACLES)
@given(text=texts)
@settings(max_examples=150)
def test_statistics_are_what_plain_python_says(part, text):
    found = text_stats(pa.array([text]), LEXICON, PARTS[part])
    expected = ORACLES[part](text)
    assert set(expected) == set(PARTS[part])
    for name, value in expected.items():
        assert found[name][0] == pytest.approx(value, abs=1e-9), name


@given(text=texts)
@settings(max_examples=150)
def test_c4_counts_are_those_of_datatrove(text):
    from datatrove.data import Document
    from datatrove.pipeline.filters import C4QualityFilter

    stats = text_stats(pa.array([text]), LEXICON, ["sentences"])
    for prefix, terminal in (("", False), ("terminal_", True)):
        oracle = C4QualityFilter(filter_no_terminal_punct=terminal, min_num_sentences=-1)
        result = oracle.filter(Document(text=text, id="0"))
        reason = result[1] if isinstance(result, tuple) else None
        marks = {name: stats[prefix + name][0] for name in ("lorem_ipsum", "curly_bracket")}
        assert (reason is None) == (sum(marks.values()) == 0)
        assert reason is None or marks[reason] > 0


@given(parts=st.sets(st.sampled_from(sorted(PARTS)), min_size=1), text=texts)
@settings(max_examples=100)
def test_parts_do_not_change_each_other(parts, text):
    wanted = [name for part in parts for name in PARTS[part]]
    alone, together = text_stats(pa.array([text]), LEXICON, wanted), text_stats(pa.array([text]), LEXICON)
    assert all(alone[name] == together[name] for name in wanted)


@given(data=st.binary(max_size=200))
@settings(max_examples=300)
def test_bytes_that_are_no_utf8_are_measured_all_the_same(data):
    offsets = np.array([0, len(data)], np.int64)
    column = pa.Array.from_buffers(pa.large_string(), 1, [None, pa.py_buffer(offsets), pa.py_buffer(data or b"\0")])
    stats = text_stats(column, LEXICON)
    assert all(np.isfinite(stats[name]).all() for name in STATS)
