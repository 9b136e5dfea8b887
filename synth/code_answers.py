"""Code judged by its tests, in a sandbox.

The tests pass when the program reaches its last line, which prints a word: leaving early with status 0 verifies
nothing. Candidate and tests share a process, so that a candidate could look for that word; one that reads frames, the
collector or memory, or that leaves through the back door, is undecided, and so is one that runs out of its CPU seconds.
Against an adversary who knows this file it is no proof.
"""

import hashlib
import re

from synth.answers import Judgement, Verdict
from synth.dialogue import answer_of
from synth.sandbox import CPU_S, run_program

FENCE = re.compile(r"```(?:python|py|Python)?[ \t]*\n(.*?)```", re.DOTALL)

REFLECTION = re.compile(r"\b(_getframe|f_back|co_consts|gc|inspect|ctypes|_exit|tracemalloc|settrace|__builtins__)\b")


def extract_code(text: str) -> str | None:
    """The last fenced block of the part behind the thinking; None if there is none."""
    for part in (answer_of(text), text):
        if blocks := FENCE.findall(part):
            return blocks[-1]
    return None


def judge_code(text: str, tests: str, cpu_s: int = CPU_S) -> Judgement:
    """Run tests on a candidate.

    Args:
        text: a chain of thought whose last code block is the candidate.
        tests: statements that raise when the candidate is wrong.
        cpu_s: seconds of CPU time.
    """
    candidate = extract_code(text)
    return Judgement(Verdict.UNDECIDED, detail="no_code") if candidate is None else run_tests(candidate, tests, cpu_s)


def run_tests(candidate: str, tests: str, cpu_s: int = CPU_S) -> Judgement:
    """Judge a candidate's source."""
    if found := REFLECTION.search(candidate):
        return Judgement(Verdict.UNDECIDED, candidate, f"reflection: {found.group()}")
    word = hashlib.sha256(f"{candidate}\0{tests}".encode()).hexdigest()
    program = (
        "import builtins as _b, sys as _s, os as _o\n"
        "_write, _out = _o.write, _o.dup(1)\n"
        f"_space = {{'__name__': 'candidate'}}\n"
        f"exec(compile({candidate!r}, 'candidate.py', 'exec'), _space)\n"
        f"exec(compile({tests!r}, 'tests.py', 'exec'), _space)\n"
        f"_write(_out, b'\\n{word}\\n')\n"
    )
    done = run_program(program, cpu_s)
    if done.how != "exited":
        return Judgement(Verdict.UNDECIDED, candidate, "timeout" if done.how == "limit" else "no_sandbox")
    if done.code == 0 and done.output.endswith(f"\n{word}\n"):
        return Judgement(Verdict.VERIFIED, candidate)
    lines = [line for line in done.errors.splitlines() if line.strip()]
    reason = lines[-1].split(":")[0][:60] if lines else f"exit_{done.code}"
    return Judgement(Verdict.REFUTED, candidate, reason)
