# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""A Hub on loopback: as much of the HTTP API as `huggingface_hub` needs to create, push and download repositories.

Clients must have `HF_ENDPOINT` set to `HubServer.url`, any `HF_TOKEN`, and `HF_HUB_DISABLE_XET=1`: with xet an upload
speaks another protocol. Repositories have one branch. A commit sees all files of those before it.
"""

import base64
import hashlib
import json
import re
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from urllib.parse import unquote, urlsplit


LARGE = 100_000  # bytes from which a file is uploaded as with git-lfs, apart from the commit
ENTRY, REPOSITORY = "EntryNotFound", "RepoNotFound"


class Repository:
    """Files by path, one snapshot per commit."""

    def __init__(self):
        self.commits: list[tuple[str, str, dict[str, bytes]]] = []  # sha, message, files
        self.commit("initial commit", {})

    @property
    def sha(self) -> str:
        return self.commits[-1][0]

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1][2]

    def commit(self, message: str, files: dict[str, bytes]) -> str:
        sha = hashlib.sha1(f"{len(self.commits)} {message}".encode()).hexdigest()
        self.commits.append((sha, message, files))
        return sha

    def at(self, revision: str) -> tuple[str, dict[str, bytes]]:
        known = {sha: files for sha, _, files in self.commits}
        return (revision, known[revision]) if revision in known else (self.sha, self.files)


class HubServer(ThreadingHTTPServer):
    """Serves from a thread while it is used as a context manager.

    Attributes:
        url: where it listens.
        repositories: by (type, id), such as ("model", "user/base").
        requests: method and path of every request.
        unknown: those of them that no route took.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[tuple[str, str], Repository] = defaultdict(Repository)
        self.uploads: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.unknown: list[str] = []
        self.lock = Lock()

    def __enter__(self):
        Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def add(self, kind: str, name: str, folder: Path) -> None:
        """A repository with the files of a folder."""
        files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        self.repositories[kind, name].commit("files", files)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, body=b"", status: int = 200, **headers: str) -> None:
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def missing(self, code: str, **headers: str) -> None:
        self.answer({"error": code}, 404, X_Error_Code=code, **headers)

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        with self.server.lock:
            self.server.requests.append(f"{self.command} {path}")
            for method, pattern, route in ROUTES:
                match = re.fullmatch(pattern, path)
                if match and self.command in method:
                    return route(self, body, **{key: value for key, value in match.groupdict().items() if value})
            self.server.unknown.append(f"{self.command} {path}")
            self.answer(status=404)

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    # Routes: the body of the request, and what stands in the path.

    def create(self, body):
        fields = json.loads(body)
        name = f"{fields.get('organization') or 'user'}/{fields['name']}"
        self.server.repositories[fields.get("type", "model"), name]  # noqa: B018 (made on first access)
        self.answer({"url": f"{self.server.url}/{name}", "id": name})

    def validate(self, body):
        self.answer({"errors": [], "warnings": []})

    def nothing(self, body):
        self.answer()

    def whoami(self, body):
        self.answer({"type": "user", "name": "user", "orgs": [], "auth": {"accessToken": {"role": "write"}}})

    def preupload(self, body, kind, name, revision):
        modes = [
            {"path": file["path"], "uploadMode": "lfs" if file["size"] >= LARGE else "regular", "shouldIgnore": False}
            for file in json.loads(body)["files"]
        ]
        self.answer({"files": modes})

    def lfs_batch(self, body, name):
        objects = [
            {**item, "actions": {"upload": {"href": f"{self.server.url}/upload/{item['oid']}"}}}
            for item in json.loads(body)["objects"]
        ]
        self.answer({"transfer": "basic", "objects": objects}, Content_Type="application/vnd.git-lfs+json")

    def upload(self, body, oid):
        assert hashlib.sha256(body).hexdigest() == oid
        self.server.uploads[oid] = body
        self.answer()

    def commit(self, body, kind, name, revision):
        repository = self.server.repositories[kind, name]
        message, files = "", dict(repository.files)
        for line in filter(None, body.splitlines()):
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "header":
                message = value["summary"]
            elif operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.server.uploads[value["oid"]]
            elif operation["key"] == "deletedFile":
                del files[value["path"]]
        sha = repository.commit(message, files)
        self.answer({"commitOid": sha, "commitUrl": f"{self.server.url}/{name}/commit/{sha}", "pullRequestUrl": None})

    def found(self, kind, name):
        """The repository, or `None` after a 404."""
        if (kind, name) not in self.server.repositories:
            return self.missing(REPOSITORY)
        return self.server.repositories[kind, name]

    def info(self, body, kind, name, revision="main"):
        if repository := self.found(kind, name):
            sha, files = repository.at(revision)
            siblings = [{"rfilename": path} for path in files]
            self.answer({"id": name, "sha": sha, "siblings": siblings, "private": False, "tags": [], "downloads": 0})

    def tree(self, body, kind, name, revision, path=""):
        if repository := self.found(kind, name):
            _, files = repository.at(revision)
            inside = {file: data for file, data in files.items() if file.startswith(path)}
            if path and not inside:
                return self.missing(ENTRY)
            self.answer([entry(file, data) for file, data in inside.items()])

    def paths_info(self, body, kind, name, revision):
        if repository := self.found(kind, name):
            asked = json.loads(body)["paths"]
            self.answer([entry(file, repository.files[file]) for file in asked if file in repository.files])

    def resolve(self, body, name, revision, path, kind="model"):
        if repository := self.found(kind, name):
            sha, files = repository.at(revision)
            if path not in files:
                return self.missing(ENTRY, X_Repo_Commit=sha)
            self.answer(files[path], X_Repo_Commit=sha, ETag=f'"{oid_of(files[path])}"')


def oid_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def entry(path: str, data: bytes) -> dict:
    return {"type": "file", "path": path, "size": len(data), "oid": oid_of(data)}


API = r"/api/(?P<kind>model|dataset)s/(?P<name>[^/]+/[^/]+)"
REVISION = r"(?P<revision>[^/]+)"
ROUTES = [
    ("POST", r"/api/repos/create", Handler.create),
    ("POST", r"/api/validate-yaml", Handler.validate),
    ("HEAD", r"/api/telemetry/.*", Handler.nothing),
    ("GET", r"/api/agent-harnesses", Handler.nothing),
    ("GET", r"/api/whoami-v2", Handler.whoami),
    ("POST", rf"{API}/preupload/{REVISION}", Handler.preupload),
    ("POST", rf"{API}/commit/{REVISION}", Handler.commit),
    ("POST", r"/(?:datasets/)?(?P<name>[^/]+/[^/]+)\.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("PUT", r"/upload/(?P<oid>\w+)", Handler.upload),
    ("GET", API, Handler.info),
    ("GET", rf"{API}/revision/{REVISION}", Handler.info),
    ("GET", rf"{API}/tree/{REVISION}(?:/(?P<path>.*))?", Handler.tree),
    ("POST", rf"{API}/paths-info/{REVISION}", Handler.paths_info),
    ("GET HEAD", rf"/(?P<kind>dataset)s/(?P<name>[^/]+/[^/]+)/resolve/{REVISION}/(?P<path>.+)", Handler.resolve),
    ("GET HEAD", rf"/(?P<name>[^/]+/[^/]+)/resolve/{REVISION}/(?P<path>.+)", Handler.resolve),
]
