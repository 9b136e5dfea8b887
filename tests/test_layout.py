"""The house limits: what keeps the tree pleasant to read, checked instead of remembered."""

import ast
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("pipelines", "filters", "synth", "mixtures", "trainer", "flows")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}
ASIDE = ("LICENSE", "uv.lock")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def functions_of(path: Path) -> list[tuple[str, int]]:
    """Name and length in lines of every function, decorators left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [(f"{name_of(path)}:{f.lineno} {f.name}", (f.end_lineno or f.lineno) - f.lineno + 1) for f in found]


def kept_files() -> list[Path]:
    """Every text file that git tracks or would track."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [path for line in listed.stdout.splitlines() if (path := ROOT / line).is_file()]


def test_there_is_something_to_check():
    assert len(SOURCES) > 20
    assert {path.parent.name for path in SOURCES} >= set(PACKAGES)


def test_files_are_short():
    lengths = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in [*SOURCES, *TESTS]}
    print(f"median file: {statistics.median(lengths.values()):.0f} lines, longest {max(lengths.values())}")
    assert {name: n for name, n in lengths.items() if n > MAX_FILE_LINES} == {}


def test_functions_are_short():
    lengths = dict(found for path in [*SOURCES, *TESTS] for found in functions_of(path))
    print(f"median function: {statistics.median(lengths.values()):.0f} lines, longest {max(lengths.values())}")
    assert {name: n for name, n in lengths.items() if n > MAX_FUNCTION_LINES} == {}


def test_functions_are_measured(tmp_path: Path):
    """The limit sees nested functions and methods: three lines here are three lines."""
    source = ROOT / "pipelines" / "errors.py"
    assert functions_of(source) == []
    measured = dict(functions_of(Path(__file__)))
    assert [n for name, n in measured.items() if name.endswith(" name_of")] == [2]


def test_every_module_says_what_it_is():
    silent = [name_of(p) for p in SOURCES if not ast.get_docstring(ast.parse(p.read_text(encoding="utf-8")))]
    assert silent == []


def test_init_files_hold_a_docstring_and_nothing_else():
    trees = {name_of(p): ast.parse(p.read_text(encoding="utf-8")) for p in SOURCES if p.name == "__init__.py"}
    assert len(trees) >= len(PACKAGES)
    assert [name for name, tree in trees.items() if len(tree.body) != 1 or not ast.get_docstring(tree)] == []


def test_no_module_has_a_vague_name_or_one_of_the_standard_library():
    """A module named like one of the standard library's is imported in its place when its folder is on the path."""
    names = {name_of(path): path.stem for path in SOURCES if path.stem not in ("__init__", "__main__")}
    assert [name for name, stem in names.items() if stem in VAGUE_NAMES | sys.stdlib_module_names] == []


def test_no_package_files_under_tests():
    """`tests/filters/__init__.py` would shadow the real `filters` in silence."""
    assert [name_of(path) for path in TESTS if path.name == "__init__.py"] == []


def test_nothing_is_left_unfinished():
    marker = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X", "NotImplemented" + "Error")) + r")\b")
    assert [name_of(path) for path in [*SOURCES, *TESTS] if marker.search(path.read_text(encoding="utf-8"))] == []


def test_no_path_of_one_machine():
    absolute = re.compile(r"[\"'`\s=(](/" + r"(?:work|home|root|Users|mnt|tmp)/[\w.-]+)")
    found = []
    for path in kept_files():
        if path.name in ASIDE or path.suffix not in (".py", ".md", ".yaml", ".yml", ".toml", ".cfg", ".sh", ""):
            continue
        found += [f"{name_of(path)}: {match}" for match in absolute.findall(path.read_text(encoding="utf-8"))]
    assert found == []


def called(node: ast.AST) -> str:
    """`torch.load` for a call of that form, else nothing."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
        return f"{node.func.value.id}.{node.func.attr}"
    return ""


def is_unsafe(call: ast.Call) -> bool:
    """Whether it executes what a file says; what was pickled on the spot is no file."""
    name = called(call)
    if name == "torch.load":
        return not any(k.arg == "weights_only" and getattr(k.value, "value", None) is True for k in call.keywords)
    module, _, function = name.partition(".")
    unpickles = module in ("pickle", "dill", "joblib") and function in ("load", "loads", "Unpickler")
    return unpickles and not (call.args and called(call.args[0]) == f"{module}.dumps")


def unsafe_loads(path: Path) -> list[str]:
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    return [f"{path.name}:{call.lineno}" for call in calls if is_unsafe(call)]


def test_nothing_is_unpickled():
    assert [call for path in [*SOURCES, *TESTS] for call in unsafe_loads(path)] == []


def test_unsafe_loads_are_seen(tmp_path: Path):
    sample = tmp_path / "sample.py"
    sample.write_text(
        "pickle.load(f)\ntorch.load(f)\ntorch.load(f, weights_only=True)\npickle.loads(pickle.dumps(f))\njson.load(f)\n"
    )
    assert unsafe_loads(sample) == ["sample.py:1", "sample.py:2"]
