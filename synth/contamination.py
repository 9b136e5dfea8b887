"""Evaluation sets kept out of synthesis: documents before anything is asked about them, samples when they are done.

Both searches are decontamination's own (`pipelines/decontaminate.py`), so that a synthetic corpus is held to the same
rule as the text that it is made of. The first saves what a contaminated document would cost; the second is needed all
the same, since a model may know the benchmarks by heart. Hits are written with their spans.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.decontaminate import HITS, DecontaminateSettings, decontaminate
from pipelines.document import SCHEMA, conform
from pipelines.execute import SCRATCH
from pipelines.files import sha256_of
from synth.screening import Candidate, Finding
from synth.verification import Limits

FILE = "contamination.parquet"
WHERE = pa.schema([("stage", pa.string()), *HITS])
"""Hits: `document` and `benchmarks` are the two stages; `id` is that of the document, or of the sample."""
EXCERPT_CHARS = 200


class Benchmarks:
    """The screen `benchmarks`, and the search among documents that comes before.

    Args:
        against: evaluation sets, or an `index.parquet` of them; none finds nothing.
        work: the step's working folder.
        settings: what counts as a hit.
    """

    name = "benchmarks"

    def __init__(self, against: Sequence[Path], work: Path, settings: DecontaminateSettings | None = None) -> None:
        self.against, self.work = list(against), work
        self.settings = (settings or DecontaminateSettings()).model_copy(update={"action": "drop"})
        digests = sorted(sha256_of(path) for path in self.against)
        self.identity: Mapping[str, Any] = {"settings": self.settings.model_dump(mode="json"), "sets": digests}
        self.found: list[pa.Table] = []

    def search(self, documents: pa.Table, stage: str) -> dict[str, str]:
        """Which documents hold items.

        Args:
            documents: with `id` and `text`.
            stage: told in `contamination.parquet`, which `close` writes.

        Returns:
            Id -> what was found, for people.
        """
        if not self.against or not documents.num_rows:
            return {}
        folder = self.work / SCRATCH / f"benchmarks-{stage}"
        shutil.rmtree(folder, ignore_errors=True)  # what a killed attempt left may be of other samples
        folder.mkdir(parents=True)
        file = folder / "in.parquet"
        pq.write_table(conform(documents), file)
        decontaminate([file], self.against, folder, self.settings)
        hits = pq.read_table(folder / "hits.parquet")
        dropped = {row["id"] for path in sorted((folder / "dropped").rglob("*.parquet"))
                   for row in pq.read_table(path, columns=["id"]).to_pylist()}  # fmt: skip
        stages = pa.array([stage] * hits.num_rows, pa.string())
        self.found.append(hits.add_column(0, "stage", stages).cast(WHERE))
        shown: dict[str, str] = {}
        for hit in hits.to_pylist():
            if hit["id"] in dropped:
                text = hit["text"][:EXCERPT_CHARS]
                shown.setdefault(hit["id"], f"{hit['benchmark']} {hit['item']} [{hit['start']}, {hit['end']}): {text}")
        return shown

    def judge(self, candidates: Sequence[Candidate], limits: Limits) -> Sequence[Finding]:
        """Find samples that hold items."""
        columns = {"id": [c.id for c in candidates], "text": [c.text for c in candidates]}
        kinds = pa.schema([SCHEMA.field("id"), SCHEMA.field("text")])
        shown = self.search(pa.table(columns, schema=kinds), self.name)
        return [Finding("contaminated", shown[c.id]) if c.id in shown else Finding() for c in candidates]

    def close(self) -> None:
        """Write the hits."""
        if self.against:
            temporary = self.work / f".{FILE}.tmp"
            table = pa.concat_tables([WHERE.empty_table(), *self.found])
            pq.write_table(table, temporary, compression="zstd")
            temporary.replace(self.work / FILE)
