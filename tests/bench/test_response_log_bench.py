"""Answers that the response log takes per second: flushed by a thread all the while, against a flush after each."""

import json
import os
import time
from pathlib import Path

import pytest

from synth.engine_endpoint import EndpointEngine
from synth.protocol import Message, Request, Response, Usage, request_key, wire_record
from synth.response_log import ResponseLog

ANSWERS, ROUNDS = 400, 3
ENGINE = EndpointEngine("http://127.0.0.1:1/v1", "m")


def pairs() -> list[tuple[Request, Response]]:
    """Prompts of 3 kB, answers of 1.5 kB."""
    made = []
    for seed in range(ANSWERS):
        messages = (Message(role="user", content=f"{seed} " + "soil and water " * 200),)
        request = Request(messages=messages, max_tokens=900, temperature=0.7, top_p=0.95, seed=seed)
        usage = Usage(prompt_tokens=700, completion_tokens=350)
        made.append((request, Response(text="loam and sand " * 100, finish_reason="stop", usage=usage)))
    return made


def flushed_each(path: Path, made: list[tuple[Request, Response]]) -> None:
    with path.open("ab") as file:
        for request, response in made:
            entry = {"key": request_key(request, ENGINE.identity), **wire_record(request, ENGINE.identity),
                     "response": response.model_dump(mode="json")}  # fmt: skip
            file.write((json.dumps(entry, sort_keys=True, ensure_ascii=False) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())


def logged(folder: Path, made: list[tuple[Request, Response]]) -> None:
    with ResponseLog(folder, ENGINE) as log:
        for request, response in made:
            log.add(request_key(request, ENGINE.identity), wire_record(request, ENGINE.identity), response)


@pytest.mark.bench
def test_answers_per_second(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    made, best = pairs(), {"each": float("inf"), "log": float("inf")}
    for number in range(ROUNDS):
        for name, write in (("each", flushed_each), ("log", logged)):
            started = time.perf_counter()
            write(tmp_path / f"{name}{number}", made)
            best[name] = min(best[name], time.perf_counter() - started)
    with capsys.disabled():
        print(f"\nflush after each {ANSWERS / best['each']:,.0f}/s, response log {ANSWERS / best['log']:,.0f}/s, "
              f"{best['each'] / best['log']:.1f} times as many")  # fmt: skip
