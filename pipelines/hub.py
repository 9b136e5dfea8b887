"""Repositories of the Hugging Face Hub: fetched on demand, pinned to a commit, checked, then read as files.

`fetch` is the only function that reaches for the network, and `loam fetch` the only verb that calls it. What it fetches
lies in `<root>/hub/<owner>--<name>/<commit>/` under the repository's own paths (of a model, `models--<owner>--<name>`).
`fetched.json` there holds each file's size and sha256 and which files a recipe's subset and split mean;
`revisions.json` beside it is the lock: which commit a branch was when it was fetched, and is from then on.
`HF_ENDPOINT` names another server that speaks the Hub's API.
"""

import contextlib
import hashlib
import importlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from pipelines.errors import DataError, RecipeError
from pipelines.files import read_record, remove_empty_folders, sha256_of, write_atomically
from pipelines.inputs import format_of
from pipelines.source_settings import FileSource, HubSource, SourceSettings

FOLDER, FETCHED, REVISIONS = "hub", "fetched.json", "revisions.json"
READ_BYTES = 32 << 20
HELD_OUT = ("test", "validation", "valid", "dev")
URL_FORMS = "hf://datasets/owner/name[@revision]/path-or-glob or hf://models/owner/name[@revision]"
HUB_URL = re.compile(r"hf://datasets/(?P<dataset>[\w.-]+/[\w.-]+)(@(?P<revision>[^/]+))?/(?P<glob>.+)")
MODEL_URL = re.compile(r"hf://models/(?P<model>[\w.-]+/[\w.-]+)(@(?P<revision>[^/]+))?")
COMMIT = re.compile(r"[0-9a-f]{40}")  # a revision of this form cannot move; a branch or a tag can
MODEL_FILES = ("*.json", "*.safetensors", "*.txt", "*.model")  # nothing that has to be unpickled
OF_A_SAVED_SET = ("dataset_info.json", "state.json")  # beside the Arrow files that `datasets` saves; no records


@dataclass(frozen=True)
class Wanted:
    """Files of a dataset repository.

    Attributes:
        dataset: owner/name.
        revision: branch, tag or commit.
        subset: config, or None.
        split: of that config.
        files: globs, instead of subset and split.
        repo: what the repository holds.
    """

    dataset: str
    revision: str = "main"
    subset: str | None = None
    split: str = "train"
    files: tuple[str, ...] = ()
    repo: Literal["dataset", "model"] = "dataset"

    def __str__(self) -> str:
        """The URL, with what is chosen in it."""
        what = ",".join(self.files) or f"{self.subset or 'default'}:{self.split}"
        return f"hf://{self.repo}s/{self.dataset}@{self.revision}/{what}"

    @property
    def selection(self) -> str:
        """What is chosen, as a key of `fetched.json`."""
        chosen = {"files": self.files} if self.files else {"subset": self.subset, "split": self.split}
        return json.dumps(chosen, sort_keys=True)


def is_hub_url(path: str) -> bool:
    """Whether a path names files on the Hub."""
    return path.startswith("hf://")


def wanted_at(url: str) -> Wanted:
    """What `hf://datasets/owner/name[@revision]/glob` names (a `/` in a revision is written `%2F`).

    Raises:
        RecipeError: it is no such URL.
    """
    found = _parts(HUB_URL, url)
    return Wanted(found["dataset"], (found["revision"] or "main").replace("%2F", "/"), files=(found["glob"],))


def wanted_model_at(url: str) -> Wanted:
    """What `hf://models/owner/name[@revision]` names.

    Raises:
        RecipeError: it is no such URL.
    """
    found = _parts(MODEL_URL, url)
    return wanted_model(found["model"], found["revision"])


def _parts(form: re.Pattern[str], url: str) -> re.Match[str]:
    if (found := form.fullmatch(url)) is None:
        raise RecipeError(f"{url!r}: expected {URL_FORMS}")
    return found


def wanted_model(name: str, revision: str | None = None) -> Wanted:
    """What a model's folder needs: configuration, tokenizer and weights."""
    return Wanted(name, revision or "main", files=MODEL_FILES, repo="model")


def wanted_by(settings: HubSource) -> Wanted:
    """What a source of a recipe names."""
    return Wanted(settings.dataset, settings.revision, settings.subset, settings.split, settings.files)


def wanted_of(sources: Mapping[str, SourceSettings]) -> dict[str, list[Wanted]]:
    """What the sources of a recipe want from the Hub, by the source's name."""
    wanted: dict[str, list[Wanted]] = {}
    for name, settings in sources.items():
        if isinstance(settings, HubSource):
            wanted[name] = [wanted_by(settings)]
        elif isinstance(settings, FileSource) and (urls := [path for path in settings.paths if is_hub_url(path)]):
            wanted[name] = [wanted_at(url) for url in urls]
    return wanted


def fetched_files(wanted: Wanted, root: Path, name: str) -> list[Path]:
    """The files of a source on this disk, in the repository's order.

    Args:
        wanted: which files.
        root: folder that holds `hub/`.
        name: of the source, for the message.

    Raises:
        DataError: they were not fetched, or one is not as it was.
    """
    folder = commit_folder(wanted, root)
    found = read_record(folder / FETCHED)
    chosen = found.get("selections", {}).get(wanted.selection)
    if chosen is None:
        raise DataError(f"source {name!r}: {wanted} needs a download; run: loam fetch RECIPE")
    for path in chosen:
        size = found["files"][path]["size"]
        if not (folder / path).is_file() or (folder / path).stat().st_size != size:
            raise DataError(f"source {name!r}: {folder / path} is not the {size} bytes that were fetched; "
                            "run: loam fetch RECIPE")  # fmt: skip
    return [folder / path for path in chosen]


def is_fetched(wanted: Wanted, root: Path) -> bool:
    """Whether nothing has to be downloaded."""
    try:
        fetched_files(wanted, root, "")
    except DataError:
        return False
    return True


def pinned_commit(wanted: Wanted, root: Path) -> str | None:
    """The commit that a run will read: the revision where it is one, else what the lock says; None before a fetch."""
    if COMMIT.fullmatch(wanted.revision):
        return wanted.revision
    return read_record(_place(wanted, root) / REVISIONS).get(wanted.revision)


def checked_hash(file: Path) -> str:
    """sha256 of a file, compared with what was fetched where it lies in a folder that `fetch` wrote.

    Raises:
        DataError: the bytes are not those that were fetched.
    """
    digest = sha256_of(file)
    for folder in file.parents:
        if (folder / FETCHED).is_file():
            expected = read_record(folder / FETCHED)["files"].get(file.relative_to(folder).as_posix(), {}).get("sha256")
            if expected not in (None, digest):
                raise DataError(f"{file}: expected sha256 {expected}, found {digest}; run: loam fetch RECIPE")
            break
    return digest


def _place(wanted: Wanted, root: Path) -> Path:
    prefix = "models--" if wanted.repo == "model" else ""
    return root / FOLDER / (prefix + wanted.dataset.replace("/", "--"))


def commit_folder(wanted: Wanted, root: Path) -> Path:
    """Where the files of the commit lie that is fetched, or that will be."""
    return _place(wanted, root) / (pinned_commit(wanted, root) or wanted.revision.replace("/", "-"))


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_atomically(path, (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode())


def fetch(wanted: Wanted, root: Path, update: bool = False, say: Callable[[str], None] = print) -> list[Path]:
    """Download what is not there yet; a file that broke off goes on where it was.

    Args:
        wanted: which files.
        root: folder that gets `hub/`.
        update: ask anew which commit the revision names; without it, what was pinned before stays.
        say: is told of each file.

    Returns:
        the files, in the repository's order.

    Raises:
        DataError: the Hub cannot be reached, has no such dataset, revision or file, or sends other bytes than it says.
    """
    with _online():
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HFValidationError

        api = HfApi()
        try:
            return _fetch(api, wanted, root, update, say)
        except (HFValidationError, OSError, *_network_errors()) as error:
            remove_empty_folders(commit_folder(wanted, root), root)
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise DataError(f"{wanted} cannot be fetched from {api.endpoint}: {why}; run the same command again to go "
                            "on, or set HF_ENDPOINT to another server") from None  # fmt: skip


def _network_errors() -> tuple[type[Exception], ...]:
    """What the Hub's client raises, and the library that it speaks HTTP by: its version decides which that is."""
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import get_session

    library = importlib.import_module(type(get_session()).__module__.partition(".")[0])
    return HfHubHTTPError, library.HTTPError


@contextlib.contextmanager
def _online() -> Iterator[None]:
    """Let the client reach the network, even under HF_HUB_OFFLINE: it was asked for by name."""
    before = os.environ.pop("HF_HUB_OFFLINE", None)
    from huggingface_hub import constants

    was, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, False
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = was
        if before is not None:
            os.environ["HF_HUB_OFFLINE"] = before


def _fetch(api: Any, wanted: Wanted, root: Path, update: bool, say: Callable[[str], None]) -> list[Path]:
    place = _place(wanted, root)
    commit = None if update else pinned_commit(wanted, root)
    info = api.repo_info(wanted.dataset, revision=commit or wanted.revision, repo_type=wanted.repo)
    commit = commit or info.sha
    tree = api.list_repo_tree(wanted.dataset, recursive=True, revision=commit, repo_type=wanted.repo)
    files = {entry.path: entry for entry in tree if hasattr(entry, "blob_id")}
    card = info.card_data.to_dict() if info.card_data else {}
    chosen = choose(wanted, list(files), card.get("configs") or [])
    folder = place / commit
    found = {"dataset": wanted.dataset, "commit": commit, "files": {}, "selections": {}} | read_record(folder / FETCHED)
    for number, path in enumerate(chosen, 1):
        if path not in found["files"] or not _is_there(folder / path, found["files"][path]):
            say(f"{wanted.dataset}@{commit[:12]} {path} ({number} of {len(chosen)}, {files[path].size:,} bytes)")
            digest = _download(f"{wanted.repo}s/{wanted.dataset}@{commit}", files[path], folder / path, api.endpoint)
            found["files"][path] = {"size": files[path].size, "sha256": digest}
            _write_json(folder / FETCHED, found)
    found["selections"][wanted.selection] = chosen
    _write_json(folder / FETCHED, found)
    if not COMMIT.fullmatch(wanted.revision):
        _write_json(place / REVISIONS, read_record(place / REVISIONS) | {wanted.revision: commit})
    return [folder / path for path in chosen]


def _is_there(path: Path, entry: Mapping[str, Any]) -> bool:
    return path.is_file() and path.stat().st_size == entry["size"] and sha256_of(path) == entry["sha256"]


def _download(repository: str, entry: Any, target: Path, endpoint: str) -> str:
    """Download one file beside its place, check it, move it there.

    Returns:
        its sha256.
    """
    from huggingface_hub import HfFileSystem

    if Path(entry.path).is_absolute() or ".." in Path(entry.path).parts:
        raise DataError(f"{repository} has a file {entry.path!r}, whose name leads out of its folder")
    part = target.with_name(f".{target.name}.part")
    done = part.stat().st_size if part.is_file() else 0
    if done < entry.size:
        system = HfFileSystem(endpoint=endpoint, skip_instance_cache=True)
        remote = system.open(f"{repository.removeprefix('models/')}/{entry.path}", "rb", block_size=READ_BYTES)
        part.parent.mkdir(parents=True, exist_ok=True)
        with remote, part.open("ab") as file:
            remote.seek(done)
            while chunk := cast(bytes, remote.read(READ_BYTES)):
                file.write(chunk)
    if problem := _problem_of(part, entry):
        part.unlink(missing_ok=True)
        raise DataError(f"hf://{repository}/{entry.path}: {problem}; run loam fetch again")
    digest = sha256_of(part)
    part.replace(target)
    return digest


def _problem_of(part: Path, entry: Any) -> str | None:
    """How a downloaded file differs from what the repository says of it: LFS files by sha256, others as git counts."""
    if not part.is_file():  # an empty file: nothing was read
        part.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
    size = part.stat().st_size
    if size != entry.size:
        return f"expected {entry.size} bytes, found {size}"
    if entry.lfs is not None:
        expected, found = entry.lfs.sha256, sha256_of(part)
    else:
        digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        digest.update(part.read_bytes())
        expected, found = entry.blob_id, digest.hexdigest()
    return None if expected == found else f"expected hash {expected}, found {found}"


def choose(wanted: Wanted, paths: Sequence[str], configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Which files of a repository are meant.

    Args:
        wanted: globs, or subset and split.
        paths: of all files of the repository.
        configs: `configs` of the dataset's card.

    Returns:
        paths in alphabetical order.

    Raises:
        DataError: none are; names what there is.
    """
    if wanted.files:
        chosen = _matching(paths, wanted.files)
    elif configs:
        chosen = _matching(paths, _globs_of(wanted, configs))
        chosen = [path for path in chosen if Path(path).name not in OF_A_SAVED_SET]
    else:
        chosen = _by_name(wanted, paths)
    if not chosen:
        there = ", ".join(sorted(path for path in paths if format_of(Path(path)))[:5]) or "no file of a known format"
        raise DataError(f"{wanted}: no file of the repository matches; it has {there}, ...")
    return sorted(chosen)


def _matching(paths: Sequence[str], globs: Sequence[str]) -> list[str]:
    from fsspec.utils import glob_translate

    patterns = [re.compile(glob_translate(glob)) for glob in globs]
    return [path for path in paths if any(pattern.match(path) for pattern in patterns)]


def _globs_of(wanted: Wanted, configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The globs of a config's split, as dataset cards spell them."""
    named = {str(config.get("config_name", "default")): config for config in configs}
    default = next((name for name, config in named.items() if config.get("default")), None)
    name = wanted.subset or default or ("default" if "default" in named else next(iter(named)))
    if name not in named:
        raise DataError(f"{wanted}: the dataset has no subset {name!r}; it has {', '.join(named)}")
    config = named[name]
    data_files, below = config.get("data_files", "**"), config.get("data_dir")
    entries = data_files if isinstance(data_files, list) else [data_files]
    splits: dict[str, list[str]] = {}
    for entry in entries:
        split, path = (entry.get("split", "train"), entry["path"]) if isinstance(entry, Mapping) else ("train", entry)
        globs = path if isinstance(path, list) else [path]
        splits.setdefault(str(split), []).extend(f"{below}/{glob}" if below else glob for glob in globs)
    if wanted.split not in splits:
        raise DataError(f"{wanted}: subset {name!r} has no split {wanted.split!r}; it has {', '.join(splits)}")
    return splits[wanted.split]


def _by_name(wanted: Wanted, paths: Sequence[str]) -> list[str]:
    """Files of a repository whose card says nothing: by folder (subset) and by the word in the name (split)."""
    chosen = [path for path in paths if format_of(Path(path)) not in (None, "text", "html")]
    if wanted.subset is not None:
        chosen = [path for path in chosen if wanted.subset in Path(path).parts[:-1]]
    of_split = [path for path in chosen if _has_word(path, wanted.split)]
    if of_split or wanted.split != "train":
        return of_split
    return [path for path in chosen if not any(_has_word(path, word) for word in HELD_OUT)]


def _has_word(path: str, word: str) -> bool:
    return re.search(rf"(^|[/_.-]){re.escape(word)}([/_.-]|$)", path) is not None
