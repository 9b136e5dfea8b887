"""What kind of text a token is: the classes by which experts are asked whether they specialise.

A class is decided by the token's own text, as the tokenizer writes it out, and not by its context.
"""

import unicodedata
from pathlib import Path

import numpy as np

CLASSES = ("word begins", "word goes on", "digits", "punctuation", "white space", "CJK", "bytes", "special")
CJK = ("CJK UNIFIED", "CJK COMPATIBILITY", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO")
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what part of a character decodes to


def class_of(text: str) -> int:
    """The class of a token's text, by its number in CLASSES.

    Args:
        text: of one token alone, its leading space included.
    """
    body = text.strip()
    if not body:
        return CLASSES.index("white space")
    if REPLACEMENT in body:
        return CLASSES.index("bytes")
    if any(unicodedata.name(letter, "").startswith(CJK) for letter in body):
        return CLASSES.index("CJK")
    if any(letter.isalpha() for letter in body):
        return CLASSES.index("word begins" if text[0].isspace() or body[0].isupper() else "word goes on")
    return CLASSES.index("digits" if any(letter.isnumeric() for letter in body) else "punctuation")


def classes_of(tokenizer: Path) -> np.ndarray:
    """The class of every token of a tokenizer.

    Args:
        tokenizer: file or folder that `pipelines.tokenizer.load_tokenizer` reads.

    Returns:
        int64 (V,), places in CLASSES.
    """
    from pipelines.tokenizer import load_tokenizer

    loaded = load_tokenizer(tokenizer)
    texts = [loaded.decode([token]) for token in range(loaded.vocab_size)]  # special tokens are left out of a text
    return np.array([class_of(text) if text else CLASSES.index("special") for text in texts], dtype=np.int64)
