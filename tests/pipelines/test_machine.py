import json
import os
import re
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines import machine
from pipelines.pydoc_pages import page, render

MODULES = ["json", "json.decoder", "textwrap", "string", "no_such_module"]


def test_the_draw_depends_on_names_and_seed_only():
    names = [f"n{n}" for n in range(100)]
    assert machine.chosen(names, 1) == machine.chosen(reversed(names), 1)
    assert machine.chosen(names, 1) != machine.chosen(names, 2)


@given(st.lists(st.binary(max_size=9), max_size=9), st.integers(0, 40), st.integers(0, 9))
def test_a_budget_is_kept(contents, max_bytes, max_documents):
    taken = machine.within([(str(n), c) for n, c in enumerate(contents)], max_bytes, max_documents)
    assert sum(len(c) for _, c in taken) <= max_bytes
    assert len(taken) <= max_documents
    assert taken == sorted(taken)


def test_pages_are_the_same_for_any_number_of_workers(tmp_path):
    one = list(machine.pydoc_pages(MODULES, tmp_path / "1", 1))
    two = list(machine.pydoc_pages(MODULES, tmp_path / "2", 2))
    assert one == two
    assert [url for url, _ in one] == [f"pydoc:/{name}.html" for name in MODULES[:-1]]
    assert b"JSONDecoder" in one[1][1]
    assert (tmp_path / "1" / "no_such_module.failed").exists()


def test_rendered_pages_are_not_rendered_again(tmp_path):
    (tmp_path / "json.html").write_text("from before")
    assert list(machine.pydoc_pages(["json"], tmp_path, 1)) == [("pydoc:/json.html", b"from before")]


def test_pages_show_neither_paths_nor_addresses():
    html = page("http.client") + page("os") + page("ast")
    assert os.path.dirname(os.__file__) not in html
    assert not re.search(r"at(?: |&nbsp;)0x[0-9a-f]{2,}", html)
    assert os.environ["HOME" if "HOME" in os.environ else "PATH"] not in html


def test_a_module_that_hangs_is_given_up(tmp_path, monkeypatch):
    (tmp_path / "sleeper.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert not render("sleeper", tmp_path, limit_s=1)
    assert (tmp_path / "sleeper.failed").exists()


def test_modules_are_listed_without_those_that_act_on_import():
    names = machine.module_names()
    assert {"json", "json.decoder", "argparse"} <= set(names)
    assert not {"antigravity", "this", "test", "idlelib", "torch"} & set(names)


def test_descriptions_are_json_records():
    found = machine.readmes()
    name = next(name for name in sorted(found) if name.startswith("pyarrow=="))
    record = json.loads(found[name]())
    assert record["id"] == name
    assert "Arrow" in record["text"]
    assert not any(name.startswith("loam==") for name in found)


@pytest.mark.parametrize("files", [machine.code_files, machine.licence_files])
def test_files_have_relative_names_and_read(files):
    found = files()
    assert len(found) > 50
    assert all(re.match(r"(stdlib|site-packages|system)/[^/]", name) for name in found)
    name, content = next(machine.contents(found, 0))
    assert content == found[name].read_bytes()


def test_shards_hold_everything_once_and_are_reproducible(tmp_path):
    items = [(f"d/{n}.py", b"x" * n) for n in range(7)]
    for folder in ("a", "b"):
        machine.write_shards(items, tmp_path / folder, 3, machine.write_tar_shard)
    names = []
    for path in sorted((tmp_path / "a").iterdir()):
        with tarfile.open(path) as archive:
            names += archive.getnames()
    assert sorted(names) == [name for name, _ in items]
    assert all(path.read_bytes() == (tmp_path / "b" / path.name).read_bytes() for path in (tmp_path / "a").iterdir())


def test_json_shards_are_lines(tmp_path):
    machine.write_json_shard(Path(tmp_path / "part-00000"), [("a", b'{"id":1}'), ("b", b'{"id":2}')])
    assert (tmp_path / "part-00000.jsonl").read_bytes() == b'{"id":1}\n{"id":2}\n'
