"""The engine behind a URL: any server that speaks OpenAI's chat completions (vLLM, SGLang, llama.cpp, ollama).

Three kinds of failure are told apart: what passes (no connection, timeout, 429, 5xx) is tried again with growing waits;
what would be refused again (other 4xx) is an answer `refused`, logged like any other; a server that stays away stops
the step, which resumes when it is run again. Several requests are under way at once and answers are yielded as they
finish.
"""

import http.client
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

import xxhash

from pipelines.errors import StepError
from synth.protocol import Capabilities, FinishReason, Identity, Request, Response, Usage, request_key

PASSING = {408, 409, 425, 429, 500, 502, 503, 504}
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 60.0
FINISH: dict[str, FinishReason] = {"stop": "stop", "length": "length"}


class EndpointEngine:
    """A chat-completions server.

    Args:
        url: up to and including `/v1`.
        model: name that the server knows the model by.
        concurrency: requests under way at once.
        timeout_s: for one answer.
        retries: further attempts after a failure that may pass.
        api_key: sent as bearer token.
    """

    capabilities = Capabilities(json_schema=True, batch_invariant=False)

    def __init__(
        self, url: str, model: str, concurrency: int = 8, timeout_s: float = 300, retries: int = 6, api_key: str = ""
    ) -> None:
        # the address is no part of the identity: the same model on another port gives the same keys
        self.identity = Identity(model=model, digest="", backend="endpoint", version="1")
        self.url, self.concurrency, self.timeout_s, self.retries = url.rstrip("/"), concurrency, timeout_s, retries
        self.headers = {"Content-Type": "application/json"} | (
            {"Authorization": f"Bearer {api_key}"} if api_key else {}
        )

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Response]]:
        """Answer as the server does, at most `concurrency` requests at once."""
        waiting, stopped = iter(requests), threading.Event()
        with ThreadPoolExecutor(self.concurrency) as pool:
            running: dict[Future[Response], Request] = {}
            try:
                while True:
                    while len(running) < self.concurrency and (request := next(waiting, None)) is not None:
                        running[pool.submit(self._ask, request, stopped)] = request
                    if not running:
                        return
                    done = wait(running, return_when=FIRST_COMPLETED).done
                    for future in sorted(done, key=lambda f: f.exception() is not None):  # no paid answer is lost
                        yield running.pop(future), future.result()
            finally:
                stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        """The server is not ours to stop."""

    def _ask(self, request: Request, stopped: threading.Event) -> Response:
        problem = ""
        for attempt in range(self.retries + 1):
            try:
                return _parse(self._post(request.payload(self.identity.model)))
            except urllib.error.HTTPError as error:
                said = error.read(2000).decode(errors="replace")
                if error.code not in PASSING:
                    return Response(text="", finish_reason="refused", raw={"status": error.code, "body": said})
                problem, wish = f"HTTP {error.code}", error.headers.get("Retry-After", "")
            except (OSError, http.client.HTTPException, ValueError, KeyError, IndexError, TypeError) as error:
                problem, wish = f"{type(error).__name__}: {error}", ""
            if attempt == self.retries:
                break
            if stopped.wait(float(wish) if wish.isdigit() else _wait_s(request_key(request, self.identity), attempt)):
                break
        raise StepError(f"{self.url} gave no answer in {self.retries + 1} attempts ({problem}); run again to resume")

    def _post(self, payload: dict[str, Any]) -> dict[str, Any]:
        call = urllib.request.Request(f"{self.url}/chat/completions", json.dumps(payload).encode(), self.headers)
        with urllib.request.urlopen(call, timeout=self.timeout_s) as reply:
            return json.loads(reply.read())


def _parse(body: dict[str, Any]) -> Response:
    choice = body["choices"][0]
    usage = body.get("usage") or {}
    return Response(
        text=choice["message"]["content"] or "",
        finish_reason=FINISH.get(choice.get("finish_reason"), "refused"),
        usage=Usage(prompt_tokens=usage.get("prompt_tokens", 0), completion_tokens=usage.get("completion_tokens", 0)),
        raw={"finish_reason": choice.get("finish_reason"), "model": body.get("model")},
    )


def _wait_s(key: str, attempt: int) -> float:
    """Doubling waits with a jitter of half, drawn from the request, so that many requests do not return together."""
    jitter = xxhash.xxh64_intdigest(f"{key}:{attempt}".encode()) / 2**64
    return min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**attempt) * (0.5 + 0.5 * jitter)
