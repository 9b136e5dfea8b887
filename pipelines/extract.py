"""Extraction: the main text of web pages out of WARC, WET, ARC and HTML files.

Bounds instead of clocks: a page that is too large, nested too deeply or of too many elements is rejected before it is
parsed, so that the same page has the same fate on every machine; what still hangs or explodes a parser does so in a
child process (`extract_guard`). The default engine is our cascade (`extract_page`).
"""

import re
from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from datatrove.data import Document
from pydantic import Field

from pipelines.block import WriteDocuments
from pipelines.charset import decode
from pipelines.document import DROPPED, REJECTED
from pipelines.errors import DataError
from pipelines.execute import count_documents, run_blocks
from pipelines.extract_engine import Bounds, check_installed
from pipelines.extract_guard import BATCH_BYTES, BATCH_PAGES, Guard, guard_of
from pipelines.extract_tree import MAX_DEPTH
from pipelines.inputs import Batches
from pipelines.locations import common_root
from pipelines.normalize import Normalize
from pipelines.quantities import Bytes
from pipelines.readers import RawReader, Reading
from pipelines.recipe import Section
from pipelines.splits import Planner, Split
from pipelines.store import Outcome
from pipelines.warc import HTML_TYPES, Page, holds_pages, page_planner, read_pages


class ExtractSettings(Section):
    """How pages become text.

    Attributes:
        engine: what finds the main text: our `cascade`, or one library alone.
        max_page_bytes: a larger page (with its HTTP header) is rejected as `too_large`.
        max_depth: a page nested deeper is rejected as `too_deep`; the time to lay out text grows with its square.
        min_text_chars: a page with less text is rejected as `no_text`.
        comments: keep sections of user comments.
        links: write the targets of links.
        max_page_cpu_s: processor time of one page in seconds, beyond which it is rejected as `too_slow`.
        max_page_memory: memory that one page may take, beyond which it is rejected as `too_much_memory`.
    """

    engine: Literal["cascade", "resiliparse", "trafilatura"] = "cascade"
    max_page_bytes: Bytes = Field(default=20_000_000, gt=0)
    max_depth: int = Field(default=MAX_DEPTH, gt=0)
    min_text_chars: int = Field(default=1, ge=1)
    comments: bool = False
    links: bool = False
    max_page_cpu_s: int = Field(default=30, gt=0)
    max_page_memory: Bytes = Field(default=2_000_000_000, gt=0)

    def bounds(self) -> Bounds:
        """What the child process needs to know."""
        return Bounds(self.engine, self.comments, self.links, self.max_depth, self.min_text_chars,
                      self.max_page_cpu_s, self.max_page_memory)  # fmt: skip


class PageReader(RawReader):
    """datatrove reader of WARC, WET, ARC and HTML(.gz) files that yields extracted text.

    Extraction sits in the reader, so that no HTML travels through Arrow.
    """

    name = "pages"

    def __init__(self, files: Sequence[Path], root: Path, reading: Reading, settings: ExtractSettings) -> None:
        super().__init__(files, root, reading)
        self.settings = settings

    def planner_of(self, path: Path) -> Planner | None:
        """WARC files between records, archives between members."""
        return page_planner(path)

    def read_file(self, path: Path, name: str, split: Split) -> Iterator[Document]:
        """Yield a document per page; what is no HTML is dropped, what cannot be read is rejected."""
        guard = guard_of(self.settings.bounds())
        waiting: list[_Opened] = []
        size = 0
        for page in read_pages(path, self.settings.max_page_bytes, split, self.reading.members):
            waiting.append(opened := _opened(page, self.reading.encoding))
            size += len(opened.html or b"")
            if len(waiting) >= BATCH_PAGES or size >= BATCH_BYTES:
                yield from self._documents(waiting, guard, name)
                waiting, size = [], 0
        yield from self._documents(waiting, guard, name)

    def _documents(self, waiting: Sequence["_Opened"], guard: Guard, name: str) -> Iterator[Document]:
        found = iter(guard.extract([opened.html for opened in waiting if opened.html is not None]))
        for opened in waiting:
            text, title, problem = (opened.text, "", opened.problem) if opened.html is None else next(found)
            page, fate = opened.page, opened.fate
            document = self.document(
                page.record, name, page.member, text=text.replace("\0", ""), problem=problem, fate=fate or REJECTED
            )
            document.metadata["url"] = page.url
            if fate is None:
                document.metadata |= {"record_id": page.record_id, "encoding": opened.encoding, "title": title or None}
            yield document


@dataclass(frozen=True, slots=True)
class _Opened:
    """A page that was decoded: HTML in UTF-8 to extract, or text, or a problem."""

    page: Page
    html: bytes | None = None
    text: str = ""
    encoding: str | None = None
    problem: str | None = None
    fate: str | None = None


def _opened(page: Page, encoding: str | None) -> _Opened:
    if page.record.problem is not None:
        return _Opened(page, problem=page.record.problem)
    if (reason := drop_reason(page)) is not None:
        return _Opened(page, problem=reason, fate=DROPPED)
    decoded = decode(page.payload, page.charset or encoding)
    if decoded is None:
        return _Opened(page, problem="bad_encoding")
    text, name = decoded
    if page.is_text:
        return _Opened(page, text=text, encoding=name)
    html = page.payload.removeprefix(BOM_UTF8) if name == "utf-8" else text.encode("utf-8", "replace")
    return _Opened(page, html=html, encoding=name)


def drop_reason(page: Page) -> str | None:
    """Why a page that was read is not wanted: `http_status`, `not_html`, or None."""
    if page.status is not None and page.status != 200:
        return "http_status"
    if page.is_text or page.media_type in HTML_TYPES:
        return None
    if page.media_type is None and re.match(rb"\s*<(!doctype html|html)\b", page.payload[:512], re.IGNORECASE):
        return None
    return "not_html"


def extract(files: Sequence[Path], work: Path, settings: ExtractSettings, workers: int = 1) -> Outcome:
    """Extract the text of web pages: `documents/*.parquet`, `rejects/*.parquet`, `dropped/*.parquet`.

    Args:
        files: WARC, WET, ARC or HTML files, plain, compressed or in archives; a task for each, several for a big one.
        work: folder to fill.
        settings: engine and bounds.
        workers: processes; never changes a byte.

    Raises:
        DataError: a file's name says that it is none of these.
        MissingExtra: the engine is not installed.
    """
    for file in files:
        if not holds_pages(file):
            raise DataError(f"{file}: expected .warc, .wet, .arc or .html, plain, .gz, .zst or in a .zip or .tar; "
                            "for JSON Lines use loam filter")  # fmt: skip
    check_installed(settings.engine)
    reader = PageReader(files, common_root(files), Reading(), settings)
    parts = [f"part-{number:05d}" for number in range(len(reader.tasks))]
    blocks = [reader, Batches(), Normalize(), WriteDocuments(str(work), parts, kept="documents")]
    run_blocks(blocks, len(parts), work, workers, "extract")
    return Outcome(count_documents(work, kept="documents"))
