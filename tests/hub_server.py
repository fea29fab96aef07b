"""A local server that answers as the Hugging Face Hub does."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

# Files that the Hub keeps in its large file storage, on another host.
LARGE = (".onnx", "_data", ".data", ".bin")


def commit_of(number: int) -> str:
    return f"{number:040x}"


def git_digest(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Repository:
    """Files by commit, and the names of commits."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    references: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False

    def push(self, files: dict[str, bytes], branch: str = "main") -> str:
        """Add a commit with these files, and move a branch to it."""
        commit = commit_of(0xABC0 + len(self.commits))
        self.commits[commit] = dict(files)
        self.references[branch] = commit
        return commit


@dataclass
class Hub:
    """The server's state; `requests` lists method, path and token of each request."""

    address: str
    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    # How many answers of the storage are cut after half of their bytes.
    cuts: int = 0
    # Whether the storage sends other bytes of the same number.
    lies: bool = False
    # Whether the list of files has no digests, as of a poor mirror.
    no_digests: bool = False
    # Status of all answers of the API, if any.
    status: int | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, name: str, files: dict[str, bytes]) -> Repository:
        self.repositories[name] = Repository()
        self.repositories[name].push(files)
        return self.repositories[name]

    def fetched(self) -> list[str]:
        """Names of the files of which content was sent, in order."""
        return [
            path.partition("/file/")[2]
            for method, path, _ in self.requests
            if method == "GET" and path.startswith("/storage/")
        ]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        token = self.headers.get("Authorization")
        with self.hub.lock:
            self.hub.requests.append((self.command, path, token))
        with contextlib.suppress(ConnectionError):
            if path.startswith("/storage/"):
                self._storage(path)
            elif api := re.fullmatch(
                r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path
            ):
                self._api(api[1], api[2] or "main")
            elif got := re.fullmatch(
                r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", urlsplit(self.path).path
            ):
                self._resolve(*map(unquote, got.groups()))
            else:
                self._error(404, "")

    def _send(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def _error(self, status: int, code: str, message: str = "") -> None:
        headers = {"X_Error_Code": code} if code else {}
        if message:
            headers["X_Error_Message"] = message
        self._send(status, json.dumps({"error": message}).encode(), **headers)

    def _files(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Commit and files of a revision; None if an error was sent."""
        repository = self.hub.repositories.get(name)
        token = self.headers.get("Authorization")
        if self.hub.status is not None:
            self._error(self.hub.status, "", "as the test wants")
        elif token not in (None, "Bearer hf_good"):
            message = "Invalid credentials in Authorization header"
            self._error(401, "", message)
        elif repository is None or (repository.private and token is None):
            self._error(401, "RepoNotFound", "Repository not found")
        else:
            commit = repository.references.get(revision, revision)
            if commit in repository.commits:
                return commit, repository.commits[commit]
            self._error(404, "RevisionNotFound", "Invalid rev id")
        return None

    def _api(self, name: str, revision: str) -> None:
        found = self._files(name, revision)
        if found is None:
            return
        commit, files = found
        siblings = []
        for path, content in files.items():
            facts = {"rfilename": path, "size": len(content)}
            if self.hub.no_digests:
                siblings.append(facts)
                continue
            facts["blobId"] = git_digest(content)
            if path.endswith(LARGE):
                sha256 = hashlib.sha256(content).hexdigest()
                lfs = {"sha256": sha256, "size": len(content), "pointerSize": 134}
                facts["lfs"] = lfs
            siblings.append(facts)
        answer = {"id": name, "sha": commit, "siblings": siblings}
        body = json.dumps(answer).encode()
        self._send(200, body, Content_Type="application/json")

    def _resolve(self, name: str, revision: str, path: str) -> None:
        found = self._files(name, revision)
        if found is None:
            return
        commit, files = found
        if self.hub.repositories[name].gated:
            self._error(403, "GatedRepo", "Access to this repository is restricted")
        elif path not in files:
            self._error(404, "EntryNotFound", "Entry not found")
        elif path.endswith(LARGE):
            sha256 = hashlib.sha256(files[path]).hexdigest()
            storage = self.hub.address.replace("127.0.0.1", "localhost")
            self._send(
                302,
                Location=f"{storage}/storage/{name}/{commit}/file/{path}",
                X_Repo_Commit=commit,
                X_Linked_Size=str(len(files[path])),
                X_Linked_Etag=f'"{sha256}"',
            )
        else:
            with self.hub.lock:
                if self.command == "GET":
                    place = f"/storage/{name}/{commit}/file/{path}"
                    self.hub.requests.append(("GET", place, None))
            etag = f'"{git_digest(files[path])}"'
            self._send(200, files[path], X_Repo_Commit=commit, ETag=etag)

    def _storage(self, path: str) -> None:
        place, _, file = path.partition("/file/")
        name, _, commit = place.removeprefix("/storage/").rpartition("/")
        content = self.hub.repositories[name].commits[commit][file]
        if self.hub.lies:
            content = content[:-1] + bytes([content[-1] ^ 1])
        start = 0
        if ranged := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(ranged[1])
        body = content[start:]
        headers = {"Content_Length": str(len(body))}
        if start:
            headers["Content_Range"] = (
                f"bytes {start}-{len(content) - 1}/{len(content)}"
            )
        with self.hub.lock:
            cut, self.hub.cuts = self.hub.cuts > 0, max(0, self.hub.cuts - 1)
        if cut:
            body, self.close_connection = body[: len(body) // 2], True
        self._send(206 if start else 200, body, **headers)


@contextlib.contextmanager
def running_hub() -> Iterator[Hub]:
    """Serve until the block ends."""
    handler = type("Handler", (_Handler,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub = Hub(f"http://127.0.0.1:{server.server_port}")
    handler.hub = hub
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
