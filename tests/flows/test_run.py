"""The whole way, raw text to a published model: killed and resumed, with any number of workers, with Prefect or not."""

import contextlib
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from flows.runner import JOURNAL
from flows.tracing import trace_sequence
from pipelines.journal import KEPT_JOURNAL, read_journal
from pipelines.manifest import MANIFEST, check_outputs, read_manifest
from tests.flows.conftest import TINY, Loam, only

MACHINE_WRITES = {JOURNAL, KEPT_JOURNAL, ".lock"}


def steps_with_seconds(run: Path) -> dict[str, float]:
    return {event["step"]: event["seconds"] for event in read_journal(run / JOURNAL) if event["event"] == "step"}


def contents(run: Path) -> dict[str, str]:
    files = (path for path in run.rglob("*") if path.is_file() and MACHINE_WRITES.isdisjoint(path.parts))
    return {path.relative_to(run).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def assert_same(found: Path, expected: Path) -> None:
    """Every file of the steps that `found` has is byte for byte that of `expected`; nothing else lies there."""
    steps = {path.name for path in found.iterdir() if path.is_dir()}
    wanted = {
        name: digest for name, digest in contents(expected).items() if name.split("/")[0] in {*steps, "recipe.yaml"}
    }
    got = contents(found)
    different = sorted(name for name in wanted.keys() | got.keys() if wanted.get(name) != got.get(name))
    assert not different, f"{len(different)} files differ: {different[:5]}"
    assert sum(name.endswith(MANIFEST) for name in got) == len(steps) > 2


def in_session(leader: int) -> list[int]:
    """Processes that live in the session that a process leads or led."""
    listed = subprocess.run(["ps", "-e", "-o", "pid=,sess=,stat="], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in listed.splitlines()]
    return [int(pid) for pid, session, state in rows if int(session) == leader and not state.startswith("Z")]


def moments_of(undisturbed: Path, number: int, seed: int, until: str | None = None) -> Iterator[tuple[str, float]]:
    """Random moments, one in each `number`-th of the time that a run takes: a step, and seconds after its beginning."""
    seconds = steps_with_seconds(undisturbed)
    names = list(seconds)[: list(seconds).index(until) + 1 if until else None]
    total = sum(seconds[name] for name in names)
    chance = random.Random(seed)
    for part in range(number):
        moment = total * (part + chance.random()) / number
        for name in names:
            if moment < seconds[name]:
                yield name, moment
                break
            moment -= seconds[name]


def kill_at(loam: Loam, arguments: tuple[object, ...], step: str, delay: float, whole_group: bool) -> bool:
    """Start a run and send SIGKILL so long after a step began; whether it was still running."""
    process = loam.start(*arguments)
    patience = time.monotonic() + 300
    begun = [f"runs/tiny@*/.{step}.*.work", f"runs/tiny@*/{step}"]
    while process.poll() is None and not any(any(loam.folder.glob(pattern)) for pattern in begun):
        assert time.monotonic() < patience
        time.sleep(0.01)
    time.sleep(delay)
    alive = process.poll() is None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL) if whole_group else process.kill()
    process.communicate()  # returns when the last process that holds the pipes is gone
    while left := in_session(process.pid):
        assert time.monotonic() < patience, f"processes {left} outlive loam"
        time.sleep(0.05)
    return alive


def kill_often(loam: Loam, undisturbed: Path, kills: int, seed: int, until: str | None = None) -> Path:
    """Kill a run at random moments, in turn the process alone and its whole group; then let it end."""
    arguments = ("run", TINY, "--no-prefect", "--workers", 2, *(("--until", until) if until else ()))
    moments = moments_of(undisturbed, kills, seed, until)
    hits = [kill_at(loam, arguments, *moment, whole_group=turn % 2 == 0) for turn, moment in enumerate(moments)]
    assert sum(hits) >= kills - 1  # a step may have been quicker than on the undisturbed run
    return loam.run_tiny(*arguments[2:])


def test_a_whole_run_is_sealed_and_running_again_does_nothing(undisturbed: Path) -> None:
    loam = Loam(undisturbed.parents[1])
    before = contents(undisturbed)
    for step in steps_with_seconds(undisturbed):
        check_outputs(undisturbed / step, read_manifest(undisturbed / step))
    printed = loam.ok("run", TINY, "--no-prefect", "--workers", 2)
    assert printed.startswith(f"nothing to do: all {len(steps_with_seconds(undisturbed))} steps of runs/tiny@")
    assert contents(undisturbed) == before


def test_show_prints_one_json_document_and_a_table(undisturbed: Path) -> None:
    loam = Loam(undisturbed.parents[1])
    shown = json.loads(loam.ok("show", undisturbed.name, "--json"))
    assert list(shown["steps"]) == list(steps_with_seconds(undisturbed))
    for step in shown["steps"].values():
        if counts := step["counts"]:
            assert counts["docs_in"] == counts["kept"] + sum(counts["dropped"].values()) + sum(
                counts["rejected"].values()
            )
    printed = loam.ok("show", "tiny")
    assert "proposal: the same mixture as prior" in printed or "proposal against prior: " in printed
    assert "train on the " in printed


def test_every_shard_verifies(undisturbed: Path) -> None:
    prefixes = sorted(path.with_suffix("") for path in undisturbed.glob("*tokens/**/*.idx"))
    assert len(prefixes) > 8
    from pipelines.verify import verify

    assert [prefix.name for prefix in prefixes if not verify(prefix).passed] == []
    report = json.loads(Loam(undisturbed).ok("verify", prefixes[0], "--json"))
    assert report["passed"] is True


def test_random_rows_of_every_domain_trace_back_to_raw_bytes(undisturbed: Path) -> None:
    texts = {row["id"]: row["text"] for path in (undisturbed / "decontaminate" / "kept").rglob("*.parquet")
             for row in pq.read_table(path, columns=["id", "text"]).to_pylist()}  # fmt: skip
    chance, domains = random.Random(5), set()
    for sidecar in sorted((undisturbed / "tokens").rglob("*.origin.parquet")):
        prefix = sidecar.with_name(sidecar.name.removesuffix(".origin.parquet"))
        for row in {chance.randrange(pq.read_metadata(sidecar).num_rows) for _ in range(3)}:
            found = trace_sequence(prefix, row, [])
            assert hashlib.sha256(found["bytes"]).hexdigest() == found["origin"]["sha256"]
            domains.add(domain := found["domain"].split("/")[0])
            if domain != "reference":  # a page's text is not spelled as in its HTML
                raw = found["bytes"].decode()
                raw = json.loads(raw)["text"] if domain == "readme" else raw
                assert texts[found["id"]].split()[:3] == raw.removeprefix("\ufeff").split()[:3]
    assert domains == {"code", "licences", "readme", "reference"}


def test_trace_writes_the_raw_bytes_to_stdout(undisturbed: Path) -> None:
    prefix = only(sorted((undisturbed / "plain_tokens" / "train").glob("code.idx"))).with_suffix("")
    loam = Loam(undisturbed.parents[1])
    found = json.loads(loam.ok("trace", f"{prefix}:0", "--json"))
    raw = loam.ok("trace", f"{prefix}:0", "--raw").encode()
    assert hashlib.sha256(raw).hexdigest() == found["origin"]["sha256"]


def test_the_report_needs_nothing_but_itself(undisturbed: Path) -> None:
    page = (undisturbed / "report" / "report.html").read_text()
    addresses = re.findall(r"""(?:src|href)\s*=\s*["']?([^\s"'>]+)|url\(["']?([^)"']+)""", page)
    assert {found for pair in addresses for found in pair if found and not found.startswith(("#", "data:"))} == set()
    assert "<script" not in page
    assert "@import" not in page
    assert page.count("<svg") >= 4


def test_dataset_and_model_are_delivered(undisturbed: Path) -> None:
    loam = Loam(undisturbed.parents[1])
    here = loam.folder / "published" / "tiny"  # what the recipe says
    assert (here / "dataset" / "README.md").is_file()
    assert sum(pq.read_metadata(path).num_rows for path in here.rglob("*.parquet")) > 20
    loam.ok("publish", undisturbed, "--target", f"dir://{loam.folder}/elsewhere")
    assert contents(loam.folder / "elsewhere") == contents(here)
    from transformers import AutoModelForCausalLM

    assert AutoModelForCausalLM.from_pretrained(here / "model").config.vocab_size >= 512


def test_a_killed_build_resumes_to_the_same_bytes(loam: Loam, undisturbed: Path) -> None:
    assert_same(kill_often(loam, undisturbed, kills=2, seed=1, until="decontaminate"), undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3])
def test_a_run_killed_all_along_the_way_resumes_to_the_same_bytes(loam: Loam, undisturbed: Path, seed: int) -> None:
    assert_same(kill_often(loam, undisturbed, kills=6, seed=seed), undisturbed)


def test_three_workers_write_the_same_bytes(loam: Loam, undisturbed: Path) -> None:
    assert_same(loam.run_tiny("--no-prefect", "--workers", 3), undisturbed)


def test_prefect_changes_no_byte(loam: Loam, undisturbed: Path) -> None:
    assert_same(loam.run_tiny("--workers", 2, "--until", "dedup_near"), undisturbed)


@pytest.mark.slow
def test_prefect_changes_no_byte_of_a_whole_run(loam: Loam, undisturbed: Path) -> None:
    assert_same(loam.run_tiny("--workers", 2), undisturbed)
