"""Perplexity buckets: documents cut into high, mid and low by quantiles of their group.

"high" is the LOWEST perplexity, as in OpenSeek's corpus; every cut-offs file says so itself. The value cut is nats per
token, the logarithm of the perplexity: a group shares one tokenizer and mostly one language, so that nats per byte
would rank nearly alike. Fitting and applying are separate, and cut-offs refuse the scores of another policy.
"""

import contextlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from pydantic import BaseModel, ConfigDict, Field, field_validator

from filters.score_table import POLICY_KEY
from pipelines.block import ROW_GROUP_ROWS
from pipelines.document import SCHEMA, conform, with_column, with_scores
from pipelines.errors import DataError
from pipelines.execute import count_documents, parts_of
from pipelines.files import write_atomically
from pipelines.manifest import Counts
from pipelines.recipe import Section
from pipelines.store import Outcome

CONVENTION = "high = LOWEST perplexity; a value equal to a cut-off belongs to the better bucket"
HIGH, MID, LOW, UNSCORED, DROPPED = "high", "mid", "low", "unscored", "dropped"
BUCKETS_SCHEMA = pa.schema([("id", pa.string()), ("bucket", pa.string()), ("value", pa.float64())])
POLICY_FILE = "policy.json"
MEASURES = {"nats_per_token": "scored_tokens", "nats_per_byte": "bytes"}


class BucketSettings(Section):
    """How cut-offs are fitted.

    Attributes:
        by: what makes a group; quantiles are taken inside each.
        quantiles: upper ends of high and of mid.
        measure: what is cut; use `nats_per_byte` where a group mixes languages.
        sample: scored documents per group that the quantiles are fitted on, drawn by hash of the id.
        seed: of that draw.
        drop_above_quantile: documents above it are dropped instead of called low; None drops nothing.
    """

    by: tuple[Literal["domain", "language", "source"], ...] = ("domain",)
    quantiles: tuple[float, float] = (1 / 3, 2 / 3)
    measure: Literal["nats_per_token", "nats_per_byte"] = "nats_per_token"
    sample: int = Field(default=100_000, ge=1)
    seed: int = 0
    drop_above_quantile: float | None = Field(default=None, gt=0, lt=1)

    @field_validator("quantiles")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] < value[1] < 1:
            raise ValueError(f"quantiles must rise between 0 and 1; found {value}")
        return value


class GroupCutoffs(BaseModel):
    """Cut-offs of one group; null where no document of it was scored.

    Attributes:
        group: values of the columns that make it.
        documents: of the group.
        scored: of them.
        sampled: of these, what the quantiles were fitted on.
        rank_error: with 99% confidence, no cut-off is farther than this share of the group from the quantile asked for
            (Dvoretzky-Kiefer-Wolfowitz with Massart's constant); 0 when all scored documents were sampled.
        high_at_most: values up to it are high.
        mid_at_most: values above that and up to this are mid.
        drop_above: values above it are dropped.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    group: dict[str, str]
    documents: int
    scored: int
    sampled: int
    rank_error: float
    high_at_most: float | None
    mid_at_most: float | None
    drop_above: float | None


class Cutoffs(BaseModel):
    """Fitted cut-offs: the content of `cutoffs.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: int = 1
    convention: str = CONVENTION
    policy: str
    measure: Literal["nats_per_token", "nats_per_byte"]
    by: tuple[str, ...]
    quantiles: tuple[float, float]
    groups: tuple[GroupCutoffs, ...]


def buckets(files: Sequence[Path], work: Path, settings: BucketSettings, cutoffs: Path | None = None) -> Outcome:
    """Name each document's bucket; writes `cutoffs.json` and `buckets.parquet`, and keeps the scores' `policy.json`.

    Args:
        files: of `loam perplexity`.
        work: the step's working folder.
        settings: how cut-offs are fitted on these scores.
        cutoffs: a `cutoffs.json` of other scores under the same policy, applied instead of fitting.

    Returns:
        Counts, the buckets' sizes, and `drift`: for each group the largest distance between a bucket's share here and
        the share that its quantiles stand for.

    Raises:
        DataError: the files are not scores, were made under different policies, or under another than the cut-offs.
    """
    fitted = read_cutoffs(cutoffs) if cutoffs else fit_buckets(files, settings)
    write_atomically(work / "cutoffs.json", (fitted.model_dump_json(indent=1) + "\n").encode())
    policy = _policy_beside(cutoffs or files[0])
    table, drift = _applied(files, fitted, policy)
    if policy:  # so that scores of another policy can be told what differs
        write_atomically(work / POLICY_FILE, (json.dumps(policy, indent=1, sort_keys=True) + "\n").encode())
    _write(table, work / "buckets.parquet")
    found = Counter(table["bucket"].to_pylist())
    metrics = {"buckets": dict(sorted(found.items())), "policy": fitted.policy, "drift": drift}
    return Outcome(Counts(docs_in=table.num_rows, kept=table.num_rows), metrics)


def fit_buckets(score_files: Sequence[Path], settings: BucketSettings) -> Cutoffs:
    """Find the cut-offs of every group.

    Raises:
        DataError: the files are not scores, or were made under different policies.
    """
    policy = policy_in(score_files)
    scores = pl.concat([_read_scores(file, settings.measure, settings.by) for file in score_files])
    groups = [
        _fit_group(dict(zip(settings.by, map(str, key), strict=True)), group, settings)
        for key, group in sorted(scores.group_by(list(settings.by), maintain_order=True), key=lambda pair: pair[0])
    ]
    return Cutoffs(
        policy=policy, measure=settings.measure, by=settings.by, quantiles=settings.quantiles,
        groups=tuple(groups),
    )  # fmt: skip


def _fit_group(group: dict[str, str], scores: pl.DataFrame, settings: BucketSettings) -> GroupCutoffs:
    scored = scores.drop_nulls("value")
    sampled = scored
    if scored.height > settings.sample:
        keys = [xxhash.xxh64_intdigest(name.encode(), seed=settings.seed) for name in scored["id"]]
        sampled = scored[np.argsort(np.array(keys, dtype=np.uint64), kind="stable")[: settings.sample]]
    values = sampled["value"].to_numpy()
    cuts = [*settings.quantiles, settings.drop_above_quantile]
    # inverted_cdf: a cut-off is a value that occurs, so that no interpolation rounds differently elsewhere
    high, mid, drop = (
        float(np.quantile(values, cut, method="inverted_cdf")) if cut is not None and len(values) else None
        for cut in cuts
    )
    return GroupCutoffs(
        group=group, documents=scores.height, scored=scored.height, sampled=sampled.height,
        rank_error=_rank_error(sampled.height) if sampled.height < scored.height else 0.0,
        high_at_most=high, mid_at_most=mid, drop_above=drop,
    )  # fmt: skip


def _rank_error(sampled: int) -> float:
    """The distance that an empirical distribution of this many draws keeps to the true one, with 99% confidence."""
    return math.sqrt(math.log(2 / 0.01) / (2 * sampled))


def apply_cutoffs(score_files: Sequence[Path], cutoffs: Cutoffs) -> pa.Table:
    """Name the bucket of every scored document.

    Args:
        score_files: as `score_perplexity` writes them.
        cutoffs: of `fit_buckets`.

    Returns:
        id, bucket (`high`, `mid`, `low`, `dropped` or `unscored`), value (the measure; null when unscored), in the
        order of the files.

    Raises:
        DataError: the scores are of another policy, or of a group that has no cut-offs.
    """
    return _applied(score_files, cutoffs)[0]


def _policy_beside(file: Path) -> dict[str, Any]:
    """What `policy.json` says in the nearest folder above a file; empty where there is none."""
    for folder in list(file.absolute().parents)[:4]:
        with contextlib.suppress(OSError, ValueError):
            return dict(json.loads((folder / POLICY_FILE).read_bytes()))
    return {}


def _differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """In words, where two policies differ; nothing where one is not at hand."""
    keys = sorted(key for key in {*one, *other} if one.get(key) != other.get(key)) if one and other else []
    return "".join(f"; {key}: {one.get(key)} there, {other.get(key)} here" for key in keys)


def _applied(
    score_files: Sequence[Path], cutoffs: Cutoffs, fitted_by: Mapping[str, Any] | None = None
) -> tuple[pa.Table, dict[str, float]]:
    """`apply_cutoffs`, and the drift of each group."""
    if (found := policy_in(score_files)) != cutoffs.policy:
        differs = _differences(fitted_by or {}, _policy_beside(score_files[0]))
        raise DataError(
            f"cut-offs were fitted under policy {cutoffs.policy}, these scores have {found}{differs}; fit them again"
        )
    columns = ("high_at_most", "mid_at_most", "drop_above", "documents")
    known = pl.DataFrame(
        [{**entry.group, **{name: getattr(entry, name) for name in columns}} for entry in cutoffs.groups],
        schema={
            **dict.fromkeys(cutoffs.by, pl.String),
            **dict.fromkeys(columns[:3], pl.Float64),
            "documents": pl.Int64,
        },
    )
    named = pl.concat(
        [_name_buckets(_read_scores(file, cutoffs.measure, cutoffs.by), known, cutoffs.by) for file in score_files]
    )
    return named.select(BUCKETS_SCHEMA.names).to_arrow().cast(BUCKETS_SCHEMA), _drift(named, cutoffs)


def _drift(named: pl.DataFrame, cutoffs: Cutoffs) -> dict[str, float]:
    """Per group, how far the buckets' shares of the scored documents are from those that the quantiles stand for."""
    high, mid = cutoffs.quantiles
    expected = {HIGH: high, MID: mid - high, LOW: 1 - mid}
    found = {}
    for key, group in sorted(named.group_by(list(cutoffs.by)), key=lambda pair: pair[0]):
        scored = group.filter(pl.col("bucket") != UNSCORED)["bucket"].replace(DROPPED, LOW)
        if len(scored):
            shares = [abs(float((scored == name).sum()) / len(scored) - share) for name, share in expected.items()]
            found["/".join(map(str, key))] = round(max(shares), 4)
    return found


def _name_buckets(scores: pl.DataFrame, known: pl.DataFrame, by: tuple[str, ...]) -> pl.DataFrame:
    joined = scores.join(known, on=list(by), how="left", maintain_order="left")
    if (missing := joined.filter(pl.col("documents").is_null())).height:
        where = ", ".join(f"{name}={missing[name][0]}" for name in by)
        raise DataError(f"no cut-offs for {where}; fit them again on scores that hold it")
    value = pl.col("value")
    bucket = (
        pl.when(value.is_null() | pl.col("high_at_most").is_null()).then(pl.lit(UNSCORED))
        .when(value > pl.col("drop_above")).then(pl.lit(DROPPED))
        .when(value <= pl.col("high_at_most")).then(pl.lit(HIGH))
        .when(value <= pl.col("mid_at_most")).then(pl.lit(MID))
        .otherwise(pl.lit(LOW))
    )  # fmt: skip
    return joined.select("id", bucket.alias("bucket"), "value", pl.col(list(by)))


def policy_in(score_files: Sequence[Path]) -> str:
    """The policy that all these files share.

    Raises:
        DataError: there is no file, one is not a file of scores, or two differ.
    """
    found: dict[str, Path] = {}
    for file in score_files:
        found.setdefault(_policy(file), file)
    if len(found) > 1:
        (first, one), (second, two) = list(found.items())[:2]
        raise DataError(
            f"scores of different policies: {one.name} has {first}, {two.name} has {second}; score them alike"
        )
    if not found:
        raise DataError("no file of scores; `loam perplexity` writes them")
    return next(iter(found))


def _policy(file: Path) -> str:
    try:
        metadata = pq.read_schema(file).metadata or {}
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{file} is not readable Parquet: {error}") from None
    if POLICY_KEY not in metadata:
        raise DataError(f"{file} is not a file of scores (no policy in it); `loam perplexity` writes them")
    return metadata[POLICY_KEY].decode()


def _read_scores(file: Path, measure: str, by: tuple[str, ...]) -> pl.DataFrame:
    size = MEASURES[measure]
    table = pl.DataFrame(pq.read_table(file, columns=["id", "sum_nll_nats", size, *by]))
    value = pl.col("sum_nll_nats") / pl.when(pl.col(size) > 0).then(pl.col(size))
    return table.select("id", value.alias("value"), pl.col(list(by)).fill_null("all"))


def assign(
    document_files: Sequence[Path], buckets_file: Path, score_files: Sequence[Path], work: Path, workers: int = 1
) -> Outcome:
    """Write documents by bucket: `kept/<domain>/<bucket>/<part>.parquet`, with their scores and new domain filled in.

    A file's domain is the folder that it lies in below `kept/` or `documents/`; a file without one is split by the
    column `domain`. Parts keep their names. Documents whose id occurs twice among the scores go to `rejects/`.

    Args:
        document_files: what was scored.
        buckets_file: `buckets.parquet` of the same documents.
        score_files: their scores.
        work: the step's working folder.
        workers: threads; the work is reading and writing, outside Python's lock.

    Raises:
        DataError: a document has no bucket.
    """
    table = _lookup(buckets_file, score_files)
    repeated = table.filter(pl.col("id").is_duplicated()).select("id").unique().with_columns(repeated=pl.lit(True))
    table = table.unique("id", keep="none").with_columns(repeated=pl.lit(False))
    table = pl.concat([table, repeated], how="diagonal")
    with ThreadPoolExecutor(workers) as pool:
        list(
            pool.map(lambda file, part: _assign_file(file, part, table, work), document_files, parts_of(document_files))
        )
    return Outcome(count_documents(work))


def _lookup(buckets_file: Path, score_files: Sequence[Path]) -> pl.DataFrame:
    named = pl.DataFrame(pq.read_table(buckets_file, columns=["id", "bucket"]))
    columns = ["id", "sum_nll_nats", "scored_tokens", "bytes"]
    scores = pl.concat([pl.DataFrame(pq.read_table(file, columns=columns)) for file in score_files])
    if not scores["id"].equals(named["id"]):
        raise DataError(
            f"{buckets_file} was not made from these scores, in this order; run `loam buckets` on them again"
        )
    return scores.with_columns(bucket=named["bucket"])


def _assign_file(file: Path, part: str, lookup: pl.DataFrame, work: Path) -> None:
    documents = conform(pq.read_table(file), file=file)
    found = pl.DataFrame({"id": documents["id"].to_pylist()}, schema={"id": pl.String})
    found = found.join(lookup, on="id", how="left", maintain_order="left")
    if (missing := found.filter(pl.col("repeated").is_null())).height:
        raise DataError(f"{file}: document {missing['id'][0]!r} has no score; run `loam perplexity` on this file first")
    scores: dict[str, Any] = {
        name: found[column].to_arrow()
        for name, column in (
            ("sum_nll_nats", "sum_nll_nats"),
            ("scored_tokens", "scored_tokens"),
            ("scored_bytes", "bytes"),
        )
    }
    documents = with_scores(documents, **scores)
    folder, _, name = part.rpartition("/")
    domains = (
        pl.Series([folder] * found.height) if folder else pl.Series(documents["domain"].to_pylist(), dtype=pl.String)
    )
    domain = (domains.fill_null("all") + "/" + found["bucket"]).alias("target")
    keep = found.select((~pl.col("repeated") & (pl.col("bucket") != DROPPED)).fill_null(False)).to_series()
    for target in sorted(set(domain.filter(keep))):
        rows = documents.filter((keep & (domain == target)).fill_null(False).to_arrow())
        rows = with_column(rows, "domain", pa.array([target] * rows.num_rows, pa.string()))
        _write(rows.cast(SCHEMA), work / "kept" / target / f"{name}.parquet")
    _write_rest(documents, found, work, part)


def _write_rest(documents: pa.Table, found: pl.DataFrame, work: Path, part: str) -> None:
    dropped = documents.filter((found["bucket"] == DROPPED).fill_null(False).to_arrow())
    if dropped.num_rows:
        reasons = pa.array(["perplexity_above_cutoff"] * dropped.num_rows)
        _write(dropped.append_column("reason", reasons), work / "dropped" / f"{part}.parquet")
    rejected = documents.filter(found["repeated"].to_arrow()).select(["id", "source", "origin"])
    if rejected.num_rows:
        reasons = pa.array(["duplicate_id"] * rejected.num_rows)
        _write(rejected.append_column("reason", reasons), work / "rejects" / f"{part}.parquet")


def _write(table: pa.Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    pq.write_table(table, temporary, compression="zstd", row_group_size=ROW_GROUP_ROWS)
    temporary.replace(path)


def read_cutoffs(path: Path) -> Cutoffs:
    """Read `cutoffs.json`.

    Raises:
        DataError: it is missing or not one.
    """
    try:
        return Cutoffs.model_validate(json.loads(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} holds no cut-offs: {str(error).splitlines()[0]}; `loam buckets` writes it") from None
