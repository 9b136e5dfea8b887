import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from filters.conditional import ConditionalScorer, Given
from filters.perplexity import PerplexitySettings
from tests.filters.test_perplexity import byte_tokenizer

CONTEXTS = ["Why?\n\nIt rains.\n\n", "土壤是什么？\n\n", "x"]
DOCUMENTS = ["Rain falls on stone.", "沙和黏土", "a"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("model")
    config = Qwen2Config(
        vocab_size=257, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=96, initializer_range=0.3, bos_token_id=256, eos_token_id=256,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def score(model: Path, contexts: list[str], documents: list[str], **settings) -> list[Given | None]:
    return ConditionalScorer(model, PerplexitySettings(**settings)).score(contexts, documents)


def brute_force(folder: Path, before: list[int], ids: list[int]) -> float:
    """-log p(ids | before) in float64, one token after another."""
    loaded = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).double().eval()
    total = 0.0
    for at, token in enumerate(ids):
        with torch.inference_mode():
            logits = loaded(torch.tensor([[*before, *ids[:at]]])).logits[0, -1]
        total -= float(torch.log_softmax(logits, -1)[token])
    return total


@pytest.mark.parametrize("prefix", ["eos", "none"])
def test_likelihoods_as_brute_force_finds_them(model: Path, prefix: str):
    tokenizer = byte_tokenizer()
    head = [256] if prefix == "eos" else []
    for context, document, found in zip(CONTEXTS, DOCUMENTS, score(model, CONTEXTS, DOCUMENTS, prefix=prefix),
                                        strict=True):  # fmt: skip
        before, ids = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (context, document))
        first = 0 if head else 1
        if len(ids) <= first:
            assert found is None
            continue
        assert found is not None
        assert found.tokens == len(ids) - first
        assert found.alone_nats == pytest.approx(brute_force(model, [*head, *ids[:first]], ids[first:]), rel=1e-5)
        assert found.given_nats == pytest.approx(
            brute_force(model, [*head, *before, *ids[:first]], ids[first:]), rel=1e-5
        )


def test_a_head_of_zeros_gains_nothing(model: Path, tmp_path: Path):
    loaded = AutoModelForCausalLM.from_pretrained(model, local_files_only=True)
    torch.nn.init.zeros_(loaded.lm_head.weight)
    loaded.save_pretrained(tmp_path / "flat")
    byte_tokenizer().save_pretrained(tmp_path / "flat")
    [found] = score(tmp_path / "flat", CONTEXTS[:1], DOCUMENTS[:1])
    assert found is not None
    assert found.alone_nats == pytest.approx(len(DOCUMENTS[0]) * math.log(257), rel=1e-6)
    assert found.given_nats == pytest.approx(found.alone_nats, rel=1e-6)


def test_a_document_is_cut_to_the_window_in_both(model: Path):
    [found] = score(model, ["0123456789"], ["b" * 400], max_tokens=50)
    assert found is not None
    assert (found.tokens, found.bytes) == (40, 40)


def test_a_context_leaves_the_document_half_of_the_window(model: Path):
    [found] = score(model, ["c" * 400], ["b" * 400], max_tokens=50)
    assert found is not None
    assert found.tokens == 25


def test_empty_documents_have_no_number(model: Path):
    assert score(model, ["why"], [""]) == [None]
    assert score(model, [], []) == []


def test_batches_change_nothing(model: Path):
    together = score(model, CONTEXTS, DOCUMENTS, batch_tokens=4096)
    alone = [score(model, [c], [d], batch_tokens=1)[0] for c, d in zip(CONTEXTS, DOCUMENTS, strict=True)]
    for one, other in zip(together, alone, strict=True):
        assert one is not None
        assert other is not None
        assert one.given_nats == pytest.approx(other.given_nats, rel=1e-5)
