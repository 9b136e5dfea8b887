"""Runs a server and ends it, whole process group and all, as soon as the process that wanted it is gone.

Started as a script, so that it needs nothing but the interpreter. It asks for its parent's id instead of trusting a
signal or a pipe: a SIGKILL of the parent gives no notice, and forked siblings hold pipes open.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time

LOOK_S = 0.2
GRACE_S = 10.0  # between asking and killing


def main(parent: int, command: list[str]) -> int:
    """Run the command until it ends, the parent ends, or we are told to stop.

    Args:
        parent: process id of who wants the server.
        command: the server and its arguments.

    Returns:
        The command's exit status; 0 where it was we who ended it.
    """
    told: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, frame: told.append(number))
    server = subprocess.Popen(command, start_new_session=True)
    while server.poll() is None and not told and os.getppid() == parent:
        time.sleep(LOOK_S)
    status = server.poll()
    end_group(server.pid)
    return 0 if status is None else status


def end_group(group: int) -> None:
    """Ask every process of the group to end, then make them."""
    for number, patience_s in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, GRACE_S)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, number)
        until = time.monotonic() + patience_s
        while _alive(group) and time.monotonic() < until:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(-1, os.WNOHANG)
            time.sleep(LOOK_S / 4)


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
