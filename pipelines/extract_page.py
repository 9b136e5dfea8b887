"""One page to its text: a quick path for nearly all pages, a careful path for those where it is unsure.

The quick path is our own (`extract_content` on a lean tree, 3 ms a page). It is unsure where the element that it
chose holds little of the page's prose, or where there is little text and the page has more; there trafilatura reads the
page too (20 ms), and the longer text is taken, which errs on the side that later filters can mend. Structured data has
the last word (`extract_declared`). The order of thresholds and their evidence: docs/extraction.md.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lxml import etree

from pipelines.extract_content import find_content, strip
from pipelines.extract_declared import read_declared, reconcile
from pipelines.extract_lines import clean_lines
from pipelines.extract_names import CJK
from pipelines.extract_render import render
from pipelines.extract_tree import MAX_DEPTH, TooDeep, is_too_deep, lean, parse

UNSURE_SHARE = 0.25  # of the page's prose; below it another element may be the main one
UNSURE_CHARS = 400  # of text; a third as many where the text is Chinese, Japanese or Korean
UNSURE_GAIN = 1.5  # characters of the page in no link, per character of text, below which there is no more to find
MAX_TITLE = 300
SOFT_HYPHEN = "\u00ad"  # says where a word may be broken, and would split it in two for any reader of text


@dataclass(frozen=True, slots=True)
class Extracted:
    """What a page says.

    Attributes:
        text: the main content.
        title: as the page names itself, or "".
    """

    text: str
    title: str = ""


def extract_page(html: str, comments: bool = False, links: bool = False, max_depth: int = MAX_DEPTH) -> Extracted:
    """The main text and the title of a page.

    Args:
        html: the page.
        comments: keep sections of user comments.
        links: write the targets of links.
        max_depth: of nested elements, scripts and drawings aside.

    Raises:
        TooDeep: they nest deeper.
    """
    page = lean(html)
    if is_too_deep(page.html, max_depth):
        raise TooDeep
    tree = parse(page.html)
    if tree is None:
        return Extracted("")
    title = title_of(tree)
    body = body_of(tree)
    declared = read_declared(page.json_ld) if page.json_ld else None
    if declared is not None and not (declared.body or declared.recipe):
        declared = None
    shown = " ".join(body.itertext()) if declared else ""
    if not strip(body) and (again := parse(page.html)) is not None:
        body = body_of(again)
    content = find_content(body, comments)
    text = clean_lines(render(content.root, links))
    if content.share < UNSURE_SHARE or (is_short(text) and content.unlinked > UNSURE_GAIN * len(text)):
        other = clean_lines(careful(page.html, comments, links))
        if len(other) > len(text):
            text = other
    if declared is not None:
        text = reconcile(text, declared, shown)
    return Extracted(text.replace(SOFT_HYPHEN, ""), title.replace(SOFT_HYPHEN, ""))


def body_of(tree: etree._Element) -> etree._Element:
    """The body of a page, or all of it where the markup has none."""
    body = tree.find("body")
    return tree if body is None else body


def is_short(text: str) -> bool:
    """Whether a text is so short that the main content may have been missed."""
    if len(text) >= UNSURE_CHARS:
        return False
    return 2 * len(CJK.findall(text)) < len(text) or len(text) < UNSURE_CHARS / 3


def careful(html: str, comments: bool, links: bool) -> str:
    """The text that trafilatura finds, or "" where it fails."""
    try:
        return trafilatura_of()(html, include_comments=comments, include_links=links, fast=True) or ""
    except (ValueError, RuntimeError, RecursionError, TypeError, AttributeError, etree.Error):
        return ""  # an engine's bug on one page: the quick path's text stands


def trafilatura_of() -> Callable[..., Any]:
    """The extract function of trafilatura; imported when the first page needs it, since that takes half a second."""
    from trafilatura import extract

    return extract


def title_of(tree: etree._Element) -> str:
    """Title of a page: Open Graph's, else the title element, else the first h1."""
    for meta in tree.iter("meta"):
        if meta.get("property") == "og:title" and (content := meta.get("content")):
            return " ".join(content.split())[:MAX_TITLE]
    for tag in ("title", "h1"):
        node = next(tree.iter(tag), None)
        if node is not None and (text := " ".join("".join(node.itertext()).split())):
            return text[:MAX_TITLE]
    return ""
