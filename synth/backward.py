"""Long-CoT backward: from a document to the question that it answers and the thinking that leads there.

Four calls per document: its segments (the model names only their first and last words, which are then looked up, so
that a segment is the document's own text or nothing), an abstract of each, a chain of steps that each cite a segment,
and the core question; question, chain and document make one training sample. After CCI4.0-M2-CoT (arXiv:2506.07463,
figure 3), which publishes the stages but neither prompts nor checks: these are Loam's. Its domains (`cot_synthesis_*`)
are the same four calls with prompts and limits of their own; code is cut by the numbers of its lines.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from synth.dialogue import Dialogue
from synth.json_answers import read_list
from synth.json_schemas import NUMBER, TEXT, answer_format, list_of, object_of
from synth.kind import Inputs, Stage
from synth.latex_json import double_backslashes
from synth.line_segments import locate_lines
from synth.recipe import SynthSettings
from synth.verification import Limits, Span, check_prose, check_question, check_steps, locate_segments


@dataclass(frozen=True)
class Draft:
    """A sample in the making; each stage fills one more field.

    Attributes:
        text: of the document.
        spans: segments of it.
        abstracts: one for each segment.
        steps: (segment from 1, thought).
        question: what the chain answers.
    """

    text: str
    spans: tuple[Span, ...] = ()
    abstracts: tuple[str, ...] = ()
    steps: tuple[tuple[int, str], ...] = ()
    question: str = ""


def span_reader(
    first: str, last: str, kind: type, locate: Callable[[str, Any, Limits], tuple[Span, ...] | str]
) -> Callable[[str, Draft, Limits], Draft | str]:
    """What reads segments out of an answer.

    Args:
        first: key of a segment's beginning.
        last: key of its end.
        kind: type of both.
        locate: text, pairs of both and limits to spans, or the reason why there are none.

    Returns:
        answer, draft and limits to the draft with its spans, or the reason why not.
    """

    def read(answer: str, draft: Draft, limits: Limits) -> Draft | str:
        found = read_list(answer, "segments")
        if isinstance(found, str):
            return found
        pairs = _pairs(found, first, kind, last, kind)
        spans = "wrong_shape" if pairs is None else locate(draft.text, pairs, limits)
        return spans if isinstance(spans, str) else replace(draft, spans=spans)

    return read


def read_abstracts(answer: str, draft: Draft, limits: Limits) -> Draft | str:
    """One abstract for each segment."""
    found = read_list(answer, "abstracts")
    if isinstance(found, str):
        return found
    if not all(isinstance(item, str) for item in found):
        return "wrong_shape"
    if len(found) != len(draft.spans):
        return "abstract_count"
    reasons = (check_prose(abstract, draft.text, limits) for abstract in found)
    return next((reason for reason in reasons if reason), None) or replace(draft, abstracts=tuple(found))


def read_chain(answer: str, draft: Draft, limits: Limits) -> Draft | str:
    """Steps that cite segments."""
    found = read_list(answer, "steps")
    if isinstance(found, str):
        return found
    steps = _pairs(found, "segment", int, "thought", str)
    if steps is None:
        return "wrong_shape"
    return check_steps(steps, len(draft.spans), draft.text, limits) or replace(draft, steps=tuple(steps))


def _pairs(items: list[Any], first: str, first_kind: type, second: str, second_kind: type) -> list[Any] | None:
    """Two fields of every object of a list; None where one is missing or of another type (a bool is no int)."""
    pairs = [(item.get(first), item.get(second)) for item in items if isinstance(item, dict)]
    typed = all(type(one) is first_kind and type(other) is second_kind for one, other in pairs)
    return pairs if typed and len(pairs) == len(items) else None


def read_question(answer: str, draft: Draft, limits: Limits) -> Draft | str:
    """The core question."""
    return check_question(answer, draft.text, limits) or replace(draft, question=answer)


def render_chain(draft: Draft) -> str:
    """The chain of thought as numbered lines."""
    return "\n".join(f"{number}. {thought.strip()}" for number, (_, thought) in enumerate(draft.steps, 1))


def _line_slots(draft: Draft, limits: Limits) -> dict[str, str]:
    lines = enumerate(draft.text.splitlines(), 1)
    return _segment_slots(draft, limits) | {"document": "\n".join(f"{number}: {line}" for number, line in lines)}


def _segment_slots(draft: Draft, limits: Limits) -> dict[str, str]:
    low, high = limits.segments
    return {"document": draft.text, "min_segments": str(low), "max_segments": str(high)}


def _abstract_slots(draft: Draft, limits: Limits) -> dict[str, str]:
    texts = [draft.text[span.start : span.end] for span in draft.spans]
    return {"count": str(len(texts)), "segments": _numbered(texts)}


def _chain_slots(draft: Draft, limits: Limits) -> dict[str, str]:
    low, high = limits.steps
    return {"abstracts": _numbered(draft.abstracts), "min_steps": str(low), "max_steps": str(high)}


def _numbered(texts: Sequence[str]) -> str:
    return "\n\n".join(f"[{number}] {text}" for number, text in enumerate(texts, 1))


def _lists(name: str, items: Mapping[str, Any]) -> dict[str, Any]:
    return answer_format(name, object_of(**{name: list_of(items)}))


read_segments = span_reader("start", "end", str, locate_segments)  # markers to spans
read_lines = span_reader("first", "last", int, locate_lines)  # numbers of lines to spans
STAGES = (
    Stage("segment", _segment_slots, read_segments, _lists("segments", object_of(start=TEXT, end=TEXT))),
    Stage("abstract", _abstract_slots, read_abstracts, _lists("abstracts", TEXT)),
    Stage("chain", _chain_slots, read_chain, _lists("steps", object_of(segment=NUMBER, thought=TEXT))),
    Stage("question", lambda draft, limits: {"chain": render_chain(draft)}, read_question),
)


LINES = Stage("segment", _line_slots, read_lines, _lists("segments", object_of(first=NUMBER, last=NUMBER)))
"""Segments of code: a line such as `return None` stands in many places, a number in one."""
LATEX = ("cot_synthesis_math", "cot_synthesis_arxiv")
"""Recipes whose answers hold LaTeX inside JSON."""


class Backward:
    """The recipe `cot_backward` and its domains: one sample per document.

    Args:
        recipe: `cot_backward`, or the name of a domain's.
    """

    identity = ""

    def __init__(self, recipe: str = "cot_backward") -> None:
        stages = (LINES, *STAGES[1:]) if recipe == "cot_synthesis_code" else STAGES
        self.stages = tuple(_with_latex(stage) for stage in stages) if recipe in LATEX else stages

    def units(self, row: Mapping[str, Any]) -> Sequence[tuple[str, Draft]]:
        """The document as it is."""
        return [("", Draft(row["text"]))]

    def settle(self, ended: Sequence[tuple[str, Any]]) -> Sequence[tuple[str, Any]]:
        """As it came."""
        return ended

    def sample_slots(self, draft: Draft) -> Mapping[str, str]:
        """Question, chain and document."""
        return {"question": draft.question, "chain": render_chain(draft), "document": draft.text}

    def written(self, draft: Draft) -> str:
        """Question and chain."""
        return f"{draft.question}\n\n{render_chain(draft)}"

    def shown(self, draft: Draft) -> str:
        """It is the document."""
        return ""

    def provenance(self, draft: Draft, mates: Sequence[str]) -> Mapping[str, str]:
        """What the stages found."""
        return {
            "question": draft.question,
            "segments": json.dumps([[span.start, span.end] for span in draft.spans]),
            "abstracts": json.dumps(draft.abstracts, ensure_ascii=False),
            "steps": json.dumps(draft.steps, ensure_ascii=False),
        }

    def dialogue(self, draft: Draft) -> Dialogue:
        """The question, the chain as thinking, and the document as the answer."""
        return Dialogue(draft.question, render_chain(draft), draft.text)

    def close(self) -> None:
        """Nothing is held."""


def _with_latex(stage: Stage) -> Stage:
    """A stage that takes backslashes for what they are."""
    return replace(stage, prepare=double_backslashes)


def open_backward(settings: SynthSettings, inputs: Inputs) -> Backward:
    """The kind `cot_backward`, or a domain's."""
    return Backward(settings.recipe)
