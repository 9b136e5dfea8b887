"""How often the rules of synthesis reject what people wrote, and how often they notice what was spoilt.

    pytest tests/bench/test_synth_rules_bench.py -m bench -s

Documents and texts about them: GSM8K questions and solutions, SciTLDR abstracts and summaries, PubMedQA contexts and
questions, CMRC passages and questions. Spoilt: one number changed, one name of another document put in, or the text of
another document. The table stands in docs/synthesis.md.
"""

import gzip
import json
import random
import re
from collections import Counter
from pathlib import Path

import pytest

from synth.names import names_of
from synth.verification import CHAIN, PROSE, QUESTION, Limits, Rule

pytestmark = pytest.mark.bench
MOST = 1500
Pairs = list[tuple[str, str]]  # document, text about it


def _lines(path: Path) -> list[dict]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def gsm8k(shared: Path) -> Pairs:
    rows = _lines(shared / "math/gsm8k/train.jsonl.gz")[:MOST]
    return [(row["question"], re.sub(r"<<[^>]*>>", "", row["answer"]).partition("####")[0].strip()) for row in rows]


def scitldr(shared: Path) -> Pairs:
    rows = _lines(shared / "papers/scitldr-A/train.jsonl.gz")[:MOST]
    return [(" ".join(row["source"]), row["target"][0]) for row in rows]


def pubmed_questions(shared: Path) -> Pairs:
    pairs = [row["context"].partition("\nQuestion: ") for row in _lines(shared / "papers/pubmed_qa_labeled.jsonl.gz")]
    return [(document, rest.partition("\n")[0].strip()) for document, _, rest in pairs][:MOST]


def cmrc_questions(shared: Path) -> Pairs:
    with gzip.open(shared / "encyclopedia/cmrc2018/cmrc2018_dev.json.gz", "rt", encoding="utf-8") as file:
        paragraphs = [one for article in json.load(file)["data"] for one in article["paragraphs"]]
    return [(one["context"], asked["question"]) for one in paragraphs for asked in one["qas"]][:MOST]


def counts(pairs: Pairs, rules: tuple[tuple[str, Rule], ...]) -> Counter[str]:
    limits, found = Limits(), Counter()
    for document, text in pairs:
        fired = [reason for reason, fails in rules if fails(text, document, limits)]
        found.update(fired)
        found["any"] += bool(fired)
    return found


def changed_number(pairs: Pairs, rng: random.Random) -> Pairs:
    spoilt = []
    for document, text in pairs:
        if numbers := list(re.finditer(r"(?<![\d.,])\d{2,4}(?![\d.,])", text)):
            match = rng.choice(numbers)
            number = int(match.group()) + rng.choice([-4, 3, 7, 13])
            spoilt.append((document, f"{text[: match.start()]}{number}{text[match.end() :]}"))
    return spoilt


def foreign_name(pairs: Pairs, rng: random.Random) -> Pairs:
    names = [name for _, text in pairs for name in names_of(text)[:1]]
    return [(document, f"{text} We owe this to {rng.choice(names)}.") for document, text in pairs]


def another_document(pairs: Pairs, rng: random.Random) -> Pairs:
    return [(pairs[(n + 7) % len(pairs)][0], text) for n, (_, text) in enumerate(pairs)]


def test_rules_on_human_text(shared: Path):
    rng, everything = random.Random(0), (*PROSE, *CHAIN)
    gsm, sci = gsm8k(shared), scitldr(shared)
    tables = {
        "GSM8K solutions as chains": counts(gsm, everything),
        "SciTLDR summaries as chains": counts(sci, everything),
        "GSM8K, one number changed": counts(changed_number(gsm, rng), everything),
        "GSM8K, a foreign name": counts(foreign_name(gsm, rng), everything),
        "SciTLDR, a foreign name": counts(foreign_name(sci, rng), everything),
        "GSM8K, another question": counts(another_document(gsm, rng), everything),
        "SciTLDR, another abstract": counts(another_document(sci, rng), everything),
        "PubMedQA questions": counts(pubmed_questions(shared), QUESTION),
        "CMRC questions (Chinese)": counts(cmrc_questions(shared), QUESTION),
    }
    sizes = {"GSM8K, one number changed": len(changed_number(gsm, rng))}
    lengths = {"PubMedQA": len(pubmed_questions(shared)), "CMRC": len(cmrc_questions(shared))}
    for name, found in tables.items():
        total = sizes.get(name) or next((n for key, n in lengths.items() if name.startswith(key)), None)
        total = total or (len(gsm) if name.startswith("GSM8K") else len(sci))
        shown = ", ".join(f"{reason} {n / total:.1%}" for reason, n in found.most_common() if reason != "any")
        print(f"| {name} | {total:,} | {found['any'] / total:.1%} | {shown} |")
    assert tables["GSM8K solutions as chains"]["any"] < 0.1 * len(gsm)
    assert tables["GSM8K, another question"]["any"] > 0.9 * len(gsm)
