"""The pieces of HTML that reports are made of: pages, sections and tables. No script, no font, no address outside."""

import html
from collections.abc import Iterable, Sequence

STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2.2rem;border-bottom:1px solid #ddd}
table{border-collapse:collapse;font-size:.85rem}
td,th{padding:.15rem .7rem;border-bottom:1px solid #eee;text-align:right}
td.text,th{text-align:left}.verdict{background:#f4f4ec;padding:.6rem 1rem;border-left:4px solid #009E73}
svg{max-width:100%;height:auto}
.note{color:#666;font-size:.85rem}code{font-size:.85em}"""


def page(name: str, about: str, body: str) -> str:
    """A whole page around the sections of its body."""
    title = html.escape(name)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Loam: {title}</title><style>{STYLE}</style></head>
<body><h1>{title}</h1><p>{html.escape(about)}</p>
{body}
</body></html>
"""


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
