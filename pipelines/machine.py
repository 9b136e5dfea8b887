"""Sources found on the machine itself: real text with no download.

pydoc's pages as WARC, descriptions of installed packages as JSON Lines, Python sources and licence files as tar. What
is taken when a budget does not suffice is decided by a hash of (seed, name), so that the same machine gives the same
bytes, and names written into the data never show where the machine keeps its files.
"""

import importlib.metadata
import io
import json
import os
import pkgutil
import re
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from email.message import Message
from pathlib import Path
from typing import cast

import xxhash

from pipelines.files import write_atomically
from pipelines.recipe import ROOT
from pipelines.warc import write_warc

Item = tuple[str, bytes]
"""Name and content of one raw record."""

SYSTEM_LICENCES, SYSTEM_COPYRIGHTS = Path("/usr/share/common-licenses"), Path("/usr/share/doc")
LICENCE_NAME = re.compile(r"(licen[cs]e|copying|copyright|notice)([-_.].*)?", re.IGNORECASE)
NO_TEXT = (".py", ".pyc", ".pyi", ".so", ".gz", ".json", ".html", ".h", ".svg", ".png")
MAX_CODE_BYTES = 200_000  # larger files are tables and generated code
MIN_CODE_BYTES = 200
# Modules that act on import (open browsers, print, need a display), tests, and tables of code points
NO_PAGE = frozenset(
    """antigravity this idlelib turtle turtledemo tkinter test tests testing lib2to3 ensurepip distutils encodings
    pydoc_data __main__ site sitecustomize usercustomize conftest vendor vendored msilib posix nt tempfile""".split()  # noqa: SIM905
)
# Imports of several seconds, or with effects outside their process
HEAVY = frozenset(
    """torch torchgen functorch vllm ray transformers prefect spacy thinc lm_eval datasets evaluate megatron sklearn
    scipy pandas matplotlib mpl_toolkits pylab triton docker sympy nltk numba llvmlite lightgbm apprise alembic
    docket tensorflow jax pip setuptools pkg_resources networkx key_value spacy_loggers spacy_legacy rouge_score
    datasketch aiohttp cryptography pyparsing hypothesis execnet""".split()  # noqa: SIM905
)
NO_CODE = frozenset("test tests testing idlelib lib2to3 __pycache__ site-packages _vendor vendor vendored".split())  # noqa: SIM905
MADE_BY_INSTALLERS = ("_sysconfigdata", "__editable__", "_editable", "_virtualenv")


def chosen(names: Iterable[str], seed: int) -> list[str]:
    """Names in the order in which they are taken: by hash, so that a budget draws without favour."""
    return sorted(set(names), key=lambda name: (xxhash.xxh64_intdigest(name.encode(), seed), name))


def within(items: Iterable[Item], max_bytes: int | None, max_documents: int | None) -> list[Item]:
    """The first items that fit a budget, sorted by name."""
    taken: list[Item] = []
    left = float("inf") if max_bytes is None else max_bytes
    for name, content in items:
        if len(taken) == max_documents:
            break
        if len(content) > left:
            break
        left -= len(content)
        taken.append((name, content))
    return sorted(taken)


def site_folders() -> list[Path]:
    """Where packages are installed."""
    paths = sysconfig.get_paths()
    return sorted({Path(paths["purelib"]), Path(paths["platlib"])})


def module_names() -> list[str]:
    """Modules that may have a page: two levels of the standard library and of installed packages, not imported."""
    stdlib = sysconfig.get_paths()["stdlib"]
    names = {name for name in sys.stdlib_module_names if _has_page(name)}
    for name in sorted(names):
        names.update(_below(name, Path(stdlib) / name))
    for folder in site_folders():
        for module in pkgutil.iter_modules([str(folder)]):
            if _has_page(module.name) and module.name not in HEAVY:
                names.add(module.name)
                names.update(_below(module.name, folder / module.name))
    return sorted(names)


def _below(package: str, folder: Path) -> Iterator[str]:
    for module in pkgutil.iter_modules([str(folder)]):
        if _has_page(module.name):
            yield f"{package}.{module.name}"


def _has_page(name: str) -> bool:
    return name not in NO_PAGE and not name.startswith(("_", "test_"))


def pydoc_pages(names: Sequence[str], scratch: Path, workers: int) -> Iterator[Item]:
    """Render pydoc's pages and yield those that succeed as (URL, HTML), in the order of `names`.

    Args:
        names: modules.
        scratch: pages are kept here, so that a killed step resumes.
        workers: processes, each of which renders every `workers`-th module.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    missing = [n for n in names if not ((scratch / f"{n}.html").exists() or (scratch / f"{n}.failed").exists())]
    environment = {"PATH": os.defpath, "PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8", "TZ": "UTC",
                   "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "HOME": "/nonexistent"}  # fmt: skip
    command = [sys.executable, "-P", "-W", "ignore", "-m", "pipelines.pydoc_pages", "."]
    running = []
    for rank in range(min(workers, len(missing))):
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL, cwd=scratch, env=environment)  # fmt: skip
        assert process.stdin is not None  # a pipe was asked for
        process.stdin.write("\n".join(missing[rank::workers]).encode())
        process.stdin.close()
        running.append(process)
    for process in running:
        process.wait()
    for name in names:
        if (file := scratch / f"{name}.html").exists():
            yield f"pydoc:/{name}.html", file.read_bytes()


def readmes() -> dict[str, Callable[[], bytes]]:
    """Long descriptions of installed packages: name and version, and how to read the JSON record."""
    found = {}
    for package in importlib.metadata.distributions():
        name, version = package.metadata["Name"], package.version
        if name and name.lower() != "loam":
            found[f"{name}=={version}"] = lambda package=package: _readme(package)
    return found


def _readme(package: importlib.metadata.Distribution) -> bytes:
    fields = cast(Message, package.metadata)  # what it is behind its protocol
    # `get`: some finders that packages install raise KeyError where the standard one gives None
    text = fields.get("Description") or fields.get_payload()
    if not isinstance(text, str) or not text.strip() or text.strip() == "UNKNOWN":
        return b""
    licence = fields.get("License-Expression") or (fields.get("License") or "").strip().split("\n")[0][:200] or None
    record = {"id": f"{fields['Name']}=={package.version}", "text": text, "name": fields["Name"],
              "version": package.version, "license": licence}  # fmt: skip
    return json.dumps(record, ensure_ascii=False).encode("utf-8", "replace")


def code_files() -> dict[str, Path]:
    """Python sources of the standard library and installed packages, by the name that goes into the data."""
    found = {}
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    for label, root in [("stdlib", stdlib), *(("site-packages", folder) for folder in site_folders())]:
        for path in _walk(root, _is_code, NO_CODE):
            if MIN_CODE_BYTES <= path.stat().st_size <= MAX_CODE_BYTES:
                found[f"{label}/{path.relative_to(root).as_posix()}"] = path
    return found


def _is_code(name: str) -> bool:
    return name.endswith(".py") and not name.startswith(MADE_BY_INSTALLERS)


def licence_files() -> dict[str, Path]:
    """Licence files of installed packages and of the system; near duplicates are kept on purpose."""
    found = {}
    for folder in site_folders():
        for path in _walk(folder, _is_licence, frozenset({"__pycache__"})):
            found[f"site-packages/{path.relative_to(folder).as_posix()}"] = path
    for folder, wanted in ((SYSTEM_LICENCES, _is_visible), (SYSTEM_COPYRIGHTS, "copyright".__eq__)):
        for path in _walk(folder, wanted):
            found[f"system/{folder.name}/{path.relative_to(folder).as_posix()}"] = path
    return found


def _is_licence(name: str) -> bool:
    return LICENCE_NAME.fullmatch(name) is not None and not name.lower().endswith(NO_TEXT)


def _is_visible(name: str) -> bool:
    return not name.startswith(".")


def _walk(root: Path, wanted: Callable[[str], bool], skip: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Files below `root` whose name is wanted, in order, without folders whose name is in `skip`."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in skip)
        for name in sorted(filter(wanted, files)):
            if (path := Path(folder, name)).is_file():  # a link may lead nowhere
                yield path


def contents(files: Mapping[str, Path], seed: int) -> Iterator[Item]:
    """Read files in the order in which they are taken."""
    for name in chosen(files, seed):
        yield name, files[name].read_bytes()


def write_shards(items: Sequence[Item], folder: Path, shards: int, write: Callable[[Path, list[Item]], None]) -> None:
    """Spread items evenly over `shards` files, `part-00000...`, so that several workers can read them."""
    for shard in range(shards):
        write(folder / f"part-{shard:05d}", list(items[shard::shards]))


def write_warc_shard(prefix: Path, items: list[Item]) -> None:
    """Pages as `<prefix>.warc.gz`."""
    write_warc(prefix.with_name(f"{prefix.name}.warc.gz"), items)


def write_json_shard(prefix: Path, items: list[Item]) -> None:
    """JSON records as `<prefix>.jsonl`."""
    write_atomically(prefix.with_name(f"{prefix.name}.jsonl"), b"".join(record + b"\n" for _, record in items))


def write_tar_shard(prefix: Path, items: list[Item]) -> None:
    """Files as members of `<prefix>.tar`, without clocks or owners."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in items:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    write_atomically(prefix.with_name(f"{prefix.name}.tar"), buffer.getvalue())
