"""How much held-out text the experts are watched on."""

from pydantic import Field

from pipelines.quantities import Tokens
from pipelines.recipe import Section


class ExpertsSettings(Section):
    """Settings of `loam experts`.

    Attributes:
        tokens_per_domain: read from the beginning of each held-out shard.
    """

    tokens_per_domain: Tokens = Field(default=16_384, gt=1)
