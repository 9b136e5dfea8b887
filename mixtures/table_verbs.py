"""The verbs `loam mix closed` and `loam mix convert`: mixtures without an experiment, and in other projects' formats.

Plain functions that fill a folder. A conversion to a blend of files states weights in the other project's unit and
refuses, before anything is read, a mixture that would repeat a domain beyond its cap.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from mixtures.blends import Samples, blend_rows, check_epochs, held_by, to_data_path, to_energon, token_shares
from mixtures.bounds import caps_by_name
from mixtures.closed_forms import ClosedSettings, closed_form
from mixtures.interop import format_of, read_mixture, write_metrics_as, write_ratios_as, write_regmix_mixture
from mixtures.mixture import Domains, EpochCap, Mixture
from mixtures.olmix import read_olmix
from mixtures.tables import Metrics, Ratios
from pipelines.errors import DataError
from pipelines.files import write_atomically
from pipelines.quantities import Tokens
from pipelines.recipe import Section, dump_yaml, to_yaml
from pipelines.shards import ShardSet
from pipelines.store import Outcome

USUAL: dict[str, Samples] = {"megatron": "packed", "energon": "documents"}  # what a trainer calls a sample


class ConvertSettings(Section):
    """Into which format, and within which limits.

    Attributes:
        to: `loam`, `regmix`, `olmix`, `megatron` or `energon`.
        table: what a CSV holds.
        run: the row of a table of mixtures that becomes one mixture.
        relative: divide RegMix's weights by their sum, as its trainer does.
        samples: what the other trainer draws: `packed` samples of one length, as Megatron's pretraining does, or one
            of the `documents`; of each format what is usual there when not given.
        tokens: training budget; the mixture's own when not given.
        epoch_cap: how often a domain may be read; the mixture's own when not given.
    """

    to: Literal["loam", "regmix", "olmix", "megatron", "energon"]
    table: Literal["ratios", "metrics"] = "ratios"
    run: str | None = None
    relative: bool = False
    samples: Samples | None = None
    tokens: Annotated[Tokens, Field(gt=0)] | None = None
    epoch_cap: EpochCap | None = None


def mix_closed(domains: Path, work: Path, settings: ClosedSettings) -> Outcome:
    """Write `mixture.yaml` and `epochs.csv`: a mixture that needs no experiment."""
    held = Domains.read(domains)
    mixture = closed_form(held, settings)
    mixture.write(work / "mixture.yaml")
    epochs = mixture.epochs(held) if settings.tokens else {}
    reasons = settings.space(held).reasons(np.array(list(mixture.weights.values())))
    rows = [
        {"domain": name, "unique_tokens": held.unique_tokens[name], "weight": weight,
         "tokens": round(weight * settings.tokens) if settings.tokens else None, "epochs": epochs.get(name),
         "bound": reasons.get(name)}
        for name, weight in mixture.weights.items()
    ]  # fmt: skip
    _write_rows(work / "epochs.csv", rows)
    most = max(epochs, key=lambda name: epochs[name]) if epochs else None
    return Outcome(metrics={"domains": len(held), "kind": settings.kind, "bounds": reasons,
                            "most_repeated": most, "most_epochs": epochs[most] if most else None,
                            "weights": mixture.weights})  # fmt: skip


def mix_convert(file: Path, shards: ShardSet | None, work: Path, settings: ConvertSettings) -> Outcome:
    """Write a mixture or a table in another format; see `ConvertSettings`.

    Args:
        file: what to convert.
        shards: the shards of its domains; Megatron's weights and epochs are counted from them.
        work: folder to fill.
        settings: into what.

    Raises:
        DataError, RecipeError: the file cannot be read, or the mixture would repeat a domain beyond its cap.
    """
    if file.suffix == ".csv" and settings.run is None:
        return _convert_table(file, work, settings)
    mixture = _limited(_read(file, shards, settings), settings)
    if shards and mixture.tokens:
        held = held_by(mixture, shards)
        caps = {name: cap for name, cap in caps_by_name(mixture.epoch_cap, tuple(mixture.weights)).items()
                if name in held.unique_tokens}  # fmt: skip
        check_epochs({name: mixture.weights[name] for name in held.names}, held, mixture.tokens, caps)
    written = _write(file, mixture, shards, work, settings)
    return Outcome(metrics={"to": settings.to, "domains": len(mixture.weights), **written})


def _read(file: Path, shards: ShardSet | None, settings: ConvertSettings) -> Mixture:
    if file.suffix == ".csv":
        rows = dict(Ratios.read_csv(file).rows())
        if settings.run not in rows:
            raise DataError(f"{file}: no run {settings.run!r}; there are {', '.join(list(rows)[:3])} ...")
        return Mixture(name=settings.run, weights=rows[settings.run])
    own = {str(shard.prefix): shard.domain for shard in shards.shards} if shards else None
    mixture = read_mixture(file, own, settings.relative)
    source = format_of(file)
    if source in USUAL and (settings.samples or USUAL[source]) == "documents":
        weights = token_shares(mixture.weights, _needed(shards, source))
        return mixture.model_copy(update={"weights": weights})
    return mixture


def _needed(shards: ShardSet | None, trainer: str) -> ShardSet:
    if shards is None:
        raise DataError(
            f"{trainer} draws documents, so that weights depend on how long they are: give --shards FOLDER, "
            "or --set samples=packed"
        )
    return shards


def _limited(mixture: Mixture, settings: ConvertSettings) -> Mixture:
    given = {"tokens": settings.tokens, "epoch_cap": settings.epoch_cap}
    return mixture.model_copy(update={key: value for key, value in given.items() if value is not None})


def _convert_table(file: Path, work: Path, settings: ConvertSettings) -> Outcome:
    if settings.to not in ("loam", "regmix", "olmix"):
        raise DataError(f"{file} is a table of mixtures and {settings.to} takes one: choose with --set run=ID")
    if settings.table == "metrics":
        metrics = Metrics.read_csv(file)
        write_metrics_as(work / "metrics.csv", metrics, settings.to)
        return Outcome(metrics={"to": settings.to, "runs": len(metrics.ids), "metrics": len(metrics.names)})
    ratios = Ratios.read_csv(file)
    write_ratios_as(work / "ratios.csv", ratios, settings.to)
    return Outcome(metrics={"to": settings.to, "runs": len(ratios.ids), "domains": len(ratios.domains)})


def _write(file: Path, mixture: Mixture, shards: ShardSet | None, work: Path, settings: ConvertSettings) -> dict:
    if settings.to == "olmix":
        write_ratios_as(work / "ratios.csv", Ratios.of({mixture.name: mixture.weights}), "olmix")
    elif settings.to == "regmix":
        write_regmix_mixture(work / "regmix.yaml", mixture)
    elif settings.to == "loam":
        mixture.write(work / "mixture.yaml")
        return _write_olmix_parts(file, work)
    else:
        return _write_blend(mixture, shards, work, settings)
    return {}


def _write_olmix_parts(file: Path, work: Path) -> dict[str, Any]:
    """What an olmix configuration says beside its prior: domains, bounds, weights fixed within a source."""
    if format_of(file) != "olmix":
        return {}
    config = read_olmix(file)
    config.domains.write(work / "domains.yaml")
    write_atomically(work / "bounds.yaml", dump_yaml(config.bounds).encode())
    write_atomically(work / "fixed.yaml", to_yaml(config.fixed).encode())
    return {"bounds": config.bounds.model_dump(mode="json", exclude_defaults=True), "fixed_sources": len(config.fixed),
            "kl": config.kl}  # fmt: skip


def _write_blend(mixture: Mixture, shards: ShardSet | None, work: Path, settings: ConvertSettings) -> dict[str, Any]:
    samples = settings.samples or USUAL[settings.to]
    shards = _needed(shards, settings.to) if samples == "documents" else shards
    rows = blend_rows(mixture, shards, samples) if shards else [
        {"domain": name, "prefix": name, "sample_weight": weight}
        for name, weight in mixture.weights.items()
    ]  # fmt: skip
    if shards:
        _write_rows(work / "blend.csv", rows)
    if settings.to == "energon":
        sums = {row["domain"]: 0.0 for row in rows}
        for row in rows:
            sums[row["domain"]] += row["sample_weight"]
        write_atomically(work / "blend.yaml", to_yaml(to_energon(sums)).encode())
    else:
        if spaced := next((row["prefix"] for row in rows if len(row["prefix"].split()) != 1), None):
            raise DataError(f"megatron separates prefixes by spaces, and {spaced!r} holds one: move the shard")
        items = to_data_path([(row["sample_weight"], row["prefix"]) for row in rows])
        lines = [f"{weight} {prefix}\n" for weight, prefix in zip(items[::2], items[1::2], strict=True)]
        write_atomically(work / "data_path.txt", "".join(lines).encode())
    most = max((row.get("epochs") or 0.0 for row in rows), default=0.0)
    return {"samples": samples, "parts": len(rows), "most_epochs": most or None}


def _write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if value is None else value for key, value in row.items()} for row in rows)
    write_atomically(path, stream.getvalue().encode())
