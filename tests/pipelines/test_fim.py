"""Fill in the middle: which documents, in what order, and that nothing is lost."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.document import conform
from pipelines.encode import EncodeSettings, encode
from pipelines.errors import RecipeError
from pipelines.fim import FillInTheMiddle, FimSettings, make_special
from pipelines.indexed import IndexedTokens
from pipelines.tokenizer import Tokenizer, TokenizerSettings, load_tokenizer, train_tokenizer
from pipelines.verify import verify

TOKENS = FimSettings().tokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer with the three tokens, none of them special yet."""
    folder = tmp_path_factory.mktemp("fim")
    path = write(folder / "kept" / "code" / "part-00000.parquet", {"a": "def loam(): return sand + clay\n" * 20})
    train_tokenizer([path], folder, TokenizerSettings(vocab_size=280))
    backend = load_tokenizer(folder).backend
    backend.add_tokens(list(TOKENS))
    backend.save(str(folder / "tokenizer" / "tokenizer.json"))
    return folder


def write(path: Path, texts: dict[str, str], **columns: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(conform(pa.table({"id": list(texts), "text": list(texts.values()), **columns})), path)
    return path


def shards(folder: Path, tmp_path: Path, texts: dict[str, str], **fim) -> tuple[Tokenizer, dict[str, tuple]]:
    """Ids and mode of each document."""
    settings = EncodeSettings(validation_share=0, fim=FimSettings(**fim), max_document_tokens=400)
    path = write(tmp_path / "in.parquet", texts, domain=["code"] * len(texts))
    encode([path], tmp_path, folder, settings)
    tokenizer = load_tokenizer(folder)
    make_special(tokenizer, TOKENS)
    rows = pq.read_table(tmp_path / "code.origin.parquet").to_pylist()
    shard = IndexedTokens(tmp_path / "code")
    assert verify(tmp_path / "code", tokenizer.vocab_size, tokenizer.eos_id).passed
    return tokenizer, {row["id"]: (shard[n].tolist()[:-1], row["fim"]) for n, row in enumerate(rows)}


TEXTS = {str(n): f"x{n} = 中{n} + é\n" * (1 + n % 5) + "<|fim_middle|>" * (n % 2) for n in range(60)}


def test_every_document_can_be_restored(folder: Path, tmp_path: Path) -> None:
    tokenizer, found = shards(folder, tmp_path, TEXTS)
    fim = FillInTheMiddle(FimSettings(), 0, tokenizer)
    assert {name: fim.restore(ids, tokenizer.decode) for name, (ids, _) in found.items()} == TEXTS
    modes = [mode for _, mode in found.values()]
    assert 15 <= modes.count(None) <= 45
    assert min(modes.count("psm"), modes.count("spm")) >= 5
    for ids, mode in found.values():
        order = [i for i in ids if i in (fim.prefix, fim.suffix, fim.middle)]
        assert order == ([] if mode is None else [fim.prefix, fim.suffix, fim.middle])
        assert mode != "spm" or ids[:2] == [fim.prefix, fim.suffix]


@pytest.mark.parametrize(("rate", "told"), [(0.0, 0), (1.0, 60)])
def test_the_rate(folder: Path, tmp_path: Path, rate: float, told: int) -> None:
    _, found = shards(folder, tmp_path, TEXTS, rate=rate)
    assert sum(mode is not None for _, mode in found.values()) == told


def test_other_domains_and_documents_that_are_cut_stay_as_they_are(folder: Path, tmp_path: Path) -> None:
    _, found = shards(folder, tmp_path / "cut", {"long": "中文 " * 900}, rate=1.0)
    assert [mode for _, mode in found.values()] == [None]
    _, found = shards(folder, tmp_path / "other", TEXTS, rate=1.0, domains=("web*",))
    assert {mode for _, mode in found.values()} == {None}


def test_a_tokenizer_without_the_tokens_is_a_recipe_error(folder: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "in.parquet", {"a": "text"})
    settings = EncodeSettings(fim=FimSettings(tokens=("<|fim_prefix|>", "<mid>", "<suf>")))
    with pytest.raises(RecipeError, match="needs <mid>, <suf>, which"):
        encode([path], tmp_path / "out", folder, settings)


@given(st.text(min_size=1, max_size=60), st.integers(0, 5), st.text(max_size=8))
def test_cut_and_restored_is_the_same(folder: Path, text: str, seed: int, name: str) -> None:
    tokenizer = load_tokenizer(folder)
    fim = FillInTheMiddle(FimSettings(rate=1.0), seed, tokenizer)
    cut = fim.segments(pa.array([name]), pa.chunked_array([[text]]), ["code"])
    ids: list[int] = []
    for segment, lead in zip(tokenizer.encode(cut.texts), cut.leads.tolist(), strict=True):
        ids += [i for i in lead if i >= 0] + list(segment)
    assert fim.restore(ids, tokenizer.decode) == text
