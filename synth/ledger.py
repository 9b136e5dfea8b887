"""The ledger: what every request cost and what became of it; and the budget that ends a run before it costs too much.

A budget holds for all that a run uses, answers from the log included, so that it falls at the same place however often
the run was killed. Requests are admitted in their fixed order, as many at once as would stay within the budget if each
took all the tokens that it may. That is a bound where a prompt's template has been measured: of a stage one request is
asked alone; no template is longer than a prompt that holds it, and no tokenizer takes more than a token for a byte. The
request that measures is bound by the model's own tokenizer, where it is at hand. Of a server it is a guess: a template
of more than `TEMPLATE_TOKENS`, or than earlier stages showed, may pass the budget by what that one request takes more;
nothing more is asked then. What was not asked is counted as `budget`; a later run with more finds every answer in the
log. The ledger holds no clock.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pipelines.errors import RecipeError
from synth.engines import EngineSettings
from synth.protocol import Identity, Request, Response, Usage
from synth.usage import TEMPLATE_TOKENS, usage_unknown

PROBE = 16  # documents that show what one costs, before the budget is shared out

LEDGER = pa.schema(
    [
        ("request_key", pa.string()),
        ("doc_id", pa.string()),
        ("stage", pa.string()),
        ("attempt", pa.int64()),
        ("status", pa.string()),  # answered, truncated, refused, prompt_too_long, poison, not_recorded
        ("http_code", pa.int64()),  # null where no server answered
        ("error_class", pa.string()),  # empty, deterministic, poison, not_recorded, usage_unknown
        ("model", pa.string()),
        ("prompt_tokens", pa.int64()),
        ("cached_prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
        ("finish_reason", pa.string()),
        ("cost_usd", pa.float64()),  # null without prices
        ("json_read", pa.string()),  # strict, or what had to be mended; empty for prose and for what is no JSON
        ("verdict", pa.string()),  # empty where the answer passed, else the reason
    ]
)


@dataclass(frozen=True)
class Row:
    """One line of the ledger; its columns are those of `LEDGER`."""

    request_key: str
    doc_id: str
    stage: str
    attempt: int
    status: str
    http_code: int | None
    error_class: str
    model: str
    prompt_tokens: int
    cached_prompt_tokens: int
    completion_tokens: int
    finish_reason: str
    cost_usd: float | None
    json_read: str = ""
    verdict: str = ""

    @property
    def tokens(self) -> int:
        """Read and written."""
        return self.prompt_tokens + self.completion_tokens

    @classmethod
    def of(
        cls, key: str, request: Request, response: Response, identity: Identity, prices: "Prices",
        json_read: str = "", verdict: str = "",
    ) -> "Row":  # fmt: skip
        """The line of an answer.

        Args:
            key: of the request.
            request: its metadata say who asked.
            response: the answer.
            identity: who answered.
            prices: of tokens.
            json_read: how its JSON was read.
            verdict: why it was rejected.
        """
        usage, about = response.usage, request.metadata
        status = {"stop": "answered", "length": "truncated"}.get(response.finish_reason, response.finish_reason)
        return cls(
            request_key=key, doc_id=about["doc_id"], stage=about["stage"], attempt=int(about["attempt"]),
            status=status, http_code=response.raw.get("status") or None,
            error_class=response.error_class or ("usage_unknown" if usage_unknown(response) else ""),
            model=f"{identity.model} {identity.digest[:16]}".strip(), prompt_tokens=usage.prompt_tokens,
            cached_prompt_tokens=usage.cached_tokens, completion_tokens=usage.completion_tokens,
            finish_reason=response.finish_reason, cost_usd=prices.of(usage), json_read=json_read, verdict=verdict,
        )  # fmt: skip


@dataclass(frozen=True)
class Prices:
    """US dollars per million tokens; None where they are not known."""

    prompt: float | None
    completion: float | None

    @classmethod
    def from_settings(cls, settings: EngineSettings) -> "Prices":
        """Those of the recipe; one that is missing beside the other is nothing."""
        prompt, completion = settings.price_per_million_prompt, settings.price_per_million_completion
        known = prompt is not None or completion is not None
        return cls(prompt or 0.0, completion or 0.0) if known else cls(None, None)

    def of(self, usage: Usage) -> float | None:
        """What a call cost."""
        if self.prompt is None or self.completion is None:
            return None
        return (usage.prompt_tokens * self.prompt + usage.completion_tokens * self.completion) / 1e6


@dataclass
class Budget:
    """How much may still be spent.

    Attributes:
        tokens: read and written together; None for no end.
        usd: in US dollars; None for no end.
        prices: of tokens.
        measure: tokens of a request's prompt, where that is known before it is asked.
        ended: nothing more is asked: something did not fit.
        unmet: what that would have taken at most, and what was left.
    """

    tokens: int | None
    usd: float | None
    prices: Prices
    measure: Callable[[Request], int | None] = lambda request: None
    ended: bool = False
    unmet: dict[str, float] = field(default_factory=dict)
    _spent_tokens: int = 0
    _spent_usd: float = 0.0
    _templates: dict[str, int] = field(default_factory=dict)
    _documents: int = field(default=0)

    def __post_init__(self) -> None:
        """Dollars need prices."""
        if self.usd is not None and self.prices.prompt is None:
            raise RecipeError(
                "budget_usd needs engine.price_per_million_prompt and engine.price_per_million_completion"
            )

    @property
    def unlimited(self) -> bool:
        """Whether there is none."""
        return self.tokens is None and self.usd is None

    def admit(self, requests: Sequence[Request]) -> int:
        """How many of these, from the first on, may be asked together; 0 ends the run's asking."""
        if self.unlimited:
            return len(requests)
        tokens, usd, admitted = self._spent_tokens, self._spent_usd, 0
        most = Usage()
        for request in requests if not self.ended else ():
            measured = request.metadata["stage"] in self._templates
            if admitted and not measured:
                break
            most = self._most(request, None if measured else self.measure(request))
            tokens += most.prompt_tokens + most.completion_tokens
            usd += self.prices.of(most) or 0.0
            if (self.tokens is not None and tokens > self.tokens) or (self.usd is not None and usd > self.usd):
                break
            admitted += 1
            if not measured:
                break
        if requests and not admitted and not self.ended:
            self.ended, self.unmet = True, self._told(most)
        return admitted

    def _told(self, most: Usage) -> dict[str, float]:
        """What a request may take, and what is left for it; dollars to a millionth."""
        found: dict[str, float] = {}
        if self.tokens is not None:
            needed = most.prompt_tokens + most.completion_tokens
            found |= {"needed_tokens": needed, "left_tokens": max(0, self.tokens - self._spent_tokens)}
        if self.usd is not None:
            left = max(0.0, self.usd - self._spent_usd)
            found |= {"needed_usd": round(self.prices.of(most) or 0.0, 6), "left_usd": round(left, 6)}
        return found

    def spend(self, request: Request, response: Response) -> None:
        """Count an answer, in the order of the requests."""
        usage, stage = response.usage, request.metadata["stage"]
        if usage.prompt_tokens:
            self._templates[stage] = min(self._templates.get(stage, usage.prompt_tokens), usage.prompt_tokens)
        self._spent_tokens += usage.prompt_tokens + usage.completion_tokens
        self._spent_usd += self.prices.of(usage) or 0.0

    def _most(self, request: Request, prompt_tokens: int | None) -> Usage:
        """What a request may take, where its prompt is so long; else where its template is as expected."""
        if prompt_tokens is not None:
            return Usage(prompt_tokens=prompt_tokens, completion_tokens=request.max_tokens)
        content = sum(len(message.content.encode()) for message in request.messages)
        most = content + self._expected(request.metadata["stage"])
        return Usage(prompt_tokens=most, completion_tokens=request.max_tokens)

    def _expected(self, stage: str) -> int:
        """Most tokens of a stage's template: stages differ by the schema that a server may write into it."""
        return self._templates.get(stage, max(self._templates.values(), default=TEMPLATE_TOKENS))

    def documents(self, most: int) -> int:
        """How many documents to take through the stages together: at the end fewer, so that few are left half done.

        Args:
            most: with no end in sight.
        """
        if self.unlimited:
            return most
        if not self._documents:
            return min(PROBE, most)
        shares = []
        if self.tokens is not None:
            shares.append((self.tokens - self._spent_tokens) / max(1.0, self._spent_tokens / self._documents))
        if self.usd is not None:
            shares.append((self.usd - self._spent_usd) / max(1e-12, self._spent_usd / self._documents))
        return max(1, min(most, int(min(shares) / 2)))

    def finished(self, documents: int) -> None:
        """So many documents are through the stages."""
        self._documents += documents


def summary(rows: Sequence[Row], accepted: set[str], judged: Sequence[Row] = ()) -> dict[str, Any]:
    """What the ledger says in total.

    Args:
        rows: of the generator.
        accepted: ids whose samples were kept (`doc_id` of the ledger).
        judged: rows of the judge: what it writes is in no sample, what it costs is part of their price.

    Returns:
        The generator's tokens, the share of them that accepted samples took (`yield`); the judge's apart; the cost of
        both, and per million accepted tokens.
    """
    written = sum(row.completion_tokens for row in rows)
    kept = sum(row.completion_tokens for row in rows if row.doc_id in accepted)
    costs = [row.cost_usd for row in (*rows, *judged) if row.cost_usd is not None]
    cost = sum(costs) if costs else None
    mended: Mapping[str, int] = _count(row.json_read for row in rows)
    return {
        "answers": len(rows),
        "prompt_tokens": sum(row.prompt_tokens for row in rows),
        "cached_prompt_tokens": sum(row.cached_prompt_tokens for row in rows),
        "completion_tokens": written,
        "accepted_completion_tokens": kept,
        "yield": kept / written if written else None,
        "cost_usd": cost,
        "cost_usd_per_million_accepted_tokens": cost / kept * 1e6 if cost is not None and kept else None,
        "errors": _count(row.error_class for row in rows),
        "json_read": mended,
        **({"judge": _judge(judged)} if judged else {}),
    }


def _judge(rows: Sequence[Row]) -> dict[str, Any]:
    costs = [row.cost_usd for row in rows if row.cost_usd is not None]
    return {
        "answers": len(rows),
        "prompt_tokens": sum(row.prompt_tokens for row in rows),
        "completion_tokens": sum(row.completion_tokens for row in rows),
        "cost_usd": sum(costs) if costs else None,
        "errors": _count(row.error_class for row in rows),
        "json_read": _count(row.json_read for row in rows),
    }


def _count(values: Any) -> dict[str, int]:
    counts: dict[str, int] = {}
    for value in values:
        if value:
            counts[value] = counts.get(value, 0) + 1
    return dict(sorted(counts.items()))
