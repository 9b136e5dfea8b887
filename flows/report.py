"""The report of a run: one static HTML file with no script, no font and no address outside itself.

It is drawn from manifests and outputs alone, never from a clock, so that the same run gives the same file. Every number
in it is in `loam show --json` too.
"""

import html
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from flows import ablate_report, plots
from flows.kinds import load_build
from flows.report_html import page, section, table
from flows.runner import RECIPE
from flows.show import manifests_of
from flows.training_report import loss_drawing, training_sections
from pipelines.files import write_atomically
from pipelines.manifest import Manifest
from pipelines.quantities import human
from trainer.metrics import read_metrics

Manifests = Mapping[str, Manifest]
FUNNEL = ("ingest", "filter", "dedup_exact", "dedup_near", "quality", "decontaminate", "bucketed")


def write_report(folder: Path, target: Path) -> None:
    """Draw the report of a run.

    Args:
        folder: the run's; steps that are not done yet are left out.
        target: HTML file to write.
    """
    manifests = manifests_of(folder)
    sections: list[Callable[[Path, Manifests], str]] = [
        ablate_report.verdict, _funnel, _reasons, _perplexity, _effect, ablate_report.confirmation,
        ablate_report.mixtures, ablate_report.law, ablate_report.cost, _training, _evaluation, _synthesis, _lineage,
    ]  # fmt: skip
    body = "\n".join(draw(folder, manifests) for draw in sections)
    recipe = load_build(str(folder / RECIPE))
    write_atomically(target, page(recipe.name, recipe.about, body).encode())


def _funnel(folder: Path, manifests: Manifests) -> str:
    stages = [name for name in FUNNEL if name in manifests]
    if not stages:
        return ""
    left = {name: _documents_by_domain(folder / name) for name in stages}
    domains = sorted({domain for counts in left.values() for domain in counts})
    drawing = plots.funnel(stages, {d: [left[s].get(d, 0) for s in stages] for d in domains})
    rows = []
    for name in stages:
        counts = manifests[name].counts
        assert counts is not None
        rows.append((name, counts.docs_in, counts.kept, sum(counts.dropped.values()), sum(counts.rejected.values())))
    tokens = manifests["tokens"].metrics["domains"] if "tokens" in manifests else {}
    parts = [drawing, table(("step", "in", "kept", "dropped", "rejected"), rows)]
    if tokens:
        parts += ["<h3>Tokens</h3>", table(("domain", "documents", "tokens", "bytes"), _token_rows(tokens))]
    return section("From raw records to documents", *parts)


def _token_rows(domains: Mapping[str, Any]) -> list[tuple]:
    return [(name, split["train"]["documents"], split["train"]["tokens"], split["train"]["bytes"])
            for name, split in sorted(domains.items()) if "train" in split]  # fmt: skip


def _documents_by_domain(step: Path) -> dict[str, int]:
    """Live documents of a step by base domain, from Parquet footers."""
    counts: dict[str, int] = {}
    for root in (step / "kept", step / "documents"):
        for path in sorted(root.rglob("*.parquet")):
            domain = path.relative_to(root).parts[0]
            counts[domain] = counts.get(domain, 0) + pl.scan_parquet(path).select(pl.len()).collect().item()
    return counts


def _reasons(folder: Path, manifests: Manifests) -> str:
    rows = []
    for name, manifest in manifests.items():
        for kind in ("dropped", "rejected"):
            reasons = getattr(manifest.counts, kind, {})
            ranked = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
            rows += [(name, f"{kind}: {reason}", number) for reason, number in ranked]
    return section("Why documents went", table(("step", "reason", "documents"), rows)) if rows else ""


def _perplexity(folder: Path, manifests: Manifests) -> str:
    if "buckets" not in manifests:
        return ""
    scores = pl.concat(
        [pl.read_parquet(path) for path in sorted((folder / "perplexity" / "scores").rglob("*.parquet"))]
    )
    scores = scores.filter(pl.col("sum_nll_nats").is_not_null() & (pl.col("scored_tokens") > 0))
    cutoffs = json.loads((folder / "buckets" / "cutoffs.json").read_text())
    per = "scored_tokens" if cutoffs["measure"] == "nats_per_token" else "bytes"
    values, cuts = {}, {}
    for group in cutoffs["groups"]:
        rows = scores.filter(pl.all_horizontal([pl.col(key) == value for key, value in group["group"].items()]))
        name = "/".join(group["group"].values())
        if rows.height:
            values[name] = (rows["sum_nll_nats"] / rows[per]).to_numpy()
            cuts[name] = [cut for cut in (group["high_at_most"], group["mid_at_most"]) if cut is not None]
    note = f'<p class="note">{html.escape(cutoffs["convention"])}</p>'
    return section("Perplexity", plots.histograms(values, cuts, cutoffs["measure"].replace("_", " ")), note)


def _effect(folder: Path, manifests: Manifests) -> str:
    if "effect" not in manifests:
        return ""
    found = manifests["effect"].metrics["effect"]
    parts = []
    for family, label in (("bits_per_byte", "bits per byte, with minus without"), ("accuracy", "accuracy, same")):
        drawn = {name.partition("/")[2]: (one["difference"], *one["interval95"])
                 for name, one in found.items() if name.startswith(f"{family}/")}  # fmt: skip
        parts += [plots.differences(drawn, label)] if drawn else []
    head = ("metric", "without", "with", "difference", "95% from", "to", "p", "corrected", "verdict")
    rows = [(name, one["without"], one["with"], one["difference"], *one["interval95"], one["p_value"],
             one["p_corrected"], one["verdict"]) for name, one in found.items()]  # fmt: skip
    primary = next(name for name, one in found.items() if one["primary"])
    note = (
        '<p class="note">Proxies with and without the synthetic domains at equal tokens, paired by seed. '
        f"{html.escape(primary)} was named before; the other verdicts are corrected for their number (Holm).</p>"
    )
    return section("What synthetic data do", note, *parts, table(head, rows))


def _training(folder: Path, manifests: Manifests) -> str:
    """Every training of the run; of the full model all that is known, of the others the losses."""
    parts = []
    for name in ("train", "language_model"):
        if name in manifests:
            summary = json.loads((folder / name / "training.json").read_text())
            sizes = f"{human(summary['parameters'])} parameters, {human(summary['active_parameters'])} active"
            lines = read_metrics(folder / name / "metrics.jsonl")
            parts += [f"<h3>{name}: {sizes}</h3>", loss_drawing(lines)]
    more = training_sections(folder / "train")[1:] if "train" in manifests else []
    return "\n".join([section("Training", *parts), *filter(None, more)]) if parts else ""


def _evaluation(folder: Path, manifests: Manifests) -> str:
    if "evaluate" not in manifests:
        return ""
    found = manifests["evaluate"].metrics
    by_domain = [(name, r.get("bits_per_byte"), r["documents"]) for name, r in found["domains"].items()]
    by_items = [
        (name, r["items"], r.get("acc"), r.get("acc_norm"), r.get("chance")) for name, r in found["benchmarks"].items()
    ]
    return section(
        "Evaluation",
        table(("held-out domain", "bits per byte", "documents"), by_domain),
        "<br>",
        table(("multiple choice", "items", "accuracy", "accuracy per character", "chance"), by_items),
    )


def _synthesis(folder: Path, manifests: Manifests) -> str:
    if "synth" not in manifests or (counts := manifests["synth"].counts) is None:
        return ""
    rows = [
        ("accepted", counts.kept),
        *((f"rejected: {r}", n) for r, n in {**counts.dropped, **counts.rejected}.items()),
    ]
    note = (
        '<p class="note">A model of this size rarely follows an instruction; what verification rejects is not used.</p>'
    )
    return section("Synthesis", table(("outcome", "documents"), rows), note)


def _lineage(folder: Path, manifests: Manifests) -> str:
    rows = [(name, m.id[:12], ", ".join(k for k in m.parents if "/" not in k and ":" not in k) or "outside files",
             len(m.outputs)) for name, m in manifests.items() if name != "report"]  # fmt: skip
    return section("Lineage", table(("step", "id", "after", "files"), rows))
