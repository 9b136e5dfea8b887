"""The five rephrasings, asked of a server on this machine."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import DataError
from pipelines.recipe import load_recipe
from pipelines.store import Outcome
from synth.generate import synthesize
from synth.kind import Inputs
from synth.recipe import SynthSettings, prompts_of, recipe_hash
from synth.rephrase import Rephrase, Rephrasing, read_buckets
from synth.rephrase_settings import TASKS
from synth.verification import REASONS, Limits, Span
from tests.synth.conftest import CAVES, Server, completion, write_documents

REWRITTEN = (
    "Rain takes up carbon dioxide from the air and turns slightly acidic. In the course of 10,000 years this acid "
    "eats away limestone along its cracks, until passages open and streams flow underground. Once the water table "
    "sinks, air fills the dry passages, and dripping water leaves calcite: stalactites growing 0.13 millimetres a year."
)
KNOWN = (
    "Rain takes up carbon dioxide and becomes acidic.",
    "Acid dissolves limestone in 10,000 years.",
    "Streams run underground where cracks have widened into passages.",
    "Air fills the passages when the water table falls.",
    "Stalactites grow about 0.13 millimetres a year from calcite.",
)
PAIRS = (
    "- Question: Why is rain slightly acidic?\n- Answer: It takes up carbon dioxide.\n"
    "- Question: What do stalactites consist of?\n- Answer: Of calcite."
)
ANSWERS = {
    "diverse_qa": f"Questions and answers:\n{PAIRS}",
    "distill": f"**Condensed version:**\n\n{REWRITTEN}",
    "extract_knowledge": f"# Caves\n\n{REWRITTEN}",
    "knowledge_list": "\n".join(f"- {line}" for line in KNOWN),
    "wrap": f'In other words:\n"{REWRITTEN}"',
}
MADE = {
    "diverse_qa": CAVES,
    "distill": REWRITTEN,
    "extract_knowledge": f"Caves\n\n{REWRITTEN}",
    "knowledge_list": "\n".join(KNOWN),
    "wrap": REWRITTEN,
}


def settings_for(recipe: str, server: Server, **rephrase: Any) -> SynthSettings:
    engine = {"name": "endpoint", "url": server.url, "model_name": "m", "retries": 0}
    settings = load_recipe(recipe, SynthSettings).model_dump()
    return SynthSettings(**{**settings, "engine": engine, "rephrase": {**settings["rephrase"], **rephrase}})


def run(file: Path, work: Path, recipe: str, server: Server, **rephrase: Any) -> tuple[Outcome, list[dict[str, Any]]]:
    outcome = synthesize([file], work, settings_for(recipe, server, **rephrase))
    return outcome, pq.read_table(work / "samples" / "part-00000.parquet").to_pylist()


@pytest.mark.parametrize("recipe", TASKS)
def test_a_document_is_rewritten(recipe: str, caves: Path, tmp_path: Path, server: Server):
    server.answer = lambda body: completion(ANSWERS[recipe])
    outcome, [sample] = run(caves, tmp_path / "w", recipe, server)
    assert outcome.counts.docs_in == outcome.counts.kept == 1
    assert sample["text"].startswith(MADE[recipe])
    assert sample["domain"] == f"synth_{recipe}"
    known = dict(sample["metadata"])
    assert json.loads(known["segments"]) == [[0, len(CAVES)]]
    assert known["tokens_by"] == "estimate"
    if recipe == "diverse_qa":
        assert sample["text"].count("Question: ") == int(known["pairs"]) >= 1


def test_what_stood_there_before_is_not_the_models_writing(server: Server):
    kinds = {name: Rephrase(settings_for(name, server), Inputs()) for name in ("diverse_qa", "wrap")}
    read = {name: kind.settle([("", kind.read(ANSWERS[name], draft(), Limits()))]) for name, kind in kinds.items()}
    [(_, asked)], [(_, wrapped)] = read["diverse_qa"], read["wrap"]
    written = kinds["diverse_qa"].written(asked)
    assert written.startswith("Question: ")
    assert asked.text == f"{CAVES}\n\n{written}"
    assert kinds["wrap"].written(wrapped) == wrapped.text


def test_segments_are_joined_and_lost_ones_named(tmp_path: Path, server: Server):
    file = write_documents(tmp_path / "in.parquet", {"long": "\n".join([CAVES, CAVES.replace("10,000", "20,000")])})
    server.answer = lambda body: completion(
        "I have nothing to say." if "20,000" in body["messages"][0]["content"] else ANSWERS["wrap"]
    )
    outcome, [sample] = run(file, tmp_path / "w", "wrap", server, max_input_tokens=120)
    assert len(server.calls) > 2
    assert outcome.counts.docs_in == outcome.counts.kept == 1
    segments, lost = (json.loads(dict(sample["metadata"])[key]) for key in ("segments", "lost_segments"))
    assert lost["missing_prefix"] == 1
    assert len(segments) + sum(lost.values()) == len(server.calls)


def test_a_document_without_a_sound_segment_is_rejected_once(tmp_path: Path, server: Server):
    file = write_documents(tmp_path / "in.parquet", {"long": CAVES * 4, "tiny": "A few words. " * 2})
    server.answer = lambda body: completion("In other words: no.", "length")
    outcome, samples = run(file, tmp_path / "w", "wrap", server, min_document_tokens=30)
    assert outcome.counts.rejected == {"truncated": 1, "document_too_short": 1}
    assert samples == []
    rejects = {row["doc_id"]: row for row in pq.read_table(tmp_path / "w" / "rejects").to_pylist()}
    assert {name: (row["stage"], row["excerpt"]) for name, row in rejects.items()} == {
        "long": ("wrap", "In other words: no."), "tiny": ("cut", ""),
    }  # fmt: skip


def test_documents_go_where_their_quality_sends_them(tmp_path: Path, server: Server):
    high, low = (Rephrase(settings_for(recipe, server, route=True), Inputs()) for recipe in ("distill", "wrap"))
    for metadata, for_high, for_low in [
        ([("bucket", "12")], None, "other_bucket"),
        ([("bucket", "11")], "other_bucket", None),
        ([("bucket", "")], "no_bucket", "no_bucket"),
        (None, "no_bucket", "no_bucket"),
    ]:
        row = {"id": "a", "text": CAVES, "language": "eng", "metadata": metadata}
        for task, expected in ((high, for_high), (low, for_low)):
            found = task.units(row)
            assert (found if isinstance(found, str) else None) == expected


def test_buckets_come_from_a_table(tmp_path: Path, server: Server):
    pq.write_table(pa.table({"id": ["a", "b", "c"], "bucket": [12, 3, None]}), tmp_path / "buckets.parquet")
    settings = settings_for("distill", server, route=True, buckets=tmp_path / "buckets.parquet")
    task = Rephrase(settings, Inputs())
    found = {name: task.units({"id": name, "text": CAVES, "language": "eng", "metadata": None}) for name in "abcd"}
    assert {name: one for name, one in found.items() if isinstance(one, str)} == {
        "b": "other_bucket", "c": "no_bucket", "d": "no_bucket",
    }  # fmt: skip
    assert recipe_hash(settings) == recipe_hash(settings_for("distill", server))
    with pytest.raises(DataError, match="loam quality ensemble"):
        read_buckets(tmp_path / "absent.parquet")


def draft(source: str = CAVES, language: str = "en") -> Rephrasing:
    return Rephrasing("k", source, Span(0, len(source)), language, 80)


@pytest.mark.parametrize(
    ("recipe", "answer", "reason"),
    [
        ("wrap", REWRITTEN, "missing_prefix"),
        ("wrap", "In other words: " + REWRITTEN + " It took 777 days.", "number_not_in_document"),
        ("wrap", "In other words: 雨水溶解石灰岩，形成洞穴。", "language_mismatch"),
        ("wrap", "In other words: " + "Rain makes caves in limestone. " * 8, "repetition"),
        ("diverse_qa", "Questions and answers:\nHere they are.\nQuestion: Why?\nAnswer: So.", "pairs_malformed"),
        ("diverse_qa", "Questions and answers:\nQuestion: What does the text say?\nAnswer: Rain.", "meta_phrase"),
        ("knowledge_list", "- \n", "empty"),
    ],
)  # fmt: skip
def test_unsound_answers_are_named(recipe: str, answer: str, reason: str, server: Server):
    assert Rephrase(settings_for(recipe, server), Inputs()).read(answer, draft(), Limits()) == reason


def test_unsound_questions_are_left_out_of_sound_ones(server: Server):
    answer = ANSWERS["diverse_qa"] + "\nQuestion: What does the text say?\nAnswer: Rain."
    found = Rephrase(settings_for("diverse_qa", server), Inputs()).read(answer, draft(), Limits())
    assert isinstance(found, Rephrasing)
    assert "text say" not in found.text


def test_answers_near_the_ceiling_are_cut_off(tiny_model: Path, server: Server):
    """The tokenizer of the tiny model counts bytes."""
    settings = settings_for("wrap", server)
    task = Rephrase(settings, Inputs(model=tiny_model))
    most = prompts_of(settings).of("wrap").max_tokens
    assert task.read("In other words: " + "x" * most, draft(), Limits()) == "truncated"
    assert isinstance(task.read("In other words: " + REWRITTEN, draft(), Limits()), Rephrasing)


def test_chinese_is_asked_and_read_in_chinese(tmp_path: Path, server: Server):
    text = "雨水吸收空气中的二氧化碳后略带酸性。酸性的水沿着裂隙慢慢溶解石灰岩，裂隙逐渐扩大成为通道，地下河由此形成。"
    file = tmp_path / "in.parquet"
    pq.write_table(pa.table({"id": ["洞"], "text": [text]}), file)
    server.answer = lambda body: completion(
        "改写如下:“空气里的二氧化碳溶于雨水，使雨水变酸。这种水从裂缝渗入石灰岩，把它一点点溶掉，裂缝越来越宽，最终成了地下河的河道。”"
    )
    outcome, [sample] = run(file, tmp_path / "w", "wrap", server)
    assert "请用" in server.calls[0]["messages"][0]["content"]
    assert sample["text"].startswith("空气里的二氧化碳")
    assert outcome.counts.kept == 1


@settings(max_examples=60)
@given(st.text(max_size=300), st.sampled_from(sorted(TASKS)))
def test_whatever_comes_back_is_a_text_or_a_reason(answer: str, recipe: str):
    task = Rephrase(SynthSettings(recipe=recipe), Inputs())
    for text in (answer, task.prompts.of(recipe).prefix + answer):
        found = task.read(text, draft(), Limits())
        assert found in REASONS if isinstance(found, str) else found.text


@settings(max_examples=60)
@given(st.text(max_size=300), st.sampled_from(sorted(TASKS)))
def test_whatever_a_document_is_it_is_cut_or_left_out(text: str, recipe: str):
    row = {"id": "a", "text": text, "language": None, "metadata": None}
    found = Rephrase(SynthSettings(recipe=recipe), Inputs()).units(row)
    assert found in REASONS if isinstance(found, str) else all(one.source in text for _, one in found)
