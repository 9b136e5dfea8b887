"""Sources: how the raw text that a recipe asks for is collected and becomes documents.

`collect` writes the raw files of sources that are found on the machine; `ingest` reads every source, its own raw files
or those of the recipe's root, into normalized documents by domain. One task per raw file, several for a big one, so
that the number of workers changes no byte. What a recipe may say of a source, `kind: huggingface` included, is in
`source_settings.py`.
"""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow.parquet as pq

from pipelines import hub, machine
from pipelines.block import WriteDocuments
from pipelines.errors import DataError
from pipelines.execute import SCRATCH, count_documents, run_blocks
from pipelines.extract import ExtractSettings, PageReader
from pipelines.files import expand_inputs
from pipelines.inputs import LOST, Batches, ReadEach, format_of, reader_for
from pipelines.locations import below, is_url
from pipelines.manifest import digest_of
from pipelines.normalize import Normalize
from pipelines.readers import JsonReader, RawReader, Reading, TextReader
from pipelines.records import Cutter, json_items, lines, paragraphs, sections, whole
from pipelines.source_settings import FileSource, HubSource, MachineSource, RecordSource, SourceSettings
from pipelines.store import Outcome
from pipelines.table_readers import CsvReader

RAW = "raw"
RECORDS = ("jsonl", "json", "parquet", "arrow", "csv", "huggingface")


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
        for rank in range(len(reader.tasks)):
            tasks.append((reader, rank))
            parts.append(f"{domain}/part-{numbers[domain]:05d}")
            owners.append(name)
            numbers[domain] += 1
    blocks = [
        ReadEach(tasks, str(work / SCRATCH / LOST)),
        Batches(),
        Normalize(),
        WriteDocuments(str(work), parts, kept="documents"),
    ]
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
    if isinstance(settings, (FileSource, HubSource)) and settings.kind in RECORDS:
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
        DataError: there are none, or they have to be fetched first.
    """
    if isinstance(settings, HubSource):
        return hub.fetched_files(hub.wanted_by(settings), root, name)
    if isinstance(settings, FileSource):
        found: list[Path] = []
        for path in settings.paths:
            if hub.is_hub_url(path):
                found += hub.fetched_files(hub.wanted_at(path), root, name)
                continue
            try:
                found += expand_inputs([path if is_url(path) else root / path])
            except DataError as error:
                raise DataError(f"source {name!r}: {error}") from None
        return list(dict.fromkeys(found))
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
        members=settings.members, encoding=settings.encoding, max_record_bytes=settings.max_record_bytes,
        max_documents=settings.max_documents, max_bytes=settings.max_bytes,
    )  # fmt: skip
    kind = _kind_of(name, settings, files)
    if kind in ("warc", "html"):
        return PageReader(files, root, reading, extract)
    if kind == "text":
        return TextReader(files, root, reading, _text_cutter(settings))
    if kind in ("jsonl", "json"):
        return JsonReader(files, root, reading, _json_cutter(kind, settings))
    if kind == "csv":
        return CsvReader(files, root, reading, settings.columns)
    return reader_for(kind, files, root, reading)


def _kind_of(name: str, settings: FileSource | HubSource, files: Sequence[Path]) -> str:
    """The format of a source's files; those of a repository tell it by their names."""
    if isinstance(settings, FileSource):
        return settings.format if settings.kind == "archive" else settings.kind
    if settings.format is not None:
        return settings.format
    kinds = {format_of(file) for file in files}
    kind = kinds.pop()
    if kinds or kind is None:
        raise DataError(f"source {name!r}: its files are of several or unknown kinds, such as {files[0].name}; "
                        "choose some with files:, or say format:")  # fmt: skip
    return kind


def _json_cutter(kind: str, settings: FileSource | HubSource) -> Cutter | None:
    if kind == "jsonl":
        return lines
    # on the Hub, .json is as often JSON Lines as not: its first byte tells
    return None if isinstance(settings, HubSource) and not settings.json_path else json_items(settings.json_path)


def _text_cutter(settings: RecordSource) -> Cutter:
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
        if isinstance(settings, (FileSource, HubSource)):
            for file in raw_files(name, settings, None, root):
                digests[f"{name}:{below(file, root)}"] = hub.checked_hash(file)
        else:
            digests["machine"] = digest_of([sys.version, *sorted(machine.readmes())])
    return digests
