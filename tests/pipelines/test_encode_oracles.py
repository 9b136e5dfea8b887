"""Shards are, byte for byte, those that others write: ids by other tokenizers, files by megatron-core and datatrove."""

import base64
import functools
import gzip
import itertools
import json
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.document import conform
from pipelines.encode import EncodeSettings, encode
from pipelines.indexed import token_dtype
from pipelines.tokenizer import load_tokenizer, write_tokenizer
from pipelines.tokenizer_files import PATTERNS

Ids = list[list[int]]


def texts_of(shared: Path) -> list[str]:
    """Sentences of 112 languages, mathematics, Chinese paragraphs, Python: 1,500 texts."""
    with gzip.open(shared / "langid" / "tatoeba_112.tsv.gz", "rt", encoding="utf-8") as lines:
        found = [line.rstrip("\n").split("\t")[1] for line in itertools.islice(lines, 0, None, 40)]
    with gzip.open(shared / "math" / "math.jsonl.gz", "rt", encoding="utf-8") as lines:
        found += [" ".join(map(str, json.loads(line).values())) for line in itertools.islice(lines, 150)]
    with gzip.open(shared / "encyclopedia" / "cmrc2018" / "cmrc2018_dev.json.gz") as file:
        found += [p["context"] for entry in json.load(file)["data"][:100] for p in entry["paragraphs"]]
    with gzip.open(shared / "instruct" / "codegen-instruct.json.gz") as file:
        found += [row["response"] for row in json.load(file)[:100]]
    return sorted({text for text in found if text.strip()})


def by_gpt2(folder: Path, texts: Sequence[str]) -> Ids:
    from transformers import GPT2Tokenizer

    return GPT2Tokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))(list(texts))["input_ids"]


def by_json(folder: Path, texts: Sequence[str]) -> Ids:
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    return fast(list(texts), add_special_tokens=False)["input_ids"]


def by_bert(folder: Path, texts: Sequence[str]) -> Ids:
    """transformers' first BERT tokenizer, which is Python alone."""
    from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

    slow = BertTokenizerLegacy(str(folder / "vocab.txt"))
    return [[slow.vocab[piece] for piece in slow.tokenize(text)] for text in texts]


def by_definition(folder: Path, texts: Sequence[str]) -> Ids:
    """Qwen: NFC, cut by the pattern, then the lowest rank first."""
    import regex

    lines = map(bytes.split, (folder / "qwen.tiktoken").read_bytes().splitlines())
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    cut = regex.compile(PATTERNS["qwen2"])

    @functools.cache
    def merged(word: str) -> list[int]:
        parts = [bytes([b]) for b in word.encode()]
        while joined := [(ranks[a + b], at) for at, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in ranks]:
            at = min(joined)[1]
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        return [ranks[part] for part in parts]

    words = (cut.findall(unicodedata.normalize("NFC", text)) for text in texts)
    return [list(itertools.chain.from_iterable(map(merged, found))) for found in words]


def write(path: Path, texts: Sequence[str]) -> Path:
    pq.write_table(conform(pa.table({"id": [str(n) for n in range(len(texts))], "text": list(texts)})), path)
    return path


@pytest.mark.parametrize(
    ("name", "theirs"),
    [("gpt2", by_gpt2), ("aquila", by_gpt2), ("gptneox", by_json), ("bert", by_bert), ("qwen", by_definition)],
)
def test_megatrons_builder_writes_the_same_bytes(
    shared: Path, tmp_path: Path, name: str, theirs: Callable[[Path, Sequence[str]], Ids]
) -> None:
    torch = pytest.importorskip("torch")
    indexed = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    folder, texts = shared / "tokenizers" / name, texts_of(shared)
    told = encode([write(tmp_path / "in.parquet", texts)], tmp_path, folder, EncodeSettings(validation_share=0)).metrics
    order = [int(row) for row in pq.read_table(tmp_path / "documents.origin.parquet")["id"].to_pylist()]
    expected = [[*ids, told["eos_id"]] for ids in theirs(folder, [texts[row] for row in order])]
    builder = indexed.IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=token_dtype(told["vocab_size"]).type)
    for ids in expected:
        builder.add_document(torch.tensor(ids), [len(ids)])
    builder.finalize(str(tmp_path / "theirs.idx"))
    for suffix in (".bin", ".idx"):
        assert (tmp_path / f"documents{suffix}").read_bytes() == (tmp_path / f"theirs{suffix}").read_bytes()
    shard = indexed.IndexedDataset(str(tmp_path / "documents"), mmap=True)
    assert [shard[row].tolist() for row in range(len(shard))] == expected


@pytest.mark.parametrize("name", ["gpt2/vocab.json", "qwen"])
def test_datatrove_writes_the_same_bytes(shared: Path, tmp_path: Path, name: str) -> None:
    from datatrove.data import Document
    from datatrove.pipeline.tokens import MegatronDocumentTokenizer

    texts = texts_of(shared)
    tokenizer = load_tokenizer(shared / "tokenizers" / name)
    write_tokenizer(tokenizer, tmp_path)
    source = write(tmp_path / "in.parquet", texts)
    encode([source], tmp_path / "out", shared / "tokenizers" / name, EncodeSettings(validation_share=0))
    order = pq.read_table(tmp_path / "out" / "documents.origin.parquet")["id"].to_pylist()
    writer = MegatronDocumentTokenizer(
        str(tmp_path / "theirs"), tokenizer_name_or_path=str(tmp_path / "tokenizer.json"), eos_token=tokenizer.eos
    )
    writer.run((Document(text=texts[int(row)], id=row) for row in order), rank=0)
    for suffix in ("bin", "idx"):
        theirs = tmp_path / "theirs" / f"00000_tokens.{suffix}"
        assert (tmp_path / "out" / f"documents.{suffix}").read_bytes() == theirs.read_bytes()


def test_any_memory_map_reads_the_tokens(shared: Path, tmp_path: Path) -> None:
    """As trainers without Megatron do: the `.bin` is the tokens of all documents, one after another."""
    texts = texts_of(shared)[:50]
    gpt2 = shared / "tokenizers" / "gpt2"
    encode([write(tmp_path / "in.parquet", texts)], tmp_path, gpt2, EncodeSettings(validation_share=0))
    order = pq.read_table(tmp_path / "documents.origin.parquet")["id"].to_pylist()
    flat = [i for ids in by_gpt2(gpt2, [texts[int(row)] for row in order]) for i in [*ids, 50_256]]
    assert np.memmap(tmp_path / "documents.bin", dtype="<u2", mode="r").tolist() == flat
