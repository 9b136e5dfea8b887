"""Text columns to token ids, without a Python list of ids on the way: gigatoken where it is proven equal.

The one choice that matters: Hugging Face `tokenizers` is the definition, gigatoken (a Rust BPE with a cache of words)
is only a faster way to the same ids. It is used for byte-level BPE alone, after it gave the same ids for `PROBES`;
texts with a character that its newer Unicode tables class differently go to `tokenizers`, as does a sample of all
others, and a difference stops the work. Legend of suffixes: B bytes of all texts, D texts, T tokens.
"""

import functools
import itertools
import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa

from pipelines.compiled import kernel
from pipelines.errors import StepError
from pipelines.shingles import decode, utf8_buffers
from pipelines.tokenizer import Tokenizer

Engine = Literal["auto", "gigatoken", "tokenizers"]
STABLE_END = 0x30000  # planes above hold rare Han, tags and private characters: always to `tokenizers`
SPOT_CHECK = 1024  # one text in so many (by the hash that orders documents) is encoded by both
SPOT_CHARS = 2000
CACHE_BYTES = 1 << 30  # gigatoken remembers every word it has seen; built anew when the process has grown by so much
PROBES = (
    "", " ", "a", "Hello, world! It's 3.14; don't.", "0 12 345 6789 1e-9 0xFF",
    "  two\tand  three   spaces \n\n\n  \r\n end ",
    "'s'S'LL'll’s I'VE x's", "e\u0301 é Å ﬁ ½ ① Ⅷ İ ß ſ K",
    "中文，没有空格。日本語のテキスト 한국어 ไทย עברית العربية", "👩‍🚀🇩🇪 ❤️ 🏽",
    "\x00\x01\x1c\x7f\x85\xa0\u200b\u2028\u3000\ufeff", "<|endoftext|> </s> <|im_start|>user <s> [SEP] <unk> <pad>",
    "a" * 500, "=" * 300, " " * 300, "\n" * 70, "ab" * 200, "中" * 100, "é" * 100,
    "def f(x):\n\treturn {k: v for k, v in x.items()}  # __init__ \\frac{a}{b} $\\sum_{i=1}^n i^2$",
)  # fmt: skip


class Encoded(NamedTuple):
    """Ids of many texts, end to end.

    Attributes:
        ids: uint32 (T,).
        lengths: int64 (D,), tokens of each text.
    """

    ids: np.ndarray
    lengths: np.ndarray


class Encoder:
    """Encodes columns of text with a tokenizer.

    Args:
        tokenizer: what the ids must be.
        engine: `auto` takes gigatoken where it is installed and proves equal, else `tokenizers`.
        threads: within this process; the ids are the same.

    Attributes:
        engine: `gigatoken` or `tokenizers`, which it is.
        why: why it is not gigatoken, for people; empty when it is.

    Raises:
        StepError: gigatoken was asked for by name and cannot be used.
    """

    def __init__(self, tokenizer: Tokenizer, engine: Engine = "auto", threads: int = 1) -> None:
        self.tokenizer = tokenizer
        self.threads = threads
        self._fast: Any = None
        self._json = ""
        self._grown_from = 0
        self.why = "the settings ask for tokenizers" if engine == "tokenizers" else self._try_fast()
        self.engine = "tokenizers" if self.why else "gigatoken"
        if self.why and engine == "gigatoken":
            raise StepError(f"gigatoken cannot encode with this tokenizer: {self.why}; set engine to auto")

    def encode(self, texts: pa.Array | pa.ChunkedArray, names: Sequence[str] | None = None) -> Encoded:
        """Ids of each text; no special token is added, and none written in a text is read as one.

        Args:
            texts: strings; null counts as empty.
            names: for each text, what to call it if the engines differ on it; without names nothing is checked.

        Raises:
            StepError: the engines differ on a text of the sample.
        """
        if self._fast is None:
            return _joined(self.tokenizer.encode(_strings(texts)))
        self._renew()
        data_B, offsets_D = utf8_buffers(texts)
        encoded = self._encode_fast(data_B, offsets_D)
        if names is not None:
            self._spot_check(texts, names)
        if len(rare := np.flatnonzero(_has_unstable(data_B, offsets_D, _unstable()))):
            exact = _joined(self.tokenizer.encode(_strings(texts.take(pa.array(rare)))))
            return _replaced(encoded, rare, exact)
        return encoded

    def _encode_fast(self, data_B: Any, offsets_D: Any) -> Encoded:
        import awkward as ak

        letters = ak.contents.NumpyArray(data_B, parameters={"__array__": "char"})
        strings = ak.contents.ListOffsetArray(ak.index.Index64(offsets_D), letters, parameters={"__array__": "string"})
        layout: Any = self._fast.encode_batch(ak.Array(strings), parallel=self.threads > 1).layout
        ends_D = np.asarray(layout.offsets.data, np.int64)
        ids_T = np.asarray(layout.content.data)[ends_D[0] : ends_D[-1]]
        return Encoded(ids_T, np.diff(ends_D))

    def _spot_check(self, texts: pa.Array | pa.ChunkedArray, names: Sequence[str]) -> None:
        for row, name in enumerate(names):
            if not name:
                continue
            text = (texts[row].as_py() or "")[:SPOT_CHARS]
            if not _stable_text(text):
                continue
            if not np.array_equal(self._fast.encode(text), self.tokenizer.encode([text])[0]):
                raise StepError(
                    f"gigatoken and tokenizers differ on the first {SPOT_CHARS} characters of document {name!r}; "
                    "run again with `--set engine=tokenizers` (`encode.engine` in a recipe)"
                )

    def _try_fast(self) -> str:
        """Load gigatoken and try it; why not, if not."""
        head, _, vocabulary = self.tokenizer.backend.to_str().partition('"vocab":{')
        if not vocabulary:
            return "it has no vocabulary of words"
        tree = json.loads(head + '"vocab":{}}}')  # the vocabulary is megabytes, and last
        if problem := _unfit(tree):
            return problem
        # Special tokens written in a text are text: what it is not told of, it cannot find.
        tree["added_tokens"] = [token for token in tree["added_tokens"] if not token["special"]]
        self._json = json.dumps(tree).removesuffix("}}}") + vocabulary
        try:
            import awkward
            import gigatoken

            assert awkward  # both are needed; neither is on every platform
            self._build(gigatoken)
        except ImportError as error:
            return f"{error.name} is not installed"
        except (RuntimeError, ValueError, TypeError) as error:
            return f"gigatoken cannot load it: {str(error).splitlines()[0]}"
        column = pa.array(PROBES, pa.large_string())
        found, expected = self._encode_fast(*utf8_buffers(column)), _joined(self.tokenizer.encode(PROBES))
        if not all(map(np.array_equal, found, expected)):
            self._fast = None
            return "gigatoken gives other ids for texts of the self-check"
        return ""

    def _build(self, gigatoken: Any) -> None:
        self._fast = gigatoken.Tokenizer.from_json(self._json).backend
        self._grown_from = _resident_bytes()

    def _renew(self) -> None:
        if _resident_bytes() - self._grown_from > CACHE_BYTES:
            import gigatoken

            self._fast = None  # the old one is freed before the new one is built
            self._build(gigatoken)


def _unfit(tree: dict[str, Any]) -> str:
    """Why this kind of tokenizer is not given to gigatoken; empty when it is.

    Proven equal (tests/pipelines/test_encoder.py) is byte-level BPE, with NFC or without a normalizer.
    """
    model, normalizer = tree["model"], tree["normalizer"]
    steps = tree["pre_tokenizer"] or {}
    kinds = [step["type"] for step in steps.get("pretokenizers", [steps] if steps else [])]
    if model["type"] != "BPE" or "ByteLevel" not in kinds or model.get("byte_fallback"):
        return f"it is {model['type']}{' with byte fallback' if model.get('byte_fallback') else ''}, not byte-level BPE"
    if normalizer is not None and normalizer["type"] != "NFC":
        return f"its normalizer is {normalizer['type']}"
    if model.get("dropout") or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return "its BPE has dropout, a prefix or a suffix"
    flags = ("lstrip", "rstrip", "single_word")
    if odd := next((t for t in tree["added_tokens"] if not t["special"] and any(t[f] for f in flags)), None):
        return f"its added token {odd['content']!r} strips spaces or must be a word"
    return ""


@kernel
def _has_unstable(data_B, offsets_D, unstable):
    """Bool (D,): whether a text has a character of the table, or one above it."""
    found_D = np.zeros(len(offsets_D) - 1, np.bool_)
    for d in range(len(offsets_D) - 1):
        at, end = offsets_D[d], offsets_D[d + 1]
        while at < end:
            if data_B[at] < 0xD7:  # below U+05C0 nothing has been added since Unicode 14 (and one byte is ASCII)
                at += 1 if data_B[at] < 0x80 else 2
                continue
            code, size = decode(data_B, at, end)
            if code >= len(unstable) or unstable[code]:
                found_D[d] = True
                break
            at += size
    return found_D


@functools.cache
def _unstable() -> np.ndarray:
    """Bool (STABLE_END,): characters without a meaning in Python's Unicode tables.

    Unicode gives them one in later versions: then they become letters or marks that normalization puts in order, and
    the two engines, whose tables are of different years, part ways (2 in 100,000 random texts; no real one).
    """
    return np.fromiter((unicodedata.category(chr(code)) == "Cn" for code in range(STABLE_END)), np.bool_, STABLE_END)


def _stable_text(text: str) -> bool:
    return not any(ord(c) >= STABLE_END or unicodedata.category(c) == "Cn" for c in text)


def _joined(ids: Sequence[Sequence[int]]) -> Encoded:
    lengths_D = np.fromiter(map(len, ids), np.int64, len(ids))
    flat = itertools.chain.from_iterable(ids)
    return Encoded(np.fromiter(flat, np.uint32, int(lengths_D.sum())), lengths_D)


def _strings(texts: pa.Array | pa.ChunkedArray) -> list[str]:
    return ["" if text is None else text for text in texts.to_pylist()]


def _replaced(encoded: Encoded, rows: np.ndarray, exact: Encoded) -> Encoded:
    """`encoded` with the ids of some rows put in the place of its own."""
    parts = np.split(encoded.ids, np.cumsum(encoded.lengths)[:-1])
    for row, ids in zip(rows, np.split(exact.ids, np.cumsum(exact.lengths)[:-1]), strict=True):
        parts[row] = ids
    lengths_D = encoded.lengths.copy()
    lengths_D[rows] = exact.lengths
    return Encoded(np.concatenate(parts), lengths_D)


def _resident_bytes() -> int:
    """Memory of this process; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    except (OSError, IndexError, ValueError):
        return 0
