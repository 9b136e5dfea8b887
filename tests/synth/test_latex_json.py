r"""Backslashes of LaTeX in JSON."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synth.latex_json import double_backslashes


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (r'{"a": "\frac{1}{2}"}', r"\frac{1}{2}"),
        (r'{"a": "\\frac{1}{2}"}', r"\frac{1}{2}"),
        (r'{"a": "\(x \times y\)"}', r"\(x \times y\)"),
        (r'{"a": "\alpha \neq \nu, \ldots"}', r"\alpha \neq \nu, \ldots"),
        (r'{"a": "first\nThen a \"quote\" and \u00e9"}', 'first\nThen a "quote" and é'),
        (r'{"a": "\underline{u} \upsilon"}', r"\underline{u} \upsilon"),
        (r'{"a": "5\,\unit{m} \u12 \ucafe"}', r"5\,\unit{m} \u12 \ucafe".replace(r"\ucafe", "\ucafe")),
        (r'{"a": "x \\\\ y"}', r"x \\ y"),
        (r'{"a": "50\% \{1\}"}', r"50\% \{1\}"),
    ],
)
def test_latex_survives_json(written: str, meant: str):
    assert json.loads(double_backslashes(written)) == {"a": meant}


@given(st.text(st.characters(codec="utf-8")))
def test_right_json_stays_as_it_is(text: str):
    """What `json.dumps` wrote is read as the same text, unless an escape happens to spell a command."""
    written = json.dumps(text)
    if json.loads(double_backslashes(written)) != text:
        assert any(control in text for control in "\b\f\n\r\t")
