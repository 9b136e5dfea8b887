"""Verification: what a generated text must satisfy, as pure predicates that name what is wrong.

Every reason has a version, which is part of a sample's identity: raising it says that older verdicts may differ.
Nothing is repaired; an answer that fails is rejected and counted, since a reason that is often seen says what to mend
upstream.
"""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from pipelines.manifest import digest_of
from pipelines.recipe import Section
from synth.protocol import Response

REASONS: dict[str, tuple[int, str]] = {
    "truncated": (1, "the answer hit its ceiling of tokens"),
    "prompt_too_long": (1, "the prompt leaves no room for an answer"),
    "refused_by_engine": (1, "the engine turned the request down for good"),
    "not_recorded": (1, "the replayed run never made this request"),
    "empty": (1, "nothing but white space"),
    "refusal": (1, "the model speaks of itself or declines"),
    "meta_phrase": (1, "the answer speaks of a text instead of its subject"),
    "not_json": (1, "no JSON object in the answer"),
    "wrong_shape": (1, "JSON, but not what was asked for"),
    "segment_count": (1, "too few or too many segments"),
    "segment_length": (1, "a segment is too short"),
    "marker_not_found": (1, "a start or end marker is not in the document"),
    "overlap": (1, "segments overlap or are out of order"),
    "coverage_low": (1, "the segments leave too much of the document out"),
    "abstract_count": (1, "not one abstract for each segment"),
    "step_count": (1, "too few or too many steps"),
    "citation_invalid": (1, "a step rests on a segment that does not exist"),
    "step_order": (1, "steps do not follow the order of the segments"),
    "repetition": (1, "the same n-grams again and again"),
    "number_not_in_document": (1, "a number of two digits or more that the document does not hold"),
    "copies_document": (1, "the chain is mostly copied from the document"),
    "language_mismatch": (1, "another script than the document's"),
    "not_a_question": (1, "not one line that ends in a question mark"),
    "question_copies_document": (1, "the question shares a long n-gram with the document"),
}

_REFUSAL = re.compile(
    r"\b(as an ai|as a language model|i (cannot|can't|can not|am unable to|am not able to)|i'm (sorry|unable)"
    r"|i apologi[sz]e)\b"
    r"|作为一个?(ai|人工智能|语言模型)|(很?抱歉|对不起)[，,]?我",
    re.IGNORECASE,
)
_META = re.compile(
    r"\b((the|this|given|above) (passage|text|excerpt|segments?|abstracts?|statements?)|according to the document"
    r"|the document (above|says|states|describes)|the chain of thought)\b|这段(文字|话)|本文|上文|原文",
    re.IGNORECASE,
)
_CONTROL = re.compile(r"<\|[^|<>\s]{1,40}\|>|\[/?INST\]|<(start|end)_of_turn>|</?think>")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_CJK = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_CJK}]|[^\W_{_CJK}]+")


class Limits(Section):
    """Thresholds of the predicates.

    Attributes:
        segments: fewest and most.
        min_segment_chars: of each segment.
        min_coverage: share of the document's characters (without white space) inside segments.
        steps: fewest and most.
        max_repeated: share of 4-grams that occurred before.
        max_copied: share of the chain's 8-grams that are the document's.
        question_ngram: words in a row that the question may not share with the document.
    """

    segments: tuple[int, int] = (2, 12)
    min_segment_chars: int = Field(default=20, ge=1)
    min_coverage: float = Field(default=0.8, ge=0, le=1)
    steps: tuple[int, int] = (2, 24)
    max_repeated: float = Field(default=0.2, ge=0, le=1)
    max_copied: float = Field(default=0.5, ge=0, le=1)
    question_ngram: int = Field(default=8, ge=2)


def verification_hash(limits: Limits) -> str:
    """Identity of the verdicts: versions of all predicates, and their thresholds."""
    versions = {reason: version for reason, (version, _) in REASONS.items()}
    return digest_of({"versions": versions, "limits": limits.model_dump(mode="json")})[:16]


@dataclass(frozen=True)
class Span:
    """Characters `start` to `end` (exclusive) of a document."""

    start: int
    end: int


def has_control_tokens(text: str) -> bool:
    """Whether a text holds strings that a chat template would take for its own marks."""
    return _CONTROL.search(text) is not None


def answer_of(text: str) -> str:
    """What a model answered, without the thinking before it."""
    return text.rpartition("</think>")[2].strip()


def check_response(response: Response) -> str | None:
    """Whether there is a whole answer at all."""
    reason = {"length": "truncated", "refused": "refused_by_engine"}.get(response.finish_reason, response.finish_reason)
    if reason != "stop":
        return reason
    if not (answer := answer_of(response.text)):
        return "empty"
    return "refusal" if _REFUSAL.search(answer[:200]) else None


def read_json(text: str, key: str) -> list[Any] | str:
    """The list under `key` of the JSON object in an answer, or why there is none."""
    try:
        value = json.loads(text[text.index("{") : text.rindex("}") + 1])
    except ValueError:
        return "not_json"
    found = value.get(key) if isinstance(value, dict) else None
    return found if isinstance(found, list) else "wrong_shape"


def locate_segments(text: str, markers: Sequence[tuple[str, str]], limits: Limits) -> tuple[Span, ...] | str:
    """Find segments by their first and last words.

    Args:
        text: the document.
        markers: start and end of each segment, in order; runs of white space match each other.
        limits: thresholds.

    Returns:
        Spans, in order and without overlap, or the reason why not.
    """
    if not limits.segments[0] <= len(markers) <= limits.segments[1]:
        return "segment_count"
    spans, at = [], 0
    for start, end in markers:
        first = _find(text, start, at)
        if isinstance(first, str):
            return first
        last = _find(text, end, first.start)
        if isinstance(last, str):
            return last
        if last.end - first.start < limits.min_segment_chars:
            return "segment_length"
        spans.append(Span(first.start, last.end))
        at = last.end
    covered = sum(_solid(text[span.start : span.end]) for span in spans)
    return "coverage_low" if covered < limits.min_coverage * _solid(text) else tuple(spans)


def _find(text: str, marker: str, at: int) -> Span | str:
    """The first place of a marker from `at` on; `overlap` where it only stands before."""
    if not marker.strip():
        return "marker_not_found"
    pattern = re.compile(r"\s+".join(map(re.escape, marker.split())))
    if match := pattern.search(text, at):
        return Span(*match.span())
    return "overlap" if pattern.search(text) else "marker_not_found"


def _solid(text: str) -> int:
    return len("".join(text.split()))


def check_prose(text: str, document: str, limits: Limits) -> str | None:
    """What holds for every prose that is written about a document."""
    if not text.strip():
        return "empty"
    if _REFUSAL.search(text):
        return "refusal"
    if _META.search(text):
        return "meta_phrase"
    if repeated_share(words_of(text)) > limits.max_repeated:
        return "repetition"
    if script_of(text) != script_of(document):
        return "language_mismatch"
    return "number_not_in_document" if numbers_of(text) - numbers_of(document) else None


def check_steps(steps: Sequence[tuple[int, str]], segments: int, document: str, limits: Limits) -> str | None:
    """A chain of thought: (segment from 1, thought) in order."""
    if not limits.steps[0] <= len(steps) <= limits.steps[1]:
        return "step_count"
    cited = [segment for segment, _ in steps]
    if not all(1 <= segment <= segments for segment in cited):
        return "citation_invalid"
    if cited != sorted(cited):
        return "step_order"
    chain = "\n".join(thought for _, thought in steps)
    if not all(thought.strip() for _, thought in steps):
        return "empty"
    if (reason := check_prose(chain, document, limits)) is not None:
        return reason
    return "copies_document" if copied_share(chain, document, 8) > limits.max_copied else None


def check_question(question: str, document: str, limits: Limits) -> str | None:
    """The one core question."""
    if "\n" in question or not question.endswith(("?", "？")) or len(words_of(question)) < 3:
        return "not_a_question"
    if (reason := check_prose(question, document, limits)) is not None:
        return reason
    return "question_copies_document" if copied_share(question, document, limits.question_ngram) else None


def words_of(text: str) -> list[str]:
    """Words in lower case; every CJK character is one."""
    return _WORD.findall(text.lower())


def repeated_share(words: Sequence[str], n: int = 4) -> float:
    """Share of the n-grams that occurred before."""
    grams = Counter(_ngrams(words, n))
    return 1 - len(grams) / grams.total() if grams else 0.0


def copied_share(text: str, document: str, n: int) -> float:
    """Share of a text's n-grams of words that are the document's."""
    grams = _ngrams(words_of(text), n)
    theirs = set(_ngrams(words_of(document), n))
    return sum(gram in theirs for gram in grams) / len(grams) if grams else 0.0


def numbers_of(text: str) -> set[str]:
    """Numbers of two digits or more, without thousands separators; single digits also count and enumerate."""
    return {plain for number in _NUMBER.findall(text) if len(plain := re.sub(r",(?=\d{3})", "", number)) > 1}


def script_of(text: str) -> str:
    """The script of most letters, by their Unicode names: `LATIN`, `CJK`, `CYRILLIC`; empty without letters."""
    letters = [character for character in text if character.isalpha()][:2000]
    found = Counter(unicodedata.name(letter, "UNKNOWN").split()[0] for letter in letters)
    return found.most_common(1)[0][0] if found else ""


def _ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
