"""The part of a report that is about the search for a mixture: verdict, confirmation, simplex, domains, law, cost.

Drawn from what the steps have written, never from a clock. A run of any kind that searched has these sections.
"""

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flows import ablate_plots, plots
from flows.ablate_show import verdict_lines
from flows.report_html import section, table
from flows.steps.confirming import ARMS
from mixtures.fitting import Fit
from mixtures.ladder_files import load_ladder
from mixtures.mixture import Domains
from mixtures.scale import Scale
from mixtures.scores import score
from pipelines.manifest import Manifest
from pipelines.quantities import human

Manifests = Mapping[str, Manifest]
DRAWN = 40  # domains or metrics; more make no drawing


def verdict(folder: Path, manifests: Manifests) -> str:
    """What came out, first of all."""
    if "mixture" not in manifests or "comparisons" not in manifests["mixture"].metrics:
        return ""
    first, *others = verdict_lines(manifests["mixture"].metrics)
    told = "".join(f"<br>{html.escape(line)}" for line in others)
    return f'<p class="verdict"><b>{html.escape(first)}</b>{told}</p>'


def confirmation(folder: Path, manifests: Manifests) -> str:
    """The proposal against every other mixture, and for each domain against the prior."""
    if "mixture" not in manifests or "comparisons" not in manifests["mixture"].metrics:
        return ""
    found = manifests["mixture"].metrics
    drawn = {f"proposal - {name}": (one["difference"], *one["interval"])
             for name, one in found["comparisons"].items() if one["interval"]}  # fmt: skip
    head = ("against", "verdict", "difference", "from", "to", "level", "p, corrected", "could be shown", "pairs")
    rows = [(name, _words(one["verdict"]), *_numbers(one)) for name, one in found["comparisons"].items()]
    seeds = sorted({seed for losses in found["losses"].values() for seed in losses}, key=int)
    losses = [(name, *(by_seed.get(seed) for seed in seeds)) for name, by_seed in found["losses"].items()]
    by_metric = [(name, _words(one["verdict"]), *_numbers(one)) for name, one in found["by_metric"].items()]
    note = (
        '<p class="note">Trained anew with fresh seeds; differences are paired by seed, in nats per token, below 0 is '
        "better for the proposal. Comparisons are corrected for their number (Holm); each interval is at the level at "
        "which it was tested.</p>"
    )
    return section(
        "Confirmation", note, plots.differences(drawn, "difference of the target, nats per token") if drawn else "",
        table(head, rows), "<h3>Target by seed</h3>", table(("mixture", *(f"seed {seed}" for seed in seeds)), losses),
        *(["<h3>Proposal against prior, each held-out domain</h3>", table(("domain", *head[1:]), by_metric)]
          if found["same_as"].get("proposal") != "prior" else []),
    )  # fmt: skip


def _words(told: str) -> str:
    return "not distinguishable" if told == "inconclusive" else told


def _numbers(one: Mapping[str, Any]) -> tuple:
    return (one["difference"], *(one["interval"] or (None, None)), one["level"], one["p_adjusted"], one["detectable"],
            one["pairs"])  # fmt: skip


def mixtures(folder: Path, manifests: Manifests) -> str:
    """The simplex, and every domain with its weights, epochs and caps."""
    if "law" not in manifests:
        return ""
    proposal = json.loads((folder / "law" / "proposal.json").read_text(encoding="utf-8"))
    domains = Domains.read(folder / "swarm" / "domains.yaml")
    names = domains.names
    arms = _arms(folder, manifests, proposal)
    why = f"<p>{html.escape(proposal['reason'])}</p>"
    drawing = ""
    if len(names) <= DRAWN:
        drawing = _simplex(folder, manifests, names, arms)
        drawing += ablate_plots.weights(names, {name: _row(one, names) for name, one in arms.items()},
                                        proposal["intervals"])  # fmt: skip
    parts = [why, drawing, _domain_table(domains, proposal, arms), _stability(proposal), _caps(proposal)]
    return section("Mixtures", *parts)


def _arms(folder: Path, manifests: Manifests, proposal: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Weights of the mixtures that were compared; before the confirmation, of prior and optimum."""
    if "confirm" not in manifests:
        return {"prior": proposal["prior"], "proposal": proposal["optimum"]}
    arms = json.loads((folder / "confirm" / ARMS).read_text(encoding="utf-8"))
    return {name: arm["weights"] for name, arm in arms.items() if arm["same_as"] is None}


def _fit(folder: Path, manifests: Manifests) -> Fit:
    """The law that the proposal is from, at the scale of the final run where there are several."""
    scale = manifests["law"].metrics["scale"]
    return load_ladder(folder / "law" / "fit").at(Scale.parse(scale) if scale else None)


def _row(weights: Mapping[str, float], names: Sequence[str]) -> np.ndarray:
    return np.array([weights.get(name, 0.0) for name in names])


def _simplex(folder: Path, manifests: Manifests, names: Sequence[str], arms: Mapping[str, Mapping[str, float]]) -> str:
    """A triangle where there are three domains, or three groups of them; else parallel lines."""
    fit = _fit(folder, manifests)
    objective = json.loads((folder / "law" / "objective.json").read_text(encoding="utf-8"))
    coefficient_M = np.array([objective[name] for name in fit.metrics.names])
    swarm_PD = fit.ratios.ordered(names).weights_PD
    target_P = fit.metrics.values_PM @ coefficient_M
    rows = {name: _row(one, names) for name, one in arms.items()}
    groups = sorted({name.partition("/")[0] for name in names})
    if len(groups) != 3 and len(names) != 3:
        return ablate_plots.parallel(names, swarm_PD, target_P, rows)
    shown = groups if len(groups) == 3 else list(names)
    member_DG = np.array([[name == one or name.startswith(f"{one}/") for one in shown] for name in names], float)
    order = [list(names).index(name) for name in fit.domains]

    def law(mixtures_P3: np.ndarray) -> np.ndarray:
        return fit.law.predict((mixtures_P3 @ member_DG.T)[:, order]) @ coefficient_M

    varies = len(names) == 3 and fit.chosen != "constant"
    grouped = {name: row_D @ member_DG for name, row_D in rows.items()}
    return ablate_plots.ternary(shown, swarm_PD @ member_DG, target_P, grouped, law if varies else None)


def _domain_table(domains: Domains, proposal: Mapping[str, Any], arms: Mapping[str, Mapping[str, float]]) -> str:
    horizon = proposal["mixture"]["tokens"]
    held = domains.unique_tokens
    rows = []
    for name in domains.names:
        low, high = proposal["intervals"].get(name, (None, None))
        epochs = [arms[arm].get(name, 0.0) * horizon / held[name] for arm in arms]
        rows.append((name, held[name], *(one.get(name, 0.0) for one in arms.values()), low, high, *epochs,
                     proposal["bounds"].get(name), proposal["prices"]["cap"].get(name)))  # fmt: skip
    head = ("domain", "tokens", *arms, "10% of optima", "90%", *(f"epochs of {name}" for name in arms), "held by",
            "price of a billion tokens")  # fmt: skip
    return table(head, rows)


def _stability(proposal: Mapping[str, Any]) -> str:
    found = proposal["stability"]
    if not found["resamples"]:
        return ""
    likely = proposal["p_better"]
    chance = "" if likely is None else f" By the law it beats the prior with chance {likely:.2f}: no evidence."
    return (
        f'<p class="note">Optima of {found["resamples"]} resampled swarms lie {found["distance"]:.3f} apart (mean L1; '
        f"{found['plain']:.3f} without a pull of {found['pull']:.3g} towards the prior).{chance}</p>"
    )


def _caps(proposal: Mapping[str, Any]) -> str:
    rows = [(human(row["tokens"]), row["epoch_cap"], row["loss"], row["more"], ", ".join(row["held"]),
             row["infeasible"]) for row in proposal["caps"]]  # fmt: skip
    head = ("tokens", "epochs at most", "best predicted target", "more than without", "at their cap", "infeasible")
    return "<h3>Other budgets and caps</h3>" + table(head, rows) if rows else ""


def law(folder: Path, manifests: Manifests) -> str:
    """How well laws predict runs that they have not seen, and how much of the losses is noise of seeds."""
    if "law" not in manifests:
        return ""
    found = manifests["law"].metrics
    fit = _fit(folder, manifests)
    drawing = ""
    if len(fit.metrics.names) <= DRAWN:
        half_PM = fit.predict(fit.ratios).half_PM[0.8]
        drawing = ablate_plots.predicted_against_measured(fit.metrics.names, fit.held_out_PM, half_PM,
                                                          fit.metrics.values_PM)  # fmt: skip
    laws = found["fit"]["laws"]
    keys = ["law", *(key for key, value in laws[0].items()
                     if key != "law" and (isinstance(value, (int, float, str)) or value is None))]  # fmt: skip
    noise = found["noise"]
    rows = [(name, sd, noise["snr"].get(name), noise["not_fitted"].get(name, {}).get("reason"))
            for name, sd in noise["seed_sd"].items()]  # fmt: skip
    note = '<p class="note">Every point is predicted by a law that was fitted without that run; bars are 80%.</p>'
    parts = [_target(folder, fit), drawing, note, table(keys, [[one.get(key) for key in keys] for one in laws])]
    if rows:
        head = ("metric", "deviation between seeds", "signal to noise", "left out")
        parts += ["<h3>Noise of seeds</h3>", table(head, rows)]
    failed = [(scale or "swarm", run, why) for scale, runs in found["failed"].items() for run, why in runs.items()]
    if failed:
        parts += ["<h3>Proxies that diverged</h3>", table(("scale", "proxy", "why"), failed)]
    return section(f"Predicted and measured losses (law: {found['fit']['chosen']})", *parts)


def _target(folder: Path, fit: Fit) -> str:
    """What is minimised is one number, and may be harder to predict than each metric in it."""
    objective = json.loads((folder / "law" / "objective.json").read_text(encoding="utf-8"))
    coefficient_M = np.array([objective[name] for name in fit.metrics.names])
    found = score(fit.held_out_PM @ coefficient_M, fit.metrics.values_PM @ coefficient_M)
    told = "is predicted" if fit.learned(coefficient_M) else "is not predicted"
    rank = "" if found.spearman is None else f", rank correlation {found.spearman:.2f}"
    return (
        f"<p>The target, a weighted mean of these metrics, {told} better than by the mean of the runs: error "
        f"{found.relative:.2f} of its deviation{rank}. The table below is of the single metrics.</p>"
    )


def cost(folder: Path, manifests: Manifests) -> str:
    """What the search took, against the final run."""
    if "mixture" not in manifests or "cost" not in manifests["mixture"].metrics:
        return ""
    found = manifests["mixture"].metrics["cost"]
    rows = [(name, part["runs"], part["parameters"], part["tokens_each"], part["flops"])
            for name, part in found["parts"].items()]  # fmt: skip
    total = ("all", found["runs"], None, None, found["search_flops"])
    note = (
        f"<p>The search took {found['search_share_of_final']:.3g} of the FLOPs of the final run "
        f"({human(found['search_flops'])} of {human(found['final_flops'])}).</p>"
    )
    decided = manifests["law"].metrics["decision"]
    if decided and (runs := decided["runs_to_decision"]):
        note += (f"<p>{runs} proxies would have chosen as well, within {decided['eps']:.3g} nats per token "
                 "(the law's own error), by the law of all.</p>")  # fmt: skip
    return section("Cost", note, table(("part", "runs", "parameters", "tokens each", "FLOPs"), [*rows, total]))
