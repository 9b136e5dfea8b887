"""Tokenizers: training repeats, files of other libraries give their ids, special tokens in text stay text."""

import base64
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.encoder import Encoder
from pipelines.errors import DataError
from pipelines.sample import balanced_sample
from pipelines.tokenizer import (
    SEGMENT_CHARS,
    Tokenizer,
    TokenizerSettings,
    load_tokenizer,
    segments_of,
    train_tokenizer,
)

SETTINGS = TokenizerSettings(vocab_size=320)
STRANGE = "Zażółć 12345 gęślą\r\n\tjaźń  <|endoftext|> 中文字符 \u0000 e\u0301 👩‍🚀 don't   x"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer trained on the tests' own sources."""
    folder = tmp_path_factory.mktemp("trained")
    train_tokenizer([sources(folder)], folder, SETTINGS)
    return folder / "tokenizer"


@pytest.fixture(scope="module")
def ours(trained: Path) -> Tokenizer:
    return load_tokenizer(trained)


def sources(folder: Path) -> Path:
    texts = [path.read_text() for path in sorted(Path(__file__).parent.glob("*.py"))]
    path = folder / "kept" / "code" / "part-00000.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.table({"id": [str(n) for n in range(len(texts))], "text": texts}), path)
    return path


def test_training_gives_the_same_bytes_in_another_process_with_threads(trained: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from pipelines.tokenizer import *;"
        "train_tokenizer([Path(sys.argv[1])], Path(sys.argv[2]), TokenizerSettings(vocab_size=320))"
    )
    source = trained.parent / "kept" / "code" / "part-00000.parquet"
    env = {**os.environ, "TOKENIZERS_PARALLELISM": "true", "RAYON_NUM_THREADS": "3", "PYTHONHASHSEED": "7"}
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", program, str(source), str(tmp_path)], check=True, env=env, cwd=root)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "tokenizer" / name).read_bytes() == (trained / name).read_bytes()


def test_transformers_loads_the_folder_and_agrees(trained: Path, ours: Tokenizer) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(trained)
    text = STRANGE.replace("<|endoftext|>", "")
    assert theirs(text, add_special_tokens=False)["input_ids"] == ours.encode([text])[0]
    assert (theirs.eos_token_id, theirs.pad_token) == (ours.eos_id, "<|pad|>") == (0, "<|pad|>")
    assert ours.vocab_size == len(theirs) == 320


@settings(max_examples=60, deadline=None)
@given(st.text())
def test_every_text_comes_back(ours: Tokenizer, text: str) -> None:
    assert ours.decode(ours.encode([text])[0]) == text


@pytest.mark.parametrize("text", ["<|endoftext|>", "a<|endoftext|>b", "<|pad|>", " <|endoftext|>\n"])
def test_a_special_token_written_in_a_text_is_text(ours: Tokenizer, text: str) -> None:
    ids = ours.encode([text])[0]
    assert not {0, 1} & set(ids)
    assert ours.decode(ids) == text


@pytest.mark.parametrize("name", ["gpt2/vocab.json", "qwen"])
def test_a_long_text_is_encoded_in_segments_to_the_same_ids(
    shared: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.tokenizer.SEGMENT_CHARS", 100_000)
    tokenizer = load_tokenizer(shared / "tokenizers" / name)
    text = (shared / "encyclopedia" / "wiki_demo.txt").read_text()
    text = (text * (200_000 // len(text) + 2))[:200_005]
    whole = tokenizer.backend.encode(text, add_special_tokens=False).ids
    segments = list(segments_of(text))
    assert "".join(segments) == text
    assert max(map(len, segments)) <= 100_000
    assert list(tokenizer.encode([text, "a"])[0]) == whole


def test_an_endless_word_comes_back(ours: Tokenizer) -> None:
    text = "é" * (SEGMENT_CHARS + 10)
    assert ours.decode(ours.encode([text])[0]) == text


def test_symbols_are_one_token_wherever_they_stand(trained: Path, tmp_path: Path) -> None:
    """In a loaded tokenizer they come after the known ids; transformers and both engines agree."""
    from transformers import AutoTokenizer

    symbols = ("<calculation>", "</calculation>", "<step>", "</step>")
    train_tokenizer([], tmp_path, TokenizerSettings(path=str(trained), symbols=symbols))
    tokenizer, before = load_tokenizer(tmp_path / "tokenizer"), load_tokenizer(trained)
    text = "So<step>3 + 4 = <calculation>7</calculation></step> it is"
    (ids,) = tokenizer.encode([text])
    new = [before.vocab_size + n for n in range(4)]
    assert [token for token in ids if token >= before.vocab_size] == [new[2], new[0], new[1], new[3]]
    assert tokenizer.vocab_size == before.vocab_size + 4
    assert tokenizer.eos_id == before.eos_id
    assert tokenizer.decode(ids) == text
    assert AutoTokenizer.from_pretrained(tmp_path / "tokenizer")(text)["input_ids"] == list(ids)
    assert Encoder(tokenizer).encode(pa.array([text])).ids.tolist() == list(ids)


def test_digits_are_single(ours: Tokenizer) -> None:
    assert [ours.decode([i]) for i in ours.encode(["2026"])[0]] == ["2", "0", "2", "6"]


def test_gpt2_from_tiktoken_and_from_merges_give_the_known_ids(shared: Path) -> None:
    from transformers import GPT2Tokenizer

    folder = shared / "tokenizers" / "gpt2"
    tiktoken, merges = load_tokenizer(folder / "gpt2.tiktoken"), load_tokenizer(folder / "vocab.json")
    assert tiktoken.encode(["Hello world"]) == merges.encode(["Hello world"]) == [[15496, 995]]
    assert (tiktoken.eos_id, tiktoken.vocab_size) == (merges.eos_id, merges.vocab_size) == (50_256, 50_257)
    theirs = GPT2Tokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    texts = [STRANGE.replace("<|endoftext|>", ""), *("=" * n + "a" * n + " " * n for n in range(1, 70)),
             (shared / "SOURCES.md").read_text()]  # fmt: skip
    expected = theirs(texts, add_special_tokens=False)["input_ids"]
    assert tiktoken.encode(texts) == expected
    assert merges.encode(texts) == expected


def test_qwen_from_tiktoken_merges_lowest_rank_first(shared: Path) -> None:
    folder = shared / "tokenizers" / "qwen"
    qwen = load_tokenizer(folder)
    assert qwen.encode(["Hello world 12"]) == [[9707, 1879, 220, 16, 17]]
    assert (qwen.eos_id, qwen.vocab_size) == (151_643, 151_646)
    ranks = {
        base64.b64decode(t): int(r) for t, r in map(bytes.split, (folder / "qwen.tiktoken").read_bytes().splitlines())
    }
    for word in (" tokenization", "Zażółć", "中华人民共和国", " страница", "ññññññ", "aaaaaaaaaaaaa"):
        assert qwen.encode([word])[0] == lowest_rank_first(word.encode(), ranks), word


def lowest_rank_first(word: bytes, ranks: dict[bytes, int]) -> list[int]:
    """The definition of tiktoken's byte-pair merging, for one pre-token."""
    parts = [bytes([b]) for b in word]
    while True:
        joined = [(ranks[a + b], at) for at, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in ranks]
        if not joined:
            return [ranks[part] for part in parts]
        at = min(joined)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


def test_a_path_in_the_settings_is_loaded_and_written_as_a_folder(shared: Path, tmp_path: Path) -> None:
    path = str(shared / "tokenizers" / "gpt2" / "gpt2.tiktoken")
    outcome = train_tokenizer([], tmp_path, TokenizerSettings(path=path))
    assert outcome.metrics == {"vocab_size": 50_257, "eos_id": 50_256}
    assert load_tokenizer(tmp_path).encode(["Hello world"]) == [[15496, 995]]


HARD = ("[SEP] [MASK] héllo Ünïcode", "中文 tokenization日本", "a" * 101, "don't-stop…“now”",
        "\x00\x7f\u200b\ufeff\t\n", "e\u0301 İstanbul ﬁ ½", "👩‍🚀 🇩🇪", "##ing ing##", "")  # fmt: skip


def test_bert_gives_the_ids_of_transformers_in_rust_and_in_python(shared: Path) -> None:
    from transformers import BertTokenizer
    from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

    file = shared / "tokenizers" / "bert" / "vocab.txt"
    ours, slow = load_tokenizer(file), BertTokenizerLegacy(str(file))
    assert (ours.eos, ours.eos_id, ours.vocab_size) == ("[SEP]", 102, 30_522)
    assert ours.encode(HARD) == BertTokenizer(str(file))(
        list(HARD), add_special_tokens=False, split_special_tokens=True
    )["input_ids"]  # fmt: skip
    plain = HARD[1:]  # in Python a name of a special token is never read as text
    assert ours.encode(plain) == [slow.convert_tokens_to_ids(slow.tokenize(text)) for text in plain]
    assert ours.decode(ours.encode(["tokenization works"])[0]) == "tokenization works"


@pytest.mark.slow
def test_bert_on_every_character(shared: Path) -> None:
    from transformers import BertTokenizer

    file = shared / "tokenizers" / "bert" / "vocab.txt"
    texts = [f"a{chr(c)}b {chr(c)}1 {chr(c)} x" for c in range(0x30000) if not 0xD800 <= c < 0xE000]
    theirs = BertTokenizer(str(file))(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert load_tokenizer(file).encode(texts) == theirs


@pytest.mark.parametrize(
    ("pieces", "config", "ids"),
    [(("hello", "world"), {}, [2, 3]), (("hello", "World"), {}, [0, 3]),
     (("hello", "World"), {"do_lower_case": True}, [2, 0])],
)  # fmt: skip
def test_word_pieces_with_capitals_keep_them(tmp_path: Path, pieces: tuple, config: dict, ids: list[int]) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(("[UNK]", "[SEP]", *pieces)))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert load_tokenizer(tmp_path).encode(["Hello World"])[0] == ids


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [("tokenizer.model", b"\n\x05<unk>", "SentencePiece model, which is not read"),
     ("vocab.txt", b"a\nb", r"lacks \[UNK\]"),
     ("vocab.txt", b"[UNK]\n[SEP]\na\na\n", r"vocab\.txt:4: the piece 'a' stands on line 3 already"),
     ("vocab.txt", b"[UNK]\n\n[SEP]\n", r"vocab\.txt:2 is empty"),
     ("vocab.json", b"{}", "expected merges.txt beside it"),
     ("weights.bin", b"\0", "no tokenizer.json")],
)  # fmt: skip
def test_a_kind_that_is_not_supported_is_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b"[1, 2]"])
def test_a_file_that_is_no_tokenizer_is_a_data_error(tmp_path: Path, content: bytes) -> None:
    for name in ("tokenizer.json", "x.tiktoken"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=name.replace(".", r"\.")):
            load_tokenizer(tmp_path / name)
    with pytest.raises(DataError, match="no tokenizer"):
        load_tokenizer(tmp_path / "absent")


def test_an_unknown_end_token_is_a_data_error(trained: Path) -> None:
    with pytest.raises(DataError, match="<end>"):
        load_tokenizer(trained, "<end>")


def test_the_sample_shares_bytes_evenly_and_gives_the_rest_to_the_larger(tmp_path: Path) -> None:
    path = tmp_path / "documents.parquet"
    rows = [(f"{d}{n}", d, "x" * 10) for d, count in (("small", 2), ("mid", 50), ("big", 90)) for n in range(count)]
    pq.write_table(pa.table(dict(zip(("id", "domain", "text"), map(list, zip(*rows, strict=True)), strict=True))), path)
    totals = balanced_sample([path], 420, seed=1).totals
    assert {name: total["bytes"] for name, total in totals.items()} == {"small": 20, "mid": 200, "big": 200}


def test_no_text_is_a_data_error(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["a"], "text": [""]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="no text"):
        train_tokenizer([tmp_path / "a.parquet"], tmp_path, SETTINGS)
