"""Lists of GitHub repositories, from a server in this process that has the same two paths."""

import hashlib
import io
import json
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pipelines import github
from pipelines.errors import DataError

OLD, NEW = "a" * 40, "b" * 40
WANTED = github.GithubFiles("sites", "owner/name", OLD, "blacklists", r"[^/]+/domains", "CC-BY-SA-4.0", "sites")


def archive(commit: str, *members: tuple[str, bytes], links: dict[str, str] | None = None) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name, content in members:
            info = tarfile.TarInfo(f"name-{commit}/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(f"name-{commit}/{name}")
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
    return file.getvalue()


class Handler(BaseHTTPRequestHandler):
    answers: dict[str, bytes]
    asked: list[str]

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.asked.append(self.path)
        body = self.answers.get(self.path)
        self.send_response(404 if body is None else 200)
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        self.wfile.write(body or b"")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Handler]]:
    content = [("README.md", b"# no list\n"), ("blacklists/gambling/domains", b"bad.com\n"),
               ("blacklists/gambling/usage", b"black"), ("blacklists/../../evil/domains", b"x"),
               ("other/adult/domains", b"y.com\n")]  # fmt: skip
    answers = {
        f"/owner/name/archive/{OLD}.tar.gz": archive(OLD, *content, links={"blacklists/link/domains": "/etc/passwd"}),
        f"/owner/name/archive/{NEW}.tar.gz": archive(NEW, ("blacklists/gambling/domains", b"bad.com\nworse.com\n")),
        "/owner/name.git/info/refs?service=git-upload-pack":
            b"001e# service=git-upload-pack\n0000" + b"0050" + NEW.encode() + b" HEAD\0multi_ack\n0000",
    }  # fmt: skip
    bound = type("Bound", (Handler,), {"answers": answers, "asked": []})
    http = ThreadingHTTPServer(("127.0.0.1", 0), bound)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    monkeypatch.setenv("LOAM_GITHUB", f"http://127.0.0.1:{http.server_port}")
    yield bound
    http.shutdown()
    http.server_close()


def quiet(_: str) -> None:
    pass


def test_files_of_a_folder_are_fetched_once_and_hashed(server, tmp_path):
    assert github.fetched_folder(WANTED, tmp_path) is None
    (file,) = github.fetch(WANTED, tmp_path, say=quiet)
    folder = tmp_path / "lists" / "sites" / OLD
    assert file == folder / "gambling" / "domains"
    assert file.read_bytes() == b"bad.com\n"
    entry = json.loads((folder / "_fetched.json").read_text())["files"]["gambling/domains"]
    assert entry == {"size": 8, "sha256": hashlib.sha256(b"bad.com\n").hexdigest()}
    assert {path.name for path in (tmp_path / "lists" / "sites").iterdir()} == {OLD}
    server.asked.clear()
    assert github.fetch(WANTED, tmp_path, say=quiet) == [file]
    assert server.asked == []


def test_a_changed_file_is_fetched_again(server, tmp_path):
    (file,) = github.fetch(WANTED, tmp_path, say=quiet)
    file.write_bytes(b"")
    assert github.fetched_folder(WANTED, tmp_path) is None
    github.fetch(WANTED, tmp_path, say=quiet)
    assert file.read_bytes() == b"bad.com\n"


def test_the_newest_commit_goes_into_the_lock(server, tmp_path):
    github.fetch(WANTED, tmp_path, say=quiet)
    (file,) = github.fetch(WANTED, tmp_path, update=True, say=quiet)
    assert file.read_bytes() == b"bad.com\nworse.com\n"
    assert github.commit_of(WANTED, tmp_path) == NEW
    assert github.fetched_folder(WANTED, tmp_path) == tmp_path / "lists" / "sites" / NEW


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"commit": "c" * 40}, "404"),
        ({"pattern": "none"}, "no file of blacklists matches"),
        ({"repository": "o/n"}, "404"),
    ],
)
def test_what_is_not_there_is_said_in_one_line(server, tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        github.fetch(github.GithubFiles(**{**WANTED.__dict__, **change}), tmp_path, say=quiet)


def test_a_torn_archive_leaves_nothing_that_counts(server, tmp_path):
    name = f"/owner/name/archive/{OLD}.tar.gz"
    whole = server.answers[name]
    server.answers[name] = whole[: len(whole) // 2]
    with pytest.raises(DataError, match="cannot be fetched"):
        github.fetch(WANTED, tmp_path, say=quiet)
    assert github.fetched_folder(WANTED, tmp_path) is None
    server.answers[name] = whole
    assert len(github.fetch(WANTED, tmp_path, say=quiet)) == 1
