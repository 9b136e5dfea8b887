"""KenLM scores against a table of probabilities worked out by hand."""

import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from filters.perplexity import PerplexitySettings, policy_of, score_perplexity
from pipelines.errors import DataError

kenlm = pytest.importorskip("kenlm", reason="extra kenlm is not installed")
sentencepiece = pytest.importorskip("sentencepiece", reason="extra kenlm is not installed")

# log10 probabilities and back-offs of a bigram model over two pieces
UNIGRAMS = {"<unk>": (-2.0, 0.0), "<s>": (0.0, -0.5), "</s>": (-1.0, 0.0), "▁a": (-0.7, -0.2), "▁b": (-0.9, -0.1)}
BIGRAMS = {("<s>", "▁a"): -0.3, ("▁a", "▁b"): -0.4, ("▁b", "</s>"): -0.6}


def by_hand(pieces: list[str]) -> float:
    """Katz back-off, log10, with sentence begin and end."""
    total, before = 0.0, "<s>"
    for piece in [*(p if p in UNIGRAMS else "<unk>" for p in pieces), "</s>"]:
        backed_off = UNIGRAMS[before][1] + UNIGRAMS[piece][0]
        total += BIGRAMS.get((before, piece), backed_off)
        before = piece
    return total


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kenlm")
    unigrams = [f"{p}\t{word}\t{backoff}" for word, (p, backoff) in UNIGRAMS.items()]
    bigrams = [f"{p}\t{first} {second}" for (first, second), p in BIGRAMS.items()]
    counts = [f"ngram 1={len(unigrams)}", f"ngram 2={len(bigrams)}"]
    lines = ["\\data\\", *counts, "", "\\1-grams:", *unigrams, "", "\\2-grams:", *bigrams, "", "\\end\\", ""]
    (folder / "en.arpa").write_text("\n".join(lines))
    (folder / "text.txt").write_text("a b\nb a\na a b\n" * 50)
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"), model_prefix=str(folder / "en.sp"), vocab_size=5, model_type="word",
        minloglevel=2,
    )  # fmt: skip
    return folder / "en.arpa"


def scores(model: Path, tmp_path: Path, texts: list[str]) -> list[dict]:
    file = tmp_path / "in" / "kept" / "web" / "part-00000.parquet"
    file.parent.mkdir(parents=True)
    pq.write_table(pa.table({"id": list(map(str, range(len(texts)))), "text": texts}), file)
    score_perplexity([file], tmp_path / "out", PerplexitySettings(scorer="kenlm"), model)
    return pq.read_table(next((tmp_path / "out" / "scores").rglob("*.parquet"))).to_pylist()


@pytest.mark.parametrize(("text", "pieces"), [("a b", ["▁a", "▁b"]), ("B  a", ["▁b", "▁a"]), ("a\nb", ["▁ab"])])
def test_sums_are_those_of_the_table(model: Path, tmp_path: Path, text: str, pieces: list[str]):
    (row,) = scores(model, tmp_path, [text])
    assert row["scored_tokens"] == len(pieces) + 1
    assert row["sum_nll_nats"] == pytest.approx(-by_hand(pieces) * math.log(10), rel=1e-5)


def test_nothing_to_read_is_unscored(model: Path, tmp_path: Path):
    rows = scores(model, tmp_path, ["", " \n\x07 "])
    assert [(row["sum_nll_nats"], row["scored_tokens"]) for row in rows] == [(None, 0), (None, 0)]


def test_pieces_must_lie_beside_the_model(model: Path, tmp_path: Path):
    lonely = tmp_path / "de.arpa"
    lonely.write_bytes(model.read_bytes())
    with pytest.raises(DataError, match=r"de\.sp\.model is missing"):
        policy_of(lonely, PerplexitySettings(scorer="kenlm"))


def test_a_damaged_model_is_a_data_error(model: Path, tmp_path: Path):
    (tmp_path / "en.arpa").write_text("not a model")
    (tmp_path / "en.sp.model").write_bytes((model.parent / "en.sp.model").read_bytes())
    with pytest.raises(DataError, match="cannot be read"):
        scores(tmp_path / "en.arpa", tmp_path, ["a"])
