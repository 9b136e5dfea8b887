"""Mathematical answers compared by symbolic equivalence, in a process of its own.

math-verify (Hugging Face) reads LaTeX and plain expressions and compares them with sympy, which can think for ever
about a tower of powers: each comparison has a budget of CPU seconds, counted by the child itself so that a busy machine
changes no verdict, and a child that does not answer is killed. What is not decided in time is undecided.

Where the parser is too generous (`synth/math_readings.py`) its word is not taken: a set is no tuple (refuted), and `A`
is not `a` (undecided: a slip is as likely as another variable). A unit that one side leaves out does not count, nor
does a percent sign, as with the graders of MATH: 25% is 0.25 by value and 25 by its unit.
"""

import contextlib
import logging
import multiprocessing
import re
import signal
from multiprocessing.connection import Connection
from typing import Any

from synth.answers import Judgement, Verdict, extract_answer
from synth.math_readings import (
    MEASURES,
    SAME,
    apart,
    is_matrix,
    other_brackets,
    plain,
    readings,
    unit_of,
    words_of_answer,
)

CPU_S = 5.0  # of one comparison
WALL_S = 120.0  # a child in a C loop does not see its own clock
MAX_CHARS = 2000  # a longer answer is no answer
MAX_EXPONENT = re.compile(r"\^\s*\{?\s*\d{5,}|\*\*\s*\d{5,}|\d{2,}\s*!|\d{400,}")


class MathJudge:
    """Judges answers; `close` it, or use it as a context manager."""

    def __init__(self) -> None:
        self._process: Any = None
        self._pipe: Connection | None = None

    def __enter__(self) -> "MathJudge":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def judge(self, text: str, gold: str) -> Judgement:
        r"""Compare the final answer of `text` with a reference.

        Args:
            text: a chain of thought with its answer.
            gold: LaTeX or plain expression, with or without `$` and `\boxed{}`.
        """
        answer = extract_answer(text)
        if answer is None:
            return Judgement(Verdict.UNDECIDED, detail="no_answer")
        return self.compare(answer, gold)

    def compare(self, answer: str, gold: str) -> Judgement:
        """Compare two answers."""
        if plain(answer) == plain(gold):
            return Judgement(Verdict.VERIFIED, answer)
        if max(len(answer), len(gold)) > MAX_CHARS or any(map(MAX_EXPONENT.search, (answer, gold))):
            return Judgement(Verdict.UNDECIDED, answer, "too_large")
        pipe = self._connect()
        try:
            pipe.send((answer, gold))
            found = pipe.recv() if pipe.poll(WALL_S) else "timeout"
        except (EOFError, OSError):
            found = "crash"
        if found in ("timeout", "crash"):
            self.close()
        if found == "same":
            return Judgement(Verdict.VERIFIED, answer)
        return Judgement(Verdict.REFUTED if found == "other_value" else Verdict.UNDECIDED, answer, found)

    def close(self) -> None:
        """End the child; the next comparison starts another."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process.close()
        if self._pipe is not None:
            self._pipe.close()
        self._process = self._pipe = None

    def _connect(self) -> Connection:
        if self._pipe is None or self._process is None:
            context = multiprocessing.get_context("spawn")
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
            self._process.start()
            theirs.close()
        return self._pipe


class _OverBudgetError(BaseException):
    """Not an Exception: sympy swallows those."""


class _UnreadableError(Exception):
    """An answer in which the parser finds no mathematics."""


def _serve(pipe: Connection) -> None:
    """Answer comparisons until the parent is gone."""

    def stop(*_: object) -> None:
        raise _OverBudgetError

    logging.disable(logging.WARNING)  # math-verify warns at every call that its own timers are off
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, stop)
    with contextlib.suppress(EOFError, OSError):
        while True:
            answer, gold = pipe.recv()
            signal.setitimer(signal.ITIMER_PROF, CPU_S)
            try:
                found = _compare(answer, gold)
            except _OverBudgetError:
                found = "timeout"
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
            pipe.send(found)


def _compare(answer: str, gold: str) -> str:
    pair = answer.translate(SAME), gold.translate(SAME)
    try:
        same = _equal(*pair)
        cased = same and (told := apart(*pair)) is not None and not _equal(*told)
    except _UnreadableError:
        return "unreadable"
    except Exception as error:  # whatever a parser of free text raises
        return f"unreadable: {type(error).__name__}"
    units = {unit_of(one) for one in pair} - {""}
    if same:
        brackets = other_brackets(*pair)
        doubts = {"units": len(units) > 1, "case": cased, "brackets": brackets == "shape"}
        return "other_value" if brackets == "set" else next((name for name, doubt in doubts.items() if doubt), "same")
    if len(units) > 1 and {unit.casefold() for unit in units} <= MEASURES:
        return "units"
    if is_matrix(answer) != is_matrix(gold):
        return "brackets"
    return "words" if words_of_answer(answer) ^ words_of_answer(gold) else "other_value"


def _equal(one: str, other: str) -> bool:
    """Whether the two are the same by any reading."""
    from math_verify import parse, verify

    for pair in readings(one, other):
        # their own timers are off: they count wall time
        found, wanted = (parse(f"${text.strip('$')}$", parsing_timeout=0) for text in pair)
        if not all(any(not isinstance(value, str) for value in values) for values in (found, wanted)):
            raise _UnreadableError
        if verify(wanted, found, timeout_seconds=0) or verify(found, wanted, timeout_seconds=0):
            return True
    return False
