"""Run a recipe: its steps in order, each performed once, in `runs/<name>@<fingerprint>/`.

The same steps run as plain calls or as Prefect tasks (`flows/prefect_runner.py`); manifests are the same bytes. The
fingerprint is a hash of the resolved recipe, so that a changed recipe is another run; a step whose id is found in
another run of the same folder is linked from there instead of computed again.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from flows.recipe import FlowRecipe
from flows.steps.step import Place, Step
from pipelines.errors import DataError, RecipeError
from pipelines.executors import current_executor, executor_is
from pipelines.files import write_atomically
from pipelines.journal import journal_to, record
from pipelines.manifest import digest_of, read_manifest
from pipelines.progress import console, line_when_due
from pipelines.recipe import dump_yaml
from pipelines.store import Performed, perform

RECIPE, JOURNAL = "recipe.yaml", "journal.jsonl"
DEFAULT_WORKERS = os.cpu_count() or 1


@dataclass(frozen=True)
class RunSummary:
    """What `execute` did: the run's folder, and every step with how it was had."""

    folder: Path
    performed: dict[str, Performed]

    @property
    def idle(self) -> bool:
        """Nothing had to be done."""
        return all(p.how == "skipped" for p in self.performed.values())


def fingerprint(recipe: FlowRecipe) -> str:
    """Twelve hex digits of the resolved recipe's hash."""
    return digest_of(recipe.model_dump(mode="json"))[:12]


def run_folder(recipe: FlowRecipe, runs: Path) -> Path:
    """Where a recipe's run lies."""
    return runs / f"{recipe.name}@{fingerprint(recipe)}"


def select_steps(steps: Sequence[Step], until: str | None) -> list[Step]:
    """The steps needed for `until` (all when None), in order.

    Raises:
        RecipeError: no step of that name.
    """
    if until is None:
        return list(steps)
    by_name = {step.name: step for step in steps}
    if until not in by_name:
        raise RecipeError(f"no step {until!r} in this recipe; its steps: {', '.join(by_name)}")
    needed, queue = set(), [until]
    while queue:
        name = queue.pop()
        if name not in needed:
            needed.add(name)
            queue.extend(by_name[name].parents)
    return [step for step in steps if step.name in needed]


def perform_step(step: Step, place: Place) -> Performed:
    """Perform one step of a run; its parents have been performed."""
    parents = {name: read_manifest(place.of(name)).digest() for name in step.parents} | dict(step.inputs())
    others = [p for p in sorted(place.folder.parent.glob(f"*/{step.name}")) if p != place.of(step.name)]
    started = time.perf_counter()
    done = perform(
        step.name, place.of(step.name), lambda work: step.action(place, work), step.settings, parents,
        step.code, others,
    )  # fmt: skip
    record("step", step=step.name, how=done.how, seconds=round(time.perf_counter() - started, 2))
    return done


def execute(
    recipe: FlowRecipe,
    steps: Sequence[Step],
    runs: Path,
    workers: int = DEFAULT_WORKERS,
    perform_all: Callable[[Sequence[Step], Place], dict[str, Performed]] | None = None,
) -> RunSummary:
    """Perform steps in order in the run's folder.

    Args:
        recipe: what is asked for; saved in the run before work starts.
        steps: in an order in which parents come first.
        runs: folder of all runs.
        workers: processes that a step may start.
        perform_all: performs the steps; one plain call after another when not given.

    Raises:
        DataError: another process runs the same recipe in the same place.
    """
    folder = run_folder(recipe, runs)
    folder.mkdir(parents=True, exist_ok=True)
    with _sole_owner(folder), journal_to(folder / JOURNAL), executor_is(recipe.executor):
        write_atomically(folder / RECIPE, dump_yaml(recipe).encode())
        executor = current_executor().model_dump(mode="json")
        record("run", recipe=recipe.name, workers=workers, steps=len(steps), executor=executor)
        performed = (perform_all or perform_in_order)(steps, Place(folder, workers))
        record("end", steps=len(steps))
    return RunSummary(folder, performed)


def perform_in_order(steps: Sequence[Step], place: Place) -> dict[str, Performed]:
    """Perform the steps as plain calls."""
    performed = {}
    for number, step in enumerate(steps, 1):
        announce(number, len(steps), step)
        performed[step.name] = perform_step(step, place)
    return performed


def announce(number: int, total: int, step: Step) -> None:
    """Say which step begins: on a terminal, and in a log now and then."""
    line_when_due(f"step {number} of {total}: {step.name}")
    if console.is_terminal:
        console.print(f"[dim]{number:>2}/{total}[/dim] [bold]{step.name}[/bold]  {step.about}", highlight=False)


@contextlib.contextmanager
def _sole_owner(folder: Path) -> Iterator[None]:
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock: forked children would inherit it
        except BlockingIOError:
            raise DataError(f"another loam process is running in {folder}; wait for it or stop it") from None
        yield
