import pytest
from hypothesis import given
from hypothesis import strategies as st

from synth.names import missing_names, names_of


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Then Marie Curie left Warsaw for Paris.", ["Marie Curie", "Warsaw", "Paris"]),
        ("Rain falls. Acid forms.", []),
        ("UNESCO listed it.", ["UNESCO"]),
        ("Does the Distance Between Stars Matter Much?", []),
        ("1. Because of Newton, it falls.", ["Newton"]),
        ("On Monday in May we met Dr Ruiz.", ["Ruiz"]),
        ("他读过《红楼梦》，也用 Linux。", ["红楼梦", "Linux"]),
    ],
)
def test_names(text: str, names: list[str]):
    assert names_of(text) == names


@pytest.mark.parametrize(
    ("text", "document", "missing"),
    [
        ("Then Curie left for Paris.", "Curie went to Paris in 1891.", []),
        ("Then Curie left for London.", "Curie went to Paris in 1891.", ["London"]),
        ("The work of Curie's students", "curie had students", []),
        ("We train GANs.", "A generative adversarial network is trained.", []),
        ("We train BERT.", "A generative adversarial network is trained.", ["BERT"]),
        ("It is a Multi-task model.", "a multitask model", []),
        ("她写了《围城》。", "钱锺书的《围城》出版于1947年。", []),
        ("她写了《边城》。", "钱锺书的《围城》出版于1947年。", ["边城"]),
    ],
)
def test_names_are_held_or_named(text: str, document: str, missing: list[str]):
    assert missing_names(text, document) == missing


@given(st.text(max_size=200))
def test_a_text_holds_its_own_names(text: str):
    assert missing_names(text, text) == [] or any(not word.isascii() for word in text)


@given(st.lists(st.sampled_from(["Anna", "Bonn", "went", "to", "see", "NATO", "Rhine"]), min_size=1, max_size=12))
def test_words_of_a_document_are_held_in_any_order(words: list[str]):
    assert missing_names(" ".join(words), " ".join(sorted(words))) == []
