"""The recipe of scoring: which model, with which policy, and how its scores are cut into buckets.

`loam perplexity --recipe` and `loam buckets --recipe` take their settings from it, so that scores of production and
their cut-offs come from one file that is kept, and `loam check` says what it will cost.
"""

from typing import Literal

from pydantic import Field

from filters.buckets import BucketSettings
from filters.perplexity import PerplexitySettings
from pipelines.model_cost import HubModel
from pipelines.recipe import Section


class ScoreRecipe(Section):
    """Scores of documents and the buckets that follow from them.

    Attributes:
        name: of the recipe.
        about: half a line for people.
        scorer: the model of production.
        perplexity: how documents are scored.
        buckets: how scores are cut.
    """

    kind: Literal["score"] = "score"
    name: str = Field(pattern=r"[a-z0-9][a-z0-9._-]*")
    about: str = ""
    scorer: HubModel | None = None
    perplexity: PerplexitySettings = PerplexitySettings()
    buckets: BucketSettings = BucketSettings()
