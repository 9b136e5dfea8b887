"""The Hub's API is spoken by a server in this process: the real client of Hugging Face is used against it."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipelines import hub
from pipelines.errors import DataError, RecipeError
from pipelines.extract import ExtractSettings
from pipelines.source_settings import HubSource
from pipelines.sources import fingerprint_inputs, ingest

OLD, NEW = "1" * 40, "2" * 40
TRAIN = b"".join(b'{"id": "t%d", "text": "train %d"}\n' % (n, n) for n in range(2000))
FILES = {
    "README.md": b"# A data set\n",
    "web/train-00000.jsonl": TRAIN,
    "web/train-00001.jsonl": b'{"id": "last", "text": "last one"}\n',
    "web/test-00000.jsonl": b'{"text": "test"}\n',
    "books/train-00000.jsonl": b'{"text": "book"}\n',
}
CONFIGS = [
    {"config_name": "web", "data_files": [{"split": "train", "path": "web/train-*"},
                                          {"split": "test", "path": "web/test-*"}]},
    {"config_name": "books", "default": True, "data_files": "books/*.jsonl"},
]  # fmt: skip


class FakeHub:
    """One dataset, `owner/name`, whose branch `main` is a commit; large files are said to be in LFS."""

    def __init__(self) -> None:
        self.files, self.main, self.configs = dict(FILES), OLD, CONFIGS
        self.model = {"config.json": b"{}", "model.safetensors": b"weights", "model.bin": b"pickle"}
        self.requests: list[tuple[str, str | None]] = []

    def of(self, kind: str) -> dict[str, bytes]:
        return self.files if kind == "datasets" else self.model

    def tree(self, kind: str = "datasets") -> list[dict[str, Any]]:
        entries = []
        for path, data in self.of(kind).items():
            entry = {"type": "file", "path": path, "size": len(data), "oid": git_blob(data)}
            if len(data) > 1000:
                entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
            entries.append(entry)
        return entries


def git_blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Handler(BaseHTTPRequestHandler):
    fake: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        wanted = re.findall(r"paths=([^&]*)", body) or json.loads(body or "{}").get("paths", [])
        names = {name.replace("%2F", "/") for name in wanted}
        kind = self.path.split("/")[2]
        self.send_json([entry for entry in self.fake.tree(kind) if entry["path"] in names])

    def do_GET(self) -> None:
        path, _, _ = self.path.partition("?")
        self.fake.requests.append((path, self.headers.get("Range")))
        if found := re.fullmatch(r"/api/(?:datasets|models)/owner/name(/revision/(\w+))?", path):
            commit = {None: self.fake.main, "main": self.fake.main}.get(found[2], found[2])
            if commit not in (OLD, NEW):
                self.send_json({"error": "Invalid rev id"}, 404, {"X-Error-Code": "RevisionNotFound"})
                return
            card = {"configs": self.fake.configs} if self.fake.configs else {}
            self.send_json({"id": "owner/name", "sha": commit, "siblings": [], "cardData": card, "tags": [],
                            "private": False, "downloads": 0, "likes": 0})  # fmt: skip
        elif found := re.fullmatch(r"/api/(datasets|models)/owner/name/tree/\w+(/.+)?", path):
            below = (found[2] or "/")[1:].replace("%2F", "/")
            self.send_json([entry for entry in self.fake.tree(found[1]) if entry["path"].startswith(below)])
        elif found := re.fullmatch(r"(/datasets)?/owner/name/resolve/(\w+)/(.+)", path):
            files = self.fake.of("datasets" if found[1] else "models")
            self.send_file(files[found[3].replace("%2F", "/")], found[2])
        else:
            self.send_json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})

    def send_json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_file(self, data: bytes, commit: str) -> None:
        begin, end = 0, len(data) - 1
        if found := re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            begin, end = int(found[1]), min(end, int(found[2] or end))
        self.send_response(206 if found else 200)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(end + 1 - begin))
        if found:
            self.send_header("Content-Range", f"bytes {begin}-{end}/{len(data)}")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[begin : end + 1])


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    fake = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"fake": fake}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    from huggingface_hub import constants

    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)  # read from the environment once, at import
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    yield fake
    server.shutdown()
    server.server_close()


def quiet(_: str) -> None:
    pass


def test_a_split_is_fetched_pinned_and_hashed(fake, tmp_path):
    wanted = hub.Wanted("owner/name", subset="web")
    assert not hub.is_fetched(wanted, tmp_path)
    files = hub.fetch(wanted, tmp_path, say=quiet)
    folder = tmp_path / "hub" / "owner--name"
    assert [file.relative_to(folder).as_posix() for file in files] == [
        f"{OLD}/web/train-00000.jsonl", f"{OLD}/web/train-00001.jsonl"]  # fmt: skip
    assert files[0].read_bytes() == TRAIN
    assert json.loads((folder / "revisions.json").read_text()) == {"main": OLD}
    entry = json.loads((folder / OLD / "fetched.json").read_text())["files"]["web/train-00000.jsonl"]
    assert entry == {"size": len(TRAIN), "sha256": hashlib.sha256(TRAIN).hexdigest()}
    assert hub.is_fetched(wanted, tmp_path)
    assert hub.fetched_files(wanted, tmp_path, "s") == files
    fake.requests.clear()
    assert hub.fetch(wanted, tmp_path, say=quiet) == files
    assert not [path for path, _ in fake.requests if "/resolve/" in path]


def test_a_branch_stays_where_it_was_pinned_until_asked_anew(fake, tmp_path):
    wanted = hub.Wanted("owner/name", files=("books/*",))
    hub.fetch(wanted, tmp_path, say=quiet)
    fake.main, fake.files["books/train-00000.jsonl"] = NEW, b'{"text": "newer"}\n'
    assert OLD in str(hub.fetch(wanted, tmp_path, say=quiet)[0])
    newer = hub.fetch(wanted, tmp_path, update=True, say=quiet)[0]
    assert (NEW in str(newer), newer.read_bytes()) == (True, b'{"text": "newer"}\n')


def test_the_lock_says_which_commit_is_read(fake, tmp_path):
    wanted = hub.Wanted("owner/name", subset="web")
    assert hub.pinned_commit(wanted, tmp_path) is None
    hub.fetch(wanted, tmp_path, say=quiet)
    fake.main = NEW
    assert hub.pinned_commit(wanted, tmp_path) == OLD
    pinned = hub.Wanted("owner/name", NEW, subset="web")
    assert hub.pinned_commit(pinned, tmp_path) == NEW
    assert NEW in str(hub.fetch(pinned, tmp_path, say=quiet)[0])
    assert json.loads((tmp_path / "hub/owner--name/revisions.json").read_text()) == {"main": OLD}
    assert hub.fetched_files(wanted, tmp_path, "s")[0].parts[-3] == OLD


def test_a_model_comes_without_what_must_be_unpickled(fake, tmp_path):
    wanted = hub.wanted_model_at("hf://models/owner/name")
    files = hub.fetch(wanted, tmp_path, say=quiet)
    assert [file.name for file in files] == ["config.json", "model.safetensors"]
    assert hub.commit_folder(wanted, tmp_path) == tmp_path / "hub" / "models--owner--name" / OLD
    with pytest.raises(RecipeError, match="or hf://models/owner/name"):
        hub.wanted_model_at("hf://models/name")


def test_notes_beside_arrow_files_are_no_records():
    configs = [{"config_name": "qa", "data_files": [{"split": "train", "path": "qa/*"}]}]
    paths = ["qa/data-0.arrow", "qa/dataset_info.json", "qa/state.json", "README.md"]
    assert hub.choose(hub.Wanted("o/n", subset="qa"), paths, configs) == ["qa/data-0.arrow"]


def test_a_download_goes_on_where_it_broke_off(fake, tmp_path):
    folder = tmp_path / "hub" / "owner--name" / OLD / "web"
    folder.mkdir(parents=True)
    (folder / ".train-00000.jsonl.part").write_bytes(TRAIN[:30000])
    files = hub.fetch(hub.Wanted("owner/name", subset="web"), tmp_path, say=quiet)
    assert files[0].read_bytes() == TRAIN
    ranges = [asked for path, asked in fake.requests if path.endswith("train-00000.jsonl") and asked]
    assert ranges == [f"bytes=30000-{len(TRAIN) - 1}"]


@pytest.mark.parametrize("name", ["web/train-00000.jsonl", "books/train-00000.jsonl"])
def test_other_bytes_than_announced_are_refused(fake, tmp_path, name):
    tree = fake.tree()
    fake.tree = lambda kind: tree
    fake.files[name] = fake.files[name].replace(b"t", b"T")
    wanted = hub.Wanted("owner/name", files=(name,))
    with pytest.raises(DataError, match="expected hash"):
        hub.fetch(wanted, tmp_path, say=quiet)
    assert not hub.is_fetched(wanted, tmp_path)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (hub.Wanted("owner/other"), "cannot be fetched"),
        (hub.Wanted("owner/name", "none"), "cannot be fetched"),
        (hub.Wanted("owner/name", subset="wbe"), "has no subset 'wbe'; it has web, books"),
        (hub.Wanted("owner/name", subset="web", split="dev"), "has no split 'dev'; it has train, test"),
        (hub.Wanted("owner/name", files=("*.parquet",)), "no file of the repository matches"),
    ],
)
def test_what_is_not_there_is_said(fake, tmp_path, wanted, message):
    with pytest.raises(DataError, match=message):
        hub.fetch(wanted, tmp_path, say=quiet)


def test_a_source_becomes_documents_and_changes_are_noticed(fake, tmp_path):
    source = HubSource(kind="huggingface", dataset="owner/name", subset="web", id_field="id", licence="ODC-By-1.0")
    with pytest.raises(DataError, match=r"source 's': hf://.* needs a download; run: loam fetch RECIPE"):
        ingest({"s": source}, None, tmp_path, tmp_path / "out", ExtractSettings())
    files = hub.fetch(hub.wanted_by(source), tmp_path, say=quiet)
    counts = ingest({"s": source}, None, tmp_path, tmp_path / "out", ExtractSettings()).counts
    assert counts is not None
    assert counts.kept == 2001
    row = pq.read_table(tmp_path / "out/documents/s/part-00001.parquet").to_pylist()[0]
    assert (row["id"], row["text"], dict(row["metadata"])) == ("s/last", "last one", {"licence": "ODC-By-1.0"})
    assert len(fingerprint_inputs({"s": source}, tmp_path)) == 2
    files[0].write_bytes(TRAIN.replace(b"train 7", b"train 8"))
    with pytest.raises(DataError, match=r"expected sha256 .* found .*; run: loam fetch"):
        fingerprint_inputs({"s": source}, tmp_path)
    files[0].write_bytes(b"")
    with pytest.raises(DataError, match="is not the 73780 bytes that were fetched"):
        hub.fetched_files(hub.wanted_by(source), tmp_path, "s")


@pytest.mark.parametrize(
    ("subset", "split", "expected"),
    [
        (None, "train", ["a/train-0.parquet", "b/x.parquet"]),
        ("a", "train", ["a/train-0.parquet"]),
        ("a", "test", ["a/test.parquet"]),
        ("b", "train", ["b/x.parquet"]),
    ],
)
def test_files_of_a_repository_without_a_card_are_told_by_name(subset, split, expected):
    paths = ["README.md", "a/train-0.parquet", "a/test.parquet", "b/x.parquet", "b/validation.parquet"]
    wanted = hub.Wanted("o/n", subset=subset, split=split)
    if subset is None:
        expected = ["a/train-0.parquet"]  # where some name the split, the others are something else
    assert hub.choose(wanted, paths, []) == expected


def test_urls():
    assert hub.wanted_at("hf://datasets/o/n@v1.0/data/*.parquet") == hub.Wanted(
        "o/n", "v1.0", files=("data/*.parquet",)
    )
    assert hub.wanted_at("hf://datasets/o/n@refs%2Fpr%2F1/a").revision == "refs/pr/1"
    with pytest.raises(RecipeError, match="expected hf://datasets/owner/name"):
        hub.wanted_at("hf://models/o/n/a")


def test_globs_do_not_cross_folders_unless_told():
    paths = ["a/x.jsonl", "a/b/y.jsonl"]
    assert hub.choose(hub.Wanted("o/n", files=("a/*.jsonl",)), paths, []) == ["a/x.jsonl"]
    assert hub.choose(hub.Wanted("o/n", files=("a/**",)), paths, []) == ["a/b/y.jsonl", "a/x.jsonl"]


def test_names_do_not_lead_out_of_the_folder(fake, tmp_path):
    fake.files = {"../evil.jsonl": b"{}"}
    with pytest.raises(DataError, match="leads out of its folder"):
        hub.fetch(hub.Wanted("owner/name", files=("**",)), tmp_path / "root", say=quiet)
    assert not Path(tmp_path / "evil.jsonl").exists()
