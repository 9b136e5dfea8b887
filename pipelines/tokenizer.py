"""The tokenizer: train a byte-level BPE, or load one in any of the usual forms (`pipelines/tokenizer_files.py`).

Training counts are sums over documents and ties are broken by token ids, so the same documents give the same bytes
whatever the threads; no normalizer is put in, so that decoding gives back every byte. Trainer and encoder are Hugging
Face `tokenizers`.
"""

import json
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tokenizers
from pydantic import Field
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from pipelines.errors import DataError
from pipelines.files import write_atomically
from pipelines.quantities import Bytes
from pipelines.recipe import Section
from pipelines.sample import balanced_sample
from pipelines.store import Outcome
from pipelines.tokenizer_files import END_OF_TEXT, KNOWN_ENDS, byte_level, configured, find_file, read_backend

SEGMENT_CHARS = 1 << 20  # an encoding takes 150 times its text's memory: 8 GB for one line of 50 MB, if not cut
SEARCH_CHARS = 1 << 16
BETWEEN_WORDS = re.compile(r"(?<=[^\W\d_])(?= [^\W\d_])")
PAD = "<|pad|>"


class TokenizerSettings(Section):
    """Which tokenizer: `path` to load one, else train.

    Attributes:
        path: folder, tokenizer.json or tiktoken file to use instead of training.
        vocab_size: ids of the trained vocabulary, bytes and special tokens included; fewer when the text runs out of
            repeated pairs.
        sample_bytes: text to train on, shared evenly among the domains.
        eos: token that ends every document.
        pattern: how text is cut before merging.
        symbols: strings that are one token wherever they stand in a text, such as `<step>`; added after the others.
        seed: decides which documents are sampled.
    """

    path: str | None = None
    vocab_size: int = Field(default=8192, ge=258, le=1_000_000)
    sample_bytes: Bytes = Field(default=64_000_000, gt=0)
    eos: str = Field(default=END_OF_TEXT, min_length=1)
    pattern: Literal["qwen2", "gpt2"] = "qwen2"
    symbols: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class Tokenizer:
    """A loaded tokenizer.

    Attributes:
        backend: the Hugging Face tokenizer; special tokens written in a text are read as ordinary text.
        eos: the token that ends a document.
        eos_id: its id.
        vocab_size: one more than the largest id.
        ranks: the tiktoken file that it was read from, if it was one.
    """

    backend: tokenizers.Tokenizer
    eos: str
    eos_id: int
    vocab_size: int
    ranks: Path | None = None

    def encode(self, texts: Sequence[str]) -> list[Sequence[int]]:
        """Ids of each text, without any special token."""
        if max(map(len, texts), default=0) <= SEGMENT_CHARS or not self.segments:
            return [e.ids for e in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]
        return [self._encode_long(text) if len(text) > SEGMENT_CHARS else self.encode([text])[0] for text in texts]

    def _encode_long(self, text: str) -> Sequence[int]:
        ids = array("i")
        for segment in segments_of(text):
            ids.extend(self.encode([segment])[0])
        return ids

    @property
    def segments(self) -> bool:
        """Whether a long text may be cut: byte-level and BERT's tokenizers split before a space in any surroundings."""
        return isinstance(self.backend.decoder, decoders.ByteLevel | decoders.WordPiece)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens left out."""
        return self.backend.decode(list(ids))


def segments_of(text: str) -> Iterator[str]:
    """Cut a long text about every `SEGMENT_CHARS`, between a letter and a space with a letter behind it.

    All patterns split there, so the ids do not change; a run without such a place (one endless word) is cut hard.
    """
    start = 0
    while len(text) - start > SEGMENT_CHARS:
        target = start + SEGMENT_CHARS
        place = BETWEEN_WORDS.search(text, target - SEARCH_CHARS, target)
        end = place.start() if place else target
        yield text[start:end]
        start = end
    yield text[start:]


def train_tokenizer(files: Sequence[Path], work: Path, settings: TokenizerSettings, workers: int = 1) -> Outcome:
    """Write `work/tokenizer/`, a folder that transformers' AutoTokenizer loads.

    Args:
        files: Parquet documents; unused when `settings.path` is given.
        work: the step's working folder.
        settings: what to train, or to load and write in this form.
        workers: has no effect: training is a matter of seconds, and the trainer has threads of its own.

    Returns:
        Metrics: vocab_size, eos_id, and of a training the documents and bytes sampled per domain.

    Raises:
        DataError: there is no text to train on, or the tokenizer cannot be loaded.
    """
    metrics: dict[str, Any] = {}
    if settings.path is not None:
        tokenizer = load_tokenizer(Path(settings.path), settings.eos)
        if settings.symbols:
            tokenizer = _tokenizer_of(_with_symbols(tokenizer.backend, settings.symbols), tokenizer.eos)
    else:
        sample = balanced_sample(files, settings.sample_bytes, settings.seed)
        metrics["sampled"] = sample.totals
        tokenizer = _tokenizer_of(_with_symbols(_train(sample.texts(), settings), settings.symbols), settings.eos)
    write_tokenizer(tokenizer, work / "tokenizer")
    return Outcome(metrics={"vocab_size": tokenizer.vocab_size, "eos_id": tokenizer.eos_id, **metrics})


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": tokenizer.eos,
        "pad_token": PAD if tokenizer.backend.token_to_id(PAD) is not None else tokenizer.eos,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1_000_000_000,
    }
    write_atomically(folder / "tokenizer.json", tokenizer.backend.to_str(pretty=True).encode())
    write_atomically(folder / "tokenizer_config.json", (json.dumps(config, indent=1, sort_keys=True) + "\n").encode())


def load_tokenizer(path: Path, eos: str | None = None) -> Tokenizer:
    """Load a tokenizer.

    Args:
        path: a folder (with tokenizer.json, a .tiktoken file, vocab.json and merges.txt, or BERT's vocab.txt) or one of
            those files.
        eos: token that ends documents; default: what tokenizer_config.json says, else the first known one.

    Raises:
        DataError: the path holds no tokenizer, or it has no such end token.
    """
    file = find_file(path)
    eos = eos or _end_of(configured(file.parent))
    return _tokenizer_of(read_backend(file), eos, str(file), file if file.suffix == ".tiktoken" else None)


def _end_of(config: Mapping[str, Any]) -> str | None:
    eos = config.get("eos_token")
    return eos.get("content") if isinstance(eos, dict) else eos


def _tokenizer_of(
    backend: tokenizers.Tokenizer, eos: str | None, where: str = "tokenizer", ranks: Path | None = None
) -> Tokenizer:
    names = (eos,) if eos else KNOWN_ENDS
    found = next((name for name in names if backend.token_to_id(name) is not None), None)
    if found is None:
        raise DataError(f"{where} has no end-of-text token; looked for {', '.join(names)}; name one with `eos`")
    backend.add_special_tokens([AddedToken(found, special=True, normalized=False)])  # it keeps its id
    backend.encode_special_tokens = True  # "<|endoftext|>" written inside a document is text, not an end
    backend.no_truncation()
    backend.no_padding()
    eos_id = backend.token_to_id(found)
    assert eos_id is not None
    return Tokenizer(backend, found, eos_id, max(backend.get_vocab(with_added_tokens=True).values()) + 1, ranks)


def _train(texts: Iterable[Sequence[str]], settings: TokenizerSettings) -> tokenizers.Tokenizer:
    tokenizer = byte_level(models.BPE(), settings.pattern)
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocab_size, min_frequency=2, special_tokens=[settings.eos, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(_flat(texts), trainer)
    return tokenizer


def _with_symbols(backend: tokenizers.Tokenizer, symbols: Sequence[str]) -> tokenizers.Tokenizer:
    """Let each symbol be one token; not a special one, which would be read as ordinary text within a document."""
    backend.add_tokens([AddedToken(symbol, special=False, normalized=False) for symbol in symbols])
    return backend


def _flat(batches: Iterable[Sequence[str]]) -> Iterator[str]:
    for batch in batches:
        yield from batch
