"""A model hub on localhost, as much of its API as huggingface_hub asks for to push and pull models.

Written from the requests that huggingface_hub makes, and the specification of Git LFS' batch API; it knows nothing of
matexport. Repositories are lists of commits, each a dict of files. What a test wants it to do wrong is in `faults`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

TOKEN = "hf_test"
#: Files that a hub keeps in Git LFS.
LFS = (".safetensors", ".onnx", ".bin")


@dataclass
class Repo:
    """Attributes:
    commits: (id, path -> content) of each, the newest last.
    branches: name -> commit.
    """

    private: bool = False
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        oid = hashlib.sha1(repr((len(self.commits), branch, sorted(files))).encode()).hexdigest()
        self.commits.append((oid, files))
        self.branches[branch] = oid
        return oid

    def find(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        wanted = self.branches.get(revision, revision)
        return next((commit for commit in self.commits if commit[0] == wanted), None)


@dataclass
class Hub:
    """Attributes:
    repos: by name.
    objects: what was sent to Git LFS, by sha256.
    log: (method, path, status) of each request.
    sent: path of a file -> the (first byte, number of bytes) of each part of it that went over the wire.
    faults: what goes wrong: a function that is given a handler and answers itself if it returns True.
    ranges: whether parts of files are served.
    """

    endpoint: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    log: list[tuple[str, str, int]] = field(default_factory=list)
    sent: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    faults: list[Callable[[Any], bool]] = field(default_factory=list)
    ranges: bool = True

    def count_sent(self, name: str) -> int:
        return sum(count for _, count in self.sent.get(name, ()))

    def put(self, name: str, files: dict[str, bytes], **options: Any) -> Repo:
        self.repos[name] = repo = Repo(**options)
        repo.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n", **files})
        return repo

    def head(self, name: str, branch: str = "main") -> dict[str, bytes]:
        found = self.repos[name].find(branch)
        assert found is not None
        return found[1]


class Handler(BaseHTTPRequestHandler):
    """One request."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_arguments: object) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.hub.log.append((self.command, unquote(self.path), status))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer_json(self, document: object, status: int = 200) -> None:
        self.answer(status, json.dumps(document).encode(), Content_Type="application/json")

    def fail(self, status: int, code: str = "", message: str = "") -> None:
        self.answer(
            status,
            json.dumps({"error": message}).encode(),
            X_Error_Code=code,
            X_Error_Message=message.partition("\n")[0],
        )

    def serve(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if any(fault(self) for fault in self.hub.faults):
            return
        path = unquote(urlsplit(self.path).path)
        for pattern, handle in ROUTES:
            if match := re.fullmatch(pattern, f"{self.command} {path}"):
                handle(self, *match.groups())
                return
        self.fail(404, message=f"no such route: {self.command} {path}")

    do_GET = do_HEAD = do_POST = do_PUT = serve  # noqa: N815 - as the library spells them

    def find(self, name: str) -> Repo | None:
        """A repository that whoever asks may see; if there is none, that is answered."""
        repo, known = self.hub.repos.get(name), self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repo is None or (repo.private and not known):
            self.fail(404 if known else 401, "RepoNotFound" if known else "", "Repository not found")
            return None
        return repo

    def find_commit(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        repo = self.find(name)
        commit = repo.find(revision) if repo else None
        if repo and not commit:
            self.fail(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def may_write(self) -> bool:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.fail(401, message="Invalid username or password.")
            return False
        return True


def create_repo(handler: Handler) -> None:
    if not handler.may_write():
        return
    asked = json.loads(handler.body)
    name = f"{asked['organization'] or 'me'}/{asked['name']}"
    if name in handler.hub.repos:
        handler.answer_json({"url": f"{handler.hub.endpoint}/{name}", "error": "You already created this repo"}, 409)
        return
    handler.hub.put(name, {}, private=asked.get("visibility") == "private" or bool(asked.get("private")))
    handler.answer_json({"url": f"{handler.hub.endpoint}/{name}"})


def describe_repo(handler: Handler, name: str, revision: str | None = None) -> None:
    if commit := handler.find_commit(name, revision or "main"):
        private = handler.hub.repos[name].private
        siblings = [{"rfilename": path} for path in commit[1]]
        handler.answer_json({"id": name, "modelId": name, "sha": commit[0], "private": private, "siblings": siblings})


def describe_file(path: str, content: bytes) -> dict[str, object]:
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    described: dict[str, object] = {"type": "file", "path": path, "size": len(content), "oid": blob}
    if path.endswith(LFS):
        described["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return described


def list_tree(handler: Handler, name: str, revision: str, folder: str | None = None) -> None:
    commit = handler.find_commit(name, revision)
    if not commit:
        return
    prefix = f"{folder}/" if folder else ""
    inside = {path.removeprefix(prefix): path for path in commit[1] if path.startswith(prefix)}
    entries = [describe_file(path, commit[1][path]) for rest, path in inside.items() if "/" not in rest]
    for below in sorted({rest.split("/")[0] for rest in inside if "/" in rest}):
        entries.append({"type": "directory", "path": f"{prefix}{below}", "size": 0, "oid": "0" * 40})
    handler.answer_json(entries)


def resolve(handler: Handler, name: str, revision: str, path: str) -> None:
    commit = handler.find_commit(name, revision)
    if not commit:
        return
    if path not in commit[1]:
        handler.fail(404, "EntryNotFound", "Entry not found")
        return
    send_file(handler, path, commit[1][path], commit[0])


def send_file(handler: Handler, path: str, content: bytes, commit: str) -> None:
    described = describe_file(path, content)
    etag = described["lfs"]["oid"] if "lfs" in described else described["oid"]  # type: ignore[index]
    headers = {"ETag": f'"{etag}"', "X_Repo_Commit": commit, "Accept_Ranges": "bytes"}
    asked = re.fullmatch(r"bytes=(\d+)-(\d*)", handler.headers.get("Range") or "")
    if not asked or not handler.hub.ranges:
        handler.hub.sent.setdefault(path, []).append((0, len(content)))
        handler.answer(200, content, **headers)
        return
    begin, end = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
    part = content[begin : end + 1]
    handler.hub.sent.setdefault(path, []).append((begin, len(part)))
    handler.answer(206, part, Content_Range=f"bytes {begin}-{end}/{len(content)}", **headers)


def preupload(handler: Handler, name: str, _revision: str) -> None:
    if handler.may_write() and handler.find(name):
        files = json.loads(handler.body)["files"]
        modes = [
            {"path": file["path"], "uploadMode": "lfs" if file["path"].endswith(LFS) else "regular",
             "shouldIgnore": False}
            for file in files
        ]  # fmt: skip
        handler.answer_json({"files": modes})


def batch(handler: Handler, name: str) -> None:
    if not handler.may_write() or not handler.find(name):
        return
    objects = []
    for asked in json.loads(handler.body)["objects"]:
        upload = {"href": f"{handler.hub.endpoint}/upload/{asked['oid']}"}
        there = asked["oid"] in handler.hub.objects
        objects.append({**asked, **({} if there else {"actions": {"upload": upload}})})
    handler.answer_json({"transfer": "basic", "objects": objects})


def upload(handler: Handler, oid: str) -> None:
    if hashlib.sha256(handler.body).hexdigest() != oid:
        handler.fail(400, message="the content has another sha256")
        return
    handler.hub.objects[oid] = handler.body
    handler.answer(200)


def create_branch(handler: Handler, name: str, branch: str) -> None:
    repo = handler.find(name) if handler.may_write() else None
    if repo is None:
        return
    if branch in repo.branches:
        handler.fail(409, message="Reference already exists")
        return
    repo.branches[branch] = repo.branches["main"]
    handler.answer_json({})


def commit(handler: Handler, name: str, branch: str) -> None:
    repo = handler.find(name) if handler.may_write() else None
    if repo is None:
        return
    found = repo.find(branch)
    assert found is not None
    lines = [json.loads(line) for line in handler.body.decode().split("\n") if line]
    files = dict(found[1])
    for line in lines:
        value = line["value"]
        if line["key"] == "header" and value.get("parentCommit") not in (None, found[0]):
            handler.fail(412, message="A commit has happened since. Please refresh and try again.")
            return
        if line["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif line["key"] == "lfsFile":
            files[value["path"]] = handler.hub.objects[value["oid"]]
        elif line["key"] == "deletedFile":
            del files[value["path"]]
    oid = repo.commit(branch, files)
    handler.answer_json({"commitUrl": f"{handler.hub.endpoint}/{name}/commit/{oid}", "commitOid": oid})


NAME = "([^/]+/[^/]+)"
ROUTES: list[tuple[str, Callable[..., None]]] = [
    ("POST /api/repos/create", create_repo),
    ("POST /api/validate-yaml", lambda handler: handler.answer_json({"errors": [], "warnings": []})),
    (f"GET /api/models/{NAME}", describe_repo),
    (f"GET /api/models/{NAME}/revision/(.+)", describe_repo),
    (f"GET /api/models/{NAME}/tree/([^/]+)", list_tree),
    (f"GET /api/models/{NAME}/tree/([^/]+)/(.+)", list_tree),
    (f"POST /api/models/{NAME}/preupload/(.+)", preupload),
    (f"POST /api/models/{NAME}/branch/(.+)", create_branch),
    (f"POST /api/models/{NAME}/commit/(.+)", commit),
    (rf"POST /{NAME}\.git/info/lfs/objects/batch", batch),
    ("PUT /upload/(.+)", upload),
    (f"GET /{NAME}/resolve/([^/]+)/(.+)", resolve),
    (f"HEAD /{NAME}/resolve/([^/]+)/(.+)", resolve),
]


class Server(ThreadingHTTPServer):
    """Whoever stops reading is no error."""

    daemon_threads = True

    def handle_error(self, *_arguments: Any) -> None:
        pass


@contextmanager
def run_hub() -> Iterator[Hub]:
    hub = Hub()
    handler = type("OneHandler", (Handler,), {"hub": hub})
    with Server(("127.0.0.1", 0), handler) as server:
        hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


def use_endpoint(endpoint: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have huggingface_hub ask this endpoint in this process, without a token, with a cache of its own."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 30)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("time.sleep", lambda _seconds: None)  # between tries


def read_all(folder: Path) -> dict[str, bytes]:
    """Relative path -> content of every file in a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
