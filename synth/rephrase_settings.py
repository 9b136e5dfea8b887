"""The five rephrasings of Nemotron-CC (arXiv:2412.02595): what fits into a request, and which documents go where.

The limits are those of the published pipeline, in tokens. The ceiling of an answer stands in its prompt (`max_tokens`).
"""

from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from pipelines.recipe import Section

HIGH_ABOVE = 11
"""Of 20 quality buckets, those above this one are high (arXiv:2412.02595, section 2.3)."""


@dataclass(frozen=True)
class Task:
    """Limits of one rephrasing, in tokens.

    Attributes:
        min_document: shorter documents are left out.
        min_segment: shorter segments are left out.
        max_input: of a request, prompt and segment.
        min_sample: shorter samples are rejected.
        high: whether it is for documents of high quality; the others are cleaned by `wrap`.
    """

    min_document: int
    min_segment: int
    max_input: int
    min_sample: int
    high: bool = True


TASKS = {
    "diverse_qa": Task(30, 30, 1000, 100),
    "distill": Task(30, 10, 2000, 50),
    "extract_knowledge": Task(30, 30, 1400, 50),
    "knowledge_list": Task(30, 30, 1000, 50),
    "wrap": Task(5, 5, 512, 50, high=False),
}


ROUTING = frozenset({"route", "buckets", "bucket_key", "high_above"})
"""Settings that choose documents and change nothing about what is asked of them."""


class RephraseSettings(Section):
    """How documents are cut for a rephrasing; a limit that is not given is the task's own.

    Attributes:
        min_document_tokens: shorter documents are left out.
        min_segment_tokens: shorter segments are left out.
        max_input_tokens: of prompt and segment together.
        min_sample_tokens: shorter samples are rejected.
        route: only documents of the task's quality: buckets above `high_above` for all but `wrap`, which gets the rest.
        buckets: table of ids and buckets, as `loam quality ensemble` writes it.
        bucket_key: of a document's metadata, where its quality bucket stands when no table is given.
        high_above: the last bucket that is not high.
    """

    min_document_tokens: int | None = Field(default=None, ge=1)
    min_segment_tokens: int | None = Field(default=None, ge=1)
    max_input_tokens: int | None = Field(default=None, ge=16)
    min_sample_tokens: int | None = Field(default=None, ge=1)
    route: bool = False
    buckets: Path | None = None
    bucket_key: str = "bucket"
    high_above: int = HIGH_ABOVE

    def limits(self, recipe: str) -> Task:
        """The task's limits, with what the settings say instead."""
        task = TASKS[recipe]
        return Task(
            self.min_document_tokens or task.min_document,
            self.min_segment_tokens or task.min_segment,
            self.max_input_tokens or task.max_input,
            self.min_sample_tokens or task.min_sample,
            task.high,
        )
