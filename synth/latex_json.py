r"""LaTeX inside JSON: backslashes that a model wrote once are doubled before the answer is parsed.

JSON reads `\frac` as a form feed and `rac`, and `\(` not at all. What is a command of LaTeX is known by its name, so
that `\n` before a word stays a line break; what was doubled already is left alone.
"""

import re

_BACKSLASH = re.compile(r'\\(\\|"|/|u[0-9a-fA-F]{4}|[A-Za-z]+|.|$)', re.DOTALL)
_CODE_POINT = re.compile("u[0-9a-fA-F]{4}")
_NAMES = """
backslash bar because begin beta between bf big bigcap bigcup bigl bigr binom bmod boldsymbol bot boxed breve bullet
fbox flat footnote forall frac frown
nabla natural ne nearrow neg neq newline nexists ni nleq nmid not notag notin nu nparallel nsubseteq
rangle rbrace rceil ref rfloor rho right rightarrow rightharpoonup rm root
tag tan tanh tau tbinom text textbf textit textrm tfrac therefore theta thickapprox thinspace tilde times tiny to top
triangle tt
"""
_COMMANDS = frozenset(_NAMES.split())
"""Names that begin with a letter that JSON gives a meaning after a backslash."""


def double_backslashes(answer: str) -> str:
    r"""The same answer with every backslash of LaTeX written twice, as JSON asks for.

    Args:
        answer: JSON text, or what a model takes for it.

    Returns:
        `{"a": "\frac12 \(x\)"}` as `{"a": "\\frac12 \\(x\\)"}`; answers that are right already, unchanged.
    """
    return _BACKSLASH.sub(_double, answer)


def _double(match: re.Match[str]) -> str:
    after = match.group(1)
    if after in ("\\", '"', "/") or _CODE_POINT.fullmatch(after):
        return match.group()
    if after[:1] in tuple("bfnrt") and after not in _COMMANDS:
        return match.group()
    return "\\" + match.group()
