"""Progress where there is no terminal: lines when they are due, and silence for what is quick."""

import pytest

from pipelines import progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch):
    """A clock that the test winds: no terminal, a line due every 30 seconds."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress, "_last_line", now[0])
    monkeypatch.setattr(progress.console, "_force_terminal", False, raising=False)
    monkeypatch.setenv("LOAM_PROGRESS", "30")
    return now


def test_a_line_every_so_many_seconds(clock, capsys):
    with progress.track("filter", 2_000_000, "docs") as tracker:
        for seconds, done in ((10, 1_000), (31, 412_000), (40, 500_000), (62, 900_000)):
            clock[0] = 1000.0 + seconds
            tracker.update(done, "loss 3.4" if seconds == 62 else "")
    assert capsys.readouterr().err.splitlines() == [
        "loam: filter: 412K of 2M docs in 31 s", "loam: filter: 900K of 2M docs in 62 s, loss 3.4"]  # fmt: skip


@pytest.mark.parametrize("setting", ["0", "-1"])
def test_none_when_none_are_wanted(clock, capsys, monkeypatch, setting):
    monkeypatch.setenv("LOAM_PROGRESS", setting)
    clock[0] += 1e6
    progress.line_when_due("anything")
    assert capsys.readouterr().err == ""


def test_what_is_no_number_means_the_default(monkeypatch):
    monkeypatch.setenv("LOAM_PROGRESS", "often")
    assert progress.line_seconds() == progress.LINE_SECONDS


def test_counts_of_tasks_become_lines(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(progress.console, "_force_terminal", False, raising=False)
    monkeypatch.setenv("LOAM_PROGRESS", "0.001")
    monkeypatch.setattr(progress, "POLL_SECONDS", 0.001)
    (tmp_path / "00000").write_text("7")
    (tmp_path / "00001").write_text("5")
    said = ""
    with progress.watch_counts(tmp_path, "filter"):
        while "12 docs" not in said:
            said += capsys.readouterr().err
    assert said.startswith("loam: filter: 12 docs in ")
