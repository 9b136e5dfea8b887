"""What the pages say is true: links lead somewhere, commands parse, recipes load, quoted output has the real shape."""

import re
import shlex
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from flows.cli import USAGE_ERROR, app
from flows.graph import steps_of
from flows.kinds import load_any
from flows.recipe import RunRecipe
from flows.reference import PAGES, pages, verbs_of
from flows.show import render

ROOT = Path(__file__).resolve().parents[1]
GUIDES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
GENERATED = [PAGES / name for name in pages()]
VERBS = dict(verbs_of(typer.main.get_command(app), "loam"))
GROUPS = {path.rpartition(" ")[0] for path in VERBS}
README = (ROOT / "README.md").read_text(encoding="utf-8")


def each(guides: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("page", guides, ids=lambda page: page.relative_to(ROOT).as_posix())


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[str]:
    """What is typed after a `$` in the console blocks of a page."""
    lines = [line for block in blocks(text, "console") for line in block.splitlines()]
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


def output_of(command: str) -> list[str]:
    """The lines that README shows below a command."""
    shown = next(block for block in blocks(README, "console") if block.startswith(f"$ {command}\n"))
    return shown.splitlines()[1:]


def verb_of(words: list[str]) -> tuple[str, list[str]]:
    """The verb that a command line calls, and what is left of the line."""
    for length in (3, 2):
        if (path := " ".join(words[:length])) in VERBS:
            return path, words[length:]
    raise AssertionError(f"no such verb: {' '.join(words)}")


def shape(line: str) -> str:
    """A line with what differs from run to run taken out: fingerprints, numbers, and folders before the run's."""
    line = re.sub(r"\S*?(\w+)@[0-9a-f]{12}", r"\1@F", line)
    return re.sub(r"\d+", "0", line)


def parse(line: str) -> None:
    path, words = verb_of(shlex.split(line, comments=True))
    VERBS[path].make_context(path, words)


def test_reference_pages_are_up_to_date():
    stale = [name for name, text in pages().items() if (PAGES / name).read_text(encoding="utf-8") != text]
    assert stale == [], "run `make docs`"


def test_every_verb_and_every_key_has_its_line():
    reference = pages()
    assert all(f"## `{path}`" in reference["cli.md"] for path in VERBS)
    assert "| `token_row` " not in reference["cli.md"]
    assert "`SHARD:ROW`" in reference["cli.md"]
    assert (
        "| `tokens` | tokens, > 0 | required | drawn in this stage, rounded up to whole batches. |"
        in reference["recipes.md"]
    )
    assert "### run: `language_model`, `train`, `effect.proxy`, " in reference["recipes.md"]


@each(GUIDES)
def test_links_lead_somewhere(page: Path):
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    local = [link.partition("#")[0] for link in links if not re.match(r"https?://|mailto:|#", link)]
    assert [link for link in local if not (page.parent / link).exists()] == []


@each([page for page in GUIDES if page not in GENERATED])
def test_commands_parse(page: Path):
    for line in commands(page.read_text(encoding="utf-8")):
        if line.startswith("loam "):
            parse(line)
        else:
            assert re.match(r"make [a-z-]+$", line), line


@each([page for page in GUIDES if page not in GENERATED])
def test_verbs_options_and_targets_named_in_passing_exist(page: Path):
    prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for words in (quoted.split() for quoted in re.findall(r"`((?:loam|make) [^`]+)`", prose)):
        if words[0] == "make":
            assert words[1] in targets, words
        elif " ".join(words) not in GROUPS and not words[1].isupper() and words[1] != "--help":
            path, rest = verb_of(words)
            known = {option for parameter in VERBS[path].params for option in parameter.opts}
            assert {word for word in rest if word.startswith("-")} <= known, words


def test_a_wrong_command_would_be_seen():
    with pytest.raises(AssertionError, match="no such verb: loam bake"):
        parse("loam bake quickstart")
    with pytest.raises(USAGE_ERROR, match="--untl"):
        parse("loam run quickstart --untl law")


@each([page for page in GUIDES if "<!-- recipe:" in page.read_text(encoding="utf-8")])
def test_recipes_on_the_pages_load(page: Path, tmp_path: Path):
    found = re.findall(r"<!-- recipe: (\w+) -->\n```yaml\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    assert found
    for number, (kind, text) in enumerate(found):
        path = tmp_path / f"{number}.yaml"
        path.write_text(text, encoding="utf-8")
        assert load_any(str(path)).model_dump()["kind"] == kind


def test_table_of_folders_is_complete():
    listed = re.findall(r"^\| `([a-z]+)/` \|", README, re.MULTILINE)
    ignored = re.findall(r"^/?(\w+)/$", (ROOT / ".gitignore").read_text(), re.MULTILINE)
    there = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name[0] != "."}
    assert sorted(listed) == sorted(there - set(ignored))


def test_files_named_in_the_tour_and_the_glossary_exist():
    for page in (ROOT / "CONTRIBUTING.md", ROOT / "docs" / "glossary.md"):
        named = re.findall(
            r"`((?:pipelines|filters|synth|mixtures|trainer|flows|docs|tests)/[\w./]*)`", page.read_text()
        )
        assert named
        assert [name for name in named if not (ROOT / name).exists()] == []


def test_what_a_run_prints_last_is_what_readme_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.jsonl").write_text('{"id": "a", "text": "Sand and clay."}\n')
    notes = "{notes: {kind: jsonl, paths: [notes.jsonl], domain: reference}}"
    sets = [f"sources={notes}", "filters={'*': none}", "language={'*': {}}", "ablate.targets=[]"]
    sets.append("quality={positive: [reference]}")
    words = [word for value in sets for word in ("--set", value)]
    result = CliRunner().invoke(app, ["run", "quickstart", "--no-prefect", "--until", "ingest", *words])
    assert result.exit_code == 0, result.output
    shown = [shape(line) for line in output_of("make quickstart")]
    assert [shape(line) for line in result.output.splitlines()] == [line for line in shown if "steps done" in line]
    target = load_any("quickstart").model_dump()["publish"]["target"]
    delivered = [f"dataset: {target}/dataset", f"model: {target}/model"]
    assert shown[-3:] == [*delivered, "report: quickstart@F/report/report.html"]


def test_the_table_of_show_in_readme_has_the_real_head_and_steps():
    shown = output_of("loam show quickstart")
    real = render({"run": "quickstart@0123456789ab", "steps": {}, "timing": {}}).splitlines()
    assert [shape(line) for line in shown[:3]] == [shape(line) for line in real[:3]]
    recipe = load_any("quickstart")
    assert isinstance(recipe, RunRecipe)
    names = [step.name for step in steps_of(recipe)]
    rows = [line.split()[0] for line in shown[3 : shown.index("", 3)] if line != "..."]
    assert rows == [name for name in names if name in rows]
    assert len(rows) > 10
