"""The protocol between synthesis and language models: requests and responses in the shape of OpenAI's chat completions.

An engine says who it is (model digest, backend, version), and a request's key covers that identity together with
everything that goes over the wire: an answer is found again exactly when nothing that made it has changed. Engines
yield answers as they finish, in any order; what order they come in must never matter.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from pipelines.manifest import digest_of

FinishReason = Literal["stop", "length", "prompt_too_long", "refused", "not_recorded"]


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
    """Tokens of a call."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class Response(_Record):
    """One answer.

    Attributes:
        text: what the model wrote.
        finish_reason: `stop` is the only good one; `refused` is an error that trying again would not mend.
        usage: tokens in and out.
        raw: what else a server said, without its clock and its ids.
    """

    text: str
    finish_reason: FinishReason
    usage: Usage = Usage()
    raw: dict[str, Any] = Field(default_factory=dict)


class Identity(_Record):
    """Who answers.

    Attributes:
        model: name that is sent to a server; the same for all folders, whose digest tells them apart.
        digest: sha256 over weights and tokenizer; empty for a server, which shows neither.
        backend: `transformers`, `vllm`, `endpoint`.
        version: of the backend; of what computes, as far as it is known.
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
    """

    json_schema: bool
    batch_invariant: bool


class Engine(Protocol):
    """A language model that answers requests."""

    identity: Identity
    capabilities: Capabilities

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Response]]:
        """Answer every request once, in any order, as answers finish."""
        ...

    def close(self) -> None:
        """Let go of what was started or loaded for the answers."""
        ...


def request_key(request: Request, identity: Identity) -> str:
    """sha256 of what is asked, of whom, and on whose behalf."""
    return digest_of(wire_record(request, identity))


def wire_record(request: Request, identity: Identity) -> dict[str, Any]:
    """What the key covers: the payload as sent, the engine's identity and the request's metadata."""
    return {
        "payload": request.payload(identity.model),
        "engine": identity.model_dump(mode="json"),
        "metadata": dict(sorted(request.metadata.items())),
    }


def encode_chat(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Token ids of a chat, by the tokenizer's chat template where it has one, else as plain text.

    Args:
        tokenizer: of the transformers library.
        messages: the chat; documents in it hold no control tokens (`verification.has_control_tokens`).
    """
    if tokenizer.chat_template:
        chat = [message.model_dump() for message in messages]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    else:
        text = "\n\n".join(message.content for message in messages) + "\n\n"
    return tokenizer(text, add_special_tokens=False)["input_ids"]
