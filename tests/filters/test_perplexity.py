import json
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from filters.perplexity import PerplexitySettings, score_perplexity
from filters.score_table import POLICY_KEY
from pipelines.errors import DataError
from pipelines.store import Outcome

TEXTS = ["The soil is sand, silt and clay.", "", "a", "土壤 🌱 loam\r\n", "<|endoftext|> is text here", "abc " * 40]


def byte_tokenizer(eos: str | None = "<|endoftext|>") -> PreTrainedTokenizerFast:
    """One token per byte."""
    vocabulary = {symbol: number for number, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    config = Qwen2Config(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3, bos_token_id=256, eos_token_id=256,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "in" / "kept" / "web" / f"part-{n:05d}.parquet" for n in range(3)]
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        ids = [f"{number}-{i}" for i in range(len(TEXTS))]
        pq.write_table(pa.table({"id": ids, "text": TEXTS, "domain": ["web"] * len(TEXTS)}), path)
    return paths


def rows(work: Path, part: int = 0) -> dict[str, dict]:
    table = pq.read_table(work / "scores" / "web" / f"part-{part:05d}.parquet")
    return dict(zip(TEXTS, table.to_pylist(), strict=True))


def score(files: list[Path], work: Path, model: Path, workers: int = 1, **settings) -> Outcome:
    return score_perplexity(files, work, PerplexitySettings(**settings), model, workers)


def by_hand(model: Path, tokens: list[int]) -> float:
    exact = Qwen2ForCausalLM.from_pretrained(model, dtype=torch.float64).eval()
    ids = torch.tensor([[256, *tokens]])
    with torch.no_grad():
        logp = torch.log_softmax(exact(input_ids=ids).logits[0, :-1], -1)
    return -float(logp[torch.arange(len(tokens)), ids[0, 1:]].sum())


def test_scores_agree_with_a_float64_pass(files: list[Path], tmp_path: Path, model: Path):
    score(files, tmp_path / "w", model)
    tokens = byte_tokenizer().backend_tokenizer.encode(TEXTS[0]).ids
    row = rows(tmp_path / "w")[TEXTS[0]]
    assert row["sum_nll_nats"] == pytest.approx(by_hand(model, tokens), rel=1e-5)
    assert (row["scored_tokens"], row["bytes"], row["chars"], row["truncated"]) == (32, 32, 32, False)


@pytest.mark.parametrize("text", ["", "a"])
def test_too_short_is_null_not_a_number(files: list[Path], tmp_path: Path, model: Path, text: str):
    score(files, tmp_path / "w", model)
    row = rows(tmp_path / "w")[text]
    assert (row["sum_nll_nats"], row["scored_tokens"], row["bytes"]) == (None, 0, 0)


def test_bytes_are_utf8_and_chars_are_characters(files: list[Path], tmp_path: Path, model: Path):
    score(files, tmp_path / "w", model)
    row = rows(tmp_path / "w")["土壤 🌱 loam\r\n"]
    assert (row["scored_tokens"], row["bytes"], row["chars"]) == (18, 18, 11)


def test_control_tokens_in_a_document_are_text(files: list[Path], tmp_path: Path, model: Path):
    score(files, tmp_path / "w", model)
    text = "<|endoftext|> is text here"
    assert rows(tmp_path / "w")[text]["scored_tokens"] == len(text)


def test_first_window_is_cut_and_says_so(files: list[Path], tmp_path: Path, model: Path):
    score(files, tmp_path / "w", model, max_tokens=10)
    row = rows(tmp_path / "w")["abc " * 40]
    assert (row["scored_tokens"], row["bytes"], row["chars"], row["truncated"]) == (10, 10, 10, True)


def test_window_is_at_most_what_the_model_takes(files: list[Path], tmp_path: Path, model: Path):
    score(files, tmp_path / "w", model)
    assert json.loads((tmp_path / "w" / "policy.json").read_text())["max_tokens"] == 64
    assert rows(tmp_path / "w")["abc " * 40]["scored_tokens"] == 64


def test_disjoint_windows_score_the_whole_document(files: list[Path], tmp_path: Path, model: Path):
    score(files, tmp_path / "w", model, long_documents="disjoint")
    row = rows(tmp_path / "w")["abc " * 40]
    assert (row["scored_tokens"], row["bytes"], row["truncated"]) == (160, 160, False)


def test_without_prefix_the_first_token_is_context(files: list[Path], tmp_path: Path, model: Path):
    score(files, tmp_path / "w", model, prefix="none")
    row = rows(tmp_path / "w")[TEXTS[0]]
    assert (row["scored_tokens"], row["bytes"]) == (31, 31)


def test_workers_change_nothing(files: list[Path], tmp_path: Path, model: Path):
    one = score(files, tmp_path / "one", model)
    two = score(files, tmp_path / "two", model, workers=2)
    assert one == two
    for part in range(3):
        name = f"scores/web/part-{part:05d}.parquet"
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_metrics_weigh_by_tokens_and_bytes(files: list[Path], tmp_path: Path, model: Path):
    outcome = score(files, tmp_path / "w", model)
    web = outcome.metrics["domains"]["web"]
    nll = 3 * math.fsum(row["sum_nll_nats"] or 0 for row in rows(tmp_path / "w").values())
    assert (web["documents"], web["unscored"], web["truncated"]) == (18, 6, 3)
    assert web["bits_per_byte"] == pytest.approx(nll / web["bytes"] / math.log(2))


def test_policy_follows_model_and_window(files: list[Path], tmp_path: Path, model: Path):
    found = {score(files[:1], tmp_path / str(n), model, max_tokens=n).metrics["policy"] for n in (10, 20, 64)}
    found.add(score(files[:1], tmp_path / "more", model, max_tokens=4096, batch_tokens=77).metrics["policy"])
    assert len(found) == 3
    written = pq.read_schema(tmp_path / "more" / "scores" / "web" / "part-00000.parquet").metadata[POLICY_KEY]
    assert written.decode() in found


def test_weights_at_the_same_path_are_another_policy(files: list[Path], tmp_path: Path, model: Path):
    folder = tmp_path / "model"
    byte_tokenizer().save_pretrained(folder)
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        Qwen2ForCausalLM(Qwen2Config.from_pretrained(model)).save_pretrained(folder)
        results.append((score(files, tmp_path / str(seed), folder), rows(tmp_path / str(seed))[TEXTS[0]]))
    assert results[0][0].metrics["policy"] != results[1][0].metrics["policy"]
    assert results[0][1]["sum_nll_nats"] != results[1][1]["sum_nll_nats"]


def test_missing_prefix_token_names_the_way_out(files: list[Path], tmp_path: Path, model: Path):
    with pytest.raises(DataError, match="prefix: none"):
        score(files, tmp_path / "w", model, prefix="bos")


def test_pickled_weights_are_refused(files: list[Path], tmp_path: Path, model: Path):
    folder = tmp_path / "pickled"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_bytes((model / name).read_bytes())
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(DataError, match="pickled weights"):
        score(files, tmp_path / "w", folder)
