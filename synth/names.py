"""Names in a text, by their looks, and which of a chain's its document does not hold.

A heuristic, and meant as one: in scripts with capitals a name is a run of capitalised words that is not only the first
word of a sentence; in Chinese it is what stands between title or quotation marks, and every Latin word among Han
characters. A name is held when the document has each of its words (in any case, plural or possessive), or when it is
made of the initials of words that stand there in a row.
"""

import re

from synth.words import CJK

TITLE_SHARE = 0.8  # of the words of four letters and more
_SENTENCE = re.compile(r"[.!?:;]\s+|[\n。！？：；•]\s*|^\s*(?:\d+[.)]|[-*])?\s+")
_RUN = re.compile(r"\b[A-ZÀ-ÖØ-ÞА-ЯЁΑ-Ω][\w'’.-]*(?:[ \t]+[A-ZÀ-ÖØ-ÞА-ЯЁΑ-Ω][\w'’.-]*)*")
_WORD = re.compile(r"[^\W_]+")
_QUOTED = re.compile(r"[《〈「『“]([^《》〈〉「」『』“”\n]{2,30})[》〉」』”]")
_LATIN = re.compile(r"[A-Za-z][A-Za-z-]+")
_HAN = re.compile(f"[{CJK}]")
_COMMON_WORDS = """
i a an the if so but and or as at by for from in into of on to with then thus this that these those it its he she we
they you his her our their your what why how when where who which there here let since because therefore hence first
second third next finally also however while after before given now step answer question is are was were be monday
tuesday wednesday thursday friday saturday sunday january february march april may june july august september october
november december q.e.d am pm mr mrs ms dr no not yes
"""
_COMMON = frozenset(_COMMON_WORDS.split())
"""Words whose capital says nothing."""


def names_of(text: str) -> list[str]:
    """The names in a text, each once, in order."""
    if _HAN.search(text):
        return list(dict.fromkeys([*_QUOTED.findall(text), *_LATIN.findall(text)]))
    found = []
    for sentence in _SENTENCE.split(text):
        if _is_title(sentence):
            continue
        for match in _RUN.finditer(sentence):
            words = [word for word in match.group().split() if word.strip(".'’-").lower() not in _COMMON]
            if match.start() == 0 and words and match.group().startswith(words[0]):
                # the first word of a sentence has its capital anyway, unless it has more of them
                words = words if sum(map(str.isupper, words[0])) > 1 else words[1:]
            if words:
                found.append(" ".join(words).rstrip(".'’-"))
    return list(dict.fromkeys(name for name in found if len(name) > 1))


def _is_title(sentence: str) -> bool:
    """Whether most longer words of a sentence have capitals, which then say nothing."""
    longer = [word for word in _WORD.findall(sentence)[1:] if len(word) > 3]
    return len(longer) > 4 and sum(word[0].isupper() for word in longer) > TITLE_SHARE * len(longer)


def missing_names(text: str, document: str) -> list[str]:
    """Names of a text that its document does not hold."""
    if _HAN.search(text):
        whole = document.lower()
        return [name for name in names_of(text) if name.lower() not in whole]
    held = [word.lower() for word in _WORD.findall(document)]
    known = set(held) | {word.lower().replace("-", "") for word in document.split() if "-" in word}
    initials = "".join(word[0] for word in held)
    return [name for name in names_of(text) if not _held(name, known, initials)]


def _held(name: str, known: set[str], initials: str) -> bool:
    """Whether each capitalised part of a name is a word of the document, or an acronym of words in a row there."""
    if name.replace("-", "").lower() in known:
        return True
    return all(_known(part, known) or _acronym(part, initials) for part in _WORD.findall(name) if not part[0].islower())


def _acronym(part: str, initials: str) -> bool:
    letters = part.removesuffix("s")  # GANs
    return len(letters) > 1 and letters.isupper() and letters.lower() in initials


def _known(part: str, known: set[str]) -> bool:
    word = part.lower()
    forms = (word, word.removesuffix("s"), f"{word}s", word.removesuffix("es"))
    return len(word) == 1 or word.isdigit() or any(form in known for form in forms)
