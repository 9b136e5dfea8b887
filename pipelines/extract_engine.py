"""The engines of extraction behind one function, and the bounds that need no parser.

What the child process of `extract_guard` imports: little, so that it starts quickly.
"""

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

from pipelines.errors import MissingExtra
from pipelines.extract_page import Extracted, extract_page
from pipelines.extract_tree import TooDeep, is_too_deep

MAX_MARKUP = 1_000_000  # of "<" in a page; the largest real page of the development data has a twentieth
Result = tuple[str, str, str | None]
"""Text, title, and why there is no text."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a page may cost.

    Attributes:
        engine: as in `ExtractSettings`.
        comments: as there.
        links: as there.
        max_depth: of nested elements.
        min_text_chars: of the text.
        cpu_s: processor time of one page, whole seconds.
        memory: bytes that the child may map beyond what it has at the start.
    """

    engine: str
    comments: bool
    links: bool
    max_depth: int
    min_text_chars: int
    cpu_s: int
    memory: int


Extractor = Callable[[str, int], Extracted]


def check_installed(engine: str) -> None:
    """Look for what an engine needs, without the time that importing takes.

    Raises:
        MissingExtra: it is not installed.
    """
    if engine == "resiliparse":
        return
    for package in ("trafilatura", "lxml_html_clean"):
        if importlib.util.find_spec(package) is None:
            wanted = "pip install 'trafilatura>=2.3.1,<3' lxml_html_clean"
            raise MissingExtra(f"engine {engine!r} needs {package}, which is not installed; {wanted}")


@functools.cache
def extractor(engine: str, comments: bool, links: bool) -> Extractor:
    """The function that takes the main text out of HTML of at most so many nested elements.

    Args:
        engine: as in `ExtractSettings`, like the others.
        comments: keep them.
        links: write their targets.

    Raises:
        MissingExtra: trafilatura is needed and not installed.
    """
    if engine == "resiliparse":
        from resiliparse.extract.html2text import extract_plain_text

        plain = functools.partial(
            extract_plain_text, main_content=True, list_bullets=True, alt_texts=False, links=links, comments=comments
        )
        return lambda html, max_depth: Extracted(plain(shallow(html, max_depth)))
    check_installed(engine)
    import trafilatura

    if engine == "trafilatura":
        main = functools.partial(trafilatura.extract, include_comments=comments, include_links=links)
        return lambda html, max_depth: Extracted(str(main(shallow(html, max_depth)) or ""))
    return lambda html, max_depth: extract_page(html, comments, links, max_depth)


def shallow(html: str, max_depth: int) -> str:
    """The page itself.

    Raises:
        TooDeep: its elements nest deeper than `max_depth`.
    """
    if is_too_deep(html, max_depth):
        raise TooDeep
    return html


def extract_here(html: str, bounds: Bounds) -> Result:
    """The main text of a page, in this process: what cannot be foreseen is not bounded.

    Returns:
        text, title, and why there is no text: `too_deep`, `too_many_elements`, `no_text`, `bad_html` (the engine
        refused it), or None.
    """
    if html.count("<") > MAX_MARKUP:
        return "", "", "too_many_elements"
    try:
        found = extractor(bounds.engine, bounds.comments, bounds.links)(html, bounds.max_depth)
    except TooDeep:
        return "", "", "too_deep"
    except (ValueError, RuntimeError, RecursionError, TypeError, AttributeError, SyntaxError):
        return "", "", "bad_html"  # an engine's bug is one page's fate; lxml's errors are SyntaxErrors
    if len(found.text.strip()) < bounds.min_text_chars:
        return "", "", "no_text"
    return found.text, found.title, None
