"""Recipes of kind score: what they cut of scores that were made here, and which models they fetch."""

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants

from filters.score_table import POLICY_KEY, SCORES_SCHEMA
from tests.flows.conftest import Command, Fails, Works
from tests.pipelines.test_hub import OLD, FakeHub, fake  # noqa: F401 - a fixture

SYNTH = """
extends: cot_backward
generator: {dataset: owner/name, licence: MIT}
"""


def write_scores(path: Path, per_domain: int) -> None:
    """Documents of two domains whose losses do not overlap: 1, 2, ... and 10001, 10002, ... thousandths."""
    rows = []
    for number in range(2 * per_domain):
        domain, rank = ("easy", "hard")[number % 2], number // 2
        nats = (rank + 1 + 10_000 * (number % 2)) / 1000
        name = f"{domain}-{rank:05d}"
        rows.append({"id": name, "domain": domain, "sum_nll_nats": nats * 10, "scored_tokens": 10, "bytes": 40})
    whole = [{name: row.get(name) for name in SCORES_SCHEMA.names} for row in rows]
    schema = SCORES_SCHEMA.with_metadata({POLICY_KEY: b"policy"})
    path.parent.mkdir()
    pq.write_table(pa.Table.from_pylist(whole, schema), path)


def test_openseek_drops_half_a_percent_of_each_domain(works: Works, tmp_path: Path):
    write_scores(tmp_path / "scores/part-00000.parquet", per_domain=2000)
    found = works("buckets", "scores", "--recipe", "openseek-loss-drop", "-o", "b")
    assert found["metrics"]["buckets"]["dropped"] == 20
    rows = pq.read_table(tmp_path / "b/buckets.parquet").to_pylist()
    gone = [row["id"] for row in rows if row["bucket"] == "dropped"]
    assert Counter(name.partition("-")[0] for name in gone) == {"easy": 10, "hard": 10}
    assert min(name for name in gone if name.startswith("hard")) == "hard-01990"  # the highest losses of the domain


def test_the_model_of_a_recipe_is_fetched_to_where_its_command_reads_it(fake: FakeHub, call: Command,  # noqa: F811
                                                                        works: Works, tmp_path: Path):  # fmt: skip
    (tmp_path / "r.yaml").write_text(SYNTH)
    lines = call("check", "r.yaml")[1].splitlines()
    assert "1 to fetch (nothing downloads by itself): loam fetch r.yaml" in lines
    assert "then: loam synth INPUT --recipe r.yaml --model models/name --out FOLDER" in lines
    assert "fetch" in works("check", "r.yaml")["needs"][0].values()
    code, out, _ = call("fetch", "r.yaml")
    assert (code, out.splitlines()) == (0, ["generator: 2 files, 9 bytes below ."])
    assert (tmp_path / "models/name").resolve() == tmp_path / "hub/models--owner--name" / OLD
    (need,) = works("check", "r.yaml")["needs"]
    assert (need["state"], need["commit"]) == ("here", OLD)


def test_without_network_repository_and_host_are_named(
    fails: Fails, call: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    nowhere = "http://127.0.0.1:9"
    monkeypatch.setattr(constants, "ENDPOINT", nowhere)
    url = "hf://models/owner/name"
    fails(
        3,
        f"{url}@main/*.json,*.safetensors,*.txt,*.model cannot be fetched from {nowhere}: ",
        "fetch",
        url,
        "--to",
        "f",
    )
    fails(3, "run the same command again", "fetch", url, "--to", "f")
    monkeypatch.setenv("LOAM_GITHUB", nowhere)
    code, _, err = call("fetch", "ldnoobw", "--to", "f")
    assert (code, "set LOAM_GITHUB to a mirror" in err) == (3, True)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_url_names_both_kinds_of_repository(fails: Fails):
    fails(2, "hf://datasets/owner/name[@revision]/path-or-glob or hf://models/owner/name", "fetch", "hf://dataset/a/b")
