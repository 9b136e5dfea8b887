"""Results of many training runs, a JSON file each, believed only when it is of the very run that is asked for."""

import json
from abc import abstractmethod
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar


class NamedJob(Protocol):
    """A run whose `id` names its result."""

    @property
    def id(self) -> str:
        """Letters, digits, dots, dashes and underscores."""
        ...


Job = TypeVar("Job", bound=NamedJob)


class JobResults(Generic[Job]):
    """A folder of results, each of which holds its job's identity as `job`."""

    @property
    @abstractmethod
    def folder(self) -> Path:
        """Where results are written."""

    @abstractmethod
    def identity(self, job: Job) -> str:
        """Digest of all that a job's result depends on."""

    def path(self, job: Job) -> Path:
        """Where a job's result is written."""
        return self.folder / f"{job.id}.json"

    def read(self, job: Job) -> dict[str, Any]:
        """A job's result."""
        return json.loads(self.path(job).read_text(encoding="utf-8"))

    def is_done(self, job: Job) -> bool:
        """Whether the result is there and of this very job."""
        return self.path(job).is_file() and self.read(job)["job"] == self.identity(job)
