"""Which documents are duplicates of which, from their signatures: keys first, then bands.

The one choice that matters: only documents that share a key or a band with another are ranked, compared and named;
of all others this process holds one byte. Bands are read one at a time and grouped range by range (`key_groups`), the
groups and the candidates' shingles lie on disk, and mapped files are let go of as they are read. So a corpus costs
about 10 bytes for each document and 150 for each that has company, beside about 500 MB that do not grow.

Legend of suffixes: N all documents in the order of the input, those of an index first; C documents that have company,
in order of rank; M members of groups; K bands.
"""

import itertools
import mmap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines import clusters
from pipelines.compiled import kernel
from pipelines.dedup_settings import DedupSettings
from pipelines.key_groups import Groups, key_groups
from pipelines.minhash import Shingled, compare_groups
from pipelines.signatures import LIGHT, SignatureFile

CLUSTERS = pa.schema(
    [
        ("id", pa.string()),
        ("cluster", pa.string()),  # id of the document that stands for all; of the index, when one of the index does
        ("kept", pa.bool_()),
        ("matched_id", pa.string()),  # the document most like it, one of the index before others; null when kept
        ("jaccard", pa.float64()),  # of their shingles; null for url; the cosine for semantic
    ]
)


class Decision(NamedTuple):
    """What becomes of every document.

    Attributes:
        dropped: bool, for each shard and row.
        sizes: int64, for each shard and row: documents of its cluster that were given now.
        clusters: `CLUSTERS`, the documents that have a duplicate.
        metrics: counts.
    """

    dropped: list[np.ndarray]
    sizes: list[np.ndarray]
    clusters: pa.Table
    metrics: dict[str, Any]


class Corpus(NamedTuple):
    """Signature files as one sequence of rows.

    Attributes:
        files: those of indexes, then one for each shard.
        bases: int64, first row of each, and one past the last.
        indexes: how many files are those of indexes.
    """

    files: Sequence[SignatureFile]
    bases: np.ndarray
    indexes: int

    @property
    def old(self) -> int:
        """Rows that come from indexes."""
        return int(self.bases[self.indexes])

    @classmethod
    def of(cls, indexed: Sequence[SignatureFile], shards: Sequence[SignatureFile]) -> "Corpus":
        """Line them up."""
        files = [*indexed, *shards]
        return cls(files, np.cumsum([0, *(file.rows for file in files)]), len(indexed))

    def parts(self, rows: np.ndarray) -> Iterator[tuple[SignatureFile, np.ndarray]]:
        """Each file with those of `rows` (ascending) that lie in it, counted from its own first."""
        cuts = np.searchsorted(rows, self.bases)
        for number, file in enumerate(self.files):
            if cuts[number + 1] > cuts[number]:
                yield file, rows[cuts[number] : cuts[number + 1]] - self.bases[number]

    def light(self, rows: np.ndarray) -> pa.Table:
        """`LIGHT` and `settled` of some rows, ascending."""
        found = [file.take(here, LIGHT.names) for file, here in self.parts(rows)]
        table = pa.concat_tables(found) if found else LIGHT.empty_table()
        return table.append_column("settled", pa.array(rows < self.old))

    def scan(self, names: Sequence[str], alive_N: np.ndarray) -> Callable[[], Iterator[tuple]]:
        """A scan of one or two key columns over the living rows, for `key_groups`."""

        def batches() -> Iterator[tuple]:
            base = 0
            for file in self.files:
                for batch in file.batches(names):
                    valid = alive_N[base : base + batch.num_rows] & pc.is_valid(batch[names[0]]).to_numpy()
                    keys = [pc.fill_null(batch[name], 0).to_numpy()[valid] for name in names]
                    yield base + np.flatnonzero(valid), keys[0], keys[1] if len(keys) > 1 else None
                    base += batch.num_rows

        return batches


def decide(
    indexed: Sequence[SignatureFile], shards: Sequence[SignatureFile], settings: DedupSettings, scratch: Path
) -> Decision:
    """Decide.

    Args:
        indexed: signatures of earlier runs: their documents are never dropped.
        shards: signatures of the documents given.
        settings: what counts as a duplicate.
        scratch: folder for groups and candidates.
    """
    corpus = Corpus.of(indexed, shards)
    alive_N = np.ones(corpus.bases[-1], bool)
    equal = _joined(list(key_groups(corpus.scan(("key_0", "key_1"), alive_N), len(alive_N), scratch, corpus.old)))
    company_N = np.zeros(len(alive_N), bool)
    company_N[equal.members] = True
    if settings.method == "minhash":
        twins = _twins(corpus, equal)
        alive_N[twins] = False  # of equal texts only the first is compared
        _group_bands(corpus, settings, alive_N, company_N, scratch)
    rows = np.flatnonzero(company_N)
    table = corpus.light(rows)
    order_C = clusters.rank_order(table)
    ranks = np.empty(len(rows), np.int64)
    ranks[order_C] = np.arange(len(rows))
    forest = clusters.new_forest(len(rows))
    settled = int((rows < corpus.old).sum())
    one_E, other_E = _stars(Groups(ranks[np.searchsorted(rows, equal.members)], equal.sizes))
    clusters.join_all(one_E, other_E, np.ones(len(one_E)), settled, forest)
    metrics: dict[str, Any] = {"documents": len(company_N) - corpus.old, "indexed": corpus.old, "equal": len(one_E)}
    if settings.method == "minhash":
        forest.tally[:] = 0
        sets, release = _candidates(corpus, settings, rows, order_C, ranks, scratch)
        _compare_bands(sets, release, rows, ranks, settings, settled, forest, scratch)
        metrics |= dict(zip(("compared", "similar", "not_compared"), forest.tally.tolist(), strict=True))
    _follow_first(forest, one_E, other_E, settled)
    return conclude(table, rows[order_C], order_C, forest, settled, corpus, metrics, settings.method == "url")


def conclude(
    table: pa.Table, rows_C: np.ndarray, order_C: np.ndarray, forest: clusters.Forest, settled: int,
    corpus: Corpus, metrics: dict[str, Any], without_jaccard: bool,
) -> Decision:  # fmt: skip
    """Make the table of clusters and the marks of each shard from a forest.

    Args:
        table: `LIGHT` of the documents in company, in any order.
        rows_C: their rows in the corpus, by rank.
        order_C: their places in `table`, by rank.
        forest: what was found.
        settled: ranks below it are of an index.
        corpus: of all documents.
        metrics: what is known already.
        without_jaccard: similarities mean nothing.
    """
    roots_C = clusters.roots_of(forest)
    found = np.flatnonzero((forest.matches >= 0) & (np.arange(len(rows_C)) >= settled))
    kept = roots_C[found] == found
    dropped_N, sizes_N = np.zeros(corpus.bases[-1], bool), np.ones(corpus.bases[-1], np.int64)
    dropped_N[rows_C[found[~kept]]] = True
    members_C = np.bincount(roots_C[found], minlength=len(rows_C))
    sizes_N[rows_C[found]] = members_C[roots_C[found]]
    ids = table["id"].combine_chunks() if table.num_rows else pa.array([], pa.string())
    nothing = pa.scalar(None, pa.string())
    rows = pa.table(
        {
            "id": ids.take(order_C[found]),
            "cluster": ids.take(order_C[roots_C[found]]),
            "kept": kept,
            "matched_id": pc.if_else(kept, nothing, ids.take(order_C[forest.matches[found]])),
            "jaccard": pa.array(forest.nearest[found], mask=kept | without_jaccard),
        },
        schema=CLUSTERS,
    )
    bounds = corpus.bases[corpus.indexes :]
    metrics |= {"clusters": len(np.unique(roots_C[found])), "duplicates": int(dropped_N.sum())}
    parts = [slice(a, b) for a, b in itertools.pairwise(bounds)]
    return Decision([dropped_N[part] for part in parts], [sizes_N[part] for part in parts], rows, metrics)


def _joined(found: list[Groups]) -> Groups:
    empty = np.zeros(0, np.int64)
    return Groups(
        np.concatenate([empty, *(g.members for g in found)]), np.concatenate([empty, *(g.sizes for g in found)])
    )


def _twins(corpus: Corpus, equal: Groups) -> np.ndarray:
    """Rows whose key a row of lower rank has."""
    rows = np.sort(equal.members)
    order = clusters.rank_order(corpus.light(rows))
    ranks = np.empty(len(rows), np.int64)
    ranks[order] = np.arange(len(rows))
    _, others = _stars(Groups(ranks[np.searchsorted(rows, equal.members)], equal.sizes))
    return rows[order[others]]


def _by_rank(groups: Groups) -> np.ndarray:
    """Members, ascending within each group."""
    numbers = np.repeat(np.arange(len(groups.sizes)), groups.sizes)
    return groups.members[np.lexsort((groups.members, numbers))]


def _stars(groups: Groups) -> tuple[np.ndarray, np.ndarray]:
    """The first of each group, repeated, and its other members."""
    members_M = _by_rank(groups)
    starts = np.cumsum(groups.sizes) - groups.sizes
    others = np.ones(len(members_M), bool)
    others[starts] = False
    return np.repeat(members_M[starts], groups.sizes - 1), members_M[others]


def _follow_first(forest: clusters.Forest, one_E: np.ndarray, other_E: np.ndarray, settled: int) -> None:
    """Equal texts have the same match in the index, though only the first of them was compared with it."""
    matches = forest.matches
    to_old = (one_E >= settled) & (matches[one_E] >= 0) & (matches[one_E] < settled)
    for values in (matches, forest.nearest):
        values[other_E[to_old]] = values[one_E[to_old]]


def _group_bands(
    corpus: Corpus, settings: DedupSettings, alive_N: np.ndarray, company_N: np.ndarray, scratch: Path
) -> None:
    """Write the groups of each band; mark who has company."""
    folder = scratch / "groups"
    folder.mkdir(parents=True, exist_ok=True)
    base = 0
    for file in corpus.files:
        sizes = file.column("size")
        alive_N[base : base + len(sizes)] &= sizes > 0
        base += len(sizes)
    for k in range(settings.bands):
        with (folder / f"{k}.members").open("wb") as members, (folder / f"{k}.sizes").open("wb") as sizes:
            for groups in key_groups(corpus.scan((f"band_{k}",), alive_N), len(alive_N), scratch, corpus.old):
                company_N[groups.members] = True
                groups.members.tofile(members)
                groups.sizes.astype(np.int64).tofile(sizes)


@kernel
def _copy_sets(shingles_S, starts, sizes, out_S):
    at = 0
    for n in range(len(starts)):
        for s in range(sizes[n]):
            out_S[at + s] = shingles_S[starts[n] + s]
        at += sizes[n]


def _candidates(
    corpus: Corpus, settings: DedupSettings, rows: np.ndarray, order_C: np.ndarray, ranks: np.ndarray, scratch: Path
) -> tuple[Shingled, Callable[[], None]]:
    """Bring the shingles and bands of those in company into two files, which are mapped; and how to let go of them."""
    sizes, starts, total = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64), 0
    at = 0
    with (scratch / "candidates.u32").open("wb") as out:
        for file, here in corpus.parts(rows):
            every = file.column("size")
            begins = np.cumsum(every) - every
            span = slice(at, at + len(here))
            sizes[span] = every[here]
            starts[span] = total + np.cumsum(sizes[span]) - sizes[span]
            _append_sets(file.shingles, begins[here], sizes[span], out)
            total, at = total + int(sizes[span].sum()), at + len(here)
    with (scratch / "candidates.bands").open("wb") as out:
        for k in range(settings.bands):
            found = [file.take(here, [f"band_{k}"])[0].to_numpy() for file, here in corpus.parts(rows)]
            if found:
                np.concatenate(found)[order_C].tofile(out)
    shingles, let_go = mapped(scratch / "candidates.u32", np.uint32)
    bands, let_go_too = mapped(scratch / "candidates.bands", np.uint64)
    sets = Shingled(shingles, starts[order_C], sizes[order_C], bands.reshape(settings.bands, -1))

    def release() -> None:
        let_go()
        let_go_too()

    return sets, release


def _append_sets(path: Path, starts: np.ndarray, sizes: np.ndarray, out: Any, most: int = 1 << 24) -> None:
    """Copy the sets of some documents of one file to the end of another, `most` numbers at a time."""
    shingles_S, release = mapped(path, np.uint32)
    ends = np.cumsum(sizes)
    begin = 0
    while begin < len(sizes):
        before = int(ends[begin - 1]) if begin else 0
        end = max(begin + 1, int(np.searchsorted(ends, before + most)))
        buffer = np.empty(int(ends[end - 1]) - before, np.uint32)
        _copy_sets(shingles_S, starts[begin:end], sizes[begin:end], buffer)
        buffer.tofile(out)
        release()
        begin = end


def mapped(path: Path, kind: Any) -> tuple[np.ndarray, Callable[[], None]]:
    """A file as an array, and how to let go of the memory that reading it has taken."""
    if not path.stat().st_size:
        return np.zeros(0, kind), lambda: None
    with path.open("rb") as file:
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    return np.frombuffer(pages, kind), lambda: pages.madvise(mmap.MADV_DONTNEED)


def _compare_bands(
    sets: Shingled, release: Callable[[], None], rows: np.ndarray, ranks: np.ndarray, settings: DedupSettings,
    settled: int, forest: clusters.Forest, scratch: Path,
) -> None:  # fmt: skip
    least = 0.0 if settings.verify_jaccard is None else settings.verify_jaccard
    for k in range(settings.bands):
        members = np.fromfile(scratch / "groups" / f"{k}.members", np.int64)
        groups = Groups(ranks[np.searchsorted(rows, members)], np.fromfile(scratch / "groups" / f"{k}.sizes", np.int64))
        compare_groups(_by_rank(groups), groups.sizes, k, sets, least, forest, settled, release)


def write_clusters(path: Path, table: pa.Table) -> None:
    """Write the table of clusters in an order that depends on nothing but its rows."""
    ordered = table.sort_by([("cluster", "ascending"), ("kept", "descending"), ("id", "ascending")])
    temporary = path.with_name(f".{path.name}.tmp")
    pq.write_table(ordered, temporary, compression="zstd")
    temporary.replace(path)
