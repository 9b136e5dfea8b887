"""The graph of a run: all its steps, parents before children."""

from flows.ablate_recipe import AblationRecipe
from flows.corpus import CorpusRecipe
from flows.recipe import FlowRecipe, RunRecipe
from flows.steps.ablation import ablation_steps
from flows.steps.build import build_steps
from flows.steps.corpus import corpus_steps
from flows.steps.effect import effect_steps
from flows.steps.language_model import language_model_steps
from flows.steps.pairing import pairing_steps
from flows.steps.publishing import publishing_steps
from flows.steps.search import mixing_steps
from flows.steps.step import Step
from flows.steps.training import training_steps


def steps_of(recipe: FlowRecipe) -> list[Step]:
    """Every step of a recipe, in an order in which parents come first."""
    steps = _steps_of_run(recipe) if isinstance(recipe, RunRecipe) else []
    if isinstance(recipe, CorpusRecipe):
        steps = corpus_steps(recipe)
    if isinstance(recipe, AblationRecipe):
        steps = ablation_steps(recipe)
    seen: set[str] = set()
    for step in steps:
        assert step.name not in seen
        assert seen.issuperset(step.parents), (step.name, step.parents)
        seen.add(step.name)
    return steps


def _steps_of_run(recipe: RunRecipe) -> list[Step]:
    parts = (
        build_steps, language_model_steps, effect_steps, pairing_steps, mixing_steps, training_steps, publishing_steps,
    )  # fmt: skip
    return [step for part in parts for step in part(recipe)]
