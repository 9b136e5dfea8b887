"""Passages, terms and searches, against the closed form of BM25 in float64 and on real questions."""

import gzip
import itertools
import json
import math
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import DataError
from pipelines.shingles import words_of
from synth.retrieval import Index, fuse
from synth.retrieval_index import build_index
from synth.retrieval_settings import RetrievalSettings
from synth.retrieval_text import cut_passages, terms_of_text
from synth.retrieval_vectors import Vectors

CMRC = "encyclopedia/cmrc2018/cmrc2018_dev.json.gz"
SENTENCES = "Rain falls. “Is it acid?” she asked. 下雨了。“是酸的吗？”她问。Limestone dissolves over 10.5 years"


def write(path: Path, texts: dict[str, str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"id": list(texts), "text": list(texts.values())}), path)
    return path


def indexed(folder: Path, texts: dict[str, str], **change) -> Index:
    build_index([write(folder / "corpus.parquet", texts)], folder / "index", RetrievalSettings(**change))
    return Index(folder / "index")


def pieces(text: str, bound: int) -> list[str]:
    return [text[start:end] for *_, start, end in cut_passages(pa.array([text]), bound).tolist()]


def test_passages_are_whole_sentences_in_any_script():
    assert pieces(SENTENCES, 64) == [
        "Rain falls. “Is it acid?” she asked. 下雨了。",
        "“是酸的吗？”她问。",
        "Limestone dissolves over 10.5 years",
    ]


def test_a_sentence_too_long_is_cut_between_words_and_a_word_too_long_anywhere():
    assert pieces("x " * 60, 64) == ["x " * 31 + "x", "x " * 27 + "x"]
    assert [len(one) for one in pieces("y" * 200, 64)] == [64, 64, 72]  # a tail under a quarter joins the last


ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=300) | st.lists(
    st.sampled_from(["a", " ", "\n", ". ", "。", "”", "中", "é", "😀", "\u3000", "?", "word", "\u0301"]), max_size=200
).map("".join)


@settings(max_examples=300, deadline=None)
@given(ANY_TEXT, st.integers(64, 200))
def test_passages_are_exact_spans_that_leave_out_white_space_only(text: str, bound: int):
    rows = cut_passages(pa.array(["before", text, "after"]), bound).tolist()
    spans = [(start, end) for number, _, _, start, end in rows if number == 1]
    data = ("before" + text + "after").encode()
    assert [data[first:end].decode() for number, first, end, *_ in rows if number == 1] == [text[a:b] for a, b in spans]
    assert "".join("".join(text[a:b].split()) for a, b in spans) == "".join(text.split())
    assert all(text[a:b].strip() == text[a:b] != "" for a, b in spans)
    assert all(len(text[a:b].encode()) <= bound + bound // 4 for a, b in spans)
    assert [text[a:b] for (_, a), (b, _) in itertools.pairwise(spans) if text[a:b].strip()] == []


def spoken_terms(text: str) -> list[str]:
    """The same terms from Python's words: of Chinese each character, and each pair that touches."""
    found = []
    for run in text.replace("，", " ").split():
        words = words_of(run, fold_numbers=False)
        found += words + ([a + b for a, b in itertools.pairwise(words)] if len(words) == len(run) > 1 else [])
    return found


def test_terms_are_words_and_chinese_characters_with_pairs():
    assert terms_of_text("stories tests glass bus").tolist() == terms_of_text("story test glass bus").tolist()
    assert terms_of_text("glass").tolist() != terms_of_text("glas").tolist()
    assert len(terms_of_text("Wörld 中国人，好")) == 1 + 3 + 2 + 1
    assert terms_of_text("world 42").tolist() == terms_of_text("WÖRLD, 42!").tolist()
    assert set(terms_of_text("中国")) - set(terms_of_text("国中")) != set()


def closed_form(question: list[str], passages: list[list[str]], k1: float, b: float) -> list[float]:
    """BM25 as it is written in books, without an index."""
    mean = sum(map(len, passages)) / len(passages)
    scores = []
    for words in passages:
        score, counts = 0.0, Counter(words)
        for term in filter(counts.__contains__, question):
            held = sum(term in one for one in passages)
            idf = math.log(1 + (len(passages) - held + 0.5) / (held + 0.5))
            score += idf * counts[term] / (counts[term] + k1 * (1 - b + b * len(words) / mean))
        scores.append(score)
    return scores


@pytest.mark.parametrize(("k1", "b"), [(1.5, 0.75), (0.9, 0.0), (0.0, 0.4)])
def test_scores_are_the_closed_form(tmp_path: Path, k1: float, b: float):
    rng = random.Random(7)
    words = ["rain", "acid", "Cave", "42", "雨水", "石灰岩", "the", "the"]
    texts = {f"d{n}": " ".join(rng.choices(words, k=rng.randint(1, 9))) for n in range(60)}
    index = indexed(tmp_path, texts, k1=k1, b=b)
    for question in ("the cave", "acid rain acid", "雨水，42", "nothing"):
        expected = closed_form(spoken_terms(question.lower()), [spoken_terms(t.lower()) for t in texts.values()], k1, b)
        assert np.allclose(index.scores(question, range(60)), expected, rtol=1e-5)
        hits = index.search(question, 100)
        assert sorted(index.passage(hit.passage).doc_id for hit in hits) == sorted(
            name for name, score in zip(texts, expected, strict=True) if score > 0
        )
        assert np.allclose([hit.score for hit in hits], sorted(filter(None, expected), reverse=True), rtol=1e-5)
        assert index.search(question, 5) == hits[:5]


def test_equal_scores_stand_in_order_of_ids_and_barred_documents_stay_out(tmp_path: Path):
    index = indexed(tmp_path, dict.fromkeys(("c", "a", "b"), "the same words"))
    assert [index.passage(hit.passage).doc_id for hit in index.search("same", 9)] == ["a", "b", "c"]
    barred = [index.number_of("a"), index.number_of("c")]
    assert [index.passage(hit.passage).doc_id for hit in index.search("same", 9, barred)] == ["b"]


def test_search_looks_at_every_block(tmp_path: Path):
    texts = {f"d{n:05d}": "common" for n in range(70_000)} | {"z": "common rare"}
    index = indexed(tmp_path, texts)
    assert index.passage(index.search("rare", 3)[0].passage).doc_id == "z"
    assert [index.passage(hit.passage).doc_id for hit in index.search("common", 2)] == ["d00000", "d00001"]


def test_the_name_of_an_index_is_its_corpus_and_settings_not_its_files(tmp_path: Path):
    texts = {"a": "Rain is acid.", "b": "Caves are dry."}
    one = indexed(tmp_path / "1", texts)
    other = indexed(tmp_path / "2", dict(reversed(texts.items())))
    parts = [write(tmp_path / "3" / f"{n}.parquet", dict([item])) for n, item in enumerate(texts.items())]
    assert one.identity == other.identity == build_index(parts, tmp_path / "3" / "index", RetrievalSettings())
    assert one.identity != indexed(tmp_path / "4", texts | {"b": "Caves are wet."}).identity
    assert one.identity != indexed(tmp_path / "5", texts, k1=1.2).identity


def test_ranges_of_hashes_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    texts = {f"d{n}": f"word{n % 7} word{n % 11} 中文{n}" for n in range(300)}
    whole = indexed(tmp_path / "whole", texts)
    monkeypatch.setattr("synth.retrieval_index.RANGE_BYTES", 500)
    monkeypatch.setattr("synth.retrieval_index.BATCH_BYTES", 2000)
    parts = indexed(tmp_path / "parts", texts)
    for name in ("terms.npy", "starts.npy", "passages.u4", "weights.f4", "docs.npy", "index.json"):
        assert (whole.folder / name).read_bytes() == (parts.folder / name).read_bytes()
    assert whole.passage(299) == parts.passage(299)


def test_of_documents_with_one_id_the_first_counts(tmp_path: Path):
    files = [write(tmp_path / "1.parquet", {"a": "first words"}), write(tmp_path / "2.parquet", {"a": "second words"})]
    build_index(files, tmp_path / "index", RetrievalSettings())
    assert [
        Index(tmp_path / "index").passage(hit.passage).text for hit in Index(tmp_path / "index").search("words", 9)
    ] == ["first words"]


def test_a_corpus_without_text_and_a_folder_without_index_are_errors(tmp_path: Path):
    with pytest.raises(DataError, match="no passage in"):
        indexed(tmp_path, {"a": " \n"})
    with pytest.raises(DataError, match="holds no retrieval index"):
        Index(tmp_path / "nowhere")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"index": 1, "settings": {}}'])
def test_an_index_with_a_damaged_description_is_named(tmp_path: Path, content: str):
    indexed(tmp_path, {"a": "one two"}).close()
    (tmp_path / "index" / "index.json").write_text(content)
    for read in (Index, lambda folder: build_index([], folder, RetrievalSettings())):
        with pytest.raises(DataError, match=r"index\.json .*remove the folder"):
            read(tmp_path / "index")


@pytest.mark.parametrize("lost", ["terms.npy", "starts.npy", "docs.npy", "ranks.npy", "passages.u4", "weights.f4",
                                  "passages.arrow", "documents.parquet"])  # fmt: skip
@pytest.mark.parametrize("damage", ["gone", "cut", "empty"])
def test_an_index_that_lost_a_part_is_named(tmp_path: Path, lost: str, damage: str):
    indexed(tmp_path, {"a": "one two", "b": "two three"}).close()
    part = tmp_path / "index" / lost
    data = part.read_bytes()
    part.unlink()
    if damage != "gone":
        part.write_bytes(data[:-8] if damage == "cut" else b"")
    with pytest.raises(DataError, match="is damaged"):
        Index(tmp_path / "index")


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01\x00junk", b"PAR1"])
def test_vectors_that_cannot_be_read_are_named(tmp_path: Path, content: bytes):
    index = indexed(tmp_path, {"a": "one"})
    for name in ("v.npy", "v.parquet"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=rf"{name} is not a readable"):
            Vectors([tmp_path / name], index, tmp_path / "mapped.npy")


def test_vectors_that_are_no_numbers_are_named(tmp_path: Path):
    index = indexed(tmp_path, {"a": "one", "b": "two"})
    np.save(tmp_path / "v.npy", np.array([[1.0, 2], [np.nan, 1]]))
    with pytest.raises(DataError, match=r"the embedding of 'b' is not of finite numbers"):
        Vectors([tmp_path / "v.npy"], index, tmp_path / "mapped.npy")


def test_reciprocal_ranks_join_two_orders():
    assert fuse([[1, 2, 3], [3, 4]]) == [3, 1, 2, 4]
    assert fuse([[7, 8], [8, 7]]) == [7, 8]


def test_vectors_rank_by_cosine_with_the_first_known_name(tmp_path: Path):
    index = indexed(tmp_path, {"a": "one", "b": "two", "c": "three"})
    table = pa.table({"id": ["a", "b", "c", "q"], "embedding": [[2.0, 0], [1, 1], [-1, 0], [0, 5]]})
    pq.write_table(table, tmp_path / "v.parquet")
    vectors = Vectors([tmp_path / "v.parquet"], index, tmp_path / "v" / "mapped.npy")
    names = lambda found: [index.ids[n].as_py() for n in found]  # noqa: E731
    assert names(vectors.nearest(("unknown", "a"), 9, frozenset())) == ["a", "b"]  # the opposite is no neighbour
    assert names(vectors.nearest(("q", "a"), 9, frozenset([0]))) == ["b"]
    np.save(tmp_path / "v.npy", np.eye(3, dtype=np.float32))
    rows = Vectors([tmp_path / "v.npy"], index, tmp_path / "w" / "mapped.npy")
    assert names(rows.nearest(("b",), 9, frozenset())) == ["b"]
    with pytest.raises(DataError, match="columns id and embedding"):
        Vectors([write(tmp_path / "no.parquet", {"a": "x"})], index, tmp_path / "x.npy")


def read_cmrc(shared: Path) -> tuple[dict[str, str], list[tuple[str, str]]]:
    data = json.loads(gzip.decompress((shared / CMRC).read_bytes()))["data"]
    paragraphs = [one for article in data for one in article["paragraphs"]]
    questions = [(asked["question"], one["id"]) for one in paragraphs for asked in one["qas"]]
    return {one["id"]: one["context"] for one in paragraphs}, questions


def read_lines(path: Path, field: str) -> tuple[dict[str, str], list[tuple[str, str]]]:
    texts, questions = {}, []
    for number, line in enumerate(gzip.decompress(path.read_bytes()).splitlines()):
        text, _, rest = json.loads(line)[field].partition("\nQuestion: ")
        texts[f"{path.name}:{number}"] = text
        questions.append((rest.partition("\n")[0], f"{path.name}:{number}"))
    return texts, questions


def recall(index: Index, texts: dict[str, str], questions: list[tuple[str, str]], most: int) -> float:
    """Share of the questions of which a passage of their own text is among the first `most`."""
    found = 0
    for question, name in questions:
        hits = [index.passage(hit.passage) for hit in index.search(question, most)]
        found += any(texts[hit.doc_id] == texts[name] for hit in hits)
    return found / len(questions)


def test_real_questions_find_their_paragraphs(shared: Path, tmp_path: Path):
    sets = {
        "cmrc": read_cmrc(shared),
        "boolq": read_lines(shared / "qa/boolq.jsonl.gz", "query"),
        "pubmed": read_lines(shared / "papers/pubmed_qa_labeled.jsonl.gz", "context"),
    }
    texts = {name: text for some, _ in sets.values() for name, text in some.items()}
    index = indexed(tmp_path, texts)
    least = {"cmrc": (0.94, 0.99), "boolq": (0.66, 0.87), "pubmed": (0.93, 0.97)}
    for name, (_, questions) in sets.items():
        found = recall(index, texts, questions, 1), recall(index, texts, questions, 10)
        print(name, len(questions), *(round(share, 4) for share in found))
        assert found[0] >= least[name][0]
        assert found[1] >= least[name][1]
