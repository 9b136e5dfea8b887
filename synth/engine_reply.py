"""What a chat-completions server's reply means: an answer, or one of four kinds of failure.

A failure that would happen again (most 4xx) is an answer too, `refused` or `prompt_too_long`, and is logged like any
other. What may pass is told apart by whose fault it can be: an overloaded or unreachable server never speaks against a
request, a broken reply may. A wrong key, name or address stops everything, since no request could do better.
"""

import json
import re
from dataclasses import dataclass
from typing import Any, Literal

import httpx

from synth.engine_pace import wish_of
from synth.protocol import FinishReason, Response, Usage
from synth.usage import MARK, NOTHING, UNKNOWN, reported_usage

OVERLOADED = {429, 503, 529}
PASSING = {408, 409, 425, 500, 502, 504, *range(520, 528)}  # 520 to 527: a proxy lost its server
MISTAKEN = {401, 402, 404, 405, 407}
FINISH: dict[str | None, FinishReason] = {"stop": "stop", "length": "length"}
REASONING = ("reasoning_content", "reasoning")
NO_TEXT = ("tool_calls", "function_call", "refusal")  # what a message may hold instead of a text
BODY_CHARS = 2000  # of a refusal, kept in the log
_TOO_LONG = re.compile(
    r"maximum context length|context_length_exceeded|context (size|window|length)|prompt is too long"
    r"|longer than the maximum|too many (input )?tokens|max_model_len",
    re.IGNORECASE,
)

Kind = Literal["overloaded", "unreachable", "broken", "mistaken"]


@dataclass(frozen=True)
class Failure:
    """Why there is no answer.

    Attributes:
        kind: `overloaded` (429, 503), `unreachable` (no connection), `broken` (5xx, time-out, cut connection, a body
            that is no completion), `mistaken` (key, model or address are wrong).
        problem: in half a line.
        strain: whether fewer requests at once may help.
        wish_s: how long the server asks to be left alone.
        status: HTTP code, 0 without one.
        usage: tokens that were paid for nevertheless.
    """

    kind: Kind
    problem: str
    strain: bool = False
    wish_s: float | None = None
    status: int = 0
    usage: Usage = NOTHING


def failure_of(error: httpx.HTTPError) -> Failure:
    """What an error of the connection means."""
    problem = f"{type(error).__name__}: {error}".rstrip(": ")
    if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout)):
        return Failure("unreachable", problem)
    if isinstance(error, httpx.UnsupportedProtocol):
        return Failure("mistaken", problem)
    return Failure("broken", problem, strain=isinstance(error, httpx.TimeoutException))


def read_reply(reply: httpx.Response, content: bytes) -> Response | Failure:
    """What a reply means.

    Args:
        reply: its status and headers.
        content: its body, which is read as UTF-8 whatever the headers say, as JSON is.
    """
    status, text = reply.status_code, content.decode("utf-8", "replace")
    if reply.is_success:
        return _read_body(text, status)
    said = " ".join(text[:200].split())
    problem = f"HTTP {status}" + (f": {said}" if said else "")
    if status in OVERLOADED:
        return Failure("overloaded", problem, True, wish_of(reply.headers.get("Retry-After")), status)
    if status in PASSING:
        return Failure("broken", problem, status == 504, wish_of(reply.headers.get("Retry-After")), status)
    if status in MISTAKEN or not 400 <= status < 500:
        return Failure("mistaken", problem, status=status)
    finish: FinishReason = "prompt_too_long" if status == 413 or _TOO_LONG.search(text) else "refused"
    return Response(text="", finish_reason=finish, raw={"status": status, "body": text[:BODY_CHARS]})


def _read_body(text: str, status: int) -> Response | Failure:
    body: Any = None
    try:
        body = json.loads(text)
        return _completion(body, status)
    except Exception as error:  # whatever a server writes, nested without end too, speaks against this one reply alone
        problem = f"HTTP {status} with no completion in it ({type(error).__name__})"
        usage = reported_usage(body.get("usage")) if isinstance(body, dict) else None
        return Failure("broken", problem, status=status, usage=usage or NOTHING)


def _completion(body: dict[str, Any], status: int) -> Response:
    choice = body["choices"][0]
    message, usage = choice["message"], reported_usage(body.get("usage"))
    said, ended, model = message.get("content"), choice.get("finish_reason"), body.get("model")
    text, finish = said or "", FINISH.get(ended, "refused")
    if said is None and any(message.get(name) for name in NO_TEXT):  # would come again, whatever the reason given
        finish = "refused"
    elif "content" not in message and not any(name in message for name in REASONING):
        raise KeyError("content")
    thought = next((found for name in REASONING if (found := message.get(name))), None)
    if isinstance(thought, str):  # servers with a reasoning parser take it out of the text
        text = f"<think>{thought}</think>{text}"
    ended, model = (_clean(value) if isinstance(value, str) else None for value in (ended, model))
    raw = {"status": status, "finish_reason": ended, "model": model}
    return Response(
        text=_clean(text), finish_reason=finish, usage=usage or NOTHING,
        raw=raw if usage is not None else {**raw, MARK: UNKNOWN},
    )  # fmt: skip


def _clean(text: str) -> str:
    """Half a surrogate pair, which JSON can spell and UTF-8 cannot, becomes the replacement character."""
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace") if not text.isascii() else text
