"""The outcome of a search for a mixture in words, and where a mixture is found by the name of its run or by its own.

"not distinguishable" is a legal answer, told with the smallest difference that the seeds could have shown.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.errors import DataError
from pipelines.manifest import read_manifest
from pipelines.recipe import shipped_recipes

FINGERPRINT = re.compile(r"[0-9a-f]{6,64}")
FILE = Path("mixture") / "mixture.yaml"


def mixture_of(folder: Path) -> dict[str, Any]:
    """Verdict and fingerprint of a run whose step `mixture` is done."""
    return dict(read_manifest(folder / "mixture").metrics)


def verdict_lines(found: Mapping[str, Any]) -> list[str]:
    """The verdict for people, one line for each comparison."""
    same, lines = found["same_as"], []
    if found["evidence"] == "nothing learned":
        lines.append("nothing learned: no law predicts the target of held-out runs better than their mean does")
    ours = "prior" if same.get("proposal") == "prior" else "proposal"
    lines += [f"{ours} against {name}: {_told(name, one)}" for name, one in found["comparisons"].items()]
    lines += [f"{name}: the same mixture as {other}" for name, other in same.items()]
    if found["evidence"] not in ("distinguishable", "nothing learned"):
        lines.append(f"the law's own opinion of its proposal: {found['evidence']}")
    if cost := found.get("cost"):
        lines.append(f"cost: {cost['runs']} proxies, {cost['search_share_of_final']:.3g} of the final run's FLOPs")
    if failed := found["failed"]:
        lines.append(f"left out of the confirmation: {', '.join(sorted(failed))}: {next(iter(failed.values()))}")
    return [*lines, f"train on the {found['chosen']}, mixture {found['fingerprint']}"]


def _told(name: str, one: Mapping[str, Any]) -> str:
    words = {"inconclusive": f"inconclusive (not distinguishable from {name})"}.get(one["verdict"], one["verdict"])
    if one["interval"] is None:
        return f"{words}, {one['difference']:+.4f} nats/token, {one['pairs']} seed: no interval"
    low, high = one["interval"]
    told = (
        f"{words}, {one['difference']:+.4f} nats/token, {one['level']:.1%} interval [{low:+.4f}, {high:+.4f}], "
        f"p {one['p_adjusted']:.2g} of {one['pairs']} seeds"
    )
    return told + (f"; they could show {one['detectable']:.4f}" if one["verdict"] == "inconclusive" else "")


def find_mixture(given: str, runs: Path = Path("runs")) -> Path:
    """The file of a mixture.

    Args:
        given: `mixture.yaml`, a folder that holds one (such as that of `loam mix propose`), a run, its name below
            `runs`, the name of a mixture that ships with Loam, or at least six digits of a fingerprint: a run's, or
            the mixture's own.
        runs: folder of all runs.

    Raises:
        DataError: there is none, or several differ; the message lists them.
    """
    from mixtures.mixture import Mixture

    path = Path(given)
    if path.is_file():
        return path
    for folder in (path, runs / given):
        for file in (folder / "mixture.yaml", folder / FILE):
            if file.is_file():
                return file
        if folder.is_dir():
            raise DataError(f"{folder} holds no mixture yet; `loam ablate` of its recipe finds one")
    if given in (ours := shipped_recipes()):
        return ours[given]
    made = {file: Mixture.read(file).fingerprint for file in sorted(runs.glob(f"*/{FILE}"))}
    named = [file for file in made if file.parents[1].name.partition("@")[0] == given]
    if FINGERPRINT.fullmatch(given):
        named = [file for file, own in made.items() if own.startswith(given)]
        named = named or [file for file in made if file.parents[1].name.partition("@")[2].startswith(given)]
    if len({made[file] for file in named}) == 1:
        return named[0]
    there = ", ".join(f"{own} ({file.parents[1].name})" for file, own in (made.items() if not named else
                      ((file, made[file]) for file in named)))  # fmt: skip
    problem = f"{len(named)} mixtures are called so" if named else "no file, run or fingerprint of that name"
    raise DataError(f"--mixture {given}: {problem}; there are: {there or f'none in {runs}/'}")
