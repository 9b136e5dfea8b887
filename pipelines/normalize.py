"""Normalization: one spelling for what looks the same, with nothing lost that a reader would miss.

Unicode NFC, lines that end in a line feed, no control characters, no trailing spaces, at most two blank lines in a row;
indentation is left alone, since code lives by it. All of it is columnar and idempotent.
"""

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.block import Block
from pipelines.document import REJECTED, with_column, with_fate

# Two patterns of RE2, in this order. Removed: C0 and C1 controls but tab and newline, DEL, the byte order mark.
LINE_ENDS = r"\r\n?|\x{85}|\x{2028}|\x{2029}"
CONTROLS = r"[\x00-\x08\x0b-\x1f\x7f-\x{9f}\x{feff}]"
TRAILING = r"(?m)[ \t]+$"
MANY_BLANKS = r"\n{4,}"
EDGES = r"\A\n+|\n+\z"


def normalized(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Normalize a column of text.

    Args:
        texts: strings; null stays null.
    """
    texts = pc.replace_substring_regex(texts, LINE_ENDS, "\n")
    texts = pc.replace_substring_regex(texts, CONTROLS, "")
    texts = pc.utf8_normalize(texts, form="NFC")
    texts = pc.replace_substring_regex(texts, TRAILING, "")
    texts = pc.replace_substring_regex(texts, MANY_BLANKS, "\n\n\n")
    return pc.replace_substring_regex(texts, EDGES, "")


def normalize_text(text: str) -> str:
    r"""Normalize one text.

    Example:
        >>> normalize_text("def f():\r\n    return 1  \r\n")
        'def f():\n    return 1'
    """
    return normalized(pa.chunked_array([[text]]))[0].as_py()


class Normalize(Block):
    """Normalize `text`; a document of which nothing is left is rejected as `no_text`."""

    name = "normalize"

    def apply(self, batch: pa.Table) -> pa.Table:
        """Return the batch with its texts normalized."""
        batch = with_column(batch, "text", normalized(batch["text"]))
        empty = pc.equal(batch["text"], "")
        return with_fate(batch, REJECTED, pc.if_else(empty, pa.scalar("no_text"), pa.scalar(None, pa.string())))
