"""What an answer from evidence must satisfy: quotes that stand in the passage they cite, and none without evidence.

A quote is looked up and not compared by likeness: runs of white space match each other, and so do straight and curly
quotation marks, and nothing else gives way. What is kept of it is the span in the original document, so that the
sample holds the document's own words whatever the model typed.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from synth.retrieval import Passage
from synth.verification import CHAIN, PROSE, Limits, check_question, first_failure
from synth.words import script_of_words, words_of

INSUFFICIENT = {"en": "Insufficient evidence", "zh": "证据不足"}
"""The only right answer where the passages do not hold one."""

_MARKS = {mark: f"[{group}]" for group in ('"“”„‟«»″＂', "'‘’‚‛′＇") for mark in group}
_YES_NO = {"yes", "no", "maybe", "true", "false", "是", "否", "不是", "对", "不对"}
_ARTICLES = {"a", "an", "the"}
# A chain over numbered passages speaks of them, and says what they do not hold.
_CHAIN = tuple(rule for rule in (*PROSE, *CHAIN) if rule[0] not in ("refusal", "meta_phrase", "language_mismatch"))
_ANSWER = tuple(rule for rule in PROSE if rule[0] in ("empty", "control_tokens", "number_not_in_document"))


@dataclass(frozen=True)
class Step:
    """A step of a chain over evidence.

    Attributes:
        thought: what it says.
        passage: the passage that it cites, from 1; 0 for none.
        start: first character of the quote in the passage.
        end: one past its last.
    """

    thought: str
    passage: int = 0
    start: int = 0
    end: int = 0


@dataclass(frozen=True)
class Pack:
    """A question with its evidence, as a chain must deal with it.

    Attributes:
        question: the question.
        passages: the evidence in order.
        oracle: number of the right passage, from 1; 0 where it is left out.
        references: right answers; empty where none is known.
        language: `en` or `zh`.
    """

    question: str
    passages: tuple[Passage, ...]
    oracle: int
    references: tuple[str, ...] = ()
    language: str = "en"


def find_quote(quote: str, passage: str) -> tuple[int, int] | None:
    """Where a quote stands in a passage: its first character and one past its last; None if it does not.

    White space at the quote's ends, and quotation marks around all of it, need not be the passage's.
    """
    quote = quote.strip()
    bare = quote[1:-1].strip() if len(quote) > 1 and quote[0] in _MARKS and quote[-1] in _MARKS else ""
    for wanted in filter(None, (quote, bare)):
        if match := re.search(_pattern(wanted), passage):
            return match.span()
    return None


def _pattern(quote: str) -> str:
    return r"\s+".join("".join(_MARKS.get(c) or re.escape(c) for c in word) for word in quote.split())


def check_generated(question: str, answer: str, passage: str, limits: Limits) -> str | None:
    """A question that was made from a passage, and the words of the passage that answer it."""
    if (reason := check_question(question, passage, limits)) is not None:
        return reason
    if not words_of(answer) or find_quote(answer, passage) is None:
        return "answer_not_in_passage"
    return "answer_in_question" if holds(question, answer) else None


def read_steps(found: Any, passages: Sequence[Passage], limits: Limits) -> tuple[Step, ...] | str:
    """Steps with their quotes located, or what is wrong with the first that is wrong."""
    if not isinstance(found, list):
        return "wrong_shape"
    steps = []
    for item in found:
        if not isinstance(item, dict):
            return "wrong_shape"
        thought, number, quote = item.get("thought"), item.get("passage"), item.get("quote")
        if type(thought) is not str or type(number) is not int or type(quote) is not str:
            return "wrong_shape"
        step = _read_step(thought, number, quote, passages, limits)
        if isinstance(step, str):
            return step
        steps.append(step)
    return tuple(steps)


def _read_step(
    thought: str, number: int, quote: str, passages: Sequence[Passage], limits: Limits
) -> Step | str:  # fmt: skip
    if not thought.strip():
        return "empty"
    if not 0 <= number <= len(passages):
        return "citation_invalid"
    if number == 0:
        return "citation_invalid" if quote.strip() else Step(thought)
    text = passages[number - 1].text
    if (span := find_quote(quote, text)) is None:
        return "quote_not_found"
    words = len(words_of(text[slice(*span)]))
    if words < min(limits.min_quote_words, len(words_of(text))):
        return "quote_too_short"
    if words > limits.max_quote_words:
        return "quote_too_long"
    return Step(thought, number, *span)


def check_chain(steps: Sequence[Step], answer: str, pack: Pack, limits: Limits) -> str | None:
    """What holds for every chain over evidence: length, language, and nothing that the evidence does not hold."""
    if not limits.steps[0] <= len(steps) <= limits.steps[1]:
        return "step_count"
    chain = "\n".join(step.thought for step in steps)
    evidence = "\n".join([pack.question, *(passage.text for passage in pack.passages)])
    scripts = {script_of_words(text) for text in (pack.question, evidence)}  # a question may be mostly a name
    if script_of_words(chain) not in scripts:
        return "language_mismatch"
    return first_failure(_CHAIN, chain, evidence, limits) or first_failure(_ANSWER, answer, evidence, limits)


def check_answer(steps: Sequence[Step], answer: str, pack: Pack, limits: Limits) -> str | None:
    """Whether the answer is the one that the evidence allows."""
    declined = plain_words(answer) == plain_words(INSUFFICIENT[pack.language])
    if not pack.oracle:
        return None if declined else "answered_without_evidence"
    if declined:
        return "evidence_overlooked"
    if all(step.passage != pack.oracle for step in steps):
        return "oracle_not_quoted"
    if pack.references and not any(agrees(answer, one, limits.min_answer_f1) for one in pack.references):
        return "answer_differs"
    return None


def agrees(answer: str, reference: str, least_f1: float) -> bool:
    """Whether an answer says what a reference says.

    A reference such as "yes" must be the first word; another must stand in the answer, or share enough words with it
    (F1 of bags of words, articles left out, as SQuAD's evaluation counts: arXiv:1606.05250).
    """
    said, right = plain_words(answer), plain_words(reference)
    if not said or not right:
        return False
    if is_yes_no(reference):
        return said[: len(right)] == right
    if _stands_in(right, said):
        return True
    shared = (Counter(said) & Counter(right)).total()
    return shared > 0 and 2 * shared / (len(said) + len(right)) >= least_f1


def holds(text: str, answer: str) -> bool:
    """Whether a text holds an answer word for word."""
    words = plain_words(answer)
    return bool(words) and _stands_in(words, plain_words(text))


def is_yes_no(answer: str) -> bool:
    """Whether an answer is one that any text could hold by chance."""
    return "".join(plain_words(answer)) in _YES_NO


def plain_words(text: str) -> list[str]:
    """Words in lower case and compatibility form, without articles; every Chinese character is one."""
    return [word for word in words_of(unicodedata.normalize("NFKC", text)) if word not in _ARTICLES]


def _stands_in(words: Sequence[str], text: Sequence[str]) -> bool:
    bounded = "\0".join(["", *text, ""])
    return "\0".join(["", *words, ""]) in bounded
