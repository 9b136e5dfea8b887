import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter, ValidationError

from pipelines.errors import DataError, RecipeError
from pipelines.extract import ExtractSettings
from pipelines.recipe import Section, load_recipe
from pipelines.sources import FileSource, MachineSource, SourceSettings, collect, fingerprint_inputs, ingest
from pipelines.tracing import read_origin
from pipelines.warc import write_warc

SOURCES = TypeAdapter(dict[str, SourceSettings])
EXTRACT = ExtractSettings()

REAL = {
    "web": {"kind": "warc", "paths": ["web/warc/realpages-00004.warc.gz"]},
    "wikipages": {"kind": "html", "paths": ["encyclopedia/wikipedia_html"], "domain": "encyclopedia"},
    "wikitext": {"kind": "text", "paths": ["encyclopedia/wikitext-2/valid.txt"], "domain": "encyclopedia",
                 "per": "section", "section_start": "^ = [^=].* = $"},
    "wiki_demo": {"kind": "text", "paths": ["encyclopedia/wiki_demo.txt"], "domain": "encyclopedia", "per": "line"},
    "cmrc": {"kind": "json", "paths": ["encyclopedia/cmrc2018/*.json.gz"], "domain": "chinese",
             "json_path": "data.paragraphs", "text": "{context}"},
    "novels": {"kind": "archive", "paths": ["books/english_novels.tar.gz"], "domain": "books", "max_documents": 3},
    "gsm8k": {"kind": "jsonl", "paths": ["math/gsm8k/train.jsonl.gz"], "domain": "math",
              "text": "{question}\n\n{answer}", "max_documents": 50},
    "code": {"kind": "archive", "paths": ["code/aut-scala.tar.gz"], "members": "*.scala"},
    "scitldr": {"kind": "jsonl", "paths": ["papers/scitldr-A/dev.jsonl.gz"], "domain": "papers",
                "text": "{source}", "join": " ", "id_field": "paper_id", "max_documents": 50},
    "commands": {"kind": "archive", "paths": ["chinese/linux_command_md.tar.gz"], "domain": "chinese"},
    "poetry": {"kind": "archive", "format": "json", "paths": ["chinese/chinese_poetry.tar.gz"], "domain": "chinese",
               "members": "*/caocao.json", "text": "{title}\n{paragraphs}", "language": "zho"},
    "stack_exchange": {"kind": "jsonl", "paths": ["qa/stack_exchange.jsonl"], "domain": "qa"},
    "skyt1": {"kind": "jsonl", "paths": ["reasoning/skyt1_*_a*.jsonl*"], "domain": "reasoning",
              "text": "{question}\n\n{code.0}"},
}  # fmt: skip
COUNTS = {"web": 60, "wikipages": 3, "wikitext": 60, "wiki_demo": 30, "cmrc": 848, "novels": 3, "gsm8k": 50,
          "code": 105, "scitldr": 50, "commands": 504, "poetry": 26, "stack_exchange": 70, "skyt1": 110}  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and ".scratch" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"kind": "jsonl", "paths": ["a"], "pathz": 1}, "Extra inputs"),
        ({"kind": "nothing"}, "does not match any of the expected tags"),
        ({"kind": "text", "paths": ["a"], "per": "section"}, "belong together"),
        ({"kind": "jsonl", "paths": ["a"], "metadata": ["source"]}, "'source' is a column"),
        ({"kind": "pydoc", "max_bytes": "many"}, "a size in bytes"),
        ({"kind": "warc", "paths": ["a"], "language": "english"}, "should match pattern"),
    ],
)
def test_wrong_settings_are_refused(source, message):
    with pytest.raises(ValidationError, match=message):
        SOURCES.validate_python({"s": source})


def test_a_recipe_names_the_line_of_a_wrong_key(tmp_path):
    class Recipe(Section):
        sources: dict[str, SourceSettings]

    (tmp_path / "r.yaml").write_text("sources:\n  web:\n    kind: warc\n    pathz: [a]\n")
    with pytest.raises(RecipeError, match=r"r\.yaml:[234]: sources\.web.*paths"):
        load_recipe(str(tmp_path / "r.yaml"), Recipe)


def test_sources_of_one_domain_are_numbered_together_and_ids_are_unique(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(json.dumps({"id": n, "text": f"{name}{n} "}) + "\n" for n in (1, 2))
        )
    write_warc(tmp_path / "w.warc.gz", [("http://x/", b"<html><body><p>a page of its own</p></body></html>")])
    sources = SOURCES.validate_python({
        "one": {"kind": "jsonl", "paths": ["*.jsonl"], "domain": "d"},
        "two": {"kind": "jsonl", "paths": ["a.jsonl"], "domain": "d", "id_field": "id", "licence": "MIT"},
        "web": {"kind": "warc", "paths": ["w.warc.gz"]},
    })  # fmt: skip
    outcome = ingest(sources, None, tmp_path, tmp_path / "out", EXTRACT)
    parts = sorted(
        str(p.relative_to(tmp_path / "out/documents")) for p in (tmp_path / "out/documents").rglob("*.parquet")
    )
    assert parts == ["d/part-00000.parquet", "d/part-00001.parquet", "d/part-00002.parquet", "web/part-00000.parquet"]
    rows = pq.read_table(tmp_path / "out/documents").to_pylist()
    assert [row["id"] for row in rows] == ["one/a.jsonl/0", "one/a.jsonl/1", "one/b.jsonl/0", "one/b.jsonl/1",
                                           "two/1", "two/2", "web/w.warc.gz/0"]  # fmt: skip
    assert [row["text"] for row in rows][::3] == ["a1", "b2", "a page of its own"]
    assert dict(rows[4]["metadata"]) == {"licence": "MIT"}
    assert outcome.metrics["sources"]["one"] == {"documents": 4, "dropped": 0, "rejects": 0}


def test_a_source_without_files_is_named(tmp_path):
    sources: dict[str, SourceSettings] = {"s": FileSource(kind="text", paths=("none/*.txt",))}
    with pytest.raises(DataError, match="source 's': no file matches"):
        ingest(sources, None, tmp_path, tmp_path / "out", EXTRACT)
    with pytest.raises(DataError, match="run the collect step first"):
        ingest({"m": MachineSource(kind="licences")}, None, tmp_path, tmp_path / "out", EXTRACT)


def test_fingerprints_follow_the_bytes(tmp_path):
    sources = SOURCES.validate_python({"t": {"kind": "text", "paths": ["a.txt"]}, "m": {"kind": "licences"}})
    (tmp_path / "a.txt").write_text("one")
    before = fingerprint_inputs(sources, tmp_path)
    (tmp_path / "a.txt").write_text("two")
    after = fingerprint_inputs(sources, tmp_path)
    assert set(before) == {"machine", "t:a.txt"}
    assert before["machine"] == after["machine"]
    assert before["t:a.txt"] != after["t:a.txt"]


def test_the_machine_becomes_documents_that_trace_back(tmp_path):
    small = {"max_documents": 6, "shards": 2}
    kinds = {"reference": "pydoc", "readme": "package_readme", "code": "python_code", "licences": "licences"}
    sources = SOURCES.validate_python({name: {"kind": kind, **small} for name, kind in kinds.items()})
    outcome = collect(sources, tmp_path / "one", workers=2)
    before = contents(tmp_path / "one")
    collect({"reference": sources["reference"]}, tmp_path / "two", workers=1)
    assert contents(tmp_path / "two").items() <= before.items()
    assert outcome.metrics["records"]["code"] == 6
    raw = tmp_path / "one" / "raw"
    counts = ingest(sources, raw, tmp_path, tmp_path / "out", EXTRACT).counts
    assert counts is not None
    assert counts.docs_in == sum(outcome.metrics["records"].values())
    rows = pq.read_table(tmp_path / "out/documents").to_pylist()
    assert {row["domain"] for row in rows} == set(kinds)
    assert len({row["id"] for row in rows}) == len(rows) == counts.kept
    for row in rows:
        assert len(read_origin(row["origin"], [raw])) == row["origin"]["length"]


def test_real_data_is_read_through_settings_alone(shared, tmp_path):
    sources = SOURCES.validate_python(REAL)
    outcome = ingest(sources, None, shared, tmp_path, EXTRACT)
    found = {name: sum(rows.values()) for name, rows in outcome.metrics["sources"].items()}
    assert found == COUNTS
    rows = pq.read_table(tmp_path / "documents").to_pylist()
    assert len({row["id"] for row in rows}) == len(rows)
    some = {row["source"]: row for row in rows}
    assert set(some) == set(REAL)
    for row in some.values():
        assert len(read_origin(row["origin"], [shared])) == row["origin"]["length"]
    assert "<|begin_of_thought|>" in some["skyt1"]["text"]
