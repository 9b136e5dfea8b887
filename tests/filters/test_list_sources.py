import json
import re

import pytest

from filters.list_sources import LISTS, USUAL, how_to_get, list_path
from filters.safety import SafetySettings


def fetched(root, name, **files):
    """What `loam fetch` leaves behind."""
    folder = root / "lists" / name / LISTS[name].commit
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    sizes = {path: {"size": len(text), "sha256": ""} for path, text in files.items()}
    (folder / "_fetched.json").write_text(json.dumps({"files": sizes}))
    return folder


def test_a_name_is_found_where_fetch_puts_it(tmp_path):
    words = fetched(tmp_path, "ldnoobw", en="damn\n")
    suffixes = fetched(tmp_path, "public-suffixes", **{"public_suffix_list.dat": "com\n"})
    settings = SafetySettings(urls="ut1", words="ldnoobw", public_suffixes="public-suffixes").below(tmp_path)
    assert settings.words == str(words)
    assert settings.public_suffixes == str(suffixes / "public_suffix_list.dat")
    (missing,) = settings.missing()
    assert missing.endswith("run: loam fetch ut1")
    assert "CC-BY-SA-4.0" in missing


def test_a_path_that_exists_is_a_path(tmp_path):
    fetched(tmp_path, "ut1", **{"gambling/domains": "bad.com\n"})
    (tmp_path / "ut1").mkdir()
    assert list_path("ut1", tmp_path) == tmp_path / "ut1"


def test_a_path_that_is_not_there_says_which_list_is_usual():
    assert how_to_get("words", "my-words").endswith("run: loam fetch ldnoobw, and name it: words: ldnoobw")


@pytest.mark.parametrize("name", LISTS)
def test_every_list_is_pinned_to_a_commit(name):
    assert re.fullmatch("[0-9a-f]{40}", LISTS[name].commit)
    assert LISTS[name].licence
    assert name in USUAL.values()


def test_patterns_take_lists_and_nothing_else():
    assert [n for n in ("adult/domains", "adult/domains.gz", "adult/urls", "adult/usage", "README") if
            re.fullmatch(LISTS["ut1"].pattern, n)] == ["adult/domains", "adult/domains.gz", "adult/urls"]  # fmt: skip
    assert [n for n in ("en", "fil", "fr-CA-u-sd-caqc", "README.md", "LICENSE") if
            re.fullmatch(LISTS["ldnoobw"].pattern, n)] == ["en", "fil", "LICENSE"]  # fmt: skip
