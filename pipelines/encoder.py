"""Text columns to token ids, without a Python list of ids on the way: gigatoken where it is proven equal.

The one choice that matters: Hugging Face `tokenizers` is the definition, gigatoken (a Rust BPE with a cache of words)
is only a faster way to the same ids. It is used for byte-level BPE alone, after it gave the same ids for `PROBES`;
texts with a character that its newer Unicode tables class differently go to `tokenizers`, as does a sample of all
others, and a difference stops the work. What has to be normalized is, by `tokenizers`: its tables are of Unicode 9.
"""

import functools
import itertools
import json
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tokenizers import normalizers

from pipelines.errors import StepError
from pipelines.tokenizer import Tokenizer
from pipelines.tokenizer_files import TIKTOKEN_FILES

Engine = Literal["auto", "gigatoken", "tokenizers"]
STABLE_END = 0x30000  # planes above hold rare Han, tags and private characters: always to `tokenizers`
SPOT_CHECK = 1024  # one text in so many (by the hash that orders documents) is encoded by both
SPOT_CHARS = 2000
CACHE_BYTES = 1 << 30  # gigatoken remembers every word it has seen; built anew when the process has grown by so much
SCHEMES = {"gpt2": "gpt2", "cl100k": "gpt4", "qwen2": "qwen2"}  # what gigatoken calls the patterns of tiktoken files
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

    Attributes:
        engine: `gigatoken` or `tokenizers`, which it is.
        why: why it is not gigatoken, for people; empty when it is.

    Raises:
        StepError: gigatoken was asked for by name and cannot be used.
    """

    def __init__(self, tokenizer: Tokenizer, engine: Engine = "auto") -> None:
        self.tokenizer = tokenizer
        self._fast: Any = None
        self._json = ""
        self._nfc = self._adds = False
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
        column = pc.fill_null(texts, "")
        strings = column.to_pylist()
        if self._fast is None:
            return _joined([np.asarray(ids, np.uint32) for ids in self.tokenizer.encode(strings)])
        self._renew()
        odd = set(np.flatnonzero(pc.match_substring_regex(column, _unstable())).tolist())
        foreign = np.flatnonzero(pc.invert(pc.string_is_ascii(column))).tolist() if self._nfc else []
        for row in (row for row in foreign if not unicodedata.is_normalized("NFC", strings[row])):
            if self._adds:  # a mark behind an added token is no part of it, and must not be joined to its last letter
                odd.add(row)
            else:
                strings[row] = self.tokenizer.backend.normalizer.normalize_str(strings[row])
        if names is not None:
            self._spot_check(strings, [row for row, name in enumerate(names) if name and row not in odd], names)
        ids = [self._fast.encode(text) for text in strings]
        for row in odd:
            ids[row] = np.asarray(self.tokenizer.encode([texts[row].as_py()])[0], np.uint32)
        return _joined(ids)

    def _spot_check(self, strings: Sequence[str], rows: Sequence[int], names: Sequence[str]) -> None:
        """Encode the beginnings of some texts by both; of one that was normalized, of what came of it."""
        for row in rows:
            text = strings[row][:SPOT_CHARS]
            if not np.array_equal(self._fast.encode(text), self.tokenizer.encode([text])[0]):
                raise StepError(
                    f"gigatoken and tokenizers differ on the first {SPOT_CHARS} characters of document {names[row]!r}; "
                    "run again with `--set engine=tokenizers` (`encode.engine` in a recipe)"
                )

    def _try_fast(self) -> str:
        """Load gigatoken and try it; why not, if not."""
        backend = self.tokenizer.backend
        self._nfc = isinstance(backend.normalizer, normalizers.NFC)
        if self.tokenizer.ranks is None and (problem := self._prepare_json()):
            return problem
        try:
            self._build()
        except ImportError as error:
            return f"{error.name} is not installed"
        except (RuntimeError, ValueError, TypeError) as error:
            return f"gigatoken cannot load it: {str(error).splitlines()[0]}"
        found, expected = self.encode(pa.array(PROBES, pa.large_string())), self.tokenizer.encode(PROBES)
        if found.ids.tolist() != list(itertools.chain.from_iterable(expected)):
            self._fast = None
            return "gigatoken gives other ids for texts of the self-check"
        return ""

    def _prepare_json(self) -> str:
        """Write down what gigatoken is to load; why it cannot, if not."""
        head, _, vocabulary = self.tokenizer.backend.to_str().partition('"vocab":{')
        if not vocabulary:
            return "it has no vocabulary of words"
        tree = json.loads(head + '"vocab":{}}}')  # the vocabulary is megabytes, and last
        if problem := _unfit(tree):
            return problem
        # Special tokens written in a text are text: what it is not told of, it cannot find.
        tree["added_tokens"] = [token for token in tree["added_tokens"] if not token["special"]]
        tree["normalizer"] = None
        self._adds = bool(tree["added_tokens"])
        self._json = json.dumps(tree).removesuffix("}}}") + vocabulary
        return ""

    def _build(self) -> None:
        import gigatoken

        if self.tokenizer.ranks is not None:  # read three times as fast as JSON
            known = TIKTOKEN_FILES[self.tokenizer.backend.get_vocab_size(with_added_tokens=False)]
            self._fast = gigatoken.Tokenizer.from_tiktoken(self.tokenizer.ranks, SCHEMES[known.pattern]).backend
        else:
            self._fast = gigatoken.Tokenizer.from_json(self._json).backend
        self._grown_from = _resident_bytes()

    def _renew(self) -> None:
        if _resident_bytes() - self._grown_from > CACHE_BYTES:
            self._fast = None  # the old one is freed before the new one is built
            self._build()


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


@functools.cache
def _unstable() -> str:
    """A pattern (RE2) of the characters without a meaning in Python's Unicode tables, and of all from `STABLE_END` on.

    Unicode gives them one in later versions: then they become letters, and the two engines, whose tables are of
    different years, cut words differently (2 in 100,000 random texts; no real one).
    """
    unknown = (code for code in range(0x80, STABLE_END) if unicodedata.category(chr(code)) == "Cn")
    return "[" + "".join(f"\\x{{{a:x}}}-\\x{{{b:x}}}" for a, b in [*_runs(unknown), (STABLE_END, 0x10FFFF)]) + "]"


def _runs(codes: Iterable[int]) -> Iterator[tuple[int, int]]:
    """First and last of each run of ascending numbers."""
    for _, run in itertools.groupby(enumerate(codes), lambda pair: pair[1] - pair[0]):
        numbers = [code for _, code in run]
        yield numbers[0], numbers[-1]


def _joined(ids: Sequence[np.ndarray]) -> Encoded:
    lengths_D = np.fromiter(map(len, ids), np.int64, len(ids))
    return Encoded(np.concatenate([np.zeros(0, np.uint32), *ids]), lengths_D)


def _resident_bytes() -> int:
    """Memory of this process; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    except (OSError, IndexError, ValueError):
        return 0
