"""The numbers of a run, read from its manifests: what `loam show` prints and the report draws.

Wall times come from the run's journal and are kept apart under `timing`: everything else is the same on every run.
"""

from pathlib import Path
from typing import Any

from flows.ablate_show import verdict_lines
from flows.runner import JOURNAL, RECIPE
from flows.verb import in_a_row
from pipelines.errors import DataError
from pipelines.journal import read_journal
from pipelines.manifest import MANIFEST, Manifest, read_manifest
from pipelines.quantities import human


def find_run(name: Path) -> Path:
    """A run's folder, given as a path or as a name below `runs/`; a name without fingerprint means the newest.

    Raises:
        DataError: there is no such run; the message lists those that are.
    """
    for folder in (name, Path("runs") / name):
        if (folder / RECIPE).is_file():
            return folder
    named = [p.parent for p in Path("runs").glob(f"{name.name}@*/{RECIPE}")]
    if named:
        return max(named, key=lambda folder: (folder / JOURNAL).stat().st_mtime if (folder / JOURNAL).is_file() else 0)
    known = sorted(p.parent.name for p in Path("runs").glob(f"*/{RECIPE}"))
    raise DataError(f"no run {str(name)!r}; " + (f"there are: {', '.join(known)}" if known else "runs/ holds none yet"))


def manifests_of(folder: Path) -> dict[str, Manifest]:
    """Manifests of the steps that are done, in the order of the graph."""
    from flows.graph import steps_of
    from flows.kinds import load_build

    order = [step.name for step in steps_of(load_build(str(folder / RECIPE)))]
    return {name: read_manifest(folder / name) for name in order if (folder / name / MANIFEST).is_file()}


def summarise(folder: Path) -> dict[str, Any]:
    """Everything worth knowing about a run, as JSON values."""
    manifests = manifests_of(folder)
    return {
        "run": folder.name,
        "steps": {name: _of_step(manifest) for name, manifest in manifests.items()},
        "timing": _timing(folder),
    }


def _of_step(manifest: Manifest) -> dict[str, Any]:
    counts = manifest.counts.model_dump(mode="json") if manifest.counts else None
    size = sum(entry.size_bytes for entry in manifest.outputs)
    return {
        "id": manifest.id,
        "counts": counts,
        "metrics": manifest.metrics,
        "files": len(manifest.outputs),
        "bytes": size,
    }


def _timing(folder: Path) -> dict[str, float]:
    """Seconds of each step the last time that it was done."""
    events = [e for e in read_journal(folder / JOURNAL) if e["event"] == "step" and e["how"] == "done"]
    return {event["step"]: event["seconds"] for event in events}


def render(summary: dict[str, Any]) -> str:
    """The summary for people."""
    lines = [
        f"run {summary['run']}",
        "",
        f"{'step':<16}{'in':>9}{'kept':>9}{'dropped':>9}{'rejected':>9}{'size':>9}{'seconds':>9}",
    ]
    for name, step in summary["steps"].items():
        counts = step["counts"]
        cells = ["", "", "", ""]
        if counts:
            gone, bad = sum(counts["dropped"].values()), sum(counts["rejected"].values())
            cells = [str(value) for value in (counts["docs_in"], counts["kept"], gone, bad)]
        seconds = summary["timing"].get(name)
        cells += [human(step["bytes"]), "" if seconds is None else f"{seconds:.1f}"]
        lines.append(f"{name:<16}" + "".join(f"{cell:>9}" for cell in cells))
    lines += ["", *_reasons(summary), *_results(summary)]
    total = sum(summary["timing"].values())
    return "\n".join([*lines, f"all steps: {total:.0f} s"] if total else lines)


def _reasons(summary: dict[str, Any]) -> list[str]:
    lines = []
    for name, step in summary["steps"].items():
        counts = step["counts"] or {}
        reasons = {**counts.get("dropped", {}), **counts.get("rejected", {})}
        top = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))[:4]
        if top:
            lines.append(f"{name}: " + ", ".join(f"{reason} {number}" for reason, number in top))
    return [*lines, ""]


def _results(summary: dict[str, Any]) -> list[str]:
    steps = summary["steps"]
    lines = []
    if "comparisons" in (found := steps.get("mixture", {}).get("metrics", {})):
        lines += verdict_lines(found)
    if licences := steps.get("filter", {}).get("metrics", {}).get("licences"):
        lines.append(f"licences: {in_a_row(licences)}")
    if export := steps.get("export", {}).get("metrics"):
        lines.append(
            f"exported model against transformers: max |logit difference| {export['max_abs_logit_difference']:.2e}"
        )
    if evaluation := steps.get("evaluate", {}).get("metrics"):
        lines += _evaluation(evaluation)
    return lines


def _three(value: float | None) -> str:
    """Three decimals, or a dash where nothing could be scored."""
    return "-" if value is None else f"{value:.3f}"


def _evaluation(found: dict[str, Any]) -> list[str]:
    bits = ", ".join(f"{domain} {_three(result.get('bits_per_byte'))}" for domain, result in found["domains"].items())
    lines = [f"bits per byte of held-out documents: {bits}"]
    for name, result in found["benchmarks"].items():
        interval = f"[{_three(result.get('acc_lo95'))}, {_three(result.get('acc_hi95'))}]"
        lines.append(f"{name}: accuracy {_three(result.get('acc'))} {interval} on {result['items']} items, "
                     f"chance {_three(result.get('chance'))}")  # fmt: skip
    return [*lines, ""]
