import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize

from mixtures.feasibility import nearest_feasible
from mixtures.mixture import Domains
from mixtures.simplex import Group, Simplex, kl
from pipelines.errors import DataError

ABC = Domains.of({"a": 100, "b": 100, "c": 800})
NAMES = tuple("abcdef")
BILLION = 10**9
PRIOR = {"pile_cc": 0.4, "wiki": 0.05, "enron": 0.002, "rest": 0.548}  # shares of 250B unique tokens


def test_caps_are_epochs_times_tokens_over_budget():
    space = Simplex.of(ABC, tokens=1000, epoch_cap=4)
    assert space.upper_D.tolist() == [0.4, 0.4, 1.0]
    assert Simplex.of(ABC, tokens=1000, epoch_cap={"a": 2, "c": 1}).upper_D.tolist() == [0.2, 1.0, 0.8]


def test_impossible_budget_says_how_many_tokens_are_missing():
    domains = Domains.of({name: round(share * 250 * BILLION) for name, share in PRIOR.items()})
    with pytest.raises(DataError) as caught:
        Simplex.of(domains, tokens=500 * BILLION, epoch_cap=1)
    assert str(caught.value) == "no mixture fits: the caps allow 250B tokens of 500B: needs 250B more tokens"
    with pytest.raises(DataError, match=r"allow 500B tokens of 1T at 2 epochs: needs 250B more tokens$"):
        Simplex.of(domains, tokens=1000 * BILLION, epoch_cap=2)


def test_missing_tokens_under_several_caps_are_named_for_the_widest():
    with pytest.raises(
        DataError, match=r"allow 1\.5K tokens of 3K: needs 500 more tokens of 'b', whose cap of 3 epochs"
    ):
        Simplex.of(ABC, tokens=3000, epoch_cap={"a": 2, "b": 3, "c": 1.25})


def test_budget_that_just_fits_forces_the_proportional_mixture():
    space = Simplex.of(ABC, tokens=1000, epoch_cap=1)
    assert space.project(np.array([[0.8, 0.1, 0.1]]))[0] == pytest.approx([0.1, 0.1, 0.8])


@pytest.mark.parametrize(
    ("floor", "problem"),
    [({"a": 0.5}, "floor of 'a' is 0.5 but its epoch cap allows 0.4"), ({"c": 0.8, "b": 0.4}, "floors sum to 1.2"),
     ({"z": 0.1}, "unknown 'z'")],
)  # fmt: skip
def test_impossible_floors(floor, problem):
    with pytest.raises(DataError, match=problem):
        Simplex.of(ABC, tokens=1000, epoch_cap=4, floor=floor)


@pytest.mark.parametrize(
    ("groups", "problem"),
    [
        ([Group("group 'x'", ("a", "b"), 0.9, 1.0)], r"group 'x' must have at least 0.9, but the caps in it allow 0.8: "
         "needs 100 more tokens to read there"),
        ([Group("group 'x'", ("a", "b"), 0.0, 0.05)], 
         r"group 'x' may have at most 0.05, but the floors in it sum to 0.1"),
        ([Group("group 'x'", ("c",), 0.0, 0.1)], r"group 'x' may have at most 0.1 and all others have caps for 0.8; "
         r"0.1 of the weight \(100 tokens\) has no place"),
        ([Group("group 'x'", ("a", "b"), 0.7, 1.0), Group("licence 'nc'", ("a",), 0.0, 0.2)],
         r"the least of group 'x' \(0.7\), the most of licence 'nc' \(0.2\), the cap of 'b' \(0.4\) cannot all hold; "
         r"they miss each other by 0.1 of the weight \(100 tokens\)"),
        ([Group("group 'x'", ("a", "b"), 0.0, 0.3), Group("group 'y'", ("c",), 0.0, 0.6)],
         r"the most of group 'x' \(0.3\), the most of group 'y' \(0.6\) cannot all hold; they miss each other by"),
        ([Group("group 'x'", ("z",), 0.0, 0.3)], "a group does not match the domains: unknown 'z'"),
    ],
)  # fmt: skip
def test_impossible_groups_name_what_conflicts_and_by_how_much(groups, problem):
    with pytest.raises(DataError, match=problem) as caught:
        Simplex.of(ABC, tokens=1000, epoch_cap=4, floor={"b": 0.1}, groups=groups)
    assert "\n" not in str(caught.value)


def test_projection_scales_the_free_and_clips_the_capped():
    space = Simplex.of(ABC, tokens=1000, epoch_cap=2)
    assert space.project(np.array([[0.6, 0.1, 0.3]]))[0] == pytest.approx([0.2, 0.2, 0.6])


def test_projection_keeps_proportions_inside_and_outside_a_group():
    space = Simplex.of(ABC, groups=[Group("g", ("a", "b"), 0.0, 0.3)])
    assert space.project(np.array([[0.4, 0.2, 0.4]]))[0] == pytest.approx([0.2, 0.1, 0.7], abs=1e-9)
    assert space.reasons(np.array([0.2, 0.1, 0.7])) == {"g": "most"}


def test_projection_leaves_allowed_mixtures_alone():
    space = Simplex.of(ABC, tokens=1000, epoch_cap=4, groups=[Group("g", ("a", "b"), 0.1, 0.3)])
    assert space.project(np.array([[0.3, 0.0, 0.7]]))[0] == pytest.approx([0.3, 0.0, 0.7], abs=1e-12)


def test_projection_opens_a_zero_when_the_bounds_leave_no_other_room():
    space = Simplex.of(ABC, tokens=1000, epoch_cap=4)
    assert space.project(np.array([[0.5, 0.5, 0.0]]))[0] == pytest.approx([0.4, 0.4, 0.2])
    space = Simplex.of(ABC, groups=[Group("g", ("a",), 0.25, 1.0)])
    assert space.project(np.array([[0.0, 0.5, 0.5]]))[0] == pytest.approx([0.25, 0.375, 0.375])


def test_a_budget_of_zero_shuts_its_members():
    space = Simplex.of(ABC, groups=[Group("licence 'nc'", ("a",), 0.0, 0.0)])
    assert space.project(np.array([[0.5, 0.25, 0.25]]))[0].tolist() == pytest.approx([0.0, 0.5, 0.5], abs=1e-12)


@given(st.lists(st.floats(1e-4, 1), min_size=4, max_size=4), st.lists(st.floats(0.3, 1), min_size=4, max_size=4))
def test_projection_is_the_kl_minimum(raw, caps):
    base_D = np.array(raw) / sum(raw)
    space = Simplex(tuple("abcd"), np.zeros(4), np.array(caps))
    ours_D = space.project(base_D[None])[0]
    assert space.contains(ours_D[None], 1e-9).all()
    oracle = minimize(
        lambda w: kl(np.maximum(w, 1e-15), base_D), np.array(caps) / sum(caps), method="SLSQP",
        jac=lambda w: np.log(np.maximum(w, 1e-15) / base_D) + 1, bounds=[(1e-9, cap) for cap in caps],
        constraints=[{"type": "eq", "fun": lambda w: w.sum() - 1}], options={"ftol": 1e-12},
    )  # fmt: skip
    assert kl(ours_D, base_D) <= oracle.fun + 1e-6


@st.composite
def bounded(draw):
    """Arrays of bounds over six domains, feasible or not, with overlapping groups."""
    shares = st.floats(0, 1).map(lambda value: round(value, 3))
    upper_D = np.array(draw(st.lists(shares, min_size=6, max_size=6)))
    lower_D = upper_D * np.array(draw(st.lists(st.sampled_from([0.0, 0.0, 0.1, 0.5]), min_size=6, max_size=6)))
    members = draw(st.lists(st.sets(st.sampled_from(NAMES), min_size=1, max_size=5), max_size=3))
    ends = [sorted(draw(st.tuples(shares, shares))) for _ in members]
    groups = [
        Group(f"g{i}", tuple(sorted(each)), *end) for i, (each, end) in enumerate(zip(members, ends, strict=True))
    ]
    return lower_D, upper_D, groups


def as_space(lower_D, upper_D, groups, check=False):
    if check:  # 1000 unique tokens each and a budget of 1000: the epoch cap is the largest weight
        domains = Domains.of(dict.fromkeys(NAMES, 1000))
        caps = {name: max(float(cap), 1e-12) for name, cap in zip(NAMES, upper_D, strict=True)}
        return Simplex.of(domains, 1000, caps, dict(zip(NAMES, lower_D.tolist(), strict=True)), groups)
    member_GD = np.array([[float(name in group.members) for name in NAMES] for group in groups])
    ends_G2 = np.array([group[2:] for group in groups], float).reshape(-1, 2)
    return Simplex(NAMES, lower_D, upper_D, member_GD, ends_G2[:, 0], ends_G2[:, 1], tuple(g.name for g in groups))


def has_solution(space, slack=0.0):
    member_GD = space.groups_GD
    rows = np.vstack([member_GD, -member_GD]) if len(member_GD) else None
    ends = np.concatenate([space.group_upper_G + slack, -space.group_lower_G + slack]) if len(member_GD) else None
    bounds = [*zip(space.lower_D - slack, space.upper_D + slack, strict=True)]
    return linprog(np.zeros(6), A_ub=rows, b_ub=ends, A_eq=np.ones((1, 6)), b_eq=[1.0], bounds=bounds).status == 0


@settings(max_examples=150)
@given(bounded())
def test_a_reason_is_given_exactly_when_no_mixture_exists(case):
    space = as_space(*case)
    try:
        as_space(*case, check=True)
        found = None
    except DataError as error:
        found = str(error)
    assert has_solution(space, 1e-6) if found is None else not has_solution(space, -1e-6), found
    assert found is None or "\n" not in found


@settings(max_examples=60)
@given(bounded(), st.lists(st.floats(1e-3, 1), min_size=6, max_size=6))
def test_projection_under_groups_is_allowed_and_near_the_kl_minimum(case, raw):
    space = as_space(*case)
    if not has_solution(space, -1e-4):
        return
    base_D = np.array(raw) / sum(raw)
    ours_D = space.project(base_D[None])[0]
    assert space.contains(ours_D[None], 1e-8).all()
    limits = [{"type": "eq", "fun": lambda w: w.sum() - 1}]
    for member_D, low, high in zip(space.groups_GD, space.group_lower_G, space.group_upper_G, strict=True):
        limits.append({"type": "ineq", "fun": lambda w, m=member_D, h=high: h - m @ w})
        limits.append({"type": "ineq", "fun": lambda w, m=member_D, lo=low: m @ w - lo})
    oracle = minimize(
        lambda w: kl(np.maximum(w, 1e-12), base_D), nearest_feasible(space.case(), base_D), method="SLSQP",
        jac=lambda w: np.log(np.maximum(w, 1e-12) / base_D) + 1,
        bounds=[(max(low, 1e-12), max(high, 1e-12)) for low, high in zip(space.lower_D, space.upper_D, strict=True)],
        constraints=limits, options={"ftol": 1e-13, "maxiter": 300},
    )  # fmt: skip
    if space.contains(oracle.x[None], 1e-7).all():
        assert kl(ours_D, base_D) <= kl(np.maximum(oracle.x, 0), base_D) + 1e-5


@given(st.permutations(range(6)), st.lists(st.floats(1e-3, 1), min_size=6, max_size=6))
def test_the_order_of_domains_changes_nothing(order, raw):
    member_D = np.array([1.0, 1, 0, 0, 1, 0])
    space = Simplex(NAMES, np.zeros(6), np.full(6, 0.5), member_D[None], np.array([0.1]), np.array([0.4]), ("g",))
    turned = Simplex(tuple(NAMES[i] for i in order), np.zeros(6), np.full(6, 0.5), member_D[order][None],
                     np.array([0.1]), np.array([0.4]), ("g",))  # fmt: skip
    base_D = np.array(raw) / sum(raw)
    straight_PD, turned_PD = space.project(base_D[None]), turned.project(base_D[order][None])
    assert turned_PD[0].tolist() == straight_PD[0][order].tolist()
    assert turned.written(turned_PD)[0].tolist() == space.written(straight_PD)[0][order].tolist()


@given(st.lists(st.floats(1e-3, 1), min_size=6, max_size=6))
def test_written_mixtures_keep_the_budgets_of_groups_within_a_millionth(raw):
    groups = [Group("g", ("a", "b", "c"), 0.0, 1 / 3), Group("h", ("c", "d", "e"), 1 / 3, 1.0)]
    space = as_space(np.zeros(6), np.full(6, 0.7), groups)
    written_D = space.written(space.project(np.array([raw]) / sum(raw)))[0]
    assert sum(round(weight * 10**6) for weight in written_D) == 10**6
    assert space.contains(written_D[None], 1.01e-6).all()
