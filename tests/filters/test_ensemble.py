import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from filters.ensemble import ARTIFACT, BUCKETS, EnsembleSettings, ensemble, read_ensemble, weighted_cutoffs
from filters.quality import SCORER_KEY
from filters.score_table import POLICY_KEY
from pipelines.errors import DataError


def write(path, identity=None, **columns):
    table = pa.table(columns)
    if identity is not None:
        at = table.schema.get_field_index("quality.score")
        field = table.schema.field(at).with_metadata({SCORER_KEY: identity.encode()})
        table = table.set_column(at, field, table.column(at))
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return str(path)


def run(inputs, work, fitted=None, labels=None, **settings):
    work.mkdir(parents=True, exist_ok=True)
    outcome = ensemble(inputs, work, EnsembleSettings(**settings), labels, fitted)
    return outcome, pq.read_table(work / BUCKETS)


IDS = [f"d{n:02d}" for n in range(40)]


def test_twenty_equal_buckets_and_their_maximum(tmp_path):
    rising, falling = list(np.arange(40.0)), list(np.arange(40.0)[::-1])
    inputs = [write(tmp_path / "a.parquet", id=IDS, good=rising), write(tmp_path / "b.parquet", id=IDS, fine=falling)]
    outcome, table = run(inputs, tmp_path / "out")
    assert table["bucket:good"].to_pylist() == [n // 2 for n in range(40)]
    assert table["bucket"].to_pylist() == [max(n // 2, 19 - n // 2) for n in range(40)]
    assert outcome.counts.kept == 40
    assert outcome.metrics["buckets"] == {str(n): 4 for n in range(10, 20)}


def test_buckets_are_equal_in_tokens(tmp_path):
    given = write(tmp_path / "a.parquet", id=["a", "b", "c", "d"], score=[1.0, 2.0, 3.0, 4.0], tokens=[50, 25, 15, 10])
    _, table = run([given], tmp_path / "out", buckets=2)
    assert table["bucket"].to_pylist() == [0, 1, 1, 1]  # the first holds half of all tokens
    _, table = run([given], tmp_path / "plain", buckets=4)
    assert table["bucket"].to_pylist() == [0, 2, 3, 3]


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 9)), min_size=1, max_size=60), st.integers(2, 20))
def test_cutoffs_against_the_definition(pairs, buckets):
    scores, weights = (np.array(column, float) for column in zip(*pairs, strict=True))
    for k, cut in enumerate(weighted_cutoffs(scores, weights, buckets), start=1):
        enough = [s for s in sorted(set(scores)) if weights[scores <= s].sum() * buckets >= k * weights.sum()]
        assert cut == enough[0]


def test_perplexity_is_better_when_low_and_weighed_by_its_tokens(tmp_path):
    table = pa.table({"id": ["a", "b", "c"], "sum_nll_nats": [10.0, 40.0, None], "scored_tokens": [10, 10, 0],
                      "bytes": [40, 40, 0]}).replace_schema_metadata({POLICY_KEY: b"p1"})  # fmt: skip
    folder = tmp_path / "perplexity" / "scores"
    folder.mkdir(parents=True)
    pq.write_table(table, folder / "part.parquet")
    outcome, table = run([str(tmp_path / "perplexity")], tmp_path / "out", buckets=2)
    assert table["bucket"].to_pylist() == [1, 0, None]
    assert outcome.counts.rejected == {"ensemble.no_score": 1}
    assert outcome.metrics["scorers"]["nats_per_token"] == {
        "identity": "policy:p1",
        "weight": "scored_tokens",
        "missing": 1,
    }


def test_a_document_without_one_score_is_judged_by_the_others(tmp_path):
    first = write(tmp_path / "a.parquet", id=IDS, good=[float("nan"), *np.arange(39.0)])
    second = write(tmp_path / "b.parquet", id=IDS[:20], fine=list(np.arange(20.0)))
    _, table = run([first, second], tmp_path / "out")
    assert table["bucket:good"].to_pylist()[0] is None
    assert table["bucket"].to_pylist()[0] == 0
    assert table["bucket:fine"].to_pylist()[20:] == [None] * 20


def test_fitted_cutoffs_refuse_other_scorers(tmp_path):
    fit = write(tmp_path / "a.parquet", "model-1", id=IDS, **{"quality.score": list(np.arange(40.0))})
    run([fit], tmp_path / "fit")
    new = write(tmp_path / "n.parquet", "model-1", id=["x", "y", "z"], **{"quality.score": [-5.0, 20.0, 99.0]})
    _, table = run([new], tmp_path / "new", fitted=tmp_path / "fit" / ARTIFACT)
    assert table["bucket"].to_pylist() == [0, 10, 19]
    assert not (tmp_path / "new" / ARTIFACT).exists()
    other = write(tmp_path / "o.parquet", "model-2", id=["x"], **{"quality.score": [1.0]})
    with pytest.raises(DataError, match=r"scores of quality.score \(model-2\) are not of this fit"):
        run([other], tmp_path / "other", fitted=tmp_path / "fit" / ARTIFACT)
    with pytest.raises(DataError, match="are not of this fit"):
        run([new, other], tmp_path / "both", fitted=tmp_path / "fit")


def test_two_models_of_one_column_are_two_scorers(tmp_path):
    inputs = [write(tmp_path / f"{n}.parquet", f"fasttext:{n}", id=IDS, **{"quality.score": list(np.arange(40.0) * n)})
              for n in (1, -1)]  # fmt: skip
    outcome, table = run(inputs, tmp_path / "out")
    assert set(outcome.metrics["scorers"]) == {"quality.score@1", "quality.score@-1"}
    _, again = run(inputs[::-1], tmp_path / "again", fitted=tmp_path / "out" / ARTIFACT)
    assert again["bucket"].to_pylist() == table["bucket"].to_pylist()


def test_files_of_one_column_are_parts_or_scorers(tmp_path):
    parts = [write(tmp_path / "p/1.parquet", id=IDS[:20], score=list(np.arange(20.0))),
             write(tmp_path / "p/2.parquet", id=IDS[20:], score=list(np.arange(20.0, 40)))]  # fmt: skip
    assert list(run(parts, tmp_path / "parts")[0].metrics["scorers"]) == ["score"]
    assert run([str(tmp_path / "p")], tmp_path / "folder")[1].equals(run(parts, tmp_path / "again")[1])
    other = write(tmp_path / "other.parquet", id=IDS[:20], score=list(np.arange(20.0)))
    assert list(run([parts[0], other], tmp_path / "two")[0].metrics["scorers"]) == ["score@1", "score@other"]


def test_labels_calibrate_every_scorer(tmp_path):
    rng = np.random.default_rng(0)
    ids = [f"d{n}" for n in range(600)]
    score = rng.random(600)
    labels = tmp_path / "labels.jsonl"
    good = rng.random(600) < score
    labels.write_text("".join(json.dumps({"id": i, "label": int(g)}) + "\n" for i, g in zip(ids, good, strict=True)))
    given = write(tmp_path / "a.parquet", id=ids, score=list(score))
    outcome, table = run([given], tmp_path / "out", labels=labels)
    assert outcome.metrics["scorers"]["score"]["auc"] > 0.7
    assert np.abs(np.array(table["probability:score"]) - score).mean() < 0.1
    fitted = read_ensemble(tmp_path / "out").scorers[0].calibration
    assert sum(row["documents"] for row in fitted["reliability"]["table"]) == 600
    _, again = run([given], tmp_path / "again", fitted=tmp_path / "out")
    assert again.equals(table)


def test_an_artifact_that_was_changed_is_refused(tmp_path):
    run([write(tmp_path / "a.parquet", id=IDS, score=list(np.arange(40.0)))], tmp_path / "out")
    path = tmp_path / "out" / ARTIFACT
    content = json.loads(path.read_text())
    content["scorers"][0]["cutoffs"][0] += 1
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="it was changed: fit again"):
        read_ensemble(path)
    path.write_text("{}")
    with pytest.raises(DataError, match="holds no cut-offs"):
        read_ensemble(path)


@pytest.mark.parametrize(
    ("columns", "match"),
    [
        ({"id": ["a", "b"], "score": [float("nan")] * 2}, "none of 2 documents has a score"),
        ({"id": ["a", "b"], "score": [1.0, 1.0]}, "every document has the score 1"),
        ({"id": pa.array([], pa.string()), "score": pa.array([], pa.float64())}, "none of 0 documents"),
        ({"id": ["a", "a"], "score": [1.0, 2.0]}, "document 'a' has two scores"),
        ({"name": ["a"], "score": [1.0]}, "has no column 'id'"),
        ({"id": ["a"], "text": ["b"]}, "no column of scores"),
        ({"id": ["a", "b"], "score": [1.0, 2.0], "tokens": [0, 0]}, "gives no document a size"),
        ({"id": ["a"], **{f"rule{n}": [1.0] for n in range(9)}}, "say which are scores"),
    ],
)
def test_what_cannot_be_ranked_is_explained(tmp_path, columns, match):
    with pytest.raises(DataError, match=match):
        run([write(tmp_path / "a.parquet", **columns)], tmp_path / "out")
