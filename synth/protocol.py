"""The protocol between synthesis and language models: requests and responses in the shape of OpenAI's chat completions.

An engine says who it is (model digest, backend, version), and a request's key covers that identity together with the
request as it was asked: an answer is found again exactly when neither has changed. What an engine makes of a request
besides (a ceiling cut to the room that the prompt leaves) must follow from these two alone. Of a server nothing is
known but its model's name and what `engine.revision` says: who changes the model behind it changes that, too. Engines
yield answers as they finish, in any order; what order they come in must never matter.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from pipelines.manifest import digest_of

FinishReason = Literal["stop", "length", "prompt_too_long", "refused", "poison", "not_recorded"]
ErrorClass = Literal["", "deterministic", "poison", "not_recorded"]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Message(_Record):
    """One turn of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


class Sampling(_Record):
    """How tokens are drawn.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_p: share of the probability that tokens are drawn from.
        max_tokens: ceiling for every stage; a prompt's own ceiling holds where it is lower.
    """

    temperature: float = Field(default=0.7, ge=0)
    top_p: float = Field(default=0.95, gt=0, le=1)
    max_tokens: int | None = Field(default=None, ge=1)


class Request(_Record):
    """One call.

    Attributes:
        messages: the chat so far.
        max_tokens: ceiling of the answer.
        temperature: 0 takes the likeliest token.
        top_p: share of the probability that tokens are drawn from.
        seed: of the draw; the same request with another seed is another request.
        stop: strings that end the answer (and are left out of it).
        response_format: JSON schema that the answer must follow, enforced where the engine can.
        metadata: who asks (document, stage, recipe, attempt); part of the key, never sent.
    """

    messages: tuple[Message, ...]
    max_tokens: int
    temperature: float
    top_p: float
    seed: int
    stop: tuple[str, ...] = ()
    response_format: dict[str, Any] | None = None
    metadata: dict[str, str] = Field(default_factory=dict)

    def payload(self, model: str) -> dict[str, Any]:
        """The body of a chat-completions call."""
        body = self.model_dump(mode="json", exclude={"metadata", "response_format", "stop"})
        optional = {"stop": list(self.stop), "response_format": self.response_format}
        return {"model": model, **body, **{key: value for key, value in optional.items() if value}}


class Usage(_Record):
    """Tokens of a call.

    Attributes:
        prompt_tokens: read.
        cached_tokens: of these, how many an earlier call had left in the server's cache, as far as it says.
        completion_tokens: written; servers count the end token, engines in this process do not.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


class Response(_Record):
    """One answer.

    Attributes:
        text: what the model wrote.
        finish_reason: `stop` is the only good one; `refused` and `prompt_too_long` are errors that trying again would
            not mend; `poison` broke the server again and again while it answered others.
        usage: tokens in and out.
        raw: what else a server said (its HTTP code as `status`), without its clock and its ids.
    """

    text: str
    finish_reason: FinishReason
    usage: Usage = Usage()
    raw: dict[str, Any] = Field(default_factory=dict)

    @property
    def error_class(self) -> ErrorClass:
        """What kind of failure it is, if one; answers that hit their ceiling are none."""
        known: dict[str, ErrorClass] = {"refused": "deterministic", "prompt_too_long": "deterministic",
                                        "poison": "poison", "not_recorded": "not_recorded"}  # fmt: skip
        return known.get(self.finish_reason, "")


class Identity(_Record):
    """Who answers.

    Attributes:
        model: name that is sent to a server; the same for all folders, whose digest tells them apart.
        digest: sha256 over weights and tokenizer; of a server, which shows neither, its revision in the user's words.
        backend: `transformers`, `vllm`, `endpoint`.
        version: of the backend, and of what its sums depend on, as far as it is known.
    """

    model: str
    digest: str
    backend: str
    version: str


class Capabilities(_Record):
    """What an engine can promise.

    Attributes:
        json_schema: enforces `response_format`.
        batch_invariant: the same request gives the same answer, whatever else is in the batch.
        literal_text: marks such as `<|im_end|>` inside a message are read as the characters that they are.
    """

    json_schema: bool
    batch_invariant: bool
    literal_text: bool = False


class Engine(Protocol):
    """A language model that answers requests.

    Attributes:
        identity: who answers.
        capabilities: what it can promise.
        latencies_s: of every answer so far, where the engine sees them one by one; for the journal alone.
    """

    identity: Identity
    capabilities: Capabilities
    latencies_s: list[float]

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Response]]:
        """Answer every request once, in any order, as answers finish."""
        ...

    def prompt_tokens(self, request: Request) -> int | None:
        """Tokens of a request's prompt, template and all; None where only the answer will tell."""
        ...

    def close(self) -> None:
        """Let go of what was started or loaded for the answers."""
        ...


def request_key(request: Request, identity: Identity) -> str:
    """sha256 of what is asked, of whom, and on whose behalf."""
    return digest_of(wire_record(request, identity))


def wire_record(request: Request, identity: Identity) -> dict[str, Any]:
    """What the key covers: the payload as asked, the engine's identity and the request's metadata."""
    return {
        "payload": request.payload(identity.model),
        "engine": identity.model_dump(mode="json"),
        "metadata": dict(sorted(request.metadata.items())),
    }


PLAIN_TEMPLATE = "{% for message in messages %}{{ message.content }}\n\n{% endfor %}"
"""The chat of a model that has no template of its own."""


def encode_chat(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Token ids of a chat, by the tokenizer's chat template where it has one, else as plain text.

    What looks like a control token inside a message is read as text: only the template may write control tokens.

    Args:
        tokenizer: of the transformers library.
        messages: the chat.
    """
    contents = [message.content for message in messages]
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    if not any(token in content for token in special for content in contents):
        return tokenizer(_render(tokenizer, contents, messages), add_special_tokens=False)["input_ids"]
    mark = next(m for n in itertools.count() if not any((m := f"[[slot {n}]]") in content for content in contents))
    marks = [f"{mark}{number};" for number in range(len(messages))]
    rest, ids = _render(tokenizer, marks, messages), []
    for content, place in zip(contents, marks, strict=True):
        before, found, rest = rest.partition(place)
        ids += tokenizer(before, add_special_tokens=False)["input_ids"]
        if found:
            ids += tokenizer(content, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return ids + tokenizer(rest, add_special_tokens=False)["input_ids"]


def _render(tokenizer: Any, contents: Sequence[str], messages: Sequence[Message]) -> str:
    chat = [{"role": m.role, "content": text} for m, text in zip(messages, contents, strict=True)]
    if not tokenizer.chat_template:
        return "".join(f"{turn['content']}\n\n" for turn in chat)
    return tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
