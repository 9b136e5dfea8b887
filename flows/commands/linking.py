"""`loam mix link`: which losses tell benchmarks, and how well."""

import json
from pathlib import Path
from typing import Annotated

import typer

from flows.verb import AsJson, Out, Sets, run_verb
from pipelines.errors import DataError
from pipelines.files import write_atomically
from pipelines.recipe import settings_from
from pipelines.store import Outcome


def link(
    metrics: Annotated[Path, typer.Option(help="CSV: run id, then losses, lower is better")],
    benchmarks: Annotated[Path, typer.Option(help="CSV: run id, then accuracies, higher is better")],
    out: Out,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Link losses to benchmarks: a sigmoid for each, with its error on runs left out."""
    from mixtures.benchmark_link import LinkSettings, link_benchmarks, write_links
    from mixtures.tables import Metrics

    settings = settings_from(LinkSettings, sets)
    for path, option in ((metrics, "--metrics"), (benchmarks, "--benchmarks")):
        if not path.is_file():
            raise DataError(f"{option} {path}: no such file")

    def action(work: Path) -> Outcome:
        links = link_benchmarks(Metrics.read_csv(metrics), Metrics.read_csv(benchmarks), settings)
        report = write_links(links, work)
        text = json.dumps(report, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
        write_atomically(work / "report.json", text.encode())
        told = {each.benchmark: {"verdict": each.verdict, "predictor": each.predictor, "error": each.error}
                for each in links}  # fmt: skip
        return Outcome(metrics={**report["verdicts"], "benchmarks": told})

    run_verb("mix-link", out, settings, [metrics, benchmarks], action, as_json)
