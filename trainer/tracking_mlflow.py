"""Export a run to MLflow, in a SQLite database of its own: no server, no network.

The run is found again by a tag, so that a second export adds what is new and nothing else; metrics carry the clock of
the run's journal. Needs the extra `mlflow`. Tried with mlflow-skinny 3.17.2.
"""

import logging
from importlib import import_module
from pathlib import Path
from typing import Any

from pipelines.errors import MissingExtra
from trainer.tracking import TrackedRun

KEY, LAST = "loam.run", "loam.last_step"  # tags by which a run and its end so far are found again
MOST_METRICS, MOST_PARAMETERS = 1000, 100  # of one call: MLflow's own limits
LONGEST_PARAMETER = 6000  # letters: MLflow's own limit


def export_mlflow(run: TrackedRun, folder: Path, experiment: str = "loam") -> dict[str, Any]:
    """Add a run to `folder/mlflow.db`, or what it has gained since it was added.

    Args:
        run: what is exported.
        folder: of the database and of the artefacts; made when it is not there.
        experiment: MLflow's name for a group of runs.

    Returns:
        `uri` of the database, MLflow's id of the run, points that were there and that were added.

    Raises:
        MissingExtra: MLflow is not installed.
    """
    try:  # by name, so that types check without the extra
        mlflow, entities = import_module("mlflow"), import_module("mlflow.entities")
    except ImportError:
        raise MissingExtra("MLflow is not installed: pip install -e '.[mlflow]'") from None
    for noisy in ("alembic", "mlflow"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    uri = f"sqlite:///{folder.resolve() / 'mlflow.db'}"
    client = mlflow.MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name(experiment)
    artifacts = (folder.resolve() / "artifacts").as_uri()
    group = found.experiment_id if found else client.create_experiment(experiment, artifact_location=artifacts)
    known = client.search_runs([group], filter_string=f"tags.`{KEY}` = '{run.key}'")
    first = round(run.points[0].time * 1000) if run.points else 0
    if known:
        target = known[0]
    else:
        target = client.create_run(group, start_time=first, run_name=run.name, tags={KEY: run.key, LAST: "0"})
        parameters = [entities.Param(name, value[:LONGEST_PARAMETER]) for name, value in run.parameters.items()]
        for start in range(0, len(parameters), MOST_PARAMETERS):
            client.log_batch(target.info.run_id, params=parameters[start : start + MOST_PARAMETERS])
    last = int(target.data.tags.get(LAST, "0"))
    fresh = [point for point in run.points if point.step > last]
    metrics = [entities.Metric(name, value, round(point.time * 1000), point.step)
               for point in run.points if point.step >= last  # one that was held out since is at the last step
               for name, value in point.values.items()]  # fmt: skip
    number = target.info.run_id
    for start in range(0, len(metrics), MOST_METRICS):
        client.log_batch(number, metrics=metrics[start : start + MOST_METRICS])
    client.log_batch(number, tags=[entities.RunTag(name, value) for name, value in run.tags.items()])
    if fresh or not known:
        for name, path in run.files.items():
            client.log_artifact(number, str(path), str(Path(name).parent) if "/" in name else None)
        client.set_tag(number, LAST, str(run.points[-1].step if run.points else 0))
    if run.finished and target.info.status != "FINISHED":
        client.set_terminated(number, "FINISHED", round(run.points[-1].time * 1000) if run.points else None)
    return {"uri": uri, "run": number, "had": len(run.points) - len(fresh), "added": len(fresh)}
