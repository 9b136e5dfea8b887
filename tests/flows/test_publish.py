"""Publishing: the card agrees with the files, other libraries load them, a target is replaced whole or not at all."""

import glob
import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ruamel.yaml import YAML

from flows.card import size_category
from flows.publish import PublishSettings, deliver, publish_dataset, publish_model
from flows.publish_rejects import Against
from pipelines.decontaminate import DecontaminateSettings
from pipelines.document import SCHEMA
from pipelines.errors import DataError, RecipeError
from pipelines.files import sha256_of
from pipelines.manifest import Counts, Manifest
from synth.outputs import REJECTS

SETTINGS = PublishSettings(target="dir://nowhere", name="tiny", file_bytes=4000)
ROOT = Path(__file__).resolve().parents[2]


def documents(folder: Path) -> dict[str, list[Path]]:
    """70 documents of two domains; one file has no rows."""
    found = {}
    for domain, counts in (("web/high", (25, 0, 25)), ("code", (20,))):
        found[domain] = []
        for part, count in enumerate(counts):
            rows: list[dict[str, Any]] = [
                {"id": f"{domain}-{part}-{n}", "text": f"text {n} " * 20, "domain": domain, "source": domain[:4],
                 "language": "eng" if n % 5 else None, "metadata": [("k", str(n))], "origin": {"file": "a", "row": n}}
                for n in range(count)
            ]  # fmt: skip
            path = folder / "kept" / domain / f"part-{part:05d}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path)
            found[domain].append(path)
    return found


def manifest(step: str, counts: Counts | None = None, **metrics: object) -> dict[str, Any]:
    made = Manifest(
        step=step, id=f"id-{step}", code="c", settings={"seed": 7}, parents={}, counts=counts, metrics=metrics
    )
    return made.model_dump(mode="json")


FILTERED = Counts(docs_in=123_456, kept=123_000, dropped={"too|short": 455}, rejected={"nul": 1})
LINEAGE = {
    "recipe": "tiny-recipe",
    "funnel": {"filter": manifest("filter", FILTERED)},
    "synth": {"synth": manifest("synth", Counts(docs_in=9, kept=2, rejected={"no answer": 7}), engine="transformers")},
    "licences": {"web/": "CC-BY-4.0"},
}  # fmt: skip


@pytest.fixture
def published(tmp_path: Path) -> Path:
    out = tmp_path / "published"
    publish_dataset(documents(tmp_path), out, LINEAGE, SETTINGS)
    return out


def front(folder: Path) -> dict[str, Any]:
    _, yaml, _ = (folder / "README.md").read_text().split("---\n", 2)
    return YAML(typ="safe").load(yaml)


def test_every_glob_of_the_card_matches_and_every_file_is_matched(published: Path) -> None:
    card = front(published)
    matched: dict[str, set[str]] = {}
    for config in card["configs"]:
        for entry in config["data_files"]:
            files = glob.glob(entry["path"], root_dir=published)
            assert files, entry
            matched.setdefault(config["config_name"], set()).update(files)
    everything = {p.relative_to(published).as_posix() for p in published.rglob("*.parquet")}
    assert matched.pop("all") == everything == set().union(*matched.values())
    assert (card["license"], card["language"], card["size_categories"]) == ("other", ["eng"], ["n<1K"])


def test_rows_and_columns_come_back(published: Path, tmp_path: Path) -> None:
    for domain, files in documents(tmp_path).items():
        mine = [row for f in files for row in pq.read_table(f).to_pylist()]
        names = sorted((published / "data" / domain.replace("/", "-")).glob("*.parquet"))
        theirs = [row for name in names for row in pq.read_table(name).to_pylist()]
        assert len(names) > 1
        assert names[-1].name == f"train-{len(names) - 1:05d}-of-{len(names):05d}.parquet"
        for row in theirs:
            row["metadata"] = [(pair["key"], pair["value"]) for pair in row["metadata"]]
        assert theirs == mine


def test_the_datasets_library_loads_every_config(published: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    for config, rows in (("all", 70), ("web-high", 50), ("code", 20)):
        loaded = datasets.load_dataset(str(published), config, cache_dir=str(tmp_path / "cache"))
        assert {split: part.num_rows for split, part in loaded.items()} == {"train": rows}


def test_held_out_ids_become_the_validation_split(tmp_path: Path) -> None:
    held = pa.table({"id": ["code-0-3", "code-0-4", "absent"]})
    pq.write_table(held, tmp_path / "code.origin.parquet")
    out = tmp_path / "out"
    outcome = publish_dataset(documents(tmp_path), out, LINEAGE, SETTINGS, [tmp_path / "code.origin.parquet"])
    assert outcome.metrics["configs"] == {"web-high": {"train": 50}, "code": {"train": 18, "validation": 2}}
    validation = pq.read_table(next((out / "data" / "code").glob("validation-*.parquet")))
    assert validation["id"].to_pylist() == ["code-0-3", "code-0-4"]
    by_name = {config["config_name"]: [f["split"] for f in config["data_files"]] for config in front(out)["configs"]}
    assert by_name == {"all": ["train", "validation"], "web-high": ["train"], "code": ["train", "validation"]}


def test_the_cards_numbers_are_the_manifests(published: Path) -> None:
    card = (published / "README.md").read_text()
    for line in ("| filter | 123,456 | 123,000 | 455 | 1 |", "| filter | too\\|short | dropped | 455 |",
                 "| synth | no answer | rejected | 7 |", "| web/ | CC-BY-4.0 | 50 |", "| code | not stated | 20 |",
                 "- 14 of 70 documents carry no language label.", "- 2 documents are generated by a model.",
                 "loam run recipe.yaml"):  # fmt: skip
        assert line in card, line


def test_the_receipt_lists_every_file_with_its_hash(published: Path) -> None:
    receipt = json.loads((published / "MANIFEST.json").read_bytes())
    listed = {entry["path"]: entry["sha256"] for entry in receipt["files"]}
    files = [p for p in published.rglob("*") if p.is_file() and p.name != "MANIFEST.json"]
    assert listed == {p.relative_to(published).as_posix(): sha256_of(p) for p in files}
    assert receipt["lineage"]["filter"]["id"] == "id-filter"


def rejects(path: Path) -> Path:
    rows = [
        {"id": f"d{n}", "reason": reason, "stage": stage, "excerpt": f"said {n}", "facts": [("judge", "m")]}
        for n, (reason, stage) in enumerate([("refusal", "chain"), ("refusal", "chain"), ("contaminated", "document")])
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=REJECTS), path)
    return path


def test_rejects_are_a_configuration_of_their_own(tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcome = publish_dataset(documents(tmp_path), out, LINEAGE, SETTINGS, rejects=[rejects(tmp_path / "r.parquet")])
    configs = {c["config_name"]: [f["path"] for f in c["data_files"]] for c in front(out)["configs"]}
    assert configs["rejects"] == ["rejects/*.parquet"]
    matched = {
        name: {file for glob_ in globs for file in glob.glob(glob_, root_dir=out)} for name, globs in configs.items()
    }
    everything = {p.relative_to(out).as_posix() for p in out.rglob("*.parquet")}
    assert matched["all"] == everything - matched["rejects"]
    assert len(matched["rejects"]) == 1
    assert outcome.metrics["rejects"] == 3
    assert "| refusal | chain | 2 |" in (out / "README.md").read_text()
    table = pq.read_table(out / "rejects")
    assert table["excerpt"].to_pylist() == ["said 0", "said 1", ""]  # benchmarks are not spread by rejects
    assert table["facts"].to_pylist()[0] == [{"key": "judge", "value": "m"}]


def test_what_rejects_say_is_searched_before_it_is_published(tmp_path: Path) -> None:
    """An answer that failed at its first stage never met a screen."""
    item = "Which of the forty grey stones by the northern gate of the old town did the mason carve first in spring?"
    (tmp_path / "bench.jsonl").write_text(json.dumps({"id": "q1", "question": item}) + "\n")
    said = ["nothing to hide", f"I know this: {item}", "Write to anna.schmidt@webmail.org today.", "fine"]
    facts = [[], [], [], [("judge_reason", f"It copies: {item}")]]
    rows = [{"id": f"d{n}", "reason": "not_json", "stage": "chain", "excerpt": text, "facts": pairs}
            for n, (text, pairs) in enumerate(zip(said, facts, strict=True))]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows, schema=REJECTS), tmp_path / "r.parquet")
    files, out = documents(tmp_path), tmp_path / "out"
    against = Against([tmp_path / "bench.jsonl"])
    outcome = publish_dataset(files, out, LINEAGE, SETTINGS, [], [tmp_path / "r.parquet"], against)
    told = pq.read_table(out / "rejects").to_pylist()
    assert [(row["excerpt"], row["facts"]) for row in told] == [("nothing to hide", []), *[("", [])] * 3]
    assert (outcome.metrics["rejects"], outcome.metrics["rejects_withheld"]) == (4, 3)
    assert "Of 3 no word is told" in (out / "README.md").read_text()
    looser = Against([tmp_path / "bench.jsonl"], DecontaminateSettings(min_hits=99))
    publish_dataset(files, out, LINEAGE, SETTINGS, [], [tmp_path / "r.parquet"], looser)
    assert [bool(row["excerpt"]) for row in pq.read_table(out / "rejects").to_pylist()] == [True, True, False, True]


def test_licences_are_counted_by_document_and_passage(tmp_path: Path) -> None:
    passages = [{"doc_id": "a", "source": "wiki", "licence": "CC-BY-SA-4.0"}, {"doc_id": "b", "source": "wiki"}]
    metadata = [
        [("licence", "MIT")],
        [("license", "MIT"), ("passages", json.dumps(passages))],
        [("passages", "{")],
        None,
    ]
    rows = [{"id": f"s{n}", "text": "text", "source": "wiki", "metadata": pairs} for n, pairs in enumerate(metadata)]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), tmp_path / "s.parquet")
    lineage = LINEAGE | {"licences": {"wiki": "CC0-1.0"}}
    publish_dataset({"synth": [tmp_path / "s.parquet"]}, tmp_path / "out", lineage, SETTINGS)
    card = (tmp_path / "out" / "README.md").read_text()
    for line in ("| source | licence | documents | passages in generated text |", "| wiki | MIT | 2 | 0 |",
                 "| wiki | CC0-1.0 | 2 | 1 |", "| wiki | CC-BY-SA-4.0 | 0 | 1 |"):  # fmt: skip
        assert line in card, line


def test_without_rejects_there_is_no_such_configuration(published: Path) -> None:
    assert "rejects" not in {config["config_name"] for config in front(published)["configs"]}
    assert not (published / "rejects").exists()


def test_nothing_to_publish_is_a_data_error(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(SCHEMA.empty_table(), path)
    with pytest.raises(DataError, match="no document"):
        publish_dataset({"web": [path]}, tmp_path / "out", {}, SETTINGS)
    with pytest.raises(DataError, match="distinct"):
        publish_dataset({"a/b": [path], "a-b": [path]}, tmp_path / "out", {}, SETTINGS)


@pytest.mark.parametrize(("rows", "category"), [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (10**12, "n>1T")])
def test_size_category(rows: int, category: str) -> None:
    assert size_category(rows) == category


def model_folder(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["Tiny"], "vocab_size": 30}))
    header = json.dumps({"__metadata__": {}, "w": {"shape": [3, 5], "dtype": "BF16", "data_offsets": [0, 30]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(30))
    return folder


def test_a_model_is_copied_with_a_card(tmp_path: Path) -> None:
    facts = {"recipe": "tiny", "train": manifest("train", loss={"final": 3.25}, tokens=1_200_000)}
    outcome = publish_model(model_folder(tmp_path / "hf"), tmp_path / "out", facts, SETTINGS, dataset="org/tiny")
    assert outcome.metrics == {"architectures": ["Tiny"], "vocab_size": 30, "parameters": 15, "dtype": "BF16"}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| loss.final | 3.25 |" in card
    assert "| tokens | 1,200,000 |" in card
    assert front(tmp_path / "out")["datasets"] == ["org/tiny"]
    assert sha256_of(tmp_path / "out" / "model.safetensors") == sha256_of(tmp_path / "hf" / "model.safetensors")


def test_a_real_model_loads_from_where_it_was_published(tiny_model: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    told = publish_model(tiny_model, tmp_path / "out", {"recipe": "tiny"}, SETTINGS).metrics
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert told["parameters"] == sum(p.numel() for p in model.parameters())  # tied weights once


def test_a_folder_without_a_model_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="loam export"):
        publish_model(tmp_path, tmp_path / "out", {}, SETTINGS)
    broken = model_folder(tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"abc")
    with pytest.raises(DataError, match="not a readable model"):
        publish_model(broken, tmp_path / "out2", {}, SETTINGS)


def publication(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    listed = [{"path": name} for name in sorted(files)]
    (folder / "MANIFEST.json").write_text(json.dumps({"files": listed, "content": sorted(files.items())}))
    (folder / "manifest.json").write_text("the step's own")
    return folder


def contents(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_delivery_copies_and_then_does_nothing(tmp_path: Path) -> None:
    folder = publication(tmp_path / "step", {"README.md": "hello", "data/a": "1"})
    assert deliver(folder, f"dir://{tmp_path}/far/away")
    there = tmp_path / "far" / "away"
    assert contents(there).keys() == {"README.md", "data/a", "MANIFEST.json"}
    before = (there / "README.md").stat().st_mtime_ns, there.stat().st_ino
    assert not deliver(folder, f"dir://{there}")
    assert before == ((there / "README.md").stat().st_mtime_ns, there.stat().st_ino)
    assert [p.name for p in there.parent.iterdir()] == ["away"]


def test_a_newer_publication_replaces_the_older_and_damage_is_repaired(tmp_path: Path) -> None:
    target = f"dir://{tmp_path}/to"
    deliver(publication(tmp_path / "old", {"README.md": "old", "gone": "x"}), target)
    new = publication(tmp_path / "new", {"README.md": "new"})
    assert deliver(new, target)
    assert contents(tmp_path / "to") == {k: v for k, v in contents(new).items() if k != "manifest.json"}
    (tmp_path / "to" / "README.md").write_text("damaged")
    assert deliver(new, target)
    assert (tmp_path / "to" / "README.md").read_text() == "new"


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    folder = publication(tmp_path / "step", {"README.md": "hello"})
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match="empty or new folder"):
        deliver(folder, f"dir://{mine}")
    assert contents(mine) == {"thesis.tex": "years of work"}
    deliver(folder, f"dir://{tmp_path}/ours")
    (tmp_path / "ours" / "note.txt").write_text("mine")
    with pytest.raises(DataError, match=r"note\.txt"):
        deliver(folder, f"dir://{tmp_path}/ours")
    with pytest.raises(DataError, match="is a file"):
        deliver(folder, f"dir://{mine}/thesis.tex")


@pytest.mark.parametrize("target", ["hf://org/name", "somewhere", "dir://", ""])
def test_an_unknown_target_is_a_recipe_error(tmp_path: Path, target: str) -> None:
    with pytest.raises(RecipeError, match="dir://"):
        deliver(publication(tmp_path / "step", {"README.md": "x"}), target)


def test_an_unfinished_folder_is_not_delivered(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"MANIFEST\.json"):
        deliver(tmp_path, f"dir://{tmp_path}/to")


def test_a_delivery_killed_at_any_moment_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    versions = [publication(tmp_path / v, {f"f{n}": v * 50_000 for n in range(40)}) for v in ("old", "new")]
    expected = [{k: v for k, v in contents(folder).items() if k != "manifest.json"} for folder in versions]
    target = tmp_path / "to"
    deliver(versions[0], f"dir://{target}")
    program = (
        "import sys; from pathlib import Path; from flows.publish import deliver\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    for folder in sys.argv[2:]: deliver(Path(folder), 'dir://' + sys.argv[1])\n"
    )
    command = [sys.executable, "-c", program, str(target), *map(str, versions)]
    for wait_s in (0.01, 0.03, 0.06, 0.1, 0.15):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(wait_s)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert contents(target) in expected
    deliver(versions[1], f"dir://{target}")
    assert contents(target) == expected[1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new", "old", "to"]
