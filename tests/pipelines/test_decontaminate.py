import gzip
import json
import random
import string
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.decontaminate import DecontaminateSettings, decontaminate
from pipelines.document import conform
from pipelines.errors import DataError
from pipelines.shingles import words_of

ITEM = "Which of these mixtures of sand, silt and clay holds the most water after a long and heavy rain?"
CHINESE = "下列哪一种土壤在暴雨之后能够保持最多的水分？"
FILLER = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "while",
    "seven",
    "wizards",
    "vex",
    "a",
    "nymph",
]


def documents(tmp_path: Path, texts: dict[str, str]) -> Path:
    path = tmp_path / "kept" / "part-00000.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = pa.table({"id": list(texts), "text": pa.array(texts.values(), pa.string())})
    pq.write_table(conform(rows), path)
    return path


def benchmark(tmp_path: Path, name: str, *items: dict) -> Path:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "\n".join(json.dumps(item, ensure_ascii=False) for item in items).encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


def run(tmp_path: Path, texts: dict[str, str], *items: dict, **settings):
    found = decontaminate(
        [documents(tmp_path, texts)],
        [benchmark(tmp_path, "exam.jsonl", *items)],
        tmp_path / "out",
        DecontaminateSettings(**settings),
    )
    return found, pq.read_table(tmp_path / "out" / "hits.parquet").to_pylist()


def test_an_item_inside_a_document(tmp_path):
    text = f"Ünrelated… words. {ITEM.upper()} And more."
    outcome, hits = run(tmp_path, {"a": text, "b": "nothing of the kind"}, {"question": ITEM, "id": "q7"})
    assert outcome.counts.dropped == {"contaminated.exam": 1}
    assert [(hit["id"], hit["benchmark"], hit["item"], hit["ngrams"]) for hit in hits] == [("a", "exam", "q7", 7)]
    assert text[hits[0]["start"] : hits[0]["end"]] == ITEM.upper().rstrip("?")
    assert outcome.metrics["benchmarks"] == {
        "exam": {"items": 1, "items_too_short": 0, "items_hit": 1, "docs": 1, "docs_dropped": 1}
    }


def test_chinese_characters_are_words_and_spans_count_characters(tmp_path):
    text = f"甲乙丙丁：{CHINESE}戊己"
    outcome, hits = run(tmp_path, {"a": text, "b": CHINESE[:10]}, {"query": CHINESE})
    assert outcome.counts.kept == 1
    assert text[hits[0]["start"] : hits[0]["end"]] == CHINESE.rstrip("？")


@pytest.mark.parametrize(("words", "found"), [(12, False), (13, True)])
def test_thirteen_words_make_a_hit(tmp_path, words, found):
    part = " ".join(ITEM.split()[2 : 2 + words])
    outcome, _ = run(tmp_path, {"a": f"so {part} it was"}, {"question": ITEM})
    assert (outcome.counts.kept == 0) == found


@pytest.mark.parametrize(("item", "found"), [("one two three four five", False), ("one two three four five six", True)])
def test_short_items_are_matched_whole(tmp_path, item, found):
    outcome, _ = run(tmp_path, {"a": f"zero {item} seven", "b": "two three four five six"}, {"question": item})
    assert outcome.counts.kept == (1 if found else 2)
    assert outcome.metrics["benchmarks"]["exam"]["items_too_short"] == (0 if found else 1)


@pytest.mark.parametrize("query", ["Question: {}\nAnswer:", "Q: {}\nA:", "问题：{}\n答案：", "{}"])
def test_labels_around_a_question_are_not_part_of_it(tmp_path, query):
    question = "Which soil holds the most water in spring?"
    outcome, hits = run(tmp_path, {"a": f"We asked them: {question} Nobody knew."}, {"query": query.format(question)})
    assert outcome.counts.kept == 0
    assert hits[0]["ngrams"] == 1


def test_numbers_count_unless_folded(tmp_path):
    table = {"a": " ".join(str(n) for n in range(100, 130))}
    item = {"question": " ".join(str(n) for n in range(900, 930))}
    assert run(tmp_path / "kept", table, item)[0].counts.kept == 1
    assert run(tmp_path / "folded", table, item, fold_numbers=True)[0].counts.kept == 0


def test_marking_keeps_the_document(tmp_path):
    outcome, hits = run(tmp_path, {"a": ITEM, "b": "clean"}, {"question": ITEM}, action="mark")
    assert (outcome.counts.kept, len(hits)) == (2, 1)
    marks = pq.read_table(tmp_path / "out" / "attributes" / "part-00000.parquet").to_pylist()
    assert marks == [{"id": "a", "contaminated_by": "exam"}, {"id": "b", "contaminated_by": None}]


def test_fewer_hits_than_asked_are_reported_but_keep_the_document(tmp_path):
    outcome, hits = run(tmp_path, {"a": ITEM}, {"question": ITEM}, min_hits=8)
    assert (outcome.counts.kept, hits[0]["ngrams"]) == (1, 7)


def test_the_benchmark_with_more_hits_names_the_reason(tmp_path):
    names = ("b.jsonl", "sub/a.parquet.jsonl.gz")
    one = benchmark(tmp_path, names[0], {"choices": ["too short", ITEM]}, {"choices": [ITEM]})
    two = benchmark(tmp_path, names[1], {"text": " ".join(ITEM.split()[:14])})
    file = documents(tmp_path, {"x": ITEM})
    outcome = decontaminate([file], [two, one], tmp_path / "out", DecontaminateSettings())
    assert outcome.counts.dropped == {"contaminated.b": 1}
    found = outcome.metrics["benchmarks"]
    assert {name: (row["items"], row["items_hit"]) for name, row in found.items()} == {"a": (1, 1), "b": (2, 2)}


def test_fields(tmp_path):
    item = {"puzzle": ITEM, "licence": {"of": "all rights reserved by the people who wrote these questions here"}}
    with pytest.raises(DataError, match="found: puzzle, licence"):
        run(tmp_path / "default", {"a": ITEM}, item)
    assert run(tmp_path / "named", {"a": ITEM}, item, fields=("puzzle",))[0].counts.kept == 0
    assert run(tmp_path / "all", {"a": item["licence"]["of"]}, item, fields=("*",))[0].counts.kept == 0


def test_parquet_items_and_equal_names(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        pq.write_table(pa.table({"question": [ITEM], "choices": [["a", "b"]]}), tmp_path / folder / "test.parquet")
    files = [tmp_path / "one" / "test.parquet", tmp_path / "two" / "test.parquet"]
    outcome = decontaminate([documents(tmp_path, {"a": ITEM})], files, tmp_path / "out", DecontaminateSettings())
    assert sorted(outcome.metrics["benchmarks"]) == ["one", "two"]


@pytest.mark.parametrize("content", [b"{broken", b"[1, 2]", b"\xff\xfe", b""])
def test_bad_items_are_one_error(tmp_path, content):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.jsonl"):
        decontaminate([documents(tmp_path, {"a": ITEM})], [path], tmp_path / "out", DecontaminateSettings())


def test_workers_change_no_byte(tmp_path):
    files = [documents(tmp_path / str(k), {f"{k}{n}": ITEM if n % 2 else "clean" for n in range(5)}) for k in range(3)]
    exam = benchmark(tmp_path, "exam.jsonl", {"question": ITEM})
    outcomes = [decontaminate(files, [exam], tmp_path / f"w{w}", DecontaminateSettings(), workers=w) for w in (1, 2)]
    assert outcomes[0] == outcomes[1]
    assert (tmp_path / "w1" / "hits.parquet").read_bytes() == (tmp_path / "w2" / "hits.parquet").read_bytes()


WORD = st.text(string.ascii_lowercase, min_size=4, max_size=6)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(WORD, min_size=6, max_size=20), st.lists(st.sampled_from(FILLER), max_size=20), st.randoms())
def test_planted_items_are_found_whatever_their_case_and_punctuation(tmp_path_factory, item, around, rng):
    tmp_path = tmp_path_factory.mktemp("planted")
    dressed = "".join(
        "".join(rng.choice((c.lower(), c.upper())) for c in word) + rng.choice((" ", ", ", "\n", " -- ", "…", "”\t“"))
        for word in item
    )
    before, after = " ".join(around), " ".join(reversed(around))
    _, hits = run(tmp_path, {"a": f"{before}! {dressed} {after}", "b": " ".join(FILLER)}, {"question": " ".join(item)})
    text = f"{before}! {dressed} {after}"
    spans = [words_of(text[hit["start"] : hit["end"]]) for hit in hits if hit["id"] == "a"]
    assert any(" ".join(item) in " ".join(words) for words in spans)


def has_common_ngram(text: str, item: str) -> bool:
    words, wanted = words_of(text, False), words_of(item, False)
    n = min(13, len(wanted))
    grams = {tuple(wanted[start : start + n]) for start in range(len(wanted) - n + 1)} if n >= 6 else set()
    return any(tuple(words[start : start + n]) in grams for start in range(len(words) - n + 1))


PAIR = st.sampled_from(["loamy", "sandy"])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(PAIR, max_size=30), min_size=1, max_size=4), st.lists(PAIR, min_size=1))
def test_hits_are_those_of_a_search_in_python(tmp_path_factory, texts, item):
    tmp_path = tmp_path_factory.mktemp("search")
    named = {str(n): " ".join(words) for n, words in enumerate(texts)}
    _, hits = run(tmp_path, named, {"question": " ".join(item)})
    expected = {name for name, text in named.items() if has_common_ngram(text, " ".join(item))}
    assert {hit["id"] for hit in hits} == expected


def test_cutting_takes_the_span_out_and_keeps_long_pieces(tmp_path):
    before, after = "sand " * 60, "clay " * 60
    texts = {"a": f"{before}{ITEM} short {ITEM} {after}", "b": f"x {ITEM}", "c": "clean"}
    outcome, _ = run(tmp_path, texts, {"question": ITEM}, action="cut")
    kept = pq.read_table(tmp_path / "out" / "kept" / "part-00000.parquet").to_pylist()
    assert kept[0]["text"].split("\n\n") == [before.strip(), f"? {after.strip()}"]
    assert [row["id"] for row in kept] == ["a", "c"]
    assert outcome.counts.dropped == {"contaminated.exam": 1}


def test_common_phrases_are_no_hits(tmp_path):
    texts = {str(n): f"document {n}: {ITEM}" for n in range(4)}
    assert run(tmp_path / "k3", texts, {"question": ITEM}, common_documents=3)[0].counts.kept == 4
    assert run(tmp_path / "k4", texts, {"question": ITEM}, common_documents=4)[0].counts.kept == 0


def test_a_saved_index_finds_the_same(tmp_path):
    texts = {"a": ITEM, "b": "clean"}
    first, hits = run(tmp_path, texts, {"question": ITEM, "id": "q"})
    again = decontaminate([documents(tmp_path, texts)], [tmp_path / "out" / "index.parquet"], tmp_path / "again",
                          DecontaminateSettings())  # fmt: skip
    assert again.counts == first.counts
    assert pq.read_table(tmp_path / "again" / "hits.parquet").to_pylist() == hits


def test_the_report_names_items_and_shares(tmp_path):
    run(tmp_path, {"a": ITEM}, {"question": ITEM, "id": "q7"}, {"question": "a question that nobody has copied yet"})
    told = json.loads((tmp_path / "out" / "report.json").read_text())["benchmarks"]["exam"]
    assert (told["share_hit"], told["examples"][0]["item"]) == (0.5, "q7")
    assert "| exam | 2 | 0 | 1 | 50.00% | 1 | 1 |" in (tmp_path / "out" / "report.md").read_text()


def test_short_answers_and_shared_questions_are_not_looked_for_alone(tmp_path):
    items = [
        {"question": "Which of these statements is true?", "choices": [f"it is {c}" for c in pair]}
        for pair in (("red", "blue"), ("old", "new"), ("wet", "dry"))
    ]
    texts = {"a": "Which of these statements is true?", "b": "Which of these statements is true? it is old it is new"}
    items.append({"question": ITEM, "answer": "the water that falls in the spring"})
    texts["c"] = "so the water that falls in the spring runs off"
    assert {hit["id"] for hit in run(tmp_path, texts, *items)[1]} == {"b"}


@pytest.mark.parametrize(
    ("item", "text", "found"),
    [
        ({"question": "Solve: $-57=-(-p+1)$"}, "now SOLVE: $-57 = -(-P + 1)$!", True),
        ({"question": "Solve: $-57=-(-p+1)$"}, "now solve: $57=(-p+1)$", False),
        ({"problem": r"Compute $\dbinom{8}{4}$.", "solution": ITEM}, r"compute $\dbinom{8}{4}$.", True),
        ({"problem": "Baker made 148 cakes.", "solution": ITEM}, "Baker made 148 cakes.", False),
        ({"question": "8 + 8 ÷ 2 ="}, "18 + 8 ÷ 2 =", False),
        ({"question": "What is photosynthesis?"}, "What is photosynthesis?", False),
        ({"choices": ["kills wasps", "kills ducks"], "query": "gun"}, "kills wasps kills ducks: gun", False),
        ({"choices": ["kills wasps", "kills ducks"], "query": "gun"}, "kills wasps kills ducks gun", True),
        ({"question": "Why?", "canary": "26b5c67b-86dc-4f3a"}, "the id 26B5C67B-86dc-4f3a is", True),
    ],
)
def test_items_of_few_words_are_found_letter_for_letter(tmp_path, item, text, found):
    outcome, hits = run(tmp_path, {"a": f"é {text}"}, item)
    assert (outcome.counts.kept, len(hits)) == ((0, 1) if found else (1, 0))
    assert all(f"é {text}"[hit["start"] : hit["end"]] == hit["text"] in text for hit in hits)


def test_letters_whose_capitals_are_others_are_found(tmp_path):
    item = "Die Straße misst 40 µm und der Weg heißt Großgasse"
    assert run(tmp_path, {"a": item.upper()}, {"question": item})[0].counts.kept == 0


def test_numbers_alone_do_not_stand_for_a_text_that_has_words(tmp_path):
    table = " ".join(str(n) for n in range(20))
    _, hits = run(tmp_path, {"a": table, "b": ITEM}, {"question": f"{ITEM} {table}"})
    assert {hit["id"] for hit in hits} == {"b"}


def test_real_benchmarks_planted_in_real_pages(shared, tmp_path):
    with gzip.open(shared / "dedup" / "extractor_variants.jsonl.gz", "rt", encoding="utf-8") as lines:
        pages = [json.loads(line)["text"] for line, _ in zip(lines, range(60), strict=False)]
    items = [json.loads(line) for line in (shared / "qa" / "arc_easy.jsonl").read_text(encoding="utf-8").splitlines()]
    rng = random.Random(1)
    planted = {n: item["query"] for n, item in enumerate(items) if len(words_of(item["query"])) >= 6 and n % 40 == 0}
    texts = {f"clean-{n}": page for n, page in enumerate(pages)}
    for n, query in planted.items():
        page = rng.choice(pages)
        texts[f"planted-{n}"] = f"{page[:500]}\n{query.swapcase()}\n{page[500:]}"
    exam = shared / "qa" / "arc_easy.jsonl"
    decontaminate([documents(tmp_path, texts)], [exam], tmp_path / "out", DecontaminateSettings())
    hits = pq.read_table(tmp_path / "out" / "hits.parquet").to_pylist()
    assert {(hit["id"], hit["item"]) for hit in hits} >= {(f"planted-{n}", str(n)) for n in planted}
    assert not [hit for hit in hits if hit["id"].startswith("clean")]
