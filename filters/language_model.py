"""Which language a text is in: py3langid's naive Bayes over byte n-grams, and a model of character n-grams beside it.

The one choice that matters: only the data of py3langid are used (a model bundled with the package: nothing is
downloaded); the automaton's walk and the scores run in a compiled kernel over the Arrow buffers, which gives the same
labels and probabilities, several times faster; `language_ngrams.py` adds the languages that it lacks. Source:
py3langid 0.4, a fork of langid.py (Lui and Baldwin, 2012).
"""

import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from filters.code_lines import windows_of
from filters.language_ngrams import MODEL, load_ngrams, propose, weigh
from filters.text_memory import buffers_of
from pipelines.compiled import kernel
from pipelines.files import sha256_of
from pipelines.manifest import digest_of

UNDETERMINED = "und"
CODE = "zxx"
"""ISO 639-3 for what is no language: program code."""
# py3langid labels with ISO 639-1 where there is one. Where the model tells siblings apart (`zh` beside `yue` and `wuu`,
# `no` beside `nn`) the label means the individual language; other macrolanguages keep their own code.
_LABELS = """
af:afr am:amh an:arg ar:ara as:asm az:aze ba:bak be:bel bg:bul bn:ben br:bre bs:bos ca:cat cs:ces cy:cym da:dan
de:deu dz:dzo el:ell en:eng eo:epo es:spa et:est eu:eus fa:pes fi:fin fo:fao fr:fra fy:fry ga:gle gd:gla gl:glg
gu:guj ha:hau he:heb hi:hin hr:hrv ht:hat hu:hun hy:hye id:ind ig:ibo is:isl it:ita ja:jpn jv:jav ka:kat kk:kaz
km:khm kn:kan ko:kor ku:kur ky:kir la:lat lb:ltz lg:lug ln:lin lo:lao lt:lit lv:lvs mg:mlg mk:mkd ml:mal mn:mon
mr:mar ms:zsm mt:mlt my:mya ne:nep nl:nld nn:nno no:nob oc:oci om:orm or:ori pa:pan pl:pol ps:pus pt:por qu:que
ro:ron ru:rus rw:kin sa:san se:sme si:sin sk:slk sl:slv sn:sna so:som sq:sqi sr:srp st:sot sv:swe sw:swh ta:tam
te:tel tg:tgk th:tha tk:tuk tl:tgl tr:tur tt:tat ug:uig uk:ukr ur:urd uz:uzb vi:vie vo:vol wa:wln xh:xho yo:yor
zh:cmn zu:zul
"""
ISO_639_3 = {pair[:2]: pair[3:] for pair in _LABELS.split()}
"""ISO 639-1 label -> ISO 639-3 code."""
MACROLANGUAGES = {
    "zho": ("cmn", "yue", "wuu"), "nor": ("nob", "nno"), "fas": ("pes",), "swa": ("swh",), "msa": ("zsm", "ind"),
    "lav": ("lvs", "ltg"), "ara": ("ara", "ary", "arz"), "kur": ("kur", "sdh"), "uzb": ("uzb", "uzs"),
    "grn": ("gug",), "ful": ("fuv",), "kok": ("gom",),
}  # fmt: skip
"""ISO 639-3 macrolanguages that stand for several labels: a wish to keep `zho` keeps `cmn`, `yue` and `wuu`."""


class Model(NamedTuple):
    """The arrays of the model: S automaton states, F features, C classes.

    Attributes:
        moves: uint32 (rows * 256,), next state by row and byte.
        row_S: int64 (S,), where a state's row begins in `moves`.
        feature_S: int32 (S,), feature seen on entering a state, or -1.
        weights_FC: float32, log probability of a feature in a class.
        prior_C: float32.
        merged_C: int64, index of the class that a class is an alias of (itself when none).
    """

    moves: np.ndarray
    row_S: np.ndarray
    feature_S: np.ndarray
    weights_FC: np.ndarray
    prior_C: np.ndarray
    merged_C: np.ndarray


@functools.cache
def load_model() -> tuple[Model, tuple[str, ...]]:
    """Read the bundled model.

    Returns:
        its arrays, and the ISO 639-3 code of each class.
    """
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    source = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    classes = [str(label) for label in source.nb_classes]
    model = Model(
        moves=np.frombuffer(source.tk_nextmove, np.dtype(f"u{source.tk_nextmove.itemsize}")).astype(np.uint32),
        row_S=np.asarray(source.tk_row, np.int64) << 8,
        feature_S=np.asarray(source.tk_output, np.int32),
        weights_FC=np.ascontiguousarray(source.nb_ptc, np.float32),
        prior_C=np.ascontiguousarray(source.nb_pc, np.float32),
        merged_C=np.array([classes.index(label) for label in classes]),
    )
    return model, tuple(ISO_639_3.get(label, label) for label in classes)


@functools.cache
def model_digest() -> str:
    """Of the files of both models."""
    from py3langid import langid

    return digest_of([sha256_of(Path(langid.__file__).parent / langid.MODEL_FILE), sha256_of(MODEL)])[:16]


@functools.cache
def _numbering() -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Codes of both models; the number of each class of py3langid; bool: what py3langid could have answered."""
    bayes = load_model()[1]
    codes = tuple(dict.fromkeys((*load_ngrams()[1], *bayes)))
    class_C = np.array([codes.index(code) for code in bayes])
    return codes, class_C, np.isin(np.arange(len(codes)), class_C)


def known_languages() -> set[str]:
    """ISO 639-3 codes that can be answered, macrolanguages included."""
    return set(_numbering()[0]) | set(MACROLANGUAGES)


def identify(texts: pa.Array | pa.ChunkedArray) -> tuple[pa.Array, np.ndarray]:
    """Tell the language of each text.

    A short text is read whole, a longer one in four windows from its beginning to its end (`code_lines.windows_of`),
    each judged on its own. Lines of program code are left out; a text that is code more than prose is no language.

    Args:
        texts: string column of N texts.

    Returns:
        ISO 639-3 codes, string (N,), `und` where nothing can be told (probability 0), `zxx` for code; probability of
        that language, the mean over the windows, float64 (N,), 0..1.
    """
    if isinstance(texts, pa.ChunkedArray):
        texts = texts.combine_chunks()
    windows = windows_of(texts)
    codes, class_C, covered_L = _numbering()
    head = windows.texts
    head = pc.utf8_normalize(pc.if_else(pc.utf8_is_upper(head), pc.utf8_lower(head), head), "NFC")
    proposed_WK, share_WK = propose(pc.utf8_lower(head))
    bayes_W, bayes_share_W = _bayes(head)
    bayes_W = np.where(bayes_W < 0, -1, class_C[bayes_W])
    bayes_W[proposed_WK[:, 0] < 0] = -1  # digits and signs alone are no sentence
    best_W, confidence_W = weigh(proposed_WK, share_WK, bayes_W, bayes_share_W, covered_L)
    best_N, confidence_N = _over_windows(best_W, confidence_W, windows.rows, len(texts), len(codes))
    # half of it code is as good as sure: of prose hardly any has a third (docs/benchmarks.md)
    confidence_N[windows.is_code] = 1 - (1 - windows.code_share[windows.is_code]) ** 3
    best_N[windows.is_code] = codes.index(CODE)
    labels = pa.DictionaryArray.from_arrays(pa.array(best_N, mask=best_N < 0), pa.array(codes)).cast(pa.string())
    return pc.fill_null(labels, UNDETERMINED), confidence_N


def _over_windows(
    best_W: np.ndarray, confidence_W: np.ndarray, rows_W: np.ndarray, count: int, languages: int
) -> tuple[np.ndarray, np.ndarray]:
    """The language with the greatest sum of confidence over a text's windows, and that sum per window with letters."""
    if len(rows_W) == count:
        return best_W, confidence_W
    said = best_W >= 0
    keys, at = np.unique(rows_W[said] * languages + best_W[said], return_inverse=True)
    sums = np.bincount(at, weights=confidence_W[said], minlength=len(keys))
    rows, found = np.divmod(keys, languages)
    order = np.lexsort((-found, sums, rows))  # the last of a row is its best
    last = order[np.append(rows[order][1:] != rows[order][:-1], True)] if len(order) else order
    best_N, confidence_N = np.full(count, -1, np.int64), np.zeros(count)
    best_N[rows[last]] = found[last]
    heard_N = np.bincount(rows_W[said], minlength=count)
    confidence_N[rows[last]] = sums[last] / heard_N[rows[last]]
    return best_N, confidence_N


def _bayes(head: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """What py3langid says: class, int64 (N,), -1 nothing; its probability."""
    data, offsets = buffers_of(head)
    best_N = np.full(len(head), -1, np.int64)
    share_N = np.zeros(len(head))
    _classify(data, offsets, load_model()[0], best_N, share_N)
    return best_N, share_N


@kernel
def _classify(data, offsets, model, best_N, confidence_N):
    seen = np.zeros(len(model.weights_FC), np.int32)
    features = np.empty(len(model.weights_FC), np.int32)
    classes = len(model.prior_C)
    scores = np.empty(classes, np.float32)
    for n in range(len(offsets) - 1):
        state, found = 0, 0
        for i in range(offsets[n], offsets[n + 1]):
            state = np.int64(model.moves[model.row_S[state] + data[i]])
            feature = model.feature_S[state]
            if feature >= 0:
                if seen[feature] == 0:
                    features[found] = feature
                    found += 1
                seen[feature] += 1
        if found == 0:
            continue
        scores[:] = model.prior_C
        for k in range(found):
            count = np.float32(np.log1p(np.float32(seen[features[k]])))
            row = model.weights_FC[features[k]]
            for c in range(classes):
                scores[c] += count * row[c]
            seen[features[k]] = 0
        best_N[n], confidence_N[n] = _normalise(scores, model.merged_C, offsets[n + 1] - offsets[n])


@kernel
def _normalise(scores, merged_C, size_bytes):
    """Softmax at temperature sqrt(bytes), aliases added to their class; (best class, its probability)."""
    temperature = np.sqrt(size_bytes)
    top = scores.max()
    share = np.zeros(len(scores))
    total = 0.0
    for c in range(len(scores)):
        p = np.exp((scores[c] - top) / temperature)
        share[merged_C[c]] += p
        total += p
    best = np.argmax(share)
    return best, share[best] / total
