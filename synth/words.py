"""Words of a text and what two texts share of them: what the rules of verification count.

Every CJK character is a word, since Chinese writes none apart; everything is lower case. These are plain functions of
short texts (one answer), beside the seconds that a model takes to write it.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

CJK = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_IS_CJK = re.compile(f"[{CJK}]")
_WORD = re.compile(rf"[{CJK}]|[^\W_{CJK}]+")
_CJK_RUN = re.compile(rf"[{CJK}]{{2,}}")
_LATIN_WORD = re.compile(rf"[^\W\d_{CJK}]{{4,}}")
STEM_CHARS = 4  # words that begin with the same letters count as one: rain, rained, rainy
SCRIPT_CHARS = 4000  # that tell a text's script


def words_of(text: str) -> list[str]:
    """Words in lower case; every CJK character is one."""
    return _WORD.findall(text.lower())


def stems_of(text: str) -> set[str]:
    """What a text speaks of: the first letters of its words of four or more, and pairs of CJK characters."""
    stems = {word[:STEM_CHARS] for word in _LATIN_WORD.findall(text.lower())}
    pairs = {run[at : at + 2] for run in _CJK_RUN.findall(text) for at in range(len(run) - 1)}
    return stems | pairs


def shared_stems(text: str, document: str) -> float:
    """Share of a text's stems that the document has; 1 for a text without any."""
    stems = stems_of(text)
    return len(stems & stems_of(document)) / len(stems) if stems else 1.0


def gram_length(words: Sequence[str], n: int) -> int:
    """How many of these words are as long as n words of prose: a Chinese word is two characters, here two words."""
    return 2 * n if 2 * sum(_IS_CJK.match(word) is not None for word in words) > len(words) else n


def repeated_share(words: Sequence[str], n: int = 4) -> float:
    """Share of the n-grams that occurred before."""
    grams = Counter(ngrams(words, gram_length(words, n)))
    return 1 - len(grams) / grams.total() if grams else 0.0


def copied_share(text: str, document: str, n: int) -> float:
    """Share of a text's n-grams of words that are the document's."""
    words = words_of(text)
    length = gram_length(words, n)
    grams, theirs = ngrams(words, length), set(ngrams(words_of(document), length))
    return sum(gram in theirs for gram in grams) / len(grams) if grams else 0.0


def script_of_words(text: str) -> str:
    """The script of most words, by their Unicode names: `LATIN`, `CJK`, `CYRILLIC`; empty without letters.

    Words and not letters, so that a Chinese sentence about `Linux` is Chinese.
    """
    letters = [word[0] for word in words_of(text[:SCRIPT_CHARS]) if word[0].isalpha()]
    found = Counter(unicodedata.name(letter, "UNKNOWN").split()[0] for letter in letters)
    return found.most_common(1)[0][0] if found else ""


def solid_chars(text: str) -> int:
    """Characters that are no white space."""
    return sum(map(len, text.split()))


def ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """Every run of n words."""
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
