"""What becomes of a rephrasing's answer: pure functions from text to text, or to the reason why not."""

import re
from collections.abc import Sequence

import xxhash

PAIRS_PER_TOKENS = (10, 150)
"""At most ten questions for every 150 tokens that they are about (arXiv:2412.02595, appendix)."""

_FENCE = re.compile(r"^[ \t]*(?:```|~~~)[^\n]*\n?", re.MULTILINE)
_HEADING = re.compile(r"^[ \t]{0,3}#{1,6}[ \t]+", re.MULTILINE)
_QUOTE_MARK = re.compile(r"^[ \t]{0,3}>[ \t]?", re.MULTILINE)
_RULE = re.compile(r"^[ \t]{0,3}(?:-{3,}|\*{3,}|_{3,})[ \t]*$\n?", re.MULTILINE)
_IMAGE_OR_LINK = re.compile(r"!?\[([^\[\]\n]*)\]\([^()\s]*\)")
_STRONG = re.compile(r"(\*\*\*|\*\*|(?<!\w)__)(?=\S)(.+?)(?<=\S)\1(?!\w)", re.DOTALL)
_EMPHASIS = re.compile(r"(?<![\w*\\^])\*(?=[^\s*])([^*\n]+?)(?<=[^\s*])\*(?![\w*])")
_CODE = re.compile(r"`([^`\n]+)`")
_BULLET = re.compile(r"^[ \t]*(?:[-*+–](?=\s)|[•·●▪]|\(?\d{1,3}[.)](?=\s)|[（(]?\d{1,3}[、）])\s*(?=\S)")
_ENCLOSED = {'"': '"', "“": "”", "「": "」", "『": "』", "‘": "’", "'": "'"}
_QUESTION = re.compile(r"^(?:[-*•]\s*|\d{1,2}[.)、]\s*)?(?:question|问题|问)\s*\d*\s*[:：]\s*", re.IGNORECASE)
_ANSWER = re.compile(r"^(?:[-*•]\s*)?(?:answer|答案|答)\s*\d*\s*[:：]\s*", re.IGNORECASE)


def strip_markdown(text: str) -> str:
    """Plain text: marks of headings, emphasis, code, quotations, rules and links go, what they mark stays."""
    for mark in (_FENCE, _RULE, _HEADING, _QUOTE_MARK):
        text = mark.sub("", text)
    for mark, inside in ((_IMAGE_OR_LINK, r"\1"), (_STRONG, r"\2"), (_EMPHASIS, r"\1"), (_CODE, r"\1")):
        text = mark.sub(inside, text)
    return text.strip()


def without_prefix(text: str, prefix: str) -> str | None:
    """What follows the words that an answer had to begin with; None (`missing_prefix`) where it does not.

    White space, case and Markdown's stars around the prefix do not count.
    """
    words = r"\s+".join(map(re.escape, prefix.strip().rstrip(":：").split()))
    found = re.match(rf"[\s*#]*{words}\s*[:：]?[\s*]*", text, re.IGNORECASE)
    return text[found.end() :].strip() if found else None


def strip_bullets(text: str) -> str:
    """One statement to a line, without bullets and numbers before it, without empty lines."""
    lines = (_BULLET.sub("", line, count=1).strip() for line in text.splitlines())
    return "\n".join(line for line in lines if any(map(str.isalnum, line)))


def strip_quotes(text: str) -> str:
    """What a pair of quotation marks around the whole encloses; other quotation marks stay."""
    text = text.strip()
    if len(text) > 1 and _ENCLOSED.get(text[0]) == text[-1]:
        inside = text[1:-1]
        if text[0] not in inside and text[-1] not in inside:
            return inside.strip()
    return text


def parse_pairs(text: str) -> list[tuple[str, str]] | None:
    """Questions with their answers.

    Args:
        text: lines `Question: ...` and `Answer: ...` (`问题：`, `答案：`), each perhaps going on over further lines.

    Returns:
        The pairs in order; None where anything stands before the first question, a question has no answer, an answer no
        question, or one of them is empty.
    """
    parts: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        bare = line.strip()
        for kind, pattern in (("question", _QUESTION), ("answer", _ANSWER)):
            if match := pattern.match(bare):
                parts.append((kind, [bare[match.end() :].strip()]))
                break
        else:
            if bare and not parts:
                return None
            if bare:
                parts[-1][1].append(bare)
    texts = [(kind, "\n".join(filter(None, lines))) for kind, lines in parts]
    kinds = [kind for kind, _ in texts]
    if not texts or kinds != ["question", "answer"] * (len(texts) // 2) or not all(text for _, text in texts):
        return None
    return [(texts[at][1], texts[at + 1][1]) for at in range(0, len(texts), 2)]


def drawn_pairs(pairs: Sequence[tuple[str, str]], tokens: int, key: str, seed: int) -> list[tuple[str, str]]:
    """Shuffle, and keep between one and ten for every 150 tokens: as drawn from seed and key, never from a clock.

    Args:
        pairs: questions with answers.
        tokens: of the text that they are about.
        key: of document, segment and recipe.
        seed: of the recipe.
    """
    per, of = PAIRS_PER_TOKENS
    most = max(1, per * tokens // of)
    number = 1 + xxhash.xxh64_intdigest(key.encode(), seed) % most
    order = sorted(range(len(pairs)), key=lambda at: xxhash.xxh64_intdigest(f"{key}\0{at}".encode(), seed))
    return [pairs[at] for at in order[:number]]


def render_pairs(pairs: Sequence[tuple[str, str]], language: str) -> str:
    """Pairs as text, with words of the language for question and answer."""
    question, answer = ("问题：", "答案：") if language == "zh" else ("Question: ", "Answer: ")
    return "\n\n".join(f"{question}{asked}\n{answer}{said}" for asked, said in pairs)
