"""The screens of a run, in the order in which they look: what costs least comes first.

Evaluation sets, questions asked before, what the caller hands in, the judge. A question's duplicate goes before models
look at it, so that nobody pays twice for one question; where its keeper is rejected later, both are gone.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from synth.contamination import Benchmarks
from synth.judge import Judge
from synth.ledger import Row
from synth.outputs import Maker, Work
from synth.protocol import Identity
from synth.question_dedup import Questions
from synth.recipe import SynthSettings
from synth.screening import Screen, Screening, run_screens

DOCUMENT = "document"  # stage of what is rejected before anything is asked


class Screens:
    """All screens of a run.

    Args:
        settings: the recipe.
        given: what the caller hands in.
        generator: who writes the samples.
        work: the step's working folder.
        log: folder of all answers of the generator; the judge's lie beside it.
        other_model: the judge's log may hold answers of another one.
        replaces: output of an earlier run whose place this one takes.

    Raises:
        RecipeError: judge and generator are one model, or a budget in dollars knows no prices of the judge.
    """

    def __init__(
        self, settings: SynthSettings, given: Screening, generator: Identity, work: Path, log: Path, other_model: bool,
        replaces: Path | None = None,
    ) -> None:  # fmt: skip
        self.benchmarks = Benchmarks(given.benchmarks, work, settings.screen.decontaminate or given.decontaminate)
        self.judge = None
        if settings.judge is not None:
            beside = log.with_name(f"{log.name}-judge")
            model = settings.judge.model or given.judge_model
            section = settings.judge.model_copy(update={"model": model})
            self.judge = Judge(
                settings, section, generator, work, beside, given.earlier, replaces, other_model
            )  # fmt: skip
        self.all: list[Screen] = [
            *([self.benchmarks] if given.benchmarks else []), *([Questions()] if settings.screen.questions else []),
            *given.hooks,
            *([self.judge] if self.judge else []),
        ]  # fmt: skip

    @property
    def identity(self) -> Mapping[str, Any]:
        """Of each screen by name: part of what verdicts depend on."""
        return {screen.name: dict(screen.identity) for screen in self.all}

    @property
    def unmet(self) -> Mapping[str, float]:
        """What the judge's next request would have taken, where the budget ended there."""
        return self.judge.unmet if self.judge is not None else {}

    def barred(self, documents: pa.Table) -> dict[str, str]:
        """Documents that hold items of evaluation sets: id -> what was found."""
        return self.benchmarks.search(documents, DOCUMENT)

    def run(self, works: Sequence[Work], maker: Maker, spent: Sequence[Row]) -> list[Row]:
        """Screen finished samples; the judge's rows of the ledger come back.

        Args:
            works: all of the run; changed.
            maker: of the samples.
            spent: the ledger of the stages; the budget is one for all.
        """
        if self.judge is not None:
            self.judge.spend(spent)
        run_screens(works, self.all, maker)
        return self.judge.ledger if self.judge is not None else []

    def close(self) -> None:
        """Close every screen."""
        for screen in self.all:
            screen.close()
