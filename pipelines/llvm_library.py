"""numba's library under a program that looks into every module: vLLM does so when it starts on a CPU.

llvmlite's handle of LLVM makes a function of any attribute that it is asked for, `__dict__` among them; vLLM 0.32
(`triton_utils/dispatcher.py`) takes that for a namespace and fails with an AttributeError. Where kernels ran before
vLLM starts in one process, or is forked from it, the handle is given an empty namespace.
"""

import sys
from typing import Any


def make_scannable() -> None:
    """Let `vars()` of llvmlite's handle be empty, if numba is loaded at all."""
    module: Any = sys.modules.get("llvmlite.binding.ffi")
    functions = getattr(getattr(module, "lib", None), "_fntab", None)
    if isinstance(functions, dict):
        functions["__dict__"] = {}
