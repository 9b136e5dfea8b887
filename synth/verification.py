"""Verification: what a generated text must satisfy, as pure predicates that name what is wrong.

Every reason has a version, which is part of a sample's identity: raising it says that older verdicts may differ.
Nothing is repaired; an answer that fails is rejected and counted, since a reason that is often seen says what to mend
upstream.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from pipelines.manifest import digest_of
from pipelines.recipe import Section
from synth.dialogue import answer_of
from synth.equations import equations_of, holds
from synth.names import missing_names
from synth.numerals import unfounded_numbers
from synth.protocol import Response
from synth.words import copied_share, repeated_share, script_of_words, shared_stems, solid_chars, words_of

REASONS: dict[str, tuple[int, str]] = {
    "truncated": (1, "the answer hit its ceiling of tokens"),
    "prompt_too_long": (1, "the prompt leaves no room for an answer"),
    "refused_by_engine": (1, "the engine turned the request down for good"),
    "not_recorded": (1, "the replayed run never made this request"),
    "poison": (1, "the request broke the server time after time, while it answered others"),
    "budget": (1, "not asked: the run's budget of tokens or dollars was used up"),
    "empty": (1, "nothing but white space"),
    "refusal": (3, "the model speaks of itself or declines, in words that are not the document's own"),
    "meta_phrase": (2, "the answer speaks of a text instead of its subject"),
    "not_json": (1, "no JSON object in the answer"),
    "wrong_shape": (1, "JSON, but not what was asked for"),
    "segment_count": (1, "too few or too many segments"),
    "segment_length": (2, "a segment is too short, or nearly all of the document"),
    "marker_not_found": (1, "a start or end marker is not in the document"),
    "overlap": (1, "segments overlap or are out of order"),
    "coverage_low": (1, "the segments leave too much of the document out"),
    "abstract_count": (1, "not one abstract for each segment"),
    "step_count": (1, "too few or too many steps"),
    "citation_invalid": (1, "a step rests on a segment that does not exist"),
    "step_order": (1, "steps do not follow the order of the segments"),
    "repetition": (2, "the same n-grams again and again"),
    "control_tokens": (1, "strings that a chat template takes for its own marks"),
    "equation_wrong": (1, "an equation between numbers that does not hold"),
    "number_not_in_document": (2, "a number that the document does not hold and no step computes (10 and up)"),
    "name_not_in_document": (1, "a name (capitalised words, quoted Chinese) that the document does not hold"),
    "ungrounded": (1, "too few of the chain's words are the document's"),
    "copies_document": (2, "the chain is mostly copied from the document"),
    "language_mismatch": (1, "another script than the document's"),
    "not_a_question": (1, "not one line that ends in a question mark"),
    "question_copies_document": (2, "the question shares a long n-gram with the document"),
    "no_passage": (1, "no passage of the document is long enough to be asked about"),
    "no_oracle": (1, "no passage of the corpus is known to hold the question's answer"),
    "no_distractor": (1, "no other document of the corpus shares a word with the question, copies left out"),
    "answer_not_in_passage": (1, "the answer of a question that was made does not stand in its passage"),
    "answer_in_question": (1, "the question holds its answer"),
    "quote_not_found": (1, "a quote does not stand in the passage that it cites, word for word"),
    "quote_too_short": (1, "a quote of too few words, which any passage could hold by chance"),
    "quote_too_long": (1, "a quote of so many words that it is a copy"),
    "oracle_not_quoted": (1, "nothing is quoted from the passage that holds the answer"),
    "evidence_overlooked": (1, "declined, though a passage holds the answer"),
    "answered_without_evidence": (1, "answered, though no passage holds the answer"),
    "answer_differs": (1, "another answer than the reference"),
    "missing_prefix": (1, "the answer does not begin with the words that it was asked to begin with"),
    "contaminated": (1, "the document or the sample holds items of an evaluation set, word for word"),
    "question_duplicate": (1, "nearly the same question as that of a sample of another document"),
    "personal_data": (1, "the model wrote personal data"),
    "unsafe_words": (1, "the model wrote words of a list that the document does not hold"),
    "no_grounding_gain": (1, "question and chain do not make the document likelier to a language model"),
    "grounding_unscored": (1, "undecided: the document could not be scored"),
    "judge_low": (1, "the judge's lowest score is below the threshold"),
    "judge_unreadable": (1, "undecided: the judge gave no verdict that can be read"),
    "pairs_malformed": (1, "not questions each with an answer, and nothing before them"),
    "document_too_short": (1, "fewer tokens than the recipe asks for"),
    "segments_too_short": (1, "no segment has as many tokens as the recipe asks for"),
    "sample_too_short": (1, "fewer tokens than a sample needs"),
    "no_bucket": (1, "the document's metadata hold no quality bucket to route it by"),
    "other_bucket": (1, "a document of another quality than the recipe is for"),
}

_REFUSAL = re.compile(
    r"\b(as an ai|as a language model|i (cannot|can't|can not|am unable to|am not able to)|i'm (sorry|unable)"
    r"|i apologi[sz]e)\b"
    r"|作为一[个名款]?(ai|人工智能|语言模型|大模型)|(很?抱歉|对不起)[，,]?我",
    re.IGNORECASE,
)
_META = re.compile(
    r"\b((the|this|given|above) (passage|text|excerpt|segments?|abstracts?|statements?)|according to the document"
    r"|the document (above|says|states|describes)|the chain of thought)\b"
    # words of Chinese are not set apart: 日本文化, 以上文件 and 中原文明 speak of no text
    r"|[这该此][段篇]?(文字|话|文章|文本|文档|段落)|(?<!日)本文(?![化学明物])|(?<![以网])上文(?=[中所的提说已])"
    r"|(?<![中高草])原文(?![化学明物])|上述(文字|段落|文本|材料)",
    re.IGNORECASE,
)
_CONTROL = re.compile(r"<\|[^|<>\s]{1,40}\|>|\[/?INST\]|<(start|end)_of_turn>|</?think>")


class Limits(Section):
    """Thresholds of the predicates.

    Attributes:
        segments: fewest and most.
        min_segment_chars: of each segment.
        max_segment_share: of the document in one segment.
        min_coverage: share of the document's characters (without white space) inside segments.
        steps: fewest and most.
        max_repeated: share of 4-grams that occurred before.
        max_copied: share of the chain's 8-grams that are the document's.
        min_shared: share of the chain's words (by their first letters; CJK by pairs) that the document has.
        max_missing_names: names that the document does not hold.
        question_ngram: words in a row that the question may not share with the document.
        min_quote_words: of a quote (a Chinese character counts as one), or the whole passage where that is shorter.
        max_quote_words: the same.
        min_answer_f1: words that an answer must share with its reference, where it does not hold that whole.
        question_jaccard: similarity at which two questions are the same one (`synth/question_dedup.py`).
        min_grounding_gain: nats per byte by which question and chain make the document likelier, when it is measured.
        min_judge_score: that the judge's lowest score must reach, 1 to 5.
        min_consensus: share of the chains of a question without reference that must be exceeded by one answer.
        keep_undecided: whether a sample stays that the judge, or the language model, could say nothing about.
    """

    segments: tuple[int, int] = (2, 12)
    min_segment_chars: int = Field(default=20, ge=1)
    max_segment_share: float = Field(default=0.95, gt=0, le=1)
    min_coverage: float = Field(default=0.8, ge=0, le=1)
    steps: tuple[int, int] = (2, 24)
    max_repeated: float = Field(default=0.2, ge=0, le=1)
    max_copied: float = Field(default=0.5, ge=0, le=1)
    min_shared: float = Field(default=0.2, ge=0, le=1)
    max_missing_names: int = Field(default=0, ge=0)
    question_ngram: int = Field(default=8, ge=2)
    min_quote_words: int = Field(default=4, ge=1)
    max_quote_words: int = Field(default=150, ge=1)
    min_answer_f1: float = Field(default=0.5, ge=0, le=1)
    question_jaccard: float = Field(default=0.7, gt=0, le=1)
    min_grounding_gain: float = 0.0
    min_judge_score: float = Field(default=3.0, ge=1, le=5)
    min_consensus: float = Field(default=0.5, ge=0, lt=1)
    keep_undecided: bool = False


def verification_hash(limits: Limits, screens: Mapping[str, Any] | None = None) -> str:
    """Identity of the verdicts: versions of all rules, their thresholds, and who screens finished samples.

    Args:
        limits: thresholds.
        screens: identity of each screen by name (`synth/screening.py`).
    """
    versions = {reason: version for reason, (version, _) in REASONS.items()}
    return digest_of({"versions": versions, "limits": limits.model_dump(mode="json"), "screens": screens or {}})[:16]


@dataclass(frozen=True)
class Span:
    """Characters `start` to `end` (exclusive) of a document."""

    start: int
    end: int


def has_control_tokens(text: str) -> bool:
    """Whether a text holds strings that a chat template would take for its own marks."""
    return _CONTROL.search(text) is not None


def check_response(response: Response) -> str | None:
    """Whether there is a whole answer at all."""
    reason = {"length": "truncated", "refused": "refused_by_engine"}.get(response.finish_reason, response.finish_reason)
    if reason != "stop":
        return reason
    return None if answer_of(response.text) else "empty"


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
    if len(spans) > 1 and max(span.end - span.start for span in spans) > limits.max_segment_share * len(text):
        return "segment_length"
    covered = sum(solid_chars(text[span.start : span.end]) for span in spans)
    return "coverage_low" if covered < limits.min_coverage * solid_chars(text) else tuple(spans)


def _find(text: str, marker: str, at: int) -> Span | str:
    """The first place of a marker from `at` on; `overlap` where it only stands before."""
    if not marker.strip():
        return "marker_not_found"
    pattern = re.compile(r"\s+".join(map(re.escape, marker.split())))
    if match := pattern.search(text, at):
        return Span(*match.span())
    return "overlap" if pattern.search(text) else "marker_not_found"


Rule = Callable[[str, str, Limits], bool]
"""Whether a text fails, given its document."""

PROSE: tuple[tuple[str, Rule], ...] = (
    ("empty", lambda text, document, limits: not text.strip()),
    ("control_tokens", lambda text, document, limits: has_control_tokens(text)),
    ("refusal", lambda text, document, limits: declines(text, document)),
    ("meta_phrase", lambda text, document, limits: speaks_of_text(text, document)),
    ("repetition", lambda text, document, limits: repeated_share(words_of(text)) > limits.max_repeated),
    ("language_mismatch", lambda text, document, limits: script_of_words(text) != script_of_words(document)),
    ("equation_wrong", lambda text, document, limits: has_wrong_equation(text)),
    ("number_not_in_document", lambda text, document, limits: bool(unfounded_numbers(text, document))),
    ("name_not_in_document",
     lambda text, document, limits: len(missing_names(text, document)) > limits.max_missing_names),
)  # fmt: skip
"""What holds for every prose that is written about a document; the first rule that fails names the reason."""

CHAIN: tuple[tuple[str, Rule], ...] = (
    ("copies_document", lambda text, document, limits: copied_share(text, document, 8) > limits.max_copied),
    ("ungrounded", lambda text, document, limits: shared_stems(text, document) < limits.min_shared),
)
"""What holds for a chain of thought besides."""

QUESTION: tuple[tuple[str, Rule], ...] = (
    ("not_a_question", lambda text, document, limits: not is_question(text)),
    *PROSE,
    ("question_copies_document",
     lambda text, document, limits: copied_share(text, document, limits.question_ngram) > 0),
)  # fmt: skip
"""What holds for a question."""


def first_failure(rules: Sequence[tuple[str, Rule]], text: str, document: str, limits: Limits) -> str | None:
    """The reason of the first rule that a text fails; None if it passes all."""
    return next((reason for reason, fails in rules if fails(text, document, limits)), None)


def speaks_of_text(text: str, document: str) -> bool:
    """Whether a text speaks of a text instead of its subject, in words that are not the document's own."""
    return _own_phrases(_META, text, document)


def declines(text: str, document: str) -> bool:
    """Whether a text speaks of the model itself or declines, in words that are not the document's own."""
    return _own_phrases(_REFUSAL, text, document)


def _own_phrases(pattern: re.Pattern[str], text: str, document: str) -> bool:
    found = {match.group().lower() for match in pattern.finditer(text)}
    return bool(found) and bool(found - {match.group().lower() for match in pattern.finditer(document)})


def has_wrong_equation(text: str) -> bool:
    """Whether an equation between numbers does not hold."""
    equations = (found for line in text.splitlines() for found in equations_of(line))
    return any(not holds(value, result, written) for _, value, written, result in equations)


def is_question(text: str) -> bool:
    """Whether a text is one line of three words or more that ends in a question mark."""
    return "\n" not in text and text.endswith(("?", "？")) and len(words_of(text)) >= 3


def check_prose(text: str, document: str, limits: Limits) -> str | None:
    """What holds for every prose that is written about a document."""
    return first_failure(PROSE, text, document, limits)


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
    return first_failure((*PROSE, *CHAIN), chain, document, limits)


def check_question(question: str, document: str, limits: Limits) -> str | None:
    """The one core question."""
    return first_failure(QUESTION, question, document, limits)
