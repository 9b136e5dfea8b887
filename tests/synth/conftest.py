import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from synth.engine_endpoint import CANARY
from tests.synth.chat_model import make_chat_model

CAVES = (
    "Rainwater that falls on limestone is slightly acidic, because it takes up carbon dioxide from the air.\n"
    "Over 10,000 years the acid dissolves the rock along its cracks. The cracks widen into passages, and streams "
    "begin to run underground. When the water table falls, the passages are left dry and air fills them. Dripping "
    "water then leaves calcite behind, and stalactites grow about 0.13 millimetres a year."
)
GOOD = {
    "segment": json.dumps({"segments": [
        {"start": "Rainwater that falls", "end": "from the air."},
        {"start": "Over 10,000 years", "end": "run underground."},
        {"start": "When the water table", "end": "millimetres a year."},
    ]}),
    "abstract": json.dumps({"abstracts": [
        "Rain dissolves carbon dioxide and becomes a weak acid.",
        "In 10000 years that acid opens cracks in limestone until streams flow below ground.",
        "Once drained, caves fill with air, and drips build stalactites at 0.13 mm yearly.",
    ]}),
    "chain": json.dumps({"steps": [
        {"segment": 1, "thought": "Rain picks up carbon dioxide, so what reaches limestone is a weak acid."},
        {"segment": 2, "thought": "An acid eats limestone where it can enter, so cracks grow into channels."},
        {"segment": 3, "thought": "With the channels drained, drips meet air and can lay down calcite."},
    ]}),
    "question": "How does ordinary rain end up making caves with stalactites in limestone?",
}  # fmt: skip
"""For every stage an answer about `CAVES` that is right."""


def stage_of(prompt: str) -> str:
    """Which of the recipe's prompts this is, by its wording."""
    marks = {"Divide the document": "segment", "what each segment establishes": "abstract",
             "Turn them into a chain": "chain", "one core question": "question"}  # fmt: skip
    return next(stage for mark, stage in marks.items() if mark in prompt)


Fault = Callable[[BaseHTTPRequestHandler], None]
"""What a server does instead of answering."""

Answer = Callable[[dict[str, Any]], tuple[int, dict[str, Any]] | Fault]


def completion(text: str, finish: str = "stop") -> tuple[int, dict[str, Any]]:
    """A chat completion as servers write it, clock and all."""
    return 200, {
        "id": f"chatcmpl-{threading.get_ident()}", "created": 1, "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
    }  # fmt: skip


def cut_connection(handler: BaseHTTPRequestHandler) -> None:
    """As a server that dies: no reply at all."""
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


def cut_body(handler: BaseHTTPRequestHandler) -> None:
    """A reply that ends in the midst of its JSON."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [{"mess')
    cut_connection(handler)


def status(code: int, said: str = "busy", **headers: str) -> Fault:
    """An error, with headers such as `Retry_After`."""

    def reply(handler: BaseHTTPRequestHandler) -> None:
        data = json.dumps({"error": {"message": said}}).encode()
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    return reply


def good(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """The right answer about `CAVES`; the engine's canary gets one, too."""
    asked = body["messages"][0]["content"]
    return completion("yes" if asked == CANARY.messages[0].content else GOOD[stage_of(asked)])


def measured(body: dict) -> tuple[int, dict]:
    """Answers that cost as many tokens as they have bytes, in a fixed measure."""
    code, reply = good(body)
    written = len(reply["choices"][0]["message"]["content"].encode()) // 4
    reply["usage"] = {"prompt_tokens": len(body["messages"][0]["content"].encode()) // 4, "completion_tokens": written}
    return code, reply


class Http(ThreadingHTTPServer):
    """Takes as many connections at once as an engine opens; the library's five would be reset on a busy machine."""

    request_queue_size = 256
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is no news: the library would print its traceback."""


class Server:
    """A chat-completions server on this machine; `answer` decides, `calls` keeps the bodies.

    Attributes:
        calls: bodies of all requests.
        answered: of those that got an answer: what was paid for.
        released: set to let go of replies that hang.
        most: requests that were under way at once.
    """

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.answered: list[dict[str, Any]] = []
        self.released = threading.Event()
        self.now = self.most = 0
        self.lock = threading.Lock()
        self.answer: Answer = good
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    outer.calls.append(body)
                    outer.now += 1
                    outer.most = max(outer.most, outer.now)
                try:
                    self.reply(body, outer.answer(body))
                except (BrokenPipeError, ConnectionResetError):  # the client was killed
                    self.close_connection = True
                finally:
                    with outer.lock:
                        outer.now -= 1

            def reply(self, body: dict[str, Any], said: tuple[int, dict[str, Any]] | Fault) -> None:
                if callable(said):
                    said(self)
                    return
                status, reply = said
                if status == 200:
                    outer.answered.append(body)
                data = json.dumps(reply).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.http = Http(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    def hang(self, handler: BaseHTTPRequestHandler) -> None:
        """Say nothing until released, then cut the connection."""
        self.released.wait()
        cut_connection(handler)


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """A server for as long as the body runs."""
    server = Server()
    thread = threading.Thread(target=server.http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.http.shutdown()
        server.http.server_close()
        thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen2 over bytes."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    vocabulary = {symbol: number for number, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(folder)
    config = Qwen2Config(
        vocab_size=257, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048, initializer_range=0.3, bos_token_id=256, eos_token_id=256,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A random Qwen2 with a chat template and heads that vLLM takes; `Soil is` ends after five tokens."""
    return make_chat_model(tmp_path_factory.mktemp("chat"), tiny_model)


def write_documents(path: Path, texts: dict[str, str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    origin = [{"file": "raw.warc", "member": None, "offset": n, "row": None, "length": 1, "sha256": "0"}
              for n in range(len(texts))]  # fmt: skip
    columns = {"id": list(texts), "text": list(texts.values()), "domain": ["web"] * len(texts),
               "source": ["cc"] * len(texts), "language": ["eng"] * len(texts), "origin": origin}  # fmt: skip
    pq.write_table(pa.table(columns), path)
    return path


@pytest.fixture
def caves(tmp_path: Path) -> Path:
    return write_documents(tmp_path / "in" / "caves.parquet", {"caves": CAVES})
