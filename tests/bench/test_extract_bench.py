"""Extraction against its anchors in one run: F1 on four ground truths, and pages per second of processor time.

Metrics. Articles: precision and recall of 4-grams of words, means over pages, F1 of the means (that is what
scrapinghub/article-extraction-benchmark reports). trafilatura: marked segments found and unwanted ones found, counted
over all pages. Recipes: bag of words of title, ingredients and steps, F1 per page, mean. Chinese: bag of characters,
F1 per page, mean.
"""

import functools
import gzip
import hashlib
import json
import os
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import trafilatura
from resiliparse.extract.html2text import extract_plain_text

from pipelines.charset import decode
from pipelines.extract import ExtractSettings, extract
from pipelines.extract_guard import guard_of
from pipelines.extract_page import extract_page
from pipelines.warc import read_pages

pytestmark = pytest.mark.bench
WORD = re.compile(r"\w+")
Counts = tuple[float, float, float]  # right, wrong, missed


def trafilatura_with(**options: bool) -> Callable[[str], str]:
    main = functools.partial(trafilatura.extract, include_comments=False, **options)
    return lambda html: main(html) or ""


ENGINES: dict[str, Callable[[str], str]] = {
    "loam": lambda html: extract_page(html).text,
    "resiliparse": lambda html: extract_plain_text(html, main_content=True, alt_texts=False, comments=False),
    "trafilatura": trafilatura_with(),
    "trafilatura fast": trafilatura_with(fast=True),
    "trafilatura precision": trafilatura_with(favor_precision=True),
    "trafilatura recall": trafilatura_with(favor_recall=True),
}


def overlap(true: Counter, found: Counter) -> Counts:
    right = (true & found).total()
    return right, found.total() - right, true.total() - right


def grams(text: str, n: int = 4) -> Counter:
    words = WORD.findall(text)
    return Counter(tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1)) if words)


def of_articles(truth: str, text: str) -> Counts:
    counts = overlap(grams(truth), grams(text))
    total = sum(counts) or 1
    return counts[0] / total, counts[1] / total, counts[2] / total


def of_segments(truth: dict, text: str) -> Counts:
    flat = " ".join(text.split())
    right, wrong = (sum(" ".join(s.split()) in flat for s in truth[side]) for side in ("with", "without"))
    return right, wrong, len(truth["with"]) - right


def of_recipes(truth: dict, text: str) -> Counts:
    steps = truth.get("instructions_list") or [truth.get("instructions") or ""]
    whole = " ".join([truth.get("title") or "", *(truth.get("ingredients") or []), *steps])
    return overlap(Counter(WORD.findall(whole.lower())), Counter(WORD.findall(text.lower())))


def of_chinese(truth: str, text: str) -> Counts:
    return overlap(Counter("".join(truth.split())), Counter("".join(text.split())))


def f1(counts: Counts) -> float:
    right, wrong, missed = counts
    return 2 * right / (2 * right + wrong + missed) if right + wrong + missed else 1.0


def f1_of_means(pages: list[Counts]) -> float:
    precision = statistics.mean(r / (r + w) for r, w, _ in pages if r + w)
    recall = statistics.mean(r / (r + m) for r, _, m in pages if r + m)
    return 2 * precision * recall / (precision + recall)


def f1_of_sums(pages: list[Counts]) -> float:
    right, wrong, missed = map(sum, zip(*pages, strict=True))
    return f1((right, wrong, missed))


def mean_f1(pages: list[Counts]) -> float:
    return statistics.mean(map(f1, pages))


SETS: dict[str, tuple[Callable, Callable[[list[Counts]], float]]] = {
    "aeb": (of_articles, f1_of_means),
    "trafilatura": (of_segments, f1_of_sums),
    "recipes": (of_recipes, mean_f1),
    "zh_cwced": (of_chinese, mean_f1),
}


def truths(web: Path) -> Callable[[dict], object]:
    articles = json.loads((web / "article_extraction_benchmark/ground-truth.json").read_text())
    segments = json.loads((web / "trafilatura_eval/evaldata.json").read_text())
    lines = (web / "recipe_pages/ground_truth.jsonl").read_text().splitlines()
    recipes = {recipe["_file"]: recipe for recipe in map(json.loads, lines)}

    def truth(entry: dict) -> object:
        key = entry["gt_key"]
        if entry["set"] == "aeb":
            return articles[key]["articleBody"]
        if entry["set"] == "zh_cwced":
            return (web / f"zh_cwced/cleaned/{key}.txt").read_text()
        return {"trafilatura": segments, "recipes": recipes}[entry["set"]].get(key)

    return truth


@pytest.fixture(scope="module")
def pages(shared: Path) -> list[tuple[str, str, object]]:
    """Set, HTML and ground truth (None where there is none) of the real pages."""
    web = shared / "web"
    entries = map(json.loads, (web / "warc/realpages.manifest.jsonl").read_text().splitlines())
    by_digest, truth = {entry["sha1"]: entry for entry in entries}, truths(web)
    found = []
    for file in sorted((web / "warc").glob("realpages-*.warc.gz")):
        for page in read_pages(file, 20_000_000):
            entry = by_digest.get(hashlib.sha1(page.payload).hexdigest())
            decoded = decode(page.payload)
            if entry and decoded:
                found.append((entry["set"], decoded[0], truth(entry) if entry["set"] in SETS else None))
    return found


def scores(pages: Iterable[tuple[str, str, object]], engine: Callable[[str], str]) -> dict[str, float]:
    counts: dict[str, list[Counts]] = {name: [] for name in SETS}
    for name, html, truth in pages:
        if truth is not None:
            counts[name].append(SETS[name][0](truth, engine(html)))
    return {name: SETS[name][1](found) for name, found in counts.items()}


def test_f1_is_at_least_that_of_the_best_setting(pages):
    table = {name: scores(pages, engine) for name, engine in ENGINES.items()}
    for name, row in table.items():
        print(f"{name:22}", *(f"{column} {value:.4f}" for column, value in row.items()))
    for column in SETS:
        best = max(row[column] for name, row in table.items() if name.startswith("trafilatura"))
        assert table["loam"][column] >= best


def cpu_s() -> float:
    """CPU seconds of this process and of its children that ended."""
    return sum(os.times()[:4])


def test_pages_per_second_of_the_page_function(pages):
    """On all pages: a sample of 200 scatters by a fifth, since a few pages that go the careful way weigh much."""
    names = ("loam", "trafilatura", "trafilatura fast", "resiliparse")
    taken = dict.fromkeys(names, 0.0)
    for name in names:
        ENGINES[name](pages[0][1])
    extract_page("<p>too short, so that the careful path is imported</p>")
    for _, html, _ in pages:
        for name in names:
            start = time.process_time()
            ENGINES[name](html)
            taken[name] += time.process_time() - start
    for name, seconds in taken.items():
        print(f"{name:22} {len(pages) / seconds:.0f} pages/s, {taken['trafilatura'] / seconds:.2f} x trafilatura")
    assert taken["trafilatura"] / taken["loam"] > 3


def test_pages_per_second_of_the_verb(shared, tmp_path):
    """`loam extract` as it is, to Parquet, against trafilatura in this process on the same WARC, file by file.

    Both read and decode with our readers. The verb also starts its child, talks to it and writes.
    """
    settings = ExtractSettings()
    files = sorted((shared / "web/warc").glob("realpages-*.warc.gz"))
    anchors = {"trafilatura": trafilatura_with(), "trafilatura fast": trafilatura_with(fast=True)}
    taken = dict.fromkeys(("loam extract", *anchors), 0.0)
    count = 0
    guard_of(settings.bounds()).close()  # only the time of a child that ended is known
    for file in files:
        start = cpu_s()
        extract([file], tmp_path / file.name, settings)
        if file is files[-1]:
            guard_of(settings.bounds()).close()
        taken["loam extract"] += cpu_s() - start
        for name, anchor in anchors.items():
            start = cpu_s()
            for page in read_pages(file, settings.max_page_bytes):
                decoded = decode(page.payload, page.charset)
                anchor(decoded[0] if decoded else "")
                count += name == "trafilatura"
            taken[name] += cpu_s() - start
    for name, seconds in taken.items():
        print(f"{name:22} {count / seconds:.0f} pages/s, {seconds / taken['loam extract']:.2f} x our time")
    assert taken["trafilatura"] / taken["loam extract"] > 3


def test_gzip_of_the_article_set_is_the_same_pages(shared):
    """The folder of the benchmark and the WARC files hold the same pages, so that either may be measured."""
    folder = shared / "web/article_extraction_benchmark/html"
    digests = {hashlib.sha1(gzip.decompress(file.read_bytes())).hexdigest() for file in folder.iterdir()}
    lines = (shared / "web/warc/realpages.manifest.jsonl").read_text().splitlines()
    assert digests == {entry["sha1"] for entry in map(json.loads, lines) if entry["set"] == "aeb"}
