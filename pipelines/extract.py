"""Extraction: the main text of web pages out of WARC, WET, ARC and HTML files.

Bounds instead of clocks: a page that is too large or nested too deeply is rejected before it is parsed, so that the
same page has the same fate on every machine. resiliparse extracts (about 10 to 17 times the speed of trafilatura).
"""

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import pyarrow as pa
from datatrove.data import Document
from pydantic import Field

from pipelines.archives import common_root, open_raw
from pipelines.block import Block, WriteDocuments
from pipelines.document import DROPPED, REJECTED, with_column, with_fate
from pipelines.errors import DataError, MissingExtra
from pipelines.execute import count_documents, run_blocks
from pipelines.normalize import Normalize
from pipelines.quantities import Bytes
from pipelines.readers import Batches, RawReader, Reading
from pipelines.recipe import Section
from pipelines.records import cut, whole
from pipelines.store import Outcome
from pipelines.warc import HTML_TYPES, Page, is_arc, is_warc, read_pages

TAG = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9:-]*)")
META_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([\w-]{2,40})", re.IGNORECASE)
XML_CHARSET = re.compile(rb"^\s*<\?xml[^>]{0,100}encoding\s*=\s*[\"']([\w-]{2,40})")
META_BYTES = 4096
# Elements that have no end tag, or whose end tag may be left out, and the leaves of drawings: they do not nest
FLAT = frozenset(
    """area base br col embed hr img input link meta param source track wbr p li dt dd option optgroup tr td th thead
    tbody tfoot colgroup rt rp html head body path use circle rect line polygon polyline ellipse stop""".split()  # noqa: SIM905
)
BOMS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))
MAX_REPLACED = 0.02  # share of characters that no encoding explains, beyond which a page is not text


class ExtractSettings(Section):
    """How pages become text.

    Attributes:
        engine: what finds the main text.
        max_page_bytes: a larger page (with its HTTP header) is rejected as `too_large`.
        max_depth: a page nested deeper is rejected as `too_deep`; the time to lay out text grows with its square.
        min_text_chars: a page with less text is rejected as `no_text`.
        comments: keep sections of user comments.
        links: write the targets of links.
    """

    engine: Literal["resiliparse", "trafilatura"] = "resiliparse"
    max_page_bytes: Bytes = Field(default=20_000_000, gt=0)
    max_depth: int = Field(default=1000, gt=0)
    min_text_chars: int = Field(default=1, ge=1)
    comments: bool = False
    links: bool = False


def decode_page(payload: bytes, declared: str | None = None) -> tuple[str, str] | None:
    """Decode the bytes of a page.

    A byte order mark wins; then valid UTF-8, which is no accident; then the HTTP header, the page's own meta element,
    and what the bytes look like. Chinese national encodings are read as their superset gb18030.

    Args:
        payload: the body of the page.
        declared: charset of the HTTP header.

    Returns:
        text and encoding, or None when no encoding explains the bytes.
    """
    for mark, encoding in BOMS:
        if payload.startswith(mark):
            return payload[len(mark) :].decode(encoding, "replace"), encoding
    try:
        return payload.decode(), "utf-8"
    except UnicodeDecodeError:
        pass
    found = META_CHARSET.search(payload, 0, META_BYTES) or XML_CHARSET.search(payload, 0, META_BYTES)
    candidates = _encodings(payload, declared, found.group(1).decode("ascii", "ignore") if found else None)
    best: tuple[float, str, str] | None = None
    for encoding in candidates:
        text = payload.decode(encoding, "replace")
        bad = text.count("\ufffd") / max(1, len(text))
        if best is None or bad < best[0]:
            best = (bad, text, encoding)
        if not bad:
            break
    return (best[1], best[2]) if best and best[0] <= MAX_REPLACED else None


def _encodings(payload: bytes, *declared: str | None) -> Iterator[str]:
    """Encodings to try, in order, without repeats."""
    from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5

    seen = set()
    names = (lambda: declared[0], lambda: declared[1], lambda: detect_encoding(payload), lambda: "utf-8")
    for name in names:
        if (given := name()) and (mapped := map_encoding_to_html5(given, fallback_utf8=False)):
            encoding = "gb18030" if mapped.lower() in ("gbk", "gb2312", "gb18030") else mapped.lower()
            if encoding not in seen and _is_known(encoding):
                seen.add(encoding)
                yield encoding


def _is_known(encoding: str) -> bool:
    try:
        "".encode(encoding)
    except LookupError:
        return False
    return True


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


Extractor = Callable[[str], str]


@functools.cache
def extractor(engine: str, comments: bool, links: bool) -> Extractor:
    """The function that takes the main text out of HTML; arguments as in `ExtractSettings`.

    Raises:
        MissingExtra: trafilatura was asked for and is not installed.
    """
    if engine == "resiliparse":
        from resiliparse.extract.html2text import extract_plain_text

        return functools.partial(
            extract_plain_text, main_content=True, list_bullets=True, alt_texts=False, links=links, comments=comments
        )
    try:
        import trafilatura
    except ImportError as error:  # it may lack a part of its own, such as lxml_html_clean
        wanted = "pip install 'trafilatura>=2.3.1,<3' lxml_html_clean"
        raise MissingExtra(f"engine 'trafilatura' cannot be imported ({error.msg.splitlines()[0]}); {wanted}") from None

    def extract_main(html: str) -> str:
        return trafilatura.extract(html, include_comments=comments, include_links=links) or ""

    return extract_main


def extract_text(html: str, settings: ExtractSettings) -> tuple[str, str | None]:
    """The main text of a page.

    Returns:
        text, and why there is none: `too_deep`, `no_text`, `bad_html` (the engine refused it), or None.
    """
    if is_too_deep(html, settings.max_depth):
        return "", "too_deep"
    try:
        text = extractor(settings.engine, settings.comments, settings.links)(html)
    except (ValueError, RuntimeError, RecursionError, TypeError, AttributeError):  # an engine's bug is one page's fate
        return "", "bad_html"
    return (text, None) if len(text.strip()) >= settings.min_text_chars else ("", "no_text")


class ExtractHtml(Block):
    """Replace HTML in `text` by its main text; for HTML that came in a column, say of JSON Lines."""

    name = "extract"

    def __init__(self, settings: ExtractSettings) -> None:
        super().__init__()
        self.settings = settings

    def apply(self, batch: pa.Table) -> pa.Table:
        """Extract every row; rows that give no text are rejected."""
        pages = (html.as_py() for html in batch["text"])
        bound = self.settings.max_page_bytes
        pairs = [("", "too_large") if len(html) > bound else extract_text(html, self.settings) for html in pages]
        texts, reasons = zip(*pairs, strict=True)
        batch = with_column(batch, "text", pa.array(texts, pa.string()))
        return with_fate(batch, REJECTED, pa.array(reasons, pa.string()))


class PageReader(RawReader):
    """datatrove reader of WARC, WET, ARC and HTML(.gz) files that yields extracted text.

    Extraction sits in the reader, so that no HTML travels through Arrow.
    """

    name = "pages"

    def __init__(self, files: Sequence[Path], root: Path, reading: Reading, settings: ExtractSettings) -> None:
        super().__init__(files, root, reading)
        self.settings = settings

    def read_file(self, path: Path, name: str) -> Iterator[Document]:
        """Yield a document per page; what is no HTML is dropped, what cannot be read is rejected."""
        bound = self.settings.max_page_bytes
        for page in read_pages(path, bound) if is_warc(path) or is_arc(path) else _html_pages(path, bound):
            yield self._document(page, name)

    def _document(self, page: Page, name: str) -> Document:
        text, encoding, problem = "", None, page.record.problem
        if problem is None:
            if (reason := drop_reason(page)) is not None:
                document = self.document(page.record, name, problem=reason, fate=DROPPED)
                document.metadata["url"] = page.url
                return document
            decoded = decode_page(page.payload, page.charset)
            text, encoding = decoded or ("", None)
            if decoded is None:
                problem = "bad_encoding"
            elif not page.is_text:
                text, problem = extract_text(text, self.settings)
        document = self.document(page.record, name, text=text.replace("\0", ""), problem=problem)
        document.metadata |= {"url": page.url, "record_id": page.record_id, "encoding": encoding}
        return document


def drop_reason(page: Page) -> str | None:
    """Why a page that was read is not wanted: `http_status`, `not_html`, or None."""
    if page.status is not None and page.status != 200:
        return "http_status"
    if page.is_text or page.media_type in HTML_TYPES:
        return None
    if page.media_type is None and re.match(rb"\s*<(!doctype html|html)\b", page.payload[:512], re.IGNORECASE):
        return None
    return "not_html"


def _html_pages(path: Path, max_bytes: int) -> Iterator[Page]:
    with open_raw(path) as stream:
        for record in cut(stream, whole, max_bytes):
            yield Page(record, None, None, None, "text/html", None, record.data)


def extract(files: Sequence[Path], work: Path, settings: ExtractSettings, workers: int = 1) -> Outcome:
    """Extract the text of web pages: `documents/*.parquet`, `rejects/*.parquet`, `dropped/*.parquet`.

    Args:
        files: WARC, WET, ARC or HTML files, plain or compressed; one task each.
        work: folder to fill.
        settings: engine and bounds.
        workers: processes; never changes a byte.

    Raises:
        DataError: a file's name says that it is none of these.
        MissingExtra: the engine is not installed.
    """
    for file in files:
        if not (is_warc(file) or is_arc(file) or re.search(r"\.html?(\.gz|\.zst)?$", file.name)):
            raise DataError(
                f"{file}: expected .warc, .wet, .arc or .html, plain or .gz; for JSON Lines use loam filter"
            )
    extractor(settings.engine, settings.comments, settings.links)
    reader = PageReader(files, common_root(files), Reading(), settings)
    parts = [f"part-{number:05d}" for number in range(len(files))]
    blocks = [reader, Batches(), Normalize(), WriteDocuments(str(work), parts, kept="documents")]
    run_blocks(blocks, len(files), work, workers, "extract")
    return Outcome(count_documents(work, kept="documents"))
