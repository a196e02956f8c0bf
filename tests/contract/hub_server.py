"""A hub on this machine for tests: the routes that huggingface_hub uses, over a real socket, with faults on order.

Like the real one it redirects large files to another host (here `localhost`), which serves the bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" * 6 + "c0ff"
REVISIONS = {"main", "v1", COMMIT}


@dataclass
class Transfer:
    """One request for bytes, and how many were sent."""

    path: str
    range: str | None
    authorization: str | None
    sent: int = 0


@dataclass
class HubServer:
    """Its attributes are what it has and what goes wrong next."""

    url: str = ""
    #: `owner/name/file` to bytes; also served as `/plain/owner/name/file`, by a server that is no hub.
    files: dict[str, bytes] = field(default_factory=dict)
    #: What the hub says of a file where that is not true: (SHA-256, size).
    promised: dict[str, tuple[str, int]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    token: str | None = None
    resumes: bool = True
    #: Each byte transfer that is to come ends after so many bytes.
    cuts: list[int] = field(default_factory=list)
    #: The next transfer stops in the middle until this is set.
    held: threading.Event | None = None
    half_sent: threading.Event = field(default_factory=threading.Event)
    transfers: list[Transfer] = field(default_factory=list)

    def sha256(self, name: str) -> str:
        return self.promised[name][0] if name in self.promised else hashlib.sha256(self.files[name]).hexdigest()

    def size(self, name: str) -> int:
        return self.promised[name][1] if name in self.promised else len(self.files[name])


@contextmanager
def hub_server() -> Iterator[HubServer]:
    hub = HubServer()

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        if hub.held:
            hub.held.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if tree := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/[^/]+", path):
            self._tree(tree[1])
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(*match.groups())
        elif path.startswith(("/cdn/", "/plain/")) and (name := path.split("/", 2)[2]) in self.hub.files:
            self._bytes(path, name)
        else:
            self._say(404)

    def _resolve(self, repo: str, revision: str, file: str) -> None:
        hub, name = self.hub, f"{repo}/{file}"
        if hub.token and self.headers.get("Authorization") not in (None, f"Bearer {hub.token}"):
            return self._say(401, {"X-Error-Message": "Invalid credentials in Authorization header"})
        if not any(known.startswith(repo + "/") for known in hub.files):
            return self._say(401, {"X-Error-Code": "RepoNotFound"})
        if repo in hub.gated and self.headers.get("Authorization") != f"Bearer {hub.token}":
            return self._say(401, {"X-Error-Code": "GatedRepo"})
        if revision not in REVISIONS:
            return self._say(404, {"X-Error-Code": "RevisionNotFound"})
        if name not in hub.files:
            return self._say(404, {"X-Error-Code": "EntryNotFound"})
        if self.command == "GET":
            hub.transfers.append(Transfer(self.path, self.headers.get("Range"), self.headers.get("Authorization")))
        self._say(
            302,
            {
                "Location": f"{hub.url.replace('127.0.0.1', 'localhost')}/cdn/{name}",
                "X-Repo-Commit": COMMIT,
                "X-Linked-Etag": f'"{hub.sha256(name)}"',
                "X-Linked-Size": str(hub.size(name)),
            },
        )

    def _tree(self, repo: str) -> None:
        names = [name.removeprefix(repo + "/") for name in self.hub.files if name.startswith(repo + "/")]
        entries = [{"type": "file", "path": name, "size": 1, "oid": "0" * 40} for name in names]
        self._say(200, {"Content-Type": "application/json"}, json.dumps(entries).encode())

    def _bytes(self, path: str, name: str) -> None:
        hub, content = self.hub, self.hub.files[name]
        transfer = Transfer(path, self.headers.get("Range"), self.headers.get("Authorization"))
        hub.transfers.append(transfer)
        etag = f'"{hashlib.md5(content).hexdigest()}"'
        start = int(transfer.range.removeprefix("bytes=").removesuffix("-")) if transfer.range and hub.resumes else 0
        if self.headers.get("If-Range", etag) != etag:
            start = 0
        if start >= len(content):
            return self._say(416, {"Content-Range": f"bytes */{len(content)}"})
        headers = {"ETag": etag}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._send(transfer, headers, content[start:], 206 if start else 200)

    def _send(self, transfer: Transfer, headers: dict[str, str], body: bytes, status: int) -> None:
        hub = self.hub
        end = hub.cuts.pop(0) if hub.cuts else len(body)
        self._head(status, {**headers, "Content-Length": str(len(body))})
        try:
            half = end // 2
            self.wfile.write(body[:half])
            transfer.sent = half
            if hub.held and not hub.half_sent.is_set():
                hub.half_sent.set()
                hub.held.wait(60)
            self.wfile.write(body[half:end])
            transfer.sent = end
        except OSError:  # the client went away
            self.close_connection = True
        if end < len(body):
            self.close_connection = True

    def _say(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        self._head(status, {**(headers or {}), "Content-Length": str(len(body))})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass
