"""Training fastText in a process of its own.

The one choice that matters: the process gets memory that the allocator hands out as zeros. With one thread fastText
0.9.2 initialises only the first tenth of its input matrix (it cuts it in ten blocks, one per thread); the rest is
whatever lay in memory: in a process that has worked before, other bytes on each run, at times NaN. From zeros, words
start random, n-grams start at zero, and `model.bin` is the same bytes every time. Source: fastText densematrix.cc.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.errors import StepError

ZEROED = {"MALLOC_PERTURB_": "255", "MALLOC_MMAP_THRESHOLD_": "65536"}
"""glibc: fill what malloc returns with the complement of 255, and take large blocks fresh from the kernel."""


def train(examples: Path, model: Path, arguments: Mapping[str, Any]) -> None:
    """Train a supervised model in a fresh process.

    Args:
        examples: one per line, label first.
        model: file to write.
        arguments: of `fasttext.train_supervised`; `thread` is always 1.

    Raises:
        StepError: fastText failed.
    """
    request = json.dumps({"input": str(examples), "model": str(model), **arguments, "thread": 1, "verbose": 0})
    command = [sys.executable, "-P", "-c", _PROGRAM, request]
    done = subprocess.run(command, env={**os.environ, **ZEROED}, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise StepError(f"fastText failed: {reason}; lower lr ({arguments['lr']}) or epoch ({arguments['epoch']})")


_PROGRAM = """
import json, sys
import fasttext
arguments = json.loads(sys.argv[1])
path = arguments.pop("model")
fasttext.train_supervised(**arguments).save_model(path)
"""
