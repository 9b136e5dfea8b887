import hashlib
from pathlib import Path

import pytest

from trainer.hashed_log import HashedLog


def log_of(folder: Path, *parts: bytes) -> HashedLog:
    log = HashedLog(folder / "deeper" / "log")
    log.clear()
    for part in parts:
        log.append(part)
    return log


def test_what_came_later_is_forgotten(tmp_path: Path):
    log = log_of(tmp_path, b"one", b"two")
    state = log.state()
    log.append(b"three")
    again = HashedLog(log.path)
    assert again.restore(state)
    again.append(b"four")
    assert log.path.read_bytes() == b"onetwofour"
    assert again.state() == {"bytes": 10, "sha256": hashlib.sha256(b"onetwofour").hexdigest()}


@pytest.mark.parametrize("damage", [b"onetw", b"onetvo", b"", None])
def test_a_file_that_is_not_what_stood_there_is_refused(tmp_path: Path, damage: bytes | None):
    log = log_of(tmp_path, b"one", b"two")
    state = log.state()
    log.path.unlink() if damage is None else log.path.write_bytes(damage)
    assert not HashedLog(log.path).restore(state)
    log.clear()
    assert log.state() == {"bytes": 0, "sha256": hashlib.sha256().hexdigest()}
