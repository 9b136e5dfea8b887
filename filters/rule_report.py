"""The report of a filter: how the values of every rule are spread, and what each rule drops.

The one choice that matters: for each rule it tells apart how many documents fail it, how many it is the reason for
(those that no earlier rule dropped), and how many fail it alone, which is what switching it off would bring back;
percentiles say what another threshold would do. Source: own; computed from the attributes, column by column.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.files import write_atomically
from pipelines.manifest import Counts

FAILED, LANGUAGE = "filter.failed", "filter.language"
"""Attributes: the rules that a document fails; the language by which it was judged."""
PERCENTILES = (0, 1, 5, 10, 25, 50, 75, 90, 95, 99, 100)


def rule_report(work: Path, rules: Sequence[str], counts: Counts) -> dict[str, Any]:
    """Summarise the attributes below a folder; writes `report.md`.

    Args:
        work: folder with `attributes/`.
        rules: names of the rules.
        counts: what became of the documents.

    Returns:
        rule -> documents measured, failing, dropped for it, failing it alone, and percentiles of its values.
    """
    files = sorted((work / "attributes").rglob("*.parquet"))
    fails, alone = _failures(files)
    report = {}
    for rule in rules:
        values = _column(files, rule)
        spread = np.percentile(values, PERCENTILES, method="lower").tolist() if len(values) else []
        report[rule] = {
            "documents": len(values),
            "fail": fails[rule],
            "first": counts.dropped.get(rule, 0),
            "alone": alone[rule],
            "percentiles": {str(p): float(f"{value:.6g}") for p, value in zip(PERCENTILES, spread, strict=False)},
        }
    if rules:
        write_atomically(work / "report.md", _markdown(report, counts).encode())
    return report


def _failures(files: Sequence[Path]) -> tuple[Counter[str], Counter[str]]:
    """Per rule, documents that fail it, and those that fail nothing else."""
    fails: Counter[str] = Counter()
    alone: Counter[str] = Counter()
    for file in files:
        if FAILED not in pq.read_schema(file).names:
            continue
        lists = pq.read_table(file, columns=[FAILED])[FAILED].combine_chunks()
        single = lists.filter(pc.equal(pc.list_value_length(lists), 1))
        for counter, column in ((fails, lists), (alone, single)):
            for entry in pc.value_counts(pc.list_flatten(column)).to_pylist():
                counter[entry["values"]] += entry["counts"]
    return fails, alone


def _column(files: Sequence[Path], name: str) -> np.ndarray:
    chunks = [pq.read_table(file, columns=[name])[name].drop_null() for file in files
              if name in pq.read_schema(file).names]  # fmt: skip
    return pa.chunked_array([c for chunk in chunks for c in chunk.chunks], pa.float64()).to_numpy()


def _markdown(report: Mapping[str, Mapping[str, Any]], counts: Counts) -> str:
    shown = (1, 5, 25, 50, 75, 95, 99)
    lines = [
        f"# Rules: {counts.kept} of {counts.docs_in} documents kept",
        "",
        "Fail: fail the rule; first: dropped for it; alone: fail nothing else. Then percentiles of its values.",
        "",
        "| rule | documents | fail | first | alone | " + " | ".join(f"p{p}" for p in shown) + " |",
        "|---|" + "---:|" * (4 + len(shown)),
    ]
    for rule, numbers in report.items():
        cells = [rule, *(str(numbers[key]) for key in ("documents", "fail", "first", "alone"))]
        cells += [f"{numbers['percentiles'][str(p)]:.4g}" if numbers["percentiles"] else "" for p in shown]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
