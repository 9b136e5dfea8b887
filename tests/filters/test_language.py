import gzip

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from filters.language import IdentifyLanguage, LanguageSettings, language
from filters.language_model import ISO_639_3, _bayes, identify, known_languages, load_model
from filters.language_ngrams import load_ngrams, propose, weigh
from pipelines.document import STREAM, conform
from pipelines.errors import RecipeError

ENGLISH = "The weather was fine, and nobody in the village wanted to work that afternoon."
FRENCH = "Il faisait beau, et personne au village ne voulait travailler cet après-midi."
CHINESE = "天气很好，那天下午村里没有人想工作。"


def documents(*texts: str) -> pa.Table:
    return conform(pa.table({"id": [f"d{n}" for n in range(len(texts))], "text": list(texts)}), STREAM)


def test_three_languages():
    codes, confidence = identify(pa.array([ENGLISH, FRENCH, CHINESE]))
    assert codes.to_pylist() == ["eng", "fra", "cmn"]
    assert (confidence > 0.9).all()


def test_nothing_to_tell():
    codes, confidence = identify(pa.array(["", " "]))
    assert codes.to_pylist() == ["und", "und"]
    assert confidence.tolist() == [0, 0]
    assert identify(pa.array([], pa.string()))[0].to_pylist() == []


def test_bayes_labels_and_probabilities_are_those_of_py3langid():
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    oracle = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    classes = load_model()[1]
    texts = [ENGLISH, FRENCH, CHINESE, "café au lait", "привет, как дела?", "x = y + 1;"]
    best, share = _bayes(pa.array(texts))
    for text, found, probability in zip(texts, best, share, strict=True):
        label, expected = oracle.classify(text)
        assert classes[found] == ISO_639_3.get(label, label)
        assert probability == pytest.approx(expected, abs=1e-4)


def test_languages_that_py3langid_lacks():
    texts = [
        "Wušykne šule maju swójsku bibliotekę a wjele knigłow za studentow.",
        "Esas necesa ke omna homi lernez ica linguo.",
    ]
    assert identify(pa.array(texts))[0].to_pylist() == ["dsb", "ido"]
    assert len(load_ngrams()[1]) >= 200


def test_two_opinions_are_multiplied():
    covered = np.array([True, True, False])
    proposed, share = np.array([[0, 2], [0, 2], [-1, -1]]), np.array([[0.5, 0.4], [0.5, 0.4], [0.0, 0.0]])
    best, confidence = weigh(proposed, share, np.array([0, 1, -1]), np.array([0.9, 0.3, 0.0]), covered)
    assert best.tolist() == [0, 2, -1]  # agreement; a language that py3langid cannot say; nothing
    assert (confidence[:2] > 0.5).all()
    assert confidence[2] == 0


def test_digits_and_signs_are_undetermined():
    assert identify(pa.array(["12 345 + 6 = ?!", "..."]))[0].to_pylist() == ["und", "und"]
    assert propose(pa.array(["12"]))[0].tolist() == [[-1] * 5]


def test_a_long_text_is_judged_over_all_of_it():
    head, body = ENGLISH * 20, FRENCH * 400
    codes, confidence = identify(pa.array([head + body, body, ENGLISH * 400]))
    assert codes.to_pylist() == ["fra", "fra", "eng"]
    assert 0.5 < confidence[0] < 0.8  # three windows of four
    assert (confidence[1:] > 0.9).all()


def test_code_is_no_wrong_language():
    code = "import os\n\n\ndef area(radius):\n    return math.pi * radius ** 2\n\n\nprint(area(2.0))\n"
    prose = (ENGLISH + "\n") * 4 + "\n```\nx = area(radius=2.0)\nprint(x)\n```\n" + ENGLISH
    codes, confidence = identify(pa.array([code, prose]))
    assert codes.to_pylist() == ["zxx", "eng"]
    assert (confidence > 0.9).all()
    settings = {"keep": ["eng"], "min_confidence": 0.65}
    assert IdentifyLanguage(LanguageSettings(**settings)).apply(documents(code))["reason"].to_pylist() == [None]
    judged = IdentifyLanguage(LanguageSettings(**settings, code="judge")).apply(documents(code, prose))
    assert judged["reason"].to_pylist() == ["language.zxx", None]


def test_a_script_can_be_asked_for():
    latin, cyrillic = (
        "Dobro jutro, kako ste danas? Ja sam iz Beograda.",
        "Добро јутро, како сте данас? Ја сам из Београда.",
    )
    traditional = "這個國家的語言很美麗，那天下午沒有人想工作。"
    block = IdentifyLanguage(LanguageSettings(keep=["srp_Cyrl", "zho_Hans"]))
    judged = block.apply(documents(cyrillic, CHINESE, traditional, latin))
    assert judged["script"].to_pylist() == ["Cyrl", "Hans", "Hant", "Latn"]
    assert judged["reason"].to_pylist()[:3] == [None, None, "language.cmn_Hant"]
    assert judged["reason"].to_pylist()[3].startswith("language.")
    assert judged["language"].to_pylist()[:3] == ["srp", "cmn", "cmn"]
    with pytest.raises(RecipeError, match="unknown script 'Latin' in keep; did you mean Latn"):
        IdentifyLanguage(LanguageSettings(keep=["srp_Latin"]))


def test_codes_are_iso_639_3():
    assert all(len(code) == 3 and code.isalpha() for code in load_model()[1])
    assert {"eng", "cmn", "zho", "zxx"} <= known_languages()


def test_unwanted_and_doubtful_documents_are_dropped_by_name():
    block = IdentifyLanguage(LanguageSettings(keep=["eng", "zho"], min_confidence=0.65))
    judged = block.apply(documents(ENGLISH, FRENCH, CHINESE))
    assert judged["reason"].to_pylist() == [None, "language.fra", None]
    assert judged["language"].to_pylist() == ["eng", "fra", "cmn"]
    doubtful = IdentifyLanguage(LanguageSettings(min_confidence=1.0)).apply(documents("ok no"))
    assert doubtful["reason"].to_pylist() == ["language.low_confidence"]
    assert 0 < doubtful["scores"].to_pylist()[0]["language"] < 1


def test_code_is_labelled_without_looking():
    judged = IdentifyLanguage(LanguageSettings(label="code", keep=["eng"])).apply(documents("x = 1"))
    assert (judged["language"].to_pylist(), judged["fate"].to_pylist()) == (["zxx"], [None])


def test_a_wrong_code_is_explained():
    with pytest.raises(RecipeError, match="unknown language 'en' in keep; did you mean eng"):
        IdentifyLanguage(LanguageSettings(keep=["en"]))


def test_the_verb_writes_scores(tmp_path):
    path = tmp_path / "kept" / "web" / "part-00000.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.table({"id": ["a", "b"], "text": [ENGLISH, FRENCH]}), path)
    outcome = language([path], tmp_path / "out")
    scores = pq.read_table(tmp_path / "out/scores/web/part-00000.parquet")
    assert scores.column_names == ["id", "language", "confidence", "script"]
    assert scores["language"].to_pylist() == ["eng", "fra"]
    assert scores["script"].to_pylist() == ["Latn", "Latn"]
    assert outcome.metrics == {"languages": {"eng": 1, "fra": 1}}


def test_accuracy_on_tatoeba(shared):
    with gzip.open(shared / "langid/tatoeba_112.tsv.gz", "rt", encoding="utf-8") as lines:
        rows = [line.rstrip("\n").split("\t", 1) for line in lines]
    rows = rows[::5]
    codes, confidence = identify(pa.array([text for _, text in rows]))
    right = np.array(codes.to_pylist()) == np.array([code for code, _ in rows])
    assert right.mean() > 0.80  # all 113 languages count, single sentences of 39 bytes on average
    assert right[confidence >= 0.9].mean() > 0.93
