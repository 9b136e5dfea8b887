import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import DataError
from trainer.eval_items import EvalItem
from trainer.evaluate import EvaluateSettings, evaluate, summarize_documents, summarize_items, wilson95
from trainer.likelihood import Scorer, Span, continuation_span, document_spans, split_pair

TEXTS = (
    "The river carries sand and clay down to the plain every spring.",
    "天气很好，我们去公园。 Ünïcödé – “quotes”, and\n\n\ttabs.",
    "for place in range(30):\n    print(place, place ** 2)\n" * 4,
    "x",
)
ALL = EvaluateSettings(tokens_per_domain=None, max_length=16, batch_tokens=64)


@pytest.fixture(scope="session")
def scorer(tiny_model: Path) -> Scorer:
    return Scorer(tiny_model, max_length=16, batch_tokens=64)


def documents(path: Path, texts: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"id": [f"d{n}" for n in range(len(texts))], "text": texts}), path)
    return path


def items_file(path: Path, items: list[EvalItem]) -> Path:
    path.write_text("".join(item.to_json() + "\n" for item in items), encoding="utf-8")
    return path


def sample_items(count: int, choices: int = 4) -> list[EvalItem]:
    """Questions without sense, whose answers a random model can only guess."""
    draw = np.random.default_rng(5)
    words = [f"{a}{b}" for a in "kmrst" for b in ("iver", "and", "ain", "ark")]
    items = []
    for n in range(count):
        answers = tuple(f" {draw.choice(words)} {draw.choice(words)}{k}" for k in range(choices))
        query = f"Question {n}: {draw.choice(words)}?\nAnswer:"
        items.append(EvalItem(f"q{n}", "guess", query, answers, int(draw.integers(choices))))
    return items


def test_a_short_document_is_one_window_led_by_the_prefix():
    assert document_spans([5, 6, 7], prefix=0, max_length=4) == [Span((0, 5, 6, 7), 3)]


def test_windows_are_disjoint_and_the_last_one_keeps_context():
    assert document_spans([1, 2, 3, 4, 5, 6, 7], prefix=0, max_length=3) == [
        Span((0, 1, 2, 3), 3),
        Span((3, 4, 5, 6), 3),
        Span((4, 5, 6, 7), 1),
    ]


@given(st.lists(st.integers(1, 99), max_size=40), st.integers(2, 9))
def test_every_token_is_scored_once(tokens: list[int], max_length: int):
    spans = document_spans(tokens, 0, max_length)
    assert [t for span in spans for t in span.tokens[len(span.tokens) - span.scored :]] == tokens
    assert all(span.scored < len(span.tokens) <= max_length + 1 for span in spans)


def test_space_at_the_end_of_the_context_belongs_to_the_continuation():
    assert split_pair("a b \n", "c") == ("a b", " \nc")


def by_letter(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def test_the_context_gives_way_on_the_left():
    assert continuation_span(by_letter, "abcd", "ef", 4) == Span(tuple(by_letter("bcdef")), 2)
    assert continuation_span(by_letter, "abcd", "efghi", 4) is None


def merging(text: str) -> list[int]:
    """One token for `ab`, else one per letter: a continuation that melts into the context has no token of its own."""
    return by_letter(text.replace("ab", "!"))


def test_a_continuation_without_a_token_is_not_scored():
    assert continuation_span(merging, "xa", "b", 9) is None
    assert continuation_span(merging, "xa", "c", 9) == Span(tuple(by_letter("xac")), 1)


def slow_nll(scorer: Scorer, span: Span) -> float:
    """One forward pass per token, in float64."""
    import torch

    network = scorer.network.double()
    total = 0.0
    for end in range(len(span.tokens) - span.scored, len(span.tokens)):
        with torch.no_grad():
            logits = network(input_ids=torch.tensor([span.tokens[:end]])).logits[0, -1]
        total -= logits.log_softmax(-1)[span.tokens[end]].item()
    scorer.network.float()
    return total


def test_batches_equal_a_loop_over_tokens(scorer: Scorer):
    spans = [span for text in TEXTS[:2] for span in scorer.spans_of(scorer.encode(text))]
    assert scorer.nll_nats(spans) == pytest.approx([slow_nll(scorer, span) for span in spans], rel=1e-5)


def test_a_model_that_knows_nothing_gives_the_size_of_its_vocabulary(tiny_model: Path):
    import torch

    blind = Scorer(tiny_model, batch_tokens=32)
    with torch.no_grad():
        blind.network.get_input_embeddings().weight.zero_()
    tokens = blind.encode(TEXTS[0])
    assert sum(blind.nll_nats(blind.spans_of(tokens))) == pytest.approx(len(tokens) * math.log(304), rel=1e-6)


def test_bits_per_byte_by_hand():
    table = pa.table({"nll_nats": [math.log(2) * 6, math.log(2) * 2], "tokens": [3, 1], "bytes": [8, 8]})
    found = summarize_documents(table)
    assert (found["bits_per_byte"], found["perplexity"]) == (pytest.approx(0.5), pytest.approx(4.0))
    # residuals are 6 - 4 and 2 - 4 bits: se = sqrt(2/1 * 8) / 16 = 1/4
    assert found["bits_per_byte_hi95"] == pytest.approx(0.5 + 1.96 / 4, abs=1e-4)


def test_accuracies_by_hand():
    rows = [
        {"gold": 0, "reason": None, "loglikelihoods": [-2.0, -3.0], "tokens": [1, 1]},  # right but per character
        {"gold": 1, "reason": None, "loglikelihoods": [-2.0, -3.0], "tokens": [1, 1]},  # right per character
        {"gold": 1, "reason": None, "loglikelihoods": [-5.0, -3.0], "tokens": [5, 2]},  # right but per token
        {"gold": 1, "reason": "why", "loglikelihoods": [None, None], "tokens": [1, None]},
    ]
    found = summarize_items(pa.Table.from_pylist([row | {"chars": [1, 6], "bytes": [2, 7]} for row in rows]))
    assert (found["items"], found["unscored"], found["chance"]) == (3, {"why": 1}, 0.5)
    assert (found["acc"], found["acc_norm"]) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert (found["acc_ppl"], found["acc_ppl_verdict"]) == (pytest.approx(1 / 3), "not told from chance")
    assert found["gold_bits_per_byte"] == pytest.approx(8 / math.log(2) / 16)


def test_wilson_interval_as_published():
    """Newcombe 1998, table I, method 3: 81 of 263, 15 of 148, 0 of 20, 29 of 29."""
    for right, n, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (29, 29, 0.8830, 1),
    ]:
        assert wilson95(right, n) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def test_a_random_model_is_not_told_from_chance(tiny_model: Path, tmp_path: Path):
    found = evaluate(tiny_model, tmp_path / "out", ALL, {}, [items_file(tmp_path / "g.jsonl", sample_items(200))])
    guess = found.metrics["benchmarks"]["guess"]
    assert (guess["items"], guess["chance"], guess["acc_verdict"]) == (200, 0.25, "not told from chance")
    assert guess["acc_lo95"] <= 0.25 <= guess["acc_hi95"]


def test_results_do_not_depend_on_batches_and_are_the_same_twice(tiny_model: Path, tmp_path: Path):
    files = {"a": [documents(tmp_path / "a.parquet", list(TEXTS))], "b": [documents(tmp_path / "b.parquet", [""])]}
    items = [items_file(tmp_path / "i.jsonl", sample_items(9))]
    first = evaluate(tiny_model, tmp_path / "one", ALL, files, items)
    evaluate(tiny_model, tmp_path / "two", ALL, files, items)
    for name in ("results.json", "documents.parquet", "items.parquet"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert json.loads((tmp_path / "one" / "results.json").read_text()) == first.metrics
    assert first.metrics["domains"]["a"]["bytes"] == sum(len(text.encode()) for text in TEXTS)
    assert first.metrics["domains"]["b"]["bits_per_byte"] is None
    wide = evaluate(tiny_model, tmp_path / "three", ALL.model_copy(update={"batch_tokens": 9999}), files, items)
    assert wide.metrics["domains"]["a"]["nll_nats"] == pytest.approx(
        first.metrics["domains"]["a"]["nll_nats"], rel=1e-6
    )


def test_a_killed_evaluation_goes_on(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    files = {"a": [documents(tmp_path / "a.parquet", list(TEXTS))]}
    items = [items_file(tmp_path / "i.jsonl", sample_items(5))]
    evaluate(tiny_model, tmp_path / "whole", ALL, files, items)
    real: Callable = Scorer.nll_nats
    calls = []

    def die_at_the_items(self: Scorer, *args: object) -> list[float]:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, *args)

    monkeypatch.setattr(Scorer, "nll_nats", die_at_the_items)
    with pytest.raises(KeyboardInterrupt):
        evaluate(tiny_model, tmp_path / "cut", ALL, files, items)
    evaluate(tiny_model, tmp_path / "cut", ALL, files, items)
    assert len(calls) == 3  # the documents were scored once, the items twice
    assert (tmp_path / "cut" / "results.json").read_bytes() == (tmp_path / "whole" / "results.json").read_bytes()


def test_limits_take_part_of_the_input(tiny_model: Path, tmp_path: Path):
    few = EvaluateSettings(tokens_per_domain=1, chars_per_document=7, items_per_benchmark=3, max_length=16)
    files = {"a": [documents(tmp_path / "a.parquet", [TEXTS[0]] * 5)]}
    found = evaluate(tiny_model, tmp_path / "out", few, files, [items_file(tmp_path / "i.jsonl", sample_items(9))])
    assert (found.metrics["domains"]["a"]["documents"], found.metrics["domains"]["a"]["bytes"]) == (1, 7)
    assert found.metrics["benchmarks"]["guess"]["items"] == 3


def test_a_folder_without_a_model_is_an_error(tmp_path: Path):
    with pytest.raises(DataError, match="not a model folder"):
        evaluate(tmp_path / "none", tmp_path / "out", ALL, {"a": []})
    with pytest.raises(DataError, match="nothing to evaluate"):
        evaluate(tmp_path, tmp_path / "out", ALL, {})
