"""What synthesis leaves on disk: samples as documents, rejects with what was said, and the ledger of tokens.

A sample keeps the origin of its source document, so that it can be traced to the same raw bytes, and its metadata hold
everything that went into it: the document's licence, segments as spans, steps, hashes of recipe and verification, the
model.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.block import ROW_GROUP_ROWS
from pipelines.document import LICENCE_KEYS, ORIGIN, SCHEMA
from synth.kind import Kind
from synth.ledger import LEDGER, Row
from synth.prompt_files import Prompts, prompt_language
from synth.protocol import Identity
from synth.recipe import SynthSettings

PART = "part-00000.parquet"
EXCERPT_CHARS = 300
REJECTS = pa.schema(
    [
        ("id", pa.string()),  # of the document, and the unit if it has one
        ("reason", pa.string()),
        ("stage", pa.string()),
        ("excerpt", pa.string()),  # what was said, or what a screen found
        ("source", pa.string()),
        ("origin", ORIGIN),
        ("sample_id", pa.string()),  # that an accepted sample would have
        ("doc_id", pa.string()),
        ("doc_domain", pa.string()),
        ("domain", pa.string()),
        ("language", pa.string()),
        ("recipe", pa.string()),
        ("recipe_hash", pa.string()),
        ("verification", pa.string()),
        ("generator", pa.string()),
        ("facts", pa.map_(pa.string(), pa.string())),  # what screens measured, as in a sample's metadata
    ]
)
"""A sample that was not: the key columns are those of samples, so that the two are counted side by side."""


@dataclass(frozen=True)
class Reject:
    """Where a document failed, why, and on which answer; `screened`: as a finished sample."""

    stage: str
    reason: str
    answer: str
    screened: bool = False


@dataclass
class Work:
    """A document on its way through the stages.

    Attributes:
        row: the source document.
        unit: what tells the samples of one document apart; empty where there is one.
        draft: how far its sample is.
        reject: set once it failed.
        facts: what screens found (`synth/screening.py`); metadata of the sample.
    """

    row: dict[str, Any]
    unit: str
    draft: Any
    reject: Reject | None = None
    facts: dict[str, str] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Id of the source document, and the unit if it has one."""
        return f"{self.row['id']}#{self.unit}" if self.unit else self.row["id"]


@dataclass(frozen=True)
class Maker:
    """Who makes samples, and how: what samples and rejects of a run have in common.

    Attributes:
        settings: the recipe.
        kind: of the samples.
        prompts: of the recipe, `sample` among them.
        recipe: hash of what is asked.
        verification: hash of what is accepted.
        generator: the engine that answered.
    """

    settings: SynthSettings
    kind: Kind
    prompts: Prompts
    recipe: str
    verification: str
    generator: Identity

    def text(self, one: Work) -> str:
        """The sample of a finished work."""
        template = self.prompts.of("sample", prompt_language(one.row["language"], one.row["text"]))
        return template.fill(self.kind.sample_slots(one.draft))

    def sample_id(self, one: Work) -> str:
        """The same for the same document, unit and recipe."""
        name = hashlib.sha256(f"{one.id}\0{self.recipe}".encode()).hexdigest()[:32]
        return f"{self.settings.sample_domain}:{name}"

    @property
    def common(self) -> dict[str, str]:
        """Provenance of samples and rejects."""
        return {
            "recipe": self.settings.recipe,
            "recipe_hash": self.recipe,
            "verification": self.verification,
            "generator": name_of(self.generator),
        }


def name_of(identity: Identity) -> str:
    """An engine in one line."""
    return f"{identity.backend} {identity.version} {identity.model} {identity.digest[:16]}".strip()


def write_outputs(works: Sequence[Work], ledger: Sequence[Row], work: Path, maker: Maker) -> None:
    """Write `samples/`, `rejects/` and `ledger.parquet`, in the order in which documents were drawn."""
    mates: dict[str, list[str]] = {}  # a sample that a screen took out did pass the recipe's own verdict
    for one in works:
        failed = one.reject is not None and not one.reject.screened
        mates.setdefault(one.row["id"], []).append(one.reject.reason if failed and one.reject else "")
    samples = [_sample(one, maker, mates[one.row["id"]]) for one in works if one.reject is None]
    rejects = [_rejected(one, one.reject, maker) for one in works if one.reject is not None]
    write_table(samples, SCHEMA, work / "samples" / PART)
    write_table(rejects, REJECTS, work / "rejects" / PART)
    write_table([asdict(row) for row in ledger], LEDGER, work / "ledger.parquet")


def _sample(one: Work, maker: Maker, mates: Sequence[str]) -> dict[str, Any]:
    known = {**maker.common, **maker.kind.provenance(one.draft, mates), **one.facts}
    metadata = {"doc_id": one.row["id"], "doc_domain": one.row["domain"] or "", **licence_of(one.row), **known}
    kept = {key: one.row[key] for key in ("url", "source", "language", "origin")}
    domain = maker.settings.sample_domain
    return {"id": maker.sample_id(one), "text": maker.text(one), "domain": domain, **kept,
            "metadata": list(metadata.items())}  # fmt: skip


def licence_of(row: Mapping[str, Any]) -> dict[str, str]:
    """The licence that a document's source states, as metadata; empty where it states none."""
    metadata = dict(row.get("metadata") or ())
    stated = (metadata.get(key) or "" for key in LICENCE_KEYS)
    return next(({"licence": licence} for licence in stated if licence.strip()), {})


def _rejected(one: Work, reject: Reject, maker: Maker) -> dict[str, Any]:
    return {"id": one.id, "reason": reject.reason, "stage": reject.stage, "excerpt": reject.answer[:EXCERPT_CHARS],
            "source": one.row["source"], "origin": one.row["origin"], "sample_id": maker.sample_id(one),
            "doc_id": one.row["id"], "doc_domain": one.row["domain"], "domain": maker.settings.sample_domain,
            "language": one.row["language"], **maker.common, "facts": list(one.facts.items())}  # fmt: skip


def write_table(rows: list[dict[str, Any]], schema: pa.Schema, path: Path) -> None:
    """Write a table whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    table = pa.Table.from_pylist(rows, schema=schema)
    pq.write_table(table, temporary, compression="zstd", row_group_size=ROW_GROUP_ROWS)
    temporary.replace(path)
