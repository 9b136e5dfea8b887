import numpy as np
import pytest
from pydantic import ValidationError

from mixtures.bounds import Bounds, caps_by_name
from mixtures.design import DesignSettings, design_swarm
from mixtures.mixture import Domain, Domains
from pipelines.errors import DataError, RecipeError
from pipelines.recipe import settings_from

DOMAINS = Domains(
    domains=(
        Domain(name="web/news/high", unique_tokens=100, licence="ODC-BY"),
        Domain(name="web/news/low", unique_tokens=400, licence="ODC-BY"),
        Domain(name="code/python", unique_tokens=200, licence="MIT"),
        Domain(name="books", unique_tokens=300),
    )
)


def space(**bounds):
    return Bounds(**bounds).space(DOMAINS)


def test_one_number_caps_every_domain():
    assert space(tokens=1000, epoch_cap=2).upper_D.tolist() == [0.2, 0.8, 0.4, 0.6]
    assert space(epoch_cap=2).upper_D.tolist() == [1, 1, 1, 1]  # without a horizon nothing is repeated


def test_a_name_beats_a_pattern_and_a_longer_pattern_a_shorter():
    caps = {"web/*": 2, "*": 3, "web/news/*": 4, "books": 1}
    expected = {"web/news/high": 4, "web/news/low": 4, "code/python": 3, "books": 1}
    assert caps_by_name(caps, DOMAINS.names) == expected
    assert caps_by_name(dict(reversed(caps.items())), DOMAINS.names) == expected


def test_domains_without_a_cap_are_not_capped():
    assert space(tokens=1000, epoch_cap={"books": 1}).upper_D.tolist() == [1, 1, 1, 0.3]


def test_groups_are_patterns_of_names_and_licences_are_quotas():
    found = space(groups={"web/*": (0.1, 0.5)}, licences={"MIT": 0.2, "unknown": 0.3})
    assert found.groups_GD.tolist() == [[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert found.group_lower_G.tolist() == [0.1, 0, 0]
    assert found.group_upper_G.tolist() == [0.5, 0.2, 0.3]
    mixture_D = found.project(np.array([[0.1, 0.1, 0.4, 0.4]]))[0]
    assert mixture_D == pytest.approx([0.25, 0.25, 0.2, 0.3], abs=1e-8)
    assert set(found.reasons(mixture_D)) == {"group 'web/*'", "licence 'MIT'", "licence 'unknown'"}


@pytest.mark.parametrize(
    ("bounds", "problem"),
    [
        (
            {"tokens": 9, "epoch_cap": {"wbe/*": 2}},
            "epoch_cap: 'wbe/\\*' means no domain; there are books, code/python",
        ),
        ({"groups": {"maths": (0, 1)}}, "groups: 'maths' means no domain"),
        ({"licences": {"GPL*": 0.1}}, "licences: 'GPL\\*' means no domain; there are MIT, ODC-BY, unknown"),
    ],
)
def test_a_pattern_that_means_nothing_is_an_error(bounds, problem):
    with pytest.raises(RecipeError, match=problem):
        space(**bounds)


def test_a_quota_that_leaves_no_place_says_so():
    with pytest.raises(
        DataError, match=r"licence 'ODC-BY' may have at most 0.1 and all others have caps for 0.5; 0.4 of"
    ):
        space(tokens=1000, epoch_cap=1, licences={"ODC-BY": 0.1})


@pytest.mark.parametrize(
    "bounds",
    [{"epoch_cap": -1}, {"epoch_cap": {"a": 0}}, {"tokens": 0}, {"floor": {"a": 2}}, {"groups": {"a": (0.5, 0.1)}},
     {"groups": {"a": (0, 1.5)}}, {"licences": {"a": -0.1}}, {"epoch_cap": float("nan")}],
)  # fmt: skip
def test_bounds_that_mean_nothing_are_refused(bounds):
    with pytest.raises(ValidationError):
        Bounds(**bounds)


def test_bounds_are_given_on_the_command_line():
    sets = ["epoch_cap={web/*: 4, books: 1}", "groups={code/*: [0.05, 0.2]}", "tokens=250B"]
    found = settings_from(DesignSettings, sets)
    assert (found.epoch_cap, found.groups, found.tokens) == (
        {"web/*": 4, "books": 1}, {"code/*": (0.05, 0.2)}, 250_000_000_000,
    )  # fmt: skip
    with pytest.raises(RecipeError, match="epoch_cap") as caught:
        settings_from(DesignSettings, ["epoch_cap=often"])
    assert "\n" not in str(caught.value)


def test_a_swarm_keeps_the_bounds_of_the_final_run():
    asked = DesignSettings(tokens=1000, epoch_cap={"web/*": 2, "books": 1}, groups={"web/*": (0.2, 0.4)},
                           licences={"MIT": 0.5})  # fmt: skip
    swarm = design_swarm(DOMAINS, 12, asked)
    names = sorted(DOMAINS.names)
    assert asked.space(DOMAINS.ordered(names)).contains(swarm.ordered(names).weights_PD, 1e-5).all()
