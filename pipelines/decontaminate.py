"""Decontamination: find the items of evaluation sets in documents, word for word.

Case, punctuation and diacritics do not count; numbers do, since with them folded any table of 13 numbers is "found".
13 words as in Brown et al. 2020 (arXiv:2005.14165, appendix C); a shorter text of an item is looked for whole, and one
of few words (`Solve: $4x^3-2=106$`) letter for letter. What is indexed of an item is in `pipelines/eval_items.py`, the
searches are in `pipelines/ngram_index.py` and `pipelines/verbatim.py`.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datatrove.pipeline.base import PipelineStep
from pydantic import Field, model_validator

from pipelines.block import ReadDocuments
from pipelines.contamination_report import summarize, write_report
from pipelines.document import DROPPED, with_column, with_fate
from pipelines.eval_items import ITEMS, QUESTIONS, read_items, write_index
from pipelines.execute import SCRATCH, run_blocks, transform
from pipelines.ngram_index import Reference, Sizes, build_reference, find, sizes_of, without
from pipelines.recipe import Section
from pipelines.store import Outcome
from pipelines.verbatim import build_needles, find_verbatim, squeezed

HITS = pa.schema(
    [
        ("id", pa.string()),
        ("benchmark", pa.string()),
        ("item", pa.string()),  # the item's `id`, or its row or line number from 0, or its file in an archive
        ("start", pa.int64()),  # characters (code points) into the document's text
        ("end", pa.int64()),
        ("ngrams", pa.int64()),  # matched n-grams that the span is made of
        ("text", pa.string()),  # the document between start and end, its first `SHOWN_CHARS`
    ]
)
SHOWN_CHARS = 300
MIN_BYTES = (
    24  # of a short text's words in UTF-8, spaces included: eight Chinese characters, or six short English words
)
WHOLE_CHARACTERS = 20  # without white space: five short words in a row are no accident
SIGN, SIGNS = re.compile(r"[^\w\s.,;:!?'\"()]"), 4  # of a formula: a short question with so many is looked for, too
SHARED = 2  # items of a benchmark that may have the same short question
WHOLE = "(whole item)"  # field of the texts of an item put together, when each is too short to be looked for
Spans = dict[str, dict[str, list[tuple[int, int]]]]  # benchmark -> item -> first and end character


class DecontaminateSettings(Section):
    """What counts as contamination.

    Attributes:
        ngram: words that must agree.
        ngram_characters: the same for a text mostly in a script without spaces, where a character is a word: 13 of them
            are no more than the name of an office.
        min_words: a question with fewer words than that is looked for whole if it has so many (and 24 bytes); an item
            of which nothing else can be looked for, as its texts put together.
        min_characters: an item that even so cannot be looked for is, letter for letter, by its question if that has so
            many characters, two of them digits or signs, else by all its texts if these have `WHOLE_CHARACTERS`.
        min_hits: matched n-grams of one benchmark that make a document contaminated.
        action: `drop` the document, `cut` the matched spans out of it, or `mark` it (`attributes/`: `contaminated_by`).
        cut_minimum: characters that a piece between cuts must have to stay; a document without such a piece is dropped.
        common_documents: n-grams found in more documents than this are common phrases and no hits; null: none are.
        fields: of an item that are looked for; null: those with the usual names of questions, contexts, choices and
            answers at any depth; `*`: every string.
        fold_numbers: whether all numbers count as equal.
    """

    ngram: int = Field(default=13, ge=1)
    ngram_characters: int = Field(default=20, ge=1)
    min_words: int = Field(default=6, ge=1)
    min_characters: int = Field(default=8, ge=4)
    min_hits: int = Field(default=1, ge=1)
    action: Literal["drop", "cut", "mark"] = "drop"
    cut_minimum: int = Field(default=200, ge=1)
    common_documents: int | None = Field(default=None, ge=1)
    fields: tuple[str, ...] | None = None
    fold_numbers: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> "DecontaminateSettings":
        for name in ("ngram", "ngram_characters"):
            if self.min_words > getattr(self, name):
                raise ValueError(f"min_words ({self.min_words}) must not exceed {name} ({getattr(self, name)})")
        return self


def decontaminate(
    files: Sequence[Path], against: Sequence[Path], work: Path, settings: DecontaminateSettings, workers: int = 1
) -> Outcome:
    """Find, and drop, cut or mark, the documents that hold items of evaluation sets.

    Writes `kept/`, `dropped/` (reason `contaminated.<benchmark>`, the one with most hits), `hits.parquet` (`HITS`: a
    run of overlapping n-grams of one item is one row), `report.json` and `report.md`, and `index.parquet`: the items,
    to be given as `against` by later calls.

    Args:
        files: Parquet documents.
        against: evaluation sets as `pipelines.eval_items.read_items` takes them, or an `index.parquet`.
        work: folder to fill.
        settings: what counts.
        workers: processes.

    Raises:
        DataError: an evaluation file is unreadable, or no item in it has any of the fields.
    """
    items = read_items(against, settings.fields)
    wanted, verbatim, short = _wanted(items, settings)
    scratch = work / SCRATCH
    (scratch / "hits").mkdir(parents=True, exist_ok=True)
    write_index(items, work / "index.parquet")
    pq.write_table(wanted.drop_columns("text"), scratch / "items.parquet")
    pq.write_table(verbatim, scratch / "verbatim.parquet")
    numbers = wanted["benchmark"].combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
    ngram_T = _ngrams(sizes_of(wanted["text"], settings.fold_numbers), settings)
    reference = build_reference(wanted["text"], numbers.astype(np.int64), ngram_T, settings.fold_numbers)
    common = np.zeros(len(reference.hashes), bool)
    if settings.common_documents is not None:
        common = _common(files, reference, work, settings, workers)
        reference = without(reference, common)
    _save(reference, scratch / "reference.npz")
    counts = transform(files, [MarkContaminated(str(work), settings)], work, workers, "decontaminate")
    parts = [pq.read_table(scratch / "hits" / f"{rank:05d}.parquet", schema=HITS) for rank in range(len(files))]
    hits = pa.concat_tables([HITS.empty_table(), *parts])
    hits = hits.sort_by([(name, "ascending") for name in ("id", "benchmark", "item", "start", "end")])
    temporary = work / ".hits.parquet.tmp"
    pq.write_table(hits, temporary, compression="zstd")
    temporary.replace(work / "hits.parquet")
    benchmarks = summarize(items, short, hits, counts)
    write_report(work, benchmarks, hits, counts, settings.model_dump(mode="json"))
    return Outcome(counts, {
        "benchmarks": benchmarks, "reference_ngrams": len(reference.hashes), "common_ngrams": int(common.sum()),
    })  # fmt: skip


def _wanted(items: pa.Table, settings: DecontaminateSettings) -> tuple[pa.Table, pa.Table, pa.Table]:
    """`ITEMS` looked for by their words, `ITEMS` looked for letter for letter, and items of which nothing can be.

    A text shorter than an n-gram is looked for whole if it is a question; an answer so short, or a question that
    several items share ("Which of these is true?"), is found everywhere.
    """
    sizes, long_T = _sizes(items, settings)
    keys = list(zip(items["benchmark"].to_pylist(), items["item"].to_pylist(), strict=True))
    texts, fields = items["text"].to_pylist(), items["field"].to_pylist()
    shared = Counter((benchmark, text) for (benchmark, _), text in zip(keys, texts, strict=True))
    own_T = np.array([
        (settings.fields is not None or field.lower() in QUESTIONS) and shared[key[0], text] <= SHARED
        for key, field, text in zip(keys, fields, texts, strict=True)
    ], bool)  # fmt: skip
    wanted_T = long_T | (own_T & _enough(sizes, settings))
    covered = {key for key, wanted in zip(keys, wanted_T, strict=True) if wanted}
    together: dict[tuple[str, str], list[int]] = defaultdict(list)
    for number, key in enumerate(keys):
        if key not in covered:
            together[key].append(number)
    rows = [{"benchmark": b, "item": i, "field": WHOLE, "text": " ".join(texts[n] for n in parts)}
            for (b, i), parts in together.items()]  # fmt: skip
    whole = pa.Table.from_pylist(rows, schema=ITEMS)
    whole_T = _enough(_sizes(whole, settings)[0], settings)
    left = {key for key, enough in zip(together, whole_T, strict=True) if not enough}
    verbatim = [
        {"benchmark": keys[n][0], "item": keys[n][1], "field": fields[n], "text": texts[n]}
        for n in np.flatnonzero(own_T & ~wanted_T)
        if keys[n] not in left and len(SIGN.findall(texts[n])) >= SIGNS
    ]
    short: list[dict[str, str]] = []
    for row, (key, parts) in zip(rows, together.items(), strict=True):
        if key not in left:
            continue
        question = next((texts[n] for n in parts if own_T[n] and _says_enough(texts[n], settings)), None)
        if question is None and len(parts) > 1 and len(squeezed(row["text"])) >= WHOLE_CHARACTERS:
            question = row["text"]
        (short if question is None else verbatim).append(row | {"text": question or ""})
    wanted = pa.concat_tables([items.filter(pa.array(wanted_T)), whole.filter(pa.array(whole_T))])
    return wanted, pa.Table.from_pylist(verbatim, schema=ITEMS), pa.Table.from_pylist(short, schema=ITEMS)


def _says_enough(text: str, settings: DecontaminateSettings) -> bool:
    letters = squeezed(text)
    return len(letters) >= settings.min_characters and sum(not c.isalpha() for c in letters) >= 2


def _sizes(items: pa.Table, settings: DecontaminateSettings) -> tuple[Sizes, np.ndarray]:
    """Sizes of the texts, and bool (T,): which have an n-gram's words."""
    sizes = sizes_of(items["text"], settings.fold_numbers)
    return sizes, sizes.words >= _ngrams(sizes, settings)


def _ngrams(sizes: Sizes, settings: DecontaminateSettings) -> np.ndarray:
    """int64 (T,): words of each text's n-grams."""
    return np.where(2 * sizes.alone > sizes.words, settings.ngram_characters, settings.ngram).astype(np.int64)


def _enough(sizes: Sizes, settings: DecontaminateSettings) -> np.ndarray:
    return (sizes.words >= settings.min_words) & (sizes.size >= MIN_BYTES)


def _save(reference: Reference, path: Path) -> None:
    np.savez(path, allow_pickle=False, **{k: np.asarray(v) for k, v in reference._asdict().items()})


def _load(path: Path) -> Reference:
    with np.load(path) as arrays:
        return Reference(**{name: arrays[name] for name in Reference._fields[:-1]}, prefix=int(arrays["prefix"]))


def _common(
    files: Sequence[Path], reference: Reference, work: Path, settings: DecontaminateSettings, workers: int
) -> np.ndarray:
    """Bool (G,): which n-grams more than `common_documents` documents have; a pass of its own over the documents."""
    scratch = work / SCRATCH
    _save(reference, scratch / "all.npz")
    (scratch / "counts").mkdir(exist_ok=True)
    pipeline = [ReadDocuments([str(f) for f in files]), CountDocuments(str(work), settings.fold_numbers)]
    run_blocks(pipeline, len(files), work, workers, "common")
    documents_G = np.zeros(len(reference.hashes), np.int64)
    for rank in range(len(files)):
        documents_G += np.load(scratch / "counts" / f"{rank:05d}.npy")
    return documents_G > (settings.common_documents or 0)


class CountDocuments(PipelineStep):
    """End of a pipeline: counts the documents that have each n-gram of the reference."""

    type = "writer"
    name = "common"

    def __init__(self, work: str, fold_numbers: bool) -> None:
        super().__init__()
        self.work = work
        self.fold_numbers = fold_numbers

    def run(self, data: Iterable[pa.Table], rank: int = 0, world_size: int = 1) -> None:
        """Consume the stream."""
        scratch = Path(self.work) / SCRATCH
        reference = _load(scratch / "all.npz")
        documents_G = np.zeros(len(reference.hashes), np.int64)
        for batch in data:
            found = {(n, g) for n, g, _, _ in find(batch["text"], reference, self.fold_numbers)}
            for g, count in Counter(g for _, g in found).items():
                documents_G[g] += count
        np.save(scratch / "counts" / f"{rank:05d}.npy", documents_G)


class MarkContaminated(PipelineStep):
    """Drops, cuts or marks documents that hold items of evaluation sets, and writes their hits to scratch."""

    type = "block"
    name = "decontaminate"

    def __init__(self, work: str, settings: DecontaminateSettings) -> None:
        super().__init__()
        self.work = work
        self.settings = settings

    def run(self, data: Iterable[pa.Table], rank: int = 0, world_size: int = 1) -> Iterator[pa.Table]:
        """Treat each batch."""
        scratch = Path(self.work) / SCRATCH
        reference = _load(scratch / "reference.npz")
        items, verbatim = (pq.read_table(scratch / f"{name}.parquet") for name in ("items", "verbatim"))
        needles = build_needles(verbatim["text"].to_pylist())
        with pq.ParquetWriter(scratch / "hits" / f"{rank:05d}.parquet", HITS) as writer:
            for batch in data:
                spans = self._search(batch, reference, items)
                for n, v, start, end in find_verbatim(batch["text"], needles):
                    by_item = spans.setdefault(n, {}).setdefault(verbatim["benchmark"][v].as_py(), {})
                    by_item.setdefault(verbatim["item"][v].as_py(), []).append((start, end))
                if hits := _rows(batch, spans):
                    writer.write_table(pa.Table.from_pylist(hits, schema=HITS))
                yield self._treat(batch, spans)

    def _search(self, batch: pa.Table, reference: Reference, items: pa.Table) -> dict[int, Spans]:
        """Matched n-grams of each document that has any."""
        found = find(batch["text"], reference, self.settings.fold_numbers)
        grams = sorted({g for _, g, _, _ in found})
        origin = dict(zip(grams, items.take(pa.array(reference.texts[grams], pa.int64())).to_pylist(), strict=True))
        spans: dict[int, Spans] = {}
        for n, g, start, end in found:
            by_item = spans.setdefault(n, {}).setdefault(origin[g]["benchmark"], {})
            by_item.setdefault(origin[g]["item"], []).append((start, end))
        return spans

    def _treat(self, batch: pa.Table, spans: Mapping[int, Spans]) -> pa.Table:
        worst: list[str | None] = [None] * batch.num_rows
        for n, by_benchmark in spans.items():
            worst[n] = _worst(by_benchmark, self.settings.min_hits)
        marks = pa.array(worst, pa.string())
        if self.settings.action == "mark":
            return with_column(batch, "contaminated_by", marks)
        reasons = pc.binary_join_element_wise("contaminated", marks, ".")
        if self.settings.action == "drop":
            return with_fate(batch, DROPPED, reasons)
        texts, removed = batch["text"].to_pylist(), [0] * batch.num_rows
        for n in (n for n, name in enumerate(worst) if name is not None):
            places = [p for by_item in spans[n].values() for items in by_item.values() for p in items]
            whole = texts[n]
            texts[n] = _cut(whole, [(a, b) for a, b, _ in _merged(places)], self.settings.cut_minimum)
            removed[n] = len(whole) - len(texts[n])
        gone = pa.array([name if name and not text else None for name, text in zip(worst, texts, strict=True)],
                        pa.string())  # fmt: skip
        kept = pc.if_else(pc.is_valid(gone), batch["text"], pa.array(texts, batch["text"].type))
        batch = with_column(with_column(batch, "text", kept), "contaminated_by", marks)
        batch = with_column(batch, "cut_characters", pa.array(removed, pa.int64()))
        return with_fate(batch, DROPPED, pc.binary_join_element_wise("contaminated", gone, "."))


def _rows(batch: pa.Table, spans: Mapping[int, Spans]) -> list[dict[str, Any]]:
    """Rows of `HITS`."""
    hits = []
    for n, by_benchmark in spans.items():
        name, text = batch["id"][n].as_py(), batch["text"][n].as_py()
        for benchmark, by_item in by_benchmark.items():
            for item, places in by_item.items():
                row = {"id": name, "benchmark": benchmark, "item": item}
                hits += [
                    row | {"start": a, "end": b, "ngrams": count, "text": text[a : min(b, a + SHOWN_CHARS)]}
                    for a, b, count in _merged(places)
                ]
    return hits


def _cut(text: str, spans: Sequence[tuple[int, int]], minimum: int) -> str:
    """The text without the spans: what stands between them, if it is long enough, each piece a paragraph."""
    ends = [0, *(end for _, end in spans)]
    starts = [*(start for start, _ in spans), len(text)]
    pieces = (text[end:start].strip() for end, start in zip(ends, starts, strict=True))
    return "\n\n".join(piece for piece in pieces if len(piece) >= minimum)


def _worst(by_benchmark: Spans, min_hits: int) -> str | None:
    """The benchmark with the most matched n-grams in a document (the first by name of several), if they are enough."""
    counts = {
        name: len({place for places in items.values() for place in places}) for name, items in by_benchmark.items()
    }
    enough = [name for name, count in counts.items() if count >= min_hits]
    return min(enough, key=lambda name: (-counts[name], name), default=None)


def _merged(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """Join overlapping spans: start, end, how many."""
    joined: list[tuple[int, int, int]] = []
    for start, end in sorted(set(spans)):
        if joined and start <= joined[-1][1]:
            first, last, count = joined[-1]
            joined[-1] = (first, max(last, end), count + 1)
        else:
            joined.append((start, end, 1))
    return joined
