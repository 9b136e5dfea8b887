"""Runs a Python program that nobody has read, so that it can hurt nothing: Linux namespaces, limits and a deadline.

The program sees the file system read-only, has no network and cannot start a process or open a socket (seccomp: a limit
on processes does not bind root, and a socket in the file system leads out of every namespace), has limits of memory,
output and CPU time, and is killed by its launcher when its time is over. Where the kernel refuses one of
these, nothing is run: the caller gets `unavailable`, never a program outside its cage. No root is needed where
unprivileged user namespaces are allowed.

Started by `run_program` as `python -I sandbox.py`, this file imports nothing but the standard library.
"""

import ctypes
import errno
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

CPU_S = 10
WALL_S = 60
MEMORY_BYTES = 1 << 30
OUTPUT_BYTES = 1 << 16
NEW_NAMESPACES = 0x10000000 | 0x00020000 | 0x40000000 | 0x20000000 | 0x08000000  # user, mount, network, process, IPC
PRIVATE_RECURSIVE = 0x40000 | 0x4000
MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE = 442, -100, 0x8000
READ_ONLY_NOSUID_NODEV = 1 | 2 | 4
CALLS = {
    # architecture; numbers of clone and clone3; of what is refused: (fork, vfork,) socket, connect, socketpair, ptrace,
    # io_uring_setup
    "x86_64": (0xC000003E, 56, 435, (57, 58, 41, 42, 53, 101, 425)),
    "aarch64": (0xC00000B7, 220, 435, (198, 203, 199, 117, 425)),
}
X32_CALLS = 0x40000000  # a second numbering of the same calls
THREAD_FLAG = 0x10000
SET_SECCOMP, FILTER_MODE = 22, 2
SET_DEATH_SIGNAL, NO_NEW_PRIVILEGES = 1, 38
NOBODY = 65534
UNAVAILABLE, OUT_OF_TIME = 97, 98


@dataclass(frozen=True)
class Finished:
    """What became of a program.

    Attributes:
        how: `exited` by itself, ended at its `limit` of time, or never run because a cage is `unavailable`.
        code: exit status; negative for a signal.
        output: of stdout; a program that writes more than `OUTPUT_BYTES` is ended.
        errors: the end of stderr.
    """

    how: Literal["exited", "limit", "unavailable"]
    code: int = 0
    output: str = ""
    errors: str = ""


def run_program(program: str, cpu_s: int = CPU_S, memory_bytes: int = MEMORY_BYTES, wall_s: int = WALL_S) -> Finished:
    """Run a Python program in the cage.

    Args:
        program: source text.
        cpu_s: seconds of CPU time.
        memory_bytes: address space.
        wall_s: seconds by the clock; generous, so that a busy machine changes nothing.
    """
    job = json.dumps({"program": program, "cpu_s": cpu_s, "memory_bytes": memory_bytes, "wall_s": wall_s})
    command = [sys.executable, "-I", "-S", "-B", str(Path(__file__).resolve())]
    # files, not pipes: their size is limited by the kernel, and nothing that lives on can keep us waiting
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=output, stderr=errors, env={"PATH": os.defpath}, cwd="/",
            start_new_session=True,
        )  # fmt: skip
        try:
            process.communicate(job.encode(), timeout=2 * wall_s + 10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return Finished("limit")
        said = _read(output, OUTPUT_BYTES), _read(errors, OUTPUT_BYTES)[-2000:]
    if process.returncode == UNAVAILABLE:
        return Finished("unavailable", errors=said[1])
    if process.returncode in (OUT_OF_TIME, -signal.SIGKILL):
        return Finished("limit", process.returncode, *said)
    return Finished("exited", process.returncode, *said)


def _read(file: IO[bytes], most: int) -> str:
    file.seek(0)
    return file.read(most).decode(errors="replace")


def _cage() -> None:
    """Move this process's children into new namespaces.

    Raises:
        OSError: the kernel does not allow one of them.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def demand(result: int, what: str) -> None:
        if result != 0:
            raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")

    user, group = os.getuid(), os.getgid()
    demand(libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0), "no_new_privs")
    demand(libc.unshare(NEW_NAMESPACES), "unshare")
    for name, line in (("setgroups", "deny"), ("uid_map", f"{NOBODY} {user} 1"), ("gid_map", f"{NOBODY} {group} 1")):
        Path(f"/proc/self/{name}").write_text(line)
    demand(libc.mount(None, b"/", None, ctypes.c_ulong(PRIVATE_RECURSIVE), None), "private mounts")
    attributes = (ctypes.c_uint64 * 4)(READ_ONLY_NOSUID_NODEV, 0, 0, 0)
    demand(
        libc.syscall(MOUNT_SETATTR, AT_FDCWD, b"/", AT_RECURSIVE, attributes, ctypes.sizeof(attributes)),
        "read-only mounts",
    )


def _forbid_calls() -> None:
    """Let the kernel refuse processes and sockets, from here on: every clone that is not a thread, every way out.

    Raises:
        OSError: there is no such filter for this machine.
    """
    if (machine := os.uname().machine) not in CALLS:
        raise OSError(f"no filter of system calls for {machine}")
    arch, clone, clone3, refused = CALLS[machine]
    load, equal, at_least, any_bit, answer = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, kill = 0x7FFF0000, 0x80000000
    refuse, unknown = 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS  # at ENOSYS, libc takes clone for clone3
    code = [(load, 0, 0, 4), (equal, 1, 0, arch), (answer, 0, 0, kill), (load, 0, 0, 0)]
    code += [(at_least, 0, 1, X32_CALLS), (answer, 0, 0, refuse), (equal, 0, 1, clone3), (answer, 0, 0, unknown)]
    for number in refused:
        code += [(equal, 0, 1, number), (answer, 0, 0, refuse)]
    code += [(equal, 0, 3, clone), (load, 0, 0, 16), (any_bit, 1, 0, THREAD_FLAG), (answer, 0, 0, refuse)]
    code += [(answer, 0, 0, allow)]
    program = b"".join(struct.pack("=HBBI", *line) for line in code)
    buffer = ctypes.create_string_buffer(program, len(program))
    header = ctypes.create_string_buffer(struct.pack("@HP", len(code), ctypes.addressof(buffer)))
    if ctypes.CDLL(None, use_errno=True).prctl(SET_SECCOMP, FILTER_MODE, header, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "seccomp")


def _limit(cpu_s: int, memory_bytes: int) -> None:
    ctypes.CDLL(None).prctl(SET_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    for what, most in (
        (resource.RLIMIT_CPU, cpu_s), (resource.RLIMIT_AS, memory_bytes), (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_FSIZE, OUTPUT_BYTES), (resource.RLIMIT_CORE, 0),
    ):  # fmt: skip
        resource.setrlimit(what, (most, most))


def _main() -> None:
    job = json.load(sys.stdin)
    try:
        _cage()
    except OSError as error:
        print(error, file=sys.stderr)
        os._exit(UNAVAILABLE)
    child = os.fork()
    if child == 0:
        _limit(job["cpu_s"], job["memory_bytes"])
        try:
            _forbid_calls()
        except OSError as error:
            print(error, file=sys.stderr)
            os._exit(UNAVAILABLE)
        try:
            exec(compile(job["program"], "<program>", "exec"), {"__name__": "__main__"})
        except SystemExit:
            raise
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            sys.stdout.flush()
            os._exit(1)
        sys.stdout.flush()
        os._exit(0)
    # the program sees no signal of ours: it can undo a wish to die with its parent, but not a kill
    signal.signal(signal.SIGALRM, lambda *_: os.kill(child, signal.SIGKILL))
    signal.alarm(job["wall_s"])
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os._exit(OUT_OF_TIME if status in (-signal.SIGKILL, -signal.SIGXCPU) else status % 256)


if __name__ == "__main__":
    _main()
