"""Documents to shards: what a reader finds in them, and that neither workers, files nor kills show."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.document import conform
from pipelines.encode import EncodeSettings, encode
from pipelines.errors import DataError
from pipelines.indexed import IndexedTokens, load_shards
from pipelines.manifest import MANIFEST
from pipelines.store import Outcome, perform
from pipelines.tokenizer import Tokenizer, TokenizerSettings, load_tokenizer, train_tokenizer
from pipelines.verify import verify

WHOLE = EncodeSettings(validation_share=0)
TEXTS = {f"{domain}-{n}": f"{domain} text {n}: " + "loam " * (n % 7) for domain in ("web", "code") for n in range(60)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny tokenizer, and 120 documents of two domains in four files."""
    folder = tmp_path_factory.mktemp("encode")
    for domain in ("web", "code"):
        for part in range(2):
            ids = [name for name in TEXTS if name.startswith(domain)][part * 30 : part * 30 + 30]
            write(folder / "kept" / domain / f"part-{part:05d}.parquet", {i: TEXTS[i] for i in ids})
    train_tokenizer(sorted(folder.rglob("*.parquet")), folder, TokenizerSettings(vocab_size=300))
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return load_tokenizer(folder)


def write(path: Path, texts: dict[str, str], **columns: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(conform(pa.table({"id": list(texts), "text": list(texts.values()), **columns})), path)
    return path


def documents(folder: Path) -> list[Path]:
    return sorted((folder / "kept").rglob("*.parquet"))


def read_back(prefix: Path, tokenizer: Tokenizer) -> dict[str, str]:
    """Text by id, through megatron-core's reader and the sidecar."""
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    shard = IndexedDataset(str(prefix), mmap=True)
    ids = pq.read_table(f"{prefix}.origin.parquet")["id"].to_pylist()
    assert len(ids) == len(shard)
    rows = [shard[row].tolist() for row in range(len(shard))]
    assert all(row[-1] == tokenizer.eos_id and tokenizer.eos_id not in row[:-1] for row in rows)
    return {i: tokenizer.decode(row[:-1]) for i, row in zip(ids, rows, strict=True)}


def test_megatron_reads_back_every_document(folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    encode(documents(folder), tmp_path, folder, EncodeSettings(validation_share=0.2))
    found = [read_back(p.with_suffix(""), tokenizer) for p in sorted(tmp_path.rglob("*.idx"))]
    assert {i: text for shard in found for i, text in shard.items()} == TEXTS
    assert sum(map(len, found)) == len(TEXTS)


def test_layout_with_and_without_validation(folder: Path, tmp_path: Path) -> None:
    encode(documents(folder), tmp_path / "split", folder, EncodeSettings())
    encode(documents(folder), tmp_path / "one", folder, WHOLE, name="mine")
    assert [s.name for s in load_shards(tmp_path / "split").shards] == [
        "train/code", "train/web", "validation/code", "validation/web"
    ]  # fmt: skip
    found = sorted(p.name for p in (tmp_path / "one").glob("*.*") if p.is_file())
    assert found == ["mine.bin", "mine.idx", "mine.origin.parquet"]


def test_documents_are_shuffled_but_the_files_do_not_matter(folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    files = documents(folder)
    joined = write(tmp_path / "joined.parquet", TEXTS, domain=[i.split("-")[0] for i in TEXTS])
    encode(files, tmp_path / "four", folder, WHOLE)
    encode([joined], tmp_path / "one", folder, WHOLE)
    assert list(read_back(tmp_path / "four/web", tokenizer)) != [i for i in TEXTS if i.startswith("web")]
    for name in ("web.bin", "web.idx", "code.bin", "code.idx"):
        assert (tmp_path / "four" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_workers_do_not_change_a_byte(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.encode.BYTES_PER_WORKER", 1)
    files = documents(folder)
    manifests = []
    for workers in (1, 2):
        out = tmp_path / str(workers)

        def action(work: Path, workers: int = workers) -> Outcome:
            return encode(files, work, folder, EncodeSettings(), workers)

        perform("tokens", out, action, {}, {}, code="x")
        manifests.append((out / MANIFEST).read_bytes())
    assert manifests[0] == manifests[1]


def test_a_kill_does_not_change_a_byte(folder: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from pipelines.encode import *; from pipelines.store import perform\n"
        "folder, out = map(Path, sys.argv[1:]); files = sorted((folder / 'kept').rglob('*.parquet'))\n"
        "perform('tokens', out, lambda work: encode(files, work, folder, EncodeSettings()), {}, {}, code='x')\n"
    )
    root = Path(__file__).resolve().parents[2]
    started = time.perf_counter()
    command = [sys.executable, "-c", program, str(folder)]
    subprocess.run([*command, str(tmp_path / "calm")], check=True, cwd=root)
    whole_s = time.perf_counter() - started
    for share in (0.7, 0.8, 0.9):
        process = subprocess.Popen([*command, str(tmp_path / "killed")], cwd=root)
        time.sleep(whole_s * share)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run([*command, str(tmp_path / "killed")], check=True, cwd=root)
    assert (tmp_path / "killed" / MANIFEST).read_bytes() == (tmp_path / "calm" / MANIFEST).read_bytes()


def test_metrics_add_up(folder: Path, tmp_path: Path) -> None:
    outcome = encode(documents(folder), tmp_path, folder, EncodeSettings(validation_share=0.1))
    for domain, splits in outcome.metrics["domains"].items():
        for split, told in splits.items():
            shard = IndexedTokens(tmp_path / split / domain)
            sidecar = pq.read_table(tmp_path / split / f"{domain}.origin.parquet")
            assert told["documents"] == len(shard) == sidecar.num_rows
            assert told["tokens"] == len(shard.tokens) == sum(sidecar["tokens"].to_pylist())
            assert told["bytes"] == sum(len(TEXTS[i].encode()) for i in sidecar["id"].to_pylist())
    assert outcome.metrics["validation_bytes"]["web"] == outcome.metrics["domains"]["web"]["validation"]["bytes"]
    assert sum(split["documents"] for split in outcome.metrics["totals"].values()) == 120


def test_the_sidecar_keeps_where_a_document_came_from(folder: Path, tmp_path: Path) -> None:
    origin = {"file": "a.warc", "member": None, "offset": 7, "row": None, "length": 9, "sha256": "ab"}
    path = write(
        tmp_path / "in.parquet", {"x": "text"}, origin=[origin], url=["http://a"], source=["web"], domain=["w/hi"]
    )
    encode([path], tmp_path / "out", folder, WHOLE)
    row = pq.read_table(tmp_path / "out" / "w" / "hi.origin.parquet").to_pylist()[0]
    assert (row["id"], row["url"], row["source"], row["domain"]) == ("x", "http://a", "web", "w/hi")
    assert (row["origin"], row["bytes"]) == (origin, 4)


def test_an_end_written_in_a_text_does_not_end_a_document(folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    texts = {"a": "before <|endoftext|> after", "b": "<|endoftext|>"}
    encode([write(tmp_path / "in.parquet", texts)], tmp_path, folder, WHOLE)
    assert read_back(tmp_path / "documents", tokenizer) == texts
    assert verify(tmp_path / "documents", tokenizer.vocab_size, tokenizer.eos_id).passed


def test_empty_documents_are_counted_and_an_empty_domain_has_no_shard(folder: Path, tmp_path: Path) -> None:
    files = [
        write(tmp_path / "kept" / "web" / "part-00000.parquet", {"a": "", "b": "text"}),
        write(tmp_path / "kept" / "void" / "part-00000.parquet", {}),
    ]
    outcome = encode(files, tmp_path / "out", folder, WHOLE)
    assert outcome.counts is not None
    assert (outcome.counts.docs_in, outcome.counts.kept, outcome.counts.dropped) == (2, 1, {"empty": 1})
    assert outcome.metrics["empty_domains"] == ["void"]
    assert [s.name for s in load_shards(tmp_path / "out").shards] == ["web"]


@pytest.mark.parametrize(("documents_in", "held"), [(1, 0), (2, 1), (40, 20)])
def test_a_small_domain_gets_a_validation_document_and_keeps_half(
    folder: Path, tmp_path: Path, documents_in: int, held: int
) -> None:
    texts = {str(n): f"text {n}" for n in range(documents_in)}
    settings = EncodeSettings(validation_share=1e-9, validation_minimum=30)
    told = encode([write(tmp_path / "in.parquet", texts)], tmp_path, folder, settings).metrics["domains"]["documents"]
    assert told.get("validation", {"documents": 0})["documents"] == held
    assert told["train"]["documents"] == documents_in - held


def test_long_documents_are_cut_and_their_bytes_too(folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    texts = {"long": "digits 0123456789" * 9, "short": "0123"}
    settings = EncodeSettings(validation_share=0, max_document_tokens=5)
    told = encode([write(tmp_path / "in.parquet", texts)], tmp_path, folder, settings).metrics
    back = read_back(tmp_path / "documents", tokenizer)
    assert texts["long"].startswith(back["long"])
    assert back["short"] == "0123"
    assert (told["documents_cut"], told["totals"]["train"]["tokens"]) == (1, 10)
    assert told["totals"]["train"]["bytes"] == len(back["long"]) + 4


@pytest.mark.parametrize("domain", ["../out", "/etc/x", "a//b", "..", "a b"])
def test_a_domain_that_is_no_path_is_a_data_error(folder: Path, tmp_path: Path, domain: str) -> None:
    path = write(tmp_path / "in.parquet", {"a": "text"}, domain=[domain])
    with pytest.raises(DataError, match="cannot name a shard"):
        encode([path], tmp_path / "out", folder, WHOLE)


def test_a_file_that_is_not_parquet_is_a_data_error(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.encode._text_bytes", lambda files: 1 << 40)
    files = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    for file in files:
        file.write_bytes(b"PAR1 no")
    for workers in (1, 2):
        with pytest.raises(DataError, match="not readable Parquet"):
            encode(files, tmp_path / f"out{workers}", folder, WHOLE, workers)


def test_real_text_comes_back(shared: Path, tmp_path: Path) -> None:
    lines = (shared / "encyclopedia" / "wiki_demo.txt").read_text().splitlines()[:200]
    texts = {str(n): text for n, text in enumerate(lines) if text}
    gpt2 = shared / "tokenizers" / "gpt2" / "vocab.json"
    encode([write(tmp_path / "in.parquet", texts)], tmp_path, gpt2, WHOLE)
    assert read_back(tmp_path / "documents", load_tokenizer(gpt2)) == texts


def test_documents_held_out_before_stay_out_whatever_the_domains(folder: Path, tmp_path: Path):
    texts = {f"d{i}": f"document number {i} " * 5 for i in range(12)}
    source = write(tmp_path / "in.parquet", texts)
    encode([source], tmp_path / "plain", folder, EncodeSettings(validation_share=0.3, validation_minimum=4))
    held = sorted((tmp_path / "plain" / "validation").rglob("*.origin.parquet"))
    outcome = encode([source], tmp_path / "again", folder, EncodeSettings(), held_out=held, name="other")
    kept = pq.read_table(tmp_path / "again" / "train" / "other.origin.parquet")["id"].to_pylist()
    out = [name for file in held for name in pq.read_table(file)["id"].to_pylist()]
    assert sorted([*kept, *out]) == sorted(texts)
    assert outcome.counts.dropped == {"held_out": len(out)}
    assert not (tmp_path / "again" / "validation").exists()


def test_a_synthetic_sample_goes_where_its_document_goes(folder: Path, tmp_path: Path):
    texts = {f"d{i}": f"document number {i} " * 5 for i in range(40)}
    made = pa.array([[("doc_id", name)] for name in texts], pa.map_(pa.string(), pa.string()))
    domains = {"web": list(texts), "synth": [f"sample of {name}" for name in texts]}
    files = [
        write(tmp_path / f"{domain}.parquet", dict(zip(ids, texts.values(), strict=True)), domain=[domain] * 40,
              **({"metadata": made} if domain == "synth" else {}))
        for domain, ids in domains.items()
    ]  # fmt: skip
    encode(files, tmp_path / "out", folder, EncodeSettings(validation_share=0.3))
    held = {
        domain: set(pq.read_table(tmp_path / "out" / "validation" / f"{domain}.origin.parquet")["id"].to_pylist())
        for domain in domains
    }
    assert held["synth"] == {f"sample of {name}" for name in held["web"]}
    assert 0 < len(held["web"]) < 40
