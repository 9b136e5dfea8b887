"""A Step: a named node of a flow, as a plain value.

It says what it reads (steps by name, outside files by digest), with which settings, and which action fills its folder.
Nothing here knows about Prefect; the runner (`flows/runner.py`) performs steps in order.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from pipelines.errors import DataError
from pipelines.files import expand_inputs, sha256_of
from pipelines.locations import plain_name
from pipelines.store import Outcome, code_version


@dataclass(frozen=True)
class Place:
    """Where a run lives and what it may use.

    Attributes:
        folder: the run's folder; each step has a folder of its name in it.
        workers: processes that a step may start; never changes a byte.
    """

    folder: Path
    workers: int

    def of(self, step: str) -> Path:
        """The folder of a step."""
        return self.folder / step

    def documents(self, step: str, below: str = "kept") -> list[Path]:
        """The Parquet files of a step's live documents, sorted."""
        return sorted((self.of(step) / below).rglob("*.parquet"))

    def by_domain(self, step: str, below: str = "kept") -> dict[str, list[Path]]:
        """The same by domain, which is the path between `kept/` and the file."""
        root = self.of(step) / below
        domains: dict[str, list[Path]] = {}
        for path in self.documents(step, below):
            domains.setdefault(path.parent.relative_to(root).as_posix(), []).append(path)
        return domains


@dataclass(frozen=True)
class Step:
    """A node of a flow.

    Attributes:
        name: unique in the run; also its folder.
        settings: what the recipe says about it, JSON values.
        parents: steps whose outputs it reads.
        action: `(place, work) -> Outcome`; fills `work`.
        packages: folders of code that its result depends on.
        inputs: gives the digests of outside files by name; called when the step is due, since it may read them all.
        about: half a line for people.
    """

    name: str
    action: Callable[[Place, Path], Outcome]
    about: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    parents: Sequence[str] = ()
    packages: Sequence[str] = ("pipelines",)
    inputs: Callable[[], Mapping[str, str]] = dict

    @property
    def code(self) -> str:
        """Version of the code that its result depends on, the steps' own included."""
        return code_version(*self.packages, "flows/steps")


def plain(**sections: object) -> dict[str, Any]:
    """Sections of a recipe as JSON values, for a step's settings."""
    return {name: _jsonable(section) for name, section in sections.items()}


def _jsonable(value: object) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    return value


def digests_of(paths: Mapping[str, str | Path | None]) -> dict[str, str]:
    """sha256 of every file, or file below a folder, that a recipe names; None means that it names none."""
    digests: dict[str, str] = {}
    for name, path in paths.items():
        if path is not None:
            files = expand_inputs([path])
            digests |= {f"{name}:{n}:{plain_name(file.name)}": sha256_of(file) for n, file in enumerate(files)}
    return digests


def require(files: Sequence[Path], what: str) -> Sequence[Path]:
    """The files, or an error that says which part of the run came out empty.

    Raises:
        DataError: there are none.
    """
    if not files:
        raise DataError(f"{what}: no documents are left; loosen the filters of the recipe or add sources")
    return files
