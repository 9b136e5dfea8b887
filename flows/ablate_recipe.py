"""The recipe of an ablation: domains that are there already, searched for the best mixture of them.

Domains come from text (`sources`, as in every recipe; each becomes shards with documents held out) or are Megatron
shards already (`shards`). Then the same steps as in a whole run: swarm, proxies, law, confirmation, verdict. `train` is
the model that the mixture is for: its tokens are the horizon of caps, its FLOPs what the search is compared with.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from flows.recipe import AblateSettings, FlowRecipe
from pipelines.encode import EncodeSettings
from pipelines.extract import ExtractSettings
from pipelines.recipe import Section
from pipelines.source_settings import SourceSettings
from pipelines.tokenizer import TokenizerSettings
from trainer.recipe import TrainRecipe


class ShardDomain(Section):
    """A domain whose tokens are there.

    Attributes:
        train: prefix of a Megatron pair (`<prefix>.bin`, `.idx`), relative to `root`.
        validation: prefix of held-out documents of it; None where no loss is measured on this domain.
        licence: what its texts may be used under, for quotas.
    """

    train: str
    validation: str | None = None
    licence: str | None = None


class AblationRecipe(FlowRecipe):
    """Domains to a proven mixture of them.

    Attributes:
        sources: text by source; a source's `domain` is its own name when not given.
        shards: domains by name that are tokenized already; instead of `sources`.
        tokenizer: of the sources; of shards only `path`, for the size of the vocabulary.
        encode: how sources become shards, and what is held out.
        ablate: the search.
        train: the model that the mixture is for.
    """

    kind: Literal["ablate"]
    sources: dict[str, SourceSettings] = Field(default_factory=dict)
    shards: dict[str, ShardDomain] = Field(default_factory=dict)
    extract: ExtractSettings = ExtractSettings()
    tokenizer: TokenizerSettings = TokenizerSettings()
    encode: EncodeSettings = EncodeSettings()
    ablate: AblateSettings
    train: TrainRecipe

    @property
    def domains(self) -> list[str]:
        """Names of the domains, sorted."""
        return sorted(self.shards or {source.domain or name for name, source in self.sources.items()})

    def shard_prefixes(self, split: Literal["train", "validation"]) -> dict[str, Path]:
        """Prefix of each domain's shard, where it has one."""
        named = {name: getattr(self.shards[name], split) for name in self.domains if self.shards}
        return {name: Path(self.root) / prefix for name, prefix in named.items() if prefix is not None}

    @model_validator(mode="after")
    def _domains_hold(self) -> "AblationRecipe":
        if bool(self.sources) == bool(self.shards):
            raise ValueError("give the domains as `sources` (text) or as `shards` (Megatron prefixes), one of the two")
        if len(self.domains) < 2:
            raise ValueError(f"a mixture needs two domains or more; there is {', '.join(self.domains)}")
        both = set(self.shard_prefixes("train").values()) & set(self.shard_prefixes("validation").values())
        if both:
            raise ValueError(f"shards: {min(both)} is trained on and held out; losses are of documents not trained on")
        measured = sorted(self.shard_prefixes("validation")) if self.shards else self.domains
        if not measured:
            raise ValueError("shards: no domain has `validation`, so that no loss can be measured")
        if unknown := sorted(set(self.ablate.targets) - set(measured)):
            have = ", ".join(measured)
            raise ValueError(f"ablate.targets names {unknown[0]!r}, on which nothing is measured; there are: {have}")
        if self.sources and not self.encode.validation_share:
            raise ValueError("encode.validation_share is 0: losses are measured on documents that are held out")
        if self.shards and not self.tokenizer.path and not self.ablate.proxy.model.vocab_size:
            raise ValueError("shards: tokenizer.path says how large the vocabulary is, or vocab_size of each model")
        return self
