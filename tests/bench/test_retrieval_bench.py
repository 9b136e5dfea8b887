"""Speed of retrieval, against bm25s in the same run: the same passages, the same questions, one core.

bm25s is no dependency: `pip install --no-deps --target DIR bm25s`, then `PYTHONPATH=DIR`; else Loam alone is timed.
"""

import importlib
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from synth.retrieval import Index
from synth.retrieval_index import build_index
from synth.retrieval_settings import RetrievalSettings
from tests.bench.cpu_time import cpu_seconds
from tests.synth.test_retrieval import read_cmrc, read_lines, recall, write

pytestmark = pytest.mark.bench
ROUNDS = 3


def corpus(shared: Path) -> tuple[dict[str, str], list[str]]:
    """English novels, BoolQ's passages and PubMedQA's abstracts, and the questions of the two latter."""
    boolq, asked = read_lines(shared / "qa/boolq.jsonl.gz", "query")
    pubmed, more = read_lines(shared / "papers/pubmed_qa_labeled.jsonl.gz", "context")
    texts = boolq | pubmed
    with tarfile.open(shared / "books/english_novels.tar.gz") as novels:
        for member in novels.getmembers():
            if member.isfile() and (file := novels.extractfile(member)):
                texts[member.name] = file.read().decode("utf-8", "replace")
    return texts, [question for question, _ in [*asked, *more]]


def test_index_and_search(shared, tmp_path):
    texts, questions = corpus(shared)
    file, numbers = write(tmp_path / "corpus.parquet", texts), iter(range(9))
    folders = [tmp_path / f"index-{n}" for n in range(4)]
    build_index([file], folders[0], RetrievalSettings())  # compiles
    index = Index(folders[0])
    passages = pq.read_table(file)["text"].nbytes / 1e6, index.receipt["passages"]
    index.search("warm", 10)
    ours = cpu_seconds(lambda: build_index([file], folders[1 + next(numbers)], RetrievalSettings()), ROUNDS)
    searched = cpu_seconds(lambda: [index.search(question, 10) for question in questions], ROUNDS)
    print(f"\n{passages[0]:.1f} MB, {len(texts)} documents, {passages[1]} passages; {len(questions)} questions")
    print(f"index: {passages[1] / ours:.0f} passages/s, {passages[0] / ours:.1f} MB/s")
    print(f"search: {len(questions) / searched:.0f} questions/s")
    try:
        bm25s = importlib.import_module("bm25s")
    except ImportError:
        pytest.skip("bm25s is not installed")
    cut = [index.passage(number).text for number in range(passages[1])]

    def theirs(backend: str):
        model = bm25s.BM25(backend=backend)
        model.index(bm25s.tokenize(cut, stopwords=None, show_progress=False), show_progress=False)
        return model

    built = cpu_seconds(lambda: theirs("numpy"), ROUNDS)
    print(f"bm25s index: {passages[1] / built:.0f} passages/s, {built / ours:.1f} times ours")
    for backend in ("numpy", "numba"):
        model = theirs(backend)

        def ask(model=model):
            tokens = bm25s.tokenize(questions, stopwords=None, show_progress=False)
            return model.retrieve(tokens, k=10, show_progress=False)

        ask()
        asked = cpu_seconds(ask, ROUNDS)
        print(f"bm25s search, {backend}: {len(questions) / asked:.0f} questions/s, {asked / searched:.2f} times ours")


def test_recall(shared, tmp_path):
    sets = {
        "CMRC 2018": read_cmrc(shared),
        "BoolQ": read_lines(shared / "qa/boolq.jsonl.gz", "query"),
        "PubMedQA": read_lines(shared / "papers/pubmed_qa_labeled.jsonl.gz", "context"),
    }
    texts = {name: text for some, _ in sets.values() for name, text in some.items()}
    build_index([write(tmp_path / "corpus.parquet", texts)], tmp_path / "index", RetrievalSettings())
    index = Index(tmp_path / "index")
    for name, (_, questions) in sets.items():
        found = [recall(index, texts, questions, most) for most in (1, 5, 10)]
        print(f"\n{name}: {len(questions)} questions, recall at 1, 5, 10:", *(f"{share:.4f}" for share in found))
