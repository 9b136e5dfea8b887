"""llvmlite's handle as a program sees it that looks into every module; vLLM itself: `-m slow`, after kernels ran."""

import importlib
import subprocess
import sys

import pytest

from pipelines.llvm_library import make_scannable

numba = pytest.importorskip("numba")


def test_the_handle_has_an_empty_namespace_and_still_works():
    handle = importlib.import_module("llvmlite.binding.ffi").lib
    make_scannable()
    assert vars(handle).get("kernel") is None
    assert numba.njit(lambda number: number + 1)(1) == 2


def test_without_numba_nothing_is_loaded():
    code = "import sys; from pipelines.llvm_library import make_scannable as f; f(); assert 'numba' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
