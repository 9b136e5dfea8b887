"""The graph of a run: all its steps, parents before children."""

from flows.recipe import RunRecipe
from flows.steps.build import build_steps
from flows.steps.language_model import language_model_steps
from flows.steps.mixing import mixing_steps
from flows.steps.publishing import publishing_steps
from flows.steps.step import Step
from flows.steps.training import training_steps


def steps_of(recipe: RunRecipe) -> list[Step]:
    """Every step of a recipe, in an order in which parents come first."""
    parts = (build_steps, language_model_steps, mixing_steps, training_steps, publishing_steps)
    steps = [step for part in parts for step in part(recipe)]
    seen: set[str] = set()
    for step in steps:
        assert step.name not in seen
        assert seen.issuperset(step.parents), (step.name, step.parents)
        seen.add(step.name)
    return steps
