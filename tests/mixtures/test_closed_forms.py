import csv
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixtures.closed_forms import (
    ClosedSettings,
    closed_form,
    proportional,
    temperature,
    uniform,
    unimax,
    unimax_budgets,
)
from mixtures.mixture import Domains, Mixture
from mixtures.simplex import Simplex
from mixtures.table_verbs import mix_closed
from pipelines.errors import DataError, RecipeError
from pipelines.recipe import settings_from

WEB_CODE = Domains.of({"web": 3_000_000, "code": 1_000_000})
THREE = Domains.of({"big": 1000, "mid": 300, "tiny": 10})


def test_closed_forms():
    assert proportional(WEB_CODE) == {"web": 0.75, "code": 0.25}
    assert uniform(WEB_CODE) == {"web": 0.5, "code": 0.5}
    assert temperature(Domains.of({"web": 9, "code": 1}), 2.0) == pytest.approx({"web": 0.75, "code": 0.25})
    assert temperature(Domains.of({"web": 10**12, "code": 1}), 1e-3) == {"web": 1.0, "code": 0.0}
    with pytest.raises(DataError, match="positive"):
        temperature(WEB_CODE, 0)


def test_unimax_is_even_until_the_cap():
    assert unimax(THREE, 900, 2) == pytest.approx({"big": 440 / 900, "mid": 440 / 900, "tiny": 20 / 900})


def test_unimax_published_vector(published):
    vector = json.loads((published / "unimax_vector" / "vector.json").read_text())
    domains = Domains.of(vector["character_counts"])
    arguments = (domains, vector["character_budget"], vector["max_epochs"])
    assert unimax_budgets(*arguments) == pytest.approx(vector["expected_budgets"], rel=1e-12)
    assert unimax(*arguments) == pytest.approx(vector["expected_probabilities"], rel=1e-12)


def test_unimax_published_vector_through_a_file_is_exact(published, tmp_path):
    vector = json.loads((published / "unimax_vector" / "vector.json").read_text())
    domains, budget = Domains.of(vector["character_counts"]), round(vector["character_budget"])
    asked = ClosedSettings(kind="unimax", tokens=budget, epoch_cap=vector["max_epochs"])
    domains.write(tmp_path / "domains.yaml")
    mix_closed(tmp_path / "domains.yaml", tmp_path, asked)
    found = Mixture.read(tmp_path / "mixture.yaml").weights
    assert found == pytest.approx(vector["expected_probabilities"], rel=1e-12)


@given(st.lists(st.integers(1, 10**12), min_size=2, max_size=12), st.floats(1.0, 8.0), st.floats(0.05, 0.999))
def test_unimax_is_uniform_projected_under_the_caps(held, epochs, share):
    domains = Domains.of({f"d{i:02d}": count for i, count in enumerate(held)})
    tokens = max(int(share * epochs * domains.total), 1)
    space = Simplex.of(domains, tokens, epochs)
    projected_D = space.project(np.full((1, len(held)), 1 / len(held)))[0]
    assert list(unimax(domains, tokens, epochs).values()) == pytest.approx(projected_D.tolist(), abs=1e-9)


def test_unimax_with_a_cap_for_each_domain():
    assert unimax_budgets(THREE, 900, {"big": 0.1, "mid": 4}) == {"big": 100, "mid": 400, "tiny": 400}


@given(st.permutations(["big", "mid", "tiny"]))
def test_the_order_of_the_file_changes_no_bit(order):
    asked = ClosedSettings(kind="temperature", tau=3, tokens=1200, epoch_cap=4, groups={"b*": (0, 0.3)})
    assert closed_form(THREE.ordered(order), asked).weights == closed_form(THREE, asked).weights


def test_bounds_hold_for_every_kind():
    for kind in ("proportional", "uniform", "unimax"):
        asked = ClosedSettings(kind=kind, tokens=1000, epoch_cap={"big": 1, "*": 4}, floor={"tiny": 0.02})
        found = closed_form(THREE, asked)
        assert sum(found.weights.values()) == pytest.approx(1, abs=1e-12)
        assert 0.02 - 1e-9 <= found.weights["tiny"] <= 0.04 + 1e-9
        assert max(found.epochs(THREE).values()) <= 4 + 1e-6


@pytest.mark.parametrize(
    ("sets", "problem"),
    [
        (["kind=unimax"], "--tokens and --epoch-cap"),
        (["kind=temperature"], "tau belongs to kind temperature"),
        (["kind=uniform", "tau=2"], "tau belongs to kind temperature"),
        (["kind=uniform", "epoch_cap=2"], "needs a token budget"),
        (["kind=best"], "kind"),
        (["kind=temperature", "tau=0"], "tau"),
    ],
)
def test_settings_that_do_not_go_together(sets, problem):
    with pytest.raises(RecipeError, match=problem) as caught:
        settings_from(ClosedSettings, sets)
    assert "\n" not in str(caught.value)


def test_the_verb_writes_a_mixture_and_how_often_each_domain_is_read(tmp_path):
    THREE.write(tmp_path / "domains.yaml")
    asked = ClosedSettings(kind="unimax", tokens=900, epoch_cap=2)
    outcome = mix_closed(tmp_path / "domains.yaml", tmp_path, asked)
    assert Mixture.read(tmp_path / "mixture.yaml").epoch_cap == 2
    rows = list(csv.DictReader((tmp_path / "epochs.csv").open()))
    assert [row["bound"] for row in rows] == ["", "", "cap"]
    assert float(rows[2]["epochs"]) == pytest.approx(2, rel=1e-4)
    assert outcome.metrics["bounds"] == {"tiny": "cap"}
    before = (tmp_path / "mixture.yaml").read_bytes()
    mix_closed(tmp_path / "domains.yaml", tmp_path, asked)
    assert (tmp_path / "mixture.yaml").read_bytes() == before


def test_a_budget_beyond_the_caps_says_how_many_tokens_are_missing(tmp_path):
    THREE.write(tmp_path / "domains.yaml")
    with pytest.raises(DataError, match=r"the caps allow 1\.31K tokens of 2\.62K: needs 1\.31K more tokens"):
        mix_closed(tmp_path / "domains.yaml", tmp_path, ClosedSettings(kind="unimax", tokens=2620, epoch_cap=1))
