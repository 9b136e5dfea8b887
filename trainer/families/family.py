"""What a family of models is: a table from the keys of its `config.json` to the fields of `ModelSettings`, both ways.

A family says what its members have in common (`fixed`), what a configuration must not switch on (`constants`) and how
its files name tensors. A shape is of a family when it survives the way to a configuration and back in all that decides
a logit; nothing else has to be declared.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from trainer.families.rope import read_rope, write_rope
from trainer.model_recipe import ModelSettings

Config = Mapping[str, Any]
BASE = {
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "vocab_size": "vocab_size",
    "max_position_embeddings": "max_sequence",
    "rms_norm_eps": "norm_eps",
    "initializer_range": "initial_std",
}
ALIASES = {
    "num_experts": "num_local_experts",
    "num_nextn_predict_layers": "num_mtp_layers",
}  # transformers 5 writes them
TRAINING_ONLY = ("initial_std", "mtp_weight")
ROUTER_TRAINING_ONLY = (
    "bias_update_rate", "center_bias", "aux_loss", "sequence_aux_loss", "global_aux_loss", "z_loss", "capacity_factor",
    "drop",
)  # fmt: skip
DENSE = {"experts": 0, "qk_norm": "none", "qkv_bias": False, "mla": None, "mtp_layers": 0}


@dataclass(frozen=True)
class Family:
    """Models that one class of transformers computes.

    Attributes:
        model_type: as `config.json` names it.
        architecture: the class.
        fields: configuration key -> field of the model's settings, such as `router.scaling`.
        fixed: field -> value in every member.
        constants: configuration key -> values that are computed here; the first is written, and an absent key is fine.
        absent: configuration key -> what its absence means to transformers; without an entry the key is required.
        theta: base of the rotary wavelengths where a configuration names none.
        read: further fields, by path, of a configuration.
        write: further keys of a member's configuration.
        renames: beginnings of tensor names within a layer, ours and the file's.
        experts: prefix of the file's routed experts within a layer, and its names of gate, up and down projection.
        neighbours: rotary pairs are neighbours in the file's projections, not half a head apart.
        ties: whether every engine reads a file without an output projection; where not, it is written twice.
        copies: a prediction module's file holds copies of embedding and output projection.
    """

    model_type: str
    architecture: str
    fields: Mapping[str, str]
    fixed: Mapping[str, Any]
    constants: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    absent: Mapping[str, Any] = field(default_factory=dict)
    theta: float = 10_000.0
    read: Callable[[Config], dict[str, Any]] = lambda config: {}
    write: Callable[[ModelSettings], dict[str, Any]] = lambda settings: {}
    renames: tuple[tuple[str, str], ...] = ()
    experts: tuple[str, str, str, str] = ("mlp.experts", "gate_proj", "up_proj", "down_proj")
    neighbours: bool = False
    ties: bool = True
    copies: bool = False

    def shape_of(self, config: Config) -> ModelSettings:
        """The settings that a configuration describes; training-only fields keep their defaults.

        Raises:
            KeyError: a key is missing.
            ValidationError: a value makes no model.
            ValueError: what is set has no counterpart here.
        """
        config = {**{key: config[other] for key, other in ALIASES.items() if other in config}, **config}
        for key, allowed in self.constants.items():
            if key in config and config[key] not in allowed:
                raise ValueError(f"{key}={config[key]!r} is not supported; expected {allowed[0]!r}")
        found: dict[str, Any] = {"tie_embeddings": config.get("tie_word_embeddings", False)}
        found |= dict(self.fixed)
        for key, path in {**BASE, **self.fields}.items():
            value = config.get(key, 0.02) if key == "initializer_range" else config.get(key)
            if value is None:
                value = self.absent[key] if key in self.absent else config[key]
            found[path] = value
        found |= read_rope(config, self.theta) | self.read(config)
        return ModelSettings.model_validate(_nested(found))

    def config_of(self, settings: ModelSettings, eos_id: int | None) -> dict[str, Any]:
        """The `config.json` of a member.

        Args:
            settings: its shape; `vocab_size` is the number of rows that are written.
            eos_id: end-of-text token, if known.
        """
        return {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            "attention_dropout": 0.0,
            "bos_token_id": None,
            "dtype": "float32",
            "eos_token_id": eos_id,
            "hidden_act": "silu",
            "tie_word_embeddings": settings.tie_embeddings and self.ties,
            "use_cache": True,
            **{key: allowed[0] for key, allowed in self.constants.items()},
            **{key: value_at(settings, path) for key, path in {**BASE, **self.fields}.items()},
            **write_rope(settings),
            **self.write(settings),
        }

    def misfits(self, settings: ModelSettings) -> list[str]:
        """Why a shape is no member: what the way to a configuration and back does not keep; empty for a member."""
        wanted = essence(settings)
        try:
            found = essence(self.shape_of(self.config_of(settings, None)))
        except (ValueError, KeyError, AttributeError) as error:
            return [str(error).splitlines()[-1].strip()]
        if not self.ties:
            found["tie_embeddings"] = wanted["tie_embeddings"]
        keys = sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
        return [f"{key} {wanted.get(key)!r}, there {found.get(key)!r}" for key in keys]


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """`{"router.scaling": 2}` as `{"router": {"scaling": 2}}`."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, last = path.split(".")
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return tree


def value_at(settings: ModelSettings, path: str) -> Any:
    """A field by its path; None where a section on the way is."""
    value: Any = settings
    for name in path.split("."):
        value = None if value is None else getattr(value, name)
    return value


def essence(settings: ModelSettings) -> dict[str, Any]:
    """What decides a logit, in one form for equal models, by field."""
    plain = settings.model_dump(mode="json")
    router = plain.pop("router")
    for name in TRAINING_ONLY:
        del plain[name]
    if settings.mla is None:
        del plain["mla"]
    sparse = [settings.has_experts(layer) for layer in range(settings.layers + settings.mtp_layers)]
    if all(sparse):
        del plain["ffn_width"]
    for name in ("dense_layers", "expert_every", "shared_experts", "shared_width"):
        del plain[name]
    if not any(sparse):
        for name in ("experts", "experts_per_token", "expert_width", "shared_gate"):
            del plain[name]
        return plain
    for name in ROUTER_TRAINING_ONLY:
        del router[name]
    if router["score"] == "softmax_chosen":  # the same numbers: the sum over all cancels
        router |= {"score": "softmax", "normalize": True}
    if router["groups"] == 1:
        del router["groups_per_token"], router["scores_per_group"]
    layers = {"layers with experts": sparse, "shared width": settings.shared_hidden}
    return plain | layers | {f"router.{name}": value for name, value in router.items()}
