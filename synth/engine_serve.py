"""`vllm serve`, started and stopped by Loam, and asked as any endpoint is.

The server runs under a guard in a process group of its own (`synth/engine_guard.py`), on a free port of this machine,
and writes to a log file that errors name. It may be ready after minutes: its health is asked for until then. A server
that dies is started again, and asked one thing at a time until it answers, so that a request that kills it is found.
Prompts are measured with the model's own tokenizer, so that an answer has the room that other engines give it.
"""

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx

from pipelines.errors import StepError
from pipelines.model_folder import digest_model
from pipelines.vllm_rotation import rotation_on_cpu
from synth import engine_guard, engine_vllm_cli
from synth.engine_endpoint import EndpointEngine
from synth.engine_vllm import BATCH_TOKENS, ENVIRONMENT, check_heads, installed_version, on_gpu, room_of
from synth.protocol import PLAIN_TEMPLATE, Capabilities, Identity, Request, Response, Usage, encode_chat

LOG = "vllm-serve.log"
LOOK_S = 0.25
DEAF_S = 15.0  # without a connection, after it was ready
NEUTRAL = {"top_k": -1, "repetition_penalty": 1.0, "min_p": 0.0}
"""The model's own generation config names its end tokens, which hold;
its habits of sampling do not; part of the identity."""
_ERROR = re.compile(r"\b(\w*(Error|Exception)\b.*)")


class ServedVllm(EndpointEngine):
    """A model folder behind `vllm serve`, which starts at the first request.

    Args:
        model: folder in Hugging Face format.
        dtype: of weights and activations.
        scratch: folder for the server's log.
        start_timeout_s: until it must be ready.
        options: of the endpoint engine.

    Raises:
        MissingExtra: vLLM is not installed.
        DataError: the folder is no model.
    """

    def __init__(self, model: Path, dtype: str, scratch: Path, start_timeout_s: float = 900, **options: Any) -> None:
        super().__init__("http://127.0.0.1:0/v1", "local", **options)
        neutral = " ".join(f"{name} {value:g}" for name, value in NEUTRAL.items())
        version = f"{installed_version()} {dtype} {neutral}"
        self.identity = Identity(model="local", digest=digest_model(model), backend="vllm serve", version=version)
        self.capabilities = Capabilities(json_schema=True, batch_invariant=False)
        self.folder, self.dtype, self.log, self.start_timeout_s = model, dtype, scratch / LOG, start_timeout_s
        self.room = room_of(model)
        self.process: subprocess.Popen[bytes] | None = None
        self.tokenizer: Any = None
        self._starts, self._answers_then = 0, 0

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Response]]:
        """Answer as the server does; a prompt without room for an answer is turned down before it is sent.

        Raises:
            StepError: the server does not start, or dies time after time; names its log.
        """
        if self.process is None:
            self._start()
        fitting = []
        for request in requests:
            if (tokens := self.prompt_tokens(request)) + 1 > self.room:
                usage = Usage(prompt_tokens=tokens)
                yield request, Response(text="", finish_reason="prompt_too_long", usage=usage)
            else:
                fitting.append(request)
        yield from super().generate(fitting)

    def body(self, request: Request) -> dict[str, Any]:
        """The payload, with the ceiling that the prompt leaves room for: vLLM refuses more.

        The key need not cover the lower ceiling: it follows from the payload and the model's folder, which it covers.
        """
        limit = min(request.max_tokens, self.room - self.prompt_tokens(request))
        return request.payload(self.identity.model) | {"max_tokens": limit}

    def close(self) -> None:
        """Stop the server; the next request would start it again."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait()
            self.process = None

    async def revive(self) -> bool:
        """Start the server again if it has died, or has been deaf for a while: its engine may die before it does.

        Raises:
            StepError: it dies time after time without an answer in between.
        """
        if await asyncio.to_thread(self._hears):
            return False
        self._starts = 0 if self.answers > self._answers_then else self._starts
        if self._starts > self.retries + 2:
            raise StepError(f"vllm serve died {self._starts} times without an answer{self._said()}")
        await asyncio.to_thread(self._start)
        return True

    def _hears(self) -> bool:
        """Whether the server lives; one that is about to die, or stays deaf for a while, does not."""
        until = time.monotonic() + DEAF_S
        while self.process is not None and self.process.poll() is None and time.monotonic() < until:
            if self._healthy():
                return True
            time.sleep(LOOK_S)
        return False

    def _healthy(self) -> bool:
        try:
            return httpx.get(f"{self.url.removesuffix('/v1')}/health", timeout=5, trust_env=False).is_success
        except httpx.HTTPError:
            return False

    def prompt_tokens(self, request: Request) -> int:
        """By the model's own tokenizer."""
        if self.tokenizer is None:
            from transformers import AutoTokenizer

            self.tokenizer = AutoTokenizer.from_pretrained(str(self.folder), local_files_only=True)
        return len(encode_chat(self.tokenizer, request.messages))

    def _start(self) -> None:
        self.close()
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}/v1"
        self._starts, self._answers_then = self._starts + 1, self.answers
        self.log.parent.mkdir(parents=True, exist_ok=True)
        guard = [sys.executable, engine_guard.__file__, str(os.getpid())]
        environment = {**ENVIRONMENT, **os.environ}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*guard, *self._command(port)], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
                start_new_session=True,
            )  # fmt: skip
        try:
            self._await_health()
        except BaseException:
            self.close()
            raise

    def _command(self, port: int) -> list[str]:
        command = [
            sys.executable, engine_vllm_cli.__file__, "serve", str(self.folder), "--host", "127.0.0.1",
            "--port", str(port), "--served-model-name", "local", "--dtype", self.dtype, "--load-format", "safetensors",
            "--max-model-len", str(self.room), "--seed", "0", "--disable-log-stats", "--enable-prompt-tokens-details",
            "--override-generation-config", json.dumps(NEUTRAL),
        ]  # fmt: skip
        if not _has_template(self.folder):
            template = self.log.with_name("plain.jinja")
            template.write_text(PLAIN_TEMPLATE, encoding="utf-8")
            command += ["--chat-template", str(template)]
        if not on_gpu():
            check_heads(self.folder)
            # a prompt in parts rewinds its generator after each, which the CPU's generators cannot do
            command += ["--enforce-eager", "--no-enable-chunked-prefill",
                        "--compilation-config", json.dumps(rotation_on_cpu(self.folder)),
                        "--max-num-batched-tokens", str(max(self.room, BATCH_TOKENS))]  # fmt: skip
        return command

    def _await_health(self) -> None:
        until = time.monotonic() + self.start_timeout_s
        assert self.process is not None
        while time.monotonic() < until:
            if self.process.poll() is not None:
                raise StepError(f"vllm serve did not start on {self.folder}{self._said()}")
            if self._healthy():
                return
            time.sleep(LOOK_S)
        raise StepError(f"vllm serve was not ready after {self.start_timeout_s:g} s{self._said()}")

    def _said(self) -> str:
        """What its log says went wrong, and where the log is."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines() if self.log.is_file() else []
        errors = [match.group(1) for line in lines if (match := _ERROR.search(line))]
        return (f": {errors[-1][:300].rstrip('.')}" if errors else "") + f"; log: {self.log}"


def _has_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file():
        return True
    config = folder / "tokenizer_config.json"
    return config.is_file() and bool(json.loads(config.read_bytes()).get("chat_template"))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
