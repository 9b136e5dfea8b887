from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import DataError
from pipelines.indexed import IndexedWriter, load_shards
from pipelines.shards import Blend, Shard
from trainer.fill_in_middle import FillInMiddle
from trainer.recipe import StageSettings, TrainRecipe
from trainer.shard_stream import ShardReader, ShardStream
from trainer.stream import BlendStream, Part, TrainingData, blends_of_stages, check_epochs, greedy_blend

MODEL = {"layers": 1, "width": 8, "heads": 1, "kv_heads": 1, "head_dim": 8, "ffn_width": 8, "max_sequence": 64}


def shard_of(folder: Path, name: str, lengths: list[int]) -> Shard:
    """A shard whose tokens are 0, 1, 2, ...: a token names its place."""
    with IndexedWriter(folder / name, 60_000) as writer:
        writer.append(np.arange(sum(lengths)), np.array(lengths))
    return load_shards(folder).named(name)


@pytest.mark.parametrize(
    ("weights", "parts", "numbers"),
    [
        ([0.5, 0.25, 0.25], [0, 1, 2, 0, 0, 1, 2, 0], [0, 0, 0, 1, 2, 1, 1, 3]),
        ([0.7, 0.2, 0.1], [0, 1, 0, 2, 0, 0, 0, 1, 0, 0], None),
        ([0.5, 0.5], [0, 1, 0, 1, 0, 1], [0, 0, 1, 1, 2, 2]),
    ],
)
def test_blending_gives_megatrons_golden_vectors(weights: list[float], parts: list[int], numbers: list[int] | None):
    part_N, number_N = greedy_blend(np.array(weights) / np.sum(weights), len(parts))
    assert part_N.tolist() == parts
    assert numbers is None or number_N.tolist() == numbers


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=6), st.integers(1, 300))
def test_blending_is_megatrons_compiled_rule(raw: list[float], samples: int):
    megatron = pytest.importorskip("megatron.core.datasets.helpers_cpp")
    weights = np.array(raw) / sum(raw)
    part_N, number_N = np.zeros(samples, np.int16), np.zeros(samples, np.int64)
    megatron.build_blending_indices(part_N, number_N, weights, len(raw), samples, False)
    ours = greedy_blend(weights, samples)
    assert np.array_equal(ours[0], part_N)
    assert np.array_equal(ours[1], number_N)


def test_one_epoch_is_megatrons_gpt_dataset(tmp_path: Path):
    gpt = pytest.importorskip("megatron.core.datasets.gpt_dataset")
    helpers = pytest.importorskip("megatron.core.datasets.helpers")
    lengths = np.random.default_rng(0).integers(1, 40, 60).astype(np.int32)
    shard, length = shard_of(tmp_path, "a", lengths.tolist()), 16
    random = np.random.RandomState(1234)
    order = gpt._build_document_index(np.arange(60), 1, random, False)
    index = helpers.build_sample_idx(lengths, order, length, 1, int(lengths.sum()), True, 1)
    shuffle = gpt._build_shuffle_index(len(index) - 1, len(index) - 1, random)
    begins = np.concatenate(([0], np.cumsum(lengths)))
    epoch = np.concatenate([np.arange(begins[d], begins[d + 1]) for d in order])
    ends_in_order = np.cumsum(lengths[order])
    stream = ShardStream(ShardReader(shard, 1234), length)
    for number in range(len(index) - 1):
        place, offset = index[shuffle[number]]
        at = (ends_in_order[place - 1] if place else 0) + offset
        inputs, targets, _ = read(stream, number)
        assert inputs == epoch[at : at + length].tolist()
        assert targets == epoch[at + 1 : at + length + 1].tolist()


def read(stream: ShardStream, number: int) -> tuple[list[int], list[int], list[int]]:
    row_3S = np.empty((3, stream.length), np.int64)
    stream.read(number, *row_3S)
    inputs, targets, documents = row_3S.tolist()
    return inputs, targets, documents


def stream_of(blend: Blend, seed: int, length: int, samples: int) -> BlendStream:
    parts = [Part(weight, ShardStream(ShardReader(shard, seed), length)) for weight, shard in blend.parts]
    return BlendStream(parts, length, samples, (seed,))


def data_of(blends: list[Blend], *stages: dict[str, object], seed: int = 0) -> TrainingData:
    common = {"batch_tokens": 24, "learning_rate": 1.0}
    described = [{"name": str(number), **common, **stage} for number, stage in enumerate(stages)]
    recipe = TrainRecipe.model_validate({"name": "x", "model": MODEL, "stages": described, "seed": seed})
    return TrainingData(recipe, blends)


@pytest.mark.parametrize("length", [3, 7, 50])  # 50: one sample is longer than the shard
def test_every_token_of_an_epoch_is_trained_on_once(tmp_path: Path, length: int):
    shard, epochs = shard_of(tmp_path, "a", [5, 1, 7, 8]), 21
    samples = (epochs * 21 - 1) // length
    inputs = stream_of(Blend(((1.0, shard),)), 0, length, samples).batch(0, samples).inputs_BS
    counts = np.bincount(inputs.ravel(), minlength=21)
    assert counts.sum() == samples * length
    assert counts.max() - counts.min() <= 2  # the last epoch is not whole


def test_a_sample_is_a_function_of_its_number(tmp_path: Path):
    a, b = shard_of(tmp_path, "a", [9] * 20), shard_of(tmp_path, "b", [5] * 9)
    blend = Blend(((0.6, a), (0.4, b)))
    whole = stream_of(blend, 3, 8, 64).batch(0, 64).inputs_BS
    late = stream_of(blend, 3, 8, 64)
    assert np.array_equal(late.batch(40, 24).inputs_BS, whole[40:])
    assert np.array_equal(late.batch(0, 40).inputs_BS, whole[:40])


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_ranks_share_a_batch_that_does_not_know_them(tmp_path: Path, ranks: int):
    blend = Blend(((0.6, shard_of(tmp_path, "a", [9] * 20)), (0.4, shard_of(tmp_path, "b", [5] * 9))))
    stream = stream_of(blend, 3, 8, 64)
    whole, shares = stream.batch(16, 8), [stream.batch(16, 8, rank, ranks) for rank in range(ranks)]
    for field in ("inputs_BS", "targets_BS", "documents_BS"):
        assert np.array_equal(np.concatenate([getattr(share, field) for share in shares]), getattr(whole, field))
    assert sum((share.domains for share in shares), ()) == whole.domains


def test_two_mixtures_meet_the_same_samples_of_a_domain(tmp_path: Path):
    a, b = shard_of(tmp_path, "a", [9] * 20), shard_of(tmp_path, "b", [5] * 9)
    drawn = []
    for weight in (0.3, 0.8):
        batch = stream_of(Blend(((weight, a), (1 - weight, b))), 3, 8, 40).batch(0, 40)
        drawn.append([row.tolist() for row, name in zip(batch.inputs_BS, batch.domains, strict=True) if name == "a"])
    few, many = drawn
    assert len(few) < len(many)
    assert many[: len(few)] == few


def test_documents_are_numbered_within_a_sample(tmp_path: Path):
    shard = shard_of(tmp_path, "a", [4, 4, 4, 4])  # token // 4 is its document
    batch = stream_of(Blend(((1.0, shard),)), 0, 6, 2).batch(0, 2)
    for inputs, documents in zip(batch.inputs_BS.tolist(), batch.documents_BS.tolist(), strict=True):
        owners = [token // 4 for token in inputs]
        firsts = list(dict.fromkeys(owners))
        assert documents == [firsts.index(owner) for owner in owners]


def test_one_document_after_itself_is_two(tmp_path: Path):
    batch = stream_of(Blend(((1.0, shard_of(tmp_path, "a", [3])),)), 0, 7, 1).batch(0, 1)
    assert batch.inputs_BS.tolist() == [[0, 1, 2, 0, 1, 2, 0]]
    assert batch.documents_BS.tolist() == [[0, 0, 0, 1, 1, 1, 2]]


@settings(max_examples=40)
@given(st.data())
def test_no_sample_is_lost_or_repeated_over_stages(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    """Stages of other lengths and other blends go on within the epoch: what they train on is disjoint."""
    folder = tmp_path_factory.mktemp("shards")
    shards = [shard_of(folder, name, data.draw(st.lists(st.integers(1, 60), min_size=8, max_size=20))) for name in "ab"]
    lengths = data.draw(st.lists(st.sampled_from([4, 6, 8, 12, 24]), min_size=2, max_size=4))
    weights = [data.draw(st.sampled_from([0.0, 0.3, 0.5, 1.0])) for _ in lengths]
    blends = [Blend(((weight, shards[0]), (1 - weight, shards[1]))) for weight in weights]
    plan = data_of(blends, *({"tokens": data.draw(st.integers(1, 80)), "sequence_length": n} for n in lengths))
    met: dict[str, list[int]] = {"a": [], "b": []}
    for number in range(len(lengths)):
        stream = plan.phase(number)
        batch = stream.batch(0, stream.samples)
        for name, row in zip(batch.domains, batch.inputs_BS, strict=True):
            met[name] += row.tolist()
    for shard in shards:
        counts = np.bincount(met[shard.name], minlength=shard.tokens)
        passes = len(met[shard.name]) / shard.tokens
        if passes <= 0.5:  # a sample may begin in one epoch and end in the next, never in the first half
            assert counts.max() <= 1
        assert counts.max() <= int(passes) + 2
        assert counts.min() >= int(passes) - 1


def test_a_stage_of_the_same_length_goes_on_with_the_next_sample(tmp_path: Path):
    blend = Blend(((1.0, shard_of(tmp_path, "a", [9] * 50)),))
    both = data_of([blend, blend], {"tokens": 96, "sequence_length": 8}, {"tokens": 96, "sequence_length": 8})
    whole = stream_of(blend, 0, 8, 24).batch(0, 24).inputs_BS
    assert np.array_equal(np.concatenate([both.phase(n).batch(0, 12).inputs_BS for n in (0, 1)]), whole)


def test_targets_follow_their_inputs_across_what_was_cut_out(tmp_path: Path):
    blend = Blend(((1.0, shard_of(tmp_path, "a", [400])),))
    plan = data_of([blend, blend], {"tokens": 96, "sequence_length": 4}, {"tokens": 240, "sequence_length": 24})
    met = []
    for number in (0, 1):
        batch = plan.phase(number).batch(0, plan.phase(number).samples)
        assert np.array_equal(batch.targets_BS, batch.inputs_BS + 1)
        gaps_BS = np.diff(batch.inputs_BS, axis=1) != 1
        assert np.array_equal(np.diff(batch.documents_BS, axis=1), gaps_BS)
        met += batch.inputs_BS.ravel().tolist()
    assert gaps_BS.any()
    assert len(set(met)) == len(met) == 336


def test_a_curriculum_keeps_the_order_of_steps_and_tokens(tmp_path: Path):
    blend = Blend(((1.0, shard_of(tmp_path, "a", [9] * 50)),))
    parts = [{"until": 0.25, "sequence_length": 4, "batch_tokens": 8}, {"until": 0.5, "sequence_length": 6}]
    plan = data_of([blend], {"tokens": 96, "sequence_length": 12, "curriculum": parts})
    shapes = [(s.samples, s.length) for s in (plan.phase(0), plan.phase(1), plan.phase(2))]
    assert shapes == [(6, 4), (4, 6), (4, 12)]
    rows = [plan.phase(n).batch(0, shapes[n][0]).inputs_BS.ravel() for n in range(3)]
    assert len(set(np.concatenate(rows).tolist())) == 24 + 24 + 48


def test_seeds_draw_in_other_orders(tmp_path: Path):
    blend = Blend(((1.0, shard_of(tmp_path, "a", [9] * 50)),))
    first, second = (stream_of(blend, seed, 8, 20).batch(0, 20).inputs_BS.tolist() for seed in (0, 1))
    assert first != second


def test_replay_draws_what_earlier_stages_saw_and_nothing_else(tmp_path: Path):
    a, b = shard_of(tmp_path, "a", [30] * 20), shard_of(tmp_path, "b", [30] * 20)
    blends = [Blend(((1.0, a),)), Blend(((1.0, b),))]
    plan = data_of(
        blends, {"tokens": 240, "sequence_length": 8},
        {"tokens": 480, "sequence_length": 12, "replay": 0.25},
    )  # fmt: skip
    seen = set(plan.phase(0).batch(0, 30).inputs_BS.ravel().tolist())
    batch = plan.phase(1).batch(0, 40)
    replayed = [row for row, name in zip(batch.inputs_BS.tolist(), batch.domains, strict=True) if name == "a"]
    assert len(replayed) == 10
    assert set(np.ravel(replayed)) <= seen
    assert len(set(np.ravel(replayed))) == 120  # none twice before all were drawn
    assert plan.ledger(1) == {"b": {"tokens": 360, "epochs": 0.6}, "a": {"tokens": 0, "epochs": 0.0, "replayed": 120}}


def test_replay_of_little_goes_round(tmp_path: Path):
    a, b = shard_of(tmp_path, "a", [30] * 20), shard_of(tmp_path, "b", [30] * 20)
    plan = data_of(
        [Blend(((1.0, a),)), Blend(((1.0, b),))],
        {"tokens": 8, "sequence_length": 4, "batch_tokens": 8}, {"tokens": 96, "sequence_length": 12, "replay": 0.5},
    )  # fmt: skip
    seen = set(plan.phase(0).batch(0, 2).inputs_BS.ravel().tolist())
    batch = plan.phase(1).batch(0, 8)
    replayed = [set(row) for row, name in zip(batch.inputs_BS.tolist(), batch.domains, strict=True) if name == "a"]
    assert replayed == [seen] * 4


def test_a_decision_raises_the_replay_of_later_stages(tmp_path: Path):
    blend = Blend(((1.0, shard_of(tmp_path, "a", [30] * 20)),))
    plan = data_of([blend, blend], {"tokens": 96, "sequence_length": 8}, {"tokens": 96, "sequence_length": 8})
    plan.least_replay[1] = 0.5
    assert plan.ledger(1)["a"] == {"tokens": 48, "epochs": 0.08, "replayed": 48}


def test_only_chosen_domains_are_cut_for_filling_in(tmp_path: Path):
    code, text = shard_of(tmp_path, "code", [30] * 20), shard_of(tmp_path, "text", [30] * 20)
    cut = {"share": 1.0, "prefix": 901, "suffix": 902, "middle": 903, "domains": ["code"]}
    blend = Blend(((0.5, code), (0.5, text)))
    stage = {"tokens": 240, "sequence_length": 12}
    whole = data_of([blend], {**stage, "fill_in_middle": cut}).phase(0).batch(0, 20)
    late = data_of([blend], {**stage, "fill_in_middle": cut}).phase(0).batch(7, 5)
    assert np.array_equal(late.inputs_BS, whole.inputs_BS[7:12])
    for name, row in zip(whole.domains, whole.inputs_BS, strict=True):
        assert bool(np.isin(row, (901, 902, 903)).any()) == (name == "code")
    assert np.array_equal(whole.inputs_BS[:, 1:], whole.targets_BS[:, :-1])
    assert FillInMiddle.model_validate(cut).token_ids() == (901, 902, 903)


def test_the_ledger_counts_tokens_and_passes(tmp_path: Path):
    a, b = shard_of(tmp_path, "a", [8] * 5), shard_of(tmp_path, "b", [10] * 10)
    stage = {"tokens": 144, "sequence_length": 8}
    plan = data_of([Blend(((0.5, a), (0.5, b)))], stage)
    assert plan.ledger(0) == {"a": {"tokens": 72, "epochs": 1.8}, "b": {"tokens": 72, "epochs": 0.72}}


def stages_of(tokens: list[int]) -> list[StageSettings]:
    return [
        StageSettings(name=str(n), tokens=count, sequence_length=8, batch_tokens=8, learning_rate=1.0)
        for n, count in enumerate(tokens)
    ]


def test_passes_are_summed_over_stages_and_capped(tmp_path: Path):
    blend = Blend(((1.0, shard_of(tmp_path, "a", [8] * 5)),))
    stages = stages_of([80, 80])
    check_epochs(stages, [blend, blend], cap=4)
    with pytest.raises(DataError, match=r"domain a would be passed over 4\.00 times, the cap is 3"):
        check_epochs(stages, [blend, blend], cap=3)


def test_what_is_replayed_is_no_further_pass(tmp_path: Path):
    blend = Blend(((1.0, shard_of(tmp_path, "a", [8] * 5)),))
    first, second = stages_of([80, 80])
    second = second.model_copy(update={"replay": 0.5})
    check_epochs([first, second], [blend, blend], cap=3)
    with pytest.raises(DataError, match=r"3\.00 times"):
        check_epochs([first, second], [blend, blend], cap=2.5)
    plan = data_of([blend, blend], {"tokens": 80, "sequence_length": 8, "batch_tokens": 8},
                   {"tokens": 80, "sequence_length": 8, "batch_tokens": 8, "replay": 0.5})  # fmt: skip
    assert sum(plan.ledger(stage)["a"]["epochs"] for stage in (0, 1)) == 3


def test_a_stage_names_its_blend(tmp_path: Path):
    blend = Blend(((1.0, shard_of(tmp_path, "a", [8])),))
    (stage,) = stages_of([8])
    assert blends_of_stages([stage], {"only": blend}) == [blend]
    with pytest.raises(DataError, match="there are: x, y"):
        blends_of_stages([stage], {"x": blend, "y": blend})


def test_a_token_that_the_model_does_not_know_is_named(tmp_path: Path):
    blend = Blend(((0.5, shard_of(tmp_path, "a", [9])), (0.5, shard_of(tmp_path, "b", [30]))))
    batch = stream_of(blend, 0, 8, 12).batch(0, 12)
    batch.require_known(30)
    with pytest.raises(DataError, match=r"domain b has token 29, the model knows 29: .*set model\.vocab_size"):
        batch.require_known(29)


def test_an_empty_shard_is_refused(tmp_path: Path):
    shard = shard_of(tmp_path, "a", [])
    with pytest.raises(DataError, match="holds no tokens"):
        ShardReader(shard, 0)
