"""Multiple-choice items made from the corpus itself: which of four passages continues this one?

A few documents are held out by a hash of their id; a passage of each is cut into a beginning and its true continuation,
and the wrong choices are the continuations of other held-out passages of the same domain that are closest in length.
Needs no labels and fits any domain, like HellaSwag's form (arXiv:1905.07830) without its adversarial filtering: items
measure whether a model knows its domain's text, not reasoning. Passages made of lines that other held-out documents
have too (menus, notices) are passed over: they test nothing, and decontamination would drop every page of such a site.
"""

import bisect
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from pydantic import Field, model_validator

from pipelines.document import conform
from pipelines.errors import DataError
from pipelines.manifest import Counts
from pipelines.recipe import Section
from pipelines.store import Outcome
from trainer.eval_items import EvalItem, write_items

CJK = r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
WORD = re.compile(rf"[{CJK}]|[^\s{CJK}]+")  # what passages are cut by: a CJK character counts as a word
LETTERS = re.compile(rf"[{CJK}]|[^\W_{CJK}]+")  # what decontamination can look for
FOUND_BY = 13  # words in a row that betray an item in a document, arXiv:2005.14165, appendix C
ATTEMPTS = 8  # starts drawn in a document before its beginning is taken
NEIGHBOURS = 8  # how many passages of closest length the wrong choices are drawn from
ALL = "all"


class ClozeSettings(Section):
    """How many items, and how long.

    Attributes:
        seed: of everything that is drawn.
        holdout_share: of the documents, those that may become items.
        items_per_domain: at most this many.
        domains: those that items are made of; all when empty.
        choices: per item, the right one included.
        query_words: words of the passage's beginning.
        continuation_words: words of the continuation; both together at least 13, so that decontamination finds them.
        passage_chars: a passage with more characters is passed over (tables of numbers, encoded data).
    """

    seed: int = 0
    holdout_share: float = Field(default=0.02, gt=0, le=1)
    items_per_domain: int = Field(default=200, ge=2)
    domains: tuple[str, ...] = ()
    choices: int = Field(default=4, ge=2)
    query_words: int = Field(default=32, ge=4)
    continuation_words: int = Field(default=12, ge=4)
    passage_chars: int = Field(default=1000, ge=40)

    @model_validator(mode="after")
    def _long_enough_to_be_found(self) -> "ClozeSettings":
        if self.query_words + self.continuation_words < FOUND_BY:
            raise ValueError(
                f"query_words + continuation_words must be at least {FOUND_BY}: decontamination needs them"
            )
        return self


@dataclass(frozen=True)
class _Passage:
    """A cut passage.

    Attributes:
        rank: hash of seed and document id; what orders and draws.
        id: the document's.
        query: its beginning.
        continuation: what follows, leading white space included.
        lines: for each line that it touches, the hash of the whole line and how many of its words are in the passage.
    """

    rank: int
    id: str
    query: str
    continuation: str
    lines: tuple[tuple[int, int], ...]


def make_cloze_items(files: Sequence[Path], work: Path, settings: ClozeSettings) -> Outcome:
    """Make items from documents; writes `items/cloze_<domain>.jsonl` and `heldout.parquet`.

    Args:
        files: Parquet documents; their column `domain` groups them.
        work: folder to fill.
        settings: how many and how long.

    Returns:
        Counts over documents (kept: became an item) and, as metrics, items per benchmark.

    Raises:
        DataError: a file is unreadable, or not one item could be made.
    """
    drawn: dict[str, list[list[_Passage]]] = {}
    lines: dict[str, Counter[int]] = {}
    texts: set[int] = set()
    fates: Counter[str] = Counter()
    for identity, text, domain in _documents(files):
        fates["documents"] += 1
        rank = xxhash.xxh3_64_intdigest(f"{settings.seed}:{identity}".encode())
        if settings.domains and domain not in settings.domains:
            fates["other_domain"] += 1
        elif rank >= settings.holdout_share * 2**64:
            fates["not_held_out"] += 1
        elif not (candidates := _cut(rank, identity, text, settings)):
            fates["no_passage_of_this_length"] += 1
        else:
            drawn.setdefault(domain, []).append(candidates)
            if (digest := _line_hash(text)) not in texts:  # a copy of a document makes none of its lines common
                lines.setdefault(domain, Counter()).update({_line_hash(line) for line in text.split("\n")})
            texts.add(digest)
    items: dict[str, list[EvalItem]] = {}
    for domain, found in sorted(drawn.items()):
        name = "cloze_" + re.sub(r"[^\w.-]", "_", domain)
        own = [next((p for p in candidates if _is_own(p, lines[domain])), None) for candidates in found]
        fates["shared_lines"] += own.count(None)
        items[name] = _items_of(name, [passage for passage in own if passage is not None], settings, fates)
    _write(work, items)
    made = sum(map(len, items.values()))
    total = fates.pop("documents", 0)
    if not made:
        raise DataError(
            f"no cloze item from {total} documents ({dict(fates)}); raise holdout_share or shorten the passages"
        )
    counts = Counts(docs_in=total, kept=made, dropped={k: n for k, n in sorted(fates.items()) if n})
    return Outcome(counts, {"items": {name: len(group) for name, group in items.items()}})


def _documents(files: Sequence[Path]) -> Iterator[tuple[str, str, str]]:
    """Id, text and domain of every document."""
    for file in files:
        try:
            with pq.ParquetFile(file) as parquet:
                for batch in parquet.iter_batches(1024):
                    table = conform(pa.Table.from_batches([batch]), file=file).select(["id", "text", "domain"])
                    for identity, text, domain in zip(
                        *(table[name].to_pylist() for name in table.column_names), strict=True
                    ):
                        yield identity, text, domain or ALL
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{file} is not readable Parquet: {error}") from None


def _cut(rank: int, identity: str, text: str, settings: ClozeSettings) -> list[_Passage]:
    """Passages of a document that start at lines drawn by its rank, in that order; those too short are left out."""
    starts = [0, *(match.end() for match in re.finditer(r"\n+", text))]
    drawn = [xxhash.xxh3_64_intdigest(rank.to_bytes(8, "little"), seed=n) % len(starts) for n in range(ATTEMPTS)]
    found = []
    for start in dict.fromkeys([*(starts[number] for number in drawn), 0]):
        if (ends := _cut_at(text, start, settings)) is not None:
            query, continuation = text[start : ends[0]].lstrip(), text[ends[0] : ends[1]]
            found.append(_Passage(rank, identity, query, continuation, tuple(_lines(text, start, ends[1]))))
    return found


def _cut_at(text: str, start: int, settings: ClozeSettings) -> tuple[int, int] | None:
    """Where query and continuation end in a text, or None when it holds too few words from `start` on.

    The word after the continuation must be in sight: else the last one may have been cut.
    """
    ends = [match.end() for match in WORD.finditer(text, start, start + settings.passage_chars + 1)]
    last = settings.query_words + settings.continuation_words
    if len(ends) <= last or len(LETTERS.findall(text, start, ends[last - 1])) < FOUND_BY:
        return None
    return ends[settings.query_words - 1], ends[last - 1]


def _lines(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Hash of each line that [start, end) touches, the whole line, and how many of its words lie inside."""
    while start < end:
        following = text.find("\n", start)
        following = len(text) if following < 0 else following
        line = text[text.rfind("\n", 0, start) + 1 : following]
        yield _line_hash(line), len(LETTERS.findall(text, start, min(end, following)))
        start = following + 1


def _line_hash(line: str) -> int:
    return xxhash.xxh3_64_intdigest(_squeezed(line).encode())


def _is_own(passage: _Passage, lines: Counter[int]) -> bool:
    """Whether the lines that other held-out documents have too hold less than what decontamination looks for."""
    return sum(words for line, words in passage.lines if lines[line] > 1) < FOUND_BY


def _items_of(name: str, passages: list[_Passage], settings: ClozeSettings, fates: Counter[str]) -> list[EvalItem]:
    """Items of one domain, ordered by rank; passages that cannot be used are counted."""
    chosen: dict[str, _Passage] = {}
    for passage in sorted(passages, key=lambda p: (p.rank, p.id)):
        if _squeezed(passage.query) in chosen:
            fates["same_query_as_another"] += 1
        elif len(chosen) >= settings.items_per_domain:
            fates["beyond_items_per_domain"] += 1
        else:
            chosen[_squeezed(passage.query)] = passage
    pool = sorted(chosen.values(), key=lambda p: (len(p.continuation), p.rank, p.id))
    items = []
    for passage in chosen.values():
        wrong = _distractors(passage, pool, settings.choices - 1)
        if len(wrong) < settings.choices - 1:
            fates["too_few_other_continuations"] += 1
            continue
        gold = xxhash.xxh3_64_intdigest(passage.id.encode(), seed=settings.seed) % settings.choices
        choices = (*wrong[:gold], passage.continuation, *wrong[gold:])
        items.append(EvalItem(passage.id, name, passage.query, choices, gold))
    return items


def _distractors(passage: _Passage, pool: list[_Passage], count: int) -> list[str]:
    """Continuations of other passages: `count` drawn by hash from the `NEIGHBOURS` closest in length, all different."""
    seen = {_squeezed(passage.continuation)}
    nearest: list[_Passage] = []
    for other in _by_distance(passage, pool):
        if _squeezed(other.continuation) not in seen:
            seen.add(_squeezed(other.continuation))
            nearest.append(other)
            if len(nearest) == NEIGHBOURS:
                break
    drawn = sorted(nearest, key=lambda o: xxhash.xxh3_64_intdigest(f"{passage.rank}:{o.rank}".encode()))
    return [other.continuation for other in drawn[:count]]


def _by_distance(passage: _Passage, pool: list[_Passage]) -> Iterator[_Passage]:
    """Passages of a pool sorted by length of continuation, closest to this one's length first."""
    length = len(passage.continuation)
    right = bisect.bisect_left(pool, length, key=lambda p: len(p.continuation))
    left = right - 1
    while left >= 0 or right < len(pool):
        below = length - len(pool[left].continuation) if left >= 0 else None
        above = len(pool[right].continuation) - length if right < len(pool) else None
        if above is None or (below is not None and below < above):
            yield pool[left]
            left -= 1
        else:
            yield pool[right]
            right += 1


def _squeezed(text: str) -> str:
    """The text as decontamination and a reader see it: case and white space aside."""
    return " ".join(text.casefold().split())


def _write(work: Path, items: dict[str, list[EvalItem]]) -> None:
    for name, group in items.items():
        if group:
            write_items(work / "items" / f"{name}.jsonl", group)
    rows = [(item.id, item.benchmark) for group in items.values() for item in group]
    table = pa.table(
        {"id": pa.array([r[0] for r in rows], pa.string()), "benchmark": pa.array([r[1] for r in rows], pa.string())}
    )
    work.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, work / "heldout.parquet", compression="zstd")
