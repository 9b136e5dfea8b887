import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from filters.characters import ALPHA, SPACE, TERMINAL, character_table
from filters.text_memory import decode, lexicon, scratch
from filters.text_stats import STATS, text_stats
from filters.word_split import split_words

LEXICON = lexicon()


def words_of(text: str) -> list[str]:
    data = np.frombuffer(text.encode(), np.uint8)
    memory = scratch(max(1, len(data)))
    n = decode(data, 0, len(data), LEXICON.table, memory.cps, memory.cls)
    count = split_words(memory.cps, memory.cls, n, memory.starts, memory.ends, LEXICON.abbreviations, LEXICON.units)
    return [text[a:b] for a, b in zip(memory.starts[:count], memory.ends[:count], strict=True)]


def stat(name: str, *texts: str) -> list[float]:
    return text_stats(pa.array(list(texts), pa.string()), LEXICON)[name].tolist()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't panic.", ["Do", "n't", "panic", "."]),
        (
            "Mr. Smith's U.S. trip (2019) cost $5.",
            ["Mr.", "Smith", "'s", "U.S.", "trip", "(", "2019", ")", "cost", "$", "5", "."],
        ),
        ("well-known, e.g. www.example.com/a-b", ["well", "-", "known", ",", "e.g.", "www.example.com/a-b"]),
        ('"Really?!" she said...', ['"', "Really", "?", "!", '"', "she", "said", "..."]),
        ("10km in 3%", ["10", "km", "in", "3", "%"]),
        ("我爱 Loam。", ["我", "爱", "Loam", "。"]),
        ("  \n ", []),
    ],
)
def test_words_are_those_of_spacy_and_single_han_characters(text, words):
    assert words_of(text) == words


def test_words_agree_with_spacy():
    from datatrove.utils.text import split_into_words

    text = (
        "The quick-witted fox (aged 3) said: \"I'll go to St. Louis, won't you?\" It cost $4.50/day, i.e. 10% more.\n"
        "See https://example.org/path?q=1 -- or e-mail me@example.org; it's the U.K.'s best.Really, A.B. said so…"
    )
    assert words_of(text) == split_into_words(text, "eng")


@given(st.text(max_size=200))
@settings(max_examples=200, deadline=None)
def test_words_cover_everything_but_spaces_in_order(text):
    text = text.encode("utf-8", "ignore").decode()
    assert "".join(words_of(text)) == "".join(c for c in text if not c.isspace())


def test_character_table_follows_unicode():
    table = character_table()
    for char in "aZ é中 \u3000\n.!。?1-":
        assert bool(table[ord(char)] & SPACE) == char.isspace()
        assert bool(table[ord(char)] & ALPHA) == char.isalpha()
        assert bool(table[ord(char)] & TERMINAL) == (char in ".!?。")


def test_top_and_duplicate_ngrams_by_hand():
    text = "I am Frank, I am Frank, I am Frank"
    assert stat("top_2_gram", text) == [3 * len("I am") / len(text)]
    assert stat("top_3_gram", text) == [3 * len("I am Frank") / len(text)]
    # of the words, the second and third "a b c d e" are duplicates: 5 + 5 letters of 29 characters
    assert stat("dup_5_gram", "a b c d e a b c d e a b c d e") == [10 / 29]
    assert stat("dup_6_gram", "a b c d e") == [0]


def test_a_tie_goes_to_the_ngram_seen_first():
    assert stat("top_2_gram", "ab cd x y ab cd") == [2 * len("ab cd") / 15]
    # "a b" comes first though "word z" is the first to reach two
    assert stat("top_2_gram", "a b word z word z a b") == [2 * len("a b") / 21]


def test_duplicate_lines_and_paragraphs():
    assert stat("line_frac", "same\nsame\nsame\nother") == [2 / 4]
    assert stat("line_chars", "same\nsame\nsame\nother") == [8 / 20]
    assert stat("paragraph_frac", "one\n\ntwo\n\none\n\n\none\n\n") == [2 / 4]
    assert stat("fineweb_line_chars", "one\n \n\none") == [3 / 7]


def test_lines_and_sentences():
    assert stat("bullet_lines", "- a\n • b\nc\r\nd") == [0.5]
    assert stat("ellipsis_lines", "a...\nb… \nc\nd.") == [0.5]
    assert stat("line_punct", "One.\nTwo\n\nThree!\nFour") == [0.5]
    assert stat("sentences", "This is one. This is two! And three?\nToo short.\nIt has a last one") == [4]
    assert stat("terminal_sentences", "This is one. This is two.\nThis line has no end") == [2]
    assert stat("lorem_ipsum", "So we say Lorem Ipsum here", "lorem ipsum") == [1, 0]  # short lines do not count
    assert stat("lines_left_out", "Read our Privacy Policy now\nPlease enable JavaScript here\nA good line") == [2]


def test_code_statistics():
    assert stat("longest_line", "ab\nabcd\n") == [4]
    assert stat("mean_line", "ab\n\nabcd") == [3]
    assert stat("alphanumeric", "a1--") == [0.5]


@pytest.mark.parametrize("text", ["", " ", "\n\n", "\x00", "…", "." * 5000, "😀" * 10, "\u2028"])
def test_odd_texts_give_finite_numbers(text):
    values = text_stats(pa.array([text]), LEXICON)
    assert all(np.isfinite(values[name]).all() for name in STATS)


def test_slices_nulls_and_chunks_read_right():
    column = pa.chunked_array([pa.array(["skip", "one two", None]), pa.array(["three"])])
    assert text_stats(column.slice(1), LEXICON)["chars"].tolist() == [7, 0, 5]
    assert len(text_stats(pa.array([], pa.string()), LEXICON)["chars"]) == 0


def test_a_document_does_not_depend_on_its_batch():
    texts = ["alpha beta gamma. " * n for n in (1, 50, 2)]
    together = text_stats(pa.array(texts), LEXICON)
    for row, text in enumerate(texts):
        alone = text_stats(pa.array([text]), LEXICON)
        assert all(together[name][row] == alone[name][0] for name in STATS)
