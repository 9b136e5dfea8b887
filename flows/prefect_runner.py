"""The same steps as Prefect tasks: one task per step, with artifacts that Prefect's pages show.

Prefect only watches: ids, skipping and resuming are the store's. Its server is the ephemeral one on SQLite, kept in
`<runs>/.prefect`; nothing is sent anywhere.
"""

import functools
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flows.runner import announce, perform_step
from flows.steps.step import Place, Step
from pipelines.store import Performed


def configure_prefect(home: Path) -> None:
    """Keep Prefect local and quiet; must be called before prefect is imported."""
    settings = {
        "PREFECT_HOME": str(home.resolve()),
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",  # the first start migrates its database
        "PREFECT_SERVER_MEMO_STORE_PATH": str(home.resolve() / "memo_store.toml"),
        "PREFECT_PROFILES_PATH": str(home.resolve() / "profiles.toml"),
        "PREFECT_LOGGING_LEVEL": "CRITICAL",
        "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)


def end_server() -> None:
    """End the server that Prefect has started for this process, if there is one."""
    from prefect.server.api.server import SubprocessASGIServer

    for server in SubprocessASGIServer._instances.values():
        if server.server_process is not None:
            server.server_process.terminate()


def perform_with_prefect(steps: Sequence[Step], place: Place) -> dict[str, Performed]:
    """Perform the steps as tasks of a Prefect flow."""
    configure_prefect(place.folder.parent / ".prefect")
    from prefect import flow, task
    from prefect.artifacts import create_progress_artifact, update_progress_artifact
    from prefect.cache_policies import NO_CACHE

    performed: dict[str, Performed] = {}

    def run_steps() -> None:
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))  # Prefect has put its own in place
        progress: Any = create_progress_artifact(progress=0.0, key="steps", description=place.folder.name)
        for number, step in enumerate(steps, 1):
            announce(number, len(steps), step)
            options: Any = {"name": step.name, "description": step.about, "cache_policy": NO_CACHE}
            body: Any = functools.partial(_run_task, step, place, performed)
            task(persist_result=False, **options)(body)()
            update_progress_artifact(progress, progress=100.0 * number / len(steps))

    decorated: Any = flow(name=place.folder.name.replace("@", "-"), persist_result=False, validate_parameters=False)
    decorated(run_steps)()
    return performed


def _run_task(step: Step, place: Place, performed: dict[str, Performed]) -> None:
    """The body of every task: the step, then its artifacts."""
    done = performed[step.name] = perform_step(step, place)
    from prefect.artifacts import create_markdown_artifact, create_table_artifact

    manifest = done.manifest
    key = step.name.replace("_", "-")
    create_markdown_artifact(
        key=f"{key}-step", markdown=f"**{step.name}** ({done.how}): {step.about}\n\nid `{manifest.id}`"
    )
    if manifest.counts is not None:
        counts = manifest.counts
        rows = [("in", counts.docs_in), ("kept", counts.kept)]
        rows += [(f"dropped: {reason}", number) for reason, number in counts.dropped.items()]
        rows += [(f"rejected: {reason}", number) for reason, number in counts.rejected.items()]
        create_table_artifact(key=f"{key}-documents", table=[{"what": what, "documents": n} for what, n in rows])
