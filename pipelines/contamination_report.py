"""What decontamination found, benchmark by benchmark: `report.json` for machines, `report.md` for people.

Shares are of the items that can be looked for: an item too short for that is counted apart, never as clean. Examples
are the longest matches, one for each item.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.files import write_atomically
from pipelines.manifest import Counts

EXAMPLES = 3
Benchmarks = dict[str, dict[str, int]]


def summarize(items: pa.Table, short: pa.Table, hits: pa.Table, counts: Counts) -> Benchmarks:
    """Count by benchmark.

    Args:
        items: `ITEMS`.
        short: benchmark and item of those that are too short to be looked for.
        hits: `HITS`.
        counts: of the step.

    Returns:
        For each benchmark: items, items_too_short, items_hit, docs (that have a hit), docs_dropped (with it as reason).
    """
    found = {}
    for name in sorted(set(items["benchmark"].to_pylist())):
        mine = hits.filter(pc.equal(hits["benchmark"], name))
        found[name] = {
            "items": pc.count_distinct(items.filter(pc.equal(items["benchmark"], name))["item"]).as_py(),
            "items_too_short": int(pc.sum(pc.equal(short["benchmark"], name)).as_py() or 0),
            "items_hit": pc.count_distinct(mine["item"]).as_py(),
            "docs": pc.count_distinct(mine["id"]).as_py(),
            "docs_dropped": counts.dropped.get(f"contaminated.{name}", 0),
        }
    return found


def write_report(
    work: Path, benchmarks: Benchmarks, hits: pa.Table, counts: Counts, settings: Mapping[str, Any]
) -> None:
    """Write `report.json` and `report.md` into `work`."""
    told = {
        name: {**numbers, "share_hit": _share(numbers), "examples": _examples(hits, name)}
        for name, numbers in benchmarks.items()
    }
    whole = {
        "documents": counts.docs_in, "documents_dropped": sum(counts.dropped.values()), "settings": dict(settings),
        "benchmarks": told,
    }  # fmt: skip
    write_atomically(work / "report.json", (json.dumps(whole, indent=1, ensure_ascii=False) + "\n").encode())
    write_atomically(work / "report.md", "\n".join(_markdown(whole)).encode())


def _share(numbers: Mapping[str, int]) -> float:
    able = numbers["items"] - numbers["items_too_short"]
    return round(numbers["items_hit"] / able, 6) if able else 0.0


def _examples(hits: pa.Table, benchmark: str) -> list[dict[str, Any]]:
    mine = hits.filter(pc.equal(hits["benchmark"], benchmark))
    keys = [("ngrams", "descending"), ("id", "ascending"), ("item", "ascending"), ("start", "ascending")]
    found: dict[str, dict[str, Any]] = {}
    for row in mine.sort_by(keys).slice(0, 100 * EXAMPLES).to_pylist():
        if len(found) < EXAMPLES:
            found.setdefault(row["item"], row)
    return list(found.values())


def _markdown(whole: Mapping[str, Any]) -> list[str]:
    settings = whole["settings"]
    lines = [
        "# Contamination", "",
        f"{whole['documents']:,} documents searched, {whole['documents_dropped']:,} dropped; {settings['ngram']} words "
        f"must agree, action `{settings['action']}`.", "",
        "| benchmark | items | too short | found | share | documents with a hit | dropped for it |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]  # fmt: skip
    for name, told in whole["benchmarks"].items():
        lines.append(
            f"| {name} | {told['items']:,} | {told['items_too_short']:,} | {told['items_hit']:,} | "
            f"{told['share_hit']:.2%} | {told['docs']:,} | {told['docs_dropped']:,} |"
        )
    for name, told in whole["benchmarks"].items():
        if told["examples"]:
            lines += ["", f"## {name}", ""]
            lines += [f"* item `{e['item']}` in document `{e['id']}`, characters {e['start']} to {e['end']} "
                      f"({e['ngrams']} n-grams): {_quoted(e['text'])}" for e in told["examples"]]  # fmt: skip
    return [*lines, ""]


def _quoted(text: str) -> str:
    """One line of code, whatever is in the text."""
    line = " ".join(text.split()).replace("`", "'")
    return f"`{line}`"
