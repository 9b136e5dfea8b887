"""Which model reads which kind of recipe."""

from collections.abc import Sequence

from flows.ablate_recipe import AblationRecipe
from flows.corpus import CorpusRecipe
from flows.recipe import FlowRecipe, RunRecipe
from flows.score_recipe import ScoreRecipe
from mixtures.mixture import Mixture
from mixtures.schedule import Schedule
from pipelines.errors import RecipeError
from pipelines.recipe import Section, kind_of, load_recipe
from synth.recipe import SynthSettings
from trainer.recipe import TrainRecipe
from trainer.sweep_recipe import SweepRecipe

RECIPE_KINDS: dict[str, type[Section]] = {
    "run": RunRecipe,
    "corpus": CorpusRecipe,
    "ablate": AblationRecipe,
    "train": TrainRecipe,
    "sweep": SweepRecipe,
    "synth": SynthSettings,
    "score": ScoreRecipe,
    "mixture": Mixture,
    "schedule": Schedule,
}


def load_any(name: str, sets: Sequence[str] = ()) -> Section:
    """Load a recipe of any kind.

    Raises:
        RecipeError: the kind is unknown, or the recipe does not hold.
    """
    kind = kind_of(name)
    if kind not in RECIPE_KINDS:
        raise RecipeError(f"{name}: kind {kind!r} is not known; there are: {', '.join(RECIPE_KINDS)}")
    return load_recipe(name, RECIPE_KINDS[kind], sets)


def load_build(name: str, sets: Sequence[str] = ()) -> FlowRecipe:
    """Load a recipe that `loam run` performs: one of kind `run`, `corpus` or `ablate`.

    Raises:
        RecipeError: it is of another kind, or does not hold.
    """
    recipe = load_any(name, sets)
    if not isinstance(recipe, FlowRecipe):
        raise RecipeError(
            f"{name} is of kind {kind_of(name)!r}; `loam run` performs recipes of kind run, corpus and ablate"
        )
    return recipe
