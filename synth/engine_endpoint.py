"""The engine behind a URL: any server that speaks OpenAI's chat completions (vLLM, SGLang, llama.cpp, ollama).

Many requests are under way at once, as many as the server bears (`synth/engine_pace.py`), in an event loop of a thread
of its own; answers are yielded as they finish. What a failure means is decided in `synth/engine_reply.py`. A request
that breaks the server time after time while it answers others is `poison`: an answer like any other, so that a resumed
run does not ask it again. A server that answers nobody stops the step, which resumes when it is run again.
"""

import asyncio
import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

from pipelines.errors import DataError, StepError
from synth.engine_pace import Pace, backoff_s
from synth.engine_reply import Failure, failure_of, read_reply
from synth.protocol import Capabilities, Identity, Message, Request, Response, Usage, request_key
from synth.usage import NOTHING, charged, usage_sum

MOST_BYTES = 64 << 20  # of a reply; no answer is as long
FIRST_ANSWER_S = 15.0  # patience with a server that has never answered: its address may be wrong
CANARY = Request(
    messages=(Message(role="user", content="Say yes."),), max_tokens=1, temperature=0.0, top_p=1.0, seed=0
)  # fmt: skip
"""Asks whether the server answers anybody; its answer is used for nothing."""


@dataclass
class _Call:
    """A request on its way.

    Attributes:
        request: what is asked.
        tries: how often it failed.
        failures: how often for reasons that may lie in the request.
        not_before: when it may be sent (again), by the monotonic clock.
        alone: no other request was under way while this one was.
        problem: of the last failure.
        spent: tokens of tries that were paid for and brought nothing.
    """

    request: Request
    tries: int = 0
    failures: int = 0
    not_before: float = 0.0
    alone: bool = True
    problem: str = ""
    spent: Usage = NOTHING


class EndpointEngine:
    """A chat-completions server.

    Args:
        url: up to and including `/v1`.
        model: name that the server knows the model by.
        concurrency: most requests under way at once.
        timeout_s: for one answer.
        retries: further attempts at a request that failed while the server answered others; then it is poison.
        api_key: sent as bearer token.
        patience_s: how long a server that answers nobody is waited for.
        json_schema: the server enforces `response_format`; where not, it is not sent.
        revision: of the model, as far as it is known; part of every request's key.
    """

    def __init__(
        self,
        url: str,
        model: str,
        concurrency: int = 8,
        timeout_s: float = 300,
        retries: int = 6,
        api_key: str = "",
        patience_s: float = 300,
        json_schema: bool = True,
        revision: str = "",
    ) -> None:
        # the address is no part of the identity: the same model on another port gives the same keys
        self.identity = Identity(model=model, digest=revision, backend="endpoint", version="1")
        self.capabilities = Capabilities(json_schema=json_schema, batch_invariant=False)
        self.latencies_s: list[float] = []
        self.url, self.timeout_s, self.retries, self.patience_s = url.rstrip("/"), timeout_s, retries, patience_s
        self.headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self.pace = Pace(concurrency)
        self.answers = 0

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Response]]:
        """Answer as the server does, at most `concurrency` requests at once.

        Raises:
            StepError: the server answers nobody; what it answered has been yielded before.
            DataError: the server does not know the key, the model or the address.
        """
        out: queue.SimpleQueue[tuple[Request, Response] | BaseException | None] = queue.SimpleQueue()
        loop = asyncio.new_event_loop()
        task = loop.create_task(self._all(list(requests), out))

        def drive() -> None:
            try:
                loop.run_until_complete(task)
                out.put(None)
            except (Exception, asyncio.CancelledError) as error:  # handed to the thread that waits for answers
                out.put(error)
            finally:
                loop.close()

        thread = threading.Thread(target=drive, name="endpoint", daemon=True)
        thread.start()
        try:
            while (got := out.get()) is not None:
                if isinstance(got, BaseException):
                    raise got
                yield got
        finally:
            with contextlib.suppress(RuntimeError):  # the loop has ended by itself
                loop.call_soon_threadsafe(task.cancel)
            thread.join()

    def close(self) -> None:
        """The server is not ours to stop."""

    def prompt_tokens(self, request: Request) -> int | None:
        """Not known before the server says it."""
        return None

    def body(self, request: Request) -> dict[str, Any]:
        """What is sent."""
        return request.payload(self.identity.model)

    async def revive(self) -> bool:
        """Whether the server was started again: nothing can be done for one that is not ours."""
        return False

    async def _all(self, requests: Sequence[Request], out: queue.SimpleQueue[Any]) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=self.pace.ceiling)
        timeout = httpx.Timeout(self.timeout_s, connect=min(10.0, self.timeout_s), pool=None)
        proxies = urlsplit(self.url).hostname not in ("127.0.0.1", "localhost", "::1")
        async with httpx.AsyncClient(headers=self.headers, limits=limits, timeout=timeout, trust_env=proxies) as client:
            await _Batch(self, client, requests, out).run()

    async def post(self, client: httpx.AsyncClient, request: Request) -> Response | Failure:
        """One call."""
        headers = {"Idempotency-Key": request_key(request, self.identity)}  # servers that know it answer once
        try:
            async with asyncio.timeout(self.timeout_s):  # httpx bounds each read, not a reply that drips
                reply, content = await self._fetch(client, self.body(request), headers)
        except TimeoutError:
            return Failure("broken", f"no answer in {self.timeout_s:g} s", strain=True)
        except httpx.HTTPError as error:
            return failure_of(error)
        except (httpx.InvalidURL, UnicodeError) as error:
            return Failure("mistaken", f"{type(error).__name__}: {error}")
        except Exception as error:  # what headers and encodings make the client stumble over speaks against this reply
            return Failure("broken", f"a reply that cannot be read ({type(error).__name__})")
        if content is None:
            return Failure("broken", f"a reply of more than {MOST_BYTES >> 20} MiB", status=reply.status_code)
        if reply.status_code == 403 and not self.answers:  # later on, a filter of contents may say it of one request
            return Failure("mistaken", "HTTP 403", status=403)
        return read_reply(reply, content)

    async def _fetch(
        self, client: httpx.AsyncClient, body: dict[str, Any], headers: dict[str, str]
    ) -> tuple[httpx.Response, bytes | None]:
        """A reply and its body, None where that does not end in time."""
        content = bytearray()
        async with client.stream("POST", f"{self.url}/chat/completions", json=body, headers=headers) as reply:
            async for some in reply.aiter_bytes():
                content += some
                if len(content) > MOST_BYTES:
                    return reply, None
        return reply, bytes(content)


class _Batch:
    """The requests of one call of `generate`, and what the server has shown so far."""

    def __init__(
        self,
        engine: EndpointEngine,
        client: httpx.AsyncClient,
        requests: Sequence[Request],
        out: queue.SimpleQueue[Any],
    ) -> None:
        self.engine, self.client, self.out = engine, client, out
        self.ready = deque(_Call(request) for request in requests)
        self.later: list[_Call] = []
        self.running: dict[asyncio.Task[Response | Failure], tuple[_Call, int, float]] = {}
        self.silent_since = time.monotonic()  # nothing was answered since
        self.paused_until = 0.0

    async def run(self) -> None:
        """Until every request has its answer."""
        try:
            while self.ready or self.later or self.running:
                self._launch()
                await self._wait()
        finally:
            for task in self.running:
                task.cancel()
            replies = await asyncio.gather(*self.running, return_exceptions=True)
            for (call, _, sent), reply in zip(self.running.values(), replies, strict=True):
                if isinstance(reply, Response):  # it came while another failed for good
                    self._answered(call, reply, sent)

    def _launch(self) -> None:
        now = time.monotonic()
        due = [call for call in self.later if call.not_before <= now]
        self.later = [call for call in self.later if call.not_before > now]
        self.ready.extendleft(reversed(due))
        while self.ready and now >= self.paused_until and self._room_for(self.ready[0]):
            call = self.ready.popleft()
            call.alone = not self.running
            for other, _, _ in self.running.values():
                other.alone = False
            task = asyncio.ensure_future(self.engine.post(self.client, call.request))
            self.running[task] = (call, self.engine.pace.launch(), now)

    def _room_for(self, call: _Call) -> bool:
        """Whether a call may be sent now; what failed too often gets a last try alone, so that it pays for no other."""
        if any(self._on_trial(other) for other, _, _ in self.running.values()):
            return False
        return not self.running if self._on_trial(call) else len(self.running) < int(self.engine.pace.limit)

    def _on_trial(self, call: _Call) -> bool:
        return call.failures > self.engine.retries

    async def _wait(self) -> None:
        moments = [call.not_before for call in self.later] + ([self.paused_until] if self.ready else [])
        now = time.monotonic()
        nap = max(0.0, min((at for at in moments if at > now), default=now + 60.0) - now)
        if not self.running:
            await asyncio.sleep(nap)
            return
        done, _ = await asyncio.wait(self.running, timeout=nap, return_when=asyncio.FIRST_COMPLETED)
        ended = [(*self.running.pop(task), task.result()) for task in done]
        for call, _, sent, reply in ended:  # no paid answer is lost to another's failure
            if isinstance(reply, Response):
                self._answered(call, reply, sent)
        for call, ticket, _, reply in ended:
            if isinstance(reply, Failure):
                await self._failed(call, reply, ticket)

    def _answered(self, call: _Call, reply: Response, sent: float) -> None:
        now = time.monotonic()
        self.engine.answers += 1
        self.engine.latencies_s.append(now - sent)
        self.engine.pace.answered()
        self.silent_since = now
        self.out.put((call.request, charged(call.request, reply, call.spent)))

    async def _failed(self, call: _Call, failure: Failure, ticket: int) -> None:
        engine = self.engine
        if failure.kind == "mistaken":
            raise DataError(
                f"{engine.url} does not take our requests for model {engine.identity.model!r} ({failure.problem}); "
                "see engine.url, engine.model_name and engine.api_key_variable"
            )
        if failure.strain:
            engine.pace.strained(ticket)
        if failure.kind == "broken":
            call.failures += 1
            if not failure.status and not failure.strain:
                engine.pace.broken()  # the connection was cut: the server may have died of this request
        call.tries, call.problem, call.spent = call.tries + 1, failure.problem, usage_sum(call.spent, failure.usage)
        if failure.kind in ("unreachable", "broken") and await engine.revive():
            self.silent_since = time.monotonic()  # its start takes as long as it takes
        if failure.kind == "broken" and self._on_trial(call) and call.alone and await self._canary():
            raw = {"status": failure.status, "body": failure.problem}
            self.out.put((call.request, Response(text="", finish_reason="poison", raw=raw, usage=call.spent)))
            return
        self._check_patience(call, failure)
        now, wait = time.monotonic(), failure.wish_s if failure.wish_s is not None else backoff_s(call.tries)
        if failure.kind in ("overloaded", "unreachable"):  # holds for everybody
            self.paused_until = max(self.paused_until, now + wait)
        call.not_before = now + wait
        self.later.append(call)

    def _check_patience(self, call: _Call, failure: Failure) -> None:
        engine = self.engine
        patience = engine.patience_s if engine.answers else min(FIRST_ANSWER_S, engine.patience_s)
        silent = time.monotonic() - self.silent_since
        given_up = silent > patience and (failure.kind != "broken" or self._on_trial(call))
        if given_up or (failure.wish_s or 0.0) > max(patience, engine.patience_s):
            what = f"asks to be left alone for {failure.wish_s:.0f} s" if failure.wish_s and not given_up else (
                f"has answered nothing for {silent:.0f} s")  # fmt: skip
            raise StepError(f"{engine.url} {what} ({call.problem}); all answers so far are kept, run again to resume")

    async def _canary(self) -> bool:
        """Whether the server answers anybody."""
        reply = await self.engine.post(self.client, CANARY)
        return isinstance(reply, Response)
