"""The reference pages: every verb and every key of every recipe, written from the code that reads them.

`make docs` writes them and a test compares them with what is in `docs/reference/`, so that they cannot fall behind.
Meanings come from the `Attributes:` of the models' docstrings and from the help of the options; nothing is typed twice.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from flows.kinds import RECIPE_KINDS
from flows.recipe_keys import table, tree
from mixtures.mixture import Domains
from pipelines.recipe import ROOT
from trainer.fine_tune import FineTuneSettings

PAGES = ROOT / "docs" / "reference"
GENERATED = "<!-- Written by `make docs` from the code; edit the docstrings and help texts there. -->"
RULES = (
    "Every reason that `loam synth` can give, with its version; a hash of all versions and thresholds stands in every "
    "sample (`verification`). A judge's verdict (`refuted: ...`, `undecided: ...`) says what it found. How often each "
    "rejects what people wrote is in [synthesis.md](../synthesis.md)."
)
INTRO = "What each kind of recipe may say. How recipes work is in [recipes.md](../recipes.md)."
TABLES = {"domains.yaml": Domains, "loam tune": FineTuneSettings}


def main() -> None:
    """Write both pages."""
    PAGES.mkdir(exist_ok=True)
    for name, text in pages().items():
        (PAGES / name).write_text(text, encoding="utf-8")


def pages() -> dict[str, str]:
    """File name -> Markdown."""
    from flows.cli import app

    command = typer.main.get_command(app)
    verbs = [line for path, verb in verbs_of(command, "loam") for line in _verb(path, verb)]
    kinds = [line for name, model in {**RECIPE_KINDS, **TABLES}.items() for line in tree(name, model)]
    pages = {
        "cli.md": ["# The command line", "", GENERATED, "", command.help or "", "", *verbs],
        "recipes.md": ["# Recipes, key by key", "", GENERATED, "", INTRO, "", *kinds],
    }
    pages["synthesis-rules.md"] = ["# Why a generation is rejected", "", GENERATED, "", RULES, "", *_rules()]
    return {name: "\n".join(lines).rstrip() + "\n" for name, lines in pages.items()}


def _rules() -> list[str]:
    from synth.verification import REASONS

    rows = [(f"`{reason}`", str(version), meaning) for reason, (version, meaning) in REASONS.items()]
    return table(("Reason", "Version", "Meaning"), rows)


def verbs_of(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every verb below a click command, with the words that call it."""
    below = getattr(command, "commands", None)
    if below is None:
        yield path, command
    for name, verb in (below or {}).items():
        yield from verbs_of(verb, f"{path} {name}")


def _verb(path: str, verb: Any) -> list[str]:
    arguments = [p for p in verb.params if p.param_type_name == "argument"]
    options = [p for p in verb.params if p.param_type_name == "option" and p.name != "help"]
    usage = " ".join([path, *map(_word, arguments), *(["[options]"] if options else [])])
    rows = [(f"`{_word(p)}`", _sentence(p.help)) for p in arguments]
    rows += [(f"`{', '.join(p.opts)}`", _sentence(p.help, p)) for p in options]
    return [f"## `{path}`", "", verb.help, "", f"    {usage}", "", *table(("Argument", "Meaning"), rows), ""]


def _word(argument: Any) -> str:
    return argument.metavar or argument.name.upper()


def _sentence(text: str | None, option: Any = None) -> str:
    default, notes = getattr(option, "default", None), []
    if getattr(option, "required", False):
        notes = ["required"]
    elif isinstance(default, (int, float, str, Path)) and default is not False:
        notes = [f"default `{default}`"]
    return "; ".join([(text or "").rstrip("."), *notes])


if __name__ == "__main__":
    main()
