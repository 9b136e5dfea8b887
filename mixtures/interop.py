"""Read and write mixtures and tables the way other projects write them.

RegMix: CSV with an `index` column and `train_` domains, YAML with a `train:` mapping. olmix: CSV with `run, name,
index` first. What a file is, is seen from its keys. Weights that do not sum to 1 are refused unless the other format
defines them as relative, as Megatron and Energon do (`mixtures.blends`).
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import ValidationError

from mixtures.blends import from_data_path, from_energon, whole
from mixtures.mixture import Mixture
from mixtures.olmix import read_olmix, read_yaml
from mixtures.tables import Metrics, Ratios, write_table
from pipelines.errors import DataError
from pipelines.files import write_atomically
from pipelines.recipe import to_yaml

REGMIX_DECIMALS = 4  # its shipped mixtures are written with four decimals and may miss 1 by their rounding
KEYS = {"loam": {"weights"}, "regmix": {"train"}, "energon": {"splits"}, "megatron": {"data_path"}, "olmix": {"priors"}}
Layout = Literal["loam", "regmix", "olmix"]


def write_ratios_as(path: Path, ratios: Ratios, layout: Layout) -> None:
    """Write a table of mixtures in the layout of another project; `Ratios.read_csv` reads all three."""
    _write_as(path, ratios.ids, ratios.domains, ratios.weights_PD, layout)


def write_metrics_as(path: Path, metrics: Metrics, layout: Layout) -> None:
    """Write a table of measurements in the layout of another project; `Metrics.read_csv` reads all three."""
    _write_as(path, metrics.ids, metrics.names, metrics.values_PM, layout)


def _write_as(path: Path, ids: Sequence[str], names: Sequence[str], values: np.ndarray, layout: Layout) -> None:
    if layout != "olmix":
        write_table(path, ids, names, values, "id" if layout == "loam" else "index")
        return
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["run", "name", "index", *names])
    for row, (run, cells) in enumerate(zip(ids, values.tolist(), strict=True)):
        writer.writerow([run, run, row, *map(repr, cells)])
    write_atomically(path, stream.getvalue().encode())


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
    tree = read_yaml(path)
    train = tree.get("train") if isinstance(tree, Mapping) else None
    if not isinstance(train, Mapping) or not train:
        raise DataError(f"{path}: expected a mapping `train:` of domain to weight")
    try:
        weights = {str(key): float(value) for key, value in train.items()}
    except (TypeError, ValueError):
        raise DataError(f"{path}: train: expected a number for each domain") from None
    total = math.fsum(weights.values()) if all(map(math.isfinite, weights.values())) else math.nan
    if not (total > 0 if relative else abs(total - 1) <= len(weights) * 0.5 * 10.0**-REGMIX_DECIMALS):
        raise DataError(
            f"{path}: weights sum to {total:.6g}, expected 1; relative weights must be asked for: --set relative=true"
        )
    return _mixture(path, {key: value / whole(total) for key, value in weights.items()}, name)


def write_regmix_mixture(path: Path, mixture: Mixture, valid: str | None = None, model: str | None = None) -> None:
    """Write a RegMix YAML.

    Args:
        path: where.
        mixture: under `train`.
        valid: the validation domain, where one is to be named.
        model: the name of the model's configuration, likewise.
    """
    tree: dict[str, Any] = {"train": dict(mixture.weights)}
    tree |= ({"valid": {valid: 1.0}} if valid else {}) | ({"model_name": model} if model else {})
    write_atomically(path, to_yaml(tree).encode())


def format_of(path: Path) -> str:
    """`loam`, `regmix`, `olmix`, `megatron` or `energon`, from a file's keys.

    Raises:
        DataError: it is none of them.
    """
    if path.suffix not in (".yaml", ".yml"):
        return "megatron"
    tree = read_yaml(path)
    if not isinstance(tree, Mapping):
        raise DataError(f"{path}: expected a mapping, found {type(tree).__name__}")
    if found := next((name for name, keys in KEYS.items() if keys & tree.keys()), None):
        return found
    data = tree.get("data")
    if isinstance(data, Mapping) and data.keys() & {"data_path", "sources"}:
        return "megatron" if "data_path" in data else "olmix"
    raise DataError(
        f"{path}: expected `weights` (Loam), `train` (RegMix), `priors` (olmix), `splits` (Energon) or `data_path` "
        f"(Megatron) at the top; found {', '.join(map(str, list(tree)[:5]))}"
    )


def read_mixture(path: Path, domain_of: Mapping[str, str] | None = None, relative: bool = False) -> Mixture:
    """Read one mixture from whichever format a file has.

    Args:
        path: Loam's or RegMix's YAML, an olmix configuration (its prior), an Energon metadataset, YAML with a Megatron
            `data_path`, or text of weights and prefixes. Weights of Energon and Megatron are shares of samples.
        domain_of: shard prefix -> domain, for Megatron.
        relative: divide RegMix's weights by their sum.

    Raises:
        DataError, RecipeError: the file is none of these, or what it says cannot be.
    """
    found = format_of(path)
    if found == "loam":
        return Mixture.read(path)
    if found == "regmix":
        return read_regmix_mixture(path, relative=relative)
    if found == "olmix":
        return read_olmix(path).prior
    if found == "energon":
        return _mixture(path, from_energon(read_yaml(path)))
    return _mixture(path, from_data_path(_data_path(path), domain_of))


def _data_path(path: Path) -> Sequence[object]:
    """The items of a `data_path`: of YAML, at the top or under `data`, or the words of a text."""
    if path.suffix not in (".yaml", ".yml"):
        return _words(path)
    tree = read_yaml(path)
    blend = tree["data_path"] if "data_path" in tree else tree["data"]["data_path"]
    items = blend.split() if isinstance(blend, str) else blend
    if not isinstance(items, list):
        raise DataError(f"{path}: data_path: expected a list of weight and prefix, found {type(blend).__name__}")
    return items


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None


def _mixture(path: Path, weights: Mapping[str, float], name: str | None = None) -> Mixture:
    try:
        return Mixture(name=name or path.stem, weights=dict(weights))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(f"{path}: {where}: {first['msg'].removeprefix('Value error, ')}") from None
