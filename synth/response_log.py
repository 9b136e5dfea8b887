"""The response log: every answer that was paid for, by the key of its request; what a resumed run reads first.

Answers are appended as they come, one unbuffered write each, so that no kill of the process loses one; a thread flushes
them to the disk all the while, so that a loss of power costs what came during one flush. A line that was cut short is
taken off when the log is opened again. The log outlives a run's settings, so that another budget, parser or predicate
asks nothing again; what a run used of it is published ordered by key: the same bytes, killed or not. It holds no clock.
"""

import contextlib
import fcntl
import json
import os
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from pydantic import ValidationError
from pydantic_core import from_json

from pipelines.errors import DataError, StepError
from pipelines.files import write_atomically
from pipelines.manifest import digest_of
from synth.protocol import Capabilities, Engine, Identity, Response
from synth.usage import believed

LOG, ENGINE, LOCK = "responses.jsonl", "engine.json", "lock"


@dataclass(frozen=True)
class _Place:
    """Where an answer lies: bytes `start` to `end` of a file."""

    file: BinaryIO
    start: int
    end: int

    def line(self) -> bytes:
        return os.pread(self.file.fileno(), self.end - self.start, self.start)


class ResponseLog:
    """Answers on disk, found by key; one process at a time writes.

    Args:
        folder: where `responses.jsonl` and `engine.json` lie.
        engine: whose answers these are.
        earlier: folders of other runs' logs, which are read where the same engine gave them.
        other_model: these logs may hold another model's answers; without it, that is taken for a mistake.

    Raises:
        DataError: another process writes here, the log is damaged or another model's.
    """

    def __init__(self, folder: Path, engine: Engine, earlier: Sequence[Path] = (), other_model: bool = False) -> None:
        self.path, self.engine = folder / LOG, engine
        self.used: set[str] = set()
        self._places: dict[str, _Place] = {}
        self._files = contextlib.ExitStack()
        self._flusher: _Flusher | None = None
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock(folder)
            for place in () if other_model else (folder, *earlier):
                _refuse_other_model(place, engine.identity)
            for other in earlier:
                if (about := _about(other)) is not None and about[0] == engine.identity:
                    self._index(other / LOG)
            self.path.touch()  # before the engine's description, beside which it must lie
            write_atomically(folder / ENGINE, _describe(engine))
            _cut_torn_line(self.path)
            self._index(self.path)
            self.file = self._files.enter_context(self.path.open("ab", buffering=0))
            self.size = self.path.stat().st_size
            self._reader = self._files.enter_context(self.path.open("rb"))
        except BaseException:
            self._files.close()
            raise

    def __enter__(self) -> "ResponseLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()
        if error is not None and not self.size:
            forget(self.path.parent, self.path.parent)  # refused before anything was answered: nothing to go on with

    def close(self) -> None:
        """Flush, and let others write."""
        try:
            if self._flusher is not None:
                self._flusher.end()
        finally:
            self._files.close()

    def get(self, key: str) -> Response | None:
        """The answer to a request, if it was ever given."""
        place = self._places.get(key)
        if place is None:
            return None
        self.used.add(key)
        return _answer(from_json(place.line()))

    def add(self, key: str, record: Mapping[str, Any], response: Response) -> None:
        """Append an answer; no kill of this process loses it from here on. A second one takes the first one's place.

        Raises:
            StepError: the disk is full, or broken.
        """
        self._append(key, _line({"key": key, **record, "response": response.model_dump(mode="json")}))
        self.used.add(key)

    def _append(self, key: str, line: bytes) -> None:
        self._flusher = self._flusher or _Flusher(self.file.fileno())
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[self.file.write(rest) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                self.file.truncate(self.size)  # what came before stays whole
            raise StepError(f"{self.path} cannot be written ({error.strerror}); all answers before are kept, "
                            "make room and run again to resume") from None  # fmt: skip
        self._places[key] = _Place(self._reader, self.size, self.size + len(line))
        self.size += len(line)
        self._flusher.wake()

    def rescue(self, folder: Path) -> None:
        """Take over what was paid for and not used now from a published log that is about to be replaced."""
        path, about = folder / LOG, _about(folder)
        if about is None or about[0] != self.engine.identity:
            return
        mine = {key for key, place in self._places.items() if place.file is self._reader}
        with path.open("rb") as file:
            for start, end, entry in _entries(path, file):
                if entry["key"] not in self.used | mine:
                    self._append(entry["key"], _Place(file, start, end).line())

    def publish(self, folder: Path) -> None:
        """Write the answers that were used, ordered by key."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / LOG).touch()  # no moment has answers without the engine's description, or that without a log
        write_atomically(folder / ENGINE, _describe(self.engine))
        temporary = folder / f".{LOG}.tmp"
        with temporary.open("wb") as file:
            file.writelines(self._places[key].line() for key in sorted(self.used))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(folder / LOG)

    def _lock(self, folder: Path) -> None:
        # `lockf`, not `flock`: a lock that forked children inherit would outlive a killed parent
        file = self._files.enter_context((folder / LOCK).open("a+"))
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise DataError(f"{folder} is being written by another process ({file.read().strip() or 'unknown'}); "
                            "wait for it or stop it") from None  # fmt: skip
        file.truncate(0)
        file.write(f"pid {os.getpid()}\n")
        file.flush()

    def _index(self, path: Path) -> None:
        if not path.is_file():
            return
        file = self._files.enter_context(path.open("rb"))
        for number, (start, end, entry) in enumerate(_entries(path, file), 1):
            _check(path, number, entry)
            self._places[entry["key"]] = _Place(file, start, end)


class _Flusher:
    """Flushes a file to disk again and again while there is something to flush: each flush takes all that came before.

    Args:
        descriptor: of the file.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor, self.problem = descriptor, None
        self._dirty, self._ended = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="flush_responses", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Something was written.

        Raises:
            StepError: an earlier flush failed.
        """
        if self.problem is not None:
            raise StepError(f"answers cannot be flushed to disk ({self.problem}); run again to resume")
        self._dirty.set()

    def end(self) -> None:
        """Flush what is left; raises as `wake` does."""
        self._ended = True
        self._dirty.set()
        self._thread.join()
        if self.problem is None:
            self._flush()  # the thread may have seen the end before the last answer
        self.wake()

    def _run(self) -> None:
        while not self._ended and self.problem is None:
            self._dirty.wait()
            self._dirty.clear()
            self._flush()

    def _flush(self) -> None:
        try:
            os.fsync(self.descriptor)
        except OSError as error:
            self.problem = error.strerror


def read_log(folder: Path) -> tuple[Identity, Capabilities, dict[str, Response]]:
    """An earlier run's engine and answers by key.

    Raises:
        DataError: the folder holds no response log, or a damaged one.
    """
    if (about := _about(folder)) is None:
        raise DataError(f"{folder} holds no response log; give the folder `responses` of an earlier synthesis")
    answers: dict[str, Response] = {}
    with (path := folder / LOG).open("rb") as file:
        for number, (_, _, entry) in enumerate(_entries(path, file), 1):
            answers[entry["key"]] = _check(path, number, entry)
    return *about, answers


def log_beside(out: Path) -> Path:
    """Where a verb keeps the log of all answers ever given for `--out`, whatever its settings were."""
    return out.with_name(f".{out.name}.answers") / "responses"


def forget(folder: Path, published: Path) -> None:
    """Remove a log whose answers have all been published; one that holds more is kept.

    Args:
        folder: of the log.
        published: folder of what a finished run published of it.
    """
    if not (folder / LOG).is_file():
        return
    keys = []
    for path in (folder / LOG, published / LOG):
        with path.open("rb") as file:
            keys.append({entry["key"] for _, _, entry in _entries(path, file)})
    if keys[0] <= keys[1]:
        os.truncate(folder / LOG, 0)  # killed on the way, it is a log without answers
        (folder / ENGINE).unlink(missing_ok=True)
        shutil.rmtree(folder)
        with contextlib.suppress(OSError):  # another log lies there
            folder.parent.rmdir()


def shared_logs(earlier: Sequence[Path], identity: Identity) -> Sequence[Path]:
    """Other runs' logs that may be read: none for a server of which nothing but a name is known.

    Two servers may call different models the same; `engine.revision` says that they are one.
    """
    return earlier if identity.digest else ()


def _refuse_other_model(folder: Path, identity: Identity) -> None:
    about, log = _about(folder), folder / LOG
    if about is None or about[0] == identity or not log.is_file() or not log.stat().st_size:
        return
    was, now = (f"{one.backend} {one.version} {one.model} {one.digest[:16]}".strip() for one in (about[0], identity))
    raise DataError(f"{folder} holds answers of {was}, this is {now}; give another --out, the model of then, or "
                    "--allow-model-change")  # fmt: skip


def _about(folder: Path) -> tuple[Identity, Capabilities] | None:
    """Whose answers a folder holds; None where it holds no log.

    Raises:
        DataError: one of the two files is missing or damaged: answers that were paid for are never passed over.
    """
    log, engine = folder / LOG, folder / ENGINE
    remedy = f"put it back, or remove {folder} to ask for all answers again"
    if not engine.exists():
        if log.exists() and not (log.is_file() and not log.stat().st_size):
            raise DataError(f"{engine} is missing beside {LOG}; {remedy}")
        return None
    try:
        about = json.loads(engine.read_bytes())
        found = Identity.model_validate(about["identity"]), Capabilities.model_validate(about["capabilities"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise DataError(f"{engine} does not say who gave the answers beside it; {remedy}") from None
    if not log.is_file():
        raise DataError(f"{log} is {'no file' if log.exists() else 'missing'} beside {ENGINE}; {remedy}")
    return found


def _describe(engine: Engine) -> bytes:
    about = {"identity": engine.identity.model_dump(), "capabilities": engine.capabilities.model_dump()}
    return (json.dumps(about, indent=1) + "\n").encode()


def _cut_torn_line(path: Path) -> None:
    """Take off what follows the last newline, looking from the end."""
    with path.open("rb+") as file:
        end = at = file.seek(0, os.SEEK_END)
        while at > 0:
            begin = max(0, at - (1 << 20))
            file.seek(begin)
            if (found := file.read(at - begin).rfind(b"\n")) >= 0:
                at = begin + found + 1
                break
            at = begin
        if at < end:
            file.truncate(at)


def _line(entry: Mapping[str, Any]) -> bytes:
    return (json.dumps(entry, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _answer(entry: Mapping[str, Any]) -> Response:
    return Response.model_validate(believed(entry["response"], entry.get("payload", {})))


def _check(path: Path, number: int, entry: dict[str, Any]) -> Response:
    """The answer on a line, once the line's key is found to be that of its request.

    Raises:
        DataError: it is not, or the answer is none.
    """
    remedy = "take the line out to ask for this answer again"
    try:
        answer = _answer(entry)
        if not isinstance(answer.raw.get("status", 0), int):
            raise ValueError(answer.raw)
        asked = digest_of({name: value for name, value in entry.items() if name not in ("key", "response")})
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:  # a ValidationError is a ValueError
        raise DataError(f"{path}:{number} holds no answer ({_first_problem(error)}); {remedy}") from None
    if asked != entry["key"]:
        raise DataError(f"{path}:{number}: the key {entry['key'][:16]} is not that of the request on this line "
                        f"({asked[:16]}); {remedy}")  # fmt: skip
    return answer


def _first_problem(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return type(error).__name__


def _entries(path: Path, file: BinaryIO) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Every whole line of a log: where it starts and ends, and what it says."""
    at = 0
    for number, line in enumerate(file, 1):
        if not line.endswith(b"\n"):  # torn
            return
        try:
            entry = from_json(line)
            if not isinstance(entry["key"], str) or not isinstance(entry["response"], dict):
                raise ValueError(entry)
        except (ValueError, KeyError, TypeError):
            raise DataError(
                f"{path}:{number} is not a response; delete the file to ask for all answers again"
            ) from None
        yield at, at + len(line), entry
        at += len(line)
