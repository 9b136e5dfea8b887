"""Sources: what raw text a recipe asks for, how it is collected and how it becomes documents.

`collect` writes the raw files of sources that are found on the machine; `ingest` reads every source, its own raw files
or those of the recipe's root, into normalized documents by domain. One task per raw file, whatever the source, so that
the number of workers changes no byte.
"""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import pyarrow.parquet as pq
from pydantic import Field, field_validator, model_validator

from pipelines import machine
from pipelines.block import WriteDocuments
from pipelines.document import STREAM
from pipelines.errors import DataError
from pipelines.execute import SCRATCH, count_documents, run_blocks
from pipelines.extract import ExtractSettings, PageReader
from pipelines.files import expand_inputs, sha256_of
from pipelines.manifest import digest_of
from pipelines.normalize import Normalize
from pipelines.quantities import Bytes
from pipelines.readers import Batches, JsonReader, ParquetReader, RawReader, ReadEach, Reading, TextReader
from pipelines.recipe import Section
from pipelines.records import Cutter, json_items, lines, paragraphs, sections, whole
from pipelines.store import Outcome

RAW = "raw"


class _Source(Section):
    """What every source has."""

    domain: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_]+(/[A-Za-z0-9_]+)?$")
    language: str | None = Field(default=None, pattern=r"^[a-z]{3}$")
    licence: str | None = None
    max_documents: int | None = Field(default=None, gt=0)
    max_bytes: Bytes | None = Field(default=None, gt=0)


class MachineSource(_Source):
    """Text found on the machine.

    Attributes:
        kind: what is looked for.
        domain: name of the domain; the source's name when not given.
        language: ISO 639-3 code for all its documents, when known.
        max_documents: at most so many raw records, drawn by hash.
        max_bytes: at most so many raw bytes, drawn by hash.
        seed: of the draw.
        shards: raw files to spread the records over.
    """

    kind: Literal["pydoc", "package_readme", "python_code", "licences"]
    seed: int = Field(default=0, ge=0)
    shards: int = Field(default=4, ge=1, le=1000)


class FileSource(_Source):
    r"""Text in files.

    Attributes:
        kind: format of the files; `archive` is tar or zip with members in `format`.
        paths: files, folders or globs, relative to the recipe's root.
        domain: name of the domain; the source's name when not given.
        language: ISO 639-3 code for all its documents, when known.
        max_documents: at most so many documents, shared out evenly over the files.
        max_bytes: at most so many bytes of text, shared out evenly over the files.
        licence: kept in the documents' metadata.
        format: of the members of an archive.
        members: shell pattern for names of members.
        per: what one document of a text file is; `section` begins at each line that matches `section_start`.
        section_start: regular expression.
        text: template of JSON and Parquet records: `{question}\n{answer}`, `{code.0}`, `{content|paragraphs}`.
        join: what lies between the items of a list in the template.
        id_field: field with an id that is unique in the source; without it the id is the record's place.
        url_field: field with the URL.
        metadata: fields that are kept as metadata.
        json_path: keys that lead to the array of records in JSON files, with dots.
        max_record_bytes: larger records are rejected.
    """

    kind: Literal["warc", "html", "jsonl", "json", "parquet", "text", "archive"]
    paths: tuple[str, ...] = Field(min_length=1)
    format: Literal["text", "jsonl", "json"] = "text"
    members: str = "*"
    per: Literal["file", "line", "paragraph", "section"] = "file"
    section_start: str | None = None
    text: str = "{text}"
    join: str = "\n"
    id_field: str | None = None
    url_field: str | None = None
    metadata: tuple[str, ...] = ()
    json_path: str = ""
    max_record_bytes: Bytes = Field(default=20_000_000, gt=0)

    @field_validator("metadata")
    @classmethod
    def _no_columns(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if taken := sorted(set(names) & set(STREAM.names)):
            raise ValueError(f"{taken[0]!r} is a column of documents; it cannot be metadata too")
        return names

    @model_validator(mode="after")
    def _sections_start(self) -> "FileSource":
        if (self.per == "section") != (self.section_start is not None):
            raise ValueError("per: section and section_start belong together")
        return self


SourceSettings = Annotated[MachineSource | FileSource, Field(discriminator="kind")]
"""One source of a recipe, told apart by `kind`."""


def collect(sources: Mapping[str, SourceSettings], work: Path, workers: int = 1) -> Outcome:
    """Write the raw files of the machine's sources to `work/raw/<name>/part-NNNNN.{warc.gz,jsonl,tar}`.

    Args:
        sources: of the recipe, by name; those that are files already are passed over.
        work: folder to fill; pages that were rendered before a kill are taken from its scratch.
        workers: processes that render pages; never changes a byte.

    Returns:
        metrics `records` and `bytes` by source.
    """
    records, sizes = {}, {}
    for name, settings in sorted(sources.items()):
        if isinstance(settings, MachineSource):
            items = _collected(settings, work / SCRATCH / name, workers)
            write = WRITERS[settings.kind]
            machine.write_shards(items, work / RAW / name, settings.shards, write)
            records[name], sizes[name] = len(items), sum(len(content) for _, content in items)
    return Outcome(metrics={"records": records, "bytes": sizes})


WRITERS = {
    "pydoc": machine.write_warc_shard,
    "package_readme": machine.write_json_shard,
    "python_code": machine.write_tar_shard,
    "licences": machine.write_tar_shard,
}


def _collected(settings: MachineSource, scratch: Path, workers: int) -> list[machine.Item]:
    budget = (settings.max_bytes, settings.max_documents)
    if settings.kind == "pydoc":
        names = machine.chosen(machine.module_names(), settings.seed)[: settings.max_documents]
        return machine.within(machine.pydoc_pages(names, scratch, workers), *budget)
    if settings.kind == "package_readme":
        found = machine.readmes()
        texts = ((name, found[name]()) for name in machine.chosen(found, settings.seed))
        return machine.within(((name, text) for name, text in texts if text), *budget)
    files = machine.code_files() if settings.kind == "python_code" else machine.licence_files()
    return machine.within(machine.contents(files, settings.seed), *budget)


def ingest(
    sources: Mapping[str, SourceSettings],
    raw: Path | None,
    root: Path,
    work: Path,
    extract: ExtractSettings,
    workers: int = 1,
) -> Outcome:
    """Turn every source's raw files into normalized documents: `documents/<domain>/part-NNNNN.parquet`.

    Args:
        sources: of the recipe, by name.
        raw: the `raw` folder that `collect` wrote, or None when no source is found on the machine.
        root: folder that the sources' paths are relative to.
        work: folder to fill; also gets `dropped/` and `rejects/` in the same parts.
        extract: how web pages become text.
        workers: processes; never changes a byte.

    Returns:
        counts, and as metrics the same by source.

    Raises:
        DataError: a source matches no file.
    """
    tasks: list[tuple[RawReader, int]] = []
    parts: list[str] = []
    owners: list[str] = []
    numbers: Counter[str] = Counter()
    for name, settings in sorted(sources.items()):
        files = raw_files(name, settings, raw, root)
        base = raw if isinstance(settings, MachineSource) else root
        assert base is not None  # raw_files has looked there
        reader = reader_of(name, settings, files, base, extract)
        domain = settings.domain or name
        for rank in range(len(files)):
            tasks.append((reader, rank))
            parts.append(f"{domain}/part-{numbers[domain]:05d}")
            owners.append(name)
            numbers[domain] += 1
    blocks = [ReadEach(tasks), Batches(), Normalize(), WriteDocuments(str(work), parts, kept="documents")]
    run_blocks(blocks, len(tasks), work, workers, "ingest")
    counts, rows = count_documents(work, kept="documents"), _rows_by_source(work, owners, parts)
    for name, of in rows.items():
        if not of["documents"] and of["rejects"]:
            raise DataError(
                f"source {name!r}: none of its {of['rejects']} records became a document; {_why(name, sources)}"
            )
    return Outcome(counts, {"sources": rows})


def _why(name: str, sources: Mapping[str, SourceSettings]) -> str:
    """What to look at when a source gives nothing."""
    settings = sources[name]
    if isinstance(settings, FileSource) and settings.kind in ("jsonl", "json", "parquet"):
        return f"do its records have the fields of text: {settings.text!r}?"
    return f"are its files of kind {settings.kind}?"


def _rows_by_source(work: Path, owners: Sequence[str], parts: Sequence[str]) -> dict[str, dict[str, int]]:
    rows: dict[str, dict[str, int]] = {}
    for owner, part in zip(owners, parts, strict=True):
        of = rows.setdefault(owner, {"documents": 0, "dropped": 0, "rejects": 0})
        for fate in of:
            if (path := work / fate / f"{part}.parquet").exists():
                of[fate] += pq.read_metadata(path).num_rows
    return rows


def raw_files(name: str, settings: SourceSettings, raw: Path | None, root: Path) -> list[Path]:
    """The raw files of a source, in order.

    Raises:
        DataError: there are none.
    """
    if isinstance(settings, FileSource):
        try:
            return expand_inputs([root / path for path in settings.paths])
        except DataError as error:
            raise DataError(f"source {name!r}: {error}") from None
    if raw is None or not (raw / name).is_dir():
        raise DataError(f"source {name!r}: its raw files are missing; run the collect step first")
    return expand_inputs([raw / name])


def reader_of(
    name: str, settings: SourceSettings, files: Sequence[Path], root: Path, extract: ExtractSettings
) -> RawReader:
    """The reader of a source."""
    common = {"source": name, "domain": settings.domain or name, "language": settings.language}
    if isinstance(settings, MachineSource):
        if settings.kind == "pydoc":
            return PageReader(files, root, Reading(**common), extract)
        if settings.kind == "package_readme":
            return JsonReader(files, root, Reading(id_field="id", metadata=("license",), **common))
        return TextReader(files, root, Reading(**common), whole)
    reading = Reading(
        **common, text=settings.text, id_field=settings.id_field, url_field=settings.url_field, join=settings.join,
        metadata=settings.metadata, constant=(("licence", settings.licence),) if settings.licence else (),
        members=settings.members, max_record_bytes=settings.max_record_bytes,
        max_documents=settings.max_documents, max_bytes=settings.max_bytes,
    )  # fmt: skip
    kind = settings.format if settings.kind == "archive" else settings.kind
    if kind in ("warc", "html"):
        return PageReader(files, root, reading, extract)
    if kind == "parquet":
        return ParquetReader(files, root, reading)
    if kind == "text":
        return TextReader(files, root, reading, _text_cutter(settings))
    return JsonReader(files, root, reading, lines if kind == "jsonl" else json_items(settings.json_path))


def _text_cutter(settings: FileSource) -> Cutter:
    if settings.section_start is not None:
        return sections(settings.section_start)
    return {"file": whole, "line": lines, "paragraph": paragraphs}[settings.per]


def fingerprint_inputs(sources: Mapping[str, SourceSettings], root: Path) -> dict[str, str]:
    """What the sources depend on outside the recipe: a digest by name, for the parents of a step.

    External files count by their sha256; the machine counts by its interpreter and installed packages.

    Raises:
        DataError: a source matches no file.
    """
    digests = {}
    for name, settings in sorted(sources.items()):
        if isinstance(settings, FileSource):
            for file in raw_files(name, settings, None, root):
                digests[f"{name}:{_below(file, root)}"] = sha256_of(file)
        else:
            digests["machine"] = digest_of([sys.version, *sorted(machine.readmes())])
    return digests


def _below(file: Path, root: Path) -> str:
    return file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name
