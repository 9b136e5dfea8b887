"""Publishing: a dataset or a model as a folder with its card, delivered whole or not at all.

The publish steps fill a folder like any other step; `deliver` then brings that folder to its target, replacing an older
publication by one atomic exchange of names, so that a reader never sees half of a release. `MANIFEST.json` lists every
file with its sha256 and is what tells a publication of ours from a foreign folder. Layout: that of the Hub.
"""

import ctypes
import errno
import json
import os
import re
import shutil
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from flows.card import Part, dataset_card, model_card
from flows.card_licences import Terms, count_terms
from flows.publish_rejects import CONFIG, Against, publish_rejects
from pipelines.block import BATCH_ROWS, ROW_GROUP_ROWS
from pipelines.document import SCHEMA, conform
from pipelines.errors import DataError, RecipeError
from pipelines.files import sha256_of, write_atomically
from pipelines.manifest import MANIFEST, Manifest, list_outputs
from pipelines.quantities import Bytes
from pipelines.recipe import Section
from pipelines.store import Outcome

RECEIPT = "MANIFEST.json"
REPRODUCE = "loam run recipe.yaml"  # the resolved recipe lies beside the card
CONFIG_NAME = re.compile(r"\w[\w.+-]*")
SCHEME = "dir://"
ROW_GROUP_BYTES = 64 << 20  # the Hub's viewer refuses row groups above 286 MiB
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h

# A map column is what the `datasets` library cannot load; a list of pairs is the same bytes on disk.
METADATA = pa.list_(pa.struct([("key", pa.string()), ("value", pa.string())]))
PUBLISHED = pa.schema([pa.field("metadata", METADATA) if f.name == "metadata" else f for f in SCHEMA])


class PublishSettings(Section):
    """What to publish, and where.

    Attributes:
        target: `dir://FOLDER`.
        name: of the dataset; the model's is `model_name`.
        model_name: default `<name>-model`.
        licence: identifier of the Hub (`apache-2.0`, `cc-by-4.0`, `other`).
        licence_name: for `other`: what the licence is called.
        file_bytes: uncompressed size of one Parquet file at most, about.
    """

    target: str
    name: str = Field(min_length=1)
    model_name: str | None = None
    licence: str = "other"
    licence_name: str = "by-source-see-card"
    file_bytes: Bytes = Field(default=512_000_000, gt=0)

    def licence_fields(self) -> dict[str, str]:
        """The card's licence fields."""
        return {"license": self.licence} | ({"license_name": self.licence_name} if self.licence == "other" else {})


def publish_dataset(
    documents: Mapping[str, Sequence[Path]],
    work: Path,
    lineage: Mapping[str, Any],
    settings: PublishSettings,
    held_out: Sequence[Path] = (),
    rejects: Sequence[Path] = (),
    against: Against | None = None,
) -> Outcome:
    """Write Parquet splits, a card and MANIFEST.json.

    Args:
        documents: domain -> Parquet files of its documents.
        work: the step's working folder.
        lineage: see `flows.card.dataset_card`.
        settings: name, licence, file size.
        held_out: Parquet files with the ids (column `id`) of documents for the split `validation`: the origin sidecars
            of the validation shards. Without any, all documents are `train`.
        rejects: of synthesis (`synth.outputs.REJECTS`); a configuration of their own.
        against: evaluation sets that no excerpt of a reject may hold.

    Returns:
        Metrics: documents, text_bytes, files, and documents by config and split.

    Raises:
        DataError: nothing to publish, or two domains have the same configuration name.
    """
    configs = {domain: domain.replace("/", "-") for domain in documents}
    if odd := [domain for domain, config in configs.items() if not CONFIG_NAME.fullmatch(config)]:
        raise DataError(f"domain {odd[0]!r} cannot name a configuration: expected words such as 'web_en/high'")
    if len(set(configs.values())) < len(configs) or set(configs.values()) & {"all", CONFIG}:
        raise DataError(
            f"domains {', '.join(configs)} do not give distinct configuration names other than 'all' and {CONFIG!r}"
        )
    held = pa.chunked_array([pq.read_table(f, columns=["id"])["id"].combine_chunks() for f in held_out], pa.string())
    parts = [
        part for domain, files in documents.items()
        for part in _publish_domain(domain, configs[domain], files, work, settings, held)
    ]  # fmt: skip
    if not parts:
        raise DataError(f"no document to publish in {len(documents)} domains; the run kept none")
    rejected = publish_rejects(rejects, work, against or Against())
    card = dataset_card(parts, lineage, settings.name, settings.licence_fields(), REPRODUCE, rejected)
    write_atomically(work / "README.md", card.encode())
    _write_receipt(work, settings.name, "dataset", {**lineage.get("funnel", {}), **lineage.get("synth", {})})
    counts: dict[str, dict[str, int]] = {}
    for part in parts:
        counts.setdefault(part.config, {})[part.split] = part.documents
    totals = {key: sum(getattr(part, key) for part in parts) for key in ("documents", "text_bytes", "files")}
    told = {"rejects": rejected.rows if rejected else 0, "rejects_withheld": rejected.withheld if rejected else 0}
    return Outcome(metrics={**totals, "configs": counts, **told})


def publish_model(
    model_dir: Path, work: Path, facts: Mapping[str, Any], settings: PublishSettings, dataset: str | None = None
) -> Outcome:
    """Copy a Hugging Face model folder and write its card and MANIFEST.json.

    Args:
        model_dir: config.json, *.safetensors and the tokenizer.
        work: the step's working folder.
        facts: see `flows.card.model_card`.
        settings: name and licence.
        dataset: name of the dataset that it was trained on, where that has one; goes into the card.

    Raises:
        DataError: the folder holds no model.
    """
    weights = sorted(model_dir.glob("*.safetensors"))
    if not weights or not (model_dir / "config.json").is_file():
        raise DataError(f"{model_dir}: expected config.json and *.safetensors; write them with `loam export`")
    for path in _files(model_dir):
        if path.name != "README.md":
            _copy(path, work / path.relative_to(model_dir))
    shape = _shape(model_dir, weights)
    name = settings.model_name or f"{settings.name}-model"
    card = model_card(facts, shape, name, settings.licence_fields(), dataset, REPRODUCE)
    write_atomically(work / "README.md", card.encode())
    _write_receipt(work, name, "model", {k: v for k, v in facts.items() if isinstance(v, Mapping)})
    return Outcome(metrics=shape)


def deliver(folder: Path, target: str) -> bool:
    """Bring a finished publish folder to its target; the same again does nothing.

    Args:
        folder: with MANIFEST.json; the step's own manifest.json stays behind.
        target: `dir://FOLDER`.

    Returns:
        Whether anything was written.

    Raises:
        RecipeError: the target's scheme is not known.
        DataError: the folder is not a finished publication, or the target holds files that are not ours.
    """
    if not target.startswith(SCHEME) or target == SCHEME:
        raise RecipeError(f"publish target {target!r}: expected {SCHEME}FOLDER, the one kind of target there is")
    to = Path(target.removeprefix(SCHEME))
    if not (folder / RECEIPT).is_file():
        raise DataError(f"{folder} has no {RECEIPT}: it is not a finished publication; run the publish step first")
    to.parent.mkdir(parents=True, exist_ok=True)
    staging, retired = (to.with_name(f".{to.name}.{kind}") for kind in ("incoming", "retired"))
    if retired.is_dir() and not to.exists():  # killed between two renames, where names cannot be exchanged
        retired.rename(to)
    for leftover in (staging, retired):
        shutil.rmtree(leftover, ignore_errors=True)
    _refuse_foreign(to)
    if to.is_dir() and _contents(to) == _contents(folder):
        return False
    for path in _files(folder):
        _copy(path, staging / path.relative_to(folder))
    _replace(staging, to, retired)
    return True


def _publish_domain(
    domain: str, config: str, files: Sequence[Path], work: Path, settings: PublishSettings, held: pa.ChunkedArray
) -> list[Part]:
    """Write the splits of one domain; a split without documents is left out."""
    size = sum(_uncompressed_bytes(file) for file in files)
    inside = sum(int(pc.sum(_is_held(batch, held)).as_py() or 0) for file in files for batch in _read(file, ["id"]))
    rows = {"train": sum(pq.read_metadata(f).num_rows for f in files) - inside, "validation": inside}
    folder = work / "data" / config
    shutil.rmtree(folder, ignore_errors=True)
    writers = {}
    for split, number in rows.items():
        if number:
            count = max(1, -(-size * number // (sum(rows.values()) * settings.file_bytes)))
            writers[split] = _SplitWriter(folder, split, number, min(count, number))
    for file in files:
        for batch in _read(file):
            mask = _is_held(batch, held)
            for split, writer in writers.items():
                writer.append(batch.filter(mask if split == "validation" else pc.invert(mask)))
    for writer in writers.values():
        writer.close()
    return [
        Part(config, domain, split, w.files, w.rows, w.text_bytes, w.languages, w.licences, w.passages)
        for split, w in writers.items()
    ]


def _uncompressed_bytes(file: Path) -> int:
    metadata = pq.read_metadata(file)
    return sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))


def _is_held(batch: pa.Table, held: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.is_in(batch["id"], value_set=held)


def _read(file: Path, columns: Sequence[str] | None = None) -> Any:
    with pq.ParquetFile(file) as parquet:
        for batch in parquet.iter_batches(BATCH_ROWS, columns=columns):
            table = pa.Table.from_batches([batch])
            yield table if columns else _published(conform(table, file=file))


def _published(table: pa.Table) -> pa.Table:
    index = table.schema.get_field_index("metadata")
    pairs = table["metadata"].cast(METADATA)
    return table.set_column(index, PUBLISHED.field("metadata"), pairs).cast(PUBLISHED)


class _SplitWriter:
    """Spreads a known number of rows evenly over Parquet files, and counts what goes by."""

    def __init__(self, folder: Path, split: str, rows: int, files: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.paths = [folder / f"{split}-{n:05d}-of-{files:05d}.parquet" for n in range(files)]
        self.rows, self.files = rows, files
        self.ends = [rows * (n + 1) // files for n in range(files)]
        self.written = self.text_bytes = self.open_file = 0
        self.languages: dict[str, int] = {}
        self.licences: dict[Terms, int] = {}
        self.passages: dict[Terms, int] = {}
        self.pending: list[pa.Table] = []
        self.writer: pq.ParquetWriter | None = None

    def append(self, table: pa.Table) -> None:
        self.text_bytes += int(pc.sum(pc.binary_length(table["text"])).as_py() or 0)
        _count(self.languages, table["language"])
        count_terms(table, self.licences, self.passages)
        while table.num_rows:
            room = self.ends[self.open_file] - self.written - self._waiting()
            self.pending.append(table.slice(0, room))
            table = table.slice(room)
            full = self.written + self._waiting() == self.ends[self.open_file]
            if full or self._waiting() >= ROW_GROUP_ROWS or sum(t.nbytes for t in self.pending) >= ROW_GROUP_BYTES:
                self._flush()
            if full:
                self.close()
                self.open_file += 1

    def close(self) -> None:
        assert not self.pending, "rows were counted wrongly"
        if self.writer is not None:
            self.writer.close()
            self.writer = None

    def _waiting(self) -> int:
        return sum(table.num_rows for table in self.pending)

    def _flush(self) -> None:
        table = pa.concat_tables(self.pending).combine_chunks()
        writer = self.writer = self.writer or pq.ParquetWriter(
            self.paths[self.open_file], PUBLISHED, compression="zstd"
        )
        writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
        self.written += table.num_rows
        self.pending = []


def _count(into: dict[str, int], column: pa.ChunkedArray) -> None:
    for entry in pc.value_counts(pc.fill_null(column, "")).to_pylist():
        into[entry["values"]] = into.get(entry["values"], 0) + entry["counts"]


def _shape(model_dir: Path, weights: Sequence[Path]) -> dict[str, Any]:
    """What the model's own files say about it."""
    try:
        config = json.loads((model_dir / "config.json").read_bytes())
        tensors = [tensor for path in weights for tensor in _tensors(path)]
    except (ValueError, OSError, struct.error) as error:
        raise DataError(f"{model_dir} is not a readable model: {error}") from None
    wanted = ("architectures", "model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
              "num_key_value_heads", "num_experts", "num_experts_per_tok", "max_position_embeddings")  # fmt: skip
    known = {key: config[key] for key in wanted if config.get(key) is not None}
    sizes = [_product(shape) for shape, _ in tensors]
    kinds = sorted({kind for _, kind in tensors})
    return {**known, "parameters": sum(sizes), "dtype": ", ".join(kinds)}


def _tensors(path: Path) -> list[tuple[list[int], str]]:
    """Shape and dtype of each tensor, from the header of a safetensors file."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(min(length, path.stat().st_size)))
    return [(entry["shape"], entry["dtype"]) for name, entry in header.items() if name != "__metadata__"]


def _product(shape: Sequence[int]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def _write_receipt(work: Path, name: str, kind: str, lineage: Mapping[str, Any]) -> None:
    """List every file; written last, it says that the folder is whole."""
    (work / RECEIPT).unlink(missing_ok=True)
    steps = {step: Manifest.model_validate(manifest) for step, manifest in lineage.items()}
    receipt = {
        "version": 1,
        "name": name,
        "kind": kind,
        "lineage": {step: {"id": manifest.id, "digest": manifest.digest()} for step, manifest in steps.items()},
        "metrics": {step: manifest.metrics for step, manifest in steps.items()},
        "files": [e.model_dump() for e in list_outputs(work) if not _hidden(Path(e.path))],
    }
    text = json.dumps(receipt, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    write_atomically(work / RECEIPT, text.encode())


def _files(folder: Path) -> list[Path]:
    """Every file that belongs to a publication, sorted: not the step's manifest, nothing hidden."""
    found = (p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    return sorted(p for p in found if not _hidden(p.relative_to(folder)))


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _contents(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in _files(folder)}


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as reader, target.open("wb") as writer:
        shutil.copyfileobj(reader, writer, 1 << 20)
        writer.flush()
        os.fsync(writer.fileno())


def _refuse_foreign(to: Path) -> None:
    """A folder of ours holds what its MANIFEST.json lists, and nothing else."""
    if to.is_file():
        raise DataError(f"{to} is a file; a publish target is a folder")
    found = {path.relative_to(to).as_posix() for path in to.rglob("*") if path.is_file()} if to.is_dir() else set()
    if not found:
        return
    try:
        listed = {entry["path"] for entry in json.loads((to / RECEIPT).read_bytes())["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{to} holds files and no {RECEIPT} of ours; give an empty or new folder") from None
    if foreign := sorted(found - listed - {RECEIPT}):
        raise DataError(f"{to}/{foreign[0]} was not published by loam; move it away or give another folder")


def _replace(new: Path, to: Path, retired: Path) -> None:
    """Put `new` in the place of `to` in one step, where the file system can."""
    if not to.exists():
        new.rename(to)
    elif _exchange(new, to):
        shutil.rmtree(new)
    else:
        to.rename(retired)
        new.rename(to)
        shutil.rmtree(retired)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names atomically (Linux); False where that is not supported."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    if (code := ctypes.get_errno()) in (errno.ENOSYS, errno.EINVAL):
        return False
    raise OSError(code, os.strerror(code), str(other))
