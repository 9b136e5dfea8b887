"""Changes of domains by hand, exact expansion, bounds that say the same over the virtual domain, old runs that map."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixtures.bounds import Bounds
from mixtures.changes import Changes, in_content
from mixtures.fitting import fit_laws
from mixtures.mixture import Domain, Domains, Mixture
from mixtures.planning_verbs import Evidence, mix_reuse
from mixtures.propose import ProposeSettings
from mixtures.reuse import CARRIED, VIRTUAL, Reuse, ReuseSettings
from mixtures.tables import Metrics, Ratios
from mixtures.validation import FitSettings
from pipelines.errors import DataError, RecipeError

OLD = Mixture(name="old", weights={"web": 0.5, "code": 0.3, "books": 0.2})
NEW = Domains.of({"web": 1000, "code": 300, "books": 200, "math": 100})


def test_what_names_tell_of_changes():
    found = Changes.between(["web", "code/py", "code/js", "books", "forum"],
                            ["web/high", "web/low", "code", "books", "math"])  # fmt: skip
    assert found.kept == ("books",)
    assert found.added == ("math",)
    assert found.removed == ("forum",)
    assert found.split == {"web": ("web/high", "web/low")}
    assert found.merged == {"code": ("code/js", "code/py")}
    assert found.changed == ("code", "math", "web/high", "web/low")


def test_what_names_do_not_tell_can_be_said():
    found = Changes.between(["web", "a", "b"], ["good", "bad", "ab"], {"web": ["good", "bad"]}, {"ab": ["a", "b"]})
    assert (found.split, found.merged) == ({"web": ("bad", "good")}, {"ab": ("a", "b")})
    with pytest.raises(DataError, match="new domain 'good' is split or merged twice"):
        Changes.between(["web", "text"], ["good"], {"web": ["good"], "text": ["good"]})
    with pytest.raises(DataError, match="split does not match the old domains: unknown 'wob'"):
        Changes.between(["web"], ["a"], {"wob": ["a"]})


def test_an_old_mixture_is_carried_by_tokens():
    changes = Changes.between(["web", "a/x", "a/y", "gone"], ["web/hi", "web/lo", "a", "new"])
    held = Domains.of({"web/hi": 30, "web/lo": 10, "a": 5, "new": 7})
    carried = changes.carried({"web": 0.4, "a/x": 0.1, "a/y": 0.3, "gone": 0.2}, held)
    assert carried == pytest.approx({"web/hi": 0.375, "web/lo": 0.125, "a": 0.5, "new": 0})
    with pytest.raises(DataError, match="nothing that the old mixture read is left"):
        changes.carried({"web": 0.0, "a/x": 0.0, "a/y": 0.0, "gone": 1.0}, held)


def test_members_keep_their_proportions_and_expansion_is_exact():
    reuse = Reuse.of(OLD, NEW)
    assert reuse.members == pytest.approx({"web": 0.5, "code": 0.3, "books": 0.2})
    assert (reuse.free, len(reuse.virtual_domains)) == (("math",), 2)
    assert reuse.virtual_domains.unique_tokens == {VIRTUAL: 1500, "math": 100}
    row = reuse.expanded({VIRTUAL: 0.75, "math": 0.25})
    assert row == pytest.approx({"web": 0.375, "code": 0.225, "books": 0.15, "math": 0.25}, rel=1e-15)


def test_a_swarm_has_both_anchors_and_comes_back():
    reuse = Reuse.of(OLD, NEW)
    virtual = reuse.design(8)
    assert (virtual.ids[0], virtual.ids[-1], len(virtual.ids)) == ("prior", CARRIED, 8)
    assert virtual.rows()[-1][1] == {VIRTUAL: 1.0, "math": 0.0}
    whole = reuse.expand(virtual)
    assert np.abs(reuse.contract(whole).ordered(virtual.domains).weights_PD - virtual.weights_PD).max() < 1e-12
    with pytest.raises(DataError, match="'x' reads frozen domains in other proportions"):
        reuse.contract(Ratios.of({"x": {"web": 0.9, "code": 0.1, "books": 0, "math": 0}}))


def test_freeing_a_kept_domain():
    reuse = Reuse.of(OLD, NEW, ReuseSettings(free=("boo*",)))
    assert reuse.free == ("books", "math")
    assert reuse.members == pytest.approx({"web": 0.625, "code": 0.375})
    with pytest.raises(RecipeError, match="free: 'poems' means no domain that was kept"):
        Reuse.of(OLD, NEW, ReuseSettings(free=("poems",)))


def test_the_virtual_cap_is_that_of_the_first_member_to_run_out():
    reuse = Reuse.of(OLD, NEW, ReuseSettings(tokens=550, epoch_cap={"*": 1.0, "books": 0.5}, floor={"web": 0.2}))
    space = reuse.bounds.space(reuse.virtual_domains)
    place = space.names.index(VIRTUAL)
    # books may have 0.5 x 200 of 550 tokens and are a fifth of the frozen part; web is half of it and needs 0.2
    assert space.upper_D[place] == pytest.approx(100 / 550 / 0.2)
    assert space.lower_D[place] == pytest.approx(0.4)


@settings(max_examples=60, deadline=None)
@given(st.floats(0.01, 0.99), st.floats(200, 4000), st.floats(0.5, 4), st.floats(0, 0.4), st.floats(0.3, 1.0))
def test_bounds_over_the_virtual_domain_are_those_over_all(share, tokens, cap, floor, most):
    """Oracle: expand the mixture and ask the bounds over all domains."""
    wanted = {"tokens": round(tokens), "epoch_cap": cap, "floor": {"code": floor * 0.3},
              "groups": {"[bw]*": (0.0, most)}}  # fmt: skip
    try:
        whole = Bounds(**wanted).space(NEW)
        reuse = Reuse.of(OLD, NEW, ReuseSettings(**wanted))
        virtual = reuse.bounds.space(reuse.virtual_domains)
    except DataError:
        return
    row_D = np.array([{VIRTUAL: share, "math": 1 - share}[name] for name in virtual.names])
    full = reuse.expanded({VIRTUAL: share, "math": 1 - share})
    full_D = np.array([full[name] for name in whole.names])
    assert virtual.contains(row_D[None], 1e-9)[0] == whole.contains(full_D[None], 1e-9)[0]


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [({"floor": {"books": 0.25}}, DataError, "the floor of 'books' is 0.25, but the reused mixture gives it 0.2"),
     ({"groups": {"*": (0.0, 0.9)}}, RecipeError, r"'\*' spans frozen and free domains"),
     ({"groups": {"web": (0.6, 1.0)}}, DataError, "'web' asks for at least 0.6, the frozen mixture has 0.5"),
     ({"groups": {"web": (0.4, 1.0), "code": (0.0, 0.1)}}, DataError, "at least 0.8 and at most 0.3333"),
     ({"groups": {"poems": (0.0, 0.1)}}, RecipeError, "'poems' means no domain")],
)  # fmt: skip
def test_bounds_that_a_frozen_mixture_cannot_keep(options, kind, words):
    with pytest.raises(kind, match=words):
        Reuse.of(OLD, NEW, ReuseSettings(**options))


def test_quotas_of_licences_are_carried():
    licensed = Domains(domains=(*(Domain(name=n, unique_tokens=100, licence="by") for n in ("web", "code", "books")),
                                Domain(name="math", unique_tokens=100)))  # fmt: skip
    reuse = Reuse.of(OLD, licensed, ReuseSettings(licences={"by": 0.6, "unknown": 0.5}))
    space = reuse.bounds.space(reuse.virtual_domains)
    keeps = [space.contains(np.array([[v, 1 - v]]) if space.names[0] == VIRTUAL else np.array([[1 - v, v]]))[0]
             for v in (0.45, 0.55, 0.65)]  # fmt: skip
    assert keeps == [False, True, False]


@pytest.mark.parametrize(
    ("weights", "domains", "words"),
    [({"web": 1.0}, {"web": 10}, "no domain changed: the old mixture stands"),
     ({"web": 1.0}, {"web/a": 10, "web/b": 10}, "gives no weight to any frozen domain"),
     ({"web": 1.0}, {"web": 10, "reused": 10}, "rename it")],
)  # fmt: skip
def test_nothing_to_reuse(weights, domains, words):
    with pytest.raises(DataError, match=words):
        Reuse.of(Mixture(name="old", weights=weights), Domains.of(domains))


def test_old_runs_map_where_that_is_exact():
    old = Ratios.of({"a": {"web": 0.6, "py": 0.3, "js": 0.1, "gone": 0.0},
                     "b": {"web": 0.6, "py": 0.1, "js": 0.3, "gone": 0.0},
                     "c": {"web": 0.5, "py": 0.3, "js": 0.1, "gone": 0.1}})  # fmt: skip
    changes = Changes.between(old.domains, ["web/hi", "web/lo", "code", "new"], merged={"code": ["py", "js"]})
    held = Domains.of({"web/hi": 1, "web/lo": 2, "code": 4, "new": 9})
    found, left_out = changes.transferred(old, held, {"web": 3, "py": 3, "js": 1, "gone": 5})
    assert left_out == ["b", "c"]  # out of the merged domains' proportion; read what was removed
    assert found.rows() == [("a", pytest.approx({"web/hi": 0.2, "web/lo": 0.4, "code": 0.4, "new": 0}))]


def test_runs_over_other_domains_meet_in_their_content():
    content = Ratios.of({"web": {"news": 0.5, "shops": 0.5}, "web/a": {"news": 1.0, "shops": 0.0},
                         "web/b": {"news": 0.0, "shops": 1.0}})  # fmt: skip
    old = in_content(Ratios.of({"x": {"web": 1.0}}), content)
    new = in_content(Ratios.of({"y": {"web/b": 0.5, "web/a": 0.5}}), content)
    assert old.weights_PD.tolist() == new.weights_PD.tolist() == [[0.5, 0.5]]
    with pytest.raises(DataError, match="unknown 'poems'"):
        in_content(Ratios.of({"x": {"poems": 1.0}}), content)


def losses(ratios):
    """Math helps until it is a quarter; the rest as the law of a swarm."""
    column = dict(zip(ratios.domains, ratios.weights_PD.T, strict=True))
    reading = 2 + (0.1 + 0.6 * np.sqrt(column["web"]) + 0.5 * np.sqrt(column["math"])) ** -0.5
    return Metrics(ratios.ids, ("loss",), reading[:, None])


def test_a_swarm_over_what_changed_finds_the_optimum_along_it():
    reuse = Reuse.of(OLD, NEW)
    whole = reuse.expand(reuse.design(10))
    fit = fit_laws(whole, losses(whole), FitSettings(laws=("concave",)))
    found, proposal = reuse.propose(fit, ProposeSettings(resamples=0, support="free"))
    line = np.linspace(0, 1, 2001)
    rows = Ratios.of({str(v): reuse.expanded({VIRTUAL: v, "math": 1 - v}) for v in line})
    best = float(losses(rows).values_PM.min())
    got = float(losses(Ratios.of({"found": found.weights})).values_PM[0, 0])
    assert got - best < 1e-3
    assert sum(found.weights.values()) == pytest.approx(1, abs=1e-9)
    assert found.weights["code"] / found.weights["web"] == pytest.approx(0.6)
    assert proposal.mixture.weights.keys() == {VIRTUAL, "math"}


def test_the_order_of_domains_changes_no_bit():
    turned = NEW.ordered(sorted(NEW.names, reverse=True))
    first, second = (Reuse.of(OLD, domains).design(6) for domains in (NEW, turned))
    assert first.rows() == second.rows()


def test_the_verb_designs_then_proposes(tmp_path):
    OLD.write(tmp_path / "old.yaml")
    NEW.write(tmp_path / "new.yaml")
    Domains.of({"web": 1000, "code": 300, "books": 200}).write(tmp_path / "before.yaml")
    Ratios.of({"r0": OLD.weights}).write_csv(tmp_path / "runs.csv")
    for folder in ("swarm", "best"):
        (tmp_path / folder).mkdir()
    paths = tmp_path / "old.yaml", tmp_path / "new.yaml"
    done = mix_reuse(*paths, 8, None, tmp_path / "swarm", ReuseSettings(),
                     Evidence(tmp_path / "runs.csv", tmp_path / "before.yaml"))  # fmt: skip
    assert done.metrics == {"free": ["math"], "dimensions": 1, "runs": 8, "transferred": 1, "left_out": []}
    assert Ratios.read_csv(tmp_path / "swarm" / "transferred.csv").rows() == [("r0", OLD.weights | {"math": 0.0})]
    ratios = Ratios.read_csv(tmp_path / "swarm" / "ratios.csv")
    fit = fit_laws(ratios, losses(ratios), FitSettings(laws=("concave",)))
    fit.write(tmp_path / "fit")
    settings = ReuseSettings(propose=ProposeSettings(resamples=4))
    mix_reuse(*paths, None, tmp_path / "fit", tmp_path / "best", settings)
    assert set(Mixture.read(tmp_path / "best" / "mixture.yaml").weights) == set(NEW.names)
    report = json.loads((tmp_path / "best" / "report.json").read_text())
    assert report["dimensions"] == {"all": 3, "virtual": 1}
    with pytest.raises(DataError, match="give -n to design a swarm, or --fit to propose"):
        mix_reuse(*paths, None, None, tmp_path / "best", ReuseSettings())
