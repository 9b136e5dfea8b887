"""Compiled statistics of mathematical text: LaTeX, formulas, signs.

The one choice that matters: a page is mathematical when its characters are, in formulas of LaTeX or as digits and
signs, so that worked exercises without any LaTeX count too. A dollar opens a formula only when it closes again on the
same line and no digit follows the closing one, so that prices are none.
Source: OpenWebMath (arXiv:2310.06786), which looks for LaTeX; FineMath and GSM8K-like pages, which have little of it.
"""

import numpy as np

from filters.characters import ALPHA, DIGIT, OPERATOR, SPACE
from filters.ngram_stats import NEWLINE
from pipelines.compiled import kernel

DOLLAR, BACKSLASH, OPEN_PAREN, CLOSE_PAREN, OPEN_BRACKET, CLOSE_BRACKET = 36, 92, 40, 41, 91, 93
MAX_FORMULA = 2000  # characters: a mark that is not closed by then was none
ASCII_SIGNS = np.array([ord(c) for c in "+-*/=<>^_%"], np.uint32)


@kernel
def _closing(cps, cls, i, n):
    """End of the formula that begins at i, with its marks, or i."""
    c = cps[i]
    stop = min(n, i + MAX_FORMULA)
    if c == DOLLAR:
        width = 2 if i + 1 < n and cps[i + 1] == DOLLAR else 1
        begin = i + width
        if begin >= n or (width == 1 and cls[begin] & SPACE):
            return i
        for j in range(begin + 1, stop):
            if cps[j] == NEWLINE and width == 1:
                return i
            if cps[j] != DOLLAR or cps[j - 1] == BACKSLASH:
                continue
            if width == 2:
                if j + 1 < n and cps[j + 1] == DOLLAR:
                    return j + 2
                continue
            money = j + 1 < n and cls[j + 1] & DIGIT
            return i if money or cls[j - 1] & SPACE else j + 1
        return i
    if c == BACKSLASH and i + 1 < n and (cps[i + 1] == OPEN_PAREN or cps[i + 1] == OPEN_BRACKET):
        wanted = CLOSE_PAREN if cps[i + 1] == OPEN_PAREN else CLOSE_BRACKET
        for j in range(i + 2, stop - 1):
            if cps[j] != BACKSLASH:
                continue
            if cps[j + 1] == wanted:
                return j + 2
            if cps[j + 1] == cps[i + 1]:
                return i
    return i


@kernel
def math_marks(cps, cls, n):
    r"""Formulas and signs.

    Returns:
        (formulas in `$`, `$$`, `\(` or `\[`, their characters, LaTeX commands such as `\frac`, characters that are
        mathematical: in formulas, commands, digits or signs).
    """
    formulas, formula_chars, commands, signs, i = 0, 0, 0, 0, 0
    end = 0  # of the formula that we are in
    while i < n:
        if i >= end and (cps[i] == DOLLAR or cps[i] == BACKSLASH):
            closing = _closing(cps, cls, i, n)
            if closing > i:
                formulas += 1
                formula_chars += closing - i
                end = closing
        size = 1
        if cps[i] == BACKSLASH and i + 2 < n and cps[i + 1] < 128 and cls[i + 1] & ALPHA and cls[i + 2] & ALPHA:
            while i + size < n and cps[i + size] < 128 and cls[i + size] & ALPHA:
                size += 1
            commands += 1
            signs += size if i >= end else 0
        elif i >= end:
            sign = cls[i] & (DIGIT | OPERATOR) != 0
            if not sign and cps[i] < 128 and not cls[i] & ALPHA:
                for k in range(len(ASCII_SIGNS)):
                    sign = sign or cps[i] == ASCII_SIGNS[k]
            signs += sign
        i += size
    return formulas, formula_chars, commands, signs + formula_chars
