"""The pieces of HTML that reports are made of: sections and tables."""

import html
from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """An HTML table; numbers are written the way people read them."""
    cells = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    lines = "".join("<tr>" + "".join(_cell(value) for value in row) + "</tr>" for row in rows)
    return f"<table><tr>{cells}</tr>{lines}</table>"


def section(title: str, *parts: str) -> str:
    """A heading and what stands below it."""
    return f"<h2>{html.escape(title)}</h2>\n" + "\n".join(parts)


def _cell(value: object) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"<td>{value:.4g}</td>" if isinstance(value, float) else f"<td>{value:,}</td>"
    return f'<td class="text">{"&ndash;" if value is None else html.escape(str(value))}</td>'
