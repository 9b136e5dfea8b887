"""The child process of `extract_guard`: `python -m pipelines.extract_child ENGINE COMMENTS LINKS ...`."""

import os
import sys

from pipelines.extract_engine import Bounds
from pipelines.extract_guard import serve


def main(arguments: list[str]) -> None:
    """Serve until the parent closes the pipe.

    Args:
        arguments: as `extract_guard._arguments` writes them.
    """
    engine, comments, links, *numbers = arguments
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not end up among the results
    try:
        serve(sys.stdin.buffer, results, Bounds(engine, comments == "1", links == "1", *map(int, numbers)))
    except BrokenPipeError:  # the parent wants no more: a limit of pages, or its end
        os._exit(0)  # and nothing is left to flush


if __name__ == "__main__":
    main(sys.argv[1:])
