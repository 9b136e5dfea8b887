import pyarrow as pa

from filters.scripts import KNOWN, script_of


def test_traditional_and_simplified():
    codes = pa.array(["cmn", "cmn", "yue", "cmn", "jpn", "und"])
    texts = pa.array(["这个国家的语言", "這個國家的語言", "佢哋係香港嘅學生", "人口大山", "日本語", "これは本です"])
    assert script_of(texts, codes).to_pylist() == ["Hans", "Hant", "Hant", "Hani", "Jpan", "Jpan"]


def test_scripts_of_letters():
    texts = [
        "Добро jutro, Београде",
        "Dobro jutro",
        "καλημέρα",
        "صباح الخير",
        "안녕하세요",
        "नमस्ते",
        "ภาษาไทย",
        "ⴰⵣⵓⵍ",
        "12 + 3",
        "",
    ]
    found = script_of(pa.array(texts), pa.nulls(len(texts), pa.string())).to_pylist()
    assert found == ["Cyrl", "Latn", "Grek", "Arab", "Hang", "Deva", "Thai", "Tfng", None, None]
    assert set(found) - {None} <= KNOWN


def test_most_letters_decide():
    assert script_of(pa.array(["the word мир means peace", "😀😀 мир"]), pa.array(["eng", "rus"])).to_pylist() == [
        "Latn", "Cyrl",
    ]  # fmt: skip
