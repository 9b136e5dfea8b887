import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixtures.mixture import Domain, Domains, Mixture, in_millionths
from pipelines.errors import DataError, RecipeError

WEB_CODE = Domains.of({"web": 3_000_000, "code": 1_000_000})


def test_weights_must_sum_to_one():
    with pytest.raises(ValueError, match=r"sum to 0\.9996, expected 1"):
        Mixture(name="m", weights={"web": 0.9, "code": 0.0996})


def test_percentages_are_recognised():
    with pytest.raises(ValueError, match="percentages"):
        Mixture(name="m", weights={"web": 90, "code": 9.96})


def test_negative_weight_is_refused():
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        Mixture(name="m", weights={"web": 1.5, "code": -0.5})


def test_epochs_are_weight_times_budget_over_unique_tokens():
    mixture = Mixture(name="m", weights={"code": 0.5, "web": 0.5}, tokens=6_000_000)
    assert mixture.epochs(WEB_CODE) == {"code": 3.0, "web": 1.0}


def test_epochs_need_known_domains_and_a_budget():
    with pytest.raises(DataError, match="unknown 'maths'"):
        Mixture(name="m", weights={"maths": 1.0}, tokens=1).epochs(WEB_CODE)
    with pytest.raises(DataError, match="no token budget"):
        Mixture(name="m", weights={"web": 1.0}).epochs(WEB_CODE)


def test_mixture_file_round_trip(tmp_path):
    mixture = Mixture.rounded("m", {"web/high": 1 / 3, "code": 2 / 3}, tokens=250_000_000_000, epoch_cap=4.0)
    mixture.write(tmp_path / "mixture.yaml")
    assert Mixture.read(tmp_path / "mixture.yaml") == mixture
    assert mixture.weights == {"web/high": 0.333333, "code": 0.666667}


def test_mixture_file_with_a_bad_sum_names_the_file(tmp_path):
    (tmp_path / "mixture.yaml").write_text("name: m\nweights:\n  web: 0.5\n  code: 0.4\n")
    with pytest.raises(RecipeError, match=r"mixture\.yaml.*sum to 0\.9"):
        Mixture.read(tmp_path / "mixture.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "- {name: web, unique_tokens: 3M}\n- {name: code, unique_tokens: 1000000}\n",
        "domains:\n  - name: web\n    unique_tokens: 3M\n  - name: code\n    unique_tokens: 1M\n",
    ],
)
def test_domains_file_in_both_layouts(tmp_path, text):
    (tmp_path / "domains.yaml").write_text(text)
    assert Domains.read(tmp_path / "domains.yaml").unique_tokens == {"web": 3_000_000, "code": 1_000_000}


def test_domains_file_round_trip(tmp_path):
    WEB_CODE.write(tmp_path / "domains.yaml")
    assert Domains.read(tmp_path / "domains.yaml") == WEB_CODE


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("- {name: web, unique_tokens: 1}\n- {name: web, unique_tokens: 2}\n", "listed twice"),
        ("- {name: web, unique_tokens: 0}\n", "greater than 0"),
        ("- {name: ' web', unique_tokens: 1}\n", "begins or ends with a space"),
        ('- {name: "we\\nb", unique_tokens: 1}\n', "holds a sign that cannot be seen"),
        ("- {name: params, unique_tokens: 1}\n", "'params' is the name of another column in tables of runs; rename"),
        ("- web\n", r"domains\.0: found str 'web'; expected a list such as `- \{name: web, unique_tokens: 5B\}`"),
        ("null\n", "domains: found nothing; expected a list"),
        ("- {name: web, unique_tokens: 5X}\n", "number of tokens"),
        ("- {name: web, tokens: 5}\n", r"domains\.0"),
        ("- [\n", "not valid YAML"),
        ("", "domains"),
        ("just text", "domains"),
        ("- {name: web, unique_tokens: .inf}\n", "write a finite number"),
        ("- {name: web, unique_tokens: 1e999T}\n", "write a finite number"),
        ("- {name: web, unique_tokens: 2001-99-99}\n", "cannot be read"),
        ("[" * 5000, "cannot be read"),
    ],
)
def test_bad_domains_file_is_one_line(tmp_path, text, problem):
    (tmp_path / "domains.yaml").write_text(text)
    with pytest.raises(RecipeError, match=problem) as caught:
        Domains.read(tmp_path / "domains.yaml")
    assert "\n" not in str(caught.value)


@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=60))
def test_millionths_sum_to_exactly_one_and_stay_near(raw):
    weights = [value / sum(raw) for value in raw]
    rounded = in_millionths(weights)
    assert sum(round(value * 10**6) for value in rounded) == 10**6
    assert max(abs(a - b) for a, b in zip(weights, rounded, strict=True)) <= 1e-6 + 1e-12


def test_millionths_stay_under_caps():
    assert in_millionths([0.3333337, 0.6666663], [0.3333337, 1.0]) == [0.333333, 0.666667]


def test_weights_are_added_up_by_source_and_topic():
    mixture = Mixture(name="m", weights={"web/news/high": 0.25, "web/news/low": 0.25, "web/forum": 0.25, "code": 0.25})
    assert mixture.by_part() == {"web": 0.75, "code": 0.25}
    assert mixture.by_part(2) == {"web/news": 0.5, "web/forum": 0.25, "code": 0.25}


def test_domains_are_chosen_and_ordered_by_name_with_all_they_carry():
    domains = Domains(
        domains=(Domain(name="web", unique_tokens=3, licence="ODC-BY"), Domain(name="x", unique_tokens=1))
    )
    assert domains.ordered(["x", "web"]).domains == domains.domains[::-1]
    with pytest.raises(DataError, match="unknown 'y'"):
        domains.ordered(["y"])


def test_a_cap_is_one_number_or_one_for_each_pattern(tmp_path):
    mixture = Mixture(name="m", weights={"web": 1.0}, tokens=10, epoch_cap={"web*": 2.0, "code": 4.0})
    mixture.write(tmp_path / "mixture.yaml")
    assert Mixture.read(tmp_path / "mixture.yaml") == mixture
