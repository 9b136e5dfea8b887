from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from filters.buckets import BucketSettings, Cutoffs, apply_cutoffs, assign, buckets, fit_buckets, read_cutoffs
from filters.score_table import POLICY_KEY, SCORES_SCHEMA
from pipelines.errors import DataError


def write_scores(path: Path, nats: list[float | None], domain: str = "web", policy: str = "p", start: int = 0) -> Path:
    """Scores whose nats per token are `nats`, ten tokens each."""
    n = len(nats)
    columns = {
        "id": [f"{domain}-{start + i}" for i in range(n)],
        "sum_nll_nats": [None if value is None else 10 * value for value in nats],
        "scored_tokens": [0 if value is None else 10 for value in nats],
        "bytes": [0 if value is None else 40 for value in nats],
        "chars": [40] * n, "windows": [1] * n, "truncated": [False] * n,
        "domain": [domain] * n, "language": ["eng"] * n, "source": ["s"] * n,
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns, schema=SCORES_SCHEMA.with_metadata({POLICY_KEY: policy.encode()})), path)
    return path


def names(score_files: list[Path], **options) -> list[str]:
    cutoffs = fit_buckets(score_files, BucketSettings(**options))
    return apply_cutoffs(score_files, cutoffs)["bucket"].to_pylist()


def test_lowest_perplexity_is_high(tmp_path: Path):
    assert names([write_scores(tmp_path / "s.parquet", [3.0, 1.0, 2.0])]) == ["low", "high", "mid"]


def test_unscored_stays_out_of_the_quantiles(tmp_path: Path):
    file = write_scores(tmp_path / "s.parquet", [None, 3.0, 1.0, 2.0, None])
    assert names([file]) == ["unscored", "low", "high", "mid", "unscored"]


def test_each_domain_has_its_own_cutoffs(tmp_path: Path):
    files = [write_scores(tmp_path / "a.parquet", [1, 2, 3], "a"), write_scores(tmp_path / "b.parquet", [7, 8, 9], "b")]
    assert names(files) == ["high", "mid", "low"] * 2
    assert names(files, by=["language", "source"]) == ["high", "high", "mid", "mid", "low", "low"]


def test_cutoffs_of_one_set_of_scores_are_applied_to_another(tmp_path: Path):
    buckets([write_scores(tmp_path / "a.parquet", [1, 2, 3])], tmp_path / "fitted", BucketSettings())
    other = write_scores(tmp_path / "b.parquet", [0.5, 0.6, 0.7, 2.5])
    outcome = buckets([other], tmp_path / "applied", BucketSettings(), tmp_path / "fitted" / "cutoffs.json")
    assert outcome.metrics["buckets"] == {"high": 3, "low": 1}
    assert outcome.metrics["drift"] == {"web": pytest.approx(3 / 4 - 1 / 3, abs=1e-4)}


def test_a_sample_says_how_far_its_quantiles_may_be_off(tmp_path: Path):
    file = write_scores(tmp_path / "s.parquet", np.random.default_rng(0).permutation(10_000).astype(float).tolist())
    (group,) = fit_buckets([file], BucketSettings(sample=1000)).groups
    assert group.high_at_most is not None
    assert group.rank_error == pytest.approx(0.0515, abs=1e-4)  # sqrt(ln 200 / 2000)
    assert abs(group.high_at_most / 10_000 - 1 / 3) < group.rank_error
    assert fit_buckets([file], BucketSettings()).groups[0].rank_error == 0


def test_only_the_tail_is_dropped(tmp_path: Path):
    file = write_scores(tmp_path / "s.parquet", [float(n) for n in range(10)])
    assert names([file], drop_above_quantile=0.9) == ["high"] * 4 + ["mid"] * 3 + ["low"] * 2 + ["dropped"]


def test_group_without_scores_is_unscored(tmp_path: Path):
    assert names([write_scores(tmp_path / "s.parquet", [None, None])]) == ["unscored", "unscored"]


@given(st.lists(st.floats(0.1, 20), min_size=1, max_size=60))
@settings(max_examples=30, deadline=None)
def test_better_buckets_never_hold_worse_documents(tmp_path_factory: pytest.TempPathFactory, values: list[float]):
    file = write_scores(tmp_path_factory.mktemp("s") / "s.parquet", values)
    rank = {"high": 0, "mid": 1, "low": 2}
    ranks = [rank[name] for _, name in sorted(zip(values, names([file]), strict=True))]
    assert ranks == sorted(ranks)
    assert ranks.count(0) >= len(values) / 3


def test_sample_is_drawn_by_id_not_by_order(tmp_path: Path):
    values = [float(n * 7919 % 1000) for n in range(1000)]
    whole = fit_buckets([write_scores(tmp_path / "s.parquet", values)], BucketSettings(sample=100))
    parts = [write_scores(tmp_path / f"{k}.parquet", values[k : k + 250], start=k) for k in (750, 0, 500, 250)]
    assert fit_buckets(parts, BucketSettings(sample=100)) == whole
    assert fit_buckets(parts, BucketSettings(sample=100, seed=1)) != whole
    assert whole.groups[0].high_at_most == pytest.approx(333, abs=150)  # 3 sigma of a quantile of 100


def test_cutoffs_file_says_what_high_means(tmp_path: Path):
    file = write_scores(tmp_path / "s.parquet", [3.0, 1.0, 2.0])
    outcome = buckets([file], tmp_path / "w", BucketSettings())
    assert "high = LOWEST perplexity" in (tmp_path / "w" / "cutoffs.json").read_text()
    assert outcome.metrics["buckets"] == {"high": 1, "low": 1, "mid": 1}
    assert read_cutoffs(tmp_path / "w" / "cutoffs.json").groups[0].high_at_most == 1.0


def test_another_policy_is_refused(tmp_path: Path):
    file = write_scores(tmp_path / "s.parquet", [1.0, 2.0], policy="p")
    cutoffs = fit_buckets([file], BucketSettings())
    with pytest.raises(DataError, match="fitted under policy p, these scores have q"):
        apply_cutoffs([write_scores(tmp_path / "q.parquet", [1.0], policy="q")], cutoffs)


def test_mixed_policies_are_refused(tmp_path: Path):
    files = [write_scores(tmp_path / f"{policy}.parquet", [1.0], policy=policy) for policy in "pq"]
    with pytest.raises(DataError, match="different policies"):
        fit_buckets(files, BucketSettings())


def test_files_that_are_no_scores_are_refused(tmp_path: Path):
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="not a file of scores"):
        fit_buckets([tmp_path / "x.parquet"], BucketSettings())


def test_group_unknown_to_the_cutoffs_is_refused(tmp_path: Path):
    cutoffs = fit_buckets([write_scores(tmp_path / "a.parquet", [1.0], "a")], BucketSettings())
    with pytest.raises(DataError, match="no cut-offs for domain=b"):
        apply_cutoffs([write_scores(tmp_path / "b.parquet", [1.0], "b")], cutoffs)


def test_quantiles_must_rise():
    with pytest.raises(ValidationError, match="must rise"):
        BucketSettings(quantiles=(0.7, 0.3))


def prepare(tmp_path: Path, ids: list[list[str]], nats: list[list[float | None]]) -> tuple[list[Path], list[Path]]:
    documents, scores = [], []
    for number, (names_, values) in enumerate(zip(ids, nats, strict=True)):
        path = tmp_path / "in" / "kept" / "web" / f"part-{number:05d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"id": names_, "text": [f"text of {name}" for name in names_]}), path)
        file = write_scores(tmp_path / "scores" / f"{number}.parquet", values)
        table = pq.read_table(file)
        pq.write_table(table.set_column(0, SCORES_SCHEMA.field("id"), pa.array(names_)), file)
        documents.append(path)
        scores.append(file)
    return documents, scores


def test_assign_writes_by_bucket_and_fills_scores(tmp_path: Path):
    documents, scores = prepare(tmp_path, [["a", "b", "c"], ["d", "e"]], [[3.0, 1.0, 2.0], [1.5, None]])
    buckets(scores, tmp_path / "b", BucketSettings())
    for work, workers in ((tmp_path / "one", 1), (tmp_path / "two", 2)):
        outcome = assign(documents, tmp_path / "b" / "buckets.parquet", scores, work, workers)
        files = {p.relative_to(work).as_posix(): pq.read_table(p).to_pylist() for p in sorted(work.rglob("*.parquet"))}
        assert {name: [row["id"] for row in found] for name, found in files.items()} == {
            "kept/web/high/part-00000.parquet": ["b"],
            "kept/web/high/part-00001.parquet": ["d"],
            "kept/web/low/part-00000.parquet": ["a"],
            "kept/web/mid/part-00000.parquet": ["c"],
            "kept/web/unscored/part-00001.parquet": ["e"],
        }
        row = files["kept/web/high/part-00000.parquet"][0]
        assert (row["domain"], row["text"], outcome.counts.kept) == ("web/high", "text of b", 5)
        assert (row["scores"]["sum_nll_nats"], row["scores"]["scored_tokens"], row["scores"]["scored_bytes"]) == (
            10,
            10,
            40,
        )


def test_assign_drops_the_tail_with_a_reason(tmp_path: Path):
    documents, scores = prepare(tmp_path, [["a", "b", "c", "d"]], [[1.0, 2.0, 3.0, 4.0]])
    buckets(scores, tmp_path / "b", BucketSettings(drop_above_quantile=0.75))
    outcome = assign(documents, tmp_path / "b" / "buckets.parquet", scores, tmp_path / "w")
    assert outcome.counts.dropped == {"perplexity_above_cutoff": 1}
    assert pq.read_table(tmp_path / "w" / "dropped" / "web" / "part-00000.parquet")["id"].to_pylist() == ["d"]


def test_assign_rejects_ids_that_occur_twice(tmp_path: Path):
    documents, scores = prepare(tmp_path, [["a", "b"], ["a"]], [[1.0, 2.0], [3.0]])
    buckets(scores, tmp_path / "b", BucketSettings())
    outcome = assign(documents, tmp_path / "b" / "buckets.parquet", scores, tmp_path / "w")
    assert (outcome.counts.docs_in, outcome.counts.rejected) == (3, {"duplicate_id": 2})


def test_assign_refuses_documents_that_were_not_scored(tmp_path: Path):
    documents, scores = prepare(tmp_path, [["a"]], [[1.0]])
    buckets(scores, tmp_path / "b", BucketSettings())
    pq.write_table(pa.table({"id": ["z"], "text": ["t"]}), documents[0])
    with pytest.raises(DataError, match="'z' has no score"):
        assign(documents, tmp_path / "b" / "buckets.parquet", scores, tmp_path / "w")


def test_cutoffs_round_trip(tmp_path: Path):
    cutoffs = fit_buckets(
        [write_scores(tmp_path / "s.parquet", [3.0, 1.0, None])], BucketSettings(drop_above_quantile=0.9)
    )
    assert Cutoffs.model_validate_json(cutoffs.model_dump_json()) == cutoffs
