"""What a training run was made with: code, packages, machine, recipe, data, seeds.

It is kept in `.journal/provenance.jsonl` of the run, one line for each process that worked on it, and in nothing that
must be the same bytes on every machine: the store neither hashes that folder nor lists it. Of the environment only
named variables are kept, since others may hold secrets.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.journal import KEPT_JOURNAL, end_torn_line, read_journal
from pipelines.recipe import ROOT
from pipelines.shards import Blend, ShardSet
from pipelines.store import code_version

if TYPE_CHECKING:
    from trainer.run import Run

PROVENANCE = f"{KEPT_JOURNAL}/provenance.jsonl"
VARIABLES = (
    "CUDA_VISIBLE_DEVICES", "CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE", "PYTORCH_CUDA_ALLOC_CONF",
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_WAIT_POLICY", "PYTHONHASHSEED",
    "SLURM_JOB_ID", "SLURM_JOB_NODELIST", "SLURM_PROCID", "RANK", "WORLD_SIZE", "LOCAL_RANK", "NCCL_ALGO", "NCCL_DEBUG",
)  # fmt: skip


def provenance_of(run: "Run", validation: ShardSet | None = None) -> dict[str, Any]:
    """Everything known about a run before its next step.

    Args:
        run: at the step from which this process goes on.
        validation: held-out shards.

    Returns:
        JSON values: `code`, `packages`, `machine`, `environment`, `command`, `recipe`, `seed`, `data`, `from_step`.
    """
    return {
        "time": round(time.time(), 3),
        "from_step": run.step,
        "run": run.identity,
        "code": code_state(),
        "packages": packages(),
        "machine": machine(run.device.type),
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "recipe": run.recipe.model_dump(mode="json"),
        "seed": run.recipe.seed,
        "data": {"stages": [_blend(blend) for blend in run.blends], "held_out": _shards(validation)},
    }


def record_provenance(run: "Run", validation: ShardSet | None = None) -> dict[str, Any]:
    """Add a line to the run's `provenance.jsonl`, and give it."""
    found = provenance_of(run, validation)
    path = run.work / PROVENANCE
    path.parent.mkdir(parents=True, exist_ok=True)
    end_torn_line(path)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(found, ensure_ascii=False) + "\n")
    return found


def code_state(root: Path = ROOT) -> dict[str, Any]:
    """The commit that the code stands at, and a hash of what differs from it.

    Args:
        root: of the sources.

    Returns:
        `version`: hash of the sources themselves, whatever git says; `commit`, `branch`, `dirty` (files that differ,
        files that git does not know included) and `dirty_sha256`, which are None or empty outside a repository.
    """
    state: dict[str, Any] = {"version": code_version() if root == ROOT else None,
                             "commit": None, "branch": None, "dirty": [], "dirty_sha256": None}  # fmt: skip
    if (commit := _git(root, "rev-parse", "HEAD")) is None:
        return state
    branch = _git(root, "rev-parse", "--abbrev-ref", "HEAD") or b""
    state |= {"commit": commit.decode().strip(), "branch": branch.decode().strip()}
    changed = _git(root, "diff", "HEAD", "--no-ext-diff", "--binary") or b""
    untracked = _paths(_git(root, "ls-files", "--others", "--exclude-standard", "-z"))
    state["dirty"] = sorted({*_paths(_git(root, "diff", "HEAD", "--name-only", "-z")), *untracked})
    if state["dirty"]:
        digest = hashlib.sha256(changed)
        for name in untracked:
            path = root / name
            digest.update(name.encode() + b"\0" + (path.read_bytes() if path.is_file() else b""))
        state["dirty_sha256"] = digest.hexdigest()
    return state


def _paths(listed: bytes | None) -> list[str]:
    return sorted(name.decode("utf-8", "backslashreplace") for name in (listed or b"").split(b"\0") if name)


def _git(root: Path, *words: str) -> bytes | None:
    """What git prints, or None where there is no git, no repository or no commit."""
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def packages() -> dict[str, str]:
    """Every installed package with its version."""
    found = {one.metadata["Name"]: one.version for one in importlib.metadata.distributions() if one.metadata["Name"]}
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def machine(device: str) -> dict[str, Any]:
    """Python, operating system, processor and memory, torch's build and, where one is used, the GPU."""
    import torch

    found: dict[str, Any] = {
        "python": platform.python_version(), "system": platform.platform(), "host": platform.node(),
        "processor": _processor(), "cores": os.cpu_count(), "memory_bytes": _memory_bytes(),
        "torch": torch.__version__, "torch_threads": torch.get_num_threads(), "device": device,
    }  # fmt: skip
    if device == "cuda":
        index = torch.cuda.current_device()
        properties = torch.cuda.get_device_properties(index)
        found["gpu"] = {"name": properties.name, "memory_bytes": properties.total_memory,
                        "capability": list(torch.cuda.get_device_capability(index)),
                        "count": torch.cuda.device_count(), "cuda": torch.version.cuda,
                        "cudnn": torch.backends.cudnn.version()}  # fmt: skip
    return found


def _processor() -> str:
    """The model's name as Linux tells it, else what Python knows."""
    path = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in path.read_text().splitlines() if line.startswith("model name")
             ] if path.is_file() else []  # fmt: skip
    return names[0] if names else platform.processor() or platform.machine()


def _memory_bytes() -> int | None:
    if {"SC_PAGE_SIZE", "SC_PHYS_PAGES"} <= os.sysconf_names.keys():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def _blend(blend: Blend) -> list[dict[str, Any]]:
    return [{"weight": weight, "name": shard.name, "tokens": shard.tokens, "sha256": shard.sha256}
            for weight, shard in blend.parts]  # fmt: skip


def _shards(shards: ShardSet | None) -> list[Mapping[str, Any]]:
    return [{"name": one.name, "tokens": one.tokens, "sha256": one.sha256} for one in shards.shards] if shards else []


def read_provenance(folder: Path) -> Sequence[dict[str, Any]]:
    """The lines of a run's provenance, oldest first; none where it was trained before there were any."""
    return read_journal(folder / PROVENANCE)
