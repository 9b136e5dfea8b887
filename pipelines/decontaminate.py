"""Decontamination: find the items of evaluation sets in documents, word for word.

Both sides are simplified by the same compiled pass (case, punctuation and diacritics do not count; numbers do, since
with them folded any table of 13 numbers is "found"). An n-gram of a document is looked up three times, each time
seldomer: a bitmap over the hashes of its first words, the sorted hashes of whole n-grams, and at last the words
themselves, so that a hit is never a collision. 13 words as in Brown et al. 2020 (arXiv:2005.14165, appendix C).

Legend of suffixes: B bytes, G n-grams of the items, T texts of the items, U words, H hits.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datatrove.pipeline.base import PipelineStep
from pydantic import Field, model_validator

from pipelines.compiled import kernel
from pipelines.document import DROPPED, with_column, with_fate
from pipelines.errors import DataError
from pipelines.execute import SCRATCH, transform
from pipelines.recipe import Section
from pipelines.shingles import GROWTH, code_points, simplify, utf8_buffers, xxh64
from pipelines.store import Outcome

# Around the text of an item, and not part of it
LABELS = re.compile(r"\A\s*(?:question|q|问题|问)[:：]|\b(?:answer|a|答案|答)[:：]\s*\Z", re.IGNORECASE)
FIELDS = ("query", "question", "text", "choices", "answer", "context")
HITS = pa.schema(
    [
        ("id", pa.string()),
        ("benchmark", pa.string()),
        ("item", pa.string()),  # the item's `id`, or its row or line number from 0
        ("start", pa.int64()),  # characters (code points) into the document's text
        ("end", pa.int64()),
        ("ngrams", pa.int64()),  # matched n-grams that the span is made of
    ]
)


class DecontaminateSettings(Section):
    """What counts as contamination.

    Attributes:
        ngram: words that must agree; a character of a script without spaces is a word.
        min_words: a text of an item with fewer words than `ngram` is looked for whole if it has so many, else never.
        min_hits: matched n-grams of one benchmark that make a document contaminated.
        action: `drop` the document, or `mark` it (`attributes/`: `contaminated_by`).
        fields: of an item that are looked for; null: every string and list of strings.
        fold_numbers: whether all numbers count as equal.
    """

    ngram: int = Field(default=13, ge=1)
    min_words: int = Field(default=6, ge=1)
    min_hits: int = Field(default=1, ge=1)
    action: Literal["drop", "mark"] = "drop"
    fields: tuple[str, ...] | None = FIELDS
    fold_numbers: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> "DecontaminateSettings":
        if self.min_words > self.ngram:
            raise ValueError(f"min_words ({self.min_words}) must not exceed ngram ({self.ngram})")
        return self


class Reference(NamedTuple):
    """The n-grams of the items, in order of their hash.

    Attributes:
        hashes: uint64 (G,), of the words of an n-gram.
        texts: int64 (G,), number of the text that it is of.
        spans: int64 (G, 2), first and end byte of its words in `words`.
        words: uint8 (B,), the words of all texts, single spaces between.
        lengths: int64, the numbers of words that n-grams have, ascending.
        bitmap: uint64, one bit for each value of the low bits of the hash of an n-gram's first `prefix` words.
        prefix: words of the shortest n-gram.
    """

    hashes: np.ndarray
    texts: np.ndarray
    spans: np.ndarray
    words: np.ndarray
    lengths: np.ndarray
    bitmap: np.ndarray
    prefix: int


def decontaminate(
    files: Sequence[Path], against: Sequence[Path], work: Path, settings: DecontaminateSettings, workers: int = 1
) -> Outcome:
    """Find, and drop or mark, the documents that hold items of evaluation sets.

    Writes `kept/`, `dropped/` (reason `contaminated.<benchmark>`, the one with most hits) and `hits.parquet` (`HITS`: a
    run of overlapping n-grams of one item is one row).

    Args:
        files: Parquet documents.
        against: JSONL (.gz, .zst) or Parquet; each file is a benchmark, called by its stem.
        work: folder to fill.
        settings: what counts.
        workers: processes.

    Raises:
        DataError: an evaluation file is unreadable, or no item in it has any of the fields.
    """
    texts = [text for name, path in _names(against).items() for text in _texts(name, path, settings.fields)]
    table = pa.Table.from_pylist(texts, schema=pa.schema([(c, pa.string()) for c in ("benchmark", "item", "text")]))
    scratch = work / SCRATCH
    (scratch / "hits").mkdir(parents=True, exist_ok=True)
    reference, too_short_T = build_reference(table["text"], settings)
    np.savez(
        scratch / "reference.npz", allow_pickle=False, **{k: np.asarray(v) for k, v in reference._asdict().items()}
    )
    pq.write_table(table.drop_columns("text"), scratch / "items.parquet")
    counts = transform(files, [MarkContaminated(str(work), settings)], work, workers, "decontaminate")
    parts = [pq.read_table(scratch / "hits" / f"{rank:05d}.parquet", schema=HITS) for rank in range(len(files))]
    hits = pa.concat_tables([HITS.empty_table(), *parts])
    hits = hits.sort_by([(name, "ascending") for name in ("id", "benchmark", "item", "start", "end")])
    temporary = work / ".hits.parquet.tmp"
    pq.write_table(hits, temporary, compression="zstd")
    temporary.replace(work / "hits.parquet")
    return Outcome(
        counts, {"benchmarks": _summary(table, too_short_T, hits), "reference_ngrams": len(reference.hashes)}
    )


def _summary(texts: pa.Table, too_short_T: np.ndarray, hits: pa.Table) -> dict[str, dict[str, int]]:
    """Per benchmark: items, items that no n-gram stands for, items found, documents that they were found in."""
    items: dict[str, set[str]] = defaultdict(set)
    covered: dict[str, set[str]] = defaultdict(set)
    for row, short in zip(texts.select(["benchmark", "item"]).to_pylist(), too_short_T.tolist(), strict=True):
        items[row["benchmark"]].add(row["item"])
        if not short:
            covered[row["benchmark"]].add(row["item"])
    found = {name: hits.filter(pc.equal(hits["benchmark"], name)) for name in items}
    return {
        name: {"items": len(items[name]), "items_too_short": len(items[name] - covered[name]),
               "items_hit": pc.count_distinct(found[name]["item"]).as_py(),
               "docs": pc.count_distinct(found[name]["id"]).as_py()}
        for name in sorted(items)
    }  # fmt: skip


def _names(against: Sequence[Path]) -> dict[str, Path]:
    names = {}
    for path in against:
        name = path.name.split(".")[0]
        if name in names:
            name = f"{path.parent.name}_{name}"
        if name in names:
            raise DataError(f"two evaluation files are called {name}: {names[name]} and {path}; rename one")
        names[name] = path
    return names


def _texts(benchmark: str, path: Path, fields: tuple[str, ...] | None) -> Iterator[dict[str, str]]:
    seen: Counter[str] = Counter()
    found = False
    for number, item in enumerate(_items(path)):
        seen.update(item.keys())
        name = str(item["id"]) if item.get("id") is not None else str(number)
        for field in item if fields is None else fields:
            values = item.get(field)
            for text in values if isinstance(values, list) else [values]:
                if isinstance(text, str) and (fields is not None or field != "id"):
                    found = True
                    yield {"benchmark": benchmark, "item": name, "text": LABELS.sub("", text)}
    if not found:
        raise DataError(
            f"{path}: no item has text in the fields {', '.join(fields or ('any',))}; found: "
            f"{', '.join(seen) or 'no items'}; name others with decontaminate.fields"
        )


def _items(path: Path) -> Iterator[Mapping[str, Any]]:
    """The rows of a Parquet file or the lines of a JSONL file, as mappings."""
    try:
        if path.name.endswith(".parquet"):
            yield from pq.read_table(path).to_pylist()
            return
        with pa.input_stream(str(path), compression="detect") as stream:
            for number, line in enumerate(stream.read().split(b"\n"), start=1):
                if line.strip():
                    item = json.loads(line)
                    if not isinstance(item, dict):
                        raise DataError(f"{path}:{number}: an item is a JSON object, this is {type(item).__name__}")
                    yield item
    except ValueError as error:  # bad JSON, bad UTF-8, bad Parquet (ArrowInvalid)
        raise DataError(f"{path}: not readable as JSONL or Parquet: {error}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}") from None


@kernel
def _item_ngrams(data_B, offsets_T, table, ngram, min_words, fold_numbers):
    """Words of all texts end to end, and every n-gram of them: text, first byte, end byte, words."""
    texts = len(offsets_T) - 1
    words_B = np.empty(GROWTH * (offsets_T[-1] - offsets_T[0]), np.uint8)
    grams_G4 = np.empty(((offsets_T[-1] - offsets_T[0]) // 2 + texts, 4), np.int64)
    total, grams = 0, 0
    for t in range(texts):
        units_U4 = np.empty(((offsets_T[t + 1] - offsets_T[t]) // 2 + 1, 4), np.int64)
        used, count = simplify(
            data_B, offsets_T[t], offsets_T[t + 1], table, True, fold_numbers, words_B[total:], units_U4
        )
        length = min(ngram, count)
        if length < min_words:
            continue
        for u in range(count - length + 1):
            grams_G4[grams, 0], grams_G4[grams, 3] = t, length
            grams_G4[grams, 1], grams_G4[grams, 2] = total + units_U4[u, 0], total + units_U4[u + length - 1, 1]
            grams += 1
        total += used
    return words_B[:total], grams_G4[:grams]


@kernel
def _hash_spans(words_B, spans_G2):
    hashes_G = np.empty(len(spans_G2), np.uint64)
    for g in range(len(spans_G2)):
        hashes_G[g] = xxh64(words_B, spans_G2[g, 0], spans_G2[g, 1], np.uint64(0))
    return hashes_G


@kernel
def _prefix_ends(words_B, spans_G2, prefix):
    """Where the first `prefix` words of each n-gram end."""
    ends_G = spans_G2[:, 1].copy()
    for g in range(len(spans_G2)):
        spaces = 0
        for at in range(spans_G2[g, 0], spans_G2[g, 1]):
            spaces += words_B[at] == 32
            if spaces == prefix:
                ends_G[g] = at
                break
    return ends_G


def build_reference(texts: pa.ChunkedArray, settings: DecontaminateSettings) -> tuple[Reference, np.ndarray]:
    """Index the n-grams of the items' texts.

    Args:
        texts: strings (T,).
        settings: `ngram`, `min_words`, `fold_numbers`.

    Returns:
        The reference, and bool (T,): whether the text is too short to be looked for.
    """
    data_B, offsets_T = utf8_buffers(texts)
    words_B, grams_G4 = _item_ngrams(
        data_B, offsets_T, code_points(), settings.ngram, settings.min_words, settings.fold_numbers
    )
    hashes_G = _hash_spans(words_B, grams_G4[:, 1:3])
    order = np.argsort(hashes_G, kind="stable")
    grams_G4 = grams_G4[order]
    lengths = np.unique(grams_G4[:, 3])
    prefix = int(lengths[0]) if len(lengths) else settings.min_words
    starts = np.stack([grams_G4[:, 1], _prefix_ends(words_B, grams_G4[:, 1:3], prefix)], axis=1)
    bits = max(10, (64 * len(grams_G4)).bit_length())  # at most one bit in 64 is set
    bitmap = np.zeros(1 << (bits - 6), np.uint64)
    slots = _hash_spans(words_B, starts) & np.uint64((1 << bits) - 1)
    np.bitwise_or.at(bitmap, (slots >> np.uint64(6)).astype(np.int64), np.uint64(1) << (slots & np.uint64(63)))
    too_short_T = np.ones(len(texts), bool)
    too_short_T[grams_G4[:, 0]] = False
    found = Reference(hashes_G[order], grams_G4[:, 0], grams_G4[:, 1:3].copy(), words_B, lengths, bitmap, prefix)
    return found, too_short_T


@kernel
def _same(one_B, start, end, other_B, other_start, other_end):
    if end - start != other_end - other_start:
        return False
    for i in range(end - start):  # noqa: SIM110 - numba compiles no generator
        if one_B[start + i] != other_B[other_start + i]:
            return False
    return True


@kernel
def _find(data_B, offsets_N, table, fold_numbers, reference):
    """Every n-gram of the documents that the reference has: document, text of an item, first and end character."""
    longest = np.int64(0)
    for n in range(len(offsets_N) - 1):
        longest = max(longest, offsets_N[n + 1] - offsets_N[n])
    out_B, units_U4 = np.empty(GROWTH * longest, np.uint8), np.empty((longest // 2 + 1, 4), np.int64)
    bitmap, hashes_G, spans_G2, words_B = reference.bitmap, reference.hashes, reference.spans, reference.words
    mask, seed = np.uint64(64 * len(bitmap) - 1), np.uint64(0)
    hits_H4 = [(0, 0, 0, 0) for _ in range(0)]
    for n in range(len(offsets_N) - 1):
        _, count = simplify(data_B, offsets_N[n], offsets_N[n + 1], table, True, fold_numbers, out_B, units_U4)
        byte, character = offsets_N[n], 0
        for u in range(count - reference.prefix + 1):
            start = units_U4[u, 0]
            slot = xxh64(out_B, start, units_U4[u + reference.prefix - 1, 1], seed) & mask
            if not (bitmap[slot >> np.uint64(6)] >> (slot & np.uint64(63))) & np.uint64(1):
                continue
            while byte < units_U4[u, 2]:
                character += data_B[byte] & 0xC0 != 0x80
                byte += 1
            for length in reference.lengths:
                if u + length > count:
                    break
                end = units_U4[u + length - 1, 1]
                value = xxh64(out_B, start, end, seed)
                g = np.searchsorted(hashes_G, value)
                last = character - 1
                while g < len(hashes_G) and hashes_G[g] == value:
                    if _same(out_B, start, end, words_B, spans_G2[g, 0], spans_G2[g, 1]):
                        if last < character:
                            last = character
                            for at in range(units_U4[u, 2], units_U4[u + length - 1, 3]):
                                last += data_B[at] & 0xC0 != 0x80
                        hits_H4.append((n, reference.texts[g], character, last))
                    g += 1
    return hits_H4


class MarkContaminated(PipelineStep):
    """Marks documents that hold items of evaluation sets, and writes their hits to scratch."""

    type = "block"
    name = "decontaminate"

    def __init__(self, work: str, settings: DecontaminateSettings) -> None:
        super().__init__()
        self.work = work
        self.settings = settings

    def run(self, data: Iterable[pa.Table], rank: int = 0, world_size: int = 1) -> Iterator[pa.Table]:
        """Mark each batch."""
        scratch = Path(self.work) / SCRATCH
        with np.load(scratch / "reference.npz") as arrays:
            reference = Reference(
                **{name: arrays[name] for name in Reference._fields[:-1]}, prefix=int(arrays["prefix"])
            )
        items = pq.read_table(scratch / "items.parquet")
        with pq.ParquetWriter(scratch / "hits" / f"{rank:05d}.parquet", HITS) as writer:
            for batch in data:
                hits, worst = self._search(batch, reference, items)
                if hits:
                    writer.write_table(pa.Table.from_pylist(hits, schema=HITS))
                if self.settings.action == "mark":
                    yield with_column(batch, "contaminated_by", worst)
                else:
                    yield with_fate(batch, DROPPED, pc.binary_join_element_wise("contaminated", worst, "."))

    def _search(self, batch: pa.Table, reference: Reference, items: pa.Table) -> tuple[list[dict[str, Any]], pa.Array]:
        """Rows of `HITS` in a batch, and for each document its worst benchmark, null when it is clean."""
        worst: list[str | None] = [None] * batch.num_rows
        if not len(reference.hashes):
            return [], pa.array(worst, pa.string())
        data_B, offsets_N = utf8_buffers(batch["text"])
        found = _find(data_B, offsets_N, code_points(), self.settings.fold_numbers, reference)
        texts = sorted({text for _, text, _, _ in found})
        origin = dict(zip(texts, items.take(pa.array(texts, pa.int64())).to_pylist(), strict=True))
        spans: dict[int, dict[str, dict[str, list[tuple[int, int]]]]] = {}
        for n, text, start, end in found:
            benchmark, item = origin[text]["benchmark"], origin[text]["item"]
            spans.setdefault(n, {}).setdefault(benchmark, {}).setdefault(item, []).append((start, end))
        hits = []
        for n, by_benchmark in spans.items():
            name = batch["id"][n].as_py()
            worst[n] = _worst(by_benchmark, self.settings.min_hits)
            for benchmark, by_item in by_benchmark.items():
                for item, places in by_item.items():
                    row = {"id": name, "benchmark": benchmark, "item": item}
                    hits += [row | {"start": a, "end": b, "ngrams": count} for a, b, count in _merged(places)]
        return hits, pa.array(worst, pa.string())


def _worst(by_benchmark: Mapping[str, Mapping[str, list[tuple[int, int]]]], min_hits: int) -> str | None:
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
