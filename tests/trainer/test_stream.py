from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import DataError
from pipelines.indexed import IndexedWriter, load_shards
from pipelines.shards import Blend, Shard
from trainer.recipe import StageSettings
from trainer.stream import BlendStream, ShardStream, blends_of_stages, check_epochs, greedy_blend


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
    stream = ShardStream(shard, (1234, 0), length)
    for number in range(len(index) - 1):
        place, offset = index[shuffle[number]]
        at = (ends_in_order[place - 1] if place else 0) + offset
        out = np.empty(length + 1, np.int64)
        stream.read(number, out)
        assert out.tolist() == epoch[at : at + length + 1].tolist()


@pytest.mark.parametrize("length", [3, 7, 50])  # 50: one sample is longer than the shard
def test_every_token_of_an_epoch_is_trained_on_once(tmp_path: Path, length: int):
    shard, epochs = shard_of(tmp_path, "a", [5, 1, 7, 8]), 21
    samples = (epochs * 21 - 1) // length
    stream = BlendStream(Blend(((1.0, shard),)), 0, 0, length, samples)
    inputs = stream.batch(0, samples)[:, :-1]
    counts = np.bincount(inputs.ravel(), minlength=21)
    assert counts.sum() == samples * length
    assert counts.max() - counts.min() <= 2  # the last epoch is not whole


def test_a_sample_is_a_function_of_its_number(tmp_path: Path):
    a, b = shard_of(tmp_path, "a", [9] * 20), shard_of(tmp_path, "b", [5] * 9)
    blend = Blend(((0.6, a), (0.4, b)))
    whole = BlendStream(blend, 3, 1, 8, 64).batch(0, 64)
    late = BlendStream(blend, 3, 1, 8, 64)
    assert np.array_equal(late.batch(40, 24), whole[40:])
    assert np.array_equal(late.batch(0, 40), whole[:40])


def test_two_mixtures_meet_the_same_samples_of_a_domain(tmp_path: Path):
    a, b = shard_of(tmp_path, "a", [9] * 20), shard_of(tmp_path, "b", [5] * 9)
    drawn = []
    for weight in (0.3, 0.8):
        stream = BlendStream(Blend(((weight, a), (1 - weight, b))), 3, 0, 8, 40)
        rows = stream.batch(0, 40)
        drawn.append([row.tolist() for row, part in zip(rows, stream._part_N, strict=True) if part == 0])
    few, many = drawn
    assert len(few) < len(many)
    assert many[: len(few)] == few


def test_seeds_and_stages_draw_in_other_orders(tmp_path: Path):
    blend = Blend(((1.0, shard_of(tmp_path, "a", [9] * 50)),))
    first = [BlendStream(blend, seed, stage, 8, 20).batch(0, 20).tolist() for seed, stage in ((0, 0), (1, 0), (0, 1))]
    assert first[0] != first[1] != first[2] != first[0]


def test_the_ledger_counts_tokens_and_passes(tmp_path: Path):
    a, b = shard_of(tmp_path, "a", [8] * 5), shard_of(tmp_path, "b", [10] * 10)
    ledger = BlendStream(Blend(((0.5, a), (0.5, b))), 0, 0, 8, 20).ledger()
    assert ledger == {"a": {"tokens": 80, "epochs": 2.0}, "b": {"tokens": 80, "epochs": 0.8}}


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


def test_a_stage_names_its_blend(tmp_path: Path):
    blend = Blend(((1.0, shard_of(tmp_path, "a", [8])),))
    (stage,) = stages_of([8])
    assert blends_of_stages([stage], {"only": blend}) == [blend]
    with pytest.raises(DataError, match="there are: x, y"):
        blends_of_stages([stage], {"x": blend, "y": blend})


def test_an_empty_shard_is_refused(tmp_path: Path):
    shard = shard_of(tmp_path, "a", [])
    with pytest.raises(DataError, match="holds no tokens"):
        ShardStream(shard, (0, 0), 8)
