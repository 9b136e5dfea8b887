"""What synthesis leaves on disk: samples as documents, rejects with what was said, and the ledger of tokens.

A sample keeps the origin of its source document, so that it can be traced to the same raw bytes, and its metadata hold
everything that went into it: segments as spans, steps, hashes of recipe and verification, the model.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.block import ROW_GROUP_ROWS
from pipelines.document import ORIGIN, SCHEMA
from synth.kind import Kind
from synth.prompt_files import load_prompts
from synth.protocol import Identity, Response
from synth.recipe import SynthSettings, recipe_hash
from synth.verification import verification_hash

PART = "part-00000.parquet"
EXCERPT_CHARS = 300
REJECTS = pa.schema([("id", pa.string()), ("reason", pa.string()), ("stage", pa.string()), ("excerpt", pa.string()),
                     ("source", pa.string()), ("origin", ORIGIN)])  # fmt: skip
LEDGER = pa.schema([("request_key", pa.string()), ("doc_id", pa.string()), ("stage", pa.string()),
                    ("attempt", pa.int64()), ("prompt_tokens", pa.int64()), ("completion_tokens", pa.int64()),
                    ("finish_reason", pa.string())])  # fmt: skip


@dataclass(frozen=True)
class Reject:
    """Where a document failed, why, and on which answer."""

    stage: str
    reason: str
    answer: str


@dataclass
class Work:
    """A document on its way through the stages.

    Attributes:
        row: the source document.
        unit: what tells the samples of one document apart; empty where there is one.
        draft: how far its sample is.
        reject: set once it failed.
    """

    row: dict[str, Any]
    unit: str
    draft: Any
    reject: Reject | None = None

    @property
    def id(self) -> str:
        """Id of the source document, and the unit if it has one."""
        return f"{self.row['id']}#{self.unit}" if self.unit else self.row["id"]


@dataclass(frozen=True)
class Row:
    """One line of the ledger."""

    request_key: str
    doc_id: str
    stage: str
    attempt: int
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str

    @classmethod
    def of(cls, key: str, doc_id: str, stage: str, attempt: int, response: Response) -> "Row":
        """The line of an answer."""
        usage = response.usage
        return cls(
            key, doc_id, stage, attempt, usage.prompt_tokens, usage.completion_tokens, response.finish_reason
        )  # fmt: skip


def write_outputs(
    works: Sequence[Work], ledger: Sequence[Row], work: Path, settings: SynthSettings, identity: Identity, kind: Kind
) -> None:
    """Write `samples/`, `rejects/` and `ledger.parquet`, in the order in which documents were drawn."""
    common = {
        "recipe": settings.recipe,
        "recipe_hash": recipe_hash(settings),
        "verification": verification_hash(settings.limits),
        "generator": f"{identity.backend} {identity.version} {identity.model} {identity.digest[:16]}".strip(),
    }
    template = load_prompts(settings.recipe)["sample"]
    mates: dict[str, list[str]] = {}
    for one in works:
        mates.setdefault(one.row["id"], []).append(one.reject.reason if one.reject else "")
    domain = settings.sample_domain
    samples = [
        _sample(one, domain, {**common, **kind.provenance(one.draft, mates[one.row["id"]])},
                template.fill(kind.sample_slots(one.draft)))
        for one in works if one.reject is None
    ]  # fmt: skip
    _write(samples, SCHEMA, work / "samples" / PART)
    _write([_rejected(one, one.reject) for one in works if one.reject is not None], REJECTS, work / "rejects" / PART)
    _write([asdict(row) for row in ledger], LEDGER, work / "ledger.parquet")


def _sample(one: Work, domain: str, known: dict[str, str], text: str) -> dict[str, Any]:
    name = hashlib.sha256(f"{one.id}\0{known['recipe_hash']}".encode()).hexdigest()[:32]
    metadata = {"doc_id": one.row["id"], "doc_domain": one.row["domain"] or "", **known}
    kept = {key: one.row[key] for key in ("url", "source", "language", "origin")}
    return {"id": f"{domain}:{name}", "text": text, "domain": domain, **kept, "metadata": list(metadata.items())}


def _rejected(one: Work, reject: Reject) -> dict[str, Any]:
    excerpt = reject.answer[:EXCERPT_CHARS]
    return {"id": one.id, "reason": reject.reason, "stage": reject.stage, "excerpt": excerpt,
            "source": one.row["source"], "origin": one.row["origin"]}  # fmt: skip


def _write(rows: list[dict[str, Any]], schema: pa.Schema, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    table = pa.Table.from_pylist(rows, schema=schema)
    pq.write_table(table, temporary, compression="zstd", row_group_size=ROW_GROUP_ROWS)
    temporary.replace(path)
