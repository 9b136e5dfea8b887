"""Stages, exposure and caps by hand; the forgetting constraint against the closed form of the exponential law."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixtures.fitting import fit_laws
from mixtures.forgetting import ScheduleSettings, in_hull, largest_share, plan_schedule
from mixtures.mixture import Domains, Mixture
from mixtures.planning_verbs import mix_schedule
from mixtures.schedule import Schedule, ScheduleStage
from mixtures.tables import Metrics, Ratios
from mixtures.validation import FitSettings
from pipelines.errors import DataError, RecipeError
from pipelines.shards import Shard, ShardSet
from trainer.recipe import StageSettings

HELD = Domains.of({"web": 1000, "code": 200, "math": 50})
MAIN, LATE = {"web": 0.8, "code": 0.15, "math": 0.05}, {"web": 0.2, "code": 0.3, "math": 0.5}


def test_exposure_counts_over_the_whole_schedule():
    plan = Schedule.two_stage({"web": 0.75, "code": 0.25}, anneal=0.2, late={"code": 0.5, "math": 0.5}, tokens=1000)
    seen = plan.exposure(HELD)
    assert plan.stages[0].tokens == 800
    assert seen["web"].epochs == {"main": 0.6, "anneal": 0}
    assert seen["code"].epochs_so_far == pytest.approx({"main": 1.0, "anneal": 1.5})
    assert (seen["math"].total_epochs, seen["math"].late_share) == (2.0, 1.0)
    assert seen["code"].late_share == pytest.approx(100 / 300)


def test_replay_floors_keep_earlier_domains():
    only_math = {"math": 1.0}
    plan = Schedule.two_stage(MAIN, replay={"web": 0.3}, late=only_math)
    assert plan.stages[1].weights == pytest.approx({"code": 0, "math": 0.7, "web": 0.3}, abs=1e-5)
    everything = Schedule.two_stage({"web": 0.75, "code": 0.25}, replay={"*": 0.4}, late=only_math)
    # what is replayed comes back in its old proportions, 3 to 1
    assert everything.stages[1].weights == pytest.approx({"code": 0.1, "math": 0.6, "web": 0.3}, abs=1e-5)
    with pytest.raises(
        RecipeError, match=r"replay: 'books' means no domain that an earlier stage read; there are code"
    ):
        Schedule.two_stage(MAIN, replay={"books": 0.1})
    with pytest.raises(DataError, match="stage 'anneal' after 1 earlier: no mixture fits"):
        Schedule.two_stage(MAIN, replay={"web": 0.7, "code": 0.6})


def test_caps_count_what_earlier_stages_read():
    wanted = ScheduleSettings(tokens=1000, share=0.2, epoch_cap=2)
    plan = plan_schedule({"web": 0.9, "math": 0.1}, {"math": 1.0}, HELD.ordered(["web", "math", "code"]), wanted)
    weights = [stage.weights for stage in plan.schedule.stages]
    assert weights[0]["math"] == pytest.approx(0.1)  # 80 of the 100 tokens that two passes allow
    assert weights[1]["math"] == pytest.approx(0.1)  # the 20 that are left
    assert plan.bounds["anneal"]["math"] == "cap"
    plan.schedule.check_caps(HELD)
    halves = [ScheduleStage(name=name, tokens=600, weights={"math": 0.1, "web": 0.9}) for name in "ab"]
    over = Schedule(stages=tuple(halves), epoch_cap=2)
    with pytest.raises(DataError, match=r"reads 'math' 2\.4 times over all stages, its cap is 2: .* 10 more tokens"):
        over.check_caps(HELD)


def test_an_empty_budget_is_said():
    with pytest.raises(DataError, match="needs 500 more tokens"):
        plan_schedule(MAIN, LATE, HELD, ScheduleSettings(tokens=3500, epoch_cap=2))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0.01, 1), min_size=3, max_size=3), st.lists(st.floats(0.01, 1), min_size=3, max_size=3),
       st.floats(0.05, 0.5), st.floats(1.0, 4.0))  # fmt: skip
def test_any_plan_is_a_mixture_within_the_caps(main, late, share, cap):
    names = ("web", "code", "math")
    main, late = (dict(zip(names, np.array(side) / sum(side), strict=True)) for side in (main, late))
    # 1,200 of the 1,250 tokens that there are: what the main stage leaves always fills the last one
    plan = plan_schedule(main, late, HELD, ScheduleSettings(tokens=1200, share=share, epoch_cap=cap))
    for stage in plan.schedule.stages:
        assert sum(stage.weights.values()) == pytest.approx(1, abs=1e-9)
    plan.schedule.check_caps(HELD)


def test_reads_what_it_writes_and_scales(tmp_path):
    plan = Schedule.two_stage(MAIN, late=LATE)
    plan.write(tmp_path / "schedule.yaml")
    assert Schedule.read(tmp_path / "schedule.yaml") == plan
    scaled = plan.scaled(10**12 + 1)
    assert [stage.tokens for stage in scaled.stages] == [800_000_000_001, 200_000_000_000]
    (tmp_path / "bad.yaml").write_text("kind: schedule\nstages:\n  - {name: a, tokens: 1K, weights: {web: 0.5}}\n")
    with pytest.raises(RecipeError, match=r"bad\.yaml.*weights of stage 'a' sum to 0.5, expected 1"):
        Schedule.read(tmp_path / "bad.yaml")


def test_the_trainer_takes_the_stages_as_they_are():
    fields = {"sequence_length": 128, "batch_tokens": 1024, "learning_rate": 1e-3}
    plan = Schedule.two_stage(MAIN, late=LATE, tokens=10_240)
    stages = [StageSettings.model_validate(each) for each in plan.trainer_stages(fields)]
    assert [(s.name, s.blend, s.tokens, s.steps) for s in stages] == [("main", "main", 8192, 8),
                                                                     ("anneal", "anneal", 2048, 2)]  # fmt: skip
    own = plan.trainer_stages({"main": fields, "anneal": fields | {"learning_rate": 1e-4}})
    assert own[1]["learning_rate"] == 1e-4
    with pytest.raises(RecipeError, match="has a stage 'anneal', the training recipe main"):
        plan.trainer_stages({"main": fields})


def test_megatron_reads_one_path_per_stage(tmp_path):
    shards = ShardSet(tuple(Shard(name, tmp_path / name, 1, 100, 200, "0") for name in ("web", "code", "math")))
    paths = Schedule.two_stage({"web": 0.75, "code": 0.25}, late={"math": 1.0}).data_paths(shards)
    assert paths["main"] == ["0.75", str(tmp_path / "web"), "0.25", str(tmp_path / "code")]
    assert paths["anneal"] == ["1.0", str(tmp_path / "math")]


def test_one_mixture_for_all_that_was_read():
    plan = Schedule.two_stage({"web": 1.0}, anneal=0.25, late={"code": 1.0})
    assert plan.mixture().weights == {"code": 0.25, "web": 0.75}
    assert plan.mixture(retain=0).weights == {"code": 1.0, "web": 0.0}
    assert plan.mixture(retain=1 / 3).weights == pytest.approx({"code": 0.5, "web": 0.5})


def test_the_critical_ratio_of_the_exponential_law():
    """Data Mixing Laws' example of continual pretraining: a Pile share of 0.2868 keeps the Pile's loss."""
    floor, level, slope, critical = 2.03, 0.61, -1.7, 0.2868
    kept = floor + level * np.exp(slope * critical)
    shift = largest_share(lambda share_P: floor + level * np.exp(slope * (1 - share_P)) - kept)
    assert 1 - shift == pytest.approx(np.log((kept - floor) / level) / slope, abs=1e-9)
    assert 1 - shift == pytest.approx(critical, abs=1e-9)


def test_the_largest_share_of_constraints_that_always_never_or_sometimes_hold():
    assert largest_share(lambda share_P: share_P - 2) == 1
    assert largest_share(lambda share_P: share_P + 1) is None
    assert largest_share(lambda share_P: (share_P - 0.2) * (share_P - 0.6)) == pytest.approx(0.6, abs=1e-9)


@pytest.fixture(scope="module")
def fit():
    """An exponential law in two domains: more web lowers the loss on prose, more code that on programs."""
    web_P = np.linspace(0.02, 0.98, 30)
    noise = np.random.default_rng(0).normal(0, 1e-4, (30, 2))
    values = np.stack([2 + np.exp(-1.5 * web_P), 1 + np.exp(-2.0 * (1 - web_P))], axis=1) + noise
    ids = tuple(f"r{i:02d}" for i in range(30))
    ratios = Ratios(ids, ("code", "web"), np.stack([1 - web_P, web_P], axis=1))
    return fit_laws(ratios, Metrics(ids, ("prose", "programs"), values), FitSettings(laws=("exponential",)))


TWO = Domains.of({"web": 10**6, "code": 10**6})


def shifted(fit, **options):
    return plan_schedule({"web": 0.9, "code": 0.1}, {"web": 0.1, "code": 0.9}, TWO,
                         ScheduleSettings(tokens=1000, **options), fit)  # fmt: skip


def test_a_protected_loss_stops_the_shift_where_the_law_says(fit):
    rise = 0.1
    plan = shifted(fit, protect={"prose": rise})
    critical = np.log(np.exp(-1.5 * 0.9) + rise) / -1.5  # the web share at which prose has risen by that much
    assert plan.schedule.stages[1].weights["web"] == pytest.approx(critical, abs=2e-3)
    assert plan.shift == pytest.approx((0.9 - critical) / 0.8, abs=3e-3)
    assert plan.held_back_by == "prose"
    assert plan.protected["prose"].end <= plan.protected["prose"].allowed + 1e-5
    assert plan.interpolates
    assert plan.kept_in_refits is not None


def test_retaining_what_was_read_allows_more(fit):
    forgets, keeps = (shifted(fit, protect={"prose": 0.05}, retain=retain).shift for retain in (0.0, 1.0))
    assert keeps > forgets
    assert shifted(fit, protect={"prose": 9.0}).shift == 1
    assert shifted(fit).shift == 1


def test_confidence_is_more_careful_than_the_law(fit):
    assert shifted(fit, protect={"prose": 0.1}, confidence=0.95).shift <= shifted(fit, protect={"prose": 0.1}).shift
    sure = shifted(fit, protect={"prose": 0.1}, confidence=0.95)
    assert sure.kept_in_refits >= 0.95


def test_an_infeasible_constraint_says_why(fit):
    with pytest.raises(
        DataError, match=r"no share of the new mixture keeps 'prose': at best \(share 0.000\) it ends at 2"
    ):
        shifted(fit, protect={"prose": 0.0}, start={"prose": 2.0})
    capped = Domains.of({"web": 730, "code": 10**6})  # nothing of web is left for the last stage
    with pytest.raises(DataError, match="the cap of 'web' keeps it from the earlier mixture"):
        plan_schedule({"web": 0.9, "code": 0.1}, {"code": 1.0}, capped,
                      ScheduleSettings(tokens=1000, epoch_cap=1, protect={"prose": 0.01}), fit)  # fmt: skip


@pytest.mark.parametrize(
    ("options", "words"),
    [({"protect": {"rhyme": 0.1}}, "no metric 'rhyme' was fitted"),
     ({"protect": {"prose": 0.1}, "start": {"programs": 1.0}}, "start names 'programs', which is not protected"),
     ({"protect": {"prose": 0.1}, "confidence": 0.9, "resamples": 0}, "a confidence needs refits")],
)  # fmt: skip
def test_constraints_that_mean_nothing(fit, options, words):
    with pytest.raises(DataError, match=words):
        shifted(fit, **options)


def test_protecting_needs_a_law():
    with pytest.raises(DataError, match="needs a fitted law: give --fit"):
        plan_schedule(MAIN, LATE, HELD, ScheduleSettings(tokens=1000, protect={"prose": 0.1}))


def test_the_order_of_domains_changes_no_bit(fit):
    options = ScheduleSettings(tokens=1000, protect={"pro*": 0.1}, resamples=4)
    plans = [
        plan_schedule(
            dict(sorted(MAIN2.items(), reverse=turn)), LATE2, TWO.ordered(sorted(TWO.names, reverse=turn)), options, fit
        )
        for turn in (False, True)
    ]
    assert plans[0] == plans[1]
    assert set(plans[0].protected) == {"prose", "programs"}


MAIN2, LATE2 = {"web": 0.9, "code": 0.1}, {"web": 0.1, "code": 0.9}


def test_hull():
    corners = np.array([[1.0, 0, 0], [0, 1, 0], [0.2, 0.2, 0.6]])
    assert in_hull(np.array([0.4, 0.4, 0.2]), corners)
    assert not in_hull(np.array([0.1, 0.1, 0.8]), corners)


def test_the_verb_writes_plain_files(fit, tmp_path):
    fit.write(tmp_path / "fit")
    TWO.write(tmp_path / "domains.yaml")
    Mixture(name="a", weights=MAIN2, epoch_cap=2).write(tmp_path / "a.yaml")
    Mixture(name="b", weights=LATE2).write(tmp_path / "b.yaml")
    (tmp_path / "out").mkdir()
    outcome = mix_schedule(tmp_path / "a.yaml", tmp_path / "b.yaml", tmp_path / "domains.yaml", tmp_path / "fit",
                           tmp_path / "out", ScheduleSettings(tokens=1000, protect={"prose": 0.1}))  # fmt: skip
    plan = Schedule.read(tmp_path / "out" / "schedule.yaml")
    assert plan.epoch_cap == 2  # the main mixture's own
    assert outcome.metrics["stages"] == {"main": 800, "anneal": 200}
    head, first, _ = (tmp_path / "out" / "exposure.csv").read_text().splitlines()
    assert head.startswith("domain,unique_tokens,tokens_main,epochs_main,epochs_so_far_main,tokens_anneal")
    assert first.startswith("web,1000000.0,720.0,0.00072")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["held_back_by"] == "prose"
    assert set(report["predicted"]["programs"]) == {"main", "anneal"}
