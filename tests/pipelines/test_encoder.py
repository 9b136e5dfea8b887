"""Ids are those of Hugging Face tokenizers, whichever engine gives them."""

import functools
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers, pre_tokenizers

from pipelines.encoder import Encoder
from pipelines.errors import StepError
from pipelines.tokenizer import Tokenizer, load_tokenizer

NAMES = ("qwen", "gpt2/gpt2.tiktoken", "gpt2/vocab.json", "gptneox/tokenizer.json", "aquila/vocab.json")
STRANGE = st.lists(
    st.text(max_size=12)
    | st.text("'sSLlvVreEtTdDmM ’ſK", max_size=12)
    | st.text(" \t\n\r\x0b\x1c\x85\xa0\u2028\u3000\u200b", max_size=12)
    | st.text("e\u0301\u0323Åﬁ각각\u0897\u0e39", max_size=12)
    | st.sampled_from(
        ["<|endoftext|>", "<|im_start|>", "</s>", "<|padding|>", "a" * 300, " " * 70, "0" * 99, "=" * 80]
    ),
    max_size=8,
).map("".join)


@functools.cache
def loaded(path: Path) -> tuple[Tokenizer, Encoder]:
    tokenizer = load_tokenizer(path)
    return tokenizer, Encoder(tokenizer)


def check(tokenizer: Tokenizer, encoder: Encoder, texts: list[str]) -> None:
    found = encoder.encode(pa.array(texts, pa.large_string()))
    expected = tokenizer.encode(texts)
    for text, ids, right in zip(texts, np.split(found.ids, np.cumsum(found.lengths)[:-1]), expected, strict=True):
        assert ids.tolist() == list(right), text
        assert tokenizer.eos_id not in right


@pytest.mark.parametrize("name", NAMES)
def test_gigatoken_is_used_and_equal_on_any_text(shared: Path, name: str) -> None:
    tokenizer, encoder = loaded(shared / "tokenizers" / name)
    assert (encoder.engine, encoder.why) == ("gigatoken", "")

    @settings(max_examples=60, deadline=None)
    @given(st.lists(STRANGE, min_size=1, max_size=5))
    def equal(texts: list[str]) -> None:
        check(tokenizer, encoder, texts)

    equal()


@pytest.mark.parametrize("name", NAMES)
def test_characters_that_newer_unicode_gives_a_meaning(shared: Path, name: str) -> None:
    check(*loaded(shared / "tokenizers" / name), ["\U00033346's 's", "x \u0897\u0e39", "plain", "", "\U000e0041's"])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_character_between_letters(shared: Path, name: str) -> None:
    tokenizer, encoder = loaded(shared / "tokenizers" / name)
    characters = [chr(c) for c in range(0x30000) if not 0xD800 <= c < 0xE000]
    for first in range(0, len(characters), 10_000):
        check(tokenizer, encoder, [f"a{c}'s {c}1 {c}\u0323\u0301{c}" for c in characters[first : first + 10_000]])


def test_a_slice_of_a_column_and_nulls(shared: Path) -> None:
    _, encoder = loaded(shared / "tokenizers" / "gpt2" / "vocab.json")
    column = pa.chunked_array([["first", "Hello world", None], ["Hello world"]])
    assert encoder.encode(column[1:]).ids.tolist() == [15496, 995, 15496, 995]
    assert encoder.encode(column[1:]).lengths.tolist() == [2, 0, 2]


def tokenizer_of(backend: Backend) -> Tokenizer:
    return Tokenizer(backend, "<eos>", 0, backend.get_vocab_size())


@pytest.mark.parametrize("kind", ["wordpiece", "byte fallback", "lowercase", "strips"])
def test_other_kinds_fall_back(kind: str) -> None:
    vocab = {"<eos>": 0, "a": 1, "b": 2, "Ġ": 3}
    backend = Backend(models.BPE(vocab=vocab, merges=[], byte_fallback=kind == "byte fallback"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if kind == "wordpiece":
        backend = Backend(models.WordPiece(vocab | {"[UNK]": 4}, unk_token="[UNK]"))
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    elif kind == "lowercase":
        backend.normalizer = normalizers.Lowercase()
    elif kind == "strips":
        tree = json.loads(backend.to_str())
        flags = {"single_word": False, "lstrip": True, "rstrip": False, "normalized": False, "special": False}
        tree["added_tokens"] = [{"id": 4, "content": "ab", **flags}]
        backend = Backend.from_str(json.dumps(tree))
    tokenizer = tokenizer_of(backend)
    encoder = Encoder(tokenizer)
    assert encoder.engine == "tokenizers"
    assert encoder.why
    check(tokenizer, encoder, ["a b", "", "ab a"])
    with pytest.raises(StepError, match="set engine to auto"):
        Encoder(tokenizer, "gigatoken")


def test_a_difference_found_by_the_sample_stops_the_work(shared: Path) -> None:
    path = shared / "tokenizers" / "gpt2" / "vocab.json"
    encoder = Encoder(load_tokenizer(path))
    encoder.tokenizer.backend.normalizer = normalizers.Lowercase()  # no longer what gigatoken was loaded from
    encoder.encode(pa.array(["lower"]), ["doc"])
    with pytest.raises(StepError, match="document 'doc'"):
        encoder.encode(pa.array(["Upper"]), ["doc"])
