"""The forms in which tokenizers are published, read into Hugging Face `tokenizers`.

tokenizer.json, tiktoken's ranks, vocab.json with merges.txt (GPT-2) and vocab.txt (BERT). The one choice that matters:
ranks become every merge that tiktoken could make, lowest first, so that one definition serves all forms. Patterns are
those of GPT-2, Qwen2 and cl100k; BERT's normalizer and cut at punctuation are those of its first publication.
"""

import binascii
import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from pipelines.errors import DataError

PATTERNS = {
    # One digit at a time: numbers of any length are spelled the same way, which helps arithmetic.
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    "cl100k": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
}
END_OF_TEXT = "<|endoftext|>"
KNOWN_ENDS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "[SEP]")
BERT_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
HASH_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse among 64-bit numbers
SENTENCEPIECE = (".model", ".spm", ".vocab")


@dataclass(frozen=True)
class Tiktoken:
    """What a tiktoken file does not say about itself; told apart by the number of ranks.

    Attributes:
        pattern: how text is cut before merging.
        specials: special tokens and their ids.
        nfc: whether text is brought into that form first.
    """

    pattern: str
    specials: Mapping[str, int]
    nfc: bool = False


TIKTOKEN_FILES = {
    50_256: Tiktoken("gpt2", {END_OF_TEXT: 50_256}),
    100_256: Tiktoken("cl100k", {END_OF_TEXT: 100_257, "<|fim_prefix|>": 100_258, "<|fim_middle|>": 100_259,
                                 "<|fim_suffix|>": 100_260, "<|endofprompt|>": 100_276}),
    151_643: Tiktoken("qwen2", {END_OF_TEXT: 151_643, "<|im_start|>": 151_644, "<|im_end|>": 151_645}, nfc=True),
}  # fmt: skip


def find_file(path: Path) -> Path:
    """The file that holds the tokenizer at `path`, a folder or a file.

    Raises:
        DataError: there is none, or it is of a kind that cannot be read.
    """
    if path.is_file():
        return path.with_name("vocab.json") if path.name == "merges.txt" else path
    candidates = [path / "tokenizer.json", *sorted(path.glob("*.tiktoken")), path / "vocab.json", path / "vocab.txt"]
    found = next((p for p in candidates if p.is_file()), None)
    if found is None and (path / "tokenizer").is_dir():  # the output of the step `tokenizer`
        return find_file(path / "tokenizer")
    found = found or next((p for p in sorted(path.glob("*")) if p.suffix in SENTENCEPIECE), None)
    if found is None:
        raise DataError(f"{path}: no tokenizer.json, *.tiktoken, vocab.json with merges.txt, or vocab.txt there")
    return found


def read_backend(file: Path) -> tokenizers.Tokenizer:
    """Read one of these files.

    Raises:
        DataError: it is not a tokenizer, or of a kind that is not supported; the message says which.
    """
    if file.suffix in SENTENCEPIECE:
        raise DataError(
            f"{file} is a SentencePiece model, which is not read; expected tokenizer.json: make one with "
            "`AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)` of transformers"
        )
    try:
        if file.suffix == ".tiktoken":
            return _from_tiktoken(file)
        if file.name == "vocab.json":
            return _from_merges(file, file.with_name("merges.txt"))
        if file.suffix == ".txt":
            return _from_wordpieces(file)
        return tokenizers.Tokenizer.from_file(str(file))
    except DataError:
        raise
    except Exception as error:  # tokenizers raises bare Exception
        raise DataError(f"{file} is not a tokenizer: {str(error).splitlines()[0]}") from None


def configured(folder: Path) -> dict[str, Any]:
    """What tokenizer_config.json says; nothing when there is none to be read."""
    try:
        found = json.loads((folder / "tokenizer_config.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def byte_level(model: models.BPE, pattern: str, nfc: bool = False) -> tokenizers.Tokenizer:
    """A tokenizer that cuts text by a pattern and spells it in bytes."""
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


def _from_merges(vocabulary: Path, merges: Path) -> tokenizers.Tokenizer:
    if not merges.is_file():
        raise DataError(f"{vocabulary}: expected {merges.name} beside it, found none")
    vocab, pairs = models.BPE.read_file(str(vocabulary), str(merges))
    tokenizer = byte_level(models.BPE(vocab=vocab, merges=pairs), "gpt2")
    tokenizer.add_special_tokens([name for name in KNOWN_ENDS if name in vocab])
    return tokenizer


def _from_wordpieces(file: Path) -> tokenizers.Tokenizer:
    """BERT's word pieces, one a line; lower case unless some have capitals (or tokenizer_config.json says so)."""
    _check_pieces(file)
    vocab = models.WordPiece.read_file(str(file))
    if lacking := [name for name in ("[UNK]", "[SEP]") if name not in vocab]:
        raise DataError(f"{file} is not a list of BERT's word pieces: it lacks {' and '.join(lacking)}")
    lower = all(piece == piece.lower() for piece in vocab if not piece.startswith("["))
    lower = bool(configured(file.parent).get("do_lower_case", lower))
    tokenizer = tokenizers.Tokenizer(models.WordPiece(vocab=vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens([name for name in BERT_SPECIALS if name in vocab])
    return tokenizer


def _check_pieces(file: Path) -> None:
    """Ids are numbers of lines: a line that names nothing new would leave an id without a piece.

    Raises:
        DataError: a line is empty, or says what an earlier one said.
    """
    lines: dict[str, int] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), 1):
        piece = line.rstrip()  # as the library reads it
        if (first := lines.setdefault(piece, number)) != number and piece:
            raise DataError(f"{file}:{number}: the piece {piece!r} stands on line {first} already; expected each once")
    if (empty := lines.get("", 0)) and empty < max(lines.values()):
        raise DataError(f"{file}:{empty} is empty; expected a word piece on every line")


def _from_tiktoken(file: Path) -> tokenizers.Tokenizer:
    """Ranks become merges: tiktoken joins any two neighbours whose union has a rank, lowest rank first."""
    ranks = _read_ranks(file)
    known = TIKTOKEN_FILES.get(len(ranks))
    if known is None:
        sizes = ", ".join(f"{size} ({entry.pattern})" for size, entry in TIKTOKEN_FILES.items())
        raise DataError(
            f"{file} has {len(ranks)} ranks; a tiktoken file does not say its pattern, known sizes: {sizes}"
        )
    spelling = dict(enumerate(byte_spelling()))
    tokens = sorted(ranks, key=ranks.__getitem__)
    names = [token.decode("latin-1").translate(spelling) for token in tokens]
    merges = [(names[a], names[b]) for a, b in zip(*_halves(tokens), strict=True)]
    vocab = dict(zip(names, map(ranks.__getitem__, tokens), strict=True))
    tokenizer = byte_level(models.BPE(vocab=vocab, merges=merges), known.pattern, known.nfc)
    return _with_specials(tokenizer, known.specials)


def _halves(tokens: Sequence[bytes]) -> tuple[list[int], list[int]]:
    """Every way to put a token together from two others: their numbers, in the order of whole, left and right.

    All cuts of all tokens are looked up at once by 64-bit hashes (a polynomial in the bytes, least power first): a loop
    over a million cuts takes longer than encoding 20 MB.
    """
    length_V = np.fromiter(map(len, tokens), np.int64, len(tokens))
    data_B = np.frombuffer(b"".join(tokens), np.uint8).astype(np.uint64) + np.uint64(1)
    end_V = np.cumsum(length_V)
    owner_B = np.repeat(np.arange(len(tokens)), length_V)
    offset_B = np.arange(len(data_B)) - (end_V - length_V)[owner_B]
    powers, inverses = (
        np.append(np.uint64(1), np.cumprod(np.full(int(length_V.max()), base, np.uint64)))
        for base in (HASH_BASE, pow(HASH_BASE, -1, 1 << 64))
    )
    sums = np.append(np.uint64(0), np.cumsum(data_B * powers[offset_B]))
    begin_V = sums[end_V - length_V]
    hash_V = sums[end_V] - begin_V
    order_V = np.argsort(hash_V)
    sorted_V = hash_V[order_V]

    def found(wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        place = np.minimum(np.searchsorted(sorted_V, wanted), len(sorted_V) - 1)
        return sorted_V[place] == wanted, order_V[place]

    cut_C = np.flatnonzero(offset_B)
    is_token_C, left_C = found(sums[cut_C] - begin_V[owner_B[cut_C]])
    cut_C, left_C = cut_C[is_token_C], left_C[is_token_C]
    whole_C = owner_B[cut_C]
    is_token_C, right_C = found((sums[end_V[whole_C]] - sums[cut_C]) * inverses[offset_B[cut_C]])
    whole_C, left_C, right_C = whole_C[is_token_C], left_C[is_token_C], right_C[is_token_C]
    order_C = np.lexsort([right_C, left_C, whole_C])
    return left_C[order_C].tolist(), right_C[order_C].tolist()


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
    number, line = 0, b""
    try:
        for number, line in enumerate(file.read_bytes().splitlines(), 1):  # noqa: B007 - both are for the message
            if line:
                token, rank = line.split()
                ranks[binascii.a2b_base64(token, strict_mode=True)] = int(rank)
    except ValueError:  # binascii.Error is one
        raise DataError(f"{file}:{number}: expected a base64 token and its rank, found {line[:40]!r}") from None
    return ranks


@functools.cache
def byte_spelling() -> list[str]:
    """The printable character by which a byte-level vocabulary spells each byte (GPT-2's table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    spelled = {byte: chr(byte) for byte in printable}
    others = (byte for byte in range(256) if byte not in spelled)
    spelled |= {byte: chr(256 + number) for number, byte in enumerate(others)}
    return [spelled[byte] for byte in range(256)]
