"""Methods that cut texts (`lines`, `substring`) and the one that reads embeddings, from documents to files."""

import json
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.dedup import dedup
from pipelines.dedup_settings import DedupSettings
from pipelines.document import conform
from pipelines.errors import DataError, StepError
from pipelines.files import sha256_of
from pipelines.removal import RemoveSpans, SpanFiles

LINE, OTHER = "This very line is long enough to count.", "Another line that is long enough to count."
RNG = random.Random(3)
PASSAGE = " ".join("".join(RNG.choices("abcdefgh", k=6)) for _ in range(60))


def write(folder, **texts):
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.table({"id": list(texts), "text": list(texts.values())})
    pq.write_table(conform(table), folder / "a.parquet")
    return [folder / "a.parquet"]


def kept(work):
    return {r["id"]: r["text"] for p in sorted((work / "kept").glob("*.parquet")) for r in pq.read_table(p).to_pylist()}


def test_the_first_copy_of_a_line_stays(tmp_path):
    texts = {"b": f"{LINE.upper()}\n{OTHER}\nshort", "a": f"{LINE}\nshort\n{LINE}", "c": f"{LINE}\n\n{OTHER}"}
    outcome = dedup(write(tmp_path, **texts), tmp_path / "out", DedupSettings(method="lines"))
    assert kept(tmp_path / "out") == {"a": f"{LINE}\nshort", "b": f"{OTHER}\nshort"}
    assert outcome.counts.dropped == {"duplicate_lines": 1}
    assert (outcome.metrics["lines"], outcome.metrics["duplicate_lines"]) == (6, 4)
    rows = {row["id"]: row for row in pq.read_table(tmp_path / "out" / "clusters.parquet").to_pylist()}
    assert [(rows[n]["matched_id"], rows[n]["kept"]) for n in "abc"] == [("a", True), ("a", True), ("b", False)]


def test_numbers_and_short_lines_do_not_count_as_equal(tmp_path):
    texts = {"a": f"{LINE} 1\nmenu", "b": f"{LINE} 2\nmenu"}
    dedup(write(tmp_path, **texts), tmp_path / "out", DedupSettings(method="lines"))
    assert kept(tmp_path / "out") == texts


def test_paragraphs(tmp_path):
    texts = {"a": f"{LINE}\n{OTHER}\n\nend of a", "b": f"start of b\n\n{LINE}\n{OTHER}\n\nend of b", "c": LINE}
    settings = DedupSettings(method="lines", lines={"unit": "paragraph"})
    dedup(write(tmp_path, **texts), tmp_path / "out", settings)
    assert kept(tmp_path / "out") == texts | {"b": "start of b\n\nend of b"}


def test_a_document_that_is_mostly_copies_is_dropped_and_does_not_count_as_a_source(tmp_path):
    lines = [f"{LINE} {word}" for word in ("one", "two", "three", "four", "five")]
    texts = {"a": "\n".join(lines[:4]), "b": "\n".join(lines), "c": f"{lines[4]}\nand more of c that is its own"}
    settings = DedupSettings(method="lines", lines={"drop_share": 0.7})
    dedup(write(tmp_path, **texts), tmp_path / "out", settings)
    assert kept(tmp_path / "out") == {"a": texts["a"], "c": texts["c"]}


def test_lines_against_an_index(tmp_path):
    dedup(
        write(tmp_path / "1", z=f"{LINE}\nunique text of z, long enough"),
        tmp_path / "old",
        DedupSettings(method="lines"),
    )
    new = write(tmp_path / "2", a=f"own words of a\n{LINE}", b=LINE)
    dedup(new, tmp_path / "new", DedupSettings(method="lines"), against=[tmp_path / "old"])
    assert kept(tmp_path / "new") == {"a": "own words of a"}
    rows = pq.read_table(tmp_path / "new" / "clusters.parquet").to_pylist()
    assert {row["matched_id"] for row in rows} == {"z"}


def test_repeated_passages_leave_one_copy(tmp_path):
    texts = {"c": f"Start: {PASSAGE} end of c.", "a": f"Other start. {PASSAGE}", "d": PASSAGE, "e": "中文 " * 30}
    outcome = dedup(write(tmp_path, **texts), tmp_path / "out", DedupSettings(method="substring"))
    assert kept(tmp_path / "out") == {"a": texts["a"], "c": "Start: end of c.", "e": kept(tmp_path / "out")["e"]}
    assert outcome.counts.dropped == {"duplicate_substring": 1}
    (span,) = [r for r in pq.read_table(tmp_path / "out" / "spans.parquet").to_pylist() if r["id"] == "c"]
    assert (texts["c"][span["start"] : span["end"]].strip(), span["matched_id"]) == (PASSAGE, "a")


def test_a_passage_twice_in_one_document(tmp_path):
    texts = {"a": f"{PASSAGE} between {PASSAGE} behind"}
    dedup(write(tmp_path, **texts), tmp_path / "out", DedupSettings(method="substring"))
    assert kept(tmp_path / "out") == {"a": f"{PASSAGE} between behind"}


def test_whole_documents_may_be_dropped_instead(tmp_path):
    texts = {"a": f"Other start. {PASSAGE}", "b": PASSAGE, "c": PASSAGE + " " + PASSAGE[::-1] * 2}
    settings = DedupSettings(method="substring", substring={"policy": "document", "drop_share": 0.8})
    dedup(write(tmp_path, **texts), tmp_path / "out", settings)
    assert kept(tmp_path / "out") == {"a": texts["a"], "c": texts["c"]}


def three_files(folder):
    """Documents that share lines and passages with those of other files; some are dropped, some are cut."""
    lines = [
        f"{LINE} {word} {PASSAGE[40 * n : 40 * n + 200]}" for n, word in enumerate(("one", "two", "three", "four"))
    ]
    texts = [f"{LINE}\n{lines[n % 4]}\n{n} of its own\n{lines[(n + n // 4) % 4]}\n{OTHER}" for n in range(12)]
    texts[7] = texts[2]
    parts = [{f"{n:02d}": texts[n] for n in range(12) if n % 3 == k} for k in range(3)]
    return [file for k, part in enumerate(parts) for file in write(folder / str(k), **part)]


def digests(work):
    files = (path for path in work.rglob("*") if path.is_file() and ".scratch" not in path.parts)
    return {str(path.relative_to(work)): sha256_of(path) for path in files}


RESUMED = [
    DedupSettings(method="lines"),
    DedupSettings(method="lines", lines={"drop_share": 0.7}),
    DedupSettings(method="substring"),
    DedupSettings(method="substring", substring={"policy": "document", "drop_share": 0.7}),
]


@pytest.mark.parametrize("settings", RESUMED, ids=lambda settings: settings.method)
def test_a_removal_that_failed_in_one_file_goes_on(tmp_path, monkeypatch, settings):
    files, whole = three_files(tmp_path), RemoveSpans.run
    calm = dedup(files, tmp_path / "calm", settings)
    assert calm.metrics["characters_cut"] + calm.counts.dropped.get("duplicate_substring", 0) > 0

    def run(self, data, rank=0, world_size=1):
        yield from whole(self, data, rank, world_size)
        if rank == 1:
            raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(RemoveSpans, "run", run)
        with pytest.raises(StepError, match="no space left"):
            dedup(files, tmp_path / "failed", settings)
    assert (tmp_path / "failed/.scratch/remove/completions/00000").is_file()
    assert not (tmp_path / "failed/.scratch/remove/completions/00001").exists()
    for _ in range(2):
        assert dedup(files, tmp_path / "failed", settings) == calm
        assert digests(tmp_path / "failed") == digests(tmp_path / "calm")


@pytest.mark.parametrize("settings", [RESUMED[1], RESUMED[3]], ids=lambda settings: settings.method)
@pytest.mark.parametrize("name", ["append", "settle", "finish"])
def test_a_search_that_failed_ends_with_the_same_bytes(tmp_path, monkeypatch, settings, name):
    files, whole = three_files(tmp_path), getattr(SpanFiles, name)
    calm = dedup(files, tmp_path / "calm", settings)

    def broken(*args, **more):
        whole(*args, **more)
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(SpanFiles, name, broken)
        with pytest.raises(OSError, match="no space left"):
            dedup(files, tmp_path / "failed", settings)
    assert dedup(files, tmp_path / "failed", settings) == calm
    assert digests(tmp_path / "failed") == digests(tmp_path / "calm")


def vectors_of(count):
    generator = np.random.default_rng(2)
    base = generator.normal(size=(count // 3, 8))
    return np.concatenate([base, base + 0.01 * generator.normal(size=base.shape), generator.normal(size=base.shape)])


def components(vectors, names, threshold):
    """The oracle: every pair compared, each name with the least of its component."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    near = unit @ unit.T >= threshold
    best = dict(zip(names, names, strict=True))
    for _ in names:
        for one, other in zip(*np.nonzero(near), strict=True):
            best[names[one]] = best[names[other]] = min(best[names[one]], best[names[other]])
    return best


@pytest.mark.parametrize("cells", [1, 4])
@pytest.mark.parametrize("kind", ["npy", "parquet"])
def test_near_embeddings_leave_one(tmp_path, cells, kind):
    vectors = vectors_of(60)
    names = [f"{n:02d}" for n in range(len(vectors))]
    files = write(tmp_path, **{name: f"text {name}" for name in names})
    if kind == "npy":
        np.save(tmp_path / "vectors.npy", vectors)
    else:
        shuffled = np.random.default_rng(1).permutation(len(names))
        table = {"id": [names[n] for n in shuffled], "embedding": vectors[shuffled].tolist()}
        pq.write_table(pa.table(table), tmp_path / "vectors.parquet")
    settings = DedupSettings(method="semantic", semantic={"cells": cells, "probes": 2})
    dedup(files, tmp_path / "out", settings, embeddings=[tmp_path / f"vectors.{kind}"])
    best = components(vectors, names, 0.95)
    assert set(kept(tmp_path / "out")) == set(best.values())
    rows = pq.read_table(tmp_path / "out" / "clusters.parquet").to_pylist()
    assert {row["id"]: row["cluster"] for row in rows} == {
        n: b for n, b in best.items() if list(best.values()).count(b) > 1
    }


def test_embeddings_that_do_not_fit(tmp_path):
    files = write(tmp_path, a="one", b="two")
    np.save(tmp_path / "v.npy", np.ones((3, 2)))
    settings = DedupSettings(method="semantic")
    for given, message in (([], "--embeddings"), ([tmp_path / "v.npy"], r"shape \(3, 2\), expected \(2,")):
        with pytest.raises(DataError, match=message):
            dedup(files, tmp_path / "out", settings, embeddings=given)


def test_passages_against_an_index(tmp_path):
    settings = DedupSettings(method="substring")
    texts = {"y": f"{PASSAGE} And y.", "z": f"First z: {PASSAGE}"}
    dedup(write(tmp_path / "1", **texts), tmp_path / "old", settings)
    new = write(tmp_path / "2", a=f"Own words of a. {PASSAGE}", b="nothing of it", c=PASSAGE)
    first = dedup(new, tmp_path / "new", settings, against=[tmp_path / "old"])
    assert kept(tmp_path / "new") == {"a": "Own words of a.", "b": "nothing of it"}
    assert first.metrics["documents"] == 3
    rows = pq.read_table(tmp_path / "new" / "clusters.parquet").to_pylist()
    assert {row["id"]: row["matched_id"] for row in rows} == {"a": "y", "c": "y"}
    last = write(tmp_path / "3", d=f"Words of d! {PASSAGE}", e="Own words of a. " * 12)
    dedup(last, tmp_path / "last", settings, against=[tmp_path / "new"])  # holds the old index, too
    assert kept(tmp_path / "last")["d"] == "Words of d!"
    assert (tmp_path / "last/index/00002.text").is_file()
    with pytest.raises(DataError, match="other settings: substring"):
        dedup(last, tmp_path / "other", DedupSettings(method="substring", substring={"min_bytes": 80}),
              against=[tmp_path / "new"])  # fmt: skip


@pytest.mark.parametrize("cells", [1, 3])
def test_embeddings_against_an_index(tmp_path, cells):
    generator = np.random.default_rng(7)
    vectors = generator.normal(size=(40, 8)).astype(np.float32)
    names = [f"n{row:02d}" for row in range(40)]
    settings = DedupSettings(method="semantic", semantic={"cells": cells, "probes": cells})

    def run(folder, rows, values, against=()):
        path = tmp_path / f"{folder}.npy"
        np.save(path, values)
        files = write(tmp_path / f"in-{folder}", **{name: f"text {name}" for name in rows})
        return dedup(files, tmp_path / folder, settings, against=against, embeddings=[path])

    run("old", names[:20], vectors[:20])
    new = np.concatenate([vectors[20:30], vectors[3:5] * 2, vectors[20:21]])
    outcome = run("new", [*names[20:30], "x", "y", "z"], new, [tmp_path / "old"])
    assert set(kept(tmp_path / "new")) == set(names[20:30])
    rows = pq.read_table(tmp_path / "new" / "clusters.parquet").to_pylist()
    assert {row["id"]: row["matched_id"] for row in rows} == {"x": "n03", "y": "n04", "z": "n20", "n20": None}
    assert outcome.metrics["indexed"] == 20
    run("last", ["p", "q"], vectors[[5, 25]], [tmp_path / "new"])
    assert kept(tmp_path / "last") == {}
    with pytest.raises(DataError, match="vectors of 3 numbers, expected 8 as in the index"):
        run("bad", ["p"], np.ones((1, 3)), [tmp_path / "new"])


def test_a_damaged_index_is_named(tmp_path):
    files = write(tmp_path, a=PASSAGE)
    dedup(files, tmp_path / "old", DedupSettings())
    damaged = tmp_path / "old" / "index" / "00000.u32"
    damaged.write_bytes(damaged.read_bytes()[:-4] + b"abcd")
    with pytest.raises(DataError, match=r"00000\.u32: expected sha256"):
        dedup(files, tmp_path / "new", DedupSettings(), against=[tmp_path / "old"])


@pytest.mark.parametrize("odd", [np.nan, np.inf, 1e30])
def test_embeddings_that_are_no_finite_numbers_are_named(tmp_path, odd):
    files = write(tmp_path, a="one", b="two")
    np.save(tmp_path / "v.npy", np.array([[1, 0], [1, odd]]))
    pq.write_table(pa.table({"id": ["b", "a"], "embedding": [[odd, 1.0], [1.0, 1.0]]}), tmp_path / "v.parquet")
    for name in ("v.npy", "v.parquet"):
        with pytest.raises(DataError, match=rf"{name}: the embedding of 'b' is not of finite numbers"):
            dedup(files, tmp_path / "out", DedupSettings(method="semantic"), embeddings=[tmp_path / name])


@pytest.mark.parametrize(
    "embedding", [[[1.0], [1.0, 2, 3]], [None, [1.0]], [[], []], ["x", "y"], [["x"], ["y"]]], ids=str
)
def test_embeddings_of_no_one_length_are_named(tmp_path, embedding):
    pq.write_table(pa.table({"id": ["a", "b"], "embedding": embedding}), tmp_path / "v.parquet")
    with pytest.raises(DataError, match=r"v\.parquet"):
        dedup(write(tmp_path, a="one", b="two"), tmp_path / "out", DedupSettings(method="semantic"),
              embeddings=[tmp_path / "v.parquet"])  # fmt: skip


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01\x00junk"])
def test_an_array_that_cannot_be_read_is_named(tmp_path, content):
    (tmp_path / "v.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"v\.npy is not a readable"):
        dedup(write(tmp_path, a="one"), tmp_path / "out", DedupSettings(method="semantic"),
              embeddings=[tmp_path / "v.npy"])  # fmt: skip


def test_an_index_that_does_not_describe_itself_is_named(tmp_path):
    files, settings = write(tmp_path, a=PASSAGE), DedupSettings(method="substring")
    dedup(files, tmp_path / "old", settings)
    path = tmp_path / "old/index/index.json"
    whole = json.loads(path.read_text())
    partial = {name: digest for name, digest in whole["files"].items() if not name.endswith(".text")}
    for content, message in (([], "does not describe an index"),
                             ({"version": whole["version"]}, "lacks settings and files"),
                             ({**whole, "files": partial}, r"00000\.text belongs to the index, which does not list it"),
                             ({**whole, "files": {"../x": "0"}}, "is no file of its folder")):  # fmt: skip
        path.write_text(json.dumps(content))
        with pytest.raises(DataError, match=message):
            dedup(files, tmp_path / "new", settings, against=[tmp_path / "old"])
    path.write_text(json.dumps(whole))
    (path.parent / "00000.text").unlink()
    with pytest.raises(DataError, match=r"00000\.text: expected sha256 .*, found no such file"):
        dedup(files, tmp_path / "new", settings, against=[tmp_path / "old"])
