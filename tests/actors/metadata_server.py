"""A metadata service as EC2 and Google Cloud have it, on loopback."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "X-aws-ec2-metadata-token"


class Metadata:
    """What the service says, and what it was asked."""

    def __init__(self) -> None:
        self.url = ""
        self.leaves_at: float | None = None
        """Both clouds' notice, from when it is set."""
        self.text: str | None = None
        """In place of EC2's notice."""
        self.tokens: list[str] = []
        """Those that were given; the last alone is taken."""
        self.refused = 0
        self.broken = False

    def notice(self, seconds: float) -> float:
        """Give notice, and return when the machine goes; EC2 says it in whole seconds."""
        self.leaves_at = float(int(time.time() + seconds))
        return self.leaves_at

    def answer(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
        """Status and text."""
        if self.broken:
            return 503, "busy"
        if path == "/computeMetadata/v1/instance/preempted":
            return (200, str(self.leaves_at is not None).upper()) if headers.get("Metadata-Flavor") else (403, "")
        if (method, path) == ("PUT", "/latest/api/token") and f"{TOKEN}-ttl-seconds" in headers:
            self.tokens.append(f"token-{len(self.tokens)}")
            return 200, self.tokens[-1]
        if path != "/latest/meta-data/spot/instance-action" or method != "GET":
            return 404, ""
        if headers.get(TOKEN) not in self.tokens[-1:]:
            self.refused += 1
            return 401, ""
        if self.text is not None:
            return 200, self.text
        if self.leaves_at is None:
            return 404, "<html>no such page</html>"
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.leaves_at))
        return 200, json.dumps({"action": "terminate", "time": when})


@contextmanager
def metadata_server() -> Iterator[Metadata]:
    """Start the service."""
    metadata = Metadata()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, text = metadata.answer(self.command, self.path, _Headers(self.headers.items()))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        do_PUT = do_GET

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    metadata.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield metadata
    server.shutdown()
    thread.join()
    server.server_close()


class _Headers(dict[str, str]):
    """By name, whatever the letters' case."""

    def __init__(self, items: list[tuple[str, str]]) -> None:
        super().__init__((name.lower(), value) for name, value in items)

    def get(self, name: str, default: str | None = None) -> str | None:  # type: ignore[override]
        return super().get(name.lower(), default)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and super().__contains__(name.lower())
