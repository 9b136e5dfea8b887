"""Domains of backward chains, on real documents: a tiny model that fails, and a server that answers from the prompt."""

import gzip
import json
import re
import tarfile
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.recipe import load_recipe
from pipelines.store import Outcome
from synth.generate import synthesize
from synth.recipe import SynthSettings
from tests.synth.conftest import Server, completion

WORD = re.compile(r"(?<![\\\w])[a-z]{5,12}(?!\w)|[\u4e00-\u9fff]{2}")
CHINESE = re.compile(r"[\u4e00-\u9fff]")


def members(path: Path, ending: str) -> Iterator[str]:
    with tarfile.open(path) as archive:
        for member in archive:
            if member.isfile() and member.name.endswith(ending):
                yield archive.extractfile(member).read().decode("utf-8", "replace")  # type: ignore[union-attr]


def documents(recipe: str, shared: Path) -> list[str]:
    """Real documents of a domain."""
    if recipe == "cot_synthesis_CC":
        texts = (row["text"] for row in json.loads((shared / "web/c4_demo.json").read_text()))
    elif recipe == "cot_synthesis_code":
        texts = members(shared / "code/prefect-sample.tar.gz", ".py")
    elif recipe == "cot_synthesis_math":
        with gzip.open(shared / "math/gsm8k/train.jsonl.gz", "rt") as lines:
            texts = iter([f"{row['question']}\n{row['answer']}" for row in map(json.loads, islice(lines, 40))])
    elif recipe == "cot_synthesis_wiki":
        texts = iter((shared / "encyclopedia/wiki_demo.txt").read_text().splitlines())
    elif recipe == "cot_synthesis_arxiv":
        texts = (
            part for text in members(shared / "papers/stacks_latex.tar.gz", ".tex") for part in text.split("\\section")
        )
    else:
        rows = map(json.loads, (shared / "instruct/dolly_hhrlhf_train_small.jsonl").read_text().splitlines())
        texts = (f"{row['prompt']}\n\n{row['response']}" for row in rows)
    settings = load_recipe(recipe, SynthSettings)
    return list(islice((text for text in texts if settings.min_chars <= len(text) <= settings.max_chars), 6))


def chinese(shared: Path) -> list[str]:
    with gzip.open(shared / "encyclopedia/cmrc2018/cmrc2018_dev.json.gz", "rt") as file:
        articles = json.load(file)["data"]
    texts = (paragraph["context"] for article in articles for paragraph in article["paragraphs"])
    return list(islice((text for text in texts if len(text) >= 400), 6))


def from_the_prompt(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """What a diligent reader would answer, made of the prompt's own words."""
    content = body["messages"][0]["content"]
    asked = body.get("response_format", {}).get("json_schema", {}).get("name")
    if asked == "segments":
        text = content.split("\n\n", 1)[1].rsplit("\n\n", 1)[0]
        return completion(json.dumps({"segments": lines(text) if '"first"' in content else markers(text)}))
    if asked in ("abstracts", "steps"):
        parts = [part.strip() for part in re.split(r"^\[\d+\] ", content, flags=re.MULTILINE)[1:]]
        parts[-1] = parts[-1].rsplit("\n\n", 1)[0]
        said = [sentence(part, number) for number, part in enumerate(parts)]
        steps = [{"segment": number, "thought": thought} for number, thought in enumerate(said, 1)]
        return completion(json.dumps({asked: said if asked == "abstracts" else steps}))
    return completion(question(content.split("\n\n", 1)[1].rsplit("\n\n", 1)[0]))


def lines(text: str) -> list[dict[str, int]]:
    number = text.count("\n") + 1
    cuts = [number * part // 3 for part in range(4)]
    return [{"first": first + 1, "last": last} for first, last in pairwise(cuts)]


def markers(text: str) -> list[dict[str, str]]:
    cuts = [len(text) * part // 3 for part in range(4)]
    pieces = [text[start:end].strip() for start, end in pairwise(cuts)]
    return [{"start": piece[:60], "end": piece[-60:]} for piece in pieces]


def sentence(text: str, number: int) -> str:
    words = list(dict.fromkeys(WORD.findall(text)))[number : number + 9]
    if CHINESE.search(text):
        return f"由{'、'.join(words[:4])}可以推知{'与'.join(words[4:])}。"
    return f"Once {', '.join(words[:4])} are clear, it is natural to turn to {' and '.join(words[4:])}."


def question(chain: str) -> str:
    words = list(dict.fromkeys(WORD.findall(chain)))
    if CHINESE.search(chain):
        return f"{'、'.join(words[:5])}为何会影响{'和'.join(words[-5:])}？"
    return f"How does {words[0]} bear on {words[-1]}?"


def write(path: Path, texts: list[str], language: str) -> Path:
    table = {"id": [str(n) for n in range(len(texts))], "text": texts, "language": [language] * len(texts)}
    pq.write_table(pa.table(table), path)
    return path


def run(file: Path, work: Path, recipe: str, engine: dict[str, Any], model: Path | None = None) -> Outcome:
    settings = load_recipe(recipe, SynthSettings).model_dump()
    return synthesize([file], work, SynthSettings(**{**settings, "engine": engine}), model)


RECIPES = [f"cot_synthesis_{domain}" for domain in ("CC", "code", "math", "wiki", "arxiv", "OpenSource")]


@pytest.mark.parametrize("recipe", RECIPES)
def test_real_documents_become_samples(recipe: str, shared: Path, tmp_path: Path, server: Server):
    server.answer = from_the_prompt
    file = write(tmp_path / "in.parquet", texts := documents(recipe, shared), "eng")
    engine = {"name": "endpoint", "url": server.url, "model_name": "m", "retries": 0}
    outcome = run(file, tmp_path / "w", recipe, engine)
    assert outcome.counts.docs_in == outcome.counts.kept + sum(outcome.counts.rejected.values()) == 6
    assert outcome.counts.kept >= 4, outcome.counts.rejected
    for row in pq.read_table(tmp_path / "w" / "samples").to_pylist():
        known = dict(row["metadata"])
        document = texts[int(known["doc_id"])]
        assert row["domain"] == recipe
        assert row["text"].endswith(document)
        spans = json.loads(known["segments"])
        assert len(spans) == 3
        if recipe == "cot_synthesis_code":  # whole lines
            assert all(start == 0 or document[start - 1] == "\n" for start, _ in spans)


def test_chinese_documents_become_samples(shared: Path, tmp_path: Path, server: Server):
    server.answer = from_the_prompt
    file = write(tmp_path / "in.parquet", chinese(shared), "zho")
    engine = {"name": "endpoint", "url": server.url, "model_name": "m", "retries": 0}
    outcome = run(file, tmp_path / "w", "cot_synthesis_wiki", engine)
    assert all(CHINESE.search(call["messages"][0]["content"][:20]) for call in server.calls)
    assert outcome.counts.kept >= 4, outcome.counts.rejected


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_model_that_knows_nothing_is_rejected(recipe: str, shared: Path, tmp_path: Path, tiny_model: Path):
    file = write(tmp_path / "in.parquet", documents(recipe, shared)[:2], "eng")
    settings = load_recipe(recipe, SynthSettings, ["sampling.max_tokens=8"])
    outcome = synthesize([file], tmp_path / "w", settings, tiny_model)
    assert outcome.counts.kept == 0
    assert set(outcome.counts.rejected) <= {"truncated", "not_json", "prompt_too_long", "empty"}


def test_latex_survives_an_answer_that_forgets_to_escape_it(tmp_path: Path, server: Server):
    text = (
        r"Let \(f(x) = \frac{x}{2}\) for every real number. Its slope is the same everywhere, namely \(\frac{1}{2}\)."
        "\nSince the slope is positive, the function rises, and no value is taken twice. Hence it has an inverse."
    )
    answers = {
        "segments": r'{"segments": [{"start": "Let \(f(x) = \frac", "end": "namely \(\frac{1}{2}\)."}, '
                    '{"start": "Since the slope", "end": "has an inverse."}]}',
        "abstracts": r'{"abstracts": ["The slope of \(f\) is \(\frac{1}{2}\) everywhere.", '
                     '"A function that rises has an inverse."]}',
        "steps": r'{"steps": [{"segment": 1, "thought": "The slope is \(\frac{1}{2}\) at every point."}, '
                 '{"segment": 2, "thought": "It is positive, so values never repeat and an inverse exists."}]}',
    }  # fmt: skip
    server.answer = lambda body: completion(
        answers.get(body.get("response_format", {}).get("json_schema", {}).get("name"), "Why can halving be undone?")
    )
    engine = {"name": "endpoint", "url": server.url, "model_name": "m", "retries": 0}
    outcome = run(write(tmp_path / "in.parquet", [text], "eng"), tmp_path / "w", "cot_synthesis_math", engine)
    assert outcome.counts.kept == 1, outcome.counts.rejected
    [sample] = pq.read_table(tmp_path / "w" / "samples").to_pylist()
    assert r"1. The slope is \(\frac{1}{2}\) at every point." in sample["text"]
    assert outcome.metrics["json_read"] == {"prepared+strict": 3}
