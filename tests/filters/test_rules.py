import numpy as np
import pyarrow as pa
import pytest

from filters.rule_tables import RULE_SETS
from filters.rules import Rule, judge, rule_set
from filters.text_stats import STATS, text_stats
from filters.verdict import first_failure
from pipelines.errors import RecipeError

LINES = [f"line number {n} says something of its own" for n in range(20)]
QUOTE = (
    "I wish it need not have happened in my time, said Frodo. So do I, said Gandalf, and so do all who live to see "
    "such times. But that is not for them to decide. All we have to decide is what to do with the time that is "
    "given us."
)


def reason(rules: str, text: str, **thresholds: float | None) -> str | None:
    limits = {f"{rules}.{key.replace('__', '.')}": value for key, value in thresholds.items()}
    chosen = rule_set(rules, limits)
    return judge(chosen, text_stats(pa.array([text])), 1).to_pylist()[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [  # inputs and outcomes as in datatrove's own tests
        ("I am your father.\n" * 4, "dup_line_frac"),
        ("I am Groot.\n\n" * 4, "dup_para_frac"),
        ("I am groot.\n\nYou are a wizard.\n\nI am your father.\n\n" + ("x" * 30 + ".\n\n") * 2, "dup_para_char_frac"),
        ("I am groot.\nYou are a wizard.\nI am your father.\n" + ("x" * 40 + ".\n") * 2, "dup_line_char_frac"),
        ("I am Frank, I am Frank, I am Frank", "top_2_gram"),
        ("I am Frank, you are Jhon. I am Frank. I am Frank you are Jhon", "top_3_gram"),
        ("", "empty"),
    ],
)
def test_repetition(text, expected):
    assert reason("gopher_repetition", text) == f"gopher_repetition.{expected}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I am too small...", "word_count"),
        ("I am " * 20, "word_length"),
        ("interconnection " * 20, "word_length"),
        ("# comment " * 20, "hashes"),
        ("... comment " * 20, "ellipses"),
        ("the ./!*?<><> apple <?////> orange  ++ interconnection !<>??? have" * 20, "alpha_words"),
        ("nothing here is common enough anywhere, sadly", "stop_words"),
    ],
)
def test_quality(text, expected):
    limits = {"word_count__low": 5 if expected == "stop_words" else 10, "word_count__high": 1000}
    assert reason("gopher_quality", text, **limits) == f"gopher_quality.{expected}"


def test_a_quote_passes():
    assert reason("gopher_quality", QUOTE, word_count__low=10) is None


def test_c4_and_fineweb():
    assert reason("c4", "One is here. Two is here. Three is here. Four is here.") == "c4.sentences"
    assert reason("c4", "This is one. " * 5) is None
    assert reason("c4", "This is one. " * 5 + "\nfunction f() { return 1; } is code.") == "c4.curly_bracket"
    assert reason("c4", "This is one. " * 5 + "\nfunction f() { return }") is None  # that line is not judged
    assert reason("c4_fineweb", "This is one. " * 5 + "\nfunction f() { return }") == "c4_fineweb.curly_bracket"
    assert reason("fineweb", "\n".join(LINES)) == "fineweb.line_punct"
    assert reason("fineweb", "Short.\n" * 9) == "fineweb.short_lines"
    assert reason("fineweb", "\n".join(f"{line}." for line in [*LINES, LINES[0]])) == "fineweb.line_chars"
    assert reason("fineweb", "\n".join(f"{line}." for line in LINES)) is None


def test_code_rules():
    assert reason("code", "def f(x):\n    return x\n") is None
    assert reason("code", "x = '" + "a" * 1000 + "'") == "code.longest_line"
    assert reason("code", "%%%% ???? ####") == "code.alphanumeric"


def test_the_first_failing_rule_names_the_reason():
    failures = [np.array([False, True, True]), np.array([False, True, False])]
    assert first_failure(failures, ["a", "b"], 3).to_pylist() == [None, "a", "a"]
    assert first_failure([], [], 2).to_pylist() == [None, None]


def test_limits_are_inclusive():
    rule = Rule("a.b", "x", low=1, high=2)
    assert rule.fails(np.array([0.9, 1, 2, 2.1])).tolist() == [True, False, False, True]


def test_every_rule_looks_at_a_statistic_that_exists():
    for rules in RULE_SETS.values():
        assert all(rule.stat in STATS for rule in rules)
        assert len({rule.name for rule in rules}) == len(rules)


def test_unknown_names_are_explained():
    with pytest.raises(RecipeError, match="no rule set 'gofer_quality'; did you mean gopher_quality"):
        rule_set("gofer_quality")
    with pytest.raises(
        RecipeError, match=r"no threshold 'gopher_quality.words.low'; did you mean .*gopher_quality.word_count.low"
    ):
        rule_set("gopher_quality", {"gopher_quality.words.low": 3})


def test_published_thresholds():
    # FineWeb, arXiv:2406.17557, and Gopher, arXiv:2112.11446, table A1
    limits = {rule.name: (rule.low, rule.high) for rule in RULE_SETS["web_en"]}
    assert limits["gopher_quality.word_count"] == (50, 100_000)
    assert limits["gopher_repetition.top_4_gram"] == (None, 0.16)
    assert limits["fineweb.line_punct"] == (0.12, None)
    groups = list(dict.fromkeys(name.split(".")[0] for name in limits))
    assert groups == ["gopher_repetition", "gopher_quality", "c4_fineweb", "fineweb"]
