from pathlib import Path

import dill
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from filters.heuristics import FilterSettings, Heuristics, clean_lines, filter_documents
from pipelines.document import STREAM, conform
from pipelines.errors import RecipeError

GOOD = (
    "The harbour of Bergen has been busy since the Middle Ages, and old wooden houses still line its northern quay. "
    "Fishermen bring their catch to the market every morning, where visitors taste it with bread and lemon. "
    "Rain falls on two days out of three, so nobody leaves home without a coat. "
    "Above the town a small railway climbs to a viewpoint from which islands can be seen on clear evenings. "
    "Students have filled several cafes near the museum, and music is often heard there until midnight."
)


def documents(*texts: str, domain: str | None = None) -> pa.Table:
    return conform(pa.table({"id": [f"d{n}" for n in range(len(texts))], "text": list(texts),
                             "domain": pa.array([domain] * len(texts), pa.string())}), STREAM)  # fmt: skip


def write(folder: Path, name: str, table: pa.Table) -> Path:
    path = folder / "kept" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.drop_columns(["fate", "reason"]), path)
    return path


def test_good_text_lives_and_bad_text_names_its_rule():
    judged = Heuristics(FilterSettings(rules="web_en")).apply(documents(GOOD, "too short", "same line\n" * 50))
    expected = [None, "gopher_repetition.top_2_gram", "gopher_repetition.dup_line_frac"]
    assert judged["reason"].to_pylist() == expected


def test_values_are_stored_for_kept_and_dropped():
    judged = Heuristics(FilterSettings(rules="gopher_quality")).apply(documents(GOOD, "too short"))
    assert judged["gopher_quality.word_count"].to_pylist()[1] == 2
    assert judged["fate"].to_pylist() == [None, "dropped"]


def test_each_domain_is_judged_by_its_own_rules():
    block = Heuristics({"code": FilterSettings(rules="code"), "*": FilterSettings(rules="gopher_quality")})
    table = pa.concat_tables([documents("value = 1\n", domain="code/high"), documents("x = 1\n", domain="web_en")])
    judged = block.apply(table)
    assert judged["reason"].to_pylist() == [None, "gopher_quality.word_count"]
    assert judged["code.longest_line"].to_pylist() == [9, None]
    with pytest.raises(RecipeError, match="no settings for domain 'books'"):
        Heuristics({"code": FilterSettings(rules="code")}).apply(documents("a", domain="books"))


def test_thresholds_can_be_changed_and_a_name_is_settings_enough():
    relaxed = FilterSettings(rules="gopher_quality", thresholds={"gopher_quality.word_count.low": None})
    assert Heuristics(relaxed).apply(documents("the words of someone here"))["reason"].to_pylist() == [None]
    assert FilterSettings.model_validate("code") == FilterSettings(rules="code")
    with pytest.raises(RecipeError, match="no rule set"):
        Heuristics(FilterSettings(rules="nope"))


def test_line_cleaning_keeps_what_c4_keeps():
    text = "Home\nA proper line of text.[12]\nWe use cookies on this site\n  Another line, with émigré 中文 😀 here  \n"
    assert clean_lines(pa.array([text, "", "x"])).to_pylist() == [
        "A proper line of text.\nAnother line, with émigré 中文 😀 here", "", "",
    ]  # fmt: skip
    assert clean_lines(pa.array([text]), need_terminal=True).to_pylist() == ["A proper line of text."]


def test_line_cleaning_agrees_with_datatrove():
    from datatrove.data import Document
    from datatrove.pipeline.filters import C4QualityFilter

    text = "\n".join(
        [GOOD, "Menu", "About us", GOOD.replace("harbour", "market"), "Accept the cookie policy of us", "a b c"]
    )
    oracle = Document(text=text, id="0")
    assert C4QualityFilter(filter_no_terminal_punct=False).filter(oracle) is True
    assert clean_lines(pa.array([text])).to_pylist() == [oracle.text]


def test_cleaning_inside_the_filter_lets_fineweb_judge_what_is_left():
    menu = "\n".join(["Home", "News", "Sport", "Weather", "Travel", "Culture", "Science", "Health", "Contact"])
    text = f"{GOOD}\n{menu}"
    plain = FilterSettings(rules="web_en")
    assert Heuristics(plain).apply(documents(text))["reason"].to_pylist() == ["fineweb.line_punct"]
    cleaned = Heuristics(plain.model_copy(update={"clean_lines": True})).apply(documents(text, "nothing"))
    assert cleaned["reason"].to_pylist()[0] is None
    assert cleaned["text"].to_pylist() == [GOOD, "nothing"]  # a dropped document keeps its text


def test_blocks_travel_to_workers():
    block = Heuristics(FilterSettings(rules="code"))
    block.apply(documents("value = 1\n"))
    assert len(dill.dumps(block)) < 20_000  # lookup arrays are built anew, not sent
    assert dill.loads(dill.dumps(block)).apply(documents("value = 1\n"))["reason"].to_pylist() == [None]


def test_the_verb_writes_every_fate_and_workers_change_nothing(tmp_path):
    files = [write(tmp_path, f"web/part-{n:05d}.parquet", documents(GOOD, f"short {n}")) for n in range(3)]
    outcomes = {}
    for workers in (1, 2):
        out = tmp_path / f"out{workers}"
        outcomes[workers] = filter_documents(files, out, FilterSettings(rules="gopher_quality"), workers)
    assert outcomes[1].counts.kept == 3
    assert outcomes[1].counts.dropped == {"gopher_quality.word_count": 3}
    found = {p.relative_to(tmp_path / "out1"): p.read_bytes() for p in (tmp_path / "out1").rglob("*.parquet")}
    assert {str(p.parent) for p in found} == {"kept/web", "dropped/web", "attributes/web"}
    assert found == {p.relative_to(tmp_path / "out2"): p.read_bytes() for p in (tmp_path / "out2").rglob("*.parquet")}
    assert outcomes[1] == outcomes[2]
