"""Extraction behind a wall: pages are read in a child process that the kernel bounds in processor time and memory.

A page that hangs or explodes a parser kills the child, never the run: it is rejected with a reason, and a new child
goes on with the next page. The bound is processor time, not a clock, and far above what a page needs (30 s for 3 ms),
so that a busy machine gives the same text. Only a new child rejects a page for memory or a crash: an old one may hold
what earlier pages left, and a page must fare the same for any number of workers. Pages travel in batches through pipes.
A child takes half a second to start, so that a process keeps one for all the files that it reads.
"""

import atexit
import contextlib
import fcntl
import gc
import io
import os
import resource
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from pipelines.extract_engine import Bounds, Result, extract_here, extractor

BATCH_PAGES, BATCH_BYTES = 64, 8_000_000
CHILD_PAGES = 10_000  # then a new child: what libraries gather must not count against the memory of later pages
OWES_TO_CHILD = ("too_much_memory", "broke_parser")  # reasons that may lie with earlier pages: a new child is asked
WARM = "<html><body><p>one</p></body></html>"
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}  # threads map memory that the bound would count
LENGTHS = struct.Struct("<III")
HEAD = struct.Struct("<I")
PIPE_BYTES = 1 << 20  # the most that the kernel allows without asking: fewer switches between the two processes


class Guard:
    """A child process that extracts, started when it is needed and replaced when a page kills it.

    Args:
        bounds: of every page.

    Attributes:
        bounds: of every page.
        child: the process that runs now.
        starts: how many children were started.
    """

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.child: subprocess.Popen[bytes] | None = None
        self.starts = 0
        self._pages = 0  # of this child
        self._alone = threading.Lock()

    def extract(self, pages: Sequence[bytes]) -> list[Result]:
        """Results of a batch of pages in UTF-8, in order.

        Nothing of it stays in the pipes, for others use the child too.
        """
        with self._alone:
            try:
                return self._extract(pages)
            except BaseException:  # interrupted: the answers that are still to come must not be taken for others
                if self.child is not None:
                    self.child.kill()
                self.close()
                raise

    def _extract(self, pages: Sequence[bytes]) -> list[Result]:
        found: list[Result] = []
        while len(found) < len(pages):
            child = self._started()
            with contextlib.suppress(BrokenPipeError):  # it died while it read: the results say where
                _send(child.stdin, pages[len(found) :])
            while self.child is not None and len(found) < len(pages):
                result = _received(child.stdout) or ("", "", self._verdict(child))
                if result[2] in OWES_TO_CHILD and self._pages:
                    child.kill()
                    self.close()
                    break
                found.append(result)
                self._pages += 1
        return found

    def _started(self) -> subprocess.Popen[bytes]:
        if self.child is not None and (self._pages >= CHILD_PAGES or self.child.poll() is not None):
            self.close()  # old, or killed from outside between two batches, which is no page's fault
        if self.child is None:
            command = [sys.executable, "-m", "pipelines.extract_child", *map(str, _arguments(self.bounds))]
            self.child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=Path(__file__).parents[1],
                env=os.environ | ONE_THREAD,
            )
            with contextlib.suppress(OSError):  # the user's share of pipes is used up: slower, nothing else
                fcntl.fcntl(self.child.stdin or -1, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
            self.starts += 1
            self._pages = 0
        return self.child

    def _verdict(self, child: subprocess.Popen[bytes]) -> str:
        self.close()
        return "too_slow" if child.returncode == -signal.SIGXCPU else "broke_parser"

    def close(self) -> None:
        """End the child."""
        if self.child is not None:
            for pipe in (self.child.stdin, self.child.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()
            self.child.wait()
            self.child = None

    def forget(self) -> None:
        """Let go of the child of the process that this one was forked from: of its pipes, without a byte in them."""
        if self.child is not None:
            for pipe in (self.child.stdin, self.child.stdout):
                if isinstance(pipe, io.BufferedReader | io.BufferedWriter):
                    pipe.raw.close()
            self.child.returncode = 0  # not ours to wait for
            self.child = None


_guards: dict[Bounds, Guard] = {}


def guard_of(bounds: Bounds) -> Guard:
    """The guard of this process for these bounds, whose child lives until the process ends."""
    return _guards.setdefault(bounds, Guard(bounds))


def _close_all() -> None:
    for guard in _guards.values():
        guard.close()


def _forget_all() -> None:
    for guard in _guards.values():
        guard.forget()
    _guards.clear()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_forget_all)


def _arguments(bounds: Bounds) -> list[str | int]:
    return [bounds.engine, int(bounds.comments), int(bounds.links), bounds.max_depth, bounds.min_text_chars,
            bounds.cpu_s, bounds.memory]  # fmt: skip


def _send(pipe: IO[bytes] | None, pages: Sequence[bytes]) -> None:
    """Send a batch; the child reads all of it before it answers, so that neither waits for the other."""
    assert pipe is not None
    pipe.write(HEAD.pack(len(pages)))
    for page in pages:
        pipe.write(HEAD.pack(len(page)))
        pipe.write(page)
    pipe.flush()


def _received(pipe: IO[bytes] | None) -> Result | None:
    """One result, or None when the child is gone."""
    assert pipe is not None
    head = pipe.read(LENGTHS.size)
    if len(head) < LENGTHS.size:
        return None
    lengths = LENGTHS.unpack(head)
    parts = [pipe.read(length).decode() for length in lengths]
    return parts[0], parts[1], parts[2] or None


def serve(requests: IO[bytes], results: IO[bytes], bounds: Bounds) -> None:
    """The child: read batches until the pipe ends."""
    extractor(bounds.engine, bounds.comments, bounds.links)(WARM, bounds.max_depth)  # imports: no page pays for them
    gc.freeze()
    gc.disable()  # a page makes 400 thousand short-lived objects and hardly a cycle: collecting takes 5% of the time
    with Path("/proc/self/statm").open() as statm:
        mapped = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + bounds.memory, mapped + bounds.memory))
    while len(head := requests.read(HEAD.size)) == HEAD.size:
        pages = [requests.read(HEAD.unpack(requests.read(HEAD.size))[0]) for _ in range(HEAD.unpack(head)[0])]
        for page in pages:
            _allow(bounds.cpu_s)
            try:
                parts = extract_here(page.decode("utf-8", "replace"), bounds)
            except MemoryError:
                parts = ("", "", "too_much_memory")
            encoded = [(part or "").encode("utf-8", "replace") for part in parts]
            results.write(b"".join((LENGTHS.pack(*map(len, encoded)), *encoded)))
            results.flush()
        gc.collect()


def _allow(cpu_s: int) -> None:
    """Give the process so much more processor time; beyond it the kernel ends it."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(used.ru_utime + used.ru_stime) + 1 + cpu_s
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.RLIM_INFINITY))
