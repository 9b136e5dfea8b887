"""The engines of extraction behind one function, and the bounds that need no parser.

What the child process of `extract_guard` imports: little, so that it starts quickly.
"""

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass

from pipelines.errors import MissingExtra
from pipelines.extract_page import Extracted, extract_page

MAX_MARKUP = 1_000_000  # of "<" in a page; the largest real page of the development data has a twentieth
TAG = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9:-]*)")
# Elements that have no end tag, or whose end tag may be left out, and the leaves of drawings: they do not nest
FLAT = frozenset(
    """area base br col embed hr img input link meta param source track wbr p li dt dd option optgroup tr td th thead
    tbody tfoot colgroup rt rp html head body path use circle rect line polygon polyline ellipse stop""".split()  # noqa: SIM905
)

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


def is_too_deep(html: str, max_depth: int) -> bool:
    """Whether elements nest deeper than `max_depth`, without parsing."""
    if html.count("<") - html.count("</") <= max_depth:
        return False  # not enough start tags
    depth = 0
    for closing, name in TAG.findall(html):
        if name in FLAT or name.lower() in FLAT:
            continue
        depth = max(0, depth - 1) if closing else depth + 1
        if depth > max_depth:
            return True
    return False


Extractor = Callable[[str], Extracted]


@functools.cache
def extractor(engine: str, comments: bool, links: bool) -> Extractor:
    """The function that takes the main text out of HTML; arguments as in `ExtractSettings`.

    Raises:
        MissingExtra: trafilatura is needed and cannot be imported.
    """
    if engine == "resiliparse":
        from resiliparse.extract.html2text import extract_plain_text

        plain = functools.partial(
            extract_plain_text, main_content=True, list_bullets=True, alt_texts=False, links=links, comments=comments
        )
        return lambda html: Extracted(plain(html))
    try:
        import trafilatura
    except ImportError as error:  # it may lack a part of its own, such as lxml_html_clean
        wanted = "pip install 'trafilatura>=2.3.1,<3' lxml_html_clean"
        raise MissingExtra(f"engine {engine!r} needs trafilatura, which cannot be imported "
                           f"({error.msg.splitlines()[0]}); {wanted}") from None  # fmt: skip
    if engine == "trafilatura":
        main = functools.partial(trafilatura.extract, include_comments=comments, include_links=links)
        return lambda html: Extracted(str(main(html) or ""))
    return functools.partial(extract_page, comments=comments, links=links)


def extract_here(html: str, bounds: Bounds) -> Result:
    """The main text of a page, in this process: what cannot be foreseen is not bounded.

    Returns:
        text, title, and why there is no text: `too_deep`, `too_many_elements`, `no_text`, `bad_html` (the engine
        refused it), or None.
    """
    if html.count("<") > MAX_MARKUP:
        return "", "", "too_many_elements"
    if is_too_deep(html, bounds.max_depth):
        return "", "", "too_deep"
    try:
        found = extractor(bounds.engine, bounds.comments, bounds.links)(html)
    except (ValueError, RuntimeError, RecursionError, TypeError, AttributeError, SyntaxError):
        return "", "", "bad_html"  # an engine's bug is one page's fate; lxml's errors are SyntaxErrors
    if len(found.text.strip()) < bounds.min_text_chars:
        return "", "", "no_text"
    return found.text, found.title, None
