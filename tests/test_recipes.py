"""Every recipe that ships with Loam loads, as the kind that it says it is, and its sizes can be accounted."""

import json
from pathlib import Path

import pytest

from flows.kinds import RECIPE_KINDS, load_any
from flows.plan import account
from pipelines.errors import RecipeError
from pipelines.recipe import RECIPE_FOLDERS, dump_yaml, shipped_recipes

RECIPES = shipped_recipes()


def test_names_are_unique():
    """A shipped recipe is asked for by its name, so two files of one name would hide each other."""
    files = [path for folder in RECIPE_FOLDERS for path in folder.glob("*.yaml")]
    assert len(files) == len(RECIPES)
    assert {"quickstart", "realdata"} <= RECIPES.keys()


@pytest.mark.parametrize("name", RECIPES)
def test_a_shipped_recipe_loads(name: str):
    recipe = load_any(name)
    assert type(recipe) in RECIPE_KINDS.values()
    assert getattr(recipe, "name", name) == name


@pytest.mark.parametrize("name", RECIPES)
def test_what_is_resolved_loads_again_and_is_the_same(name: str, tmp_path: Path):
    """The resolved recipe in a run's folder reproduces the run."""
    recipe = load_any(name)
    (tmp_path / "resolved.yaml").write_text(dump_yaml(recipe), encoding="utf-8")
    assert load_any(str(tmp_path / "resolved.yaml")) == recipe


@pytest.mark.parametrize("name", RECIPES)
def test_an_unknown_key_is_refused_by_name(name: str):
    with pytest.raises(RecipeError, match="no_such_key"):
        load_any(name, ["no_such_key=1"])


@pytest.mark.parametrize("name", RECIPES)
def test_sizes_and_budgets_follow(name: str):
    sizes = account(load_any(name))
    assert json.loads(json.dumps(sizes)) == sizes
