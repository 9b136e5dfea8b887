"""Starting, watching and stopping a server, with one that needs no vLLM (whose own: `test_conformance.py`)."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.errors import StepError
from synth import engine_pace, engine_serve
from synth.engine_serve import LOG, ServedVllm
from tests.synth.chat_model import answers, ask

SERVER = """
import json, os, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.reply({})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        said = body["messages"][0]["content"]
        if said == "die":
            print("OutOfMemoryError: no room", flush=True)
            os._exit(1)
        choice = {"message": {"content": f"{os.getpid()}"}, "finish_reason": "stop"}
        usage = {"prompt_tokens": len(said), "completion_tokens": body["max_tokens"]}
        self.reply({"choices": [choice], "usage": usage})

    def reply(self, value):
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


class Stub(ServedVllm):
    """The engine with another server behind it."""

    script = SERVER

    def _command(self, port: int) -> list[str]:
        return [sys.executable, "-c", self.script, str(port)]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_serve, "installed_version", lambda: "0")
    monkeypatch.setattr(engine_pace, "FIRST_WAIT_S", 0.01)


@pytest.fixture
def engine(tiny_model: Path, tmp_path: Path) -> Iterator[Stub]:
    engine = Stub(tiny_model, "float32", tmp_path, retries=1, patience_s=30)
    yield engine
    engine.close()


def test_it_starts_at_the_first_request_and_stays(engine: Stub):
    assert engine.process is None
    one, other = answers(engine, ask("a")), answers(engine, ask("b"))
    assert one[0].text == other[0].text
    assert engine.identity.backend == "vllm serve"


def test_once_closed_it_is_gone(engine: Stub):
    [said] = answers(engine, ask("a"))
    engine.close()
    with pytest.raises(ProcessLookupError):
        os.kill(int(said.text), 0)
    engine.close()  # again is no error
    assert answers(engine, ask("a"))[0].text != said.text


def test_what_is_asked_for_has_room(engine: Stub):
    room = 2048
    tight, none = answers(engine, ask("x" * (room - 12), max_tokens=100), ask("x" * room))
    assert tight.usage.completion_tokens == 10  # two more are the plain template's
    assert (none.finish_reason, none.usage.prompt_tokens) == ("prompt_too_long", room + 2)


def test_a_request_that_kills_the_server_is_quarantined(engine: Stub):
    found = answers(engine, *[ask(content) for content in ("a", "die", "b", "c", "d")])
    assert [response.finish_reason for response in found] == ["stop", "poison", "stop", "stop", "stop"]


def test_alone_it_is_quarantined_too(engine: Stub):
    assert answers(engine, ask("die"))[0].finish_reason == "poison"
    assert answers(engine, ask("a"))[0].finish_reason == "stop"


def test_a_server_that_does_not_start_says_why(engine: Stub):
    engine.script = "raise ValueError('no such dtype.')"
    with pytest.raises(StepError, match=rf"did not start on .*: ValueError: no such dtype; log: .*{LOG}$"):
        answers(engine, ask())
    assert engine.process is None


def test_a_server_that_is_never_ready_is_given_up(engine: Stub):
    engine.script, engine.start_timeout_s = "import sys; sys.stdin.read(); import time; time.sleep(60)", 0.5
    with pytest.raises(StepError, match=r"not ready after 0\.5 s; log: "):
        answers(engine, ask())
    assert engine.process is None


def test_the_log_is_kept(engine: Stub, tmp_path: Path):
    answers(engine, ask("die"))
    assert "OutOfMemoryError: no room" in (tmp_path / LOG).read_text()
