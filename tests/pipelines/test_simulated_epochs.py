from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import DataError
from pipelines.indexed import IndexedTokens, IndexedWriter, bin_path, load_shards
from pipelines.shards import Blend, ShardSet
from pipelines.simulated_epochs import simulate_epochs

END = 0


def shards_of(folder: Path, **lengths: list[int]) -> ShardSet:
    """Shards whose documents are `n n n ... 0`, n the document's number from 1."""
    for name, each in lengths.items():
        with IndexedWriter(folder / name.replace("_", "/"), 1000) as writer:
            for number, length in enumerate(each, 1):
                writer.append(np.array([number] * (length - 1) + [END]), np.array([length]))
    return load_shards(folder)


def documents_of(shards: ShardSet, name: str) -> list[tuple[int, int]]:
    """Number and tokens of each document of a subset."""
    tokens = IndexedTokens(shards.named(name).prefix)
    return [(int(tokens[row][0]), len(tokens[row])) for row in range(len(tokens))]


def test_a_proxy_repeats_a_domain_as_often_as_the_full_run(tmp_path: Path):
    shards = shards_of(tmp_path / "full", web=[50] * 80, code=[7] * 100, books_old=[300, 500])
    limited = simulate_epochs(shards, 2_000, 20_000, tmp_path / "limited")
    assert {shard.name: shard.tokens for shard in limited.shards} == {"web": 400, "code": 70, "books/old": 80}
    weights = {"web": 0.5, "code": 0.4, "books/old": 0.1}
    assert Blend.of(weights, limited).epochs(2_000) == Blend.of(weights, shards).epochs(20_000)


def test_documents_are_whole_but_the_last_which_keeps_its_end(tmp_path: Path):
    shards = shards_of(tmp_path / "full", web=list(range(20, 60)))
    limited = simulate_epochs(shards, 300, 3_000, tmp_path / "limited")
    *whole, (number, length) = documents_of(limited, "web")
    assert [tokens for _, tokens in whole] == [each + 19 for each, _ in whole]
    assert length <= number + 19
    rows = IndexedTokens(limited.named("web").prefix)
    assert all(rows[row][-1] == END for row in range(len(rows)))
    assert len({each for each, _ in [*whole, (number, length)]}) == len(rows)


def test_a_larger_budget_holds_the_smaller_subset(tmp_path: Path):
    shards = shards_of(tmp_path / "full", web=[30] * 200)
    few, many = (documents_of(simulate_epochs(shards, n, 6_000, tmp_path / str(n)), "web") for n in (600, 1_800))
    assert (len(few), len(many)) == (20, 60)
    assert many[:20] == few


def test_a_subset_depends_on_its_own_shard_and_seed_alone(tmp_path: Path):
    shards = shards_of(tmp_path / "full", web=[30] * 100, code=[20] * 100)
    turned = ShardSet(tuple(reversed(shards.shards)))
    one = simulate_epochs(shards, 500, 5_000, tmp_path / "one")
    two = simulate_epochs(turned, 500, 5_000, tmp_path / "two")
    other = simulate_epochs(shards, 500, 5_000, tmp_path / "other", seed=1)
    assert [shard.name for shard in two.shards] == ["web", "code"]
    for name in ("web", "code"):
        assert bin_path(one.named(name).prefix).read_bytes() == bin_path(two.named(name).prefix).read_bytes()
        assert one.named(name).sha256 == two.named(name).sha256 != other.named(name).sha256


def test_a_tiny_share_still_holds_a_document_of_two_tokens(tmp_path: Path):
    shards = shards_of(tmp_path / "full", web=[30] * 10)
    limited = simulate_epochs(shards, 10, 10**9, tmp_path / "limited")
    assert [tokens for _, tokens in documents_of(limited, "web")] == [2]


def test_a_proxy_as_long_as_the_full_run_reads_the_shards_themselves(tmp_path: Path):
    shards = shards_of(tmp_path / "full", web=[30] * 10)
    assert simulate_epochs(shards, 500, 500, tmp_path / "limited") is shards
    assert not (tmp_path / "limited").exists()


def test_bad_counts_and_empty_shards_are_refused(tmp_path: Path):
    shards = shards_of(tmp_path / "full", web=[30], none=[])
    with pytest.raises(DataError, match="proxy_tokens 0, horizon 5"):
        simulate_epochs(shards, 0, 5, tmp_path / "limited")
    with pytest.raises(DataError, match=r"shard none .* holds no tokens"):
        simulate_epochs(shards, 1, 5, tmp_path / "limited")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 999))
def test_any_documents_and_any_share_give_the_rounded_budget(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], proxy_tokens: int
):
    folder = tmp_path_factory.mktemp("subset")
    limited = simulate_epochs(shards_of(folder / "full", web=lengths), proxy_tokens, 1_000, folder / "limited")
    exact = sum(lengths) * proxy_tokens / 1_000
    assert limited.tokens == min(sum(lengths), max(2, int(exact + 0.5)))
