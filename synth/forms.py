"""Other forms of the same samples: conversations to tune on, and problems to learn from by reward.

Conversations hold `messages` and problems `prompt`, as lists of role and content, which is how `datasets` and TRL take
them. Problems are written once per question, with its reference and the share of chains that met it, so that they can
be cut to a band of difficulty; nothing rests on a majority.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa

from synth.dialogue import Dialogue, Problem
from synth.forms_settings import FormsSettings
from synth.outputs import PART, Maker, Work, licence_of, write_table

_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_COMMON = [("id", pa.string()), ("doc_id", pa.string()), ("domain", pa.string()), ("source", pa.string()),
           ("language", pa.string()), ("licence", pa.string())]  # fmt: skip
SFT = pa.schema([*_COMMON, ("messages", _MESSAGES), ("verdict", pa.string())])
RL = pa.schema(
    [
        *_COMMON,
        ("prompt", _MESSAGES),
        ("gold_kind", pa.string()),
        ("answer", pa.string()),  # reference of `math` and `choice`
        ("tests", pa.string()),  # of `code`
        ("pass_rate", pa.float64()),
        ("rollouts", pa.int64()),
        ("verified", pa.int64()),
        ("refuted", pa.int64()),
        ("undecided", pa.int64()),
    ]
)
_BARRED = ("contaminated", "question_duplicate")
"""Screens whose verdict is on the question, whichever chain it came with."""


@runtime_checkable
class Conversational(Protocol):
    """A kind whose samples are answers to questions."""

    def dialogue(self, draft: Any) -> Dialogue:
        """A finished sample as question, thinking and answer."""
        ...


@runtime_checkable
class Checkable(Protocol):
    """A kind whose questions have answers that can be checked."""

    def problem(self, drafts: Sequence[Any], reasons: Sequence[str]) -> Problem | None:
        """One document's question, from its units and why each was rejected (empty where it was not)."""
        ...


def write_forms(works: Sequence[Work], work: Path, maker: Maker, settings: FormsSettings) -> dict[str, int]:
    """Write `sft/` and `rl/` as far as they are asked for.

    Args:
        works: all of a run, settled and screened, the units of a document next to each other.
        work: the step's working folder.
        maker: of the samples.
        settings: which forms.

    Returns:
        Rows written, by form; of kinds that have no such form, none.
    """
    written = {}
    for form in settings.write:
        rows = list(_conversations(works, maker) if form == "sft" else _problems(works, maker, settings))
        write_table(rows, SFT if form == "sft" else RL, work / form / PART)
        written[form] = len(rows)
    return written


def _conversations(works: Sequence[Work], maker: Maker) -> Iterator[dict[str, Any]]:
    if not isinstance(maker.kind, Conversational):
        return
    for one in works:
        if one.reject is None:
            found = maker.kind.dialogue(one.draft)
            messages = [_message("user", found.question), _message("assistant", found.reply)]
            verdict = dict(maker.kind.provenance(one.draft, [""])).get("verdict")
            yield {"id": maker.sample_id(one), **_common(one, maker), "messages": messages, "verdict": verdict}


def _problems(works: Sequence[Work], maker: Maker, settings: FormsSettings) -> Iterator[dict[str, Any]]:
    if not isinstance(maker.kind, Checkable):
        return
    for doc_id, group in groupby(works, key=lambda one: one.row["id"]):
        units = list(group)
        if any(one.reject is not None and one.reject.reason in _BARRED for one in units):
            continue
        reasons = [one.reject.reason if one.reject and not one.reject.screened else "" for one in units]
        found = maker.kind.problem([one.draft for one in units], reasons)
        if found is None or found.pass_rate is None:
            continue
        if settings.min_pass_rate <= found.pass_rate <= settings.max_pass_rate:
            yield {"id": doc_id, **_common(units[0], maker), **_row_of(found)}


def _row_of(problem: Problem) -> dict[str, Any]:
    return {
        "prompt": [_message("user", problem.question)],
        "gold_kind": problem.gold_kind,
        "tests" if problem.gold_kind == "code" else "answer": problem.gold,
        "pass_rate": problem.pass_rate,
        "rollouts": problem.verified + problem.refuted + problem.undecided,
        "verified": problem.verified,
        "refuted": problem.refuted,
        "undecided": problem.undecided,
    }


def _common(one: Work, maker: Maker) -> dict[str, Any]:
    return {"doc_id": one.row["id"], "domain": maker.settings.sample_domain, "source": one.row["source"],
            "language": one.row["language"], "licence": licence_of(one.row).get("licence")}  # fmt: skip


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
