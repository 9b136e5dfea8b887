import json
import random
from collections import defaultdict
from itertools import permutations

import pytest

from filters.language_training import (
    _DECLARATIONS,
    LABEL_CHARS,
    TRAINING,
    _codes,
    chosen_lines,
    pieces_of,
    read_declarations,
    read_messages,
    tidy,
    train,
    training_lines,
)
from pipelines.errors import DataError


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_messages_lose_markup_and_placeholders():
    assert tidy("<b>Save</b> {{PLURAL:$1|the page|the pages}} of [[User:X|you]] at $1 &amp; https://a.b/c") == (
        "Save the page the pages of you at &"
    )


def test_untranslated_messages_are_left_out(tmp_path):
    write(tmp_path / "x/i18n/en.json", json.dumps({"@metadata": {}, "a": "Save page. Go on.", "b": "Wiki"}))
    write(tmp_path / "x/i18n/de.json", json.dumps({"a": "Seite speichern.", "b": "Wiki"}))
    write(tmp_path / "x/i18n/qqq.json", json.dumps({"a": "A button."}))
    lines = defaultdict(dict)
    read_messages(tmp_path, lines)
    assert {code: list(found) for code, found in lines.items()} == {
        "eng": ["Save page.", "Go on.", "Wiki"], "deu": ["Seite speichern."],
    }  # fmt: skip
    with pytest.raises(DataError, match="expected an unpacked MediaWiki"):
        read_messages(tmp_path / "x/i18n/none", lines)


def test_declarations_are_read_by_paragraph(tmp_path):
    for name in _codes(_DECLARATIONS):
        write(tmp_path / f"{name}.html", "<html><h1>Title</h1>\n<p>All are free,\nand equal.</p></html>")
    lines = defaultdict(dict)
    read_declarations(tmp_path, lines)
    assert list(lines["fra"]) == ["Title", "All are free,", "and equal."]
    (tmp_path / "fra.html").unlink()
    with pytest.raises(DataError, match=r"fra.html is missing"):
        read_declarations(tmp_path, lines)


def test_long_lines_are_cut():
    assert pieces_of("short") == ["short"]
    assert pieces_of(" ".join(["word"] * 40)) == [" ".join(["word"] * n) for n in (12, 12, 12, 4)]
    assert [len(piece) for piece in pieces_of("字" * 150)] == [60, 60, 30]


def test_small_languages_are_repeated_and_large_ones_cut():
    small, large = ["ten chars." + str(n) for n in range(100)], ["x" * 100 + str(n) for n in range(9000)]
    assert len(list(chosen_lines(small, random.Random(1)))) == 8 * len(small)
    assert LABEL_CHARS <= sum(map(len, chosen_lines(large, random.Random(1)))) < LABEL_CHARS + 200
    assert len(list(chosen_lines(small[:3], random.Random(1)))) == 3


def test_the_same_lines_give_the_same_bytes(tmp_path):
    import fasttext

    english = ["house", "hill", "water", "morning", "village", "bread", "school", "letter", "window", "garden"]
    german = ["haus", "berg", "wasser", "morgen", "dorf", "brot", "schule", "brief", "fenster", "garten"]
    lines = defaultdict(dict)
    lines["eng"] = {"the {} is near the {} and the {} of {}".format(*four): None for four in permutations(english, 4)}
    lines["deu"] = {"das {} liegt bei dem {} und dem {} von {}".format(*four): None for four in permutations(german, 4)}
    settings = TRAINING | {"bucket": 3000, "epoch": 2}
    for name in ("a", "b"):
        train(training_lines(lines, frequencies=False), tmp_path / name, settings)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    model = fasttext.load_model(str(tmp_path / "a"))
    assert model.predict(["the hill", "auf dem berg"])[0] == [["__label__eng"], ["__label__deu"]]
