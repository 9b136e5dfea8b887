"""Finding the main content of a page: what is boilerplate goes, what holds the prose stays.

Every element gets a weight, the characters of its prose: a block counts by its length and by how little of it is
links. Elements that name themselves as boilerplate (navigation, related, share, cookie, ...) are removed unless they
hold most of the page's prose; then the walk goes down from the body for as long as one child holds nearly all of the
weight. No site is known by name. The thresholds are hand-made.
"""

from dataclasses import dataclass

from lxml import etree

from pipelines.extract_names import (
    CJK,
    DEAD,
    DEAD_ROLES,
    HIDDEN_STYLE,
    INLINE,
    LEAF,
    NAMED_BAD,
    NAMED_COMMENTS,
    NAMED_GOOD,
    UNNAMED,
    VERDICTS,
)
from pipelines.extract_weights import SHORT, Weights

# Thresholds: set on half of the development pages, checked on the other half (docs/extraction.md)
BAD_SHARE = 0.5  # an element that holds more of the page's prose is not removed for its name
BAD_TRUST = 0.5  # what a cluster of paragraphs counts for inside an element with a bad name
COMMENT_TRUST = 0.2  # and inside comments, navigation, footers
GOOD_TRUST = 1.5
HEADER_PROSE = 60  # a header with less prose has no lead paragraph
LINKED = 0.5  # share of links from which a block is a list of links
LINKED_PROSE = 0.3  # but not if it holds so much of the content
DESCEND = 0.9  # share of prose that one child must hold to be the content instead of its parent
CORE = 0.6  # share of prose from which the best cluster is the start
CLEAN = 0.7  # prose per character, above which what surrounds the content belongs to it
AROUND = 1.0  # and if it is no more than the content itself
AROUND_LINKED = 0.2  # and has few links
MIN_AROUND = 40  # characters
HINTS = ((4, 0.4), (3, 0.5), (2, 0.5))  # articleBody, a good name, <article>; share of prose that each must hold
OUTSIDE = frozenset(("form", "fieldset", "h1", "figcaption"))  # h1 is the title, which is kept apart
CELLS = frozenset(("tr", "td", "th", "tbody"))
SHORT_CJK = 30  # a Chinese or Japanese sentence is a third as long
STRIPPED = (DEAD - {"aside", "dialog"}) | {"rt", "rp"}  # some sites wrap the article in these two; readings of Kanji
MIN_LEFT = 100  # characters; if stripping leaves less, it took the page: an end tag was missing


@dataclass(slots=True)
class Content:
    """The main content.

    Attributes:
        root: its element; everything below it is wanted.
        share: weight of its prose over that of the page, user comments aside.
        unlinked: characters of the whole page that are in no link.
    """

    root: etree._Element
    share: float
    unlinked: int


class Chooser:
    """Chooses among the elements of one page; `find_content` is its whole use."""

    def __init__(self, root: etree._Element, comments: bool, short: int) -> None:
        self.w = Weights(root, short)
        self.comments = comments
        self.total = self.w.prose[0]
        self.unlinked = self.w.text[0] - self.w.link[0]
        self.verdicts = [0] * len(self.w.nodes)
        self.top = 0
        self.safe: set[int] = set()
        self.gone: set[int] = set()
        self.dead: list[int] = []
        self.remarks = 0.0  # prose of user comments that were killed
        self.hints: list[tuple[int, int]] = []  # (strength, index), document order

    def kill(self, i: int) -> int:
        """Take an element out of its ancestors' sums; returns the index behind it."""
        w = self.w
        text, link, prose = w.text[i], w.link[i], w.prose[i]
        self.dead.append(i)
        up = i
        while up:
            up = w.parent[up]
            w.text[up] -= text
            w.link[up] -= link
            w.prose[up] -= prose
        return w.end[i]

    def core(self) -> set[int]:
        """The element with the best cluster of paragraphs, and all that it lies in: never killed for a name."""
        w = self.w
        nodes, tags, parent, cluster, verdicts = w.nodes, w.tags, w.parent, w.cluster, self.verdicts
        text, end = w.text, w.end
        trust = [1.0] * len(nodes)
        best, top = 0.0, 0
        i, count = 1, len(nodes)
        while i < count:
            if not text[i]:
                i = end[i]
                continue
            tag, own = tags[i], trust[parent[i]]
            if tag in DEAD:
                own *= COMMENT_TRUST
            elif tag not in UNNAMED:
                node, said = nodes[i], 0
                if name := node.get("class"):
                    said = VERDICTS[name]
                if name := node.get("id"):
                    said |= VERDICTS[name]
                if said:
                    verdicts[i] = said
                    if not said & NAMED_GOOD:
                        own *= COMMENT_TRUST if said & NAMED_COMMENTS else BAD_TRUST
                    else:
                        own *= GOOD_TRUST
            trust[i] = own
            if cluster[i] * own > best:
                best, top = cluster[i] * own, i
            i += 1
        self.top = top
        safe = {top}
        while top:
            top = parent[top]
            safe.add(top)
        return safe

    def sweep(self) -> None:
        """Kill what names itself as boilerplate, and note what names itself as the article."""
        w = self.w
        i, count, nodes, tags, prose = 1, len(w.nodes), w.nodes, w.tags, w.prose
        safe, verdicts = self.safe, self.verdicts
        most = BAD_SHARE * self.total
        while i < count:
            if not w.text[i]:
                i = w.end[i]
                continue
            tag, node, said = tags[i], nodes[i], verdicts[i]
            free = i not in safe
            if free and (
                tag in DEAD
                or tag in OUTSIDE
                or (tag == "header" and prose[i] < HEADER_PROSE)
                or (tag == "figure" and node.find(".//table") is None and node.find(".//pre") is None)
            ):
                i = self.kill(i)
                continue
            if tag == "article" or tag == "main":
                self.hints.append((2, i))
            if node.get("itemprop") == "articleBody":
                self.hints.append((4, i))
            elif said == NAMED_GOOD:
                self.hints.append((3, i))
            if free:
                named = said & NAMED_BAD and prose[i] <= most and tag not in ("article", "p")
                if named and said & NAMED_COMMENTS:
                    named = not self.comments
                elif named:  # "social" and "embed" also name the posts that an article quotes
                    named = node.find(".//blockquote") is None
                if named or is_hidden(node):
                    if said & NAMED_COMMENTS:
                        self.remarks += prose[i]
                    i = self.kill(i)
                    continue
            i += 1

    def root(self) -> int:
        """The element whose content is the main one."""
        w = self.w
        here = self._descend(0)
        whole = w.prose[0]
        for strength, share in HINTS:
            fits = [i for s, i in self.hints if s == strength and w.prose[i] >= share * whole and i not in self.gone]
            if fits:
                best = max(fits)  # the deepest of nested ones comes last
                if here <= best < w.end[here]:
                    here = best
                break
        here = self._descend(here)
        if self.top and here < self.top < w.end[here] and w.prose[self.top] > CORE * w.prose[here]:
            here = self.top
        return self._climb(here)

    def _climb(self, here: int) -> int:
        """Take in what lies around as long as it is clean prose: the lead of an article, its other parts."""
        w = self.w
        top = here
        while here:
            up = w.parent[here]
            if w.tags[up] in ("body", "html"):
                break
            text, prose, link = w.text[up] - w.text[top], w.prose[up] - w.prose[top], w.link[up] - w.link[top]
            if text and (prose < CLEAN * text or prose > AROUND * w.prose[top] or link > AROUND_LINKED * text):
                break
            here = up
            if text > MIN_AROUND:
                top = up
        return top

    def _descend(self, here: int) -> int:
        """Go down for as long as one child holds nearly all prose."""
        w = self.w
        while True:
            need, child, found = DESCEND * w.prose[here], here + 1, 0
            while child < w.end[here]:
                if w.prose[child] >= need and child not in self.gone and w.tags[child] not in LEAF:
                    found = child
                    break
                child = w.end[child]
            if not found or w.tags[found] in INLINE:
                return here
            here = found

    def trim(self, top: int) -> None:
        """Below the chosen element: kill blocks that are mostly links."""
        w = self.w
        i, end = top + 1, w.end[top]
        while i < end:
            if i in self.gone:
                i = w.end[i]
                continue
            text, tag = w.text[i], w.tags[i]
            if text and tag not in INLINE:
                links = w.link[i] / text
                if links > LINKED and w.prose[i] < LINKED_PROSE * w.prose[top] and tag not in CELLS:
                    i = self.kill(i)
                    continue
            i += 1

    def run(self) -> Content:
        """Choose, and remove from the tree what is boilerplate inside the choice."""
        self.safe = self.core()
        self.sweep()
        self.gone = set(self.dead)
        top = self.root()
        self.trim(top)
        w = self.w
        whole = self.total - self.remarks
        share = w.prose[top] / whole if whole > 0 else 0.0
        inside = [w.nodes[i] for i in self.dead if top < i < w.end[top]]
        for node in inside:
            remove(node)
        return Content(w.nodes[top], share, self.unlinked)


def is_hidden(node: etree._Element) -> bool:
    """Whether an element is hidden, or has a role that no content has."""
    if (role := node.get("role")) and role in DEAD_ROLES:
        return True
    if node.get("hidden") is not None or node.get("aria-hidden") == "true":
        return True
    style = node.get("style")
    return style is not None and HIDDEN_STYLE.search(style) is not None


def remove(node: etree._Element) -> None:
    """Take an element out of its tree, leaving the text behind it."""
    up = node.getparent()
    if up is None:
        return
    if node.tail:
        before = node.getprevious()
        if before is None:
            up.text = (up.text or "") + node.tail
        else:
            before.tail = (before.tail or "") + node.tail
    node.tail = None
    up.remove(node)


def find_content(root: etree._Element, comments: bool = False) -> Content:
    """Find the main content; the tree loses what is boilerplate inside it.

    Args:
        root: the body of a page.
        comments: keep sections of user comments.
    """
    return Chooser(root, comments, SHORT_CJK if is_cjk(root) else SHORT).run()


def is_cjk(root: etree._Element) -> bool:
    """Whether most of the first thousand characters are Chinese, Japanese or Korean."""
    pieces, left = [], 1000
    for text in root.itertext():
        if text := text.strip():
            pieces.append(text)
            left -= len(text)
            if left < 0:
                break
    return 2 * sum(len(CJK.findall(piece)) for piece in pieces) > 1000 - left


def strip(root: etree._Element) -> bool:
    """Remove navigation, footers, controls and their like from a tree, in libxml2: a third of the elements of a page.

    Returns:
        whether something is left of the page.
    """
    etree.strip_elements(root, *STRIPPED, with_tail=False)
    chars = 0
    for text in root.itertext():
        chars += len(text.strip())
        if chars >= MIN_LEFT:
            return True
    return False
