"""Settings of deduplication: what counts as a duplicate, and which copy stays.

Three published configurations have names (`preset`): FineWeb's 14 bands of 8 rows over word 5-grams (arXiv:2406.17557),
NeMo Curator's 20 of 13 over 24 characters, and OpenSeek's 25 of 10 over character 5-grams, meant for Chinese. A preset
fills what is not given; the resolved settings are what a manifest holds.
"""

from typing import Any, Literal

from pydantic import Field, model_validator

from pipelines.minhash import Shape
from pipelines.recipe import Section

PRESETS: dict[str, dict[str, Any]] = {
    "fineweb": {"unit": "word", "ngram": 5, "bands": 14, "rows": 8},
    "curator": {"unit": "char", "ngram": 24, "bands": 20, "rows": 13},
    "openseek_zh": {"unit": "char", "ngram": 5, "bands": 25, "rows": 10},
}


class LineSettings(Section):
    """Of method `lines`.

    Attributes:
        unit: a line, or a paragraph: lines between blank ones.
        normalize: `words` compares lower-case words (numbers count, punctuation does not), `exact` all but whitespace.
        min_bytes: UTF-8 bytes that a normalized line needs to count: 30 are six English words or ten of Han.
        drop_share: a document is dropped when so much of its text is duplicate; 1.0 drops what has nothing left.
    """

    unit: Literal["line", "paragraph"] = "line"
    normalize: Literal["words", "exact"] = "words"
    min_bytes: int = Field(default=30, ge=1)
    drop_share: float = Field(default=1.0, gt=0, le=1)


class SubstringSettings(Section):
    """Of method `substring`.

    Attributes:
        min_bytes: least length of a repeated passage: 150 bytes are about 50 tokens of dense text or 25 English words
            (arXiv:2107.06499 takes 50 tokens).
        policy: `span` cuts the later copies out, `document` drops whole documents and changes none.
        drop_share: a document is dropped when so much of its text is duplicate; 1.0 drops what has nothing left.
    """

    min_bytes: int = Field(default=150, ge=16)
    policy: Literal["span", "document"] = "span"
    drop_share: float = Field(default=1.0, gt=0, le=1)


class SemanticSettings(Section):
    """Of method `semantic`.

    Attributes:
        threshold: least cosine of two duplicates.
        cells: of k-means, within which pairs are compared; 0 takes one per 1,000 documents.
        probes: nearest cells that a document is compared in.
        iterations: of k-means.
        seed: of its first centres.
    """

    threshold: float = Field(default=0.95, gt=0, le=1)
    cells: int = Field(default=0, ge=0)
    probes: int = Field(default=2, ge=1)
    iterations: int = Field(default=10, ge=1)
    seed: int = 1


class DedupSettings(Section):
    """What counts as a duplicate, and which copy stays.

    Attributes:
        method: `exact` (equal but for whitespace), `url` (equal normalized URL), `minhash` (near), `lines` and
            `substring` (parts of texts), `semantic` (embeddings that the user gives).
        preset: of `minhash`: fills unit, ngram, bands and rows where they are not given.
        unit: of shingles; a character of a script without spaces is a word.
        ngram: units of a shingle.
        bands: groups of hashes of which one must agree.
        rows: hashes of a band.
        seed: of the permutations.
        verify_jaccard: least similarity of two near duplicates; null takes every pair that shares a band.
        prefer: the copy that stays: the least id, the highest score, the longest text or the newest date in the
            metadata; ties by least id.
        score: that `quality` means: a field of `scores`, or a number in the metadata.
        priority: names of sources; copies of the first one stay before all others.
        within: whether documents of different domains can be duplicates of each other.
        rehydrate: write each kept document's `cluster_size` and its `weight` to `attributes/`.
        lines: of method `lines`.
        substring: of method `substring`.
        semantic: of method `semantic`.
    """

    method: Literal["exact", "url", "minhash", "lines", "substring", "semantic"] = "minhash"
    preset: Literal["fineweb", "curator", "openseek_zh"] = "fineweb"
    unit: Literal["word", "char"] = "word"
    ngram: int = Field(default=5, ge=1)
    bands: int = Field(default=14, ge=1)
    rows: int = Field(default=8, ge=1)
    seed: int = Field(default=1, ge=0, lt=2**32)
    verify_jaccard: float | None = Field(default=0.8, ge=0, le=1)
    prefer: Literal["first", "quality", "longest", "newest"] = "first"
    score: str = "quality"
    priority: tuple[str, ...] = ()
    within: Literal["all", "domain"] = "all"
    rehydrate: bool = False
    lines: LineSettings = LineSettings()
    substring: SubstringSettings = SubstringSettings()
    semantic: SemanticSettings = SemanticSettings()

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, given: Any) -> Any:
        return PRESETS.get(given.get("preset", "fineweb"), {}) | given if isinstance(given, dict) else given

    @property
    def shape(self) -> Shape:
        """The shape of the signatures."""
        return Shape(self.unit == "char", self.ngram, self.bands, self.rows, self.seed)

    @property
    def of_index(self) -> dict[str, Any]:
        """What two runs must share for one to use the other's index."""
        names = ["method", "within"] + (["unit", "ngram", "bands", "rows", "seed"] if self.method == "minhash" else [])
        parts: dict[str, Any] = {}
        if self.method == "lines":
            parts = {"lines": self.lines.model_dump(exclude={"drop_share"})}
        elif self.method == "substring":
            parts = {"substring": {"min_bytes": self.substring.min_bytes}}
        return {name: getattr(self, name) for name in names} | parts
