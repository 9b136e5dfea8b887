import pytest

from pipelines.errors import RecipeError
from pipelines.quantities import Bytes, Seconds, Tokens, human
from pipelines.recipe import Section, load_recipe, settings_from, shipped_recipes


class Inner(Section):
    tokens: Tokens
    size: Bytes = 1
    time: Seconds = 1.0


class Outer(Section):
    name: str = "x"
    inner: Inner


@pytest.fixture
def write(tmp_path):
    def write_recipe(text, name="r.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return write_recipe


def test_quantities_carry_units(write):
    recipe = load_recipe(write("inner: {tokens: 1.33T, size: 512MB, time: 6h}"), Outer)
    assert (recipe.inner.tokens, recipe.inner.size, recipe.inner.time) == (1_330_000_000_000, 512_000_000, 21_600.0)


def test_yaml_1_2_reads_exponents_as_numbers_and_no_as_text(write):
    assert load_recipe(write("name: no\ninner: {tokens: 1.3e12}"), Outer).inner.tokens == 1_300_000_000_000
    assert load_recipe(write("name: no\ninner: {tokens: 1}"), Outer).name == "no"


def test_an_unknown_key_names_file_line_and_the_nearest_key(write):
    with pytest.raises(RecipeError, match=r"r\.yaml:2: inner\.tokns: unknown key; did you mean 'tokens'\?"):
        load_recipe(write("inner:\n  tokns: 3\n"), Outer)


def test_a_bad_quantity_lists_the_units(write):
    with pytest.raises(RecipeError, match=r"r\.yaml:1: inner\.tokens: '3 lots' is not a number of tokens: .* K, M, B"):
        load_recipe(write("inner: {tokens: 3 lots}"), Outer)


@pytest.mark.parametrize("text", ["a: [1", "- 1", "a: 1\na: 2", "\tx: 1", "!!python/object:os.system {}"])
def test_what_is_no_recipe_is_an_error_with_the_file(write, text):
    with pytest.raises(RecipeError, match=r"r\.yaml"):
        load_recipe(write(text), Outer)


def test_extends_merges_one_level_deep(write):
    write("name: base\ninner: {tokens: 1, size: 7}", "base.yaml")
    recipe = load_recipe(write("extends: base.yaml\ninner: {tokens: 2}"), Outer)
    assert (recipe.name, recipe.inner.tokens, recipe.inner.size) == ("base", 2, 7)
    write("extends: base.yaml", "middle.yaml")
    with pytest.raises(RecipeError, match="cannot itself extend"):
        load_recipe(write("extends: middle.yaml"), Outer)


def test_set_overrides_and_must_fit(write):
    path = write("inner: {tokens: 1}")
    assert load_recipe(path, Outer, ["inner.tokens=2K"]).inner.tokens == 2000
    with pytest.raises(RecipeError, match=r"--set 'inner': expected key\.key=value"):
        load_recipe(path, Outer, ["inner"])
    with pytest.raises(RecipeError, match="'name' holds a value, not a section"):
        load_recipe(write("name: a\ninner: {tokens: 1}"), Outer, ["name.x=1"])


def test_settings_from_the_command_line():
    assert settings_from(Inner, ["size=1KB"], tokens="3M").size == 1000
    with pytest.raises(RecipeError, match=r"command line: tokens: is required"):
        settings_from(Inner)


def test_an_unknown_recipe_names_near_ones():
    assert "quickstart" in shipped_recipes()
    with pytest.raises(RecipeError, match=r"did you mean .*quickstart"):
        load_recipe("quikstart", Outer)


def test_human():
    assert [human(x) for x in (1.33e12, 4096, 12, 0.5)] == ["1.33T", "4.1K", "12", "0.5"]


@pytest.mark.parametrize("number", [".inf", "-.inf", ".nan"])
def test_a_number_is_finite(write, number):
    class Rate(Section):
        rate: float

    with pytest.raises(RecipeError, match=r"r\.yaml:1: rate: Input should be a finite number"):
        load_recipe(write(f"rate: {number}"), Rate)
