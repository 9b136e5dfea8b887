"""A page's tree, lean: scripts, styles and drawings are cut out of the HTML before it is parsed.

The choice that matters: on the pages of today more than half of the bytes are script, and cutting them with one linear
scan halves the time of the parser (libxml2). Structured data (JSON-LD) and formulas in scripts are kept aside.
"""

import html as entities
import re
from dataclasses import dataclass, field

from lxml import etree

# What may begin an element that is cut out; character classes, since a scan that ignores case is far slower
OPEN = re.compile(
    r"<(?:!--|([sS][cC][rR][iI][pP][tT]|[sS][tT][yY][lL][eE]|[sS][vV][gG]|[nN][oO][sS][cC][rR][iI][pP][tT]|"
    r"[iI][fF][rR][aA][mM][eE])[\s>/])"
)
TYPE = re.compile(r"""\btype\s*=\s*["']?\s*([\w./+-]+)([^"'>]*)""", re.IGNORECASE)
MIN_NOSCRIPT = 2000  # characters; less is a counter's or a picture's
MAX_JSON_LD = 200_000  # characters of one script; larger ones are catalogues, not the page
MAX_SCRIPTS = 20
MAX_DEPTH = 1000  # of nested elements; the time to lay out text grows with its square
TAG = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9:-]*)")
# Elements that have no end tag, or whose end tag may be left out, and the leaves of drawings: they do not nest
FLAT = frozenset(
    """area base br col embed hr img input link meta param source track wbr p li dt dd option optgroup tr td th thead
    tbody tfoot colgroup rt rp html head body path use circle rect line polygon polyline ellipse stop""".split()  # noqa: SIM905
)
RAW = {name: re.compile(f"</{name}", re.IGNORECASE) for name in ("script", "style", "svg", "noscript", "iframe")}


@dataclass(slots=True)
class Lean:
    """HTML without its machinery.

    Attributes:
        html: what is left to parse.
        json_ld: bodies of the scripts of type application/ld+json.
    """

    html: str
    json_ld: list[str] = field(default_factory=list)


def lean(html: str) -> Lean:
    """Cut scripts, styles, drawings and comments; linear in the length of the page."""
    found = Lean("")
    pieces, at, pos = [], 0, 0
    missing: set[str] = set()  # ends that do not come again: looked for once, or the scan were quadratic
    while (opening := OPEN.search(html, pos)) is not None:
        name = (opening[1] or "!--").lower()
        start, pos = opening.start(), opening.end()
        ends = None if name in missing else _end(html, name, pos, missing)
        if ends is None:
            missing.add(name)
            if name != "iframe":
                continue
            ends = pos - 1, html.find(">", pos - 1) + 1  # only the tag: a parser would take the rest of the page for it
            if not ends[1]:
                continue
        if name == "noscript" and ends[0] - pos >= MIN_NOSCRIPT:
            pieces.append(html[at:start])
            at = pos = html.find(">", pos - 1) + 1  # the tag alone: the page is shown to those without scripts
        elif name == "script" and (kept := _script(html[start : ends[0]], found)):
            pieces += (html[at:start], kept)
            at = pos = ends[1]
        else:
            pieces.append(html[at:start])
            at = pos = ends[1]
    pieces.append(html[at:])
    found.html = "".join(pieces)
    return found


def _end(html: str, name: str, pos: int, missing: set[str]) -> tuple[int, int] | None:
    """Where the element's content ends, and where what follows it begins."""
    if name == "!--":
        if html.startswith((">", "->"), pos):  # <!--> and <!---> are whole comments
            return pos, html.index(">", pos) + 1
        end = html.find("-->", pos)
        return (end, end + 3) if end >= 0 else None
    usual = f"</{name}"
    end = -1 if usual in missing else html.find(usual, pos)
    if end < 0:
        missing.add(usual)
    # a search that ignores case is slow, and seldom needed: only where another spelling may come first
    if end < 0 or html.find(f"</{name[0].upper()}", pos, end) >= 0:
        other = RAW[name].search(html, pos)
        if other is None:
            return None
        end = other.start()
    close = html.find(">", end)
    return (end, close + 1) if close >= 0 else None


def _script(element: str, found: Lean) -> str:
    """What stays of a script in the page: formulas; JSON-LD is put aside."""
    head, _, body = element.partition(">")
    kind = TYPE.search(head)
    if kind is None:
        return ""
    name = kind[1].lower()
    if name == "application/ld+json":
        if len(body) <= MAX_JSON_LD and len(found.json_ld) < MAX_SCRIPTS:
            found.json_ld.append(body)
    elif name == "math/tex":
        mark = "$$" if "display" in kind[2] else "$"
        return f"<span>{mark}{entities.escape(body.strip())}{mark}</span>"
    return ""


class TooDeep(ValueError):
    """A page is nested deeper than it may be."""


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


def parse(html: str) -> etree._Element | None:
    """Parse lean HTML.

    Returns:
        the root element, or None where there is no element at all.
    """
    if not html.strip():
        return None
    # collect_ids: libxml2 would keep a table of every id, which takes longer than all the rest
    parser = etree.HTMLParser(
        encoding="utf-8", remove_comments=True, remove_pis=True, huge_tree=True, collect_ids=False
    )
    return etree.fromstring(html.replace("\0", "").encode("utf-8", "replace"), parser)
