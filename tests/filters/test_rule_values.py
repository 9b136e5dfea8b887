"""Values kept beside documents: cut again without the text, reported by percentile; odd texts."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from filters.heuristics import FilterSettings, FilterVerbSettings, Heuristics, attribute_files, filter_documents
from filters.rule_report import FAILED, LANGUAGE, rule_report
from filters.rule_tables import RULE_SETS
from filters.rules import failures_of, judge, rule_set
from filters.text_stats import text_stats
from pipelines.document import STREAM, conform
from pipelines.errors import DataError, RecipeError
from pipelines.manifest import Counts
from pipelines.recipe import settings_from

SENTENCES = [
    "The harbour of Bergen has been busy since the Middle Ages, and old houses still line the quay.",
    "Rain falls on two days out of three, so nobody leaves home without a coat.",
    "Above the town a small railway climbs to a viewpoint of the islands.",
    "Der Hund und die Katze sind mit dem Ball in das Haus von dem Mann gelaufen.",
    "版权所有。我在这里有一个很长的句子。",
    "x = 1  # a note",
    "same line",
    "",
]


def corpus(rows: int = 60) -> pa.Table:
    texts = ["\n".join(SENTENCES[(n * 7 + k * (n + 1)) % len(SENTENCES)] for k in range(n % 13)) for n in range(rows)]
    domains = [("web", "code/high")[n % 2] for n in range(rows)]
    return pa.table({"id": [f"d{n}" for n in range(rows)], "text": texts, "domain": domains})


def write(path: Path, table: pa.Table) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(conform(table), path)
    return path


def rows_below(folder: Path) -> dict[str, dict[str, object]]:
    """Every document by id, with its fate's folder and its reason."""
    found = {}
    for fate in ("kept", "dropped"):
        for path in (folder / fate).rglob("*.parquet"):
            for row in pq.read_table(path).to_pylist():
                found[row["id"]] = {"fate": fate, "text": row["text"], "reason": row.get("reason")}
    return found


def test_cutting_stored_values_again_gives_what_measuring_gives(tmp_path):
    file = write(tmp_path / "kept/part-00000.parquet", corpus())
    sets = ["web_en", "fineweb2", "code", "math", "c4_zh", "dclm_repetition"]
    filter_documents([file], tmp_path / "first", FilterSettings(rules=sets))
    changed = FilterSettings(
        rules=["fineweb2", "web_en"],
        thresholds={
            "gopher_quality.word_count.low": 5,
            "fineweb2.stop_words.low": 1,
            "fineweb2.dup_line_frac.high": None,
        },
    )
    stored = attribute_files(tmp_path / "first")
    again = filter_documents([file], tmp_path / "again", changed, 1, stored)
    measured = filter_documents([file], tmp_path / "measured", changed)
    assert again == measured
    assert again.counts
    assert 0 < again.counts.kept < 60
    for path in (tmp_path / "measured").rglob("*.parquet"):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(tmp_path / "measured")).read_bytes(), path


def test_values_find_their_documents_in_any_order_and_file(tmp_path):
    table = corpus()
    files = [write(tmp_path / f"kept/part-{n:05d}.parquet", table.slice(n * 30, 30)) for n in range(2)]
    filter_documents(files, tmp_path / "first", FilterSettings(rules="gopher_quality"))
    turned = write(tmp_path / "other/turned.parquet", table.take(pa.array(range(59, -1, -1))))
    settings = FilterSettings(rules="gopher_quality", thresholds={"gopher_quality.word_count.low": 3})
    again = filter_documents([turned], tmp_path / "again", settings, 1, attribute_files(tmp_path / "first"))
    assert again == filter_documents([turned], tmp_path / "measured", settings)
    assert rows_below(tmp_path / "again") == rows_below(tmp_path / "measured")


def test_missing_values_are_named(tmp_path):
    file = write(tmp_path / "kept/part-00000.parquet", corpus(4))
    by_domain = {"code": FilterSettings(rules="code"), "*": FilterSettings(rules="c4")}
    filter_documents([file], tmp_path / "first", by_domain)
    stored = attribute_files(tmp_path / "first")
    with pytest.raises(DataError, match=r"hold no fineweb.empty; they hold the rules of c4, code: filter without"):
        filter_documents([file], tmp_path / "x", FilterSettings(rules="fineweb"), 1, stored)
    with pytest.raises(DataError, match=r"'d0' has no value of code.empty"):
        filter_documents([file], tmp_path / "y", FilterSettings(rules="code"), 1, stored)
    other = write(tmp_path / "kept/part-00001.parquet", corpus(6).slice(5))
    with pytest.raises(DataError, match="no attributes of document 'd5'"):
        filter_documents([other], tmp_path / "z", FilterSettings(rules="c4"), 1, stored)
    with pytest.raises(DataError, match="expected the --out of an earlier"):
        attribute_files(tmp_path / "nothing")


@given(rows=st.integers(0, 12), seed=st.integers(0, 9), name=st.sampled_from(sorted(RULE_SETS)))
@settings(max_examples=80)
def test_values_alone_decide(rows, seed, name):
    texts = np.random.default_rng(seed).choice(SENTENCES, (rows, 6))
    column = pa.array(["\n".join(row) for row in texts], pa.string())
    rules, stats = rule_set(name), text_stats(column)
    values = {rule.name: np.array(stats[rule.stat]) for rule in rules}
    failures = failures_of(rules, values, rows)
    kept = [not any(fails[row] for fails in failures) for row in range(rows)]
    assert judge(rules, stats, rows).is_null().to_pylist() == kept


def test_rule_sets_come_together():
    both = FilterSettings.model_validate({"rules": "gopher_quality, c4"})
    assert both.rules == ["gopher_quality", "c4"] == FilterSettings.model_validate(["gopher_quality", "c4"]).rules
    assert both.resolved() == (*RULE_SETS["gopher_quality"], *RULE_SETS["c4"])
    assert len(rule_set(["web_en", "gopher_quality"])) == len(RULE_SETS["web_en"])  # asked once
    with pytest.raises(RecipeError, match="did you mean fineweb"):
        rule_set(["c4", "finweb"])


def test_sets_from_the_command_line():
    sets = ["thresholds.gopher_quality.word_count.low=20", "domains.code.rules=code", "measure=[math]"]
    chosen = settings_from(FilterVerbSettings, sets, rules=["web_en,c4"])
    assert chosen.thresholds == {"gopher_quality.word_count.low": 20}
    by_domain = chosen.by_domain()
    assert isinstance(by_domain, dict)
    assert by_domain["code"].rules == ["code"]
    assert by_domain["*"].rules == ["web_en", "c4"]
    assert not any(r.low or r.high for r in by_domain["*"].resolved() if r.name.startswith("math."))


def test_measured_sets_decide_nothing():
    table = conform(corpus(), STREAM)
    alone = Heuristics(FilterSettings(rules="gopher_quality")).apply(table)
    more = Heuristics(FilterSettings(rules="gopher_quality", measure="code")).apply(table)
    assert more["reason"] == alone["reason"]
    assert more["code.longest_line"].null_count == 0


def test_the_language_of_a_document_chooses_its_thresholds():
    text = " ".join(
        ["Der Hund und die Katze gehen in das alte Haus von Frau Berg, wo ein Kind mit dem Ball spielt."] * 2
    )
    text += (
        " Heute kommt auch noch Besuch aus Bremen: Onkel Karl bringt Kuchen, Tante Erna eine Kiste voll reifer Birnen."
    )
    table = conform(pa.table({"id": ["a", "b", "c"], "text": [text] * 3, "language": ["deu", "eng", None]}), STREAM)
    relaxed: dict[str, float | None] = {
        f"fineweb2.{rule}_gram.high": None for rule in ("top_2", "top_3", "top_4", *(f"dup_{n}" for n in range(5, 11)))
    }
    judged = Heuristics(FilterSettings(rules="fineweb2", thresholds=relaxed)).apply(table)
    assert judged["reason"].to_pylist() == [None, "fineweb2.stop_words", None]  # the third is identified
    assert judged[LANGUAGE].to_pylist() == ["deu", "eng", "deu"]


def test_the_report_tells_first_alone_and_all(tmp_path):
    attributes = pa.table({"id": ["a", "b", "c"], "r.x": [1.0, 2.0, 9.0], "r.y": [5.0, None, 7.0],
                           FAILED: [["r.x", "r.y"], [], ["r.y"]]})  # fmt: skip
    (tmp_path / "attributes").mkdir()
    pq.write_table(attributes, tmp_path / "attributes/part-00000.parquet")
    counts = Counts(docs_in=3, kept=1, dropped={"r.x": 1, "r.y": 1})
    report = rule_report(tmp_path, ["r.x", "r.y"], counts)
    assert report["r.x"] | {"percentiles": None} == {
        "documents": 3,
        "fail": 1,
        "first": 1,
        "alone": 0,
        "percentiles": None,
    }
    assert (report["r.y"]["fail"], report["r.y"]["alone"]) == (2, 1)
    assert [report["r.x"]["percentiles"][p] for p in ("0", "50", "100")] == [1, 2, 9]
    assert "| r.y | 2 | 2 | 1 | 1 |" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize("name", [name for name in RULE_SETS if name != "none"])
def test_odd_texts_get_a_verdict(name):
    odd = ["", " \n\t ", "\x00" * 40, "\n" * 500, "a" * 200_000, "$" * 3000, "\\(" * 3000, "AB/" * 9000, "00" * 9000,
           "\u2028" * 9, "ที่" * 200, "{" * 99, '"""' * 99, "\U0001f600" * 99, "\ufeff", "的" * 3000]  # fmt: skip
    table = conform(pa.table({"id": [str(n) for n in range(len(odd))], "text": odd}), STREAM)
    judged = Heuristics(FilterSettings(rules=name)).apply(table)
    assert judged["fate"][0].as_py() == "dropped"
    for rule in RULE_SETS[name]:
        assert np.isfinite(judged[rule.name].to_numpy()).all()


@pytest.mark.slow
def test_a_line_of_fifty_megabytes_takes_seconds(tmp_path):
    file = write(tmp_path / "kept/part-00000.parquet", pa.table({"id": ["long"], "text": ["a/b " * (50 << 18)]}))
    outcome = filter_documents([file], tmp_path / "out", FilterSettings(rules=["web_en", "code", "math"]))
    assert outcome.counts
    assert outcome.counts.dropped == {"gopher_repetition.top_2_gram": 1}
    assert pc.sum(pq.read_table(attribute_files(tmp_path / "out")[0])["code.longest_line"]).as_py() == 4 << 20
