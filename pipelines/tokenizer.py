"""The tokenizer: train a byte-level BPE, or load one in any of the usual formats.

Training counts are sums over documents and ties are broken by token ids, so the same documents give the same bytes
whatever the threads; no normalizer is put in, so that decoding gives back every byte. Trainer and encoder are Hugging
Face `tokenizers`; the pre-tokenizer patterns are those of GPT-2, Qwen2 and cl100k.
"""

import base64
import binascii
import functools
import json
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tokenizers
from pydantic import Field
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

from pipelines.errors import DataError
from pipelines.files import write_atomically
from pipelines.quantities import Bytes
from pipelines.recipe import Section
from pipelines.sample import balanced_sample
from pipelines.store import Outcome

PATTERNS = {
    # One digit at a time: numbers of any length are spelled the same way, which helps arithmetic.
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    "cl100k": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
}
SEGMENT_CHARS = 1 << 20  # an encoding takes 150 times its text's memory: 8 GB for one line of 50 MB, if not cut
SEARCH_CHARS = 1 << 16
BETWEEN_WORDS = re.compile(r"(?<=[^\W\d_])(?= [^\W\d_])")
END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"
KNOWN_ENDS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "[SEP]")


@dataclass(frozen=True)
class _Tiktoken:
    """What a tiktoken file does not say about itself; told apart by the number of ranks."""

    pattern: str
    specials: Mapping[str, int]
    nfc: bool = False


TIKTOKEN_FILES = {
    50_256: _Tiktoken("gpt2", {END_OF_TEXT: 50_256}),
    100_256: _Tiktoken("cl100k", {END_OF_TEXT: 100_257, "<|fim_prefix|>": 100_258, "<|fim_middle|>": 100_259,
                                  "<|fim_suffix|>": 100_260, "<|endofprompt|>": 100_276}),
    151_643: _Tiktoken("qwen2", {END_OF_TEXT: 151_643, "<|im_start|>": 151_644, "<|im_end|>": 151_645}, nfc=True),
}  # fmt: skip


class TokenizerSettings(Section):
    """Which tokenizer: `path` to load one, else train.

    Attributes:
        path: folder, tokenizer.json or tiktoken file to use instead of training.
        vocab_size: ids of the trained vocabulary, bytes and special tokens included; fewer when the text runs out of
            repeated pairs.
        sample_bytes: text to train on, shared evenly among the domains.
        eos: token that ends every document.
        pattern: how text is cut before merging.
        seed: decides which documents are sampled.
    """

    path: str | None = None
    vocab_size: int = Field(default=8192, ge=258, le=1_000_000)
    sample_bytes: Bytes = Field(default=64_000_000, gt=0)
    eos: str = Field(default=END_OF_TEXT, min_length=1)
    pattern: Literal["qwen2", "gpt2"] = "qwen2"
    seed: int = 0


@dataclass(frozen=True)
class Tokenizer:
    """A loaded tokenizer.

    Attributes:
        backend: the Hugging Face tokenizer; special tokens written in a text are read as ordinary text.
        eos: the token that ends a document.
        eos_id: its id.
        vocab_size: one more than the largest id.
    """

    backend: tokenizers.Tokenizer
    eos: str
    eos_id: int
    vocab_size: int

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
        """Whether a long text may be cut: a byte-level tokenizer splits before a space whatever stands around it."""
        return isinstance(self.backend.decoder, decoders.ByteLevel)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens left out."""
        return self.backend.decode(list(ids))


def segments_of(text: str) -> Iterator[str]:
    """Cut a long text about every `SEGMENT_CHARS`, between a letter and a space with a letter behind it.

    All `PATTERNS` split there, so the ids do not change; a run without such a place (one endless word) is cut hard.
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
    else:
        sample = balanced_sample(files, settings.sample_bytes, settings.seed)
        metrics["sampled"] = sample.totals
        tokenizer = _tokenizer_of(_train(sample.texts(), settings), settings.eos)
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
        path: a folder (with tokenizer.json, a .tiktoken file, or vocab.json and merges.txt) or one of those files.
        eos: token that ends documents; default: what tokenizer_config.json says, else the first known one.

    Raises:
        DataError: the path holds no tokenizer, or it has no such end token.
    """
    file = _tokenizer_file(path)
    try:
        backend = _read_backend(file)
    except DataError:
        raise
    except Exception as error:  # tokenizers raises bare Exception
        raise DataError(f"{file} is not a tokenizer: {str(error).splitlines()[0]}") from None
    return _tokenizer_of(backend, eos or _configured_eos(file.parent), str(file))


def _tokenizer_of(backend: tokenizers.Tokenizer, eos: str | None, where: str = "tokenizer") -> Tokenizer:
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
    return Tokenizer(backend, found, eos_id, max(backend.get_vocab(with_added_tokens=True).values()) + 1)


def _tokenizer_file(path: Path) -> Path:
    if path.is_file():
        return path
    candidates = [path / "tokenizer.json", *sorted(path.glob("*.tiktoken")), path / "vocab.json"]
    found = next((p for p in candidates if p.is_file()), None)
    if found is None and (path / "tokenizer").is_dir():  # the output of the step `tokenizer`
        return _tokenizer_file(path / "tokenizer")
    if found is None:
        raise DataError(f"{path}: no tokenizer.json, *.tiktoken or vocab.json with merges.txt there")
    return found


def _read_backend(file: Path) -> tokenizers.Tokenizer:
    if file.suffix == ".tiktoken":
        return _from_tiktoken(file)
    if file.name == "vocab.json":
        return _from_vocabulary(file, file.with_name("merges.txt"))
    return tokenizers.Tokenizer.from_file(str(file))


def _configured_eos(folder: Path) -> str | None:
    try:
        eos = json.loads((folder / "tokenizer_config.json").read_bytes()).get("eos_token")
    except (OSError, ValueError, AttributeError):
        return None
    return eos.get("content") if isinstance(eos, dict) else eos


def _byte_level(model: models.BPE, pattern: str, nfc: bool = False) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(model)
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    if pattern == "gpt2":  # ByteLevel brings this one along, and gigatoken knows it only in that form
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    else:
        split = pre_tokenizers.Split(Regex(PATTERNS[pattern]), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _train(texts: Iterable[Sequence[str]], settings: TokenizerSettings) -> tokenizers.Tokenizer:
    tokenizer = _byte_level(models.BPE(), settings.pattern)
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocab_size, min_frequency=2, special_tokens=[settings.eos, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(_flat(texts), trainer)
    return tokenizer


def _flat(batches: Iterable[Sequence[str]]) -> Iterator[str]:
    for batch in batches:
        yield from batch


def _from_vocabulary(vocabulary: Path, merges: Path) -> tokenizers.Tokenizer:
    vocab, pairs = models.BPE.read_file(str(vocabulary), str(merges))
    tokenizer = _byte_level(models.BPE(vocab=vocab, merges=pairs), "gpt2")
    tokenizer.add_special_tokens([name for name in KNOWN_ENDS if name in vocab])
    return tokenizer


def _from_tiktoken(file: Path) -> tokenizers.Tokenizer:
    """Ranks become merges: tiktoken joins any two neighbours whose union has a rank, lowest rank first."""
    ranks = _read_ranks(file)
    known = TIKTOKEN_FILES.get(len(ranks))
    if known is None:
        sizes = ", ".join(f"{size} ({entry.pattern})" for size, entry in TIKTOKEN_FILES.items())
        raise DataError(
            f"{file} has {len(ranks)} ranks; a tiktoken file does not say its pattern, known sizes: {sizes}"
        )
    spelled = _byte_spelling()
    vocab = {"".join(spelled[b] for b in token): rank for token, rank in ranks.items()}
    merges = []
    for token, _ in sorted(vocab.items(), key=lambda item: item[1]):
        halves = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        ways = [(vocab[a], vocab[b], a, b) for a, b in halves if a in vocab and b in vocab]
        merges += [(a, b) for _, _, a, b in sorted(ways)]
    tokenizer = _byte_level(models.BPE(vocab=vocab, merges=merges), known.pattern, known.nfc)
    return _with_specials(tokenizer, known.specials)


def _with_specials(tokenizer: tokenizers.Tokenizer, specials: Mapping[str, int]) -> tokenizers.Tokenizer:
    """Add special tokens under given ids (`add_special_tokens` numbers them without gaps)."""
    if list(specials.values()) == list(range(tokenizer.get_vocab_size(), tokenizer.get_vocab_size() + len(specials))):
        tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in specials])
        return tokenizer
    tree = json.loads(tokenizer.to_str())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tree["added_tokens"] = [{"id": number, "content": name, **flags} for name, number in specials.items()]
    return tokenizers.Tokenizer.from_str(json.dumps(tree))


def _read_ranks(file: Path) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        if not line:
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise DataError(f"{file}:{number}: expected a base64 token and its rank, found {line[:40]!r}") from None
    return ranks


@functools.cache
def _byte_spelling() -> list[str]:
    """The printable character by which a byte-level vocabulary spells each byte (GPT-2's table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    spelled = {byte: chr(byte) for byte in printable}
    others = (byte for byte in range(256) if byte not in spelled)
    spelled |= {byte: chr(256 + number) for number, byte in enumerate(others)}
    return [spelled[byte] for byte in range(256)]
