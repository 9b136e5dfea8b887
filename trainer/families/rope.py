"""Rotary positions as transformers writes them: version 5's `rope_parameters`, and version 4's two keys."""

from collections.abc import Mapping
from typing import Any

from trainer.model_recipe import ModelSettings

KEYS = {
    "factor": "factor",
    "original_max_position_embeddings": "original_positions",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "attention_factor": "attention_factor",
    "mscale": "mscale",
    "mscale_all_dim": "mscale_all_dim",
    "truncate": "truncate",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
}
OF_KIND = {
    "linear": ("factor",),
    "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor", "mscale",
             "mscale_all_dim", "truncate"),
}  # fmt: skip


def read_rope(config: Mapping[str, Any], theta: float) -> dict[str, Any]:
    """The fields `rope_theta` and `rope`.

    Args:
        config: parsed.
        theta: base of the wavelengths where it names none.

    Raises:
        ValueError: wavelengths are stretched in a way that is not computed here.
    """
    found = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    theta = found.get("rope_theta") or config.get("rope_theta") or theta
    kind = found.get("rope_type") or found.get("type") or "default"
    if (part := found.get("partial_rotary_factor", config.get("partial_rotary_factor"))) not in (None, 1.0):
        raise ValueError(f"partial_rotary_factor={part!r} is not supported; expected 1.0")
    if kind == "default":
        return {"rope_theta": theta, "rope": None}
    if kind not in OF_KIND:
        raise ValueError(f"rope_type={kind!r} is not supported; expected one of default, {', '.join(OF_KIND)}")
    given = {KEYS[key]: found[key] for key in OF_KIND[kind] if found.get(key) is not None}
    return {"rope_theta": theta, "rope": {"kind": kind, **given}}


def write_rope(settings: ModelSettings) -> dict[str, Any]:
    """The keys of a configuration."""
    theta = {"rope_theta": settings.rope_theta}  # beside the parameters too: where transformers 4 looks
    if settings.rope is None:
        return {"rope_parameters": {"rope_type": "default", **theta}, **theta}
    rope = settings.rope
    given = {key: getattr(rope, KEYS[key]) for key in OF_KIND[rope.kind]}
    unset = {"attention_factor": None, "mscale": 0.0, "mscale_all_dim": 0.0, "truncate": True}
    parameters = {"rope_type": rope.kind, **{key: x for key, x in given.items() if key not in unset or x != unset[key]}}
    return {"rope_parameters": {**parameters, **theta}, "rope_scaling": parameters, **theta}
