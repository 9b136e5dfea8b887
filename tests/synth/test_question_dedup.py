import random

from hypothesis import given, settings
from hypothesis import strategies as st

from synth.question_dedup import duplicates_of
from synth.words import ngrams, words_of

A = "How does ordinary rain end up making caves with stalactites in limestone?"
B = "How does ordinary rain end up making caves with long stalactites in limestone?"
C = "Why do the tides follow the moon rather than the sun?"


def test_the_least_id_stays():
    assert duplicates_of(["s2", "s1", "s3"], ["x", "y", "z"], [A, B, C], 0.7) == {"s2": "s1"}


def test_case_and_punctuation_do_not_count():
    assert duplicates_of(["a", "b"], ["x", "y"], [C, C.upper().replace("?", "??")], 1.0) == {"b": "a"}


def test_rollouts_of_one_document_are_no_duplicates():
    ids, documents = ["a", "b", "c"], ["x", "x", "y"]
    assert duplicates_of(ids, documents, [A, A, A], 0.7) == {"c": "a"}


def test_another_number_is_another_question():
    asked = [f"Tom has {n} apples and buys 5 more; how many apples has he?" for n in (12, 13)]
    assert duplicates_of(["a", "b"], ["x", "y"], asked, 0.9) == {}
    assert duplicates_of(["a", "b"], ["x", "y"], [asked[0], asked[0]], 0.9) == {"b": "a"}


def test_chinese_questions():
    asked = ["为什么下雨之后石灰岩里会形成溶洞？", "为什么下雨之后石灰岩中会形成溶洞？", "月亮为什么影响潮汐？"]
    assert duplicates_of(["a", "b", "c"], ["x", "y", "z"], asked, 0.7) == {"b": "a"}


def jaccard(one: str, other: str) -> float:
    first, second = set(ngrams(words_of(one), 2)), set(ngrams(words_of(other), 2))
    return len(first & second) / len(first | second) if first | second else 0.0


def reference(ids: list[str], questions: list[str], least: float) -> dict[str, str]:
    """Every pair compared, components by the least id."""
    root = {name: name for name in ids}
    for _ in ids:
        for i, one in enumerate(ids):
            for j in range(i):
                if jaccard(questions[i], questions[j]) >= least:
                    low = min(root[one], root[ids[j]])
                    root[one] = root[ids[j]] = low
    return {name: low for name, low in root.items() if low != name}


WORDS = ["rain", "falls", "on", "stone", "and", "makes", "caves", "why", "how", "deep"]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.sampled_from(WORDS), min_size=4, max_size=9), min_size=2, max_size=8))
def test_pairs_as_brute_force_finds_them(many: list[list[str]]):
    questions = [" ".join(words) + "?" for words in many]
    ids = [f"s{n}" for n in range(len(questions))]
    assert duplicates_of(ids, ids, questions, 0.7) == reference(ids, questions, 0.7)


def test_order_changes_nothing():
    rng = random.Random(0)
    questions = [" ".join(rng.choices(WORDS, k=6)) + "?" for _ in range(200)]
    rows = [(f"s{n:03d}", question) for n, question in enumerate(questions)]
    ids, asked = zip(*rows, strict=True)
    first = duplicates_of(list(ids), list(ids), list(asked), 0.7)
    rng.shuffle(rows)
    ids, asked = zip(*rows, strict=True)
    assert duplicates_of(list(ids), list(ids), list(asked), 0.7) == first
    assert first
