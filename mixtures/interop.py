"""Read and write mixtures the way other projects write them.

RegMix: CSV with an `index` column and `train_` domains, YAML with a `train:` mapping. olmix: CSV with `run, name,
index` first. Megatron: `data_path`, a flat list of weight, prefix, weight, prefix. Weights that do not sum to 1 are
refused unless the other format defines them as relative (Megatron does).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from mixtures.mixture import Mixture
from mixtures.tables import Ratios, write_table
from pipelines.errors import DataError
from pipelines.files import write_atomically

REGMIX_DECIMALS = 4  # its shipped mixtures are written with four decimals and may miss 1 by their rounding


def write_ratios_as(path: Path, ratios: Ratios, layout: Literal["loam", "regmix", "olmix"]) -> None:
    """Write a table of mixtures in the layout of another project; `tables.read_ratios` reads all three."""
    if layout != "olmix":
        write_table(path, ratios.ids, ratios.domains, ratios.weights_PD, "id" if layout == "loam" else "index")
        return
    lines = [",".join(["run", "name", "index", *ratios.domains])]
    for row, (run, weights_D) in enumerate(zip(ratios.ids, ratios.weights_PD.tolist(), strict=True)):
        lines.append(",".join([run, run, str(row), *map(repr, weights_D)]))
    write_atomically(path, ("\n".join(lines) + "\n").encode())


def read_regmix_mixture(path: Path, name: str | None = None, relative: bool = False) -> Mixture:
    """Read a RegMix YAML: the mapping under `train`.

    Args:
        path: the file.
        name: of the mixture; the file's name when not given.
        relative: divide by the sum, as RegMix's trainer does (its `human.yaml` sums to 0.7868). Otherwise a sum may
            miss 1 only by the rounding of four decimals.

    Raises:
        DataError: there is no such mapping, or it does not sum to 1.
    """
    try:
        tree = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
        weights = {str(key): float(value) for key, value in tree["train"].items()}
    except (OSError, YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: expected a mapping `train:` of domain to weight ({error})") from None
    total = sum(weights.values())
    if not relative and abs(total - 1) > len(weights) * 0.5 * 10.0**-REGMIX_DECIMALS:
        raise DataError(f"{path}: weights sum to {total:.6g}, expected 1; relative weights must be asked for")
    return Mixture(name=name or path.stem, weights={key: value / total for key, value in weights.items()})


def write_regmix_mixture(path: Path, mixture: Mixture, valid: str, model: str) -> None:
    """Write a RegMix YAML.

    Args:
        path: where.
        mixture: under `train`.
        valid: the validation domain.
        model: the name of the model's configuration.
    """
    lines = ["train:", *(f"  {name}: {weight!r}" for name, weight in mixture.weights.items()),
             "valid:", f"  {valid}: 1.0", f"model_name: {model}"]  # fmt: skip
    write_atomically(path, ("\n".join(lines) + "\n").encode())


def from_data_path(items: Sequence[str], domain_of: Mapping[str, str] | None = None) -> dict[str, float]:
    """Weights from a Megatron `data_path`, which are relative and are divided by their sum.

    Args:
        items: weight, prefix, weight, prefix, ...
        domain_of: prefix -> domain; shards of one domain are added up. Without it each prefix is its own domain.

    Raises:
        DataError: not pairs, a weight is not a positive number, or a prefix has no domain.
    """
    if len(items) % 2 or not items:
        raise DataError(f"data_path holds {len(items)} items, expected pairs of weight and prefix")
    weights: dict[str, float] = {}
    for weight, prefix in zip(items[::2], items[1::2], strict=True):
        try:
            share = float(weight)
        except ValueError:
            raise DataError(f"data_path: {weight!r} before {prefix!r} is not a weight") from None
        if domain_of is not None and prefix not in domain_of:
            raise DataError(f"data_path: prefix {prefix!r} belongs to no domain")
        if not 0 <= share < float("inf"):
            raise DataError(f"data_path: the weight of {prefix!r} is {weight}, expected a number from 0 up")
        domain = prefix if domain_of is None else domain_of[prefix]
        weights[domain] = weights.get(domain, 0.0) + share
    if not (total := sum(weights.values())) > 0:
        raise DataError("data_path: all weights are 0")
    return {domain: weight / total for domain, weight in weights.items()}


def to_data_path(weights: Mapping[str, float], prefixes: Mapping[str, Path]) -> list[str]:
    """A Megatron `data_path` from weights and one shard prefix per domain; zero weights are left out.

    Raises:
        DataError: a domain with weight has no prefix.
    """
    if missing := [name for name, weight in weights.items() if weight > 0 and name not in prefixes]:
        raise DataError(f"no shard prefix for {', '.join(missing[:3])}")
    return [item for name, weight in weights.items() if weight > 0 for item in (f"{weight:.12g}", str(prefixes[name]))]
