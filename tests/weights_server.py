"""An HTTP server on this machine with files that break off, change and fail as it is told, and a
Hugging Face Hub of them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

REVISION = "0123456789abcdef0123456789abcdef01234567"


@dataclasses.dataclass
class Served:
    """A file.

    Attributes:
        content: its bytes.
        cuts: of the next answers: bytes after which the connection is cut.
        statuses: of the next answers, in place of the file.
        ranges: whether parts of it can be asked for.
        mark: its ETag; "" for none.
        kind: Content-Type.
    """

    content: bytes
    cuts: list[int] = dataclasses.field(default_factory=list)
    statuses: list[int] = dataclasses.field(default_factory=list)
    ranges: bool = True
    mark: str = '"one"'
    kind: str = "application/octet-stream"


class Server(ThreadingHTTPServer):
    """Files by path, and what was asked for: (path, Range or "")."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, Served] = {}
        self.asked: list[tuple[str, str]] = []

    def handle_error(self, *_: Any) -> None:
        """Connections that were cut on purpose are no errors."""

    @property
    def address(self) -> str:
        """http://127.0.0.1:<port>"""
        return f"http://127.0.0.1:{self.server_port}"

    def hub(self, name: str, files: dict[str, Served], digests: dict[str, str] | None = None) -> None:
        """Serve the files as a repository of the Hub; `digests`: where it states others than
        theirs.
        """
        siblings = []
        for path, served in files.items():
            digest = (digests or {}).get(path, hashlib.sha256(served.content).hexdigest())
            served.mark = f'"{digest}"'
            self.files[f"/{name}/resolve/{REVISION}/{path}"] = served
            large = path.endswith((".bin", ".safetensors"))
            lfs = {"sha256": digest, "size": len(served.content), "pointerSize": 130} if large else None
            siblings.append({"rfilename": path, "size": len(served.content), "lfs": lfs})
        about = {"id": name, "modelId": name, "sha": REVISION, "siblings": siblings, "tags": [], "private": False, "downloads": 0}
        tree = [{"type": "file", "path": one["rfilename"], "size": one["size"], "oid": "", "lfs": None} for one in siblings]
        for place, answer in (("", about), ("/revision/main", about), (f"/tree/{REVISION}", tree)):
            self.files[f"/api/models/{name}{place}"] = Served(json.dumps(answer).encode(), kind="application/json")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: Any) -> None:
        """Nothing to the terminal."""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        served = self.server.files.get(path)
        if with_body:
            self.server.asked.append((path, self.headers.get("Range", "")))
        if served is None or (with_body and served.statuses):
            self.send_response(404 if served is None else served.statuses.pop(0))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start, size = self._start(served), len(served.content)
        if start >= size > 0:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{size}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        headers = {"Content-Type": served.kind, "Content-Length": str(size - start), "X-Repo-Commit": REVISION}
        headers |= {"Content-Range": f"bytes {start}-{size - 1}/{size}"} if start else {}
        headers |= {"ETag": served.mark} if served.mark else {}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if not with_body:
            return
        body = served.content[start:]
        if served.cuts:
            self.wfile.write(body[: served.cuts.pop(0)])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)
            return
        self.wfile.write(body)

    def _start(self, served: Served) -> int:
        """First byte that is wanted."""
        asked = re.fullmatch(r"bytes=(\d+)-\d*", self.headers.get("Range", ""))
        same = self.headers.get("If-Range") in (None, served.mark)
        return int(asked[1]) if asked and same and served.ranges else 0


@contextmanager
def serving() -> Iterator[Server]:
    """A server, for the block."""
    with Server() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()
