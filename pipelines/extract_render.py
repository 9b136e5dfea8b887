"""Laying out the main content as text: paragraphs, lists, tables, code and formulas stay readable.

Headings and paragraphs are lines with a blank line between; list items begin with a dash; tables of data are Markdown
rows, tables for layout are dissolved; `pre` is fenced with its indent; formulas are LaTeX between dollar signs. The
walk is iterative (libxml2's events), so that depth costs no stack.
"""

import re

from lxml import etree

BLOCKS = frozenset(
    """address article aside blockquote body caption center dd details dir div dl dt fieldset figcaption figure footer
    form h1 h2 h3 h4 h5 h6 header hgroup hr html legend li main menu nav ol p pre section summary table tbody td tfoot
    th thead tr ul""".split()  # noqa: SIM905
)
APART = frozenset("p h1 h2 h3 h4 h5 h6 ul ol dl table blockquote pre figure".split())  # noqa: SIM905 - blank line around
SPACE = re.compile(r"[ \t\r\n\f\v\u00a0]+")
FORMULA = re.compile(r"\b(?:mwe-math-fallback-image\S*|tex|latex|math|mathtex|equation)\b", re.IGNORECASE)
MATH_HTML = frozenset(("katex-html", "MathJax_Preview", "MathJax", "MathJax_Display", "MathJax_SVG", "MathJax_CHTML"))
MAX_CELL = 300  # characters of a cell of data; longer ones are layout


class Layout:
    """Text being laid out.

    Args:
        links: write the targets of links after their text.
    """

    def __init__(self, links: bool = False) -> None:
        self.links = links
        self.lines: list[str] = []
        self.inline: list[str] = []
        self.blank = False  # a blank line is due
        self.prefix = ""
        self.depth = 0  # of lists

    def flush(self) -> None:
        """End the line that is being written."""
        if not self.inline:
            return
        text = SPACE.sub(" ", "".join(self.inline)).strip()
        self.inline.clear()
        if text:
            self.write(text)

    def write(self, text: str) -> None:
        """Write a line, after the blank line that may be due."""
        if self.blank and self.lines:
            self.lines.append("")
        self.blank = False
        self.lines.append(self.prefix + text if self.prefix else text)
        if self.prefix:
            self.prefix = " " * len(self.prefix)

    def text(self) -> str:
        """What was laid out."""
        self.flush()
        return "\n".join(self.lines)


def render(root: etree._Element, links: bool = False) -> str:
    """Lay out what is below an element.

    Args:
        root: the main content.
        links: write the targets of links.
    """
    layout = Layout(links)
    walk = etree.iterwalk(root, events=("start", "end"))
    for event, node in walk:
        tag = node.tag
        if event == "start":
            if _special(layout, node, tag):
                walk.skip_subtree()
                continue
            _start(layout, node, tag)
            if node.text:
                layout.inline.append(node.text)
        else:
            _close(layout, node, tag)
            if node is not root and node.tail:
                layout.inline.append(node.tail)
    return layout.text()


def _start(layout: Layout, node: etree._Element, tag: str) -> None:
    if tag not in BLOCKS:
        return
    layout.flush()
    if tag in APART and not layout.depth:
        layout.blank = True
    if tag in ("ul", "ol", "dir", "menu"):
        layout.depth += 1
    elif tag == "li":
        layout.prefix = "  " * (layout.depth - 1) + "- "


def _close(layout: Layout, node: etree._Element, tag: str) -> None:
    if tag == "br":
        layout.flush()
    elif tag == "a" and layout.links and (target := node.get("href")):
        layout.inline.append(f" ({target})")
    elif tag in BLOCKS:
        layout.flush()
        if tag in ("ul", "ol", "dir", "menu"):
            layout.depth -= 1
        if tag in ("li", "ul", "ol", "dir", "menu"):
            layout.prefix = ""
        if tag in APART and not layout.depth:
            layout.blank = True
    elif tag in ("td", "th"):
        layout.inline.append(" ")


def _special(layout: Layout, node: etree._Element, tag: str) -> bool:
    """Lay out an element as a whole: code, data, formulas. Returns whether it was one."""
    if tag == "pre":
        code = "".join(node.itertext()).replace("\r\n", "\n").strip("\n")
        if code.strip():
            layout.flush()
            layout.blank = True
            layout.write("```\n" + code.rstrip() + "\n```")
            layout.blank = True
        return True
    if tag == "math":
        layout.inline.append(_formula(node))
        return True
    if tag == "img":
        alt = node.get("alt")
        if alt and FORMULA.search(node.get("class") or ""):
            layout.inline.append(f"${alt.strip()}$")
        return True
    if tag in ("span", "div") and MATH_HTML.intersection((node.get("class") or "").split()):
        return True
    if tag == "table" and (rows := data_rows(node)):
        layout.flush()
        layout.blank = True
        for number, row in enumerate(rows):
            layout.write("| " + " | ".join(row) + " |")
            if not number:
                layout.write("|" + " --- |" * len(row))
        layout.blank = True
        return True
    return False


def _formula(node: etree._Element) -> str:
    """LaTeX of a MathML element, else its text."""
    tex = node.get("alttext")
    if not tex:
        notes = node.iter("annotation")
        tex = next((n.text for n in notes if n.text and "tex" in (n.get("encoding") or "").lower()), None)
    if not tex:
        return " ".join("".join(node.itertext()).split())
    mark = "$$" if node.get("display") == "block" else "$"
    return f"{mark}{tex.strip()}{mark}"


def data_rows(table: etree._Element) -> list[list[str]] | None:
    """Cells of a table of data: at least two rows and two columns, nothing nested, short cells; else None."""
    if table.find(".//table") is not None or table.find(".//pre") is not None:
        return None
    rows: list[list[str]] = []
    for row in table.iter("tr"):
        cells = []
        for cell in row.iterchildren("td", "th"):
            text = render_cell(cell)
            if len(text) > MAX_CELL:
                return None
            cells.append(text)
        if any(cells):
            rows.append(cells)
    return rows if len(rows) >= 2 and max(map(len, rows)) >= 2 else None


def render_cell(cell: etree._Element) -> str:
    """One line of text."""
    if len(cell):
        return " ".join(render(cell).split()).replace("|", "\\|")
    return " ".join((cell.text or "").split()).replace("|", "\\|")
