"""Public lists that `loam fetch NAME` brings, each pinned to a commit, and where a setting that names one finds it.

Loam ships none of them: their licences ask for attribution, and they change. A setting may name a list or give a path;
what exists as a path is a path.
"""

from pathlib import Path

from pipelines.github import GithubFiles, fetched_folder

LISTS = {
    "ut1": GithubFiles(
        "ut1", "olbat/ut1-blacklists", "74670b22d81073b1ad1b727a9c0c89d41bf47210", "blacklists",
        r"[^/]+/(domains|urls)(\.gz)?", "CC-BY-SA-4.0", "UT1: sites by category, University of Toulouse",
    ),
    "ldnoobw": GithubFiles(
        "ldnoobw", "LDNOOBW/List-of-Dirty-Naughty-Obscene-and-Otherwise-Bad-Words",
        "5faf2ba42d7b1c0977169ec3611df25a3c08eb13", "", r"[a-z]{2,3}|LICENSE", "CC-BY-4.0",
        "LDNOOBW: bad words of 28 languages, as C4 uses them",
    ),
    "public-suffixes": GithubFiles(
        "public-suffixes", "publicsuffix/list", "b1a233859307e95f173efe6f7409799c203190ff", "",
        r"public_suffix_list\.dat", "MPL-2.0", "the public suffix list",
    ),
}  # fmt: skip
USUAL = {"urls": "ut1", "words": "ldnoobw", "public_suffixes": "public-suffixes"}
"""The list that a setting of `safety` usually means."""


def list_path(given: str, root: Path) -> Path:
    """The path that a setting means: one that exists, else the files of the list of that name, else the path."""
    path = root / given
    if path.exists() or given not in LISTS:
        return path
    folder = fetched_folder(LISTS[given], root)
    if folder is None:
        return path
    return folder / "public_suffix_list.dat" if given == "public-suffixes" else folder


def how_to_get(setting: str, given: str) -> str:
    """What to do about a list that is not there, in half a line."""
    name = given if given in LISTS else USUAL[setting]
    named = "" if given in LISTS else f", and name it: {setting}: {name}"
    return f"{LISTS[name]}; run: loam fetch {name}{named}"
