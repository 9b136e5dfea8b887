import json
import os
import signal
import subprocess
import sys
import time

import pytest

from pipelines.errors import DataError, StepError
from pipelines.manifest import Counts, check_outputs, read_manifest
from pipelines.store import Outcome, perform


def writer(text):
    def action(work):
        (work / "a").mkdir(exist_ok=True)
        (work / "a" / "x.txt").write_text(text)
        (work / ".scratch" / "left.txt").write_text("gone")
        return Outcome(Counts(docs_in=3, kept=2, dropped={"short": 1}), {"n": 1})

    return action


def never(work):
    raise AssertionError("must not be called")


def test_a_step_is_performed_once(tmp_path):
    first = perform("s", tmp_path / "out", writer("1"), {"k": 1}, {"in": "d"}, "c")
    again = perform("s", tmp_path / "out", never, {"k": 1}, {"in": "d"}, "c")
    assert (first.how, again.how) == ("done", "skipped")
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["manifest.json", "x.txt"]


@pytest.mark.parametrize(("settings", "parents", "code"), [({"k": 2}, {"in": "d"}, "c"), ({"k": 1}, {"in": "e"}, "c"),
                                                           ({"k": 1}, {"in": "d"}, "C")])  # fmt: skip
def test_settings_parents_and_code_make_the_id(tmp_path, settings, parents, code):
    perform("s", tmp_path / "out", writer("1"), {"k": 1}, {"in": "d"}, "c")
    assert perform("s", tmp_path / "out", writer("2"), settings, parents, code).how == "done"
    assert (tmp_path / "out" / "a" / "x.txt").read_text() == "2"


def test_the_same_step_elsewhere_is_linked(tmp_path):
    first = perform("s", tmp_path / "one", writer("1"), {}, {}, "c")
    second = perform("s", tmp_path / "two", never, {}, {}, "c", [tmp_path / "one"])
    assert second.how == "reused"
    assert second.manifest.digest() == first.manifest.digest()
    check_outputs(tmp_path / "two", second.manifest)


def test_a_failure_leaves_no_manifest_and_can_be_run_again(tmp_path):
    with pytest.raises(StepError, match=r"step s failed: ZeroDivisionError.*log: .*error\.log; run again to resume"):
        perform("s", tmp_path / "out", lambda work: Outcome(metrics={"x": 1 / 0}), {}, {}, "c")
    assert not (tmp_path / "out").exists()
    assert perform("s", tmp_path / "out", writer("1"), {}, {}, "c").how == "done"


def test_foreign_folders_are_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.doc").write_text("mine")
    with pytest.raises(DataError, match="was not written by loam"):
        perform("s", tmp_path / "out", writer("1"), {}, {}, "c")
    assert (tmp_path / "out" / "thesis.doc").read_text() == "mine"


def test_a_changed_output_is_found_by_hash_and_a_lost_one_at_once(tmp_path):
    done = perform("s", tmp_path / "out", writer("1"), {}, {}, "c")
    (tmp_path / "out" / "a" / "x.txt").write_text("2")
    with pytest.raises(DataError, match=r"x\.txt: expected sha256 6b86.*, found d473"):
        check_outputs(done.folder, done.manifest)
    (tmp_path / "out" / "a" / "x.txt").unlink()
    with pytest.raises(DataError, match="is missing, though the manifest"):
        check_outputs(done.folder, done.manifest, hashes=False)
    assert perform("s", tmp_path / "out", writer("1"), {}, {}, "c").how == "done"


def test_another_steps_output_is_not_replaced(tmp_path):
    perform("filter", tmp_path / "out", writer("1"), {}, {}, "c")
    with pytest.raises(DataError, match="holds the output of 'filter', this is 'tokenize'"):
        perform("tokenize", tmp_path / "out", never, {}, {}, "c")


def test_a_damaged_neighbour_is_passed_over(tmp_path):
    perform("s", tmp_path / "one", writer("1"), {}, {}, "c")
    (tmp_path / "one" / "a" / "x.txt").unlink()
    assert perform("s", tmp_path / "two", writer("1"), {}, {}, "c", [tmp_path / "one"]).how == "done"


def test_leftovers_of_other_ids_are_removed(tmp_path):
    (tmp_path / ".out.0123456789ab.old" / "a").mkdir(parents=True)
    (tmp_path / ".out.0123456789ab.work" / "a").mkdir(parents=True)
    perform("s", tmp_path / "out", writer("1"), {}, {}, "c")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_counts_must_add_up():
    with pytest.raises(ValueError, match=r"3 documents came in, but .* = 2"):
        Counts(docs_in=3, kept=1, dropped={"a": 1})


def test_a_broken_manifest_is_a_data_error(tmp_path):
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="is not a manifest"):
        read_manifest(tmp_path)
    with pytest.raises(DataError, match=r"has no manifest\.json"):
        read_manifest(tmp_path / "nowhere")


SLOW_STEP = """
import sys, time
from pathlib import Path
from pipelines.store import Outcome, perform

def action(work):
    for n in range(40):
        if not (work / f"{n}.txt").exists():
            (work / f"{n}.tmp").write_text(str(n))
            (work / f"{n}.tmp").rename(work / f"{n}.txt")
            time.sleep(0.02)
    return Outcome()

perform("s", Path(sys.argv[1]), action, {}, {}, "c")
"""


def test_sigkill_at_several_moments_changes_no_byte(tmp_path):
    def start(out):
        return subprocess.Popen([sys.executable, "-c", SLOW_STEP, str(out)])

    assert start(tmp_path / "calm").wait() == 0
    for delay in (0.9, 1.0, 1.1):
        process = start(tmp_path / "killed")
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if (tmp_path / "killed").exists():  # the rename is the last thing: what is there is whole
            check_outputs(tmp_path / "killed", read_manifest(tmp_path / "killed"))
    assert start(tmp_path / "killed").wait() == 0
    left, right = ((tmp_path / name / "manifest.json").read_bytes() for name in ("calm", "killed"))
    assert left == right
    assert len(json.loads(left)["outputs"]) == 40


def test_a_kill_while_scratch_is_removed_repeats_nothing(tmp_path, monkeypatch):
    def die(path, **_):
        (path / "left.txt").unlink()
        raise KeyboardInterrupt  # as good as a kill: nothing after it runs

    with monkeypatch.context() as patch:
        patch.setattr("pipelines.store.shutil.rmtree", die)
        with pytest.raises(KeyboardInterrupt):
            perform("s", tmp_path / "out", writer("1"), {}, {}, "c")
    assert perform("s", tmp_path / "out", never, {}, {}, "c").how == "done"
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["manifest.json", "x.txt"]


def test_two_processes_do_not_share_a_working_folder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", SLOW_STEP, str(tmp_path / "out")])
    while not list(tmp_path.glob(".out.*.work/0.txt")):
        assert process.poll() is None
        time.sleep(0.02)
    with pytest.raises(DataError, match="another loam process"):
        perform("s", tmp_path / "out", never, {}, {}, "c")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
