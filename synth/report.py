"""The report of a synthesis: what became of every unit, stage by stage and reason by reason, with examples.

`report.json` for machines, `report.md` for people. Examples are drawn by hash of the seed and the unit's id, so that
the same run shows the same ones and nobody picked them. A stage's share is of the units that reached it.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import xxhash

from pipelines.files import write_atomically
from synth.kind import Stage
from synth.outputs import Maker, Work
from synth.verification import REASONS

EXAMPLES = 3
EXCERPT_CHARS = 240
BEFORE = ("document", "cut")  # stages before anything is asked


def passed_stages(works: Iterable[Work], stages: Sequence[Stage]) -> dict[str, int]:
    """How many units each stage let through.

    Args:
        works: as they left the stages.
        stages: in order.
    """
    passed = dict.fromkeys((stage.name for stage in stages), 0)
    for one in works:
        for stage in stages:
            if one.reject is not None and one.reject.stage in (*BEFORE, stage.name):
                break
            passed[stage.name] += 1
    return passed


def write_report(
    work: Path, settled: Sequence[Work], asked: Sequence[Work], stages: Sequence[Stage], maker: Maker
) -> None:
    """Write `report.json` and `report.md` into `work`.

    Args:
        work: the step's working folder.
        settled: what is written of every document.
        asked: units as they left the stages.
        stages: of the kind.
        maker: of the samples.
    """
    whole = summarize(settled, asked, stages, maker)
    write_atomically(work / "report.json", (json.dumps(whole, indent=1, ensure_ascii=False) + "\n").encode())
    write_atomically(work / "report.md", ("\n".join(_markdown(whole)) + "\n").encode())


def summarize(settled: Sequence[Work], asked: Sequence[Work], stages: Sequence[Stage], maker: Maker) -> dict[str, Any]:
    """The report as JSON values; see `write_report`."""
    rejected = [one for one in settled if one.reject is not None]
    accepted = [one for one in settled if one.reject is None]
    drawn = sorted(rejected, key=lambda one: xxhash.xxh64_intdigest(one.id.encode(), maker.settings.seed))
    by_reason: dict[str, list[Work]] = {}
    for one in drawn:
        by_reason.setdefault(one.reject.reason if one.reject else "", []).append(one)
    order = sorted(by_reason, key=lambda reason: (-len(by_reason[reason]), reason))
    return {
        **maker.common,
        "units": len(settled),
        "accepted": len(accepted),
        "accepted_share": _share(len(accepted), len(settled)),
        "stages": [*_stages(asked, stages), *_screens(settled)],
        "reasons": [
            {
                "reason": reason,
                "meaning": meaning_of(reason),
                "units": len(by_reason[reason]),
                "share": _share(len(by_reason[reason]), len(settled)),
                "stages": dict(sorted(Counter(o.reject.stage for o in by_reason[reason] if o.reject).items())),
                "examples": [_example(one) for one in by_reason[reason][:EXAMPLES]],
            }
            for reason in order
        ],
        "by_domain": _by(settled, "domain"),
        "by_language": _by(settled, "language"),
    }


def meaning_of(reason: str) -> str:
    """What a reason says; of `refuted: other_letter` what stands before the colon."""
    return REASONS.get(reason, REASONS.get(reason.partition(":")[0], (0, "")))[1]


def _stages(asked: Sequence[Work], stages: Sequence[Stage]) -> list[dict[str, Any]]:
    passed = passed_stages(asked, stages)
    failed = Counter(one.reject.stage for one in asked if one.reject is not None)
    reached, rows = len(asked), []
    for name in (*(name for name in BEFORE if failed[name]), *passed):
        rows.append(_stage(name, reached, failed[name]))
        reached -= failed[name]
    return rows


def _screens(settled: Sequence[Work]) -> list[dict[str, Any]]:
    """What was decided once the stages were through, in the order in which it was."""
    late = [one for one in settled if one.reject is not None and (one.reject.screened or one.reject.stage == "settle")]
    failed = Counter(one.reject.stage for one in late if one.reject)
    reached = len(late) + sum(one.reject is None for one in settled)
    rows = []
    for name in sorted(failed, key=_place):
        rows.append(_stage(name, reached, failed[name]))
        reached -= failed[name]
    return rows


def _place(stage: str) -> int:
    known = ("settle", "benchmarks", "questions")
    return known.index(stage) if stage in known else len(known) + (stage == "judge")


def _stage(name: str, reached: int, failed: int) -> dict[str, Any]:
    passed = reached - failed
    return {"stage": name, "units": reached, "passed": passed, "share": _share(passed, reached)}


def _example(one: Work) -> dict[str, str]:
    reject = one.reject
    assert reject is not None
    return {"id": one.id, "stage": reject.stage, "excerpt": reject.answer[:EXCERPT_CHARS]}


def _by(settled: Sequence[Work], column: str) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for one in settled:
        counts = found.setdefault(one.row[column] or "unknown", {"units": 0, "accepted": 0})
        counts["units"] += 1
        counts["accepted"] += one.reject is None
    return dict(sorted(found.items()))


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 6) if whole else None


def _markdown(whole: Mapping[str, Any]) -> list[str]:
    lines = [
        f"# Synthesis: {whole['recipe']}", "",
        f"{whole['units']:,} units, {whole['accepted']:,} accepted ({_percent(whole['accepted_share'])}); generator "
        f"{_code(whole['generator'])}, recipe `{whole['recipe_hash']}`, verification `{whole['verification']}`.", "",
        "| stage | reached | passed | share |", "|---|---:|---:|---:|",
    ]  # fmt: skip
    lines += [f"| {s['stage']} | {s['units']:,} | {s['passed']:,} | {_percent(s['share'])} |" for s in whole["stages"]]
    if whole["reasons"]:
        lines += ["", "| reason | units | share | at | meaning |", "|---|---:|---:|---|---|"]
    for r in whole["reasons"]:
        lines.append(f"| {r['reason']} | {r['units']:,} | {_percent(r['share'])} | {', '.join(r['stages'])} | "
                     f"{r['meaning']} |")  # fmt: skip
    for title, column in (("domain", "by_domain"), ("language", "by_language")):
        lines += ["", f"| {title} | units | accepted |", "|---|---:|---:|"]
        lines += [f"| {name} | {n['units']:,} | {n['accepted']:,} |" for name, n in whole[column].items()]
    for r in whole["reasons"]:
        lines += ["", f"## {r['reason']}", ""]
        lines += [f"* `{e['id']}` at {e['stage']}: {_code(e['excerpt'])}" for e in r["examples"]]
    return lines


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _code(text: str) -> str:
    """One line of code, whatever is in the text."""
    line = " ".join(text.split()).replace("`", "'").replace("|", "\\|")
    return f"`{line}`" if line else "(nothing)"
