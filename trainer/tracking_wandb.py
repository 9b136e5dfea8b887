"""Export a run to Weights & Biases' offline format: a folder that `wandb sync` uploads when its owner wants to.

W&B cannot add to an offline run, so one that has gained points is written anew under the same id, and one that has not
is left alone. Nothing leaves the machine. Needs the extra `wandb`. Tried with wandb 0.31.0.
"""

import json
import os
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

from pipelines.errors import MissingExtra
from pipelines.files import write_atomically
from trainer.tracking import TrackedRun

RECEIPT = "loam-{key}.json"


def export_wandb(run: TrackedRun, folder: Path, project: str = "loam") -> dict[str, Any]:
    """Write `folder/wandb/offline-run-*-<key>`, unless it holds the run as it is.

    Args:
        run: what is exported.
        folder: of all exported runs; made when it is not there.
        project: W&B's name for a group of runs.

    Returns:
        The offline run's folder, points that were there and that were added.

    Raises:
        MissingExtra: W&B is not installed.
    """
    receipt = folder / RECEIPT.format(key=run.key)
    wanted = {"key": run.key, "last_step": run.points[-1].step if run.points else 0, "finished": run.finished}
    known = json.loads(receipt.read_text(encoding="utf-8")) if receipt.is_file() else {}
    if {name: known.get(name) for name in wanted} == wanted and Path(folder / known["folder"]).is_dir():
        return {"folder": str(folder / known["folder"]), "had": len(run.points), "added": 0}
    os.environ.setdefault("WANDB_SILENT", "true")  # stdout is data
    try:  # by name, so that types check without the extra
        wandb = import_module("wandb")
    except ImportError:
        raise MissingExtra("Weights & Biases is not installed: pip install -e '.[wandb]'") from None
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"wandb/offline-run-*-{run.key}"):
        shutil.rmtree(old)
    settings = wandb.Settings(mode="offline", console="off", silent=True, disable_git=True, save_code=False,
                              x_disable_stats=True, x_disable_meta=True)  # fmt: skip
    config = {name: _value(text) for name, text in run.parameters.items()}
    told = wandb.init(project=project, name=run.name, id=run.key, dir=str(folder), settings=settings,
                      config={**config, "loam": dict(run.tags)})  # fmt: skip
    for point in run.points:
        told.log({**point.values, "_timestamp": point.time}, step=point.step)
    for name, path in run.files.items():
        copied = Path(told.dir) / name.lstrip(".")
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copied)
    told.finish(exit_code=0)
    [written] = folder.glob(f"wandb/offline-run-*-{run.key}")
    where = written.relative_to(folder).as_posix()
    write_atomically(receipt, (json.dumps({**wanted, "folder": where}, sort_keys=True) + "\n").encode())
    return {"folder": str(written), "had": 0, "added": len(run.points)}


def _value(text: str) -> Any:
    """A parameter as W&B sorts by it: a number where it is one."""
    try:
        return json.loads(text)
    except ValueError:
        return text
