"""A Hugging Face hub on loopback with one repository: what ``huggingface_hub`` asks of a real one.

Answers the revision, the list of files, and each file with its headers. Counts requests. Not
covered: anything else of the hub's interface, sign-in.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

REPO = "someone/Tiny-Model"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class SmallHub:
    """``files``: what the repository holds, by name. ``requests``: method and path, in order."""

    def __init__(self, folder: Path) -> None:
        self.files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
        self.requests: list[str] = []
        self.gated = False
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.server_close()

    @contextmanager
    def running(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._server.shutdown()
            self._thread.join()
            self.close()

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        if path == f"/api/models/{REPO}/revision/main":
            siblings = [{"rfilename": name} for name in self.files]
            document = {"id": REPO, "modelId": REPO, "sha": COMMIT, "siblings": siblings}
            return 200, {}, json.dumps(document).encode()
        if path.split("?")[0] == f"/api/models/{REPO}/tree/{COMMIT}":
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": _etag(data)}
                for name, data in self.files.items()
            ]
            return 200, {}, json.dumps(entries).encode()
        data = self.files.get(path.removeprefix(f"/{REPO}/resolve/{COMMIT}/"))
        if self.gated and data is not None:
            return 403, {"X-Error-Code": "GatedRepo"}, b""
        if data is not None:
            return 200, {"ETag": f'"{_etag(data)}"', "X-Repo-Commit": COMMIT}, data
        known = path.startswith(f"/api/models/{REPO}/")
        return 404, {"X-Error-Code": "RevisionNotFound" if known else "RepoNotFound"}, b""


def _etag(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _handler(hub: SmallHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._reply(with_body=True)

        def do_HEAD(self) -> None:
            self._reply(with_body=False)

        def _reply(self, *, with_body: bool) -> None:
            hub.requests.append(f"{self.command} {self.path}")
            status, headers, body = hub.answer(self.path)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    return Handler
