import dataclasses
import functools
import gzip
import itertools
import json
import random
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.dedup import dedup, weights
from pipelines.dedup_settings import DedupSettings
from pipelines.document import SCHEMA, conform
from pipelines.errors import DataError
from pipelines.files import sha256_of
from pipelines.recipe import ROOT
from pipelines.shingles import words_of


def spelled(number: int) -> str:
    """A word of letters only: all numbers are one word to deduplication."""
    return "".join("abcdefghij"[int(digit)] for digit in str(number))


WORDS = [spelled(number) for number in range(400)]


def passage(seed: int, length: int = 60) -> list[str]:
    return random.Random(seed).choices(WORDS, k=length)


def changed(words: list[str], seed: int, count: int) -> list[str]:
    """Some words replaced by new ones."""
    words = list(words)
    for place in random.Random(seed).sample(range(len(words)), count):
        words[place] = spelled(1000 + 997 * seed + 31 * place) + "x"
    return words


def write(folder: Path, *parts: list[dict]) -> list[Path]:
    files = []
    for number, rows in enumerate(parts):
        path = folder / "kept" / f"part-{number:05d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        names = ("id", "text", "url", "domain", "source", "metadata")
        schema = pa.schema([SCHEMA.field(name) for name in names])
        table = pa.Table.from_pylist(rows, schema=schema)
        scores = pa.array([{"quality": row.get("quality")} for row in rows], pa.struct([("quality", pa.float64())]))
        pq.write_table(conform(table.append_column("scores", scores)), path)
        files.append(path)
    return files


def ids(folder: Path) -> set[str]:
    return {
        name for path in folder.rglob("*.parquet") for name in pq.read_table(path, columns=["id"])["id"].to_pylist()
    }


def rows_of(work: Path) -> dict[str, dict]:
    return {row["id"]: row for row in pq.read_table(work / "clusters.parquet").to_pylist()}


def doc(name: str, text: str | list[str], **more) -> dict:
    return {"id": name, "text": text if isinstance(text, str) else " ".join(text), **more}


def test_near_duplicates_leave_one(tmp_path):
    base = passage(1)
    files = write(tmp_path, [doc("b", base), doc("c", passage(2))], [doc("a", [*base, "coda"]), doc("d", "too short")])
    outcome = dedup(files, tmp_path / "out", DedupSettings())
    assert ids(tmp_path / "out" / "kept") == {"a", "c", "d"}
    assert outcome.counts.dropped == {"near_duplicate": 1}
    assert rows_of(tmp_path / "out") == {
        "a": {"id": "a", "cluster": "a", "kept": True, "matched_id": None, "jaccard": None},
        "b": {"id": "b", "cluster": "a", "kept": False, "matched_id": "a", "jaccard": 56 / 57},
    }


@pytest.mark.parametrize(("least", "kept"), [(0.8, {"a", "b"}), (0.5, {"a"}), (None, {"a"})])
def test_candidates_below_the_bound_are_not_joined(tmp_path, least, kept):
    base = passage(3, 104)  # 100 shingles; three words apart in the middle change 15 of them: 85 / 115
    other = [f"{word}x" if place in (30, 50, 70) else word for place, word in enumerate(base)]
    files = write(tmp_path, [doc("a", base), doc("b", other)])
    settings = DedupSettings(rows=2, bands=40, verify_jaccard=least)
    dedup(files, tmp_path / "out", settings)
    assert ids(tmp_path / "out" / "kept") == kept


@pytest.mark.parametrize(("prefer", "kept"), [("first", "a"), ("quality", "b"), ("longest", "c")])
def test_which_copy_stays(tmp_path, prefer, kept):
    base = passage(4)
    rows = [
        doc("a", base, quality=0.2),
        doc("b", base, quality=0.9),
        doc("c", " \n ".join(base)),  # same words, more characters, no score
        doc("d", base, quality=float("nan")),
    ]
    dedup(write(tmp_path, rows), tmp_path / "out", DedupSettings(prefer=prefer))
    assert ids(tmp_path / "out" / "kept") == {kept}


def test_exact_does_not_see_whitespace_but_sees_case(tmp_path):
    rows = [doc("a", "One  two\n"), doc("b", " One two"), doc("c", "one two"), doc("d", ""), doc("e", "\n\u3000")]
    outcome = dedup(write(tmp_path, rows), tmp_path / "out", DedupSettings(method="exact"))
    assert ids(tmp_path / "out" / "kept") == {"a", "c", "d"}
    assert outcome.counts.dropped == {"exact_duplicate": 2}
    assert rows_of(tmp_path / "out")["b"]["jaccard"] == 1.0


def test_url(tmp_path):
    urls = ["http://www.Example.com/a/?utm_source=x#top", "https://example.com/a", "https://example.com/b", None, None]
    rows = [doc(str(n), f"text {n}", url=url) for n, url in enumerate(urls)]
    dedup(write(tmp_path, rows), tmp_path / "out", DedupSettings(method="url"))
    assert ids(tmp_path / "out" / "kept") == {"0", "2", "3", "4"}
    row = {"id": "1", "cluster": "0", "kept": False, "matched_id": "0", "jaccard": None}
    assert rows_of(tmp_path / "out")["1"] == row


def test_within_a_domain_only(tmp_path):
    rows = [doc(n, passage(5), domain=d) for n, d in (("a", "x"), ("b", "x"), ("c", "y"), ("d", None))]
    for method in ("minhash", "exact"):
        dedup(write(tmp_path, rows), tmp_path / method, DedupSettings(within="domain", method=method))
        assert ids(tmp_path / method / "kept") == {"a", "c", "d"}


def test_against_an_index_drops_only_new_documents_and_names_the_old_one(tmp_path):
    base = passage(6, 3000)
    old = write(tmp_path / "old", [doc("zz-old", base), doc("other", passage(7))])
    dedup(old, tmp_path / "first", DedupSettings())
    near, fresh = changed(base, 1, 20), passage(9)
    new = write(tmp_path / "new", [doc("a", near), doc("b", near), doc("c", fresh), doc("d", [*fresh, "coda"])])
    outcome = dedup(new, tmp_path / "second", DedupSettings(), against=[tmp_path / "first"])
    assert ids(tmp_path / "second" / "kept") == {"c"}
    rows = rows_of(tmp_path / "second")
    assert [(rows[n]["cluster"], rows[n]["matched_id"]) for n in "abd"] == [("zz-old", "zz-old")] * 2 + [("c", "c")]
    grams = [{tuple(words[n : n + 5]) for n in range(2996)} for words in (base, near)]
    true = len(grams[0] & grams[1]) / len(grams[0] | grams[1])
    assert rows["a"]["jaccard"] == pytest.approx(true, abs=1e-6)
    assert outcome.metrics["indexed"] == 2
    third = dedup(new, tmp_path / "third", DedupSettings(), against=[tmp_path / "second" / "index"])
    assert third.counts.kept == 0
    assert rows_of(tmp_path / "third")["c"]["cluster"] == "c"


def test_an_index_of_other_settings_is_refused(tmp_path):
    files = write(tmp_path, [doc("a", passage(1))])
    dedup(files, tmp_path / "first", DedupSettings(ngram=3))
    with pytest.raises(DataError, match="ngram 3, asked for 5"):
        dedup(files, tmp_path / "second", DedupSettings(), against=[tmp_path / "first"])
    with pytest.raises(DataError, match="holds no index"):
        dedup(files, tmp_path / "second", DedupSettings(), against=[tmp_path])


@functools.cache
def grams_of(text: str, n: int = 5) -> frozenset[tuple[str, ...]]:
    words = words_of(text)
    return frozenset(tuple(words[start : start + n]) for start in range(len(words) - n + 1))


def jaccard_of(one: str, other: str) -> float:
    union = len(grams_of(one) | grams_of(other))
    return len(grams_of(one) & grams_of(other)) / union if union else 0.0


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 99), st.integers(0, 6)), min_size=2, max_size=12), st.randoms()
)
def test_order_does_not_matter_and_clusters_are_those_of_brute_force(tmp_path_factory, plan, rng):
    tmp_path = tmp_path_factory.mktemp("order")
    rows = [doc(f"{n:02d}", changed(passage(b), s, c), quality=n % 3 / 2) for n, (b, s, c) in enumerate(plan)]
    shuffled = rng.sample(rows, len(rows))
    settings = DedupSettings(bands=60, rows=2, prefer="quality")  # misses a pair at 0.8 once in 10^26
    dedup(write(tmp_path / "in", rows), tmp_path / "one", settings)
    middle = rng.randint(0, len(rows))
    dedup(write(tmp_path / "shuffled", shuffled[:middle], shuffled[middle:]), tmp_path / "two", settings)
    assert rows_of(tmp_path / "one") == rows_of(tmp_path / "two")
    assert ids(tmp_path / "one" / "kept") == ids(tmp_path / "two" / "kept")
    names = {row["id"]: row["id"] for row in rows}
    order = sorted(rows, key=lambda row: (-row["quality"], row["id"]))
    for _ in rows:
        for one, other in itertools.combinations(order, 2):
            if jaccard_of(one["text"], other["text"]) >= 0.8:
                names[one["id"]] = names[other["id"]] = min(
                    names[one["id"]], names[other["id"]], key=[r["id"] for r in order].index
                )
    found = rows_of(tmp_path / "one")
    assert {name: found[name]["cluster"] if name in found else name for name in names} == names


def digests(work: Path) -> dict[str, str]:
    files = (p for p in work.rglob("*") if p.is_file() and ".scratch" not in p.parts)
    return {str(p.relative_to(work)): sha256_of(p) for p in files}


def test_workers_and_a_second_call_change_no_byte(tmp_path):
    parts = [[doc(f"{k}-{n}", changed(passage(n), k, k)) for n in range(20)] for k in range(3)]
    files = write(tmp_path, *parts)
    one = dedup(files, tmp_path / "one", DedupSettings())
    two = dedup(files, tmp_path / "two", DedupSettings(), workers=2)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert one == two == dedup(files, tmp_path / "two", DedupSettings())
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


@pytest.mark.parametrize("method", ["minhash", "exact", "url", "lines", "substring"])
def test_nothing_and_odd_texts(tmp_path, method):
    outcome = dedup([], tmp_path / "none", DedupSettings(method=method))
    assert (outcome.counts.docs_in, ids(tmp_path / "none")) == (0, set())
    rows = [doc("a", "\x00" * 50), doc("b", "word " * 1000), doc("c", "x" * 100_000), doc("d", "𠀀" * 30)]
    dedup(write(tmp_path, [], rows), tmp_path / "out", DedupSettings(method=method))
    assert ids(tmp_path / "out" / "kept") == {"a", "b", "c", "d"}


def test_documents_too_short_for_a_shingle_are_compared_as_they_are(tmp_path):
    texts = ["Chapter 1", "Chapter  1\n", "Chapter 2", "chapter 1", "", " ", "!!!", "???"]
    dedup(write(tmp_path, [doc(str(n), text) for n, text in enumerate(texts)]), tmp_path / "out", DedupSettings())
    assert ids(tmp_path / "out" / "kept") == {"0", "2", "3", "4", "6", "7"}


def test_sources_of_priority_stay(tmp_path):
    rows = [doc(n, passage(3), source=s) for n, s in (("a", "crawl"), ("b", "books"), ("c", "wiki"))]
    dedup(write(tmp_path, rows), tmp_path / "out", DedupSettings(priority=("wiki", "books")))
    assert ids(tmp_path / "out" / "kept") == {"c"}


def test_the_newest_or_best_scored_by_metadata_stays(tmp_path):
    dates = {"a": "2020-01-01", "b": "2024-05-01T12:00:00Z", "c": "no date"}
    rows = [doc(n, passage(3), metadata=[("date", date), ("stars", str(len(date)))]) for n, date in dates.items()]
    dedup(write(tmp_path, rows), tmp_path / "new", DedupSettings(prefer="newest"))
    assert ids(tmp_path / "new" / "kept") == {"b"}
    dedup(write(tmp_path, rows), tmp_path / "best", DedupSettings(prefer="quality", score="stars"))
    assert ids(tmp_path / "best" / "kept") == {"b"}


def test_rehydration_weights_follow_the_size_of_the_cluster(tmp_path):
    assert weights(np.array([1, 2, 3, 4, 5, 99, 100, 999, 1000])).tolist() == [1, 2, 3, 3, 5, 5, 8, 8, 1]
    rows = [*(doc(f"a{n}", passage(1)) for n in range(3)), doc("b", passage(2))]
    dedup(write(tmp_path, rows), tmp_path / "out", DedupSettings(rehydrate=True))
    found = pq.read_table(tmp_path / "out" / "attributes").to_pylist()
    assert {row["id"]: (row["cluster_size"], row["weight"]) for row in found} == {
        "a0": (3, 3), "a1": (3, 0), "a2": (3, 0), "b": (1, 1)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("preset", "shape"),
    [("fineweb", (False, 5, 14, 8)), ("curator", (True, 24, 20, 13)), ("openseek_zh", (True, 5, 25, 10))],
)
def test_presets_fill_what_is_not_given(preset, shape):
    assert dataclasses.astuple(DedupSettings(preset=preset).shape)[:4] == shape
    assert DedupSettings(preset=preset, bands=3).shape.bands == 3


@pytest.mark.parametrize("method", ["minhash", "exact", "url", "lines", "substring"])
def test_neither_order_nor_cut_into_files_changes_what_is_kept(tmp_path, method):
    rng = random.Random(5)
    texts = [changed(passage(n % 7, 80), n, n % 3) for n in range(30)]
    texts = [" ".join(words[:40]) + "\n" + " ".join(words[40:]) for words in texts]
    rows = [doc(f"{n:02d}", text, url=f"http://x.example/{n % 9}") for n, text in enumerate(texts)]
    kept = []
    for attempt in range(3):
        shuffled = rng.sample(rows, len(rows))
        cuts = sorted(rng.sample(range(30), attempt))
        parts = [shuffled[a:b] for a, b in itertools.pairwise([0, *cuts, 30])]
        out = tmp_path / f"out{attempt}"
        dedup(write(tmp_path / f"in{attempt}", *parts), out, DedupSettings(method=method), workers=1 + attempt % 2)
        found = [row for path in (out / "kept").rglob("*.parquet") for row in pq.read_table(path).to_pylist()]
        kept.append((sorted((row["id"], row["text"]) for row in found), pq.read_table(out / "clusters.parquet")))
    assert kept[0] == kept[1] == kept[2]


@pytest.mark.parametrize("method", ["minhash", "exact", "lines", "substring"])
def test_of_documents_with_one_id_and_text_the_same_stays_in_any_order(tmp_path, method):
    text = " ".join(passage(8))
    rows = [doc("a", text, url=f"http://x.example/{n}") for n in range(4)] + [doc("a", f"{text}\n"), doc("a", text)]
    kept = []
    for attempt in range(6):
        parts = [random.Random(attempt).sample(rows, len(rows)), [doc("b", passage(9))]]
        out = tmp_path / f"out{attempt}"
        dedup(write(tmp_path / f"in{attempt}", *parts), out, DedupSettings(method=method))
        found = [row for path in (out / "kept").rglob("*.parquet") for row in pq.read_table(path).to_pylist()]
        kept.append(sorted((row["id"], row["text"], row["url"]) for row in found))
    assert len(kept[0]) == 2
    assert kept == [kept[0]] * 6


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(tmp_path):
    parts = [[doc(f"{k}-{n}", changed(passage(n), k, k), url=f"http://e.org/{n}") for n in range(40)] for k in range(4)]
    files = write(tmp_path, *parts)
    dedup(files, tmp_path / "whole", DedupSettings())
    script = (
        "import sys, pathlib; from pipelines.dedup import dedup; from pipelines.dedup_settings import DedupSettings; "
        "dedup([pathlib.Path(f) for f in sys.argv[2:]], pathlib.Path(sys.argv[1]), DedupSettings())"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "killed"), *map(str, files)]
    for marks in ((".scratch/signatures/00001.arrow",), (".scratch/groups",), ("index",), ("kept/part-00002.parquet",)):
        process = subprocess.Popen(command, cwd=ROOT)
        while process.poll() is None and not all((tmp_path / "killed" / mark).exists() for mark in marks):
            time.sleep(0.01)
        process.kill()
        process.wait()
    dedup(files, tmp_path / "killed", DedupSettings())
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")


def pairs_within(groups: dict[str, list[str]]) -> set[tuple[str, str]]:
    return {pair for names in groups.values() for pair in itertools.combinations(sorted(names), 2)}


def found_pairs(work: Path) -> set[tuple[str, str]]:
    groups: dict[str, list[str]] = {}
    for row in rows_of(work).values():
        groups.setdefault(row["cluster"], []).append(row["id"])
    return pairs_within(groups)


def test_real_pages_through_eleven_extractors(shared, tmp_path):
    with gzip.open(shared / "dedup" / "extractor_variants.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    dedup(write(tmp_path, [doc(row["id"], row["text"]) for row in rows]), tmp_path / "out", DedupSettings())
    found = found_pairs(tmp_path / "out")
    groups: dict[str, list[dict]] = {}
    for row in rows:
        groups.setdefault(row["cluster"], []).append(row)
    labelled = pairs_within({name: [row["id"] for row in group] for name, group in groups.items()})
    near = {
        (min(a["id"], b["id"]), max(a["id"], b["id"]))
        for group in groups.values()
        for a, b in itertools.combinations(group, 2)
        if jaccard_of(a["text"], b["text"]) >= 0.8
    }
    print(
        f"\nextractor variants: precision {len(found & labelled) / len(found):.4f}, recall of pairs at 0.8 or more "
        f"{len(found & near) / len(near):.4f}, of all labelled pairs {len(found & labelled) / len(labelled):.4f}"
    )
    assert len(found & labelled) / len(found) > 0.99
    assert len(found & near) / len(near) > 0.97


def test_real_versions_of_chinese_laws(shared, tmp_path):
    lines = (shared / "chinese" / "laws_zh.version_clusters.jsonl").read_text(encoding="utf-8").splitlines()
    pairs = {(p["a"], p["b"]): p["jaccard_char5"] for line in lines for p in json.loads(line)["pairs"]}
    names = sorted({name for pair in pairs for name in pair})
    with tarfile.open(shared / "chinese" / "laws_zh.tar.gz") as tar:
        members = {m.name: m for m in tar.getmembers() if m.isfile()}
        texts = {}
        for name in names:
            member = next(m for path, m in members.items() if path.endswith(name))
            texts[name] = tar.extractfile(member).read().decode()
    rows = [doc(name, text) for name, text in texts.items()]
    dedup(write(tmp_path, rows), tmp_path / "out", DedupSettings(unit="char", verify_jaccard=0.8))
    found = {tuple(sorted(pair)) for pair in found_pairs(tmp_path / "out")}
    near = {tuple(sorted(pair)) for pair, similarity in pairs.items() if similarity >= 0.82}
    far = {tuple(sorted(pair)) for pair, similarity in pairs.items() if similarity < 0.75}
    print(f"\nChinese laws: {len(found & near)} of {len(near)} near pairs found, {len(found & far)} of {len(far)} far")
    assert len(found & near) / len(near) > 0.9
    assert not found & far


def test_settings_are_checked():
    with pytest.raises(ValueError, match="ngram"):
        DedupSettings(ngram=0)
