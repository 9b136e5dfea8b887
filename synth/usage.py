"""Tokens that a call cost, as far as the server's word can be taken.

A server may report no tokens, a negative number or one beyond all measure. Such a report is not believed: the call is
charged what the budget had to admit for it, a bound, so that a budget holds against any server. The answer is marked,
and the ledger says `usage_unknown`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from synth.protocol import Request, Response, Usage

TEMPLATE_TOKENS = 64  # of a server's chat template, until a prompt has been measured
MOST = 1 << 53  # numbers up to here are exact in JSON, in doubles and in 64 bits
NOTHING = Usage()
MARK, UNKNOWN = "usage", "unknown"  # in an answer's `raw`


def reported_usage(said: Any) -> Usage | None:
    """What a server reports, where every number is one of tokens; None where that cannot be believed.

    Args:
        said: the reply's `usage`.
    """
    if not isinstance(said, dict):
        return None
    prompt, completion = _count(said.get("prompt_tokens")), _count(said.get("completion_tokens"))
    if prompt is None or completion is None:
        return None
    details = said.get("prompt_tokens_details")
    cached = _count(details.get("cached_tokens")) if isinstance(details, dict) else None
    return Usage(prompt_tokens=prompt, cached_tokens=min(prompt, cached or 0), completion_tokens=completion)


def usage_bound(contents: Sequence[str], max_tokens: int, template: int = TEMPLATE_TOKENS) -> Usage:
    """The most that a call can take.

    Args:
        contents: of the messages; tokenizers that know every byte never take more than one token for each.
        max_tokens: ceiling of the answer.
        template: most tokens of the chat template.
    """
    prompt = sum(len(text.encode()) for text in contents) + template
    return Usage(prompt_tokens=prompt, completion_tokens=max_tokens)


def charged(request: Request, response: Response, spent: Usage) -> Response:
    """The answer with all that its request cost: also tries that were paid for and brought nothing.

    Args:
        request: what was asked.
        response: the answer as it was read.
        spent: on tries before.
    """
    usage = response.usage
    if usage_unknown(response):
        usage = usage_bound([message.content for message in request.messages], request.max_tokens)
    return response.model_copy(update={"usage": usage_sum(usage, spent)})


def usage_sum(one: Usage, two: Usage) -> Usage:
    """Both together."""
    return Usage(prompt_tokens=one.prompt_tokens + two.prompt_tokens,
                 cached_tokens=one.cached_tokens + two.cached_tokens,
                 completion_tokens=one.completion_tokens + two.completion_tokens)  # fmt: skip


def usage_unknown(response: Response) -> bool:
    """Whether the server did not say, credibly, what the answer cost."""
    return response.raw.get(MARK) == UNKNOWN


def believed(response: Mapping[str, Any], payload: Mapping[str, Any]) -> dict[str, Any]:
    """A logged answer; usage that no server can have meant is replaced by the bound, and marked.

    Args:
        response: as it stands in the log.
        payload: of the request.

    Raises:
        KeyError: or TypeError, ValueError: there is no request, or it is none.
    """
    said = response.get("usage")
    counts = said.values() if isinstance(said, dict) else [None]
    if said is None or all(_count(value) is not None for value in counts):
        return dict(response)
    bound = usage_bound([message["content"] for message in payload["messages"]], payload["max_tokens"])
    return {**response, "usage": bound.model_dump(), "raw": {**response["raw"], MARK: UNKNOWN}}


def _count(value: Any) -> int | None:
    if isinstance(value, float) and value.is_integer():  # some servers write 12.0
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST else None
