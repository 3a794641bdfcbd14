"""A hub of one repository on this machine, as much of its protocol as `huggingface_hub` needs; counts what is asked."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Handler(BaseHTTPRequestHandler):
    """Answers for every repository with the files of one folder."""

    protocol_version = "HTTP/1.1"
    folder: Path
    commit: str
    asked: Counter[str]

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        name = path.rpartition("/")[2]
        if path.startswith("/api/"):
            self._send(200, json.dumps(self._facts(tree="/tree/" in path)).encode(), {}, body=body)
        elif not (self.folder / name).is_file():
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, body=body)
        else:
            data = (self.folder / name).read_bytes()
            self.asked[name] += body
            etag = f'"{hashlib.sha256(data).hexdigest()}"'
            self._send(200, data, {"ETag": etag, "X-Repo-Commit": self.commit}, body=body)

    def _facts(self, *, tree: bool) -> object:
        files = sorted(self.folder.iterdir())
        if tree:
            return [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": "0" * 40} for f in files]
        return {"id": "lab/model", "sha": self.commit, "siblings": [{"rfilename": file.name} for file in files]}

    def _send(self, status: int, data: bytes, headers: dict[str, str], *, body: bool) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Quiet."""


@contextmanager
def hub_of(folder: Path, commit: str) -> Iterator[tuple[str, Counter[str]]]:
    """Serve the files of a folder as any repository's.

    Yields:
        The URL for ``HF_ENDPOINT``, and how many times each file was asked for by GET.
    """
    asked: Counter[str] = Counter()
    kind = type("HubHandler", (Handler,), {"folder": folder, "commit": commit, "asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
