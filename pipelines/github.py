"""Files of GitHub repositories: fetched on demand as the archive of one commit, hashed, then read as files.

`fetch` alone reaches for the network, and `loam fetch` alone calls it. What it fetches lies in
`<root>/lists/<name>/<commit>/`; `_fetched.json` there holds the size and sha256 of every file and of the archive, and
`lock.json` beside it the commit that is read from then on. Without a lock it is the commit that Loam's code names, so
that two machines get the same bytes. `LOAM_GITHUB` names another server with the same paths (a mirror).
"""

import hashlib
import json
import os
import re
import shutil
import tarfile
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from pipelines.errors import DataError
from pipelines.files import read_record, remove_empty_folders, sha256_of, write_atomically

FOLDER, FETCHED, LOCK = "lists", "_fetched.json", "lock.json"
CHUNK_BYTES, LARGEST_BYTES, TIMEOUT_S = 1 << 20, 2 << 30, 60


@dataclass(frozen=True)
class GithubFiles:
    """Some files of a repository.

    Attributes:
        name: what users call them; also their folder.
        repository: owner/name.
        commit: that is fetched unless a newer one is asked for.
        folder: in the repository, whose files are taken with their paths below it.
        pattern: regular expression that these paths match.
        licence: of the files.
        about: half a line for people.
    """

    name: str
    repository: str
    commit: str
    folder: str
    pattern: str
    licence: str
    about: str

    def __str__(self) -> str:
        """Where they are, and under which licence."""
        return f"{self.about} ({self.licence}): github.com/{self.repository} @{self.commit[:12]}"


def commit_of(wanted: GithubFiles, root: Path) -> str:
    """The commit that is read: of the lock, else of the code."""
    return read_record(root / FOLDER / wanted.name / LOCK).get("commit", wanted.commit)


def fetched_folder(wanted: GithubFiles, root: Path) -> Path | None:
    """The folder with the files; None where they are not fetched, or not as they were."""
    folder = root / FOLDER / wanted.name / commit_of(wanted, root)
    files = read_record(folder / FETCHED).get("files", {})
    whole = all((folder / path).is_file() and (folder / path).stat().st_size == entry["size"]
                for path, entry in files.items())  # fmt: skip
    return folder if files and whole else None


def fetch(wanted: GithubFiles, root: Path, update: bool = False, say: Callable[[str], None] = print) -> list[Path]:
    """Download the files unless they are there.

    Args:
        wanted: which files.
        root: folder that gets `lists/`.
        update: take the newest commit of the repository and write it into the lock.
        say: is told of each download.

    Returns:
        the files, sorted.

    Raises:
        DataError: the server cannot be reached, or the archive is not what it should be.
    """
    try:
        commit = _newest(wanted) if update else commit_of(wanted, root)
        place = root / FOLDER / wanted.name
        if update:
            write_atomically(place / LOCK, (json.dumps({"commit": commit}) + "\n").encode())
        if (folder := fetched_folder(wanted, root)) is None:
            say(f"github.com/{wanted.repository}@{commit[:12]} {wanted.folder or 'all'} ({wanted.licence})")
            folder = _download(wanted, commit, place)
    except (OSError, tarfile.TarError, EOFError) as error:
        _clear(root / FOLDER / wanted.name, root)
        why = (str(error).strip() or type(error).__name__).splitlines()[0].strip("<>")
        raise DataError(f"{wanted.name} cannot be fetched from {_server()}/{wanted.repository}: {why}; run the same "
                        "command again, or set LOAM_GITHUB to a mirror with the same paths") from None  # fmt: skip
    return [folder / path for path in sorted(read_record(folder / FETCHED)["files"])]


def _clear(place: Path, root: Path) -> None:
    """Remove what a download that broke off leaves: it begins anew each time."""
    for work in place.glob(".*"):
        shutil.rmtree(work) if work.is_dir() else work.unlink()
    remove_empty_folders(place, root)


def _server() -> str:
    return os.environ.get("LOAM_GITHUB", "https://github.com").rstrip("/")


def _open(address: str) -> Any:
    return urllib.request.urlopen(f"{_server()}/{address}", timeout=TIMEOUT_S)


def _newest(wanted: GithubFiles) -> str:
    """The commit of the default branch, as git itself asks for it."""
    with _open(f"{wanted.repository}.git/info/refs?service=git-upload-pack") as answer:
        found = re.search(rb"([0-9a-f]{40}) HEAD", answer.read(CHUNK_BYTES))
    if found is None:
        raise DataError(f"{_server()}/{wanted.repository} does not say which commit is its newest")
    return found[1].decode()


def _download(wanted: GithubFiles, commit: str, place: Path) -> Path:
    """Download the archive beside its place, take the files out, move them there whole."""
    part, work, folder = place / ".archive.part", place / f".{commit}", place / commit
    shutil.rmtree(work, ignore_errors=True)
    with _open(f"{wanted.repository}/archive/{commit}.tar.gz") as answer:
        work.mkdir(parents=True)
        with part.open("wb") as file:
            shutil.copyfileobj(answer, file, CHUNK_BYTES)
    files = {path: _take_out(content, work / path) for path, content in _members(part, wanted)}
    if not files:
        raise DataError(f"github.com/{wanted.repository}@{commit}: no file of {wanted.folder or 'it'} matches")
    found = {"repository": wanted.repository, "commit": commit, "licence": wanted.licence,
             "archive_sha256": sha256_of(part), "files": files}  # fmt: skip
    write_atomically(work / FETCHED, (json.dumps(found, indent=1, sort_keys=True) + "\n").encode())
    shutil.rmtree(folder, ignore_errors=True)
    work.replace(folder)
    part.unlink()
    return folder


def _members(archive: Path, wanted: GithubFiles) -> Iterator[tuple[str, IO[bytes]]]:
    """Paths below the wanted folder and their contents; links and names that lead elsewhere are passed over."""
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            inside = PurePosixPath(member.name)
            path = PurePosixPath(*inside.parts[1:])  # the first part is the name of the repository and commit
            if not member.isfile() or ".." in inside.parts or not path.is_relative_to(wanted.folder):
                continue
            name = path.relative_to(wanted.folder).as_posix()
            content = tar.extractfile(member)
            if content is not None and member.size <= LARGEST_BYTES and re.fullmatch(wanted.pattern, name):
                yield name, content


def _take_out(content: IO[bytes], target: Path) -> dict[str, Any]:
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    with target.open("wb") as file:
        while chunk := content.read(CHUNK_BYTES):
            digest.update(chunk)
            size += file.write(chunk)
    return {"size": size, "sha256": digest.hexdigest()}
