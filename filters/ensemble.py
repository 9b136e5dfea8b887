"""Many scorers, one judgement: each ranks the documents into 20 equal buckets, and a document's bucket is its best.

The one choice that matters: buckets are equal in tokens, not in documents (a cut-off is the smallest score at or below
which a share of all tokens lies), and fitting is apart from applying: the cut-offs are a file with the identity of
every scorer and a hash of itself, and refuse scores of any other. Source: Nemotron-CC (arXiv:2412.02595), section 2.2.
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from pydantic import BaseModel, ConfigDict, Field

from filters.calibration import Method, apply_map, calibrate
from filters.ensemble_scores import Column, gather, read_table_of
from pipelines.block import ROW_GROUP_ROWS
from pipelines.errors import DataError
from pipelines.files import write_atomically
from pipelines.manifest import Counts, digest_of
from pipelines.recipe import Section
from pipelines.store import Outcome

ARTIFACT, BUCKETS = "ensemble.json", "buckets.parquet"
CONVENTION = (
    "0 is the worst bucket; a score equal to a cut-off belongs to the lower bucket; the ensemble is the maximum"
)
UNSCORED = "ensemble.no_score"


class EnsembleSettings(Section):
    """How scores become buckets.

    Attributes:
        columns: which columns are scores; empty: every number in files with few of them.
        lower_is_better: columns whose lower values are better; perplexities are known to be.
        weight: column that tells the size of a document; null: the best that is there (tokens before bytes), else all
            weigh alike.
        buckets: how many.
        calibration: how probabilities are fitted where labels are given.
    """

    columns: list[str] = Field(default_factory=list)
    lower_is_better: list[str] = Field(default_factory=list)
    weight: str | None = None
    buckets: int = Field(default=20, ge=2, le=1000)
    calibration: Method = "isotonic"


class ScorerCutoffs(BaseModel):
    """One scorer: who it is, and where its buckets begin."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    identity: str
    higher_is_better: bool
    documents: int
    weight: str | None
    cutoffs: tuple[float, ...]
    calibration: dict[str, Any] | None = None


class Ensemble(BaseModel):
    """The content of `ensemble.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: int = 1
    convention: str = CONVENTION
    buckets: int
    scorers: tuple[ScorerCutoffs, ...]

    def digest(self) -> str:
        """Hash of everything in it."""
        return digest_of(self.model_dump(mode="json"))


def weighted_cutoffs(scores_N: np.ndarray, weights_N: np.ndarray, buckets: int) -> np.ndarray:
    """Scores that cut the weight into equal parts.

    Args:
        scores_N: float64 (N,), finite, higher is better.
        weights_N: float64 (N,), at least 0.
        buckets: how many parts.

    Returns:
        float64 (buckets - 1,), rising: the k-th is the smallest score at or below which k / buckets of the weight lies.
    """
    order = np.argsort(scores_N, kind="stable")
    total_N = np.cumsum(weights_N[order])
    wanted = np.arange(1, buckets) * total_N[-1] / buckets
    # a sum of tokens below 2**53 is exact; the product with k / buckets may be off by one unit in the last place
    place = np.searchsorted(total_N, wanted * (1 - 1e-12), side="left")
    return scores_N[order][place]


def _oriented(column: Column) -> np.ndarray:
    values_N = column.scores["score"].to_numpy()
    return values_N if column.higher_is_better else -values_N


def fit_scorer(column: Column, settings: EnsembleSettings, labels: pl.DataFrame | None) -> ScorerCutoffs:
    """Find the cut-offs of one scorer, and its calibration where there are labels (id, label).

    Raises:
        DataError: there is no finite score, or all are equal.
    """
    values_N = _oriented(column)
    finite_N = np.isfinite(values_N)
    who = f"{column.name} in {column.origin}"
    if not finite_N.any():
        raise DataError(f"{who}: none of {len(values_N)} documents has a score (empty, null or NaN)")
    if len(values_N) > 1 and len(np.unique(values_N[finite_N])) == 1:
        raise DataError(f"{who}: every document has the score {values_N[finite_N][0]:g}; nothing can be ranked by it")
    weights_N = column.scores["size"].to_numpy() if column.weight else np.ones(len(values_N))
    weights_N = np.where(np.isfinite(weights_N), np.maximum(weights_N, 0), 0.0)
    if not weights_N[finite_N].sum():
        raise DataError(
            f"{who}: the column {column.weight!r} gives no document a size; --set weight=NAME names another"
        )
    cutoffs = weighted_cutoffs(values_N[finite_N], weights_N[finite_N], settings.buckets)
    calibration = None
    if labels is not None:
        known = column.scores.with_columns(score=pl.Series(values_N)).join(labels, on="id", how="inner")
        known = known.filter(pl.col("score").is_finite())
        keys_N = np.array([xxhash.xxh64_intdigest(name.encode()) for name in known["id"]], np.uint64)
        calibration = calibrate(known["label"].to_numpy() == 1, known["score"].to_numpy(), keys_N, settings.calibration)
    return ScorerCutoffs(
        name=column.name, identity=column.identity, higher_is_better=column.higher_is_better,
        documents=int(finite_N.sum()), weight=column.weight, cutoffs=tuple(cutoffs.tolist()), calibration=calibration,
    )  # fmt: skip


def apply_ensemble(columns: Sequence[Column], fitted: Ensemble) -> pl.DataFrame:
    """Buckets of documents under fitted cut-offs.

    Args:
        columns: of `gather`; the same scorers as in the fit.
        fitted: the cut-offs.

    Returns:
        id, bucket (int32; null where no scorer has a score), and for each scorer `bucket:<name>` and, where it is
        calibrated, `probability:<name>`; in the order in which documents occur.

    Raises:
        DataError: a scorer is not one of the fit, or one of the fit is missing.
    """
    known = {(scorer.name, scorer.identity): scorer for scorer in fitted.scorers}
    given = {(column.name, column.identity): column for column in columns}
    for name, identity in [*(given.keys() - known.keys()), *(known.keys() - given.keys())]:
        fits = ", ".join(f"{s.name} ({s.identity or 'no identity'})" for s in fitted.scorers)
        what = "are not of this fit" if (name, identity) in given else "are missing"
        raise DataError(f"scores of {name} ({identity or 'no identity'}) {what}; it was made for {fits}: fit again")
    table = pl.concat([column.scores.select("id") for column in columns]).unique(maintain_order=True)
    names = []
    for key, scorer in known.items():
        column = given[key]
        if column.higher_is_better != scorer.higher_is_better:
            raise DataError(f"{scorer.name}: the fit takes the other direction for the better one; see lower_is_better")
        values_N = _oriented(column)
        bucket_N = np.searchsorted(np.array(scorer.cutoffs), values_N, side="left")
        bucket = pl.Series(bucket_N, dtype=pl.Int32).set(pl.Series(~np.isfinite(values_N)), None)
        more = {f"bucket:{scorer.name}": bucket}
        if scorer.calibration is not None:
            more[f"probability:{scorer.name}"] = pl.Series(apply_map(scorer.calibration, values_N), nan_to_null=True)
        names.append(f"bucket:{scorer.name}")
        table = table.join(column.scores.select("id").with_columns(**more), on="id", how="left", maintain_order="left")
    return table.select("id", pl.max_horizontal(names).alias("bucket"), pl.exclude("id"))


def ensemble(
    inputs: Sequence[str], work: Path, settings: EnsembleSettings, labels: Path | None = None,
    fitted: Path | None = None,
) -> Outcome:  # fmt: skip
    """Rank documents by every scorer and take the best rank; with `fitted`, by cut-offs of an earlier fit.

    Args:
        inputs: files or folders of scores.
        work: the step's folder; gets `ensemble.json` (when it fits) and `buckets.parquet` (id, bucket, and every
            scorer's bucket and probability).
        settings: how.
        labels: JSON lines or Parquet with `id` and `label` (1 good, 0 bad); calibrates every scorer.
        fitted: `ensemble.json` of an earlier fit.

    Returns:
        counts, documents by bucket, and each scorer's share of missing scores and, with labels, quality.

    Raises:
        DataError: scores are missing, cannot be ranked, or are not those of the fit.
    """
    columns = _distinct(gather(inputs, settings.columns, settings.lower_is_better, settings.weight))
    if fitted is None:
        known = _read_labels(labels) if labels else None
        model = Ensemble(buckets=settings.buckets, scorers=tuple(fit_scorer(c, settings, known) for c in columns))
        write_atomically(work / ARTIFACT, (json.dumps(_sealed(model), indent=1) + "\n").encode())
    else:
        model = read_ensemble(fitted)
    table = apply_ensemble(columns, model)
    temporary = work / f".{BUCKETS}.tmp"
    pq.write_table(
        table.to_arrow().cast(_plain_schema(table)), temporary, compression="zstd", row_group_size=ROW_GROUP_ROWS
    )
    temporary.replace(work / BUCKETS)
    found = Counter(table["bucket"].to_list())
    unscored = found.pop(None, 0)
    metrics = {
        "fit": model.digest(),
        "buckets": {str(bucket): found[bucket] for bucket in sorted(found)},
        "scorers": {scorer.name: _facts(scorer, table) for scorer in model.scorers},
    }
    rejected = {UNSCORED: unscored} if unscored else {}
    return Outcome(Counts(docs_in=table.height, kept=table.height - unscored, rejected=rejected), metrics)


def _facts(scorer: ScorerCutoffs, table: pl.DataFrame) -> dict[str, Any]:
    facts: dict[str, Any] = {"identity": scorer.identity, "weight": scorer.weight or "documents",
                             "missing": table[f"bucket:{scorer.name}"].null_count()}  # fmt: skip
    if scorer.calibration is not None:
        facts |= {name: scorer.calibration[name] for name in ("auc", "auc_lo95", "auc_hi95")}
        facts["expected_error"] = scorer.calibration["reliability"]["expected_error"]
    return facts


def _plain_schema(table: pl.DataFrame) -> pa.Schema:
    kinds = {pl.String: pa.string(), pl.Int32: pa.int32(), pl.Float64: pa.float64()}
    return pa.schema([(name, kinds[kind.base_type()]) for name, kind in table.schema.items()])


def _distinct(columns: list[Column]) -> list[Column]:
    """The same columns, those of one name told apart by their identity."""
    names = Counter(column.name for column in columns)
    return [
        column if names[column.name] == 1
        else Column(f"{column.name}@{column.identity.rpartition(':')[2][:8]}", column.identity, column.higher_is_better,
                    column.scores, column.weight, column.origin)
        for column in columns
    ]  # fmt: skip


def _read_labels(path: Path) -> pl.DataFrame:
    table = read_table_of(path)
    for name in ("id", "label"):
        if name not in table.column_names:
            raise DataError(f"{path}: labels need columns 'id' and 'label'; found: {', '.join(table.column_names)}")
    labels = pl.DataFrame({"id": table["id"].cast(pa.string()), "label": table["label"].cast(pa.int64())})
    if (wrong := labels.filter(~pl.col("label").is_in([0, 1]))).height:
        raise DataError(f"{path}: document {wrong['id'][0]!r} has the label {wrong['label'][0]}, expected 0 or 1")
    return labels.unique("id", keep="first", maintain_order=True)


def _sealed(model: Ensemble) -> dict[str, Any]:
    return {**model.model_dump(mode="json"), "digest": model.digest()}


def read_ensemble(path: Path) -> Ensemble:
    """Read `ensemble.json`.

    Raises:
        DataError: it is missing, not one, or not as it was written.
    """
    try:
        content = json.loads((path / ARTIFACT if path.is_dir() else path).read_bytes())
        digest = content.pop("digest")
        model = Ensemble.model_validate(content)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise DataError(
            f"{path} holds no cut-offs: {str(error).splitlines()[0]}; `loam quality ensemble` writes them"
        ) from None
    if model.digest() != digest:
        raise DataError(
            f"{path}: its digest is {digest}, its content gives {model.digest()}; it was changed: fit again"
        )
    return model
