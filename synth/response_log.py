"""The response log: every answer that was paid for, by the key of its request; what a resumed run reads first.

While a step runs, answers are appended and flushed to disk one by one; a line that a kill cut short is taken off when
the log is opened again. At the end the log is ordered by key, so that a run that was killed and one that was not
publish the same bytes. It holds no clock.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from pipelines.errors import DataError
from pipelines.files import write_atomically
from synth.protocol import Capabilities, Engine, Identity, Response

LOG, ENGINE = "responses.jsonl", "engine.json"


class ResponseLog:
    """Answers on disk and in memory; a context manager that orders the log when it ends well.

    What an earlier attempt asked and this one did not is left out then.

    Args:
        folder: where `responses.jsonl` and `engine.json` lie.
        engine: whose answers these are.
    """

    def __init__(self, folder: Path, engine: Engine) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        about = {"identity": engine.identity.model_dump(), "capabilities": engine.capabilities.model_dump()}
        write_atomically(folder / ENGINE, (json.dumps(about, indent=1) + "\n").encode())
        self.path = folder / LOG
        self.entries = _read(self.path)
        self.used: set[str] = set()
        self._cut_torn_line()
        self.file = self.path.open("ab")

    def __enter__(self) -> "ResponseLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.file.close()
        if error is None:
            lines = [_line(self.entries[key]) for key in sorted(self.used)]
            write_atomically(self.path, b"".join(lines))

    def get(self, key: str) -> Response | None:
        """The answer to a request, if it was ever given."""
        entry = self.entries.get(key)
        if entry is None:
            return None
        self.used.add(key)
        return Response.model_validate(entry["response"])

    def add(self, key: str, record: Mapping[str, Any], response: Response) -> None:
        """Append an answer; it is on disk when this returns."""
        entry = {"key": key, **record, "response": response.model_dump(mode="json")}
        self.entries[key] = entry
        self.used.add(key)
        self.file.write(_line(entry))
        self.file.flush()
        os.fsync(self.file.fileno())

    def _cut_torn_line(self) -> None:
        if self.path.is_file():
            with self.path.open("rb+") as file:
                file.truncate(file.read().rfind(b"\n") + 1)


def read_log(folder: Path) -> tuple[Identity, Capabilities, dict[str, Response]]:
    """An earlier run's engine and answers by key.

    Raises:
        DataError: the folder holds no response log.
    """
    try:
        about = json.loads((folder / ENGINE).read_bytes())
        identity = Identity.model_validate(about["identity"])
        capabilities = Capabilities.model_validate(about["capabilities"])
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(
            f"{folder} holds no response log; give the folder `responses` of an earlier synthesis"
        ) from None
    answers = {key: Response.model_validate(entry["response"]) for key, entry in _read(folder / LOG).items()}
    return identity, capabilities, answers


def _line(entry: Mapping[str, Any]) -> bytes:
    return (json.dumps(entry, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _read(path: Path) -> dict[str, dict[str, Any]]:
    entries: dict[str, dict[str, Any]] = {}
    if not path.is_file():
        return entries
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):  # what follows the last newline is torn
        try:
            entry = json.loads(line)
            entries.setdefault(entry["key"], entry)
        except (ValueError, KeyError, TypeError):
            raise DataError(
                f"{path}:{number} is not a response; delete the file to ask for all answers again"
            ) from None
    return entries
