"""What the experts of a model do, drawn: load over training, balance, co-activation, saturation, specialisation.

Drawn from `experts.json` and the training's `expert_load.parquet` alone, so that the same model gives the same page.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from flows.plots import COLOURS, drawing, expert_load, new_figure
from flows.report_html import page, section, table
from pipelines.files import write_atomically
from pipelines.shards import ShardSet
from pipelines.store import Outcome
from trainer.checkpoint import DESCRIPTION
from trainer.expert_analytics import BALANCED, analyse, load_numbers
from trainer.provenance import read_provenance
from trainer.token_classes import CLASSES, classes_of

HELD_OUT, TRAINED_ON = "held-out text", "training shards"
LAST = 0.1  # share of training whose load is judged: early steps are still finding their balance
MOST_PANELS = 4
MOST_LABELS = 16


def shares_over_training(path: Path) -> dict[int, np.ndarray]:
    """Share of each expert in windows of training.

    Args:
        path: `expert_load.parquet`.

    Returns:
        layer -> float64 (experts, windows).
    """
    load = pl.read_parquet(path)
    return {
        layer: load.filter(pl.col("layer") == layer)
        .pivot(on="step", index="expert", values="share")
        .drop("expert")
        .to_numpy()
        for layer in sorted(load["layer"].unique().to_list())
    }


def load_at_the_end(path: Path) -> dict[str, dict[str, Any]]:
    """How even the load of each layer was in the last tenth of training.

    Args:
        path: `expert_load.parquet`.

    Returns:
        layer -> what `load_numbers` says of the choices of these steps together.
    """
    load = pl.read_parquet(path)
    last = int(load["step"].to_numpy().max())
    late = load.filter(pl.col("step") > last * (1 - LAST))
    found = {}
    for layer in sorted(load["layer"].unique().to_list()):
        counts = late.filter(pl.col("layer") == layer).group_by("expert").agg(pl.col("tokens").sum()).sort("expert")
        found[str(layer)] = load_numbers(counts["tokens"].to_numpy())
    return found


def names_of_layers(training: Path) -> Callable[[object], str]:
    """What a layer is called: prediction modules have the numbers after the last layer of the model.

    Args:
        training: its folder, over or in progress.
    """
    final = training / "final" / DESCRIPTION
    if final.is_file():
        layers = json.loads(final.read_text(encoding="utf-8"))["model"]["layers"]
    else:
        layers = next((made["recipe"]["model"]["layers"] for made in read_provenance(training)), None)

    def name(layer: object) -> str:
        module = int(str(layer)) - layers if layers is not None else -1
        return f"layer {layer}" if module < 0 else f"module {module + 1} for further tokens"

    return name


def are_of_training(training: Path, shards: ShardSet) -> bool:
    """Whether a training read any of these shards, by their names and lengths; all of them, if it wrote no journal.

    Args:
        training: its folder.
        shards: that are to be looked at.
    """
    blends = [one for made in read_provenance(training) for one in made["data"]["stages"]]
    read = {(Path(shard["name"]).name, shard["tokens"]) for blend in blends for shard in blend}
    return not blends or any((Path(shard.name).name, shard.tokens) in read for shard in shards.shards)


def analyse_training(
    training: Path, shards: ShardSet, tokens: int, tokenizer: Path | None, work: Path, held_out: bool = True
) -> Outcome:
    """Write `experts.json` and `experts.html` of a finished training.

    Args:
        training: its folder.
        shards: text, one shard per domain.
        tokens: of each domain that are read.
        tokenizer: to tell kinds of tokens apart; None leaves that out.
        work: folder to fill.
        held_out: whether the model was not trained on the text.

    Returns:
        Metrics: layers whose load was balanced at the end of training, dead experts by layer, largest spread.

    Raises:
        DataError: the model has no experts.
    """
    class_V = classes_of(tokenizer) if tokenizer else None
    found = analyse(training, shards, tokens, class_V, CLASSES)
    found["text"] = HELD_OUT if held_out else TRAINED_ON
    path = training / "expert_load.parquet"
    found["training_load"] = load_at_the_end(path) if path.is_file() else {}
    write_atomically(work / "experts.json", (json.dumps(found, indent=1, sort_keys=True) + "\n").encode())
    write_experts_report(training.resolve().name, found, training, work / "experts.html")
    late = found["training_load"]
    return Outcome(metrics={
        "experts": found["experts"], "layers": len(found["layers"]),
        "tokens": found["tokens"], "tokens_of": found["text"],
        "balanced_layers": sum(one["balanced"] for layer, one in late.items() if layer in found["layers"]),
        "largest_spread": max((one["cv"] for one in late.values()), default=None),
        "dead_experts": {f"layer {layer}": {"dead": len(one["dead"]), "of": found["experts"]}
                         for layer, one in found["layers"].items() if one["dead"]},
        "domain_information": {f"layer {n}": one["by_domain"]["of_most"] for n, one in found["layers"].items()},
    })  # fmt: skip


def write_experts_report(name: str, found: Mapping[str, Any], training: Path, target: Path) -> None:
    """Draw the page.

    Args:
        name: of the model.
        found: what `trainer.expert_analytics.analyse` says, `training_load` and `text`.
        training: folder of the training.
        target: HTML file to write.
    """
    layers = found["layers"]
    parts = [section("Balance", _balance(found, names_of_layers(training)), *training_drawings(training))]
    parts.append(section("Co-activation", *_matrices(layers), _pairs(layers)))
    parts.append(section("Saturation", _saturation(found)))
    parts.append(section("Specialisation by domain", *_special(layers, "by_domain", found["domains"])))
    if found["classes"]:
        parts.append(section("Specialisation by kind of token", *_special(layers, "by_class", found["classes"])))
    about = (f"{found['experts']} experts, {found['experts_per_token']} for each token, "
             f"{found['tokens']:,} tokens of {found['text']}, {len(found['domains'])} domains")  # fmt: skip
    write_atomically(target, page(f"Experts of {name}", about, "\n".join(parts)).encode())


def _balance(found: Mapping[str, Any], name: Callable[[object], str]) -> str:
    rows = []
    for layer, one in found["layers"].items():
        late = found["training_load"].get(layer, {})
        even = "yes" if late.get("balanced") else "no"
        rows.append((f"layer {layer}", late.get("cv"), one["cv"], one["entropy"], one["router_entropy"], one["max"],
                     one["min"], len(one["dead"]), len(one["barely"]), even))  # fmt: skip
    for layer, late in found["training_load"].items():
        if layer not in found["layers"]:  # a prediction module, which no text is sent through
            rows.append((name(layer), late["cv"], *[None] * 7, "yes" if late["balanced"] else "no"))
    head = ("", "spread in training", f"spread, {found['text']}", "entropy of load", "entropy of router", "most loaded",
            "least", "dead", "barely used", f"balanced (below {BALANCED:g})")  # fmt: skip
    note = ('<p class="note">Spread is the coefficient of variation of the load over experts, in the last tenth of '
            "training; entropies are shares of their largest value. All but the first and the last column is of "
            f"{found['text']}.</p>")  # fmt: skip
    return table(head, rows) + note


def training_drawings(training: Path) -> list[str]:
    """Share of each expert and spread of each layer over training, as two drawings; none where there is no table.

    Args:
        training: its folder, with `expert_load.parquet`.
    """
    path = training / "expert_load.parquet"
    if not path.is_file():
        return []
    name, shares = names_of_layers(training), shares_over_training(path)
    figure, axes = new_figure(2.4)
    axis = axes[0][0]
    for number, (layer, share) in enumerate(shares.items()):
        axis.plot(np.linspace(0, 1, share.shape[1]), share.std(axis=0) / share.mean(axis=0), linewidth=1,
                  color=COLOURS[number % len(COLOURS)], label=name(layer))  # fmt: skip
    axis.axhline(BALANCED, color="#888888", linewidth=0.8, linestyle="--")
    axis.set_xlabel("share of training")
    axis.set_ylabel("coefficient of variation")
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False, fontsize=8, ncols=4)
    return [expert_load({name(layer): shares[layer] for layer in _shown(shares)}), drawing(figure)]


def _shown(layers: Mapping[Any, Any]) -> list[Any]:
    """Some layers of many, first and last among them."""
    names = list(layers)
    return [names[n] for n in np.linspace(0, len(names) - 1, min(MOST_PANELS, len(names))).round().astype(int)]


def _matrices(layers: Mapping[str, Any]) -> list[str]:
    names = _shown(layers)
    figure, axes = new_figure(2.6, len(names))
    image = None
    for axis, name in zip(axes[0], names, strict=True):
        together = np.array(layers[name]["coactivation"])
        np.fill_diagonal(together, np.nan)
        image = axis.imshow(together, cmap="viridis", vmin=0, interpolation="nearest")
        axis.set_title(f"layer {name}", fontsize=9)
        axis.set_xlabel("also expert")
    axes[0][0].set_ylabel("visits expert")
    figure.colorbar(image, ax=axes[0].tolist(), label="share of tokens")
    return [drawing(figure)]


def _pairs(layers: Mapping[str, Any]) -> str:
    rows = [(f"layer {name}", " and ".join(map(str, pair["experts"])), pair["lift"], pair["share"])
            for name, one in layers.items() for pair in one["pairs"][:2]]  # fmt: skip
    return table(("", "experts", "over chance", "share of tokens"), rows)


def _saturation(found: Mapping[str, Any]) -> str:
    if not found["saturation"]:
        return ('<p class="note">No checkpoint of the training was kept: set checkpoint_permanent in its recipe to see '
                "when the routing settled.</p>")  # fmt: skip
    steps = sorted(map(int, found["saturation"]))
    figure, axes = new_figure(2.4)
    axis = axes[0][0]
    for number, layer in enumerate(found["layers"]):
        axis.plot(steps, [found["saturation"][str(step)][layer] for step in steps], marker="o", markersize=3,
                  linewidth=1, color=COLOURS[number % len(COLOURS)], label=f"layer {layer}")  # fmt: skip
    axis.axhline(found["chance_of_saturation"], color="#888888", linewidth=0.8, linestyle="--")
    axis.set_xlabel("optimizer steps (dashed: chance)")
    axis.set_ylabel("share of the final experts")
    axis.set_ylim(0, 1)
    axis.legend(frameon=False, fontsize=8, ncols=4)
    return drawing(figure)


def _special(layers: Mapping[str, Any], key: str, names: Sequence[str]) -> list[str]:
    shown = _shown(layers)
    figure, axes = new_figure(0.22 * len(names) + 1.4, len(shown))
    image = None
    for axis, layer in zip(axes[0], shown, strict=True):
        share = np.array(layers[layer][key]["share_CE"])
        lift = np.where(
            share.sum(axis=1, keepdims=True) > 0, share * share.shape[1], np.nan
        )  # a class not met is blank
        image = axis.imshow(lift, aspect="auto", cmap="RdBu_r", vmin=0, vmax=2, interpolation="nearest")
        axis.set_title(f"layer {layer}", fontsize=9)
        axis.set_xlabel("expert")
        axis.set_yticks(range(len(names)), names if axis is axes[0][0] and len(names) <= MOST_LABELS else [])
    figure.colorbar(image, ax=axes[0].tolist(), label="load / even load")
    rows = []
    for layer, one in layers.items():
        largest = one[key]["largest"]
        rows.append((f"layer {layer}", one[key]["information_bits"], one[key]["of_most"], names[largest["class"]],
                     largest["expert"], largest["lift"]))  # fmt: skip
    head = ("", "bits that the expert tells", "of what there is", "strongest preference", "of expert", "over its mean")
    return [drawing(figure), table(head, rows)]
