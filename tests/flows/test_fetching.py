"""`loam fetch RECIPE` against a Hub in this process: sources, scorer and tokenizer, and the lock of later runs."""

import json
from pathlib import Path

from tests.flows.conftest import Command, Works
from tests.pipelines.test_hub import NEW, OLD, FakeHub, fake  # noqa: F401 - a fixture

RECIPE = """
kind: corpus
name: mine
sources:
  books: {kind: huggingface, dataset: owner/name, subset: books, licence: MIT}
filters: {books: none}
language: {books: {label: eng}}
scorer: {path: models/tiny, dataset: owner/name, licence: MIT}
tokenizer: {path: models/tiny/config.json}
"""


def states(works: Works) -> dict[str, tuple[str, bool | None, str | None]]:
    return {need["name"]: (need["state"], need["pinned"], need["commit"]) for need in works("check", "r.yaml")["needs"]}


def test_everything_is_fetched_and_pinned(fake: FakeHub, call: Command, works: Works, tmp_path: Path):  # noqa: F811
    (tmp_path / "r.yaml").write_text(RECIPE)
    assert states(works) == {"books": ("fetch", False, None), "scorer": ("fetch", False, None),
                             "tokenizer": ("fetch", None, None)}  # fmt: skip
    assert "2 with a revision not pinned yet: loam fetch pins it" in call("check", "r.yaml")[1]
    code, out, _ = call("fetch", "r.yaml")
    assert code == 0
    assert out.splitlines() == ["books: 1 files, 17 bytes below .", "scorer: 2 files, 9 bytes below ."]
    assert (tmp_path / "models/tiny").resolve() == tmp_path / "hub/models--owner--name" / OLD
    assert states(works)["books"] == ("here", True, OLD)
    assert {state for state, _, _ in states(works).values()} == {"here"}
    fake.main = NEW
    call("fetch", "r.yaml")
    assert states(works)["books"] == ("here", True, OLD)  # the lock holds
    call("fetch", "r.yaml", "--update")
    assert states(works)["books"] == ("here", True, NEW)
    assert (tmp_path / "models/tiny").resolve().name == NEW
    assert json.loads((tmp_path / "hub/owner--name/revisions.json").read_text()) == {"main": NEW}


def test_the_commit_is_in_the_origin_of_every_document(fake: FakeHub, tmp_path: Path):  # noqa: F811
    import pyarrow.parquet as pq

    from pipelines import hub
    from pipelines.extract import ExtractSettings
    from pipelines.source_settings import HubSource
    from pipelines.sources import ingest

    source = HubSource(kind="huggingface", dataset="owner/name", subset="books")
    hub.fetch(hub.wanted_by(source), tmp_path, say=lambda _: None)
    ingest({"books": source}, None, tmp_path, tmp_path / "out", ExtractSettings())
    (row,) = pq.read_table(tmp_path / "out/documents/books/part-00000.parquet", columns=["origin"]).to_pylist()
    assert row["origin"]["file"] == f"hub/owner--name/{OLD}/books/train-00000.jsonl"
