"""Compiled statistics of Chinese pages: sentences by full-width marks, boilerplate lines, frequent words.

The one choice that matters: nothing is segmented. What a page of prose has can be seen in its characters: marks that
end sentences, and the function words that stand between all others, each of them one character.
Source: C4's rules (JMLR 21/20-074), carried over; the phrases and characters are our own choice.
"""

import numpy as np

from filters.characters import CJK, TERMINAL
from filters.ngram_stats import next_line, strip_span
from pipelines.compiled import kernel

BOILERPLATE = (
    "版权所有", "隐私政策", "隐私声明", "用户协议", "服务条款", "使用条款", "免责声明", "备案", "关注我们", "联系我们",
    "返回顶部", "版權所有", "隱私政策", "隱私權政策", "服務條款", "使用條款", "免責聲明", "聯絡我們", "回到頂部",
    "All Rights Reserved", "cookie", "Cookie", "javascript", "JavaScript",
)  # fmt: skip
STOP_WORDS = "的一是不了在人有我他这這个個上们們来來到时時大地为為子中你说說生国國年着著就那和要她出也得里裡"
"""The function words and most frequent characters of Chinese, simplified and traditional."""
MIN_LINE = 10  # characters: about C4's three words and a half
SENTENCE = 2  # characters: what is shorter is no sentence


def boilerplate_table() -> tuple[np.ndarray, np.ndarray]:
    """The phrases as code points: uint32 (phrases, longest), zero padded, and int64 lengths."""
    table = np.zeros((len(BOILERPLATE), max(map(len, BOILERPLATE))), np.uint32)
    for row, phrase in enumerate(BOILERPLATE):
        table[row, : len(phrase)] = [ord(c) for c in phrase]
    return table, np.array([len(phrase) for phrase in BOILERPLATE])


def stop_characters() -> np.ndarray:
    """uint32, sorted."""
    return np.array(sorted({ord(c) for c in STOP_WORDS}), np.uint32)


@kernel
def _holds(cps, a, b, phrases, lengths):
    for i in range(a, b):
        for row in range(len(lengths)):
            size = lengths[row]
            if cps[i] != phrases[row, 0] or i + size > b:
                continue
            j = 1
            while j < size and cps[i + j] == phrases[row, j]:
                j += 1
            if j == size:
                return True
    return False


@kernel
def chinese_document(cps, cls, n, phrases, lengths, stops):
    """Of the lines with a Han or Kana character.

    Returns:
        (sentences in lines of at least `MIN_LINE` characters, share of lines with boilerplate, distinct stop words).
    """
    sentences, lines, boilerplate, a = 0, 0, 0, 0
    seen = np.zeros(len(stops), np.bool_)
    while a < n:
        end, following = next_line(cls, cps, a, n)
        lo, hi = strip_span(cls, a, end)
        a = following
        han, run, ended = 0, 0, 0
        for i in range(lo, hi):
            if cls[i] & CJK:
                han += 1
                run += 1
                at = np.searchsorted(stops, cps[i])
                if at < len(stops) and stops[at] == cps[i]:
                    seen[at] = True
            elif cls[i] & TERMINAL and run >= SENTENCE:
                ended += 1
                run = 0
        if not han:
            continue
        lines += 1
        if _holds(cps, lo, hi, phrases, lengths):
            boilerplate += 1
        elif hi - lo >= MIN_LINE:
            sentences += ended + (run >= SENTENCE)
    return sentences, boilerplate / max(lines, 1), seen.sum()
