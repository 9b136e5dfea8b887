"""Safety: documents from listed addresses and documents with listed words are dropped, with the reason.

The one choice that matters: Loam ships no list and fetches none unasked. A folder with UT1's categories and one with a
list of words per language are given by path, or by the name that `loam fetch` knows; categories of UT1 that say nothing
against a text (banks, newspapers) are left alone unless they are named. Words with the default settings are C4's rule
about bad words. Sources: RefinedWeb (arXiv:2306.01116, appendix G.1), C4 (JMLR 21/20-074), FineWeb.
"""

import functools
import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from pydantic import Field

from filters.list_sources import how_to_get, list_path
from filters.url_lists import Entries, compile_entries, match_addresses
from filters.verdict import first_failure
from filters.word_lists import Trie, compile_words, count_words, words_in
from pipelines.block import Block
from pipelines.document import DROPPED, with_fate
from pipelines.errors import DataError
from pipelines.execute import transform
from pipelines.files import expand_inputs
from pipelines.recipe import Section
from pipelines.store import Outcome
from pipelines.url_key import Addresses, normalise_addresses

_HARMLESS_NAMES = """
ai associations_religieuses astrology audio-video bank bitcoin blog celebrity chat child cleaning cooking dialer doh
download dynamic-dns educational_games examen_pix exceptions_liste_bu filehosting financial forums games jobsearch
liste_blanche liste_bu manga marketingware mobile-phone press publicite radio reaffected redirector remote-control
residential-proxies sexual_education shopping shortener social_networks sports strict_redirector strong_redirector
translation tricheur tricheur_pix update vpn webhosting webmail
"""
HARMLESS = frozenset(_HARMLESS_NAMES.split())
"""Categories of UT1 that do not speak against a text; the others in a folder of lists are used."""
WORD_FILES = {"hard": ("hard_words", "banned_words"), "soft": ("soft_words", "soft_banned_words"),
              "inside": ("inside_words", "banned_subwords")}  # fmt: skip
"""Files of words in addresses, by what they do: Loam's name, and the name in datatrove's folder of lists."""
LIST_OF = {"cmn": "zh", "zho": "zh", "yue": "zh", "nob": "no", "nno": "no", "nor": "no", "pes": "fa", "fas": "fa",
           "eng": "en", "deu": "de", "fra": "fr", "spa": "es", "por": "pt", "ita": "it", "nld": "nl", "rus": "ru",
           "jpn": "ja", "kor": "ko", "tha": "th", "hin": "hi", "arb": "ar", "ara": "ar", "ces": "cs", "dan": "da",
           "fin": "fi", "hun": "hu", "pol": "pl", "swe": "sv", "tur": "tr", "epo": "eo", "fil": "fil", "tgl": "fil",
           "kab": "kab", "tlh": "tlh"}  # fmt: skip
"""ISO 639-3 -> name of the list of words, as LDNOOBW names them."""


class SafetySettings(Section):
    """Which lists, and what a match means.

    Attributes:
        urls: `ut1`, or a folder of lists of domains and addresses: `<category>/domains`, `<category>/urls`,
            `<category>_domains.txt(.gz)`, ... and of words in addresses (`hard_words`, `soft_words`, `inside_words`).
        words: `ldnoobw`, or a folder with a list of words for each language (`en`, `zh`, ...; plain or .txt).
        categories: lists to use; empty: all but those that say nothing against a text.
        soft_matches: so many soft words in an address drop a document; one hard word does.
        listed_words: what the English list of `words` is in addresses.
        most_words: a document with more listed words than this is dropped.
        keep_fraction: share of documents with listed words that stays all the same, drawn by hash of the id.
        seed: of that draw.
        default_language: of documents without one; null: such documents are not looked at.
        public_suffixes: `public-suffixes`, or file of the public suffix list; null: a rule of thumb.
    """

    urls: str | None = None
    words: str | None = None
    categories: list[str] = Field(default_factory=list)
    soft_matches: int = Field(default=2, ge=1)
    listed_words: Literal["soft", "hard", "off"] = "soft"
    most_words: int = Field(default=0, ge=0)
    keep_fraction: float = Field(default=0.0, ge=0, le=1)
    seed: int = 0
    default_language: str | None = "eng"
    public_suffixes: str | None = None

    @property
    def paths(self) -> dict[str, str]:
        """Folders and files that must be there, by setting."""
        named = {"urls": self.urls, "words": self.words, "public_suffixes": self.public_suffixes}
        return {name: path for name, path in named.items() if path is not None}

    def below(self, root: Path) -> "SafetySettings":
        """The same with paths that start at a folder; a list of a known name is found where `loam fetch` puts it."""
        return self.model_copy(update={name: str(list_path(path, root)) for name, path in self.paths.items()})

    def missing(self) -> list[str]:
        """What is not there, one line each, and how it is got."""
        return [
            f"safety.{name}: {path} does not exist; {how_to_get(name, Path(path).name)}"
            for name, path in self.paths.items() if not Path(path).exists()
        ]  # fmt: skip


def _lines(path: Path) -> list[str]:
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    lines = (line.strip() for line in raw.decode("utf-8", "replace").split("\n"))
    return [line for line in lines if line and not line.startswith("#")]


class UrlLists:
    """Lists of addresses, compiled.

    Attributes:
        names: categories by number.
        entries: domains and addresses.
        words: lists of words in addresses, by `hard`, `soft`, `inside`.
    """

    def __init__(self, settings: SafetySettings, files: Sequence[Path]) -> None:
        by_category: dict[str, list[Path]] = {}
        word_files: dict[str, list[str]] = {kind: [] for kind in WORD_FILES}
        for file in files:
            stem = file.name.removesuffix(".gz").removesuffix(".txt")
            kind = next((kind for kind, names in WORD_FILES.items() if stem in names), None)
            if kind is not None:
                word_files[kind] += _lines(file)
            else:
                by_category.setdefault(_category_of(file, stem), []).append(file)
        if unknown := sorted(set(settings.categories) - set(by_category)):
            have = ", ".join(sorted(by_category))
            raise DataError(
                f"safety.categories names {unknown[0]!r}, of which {settings.urls} has no list; it has: {have}"
            )
        self.names = settings.categories or sorted(set(by_category) - HARMLESS)
        suffixes = frozenset(_lines(Path(settings.public_suffixes))) if settings.public_suffixes else frozenset()
        lists = [
            (number, pa.array(_lines(file))) for number, name in enumerate(self.names) for file in by_category[name]
        ]
        self.entries: Entries = compile_entries(lists, frozenset(s for s in suffixes if not s.startswith("//")))
        if settings.words is not None and settings.listed_words != "off":
            word_files[settings.listed_words] += words_of(Path(settings.words)).get("en", [])
        self.words: dict[str, Trie] = {kind: compile_words(words) for kind, words in word_files.items() if words}


def _category_of(file: Path, stem: str) -> str:
    if stem in ("domains", "urls", "expressions"):
        return file.parent.name
    return stem.removesuffix("_domains").removesuffix("_urls")


def words_of(folder: Path) -> dict[str, list[str]]:
    """Lists of words by the name of their language (`en`, `zh`); files with capitals in their names are none."""
    found: dict[str, list[str]] = {}
    for file in expand_inputs([folder]):
        name = file.name.removesuffix(".gz").removesuffix(".txt")
        if name.isalpha() and name.islower() and len(name) <= 3:
            found[name] = _lines(file)
    if not found:
        raise DataError(f"{folder} has no list of words named by a language ('en', 'zh.txt', ...)")
    return found


class Lists(NamedTuple):
    """All lists of some settings, compiled.

    Attributes:
        urls: of addresses and of words in them; None where nothing speaks of addresses.
        words: by language, the trie and the entries that its numbers mean.
    """

    urls: UrlLists | None
    words: dict[str, tuple[Trie, list[str]]]


@functools.lru_cache(maxsize=2)
def _compiled(settings_json: str) -> Lists:
    """Lists of these settings, once per process (settings with lists in them have no hash, their JSON has)."""
    settings = SafetySettings.model_validate_json(settings_json)
    for line in settings.missing():
        raise DataError(line)
    words = words_of(Path(settings.words)) if settings.words else {}
    urls = UrlLists(settings, expand_inputs([settings.urls]) if settings.urls else []) if settings.paths else None
    return Lists(urls, {name: (compile_words(listed), listed) for name, listed in words.items()})


def lists_of(settings: SafetySettings) -> Lists:
    """The compiled lists.

    Raises:
        DataError: one is missing; names the command that gets it.
    """
    return _compiled(settings.model_dump_json())


def listed_words(
    texts: Sequence[str], languages: Sequence[str | None], settings: SafetySettings
) -> list[frozenset[str]]:
    """Which listed words stand in each text, by the list for its language; none where there is no list for it.

    Args:
        texts: any.
        languages: ISO 639-3, one for each text.
        settings: with `words`.

    Raises:
        DataError: the lists are missing.
    """
    lists = lists_of(settings).words
    found = [frozenset[str]()] * len(texts)
    names = [LIST_OF.get(known, known) for known in (one or settings.default_language or "" for one in languages)]
    for name in sorted(set(names) & set(lists)):
        trie, listed = lists[name]
        chosen = [number for number, one in enumerate(names) if one == name]
        numbers = words_in(pa.array([texts[number] for number in chosen], pa.string()), trie)
        for number, words in zip(chosen, numbers, strict=True):
            found[number] = frozenset(listed[word] for word in words)
    return found


class Safety(Block):
    """Drop documents by their address and by their words.

    Adds the attributes `safety.url` (`gambling`, or the kind of words in the address; null: none), `safety.words`
    (listed words in the text; null: no list for its language) and `safety.word` (the first of them).

    Args:
        settings: lists, and what a match means.

    Raises:
        DataError: a list is missing.
    """

    name = "safety"

    def __init__(self, settings: SafetySettings) -> None:
        super().__init__()
        self.settings = settings
        lists_of(settings)  # what is missing is found before work starts

    def apply(self, batch: pa.Table) -> pa.Table:
        """Judge a batch."""
        urls, words = lists_of(self.settings)
        rows = batch.num_rows
        reasons = pa.nulls(rows, pa.string())
        matched = pa.nulls(rows, pa.string())
        if urls is not None:
            reasons, matched = self._by_address(batch["url"], urls)
        batch = batch.append_column("safety.url", matched)
        count_N, first = np.zeros(rows, np.int64), pa.nulls(rows, pa.string())
        looked_N = np.zeros(rows, bool)
        if words:
            word_reasons, count_N, looked_N, first = self._by_words(batch, words)
            reasons = pc.coalesce(reasons, word_reasons)
        batch = batch.append_column("safety.words", pa.array(count_N, mask=~looked_N))
        return with_fate(batch.append_column("safety.word", first), DROPPED, reasons)

    def _by_address(self, column: pa.ChunkedArray, urls: UrlLists) -> tuple[pa.Array, pa.Array]:
        found = normalise_addresses(column, lists=True)
        domain_N, address_N = match_addresses(found, urls.entries)
        text = _address_texts(found)
        least = {"hard": 1, "soft": self.settings.soft_matches, "inside": 1}
        fails, names = [domain_N >= 0, address_N >= 0], ["domain", "address"]
        for kind, trie in urls.words.items():
            count_N, _ = count_words(text, trie, underscore=False, anywhere=kind == "inside")
            fails.append(count_N >= least[kind])
            names.append(f"{kind}_words")
        which = first_failure(fails, names, len(domain_N))
        category_N = np.where(domain_N >= 0, domain_N, address_N)
        categories = (
            pa.array(urls.names, pa.string()).take(pa.array(category_N, mask=category_N < 0)) if urls.names else None
        )
        matched = pc.coalesce(categories, which) if categories is not None else which
        listed = pc.is_in(which, value_set=pa.array(["domain", "address"]))
        by_list = pc.binary_join_element_wise("url", which, matched, ".")
        return pc.if_else(listed, by_list, pc.binary_join_element_wise("url", which, ".")), matched

    def _by_words(
        self, batch: pa.Table, words: dict[str, tuple[Trie, list[str]]]
    ) -> tuple[pa.Array, np.ndarray, np.ndarray, pa.Array]:
        languages = np.array(batch["language"].to_pylist(), object)
        languages[languages == None] = self.settings.default_language  # noqa: E711 - element by element
        texts, rows = batch["text"].combine_chunks(), batch.num_rows
        count_N, looked_N = np.zeros(rows, np.int64), np.zeros(rows, bool)
        reasons, firsts = np.full(rows, None, object), np.full(rows, None, object)
        for language in sorted({str(found) for found in languages if found is not None}):
            name = LIST_OF.get(language, language)
            if name not in words:
                continue
            trie, listed = words[name]
            chosen = np.flatnonzero(languages == language)
            found_N, first_N = count_words(texts.take(pa.array(chosen)), trie)
            count_N[chosen], looked_N[chosen] = found_N, True
            for row, word in zip(chosen[found_N > 0].tolist(), first_N[found_N > 0].tolist(), strict=True):
                firsts[row] = listed[word]
            reasons[chosen[found_N > self.settings.most_words]] = f"words.{name}"
        if self.settings.keep_fraction:
            limit = self.settings.keep_fraction * 2**64
            for row in np.flatnonzero(reasons != None).tolist():  # noqa: E711
                if (
                    xxhash.xxh64_intdigest(batch["id"][row].as_py().encode("utf-8", "replace"), self.settings.seed)
                    < limit
                ):
                    reasons[row] = None
        return pa.array(reasons, pa.string()), count_N, looked_N, pa.array(firsts, pa.string())


def _address_texts(found: Addresses) -> pa.Array:
    """Normalised addresses as people read them: percent signs stand for letters of words."""
    texts = found.texts()
    rows = np.flatnonzero(pc.match_substring(texts, "%").to_numpy(zero_copy_only=False))
    if not len(rows):
        return texts
    plain = texts.to_pylist()
    for row in rows.tolist():
        plain[row] = unquote(plain[row], errors="replace")
    return pa.array(plain, pa.string())


def safety(files: Sequence[Path], work: Path, settings: SafetySettings, workers: int = 1) -> Outcome:
    """Filter documents by lists of addresses and words.

    Args:
        files: Parquet documents.
        work: the step's folder; gets `kept/`, `dropped/` (reason `url.domain.gambling`, `url.soft_words`, `words.en`)
            and `attributes/`.
        settings: which lists.
        workers: processes.

    Returns:
        counts, and what the lists hold.

    Raises:
        DataError: a list is missing.
    """
    if not settings.paths:
        raise DataError("no list is given; name a folder of lists with --urls, of words with --words, or both")
    urls, words = lists_of(settings)
    facts: dict[str, object] = {"languages": sorted(words)}
    if urls is not None:
        facts |= {"categories": urls.names, "domains": len(urls.entries.domains_E),
                  "addresses": len(urls.entries.addresses_E), "refused_entries": urls.entries.refused}  # fmt: skip
    return Outcome(transform(files, [Safety(settings)], work, workers, "safety"), facts)
