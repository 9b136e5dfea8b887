"""Read olmix's configurations: domains with token counts, the prior, weights that are fixed, caps.

A configuration of a fit has `priors` and `constraints`; one that generates a swarm has `data.sources`, whose topics may
carry weights that stay fixed within their source, and `swarm.manual_prior`. Some published files have `token_counts` at
the top instead of under `priors`: both places are read. Source: the published files, Apache-2.0.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from mixtures.bounds import Bounds
from mixtures.mixture import Domains, Mixture
from pipelines.errors import DataError

PRIOR_OFF = 1e-3  # published priors miss 1 by their rounding


@dataclass(frozen=True)
class OlmixConfig:
    """What a configuration says about mixtures.

    Attributes:
        domains: names with unique tokens.
        prior: domain -> natural share; proportional to the tokens where none is stated.
        bounds: horizon and epoch cap, where constraints are enabled.
        fixed: source -> topic -> weight within the source, where those are not searched.
        kl: pull towards the prior, where a proposer states it.
    """

    domains: Domains
    prior: Mixture
    bounds: Bounds
    fixed: dict[str, dict[str, float]] = field(default_factory=dict)
    kl: float | None = None


def read_yaml(path: Path) -> Any:
    """A YAML file as plain values.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except YAMLError as error:
        raise DataError(f"{path}: not valid YAML: {' '.join(str(error).split())[:200]}") from None
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None


def read_olmix(path: Path) -> OlmixConfig:
    """Read a configuration.

    Raises:
        DataError: it names no token counts, the names of prior and counts differ, or a number is not one.
    """
    tree = _mapping(path, "the file", read_yaml(path))
    priors = _mapping(path, "priors", tree.get("priors") or {})
    counts = _numbers(path, "token_counts", priors.get("token_counts") or tree.get("token_counts"))
    if not counts:
        raise DataError(f"{path}: expected `priors.token_counts`, domain to tokens")
    if empty := next((name for name, count in counts.items() if count < 1), None):
        raise DataError(f"{path}: token_counts: domain {empty!r} holds {counts[empty]:g} tokens")
    domains = Domains.of({name: round(count) for name, count in counts.items()})
    sizes = _numbers(path, "relative_sizes", priors.get("relative_sizes"))
    prior = _prior(path, sizes or {name: count / domains.total for name, count in counts.items()}, domains)
    limits = _mapping(path, "constraints", tree.get("constraints") or {})
    proposer = _mapping(path, "proposer", tree.get("proposer") or {})
    return OlmixConfig(domains, prior, _bounds(path, limits), _fixed(path, tree), proposer.get("kl_reg"))


def _prior(path: Path, sizes: Mapping[str, float], domains: Domains) -> Mixture:
    if odd := sorted(set(sizes) ^ set(domains.names)):
        raise DataError(f"{path}: relative_sizes and token_counts name different domains: {', '.join(odd[:3])}")
    total = sum(sizes.values())
    if abs(total - 1) > PRIOR_OFF:
        raise DataError(f"{path}: relative_sizes sum to {total:.6g}, expected 1")
    return Mixture(name="prior", weights={name: sizes[name] / total for name in domains.names})


def _bounds(path: Path, limits: Mapping[str, Any]) -> Bounds:
    if not limits.get("enabled", bool(limits)):
        return Bounds()
    found = _numbers(path, "constraints", {key: limits.get(key) for key in ("target_tokens", "repetition_factor")})
    if not min(found.values()) > 0:
        raise DataError(f"{path}: constraints: expected a positive target_tokens and repetition_factor")
    return Bounds(tokens=round(found["target_tokens"]), epoch_cap=found["repetition_factor"])


def _fixed(path: Path, tree: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Weights of topics within their source; a source none of whose topics has one is searched freely."""
    fixed: dict[str, dict[str, float]] = {}
    for source in _list(path, "data.sources", (tree.get("data") or {}).get("sources") or []):
        topics = _list(path, "topics", source.get("topics") or [])
        weights = {str(topic.get("name")): topic["weight"] for topic in topics if topic.get("weight") is not None}
        if not weights:
            continue
        name = str(source.get("name"))
        if len(weights) < len(topics):
            raise DataError(f"{path}: source {name!r}: {len(weights)} of {len(topics)} topics have a weight")
        fixed[name] = _numbers(path, f"topics of {name}", weights)
        if abs(sum(fixed[name].values()) - 1) > PRIOR_OFF:
            raise DataError(f"{path}: the topics of source {name!r} sum to {sum(fixed[name].values()):.6g}, expected 1")
    return fixed


def _mapping(path: Path, what: str, node: object) -> dict[str, Any]:
    if not isinstance(node, Mapping):
        raise DataError(f"{path}: {what}: expected a mapping, found {type(node).__name__}")
    return {str(key): value for key, value in node.items()}


def _list(path: Path, what: str, node: object) -> list[dict[str, Any]]:
    if not isinstance(node, list):
        raise DataError(f"{path}: {what}: expected a list, found {type(node).__name__}")
    return [_mapping(path, what, item) for item in node]


def _numbers(path: Path, what: str, node: object) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, value in _mapping(path, what, node or {}).items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
            raise DataError(f"{path}: {what}: {name!r} is {value!r}, expected a number from 0 up")
        found[name] = float(value)
    return found
