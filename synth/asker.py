"""Asking: from a stage and its documents to requests, answers and verdicts, by way of the response log and the budget.

What is asked depends on settings and documents alone, in a fixed order; what the log knows is not asked again. An
answer that should be JSON is read strictly, and how it was read stands in the ledger.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import xxhash

from pipelines.journal import record
from synth.dialogue import answer_of
from synth.json_answers import read_json_answer
from synth.kind import Stage
from synth.ledger import Budget, Prices, Row
from synth.outputs import Reject, Work
from synth.prompt_files import Prompts, prompt_language
from synth.protocol import Engine, Message, Request, Response, request_key, wire_record
from synth.recipe import SynthSettings
from synth.response_log import ResponseLog
from synth.verification import check_response, declines

OPENING = 200  # characters of an answer in which a model declines


@dataclass
class Asker:
    """What the stages share, and what they leave behind.

    Attributes:
        engine: who answers.
        log: of all answers.
        settings: the recipe.
        prompts: of the recipe, in every language.
        recipe: hash of what is asked.
        ledger: a row for every answer, in the order of the requests.
        finished: documents that are through the stages, for good or not.
        asked: requests that the engine really answered in this process; the others were in the log.
        done: documents times stages, for the progress bar.
    """

    engine: Engine
    log: ResponseLog
    settings: SynthSettings
    prompts: Prompts
    recipe: str
    ledger: list[Row] = field(default_factory=list)
    finished: list[Work] = field(default_factory=list)
    asked: int = 0
    done: int = 0
    written: int = 0

    def __post_init__(self) -> None:
        """The budget is the settings'."""
        self.prices = Prices.from_settings(self.settings.engine)
        settings, measure = self.settings, self.engine.prompt_tokens
        self.budget = Budget(settings.budget_tokens, settings.budget_usd, self.prices, measure)
        self._started = time.monotonic()

    def groups(self, works: Sequence[Work], most: int) -> Iterator[Sequence[Work]]:
        """Documents that go through the stages together: at most so many, fewer as the budget ends."""
        at = 0
        while at < len(works):
            size = self.budget.documents(most)
            yield works[at : at + size]
            self.finished += works[at : at + size]
            self.budget.finished(len(works[at : at + size]))
            at += size

    def run_stage(self, stage: Stage, works: Sequence[Work]) -> None:
        """Ask about every document; those whose answers all fail are rejected with the last reason."""
        waiting = [one for one in works if stage.wanted(one.draft)]
        for attempt in range(self.settings.attempts):
            requests = [self.request(stage, one, attempt) for one in waiting]
            failed = []
            for one, request, response in zip(waiting, requests, self._within_budget(requests), strict=True):
                if response is None:
                    one.reject = Reject(stage.name, "budget", "")
                    continue
                reason, how = self._advance(stage, one, response)
                key = request_key(request, self.engine.identity)
                identity = self.engine.identity
                self.ledger.append(Row.of(key, request, response, identity, self.prices, how, reason or ""))
                if reason is not None:
                    failed.append((one, Reject(stage.name, reason, response.text)))
            waiting = [one for one, _ in failed]
            if attempt == self.settings.attempts - 1:
                for one, reject in failed:
                    one.reject = reject

    def _advance(self, stage: Stage, one: Work, response: Response) -> tuple[str | None, str]:
        """Take a document one stage further; why not, and how the answer's JSON was read."""
        if (reason := check_response(response)) is not None:
            return reason, ""
        answer, how = response.text.strip() if stage.keep_thinking else answer_of(response.text), ""
        if stage.schema is not None:
            text, how = read_json_answer(prepared := stage.prepare(answer))
            if text is None:
                return "refusal" if declines(answer[:OPENING], one.row["text"]) else "not_json", how
            how = how if prepared == answer else f"prepared+{how}"
            answer = text
        elif declines(answer_of(answer)[:OPENING], one.row["text"]):
            return "refusal", how
        result = stage.read(answer, one.draft, self.settings.limits)
        if isinstance(result, str):
            return result, how
        one.draft = result
        return None, how

    def request(self, stage: Stage, one: Work, attempt: int) -> Request:
        """The call of a stage; its seed comes from the recipe's seed, the document, the stage and the attempt."""
        language = prompt_language(one.row["language"], one.row["text"])
        prompt, sampling = self.prompts.of(stage.name, language), self.settings.sampling
        content = prompt.fill(stage.slots(one.draft, self.settings.limits))
        seed = xxhash.xxh64_intdigest(f"{one.id}\0{stage.name}\0{attempt}".encode(), self.settings.seed)
        return Request(
            messages=(Message(role="user", content=content),),
            max_tokens=min(prompt.max_tokens, sampling.max_tokens or prompt.max_tokens),
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=seed & 0x7FFFFFFF,  # servers take 31 bits
            response_format=stage.schema if self.engine.capabilities.json_schema else None,
            metadata={"doc_id": one.id, "stage": stage.name, "attempt": str(attempt), "recipe": self.recipe},
        )

    def _within_budget(self, requests: Sequence[Request]) -> list[Response | None]:
        """The answer to every request, None from where the budget ends."""
        answers: list[Response | None] = []
        while len(answers) < len(requests) and (count := self.budget.admit(requests[len(answers) :])):
            together = requests[len(answers) : len(answers) + count]
            found = dict(self.answers(together))
            for request in together:
                response = found[request_key(request, self.engine.identity)]
                self.budget.spend(request, response)
                answers.append(response)
        return answers + [None] * (len(requests) - len(answers))

    def answers(self, requests: Sequence[Request]) -> Iterator[tuple[str, Response]]:
        """Answers by key: from the log where it has them, the others from the engine, logged as they come."""
        missing = []
        for request in requests:
            key = request_key(request, self.engine.identity)
            known = self.log.get(key)
            if known is None or (known.finish_reason == "poison" and self.settings.engine.retry_quarantined):
                missing.append(request)
            else:
                yield key, known
        for request, response in self.engine.generate(missing) if missing else ():
            key = request_key(request, self.engine.identity)
            if response.finish_reason != "not_recorded":
                self.log.add(key, wire_record(request, self.engine.identity), response)
            self.asked += 1
            self.written += response.usage.completion_tokens
            yield key, response

    def record_speed(self) -> None:
        """How fast it went, into the journal and nowhere else."""
        seconds = time.monotonic() - self._started
        speed: dict[str, float] = {"seconds": round(seconds, 3), "tokens_per_second": round(self.written / seconds, 1)}
        if self.engine.latencies_s:
            middle, slow = np.percentile(self.engine.latencies_s, [50, 99])
            speed |= {"latency_p50_s": round(float(middle), 4), "latency_p99_s": round(float(slow), 4)}
        record("synth", asked=self.asked, completion_tokens=self.written, **speed)
