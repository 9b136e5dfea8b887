"""Settings of retrieval and of the recipe `cot_rag`, apart from the code so that reading a recipe compiles nothing."""

from pydantic import Field

from pipelines.recipe import Section


class RetrievalSettings(Section):
    """How a corpus is cut and weighed.

    Attributes:
        passage_bytes: bound of a passage in UTF-8; 1,200 are about 200 English words or 400 Chinese characters.
        k1: how soon more of the same term stops counting.
        b: how much a passage's length counts against it, 0..1.
    """

    passage_bytes: int = Field(default=1200, ge=64, le=1 << 20)
    k1: float = Field(default=1.5, ge=0)
    b: float = Field(default=0.75, ge=0, le=1)


class RagSettings(Section):
    """What stands beside the right passage, and how often that one is missing.

    Attributes:
        distractors: passages of other documents beside the right one.
        absent_share: of the questions whose right passage is left out (one more distractor stands in its place).
        near_duplicate: a passage is a copy if this share of its shingles is in the source, or of the right passage's
            shingles in it.
        questions: asked about each document that is no question itself, each about another passage.
        retrieval: passages and weights.
    """

    distractors: int = Field(default=4, ge=1, le=20)
    absent_share: float = Field(default=0.2, ge=0, le=1)
    near_duplicate: float = Field(default=0.5, gt=0, le=1)
    questions: int = Field(default=1, ge=1)
    retrieval: RetrievalSettings = RetrievalSettings()
