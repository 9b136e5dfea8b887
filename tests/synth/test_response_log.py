import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import DataError, StepError
from pipelines.manifest import digest_of
from synth import response_log
from synth.engine_endpoint import EndpointEngine
from synth.protocol import Message, Request, Response, request_key, wire_record
from synth.response_log import ENGINE as ENGINE_FILE
from synth.response_log import LOG, ResponseLog, forget, read_log

ROOT = Path(__file__).resolve().parents[2]
ENGINE = EndpointEngine("http://127.0.0.1:1/v1", "m")
OTHER = EndpointEngine("http://127.0.0.1:1/v1", "another")
REQUEST = Request(messages=(Message(role="user", content="hi"),), max_tokens=5, temperature=0.5, top_p=0.9, seed=1)


def said(text: str) -> Response:
    return Response(text=text, finish_reason="stop")


def asked(name: str) -> dict:
    return {"metadata": {"name": name}}


def key(name: str) -> str:
    return digest_of(asked(name))


def put(log: ResponseLog, name: str, response: Response) -> None:
    log.add(key(name), asked(name), response)


def fill(folder: Path, *names: str) -> None:
    with ResponseLog(folder, ENGINE) as log:
        for name in names:
            put(log, name, said(f"to {name}"))


def found(folder: Path, *names: str, **options) -> list[str | None]:
    with ResponseLog(folder, ENGINE, **options) as log:
        answers = [log.get(key(name)) for name in names]
    return [answer and answer.text for answer in answers]


def test_answers_are_found_again(tmp_path: Path):
    fill(tmp_path, "a")
    assert found(tmp_path, "a", "b") == ["to a", None]


def test_what_is_published_does_not_tell_the_order_of_answers(tmp_path: Path):
    for name, order in (("one", "acb"), ("two", "cba")):
        with ResponseLog(tmp_path / name / "log", ENGINE) as log:
            for asked_for in order:
                put(log, asked_for, said(f"to {asked_for}"))
            log.publish(tmp_path / name / "out")
    assert (tmp_path / "one" / "out" / LOG).read_bytes() == (tmp_path / "two" / "out" / LOG).read_bytes()
    assert list(read_log(tmp_path / "two" / "out")[2]) == sorted(map(key, "abc"))
    assert json.loads((tmp_path / "two" / "log" / LOG).open().readline())["key"] == key("c")


@pytest.mark.parametrize("lost", [1, 20])
def test_a_torn_line_is_forgotten(tmp_path: Path, lost: int):
    fill(tmp_path, "a", "b")
    whole = (tmp_path / LOG).read_bytes()
    (tmp_path / LOG).write_bytes(whole[:-lost])
    with ResponseLog(tmp_path, ENGINE) as log:
        assert (log.get(key("a")), log.get(key("b"))) == (said("to a"), None)
        put(log, "b", said("to b"))
        assert log.get(key("b")) == said("to b")
    assert (tmp_path / LOG).read_bytes() == whole


@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), max_size=6), cut=st.integers(0, 300)
)
def test_whatever_is_cut_off_the_rest_is_whole(tmp_path_factory: pytest.TempPathFactory, texts: list[str], cut: int):
    folder = tmp_path_factory.mktemp("log")
    with ResponseLog(folder, ENGINE) as log:
        for number, text in enumerate(texts):
            put(log, str(number), said(text))
    data = (folder / LOG).read_bytes()
    kept = data[: max(0, len(data) - cut)]
    (folder / LOG).write_bytes(kept)
    whole = texts[: kept.count(b"\n")]
    assert found(folder, *map(str, range(len(texts)))) == whole + [None] * (len(texts) - len(whole))
    assert (folder / LOG).read_bytes() == kept[: kept.rfind(b"\n") + 1]


@pytest.mark.parametrize("line", [b"{}\n", b"\n", b'{"key": 1, "response": {}}\n', b'"key"\n', b"\xff\n"], ids=repr)
def test_a_broken_line_in_the_middle_is_an_error(tmp_path: Path, line: bytes):
    fill(tmp_path, "a", "b")
    (tmp_path / LOG).write_bytes(line + (tmp_path / LOG).read_bytes())
    with pytest.raises(DataError, match=r"responses\.jsonl:1 is not a response"):
        ResponseLog(tmp_path, ENGINE)


def test_answers_to_questions_no_longer_asked_are_not_published(tmp_path: Path):
    fill(tmp_path / "log", "a", "b")
    with ResponseLog(tmp_path / "log", ENGINE) as log:
        log.get(key("b"))
        log.publish(tmp_path / "out")
    assert list(read_log(tmp_path / "out")[2]) == [key("b")]
    assert list(read_log(tmp_path / "log")[2]) == [key("a"), key("b")]


def test_the_later_of_two_answers_holds(tmp_path: Path):
    with ResponseLog(tmp_path, ENGINE) as log:
        put(log, "a", Response(text="", finish_reason="poison"))
        put(log, "a", said("after all"))
        log.publish(tmp_path / "out")
    assert found(tmp_path, "a") == ["after all"]
    assert (tmp_path / "out" / LOG).read_bytes().count(b"\n") == 1


def test_other_runs_are_read_where_the_same_engine_answered(tmp_path: Path):
    fill(tmp_path / "one", "a")
    with ResponseLog(tmp_path / "two", OTHER) as log:
        put(log, "b", said("to b"))
    earlier = [tmp_path / "one", tmp_path / "two", tmp_path / "nowhere"]
    assert found(tmp_path / "log", "a", "b", earlier=earlier, other_model=True) == ["to a", None]
    with pytest.raises(DataError, match="two holds answers of endpoint 1 another"):
        found(tmp_path / "log", "a", earlier=earlier)


def test_another_model_is_taken_for_a_mistake(tmp_path: Path):
    fill(tmp_path, "a")
    with pytest.raises(DataError, match=r"holds answers of endpoint 1 m, this is endpoint 1 another; .*model-change"):
        ResponseLog(tmp_path, OTHER)
    with ResponseLog(tmp_path, OTHER, other_model=True) as log:
        put(log, "b", said("to b"))
    assert found(tmp_path, "a", "b", other_model=True) == ["to a", "to b"]


def test_a_log_without_answers_is_anybodys(tmp_path: Path):
    fill(tmp_path)
    ResponseLog(tmp_path, OTHER).close()


def test_a_log_that_an_error_left_empty_goes_and_one_with_answers_stays(tmp_path: Path):
    folder = tmp_path / ".s.answers" / "responses"
    with pytest.raises(RuntimeError, match="refused"), ResponseLog(folder, ENGINE):
        raise RuntimeError("refused")
    assert list(tmp_path.iterdir()) == []
    fill(folder, "a")
    with pytest.raises(RuntimeError, match="refused"), ResponseLog(folder, ENGINE):
        raise RuntimeError("refused")
    assert found(folder, "a") == ["to a"]


def test_a_log_is_forgotten_once_all_of_it_is_published(tmp_path: Path):
    fill(tmp_path / "log", "a", "b")
    for used, kept in (("a", True), ("ab", False)):
        with ResponseLog(tmp_path / "log", ENGINE) as log:
            for name in used:
                log.get(key(name))
            log.publish(tmp_path / "out")
        forget(tmp_path / "log", tmp_path / "out")
        assert (tmp_path / "log").exists() == kept
    forget(tmp_path / "log", tmp_path / "out")  # again is no error


HOLD = """
import sys
from collections.abc import Callable
from pathlib import Path
from synth.response_log import ResponseLog
from tests.synth.test_response_log import ENGINE, put, said
log = ResponseLog(Path(sys.argv[1]), ENGINE)
put(log, "a", said("to a"))
print("held", flush=True)
sys.stdin.read()
"""


def test_two_writers_are_one_too_many(tmp_path: Path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    pipe, here = subprocess.PIPE, os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=here) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(DataError, match=rf"is being written by another process \(pid {other.pid}\)"):
            ResponseLog(tmp_path, ENGINE)
        other.send_signal(signal.SIGKILL)
    assert found(tmp_path, "a") == ["to a"]  # the kernel let go, and the answer was on disk


def test_a_full_disk_keeps_what_was_whole(tmp_path: Path):
    fill(tmp_path, "a")
    before = (tmp_path / LOG).read_bytes()
    was = resource.getrlimit(resource.RLIMIT_FSIZE)
    log = ResponseLog(tmp_path, ENGINE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 100, was[1]))  # the next line is cut in its midst
    try:
        with pytest.raises(StepError, match=r"cannot be written .*make room and run again"):
            put(log, "b", said("x" * 1000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, was)
        log.close()
    assert (tmp_path / LOG).read_bytes() == before
    assert found(tmp_path, "a", "b") == ["to a", None]


@pytest.mark.parametrize(
    "change",
    [{"seed": 2}, {"temperature": 0.6}, {"top_p": 1.0}, {"max_tokens": 6}, {"stop": ("x",)},
     {"metadata": {"attempt": "1"}},
     {"response_format": {"type": "json_object"}}, {"messages": (Message(role="user", content="ho"),)}],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_every_part_of_a_request_is_in_its_key(change: dict):
    identity = ENGINE.identity
    assert request_key(REQUEST.model_copy(update=change), identity) != request_key(REQUEST, identity)


@pytest.mark.parametrize("field", ["model", "digest", "backend", "version"])
def test_every_part_of_the_engine_is_in_the_key(field: str):
    other = ENGINE.identity.model_copy(update={field: "other"})
    assert request_key(REQUEST, other) != request_key(REQUEST, ENGINE.identity)


def test_what_came_during_the_last_flush_is_flushed_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sizes, begun = [], threading.Event()

    def flush(descriptor: int) -> None:
        sizes.append(os.fstat(descriptor).st_size)
        begun.set()
        while len(sizes) == 1 and not flusher._ended:  # the first one lasts until the log is closed
            time.sleep(0)

    with (tmp_path / "log").open("ab", buffering=0) as file:
        flusher = response_log._Flusher(file.fileno())
        monkeypatch.setattr(response_log.os, "fsync", flush)
        file.write(b"a")
        flusher.wake()
        begun.wait()
        file.write(b"b")
        flusher.end()
    assert sizes[-1] == 2


def test_a_log_holds_no_address_and_no_clock(tmp_path: Path):
    fill(tmp_path, "a")
    [entry] = [json.loads(line) for line in (tmp_path / LOG).open()]
    usage = {"prompt_tokens": 0, "cached_tokens": 0, "completion_tokens": 0}
    assert entry == {
        "key": key("a"),
        **asked("a"),
        "response": {"text": "to a", "finish_reason": "stop", "raw": {}, "usage": usage},
    }


def changed(folder: Path, change: Callable[[dict], object]) -> None:
    """Change the second of two lines of a log."""
    fill(folder, "a", "b")
    first, second = (folder / LOG).read_text().splitlines()
    change(entry := json.loads(second))
    (folder / LOG).write_text(f"{first}\n{json.dumps(entry)}\n")


@pytest.mark.parametrize(
    ("change", "said"),
    [(lambda entry: entry["response"].update(finish_reason="banana"), "holds no answer .finish_reason: Input should"),
     (lambda entry: entry.update(response={}), "holds no answer .text: Field required"),
     (lambda entry: entry["response"].update(raw={"status": "x"}), "holds no answer"),
     (lambda entry: entry["response"].update(usage=[1]), "holds no answer"),
     (lambda entry: entry.update(payload=3), "the key .* is not that of the request"),
     (lambda entry: entry.update(key=key("a")), "the key .* is not that of the request"),
     (lambda entry: entry["metadata"].update(name="c"), "the key .* is not that of the request")],
)  # fmt: skip
def test_a_line_that_says_something_else_is_named(tmp_path: Path, change: Callable[[dict], object], said: str):
    changed(tmp_path, change)
    for read in (lambda: ResponseLog(tmp_path, ENGINE), lambda: read_log(tmp_path)):
        with pytest.raises(DataError, match=rf"responses\.jsonl:2:? {said}"):
            read()


def test_absurd_usage_on_a_line_is_charged_as_the_bound(tmp_path: Path):
    record = wire_record(REQUEST, ENGINE.identity)
    with ResponseLog(tmp_path, ENGINE) as log:
        log.add(digest_of(record), record, said("yes"))
    whole = (tmp_path / LOG).read_text()
    (tmp_path / LOG).write_text(whole.replace('"prompt_tokens": 0', f'"prompt_tokens": {10**24}'))
    [answer] = read_log(tmp_path)[2].values()
    assert (answer.text, answer.usage.prompt_tokens, answer.usage.completion_tokens) == ("yes", 2 + 64, 5)


@pytest.mark.parametrize("damage", ["engine", "no engine", "no log", "folder"])
def test_a_log_that_lost_a_part_is_never_passed_over(tmp_path: Path, damage: str):
    fill(tmp_path / "log", "a")
    log, engine = tmp_path / "log" / LOG, tmp_path / "log" / ENGINE_FILE
    if damage == "engine":
        engine.write_text("{")
    else:
        (engine if damage == "no engine" else log).unlink()
        if damage == "folder":
            log.mkdir()
    name = "engine.json" if "engine" in damage else "responses.jsonl"
    for read in (lambda: found(tmp_path / "log", "a"), lambda: read_log(tmp_path / "log"),
                 lambda: found(tmp_path / "new", "a", earlier=[tmp_path / "log"])):  # fmt: skip
        with pytest.raises(DataError, match=rf"{name} .* to ask for all answers again"):
            read()


def test_a_log_that_was_only_begun_is_nobodys(tmp_path: Path):
    (tmp_path / LOG).touch()
    assert found(tmp_path, "a") == [None]
    with pytest.raises(DataError, match="holds no response log"):
        read_log(tmp_path / "nowhere")
