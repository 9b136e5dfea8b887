"""Worker processes end with the process that started them.

A pool's worker that waits for work does not notice a SIGKILL of its parent: it would sleep for ever, or, in the midst
of a task, go on writing beside its successor. The pipe by which `multiprocessing` tells that a parent lives closes with
it, so that a thread that reads it is enough; nothing here depends on the system.
"""

import multiprocessing
import os
import threading

from multiprocess.process import parent_process


def end_with_parent() -> None:
    """End this process as soon as the one that started it is gone: the initializer of every pool."""
    parent = multiprocessing.parent_process() or parent_process()
    assert parent is not None  # only a pool's worker calls this

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, name="end_with_parent", daemon=True).start()
