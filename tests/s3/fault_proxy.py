"""An HTTP proxy that breaks what passes through it, by a seeded plan or on order, and counts what it did.

    with FaultProxy(server.host, server.port, seed=7, rates={"error_503": 0.05, "lost": 0.02}) as proxy:
        ...  # talk to proxy.url
        proxy.counts["lost"]

    proxy.inject("lost", method="PUT", contains="/commits/", times=2)  # the next two such requests

Kinds of fault:

* ``error_409``, ``error_500``, ``error_503``: an S3 error document; the request never reaches the server.
* ``reset``: the connection is reset before the request reaches the server.
* ``lost``: the server carries the request out, then the connection is reset instead of an answer.
* ``late``: the server carries the request out, its answer comes `late_s` later (past the client's patience).
* ``truncate``: half of the answer's body, then the end of the connection. Only where there is a body.
* ``damage``: a byte in the middle of the answer's body is another. Only where there is a body.
* ``delay``: the request is held back for `delay_s`, nothing else.
"""

from __future__ import annotations

import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

KINDS = ("error_409", "error_500", "error_503", "reset", "lost", "late", "truncate", "damage", "delay")
_CODES = {
    "error_409": (409, "ConditionalRequestConflict"),
    "error_500": (500, "InternalError"),
    "error_503": (503, "SlowDown"),
}
_HOP_BY_HOP = ("connection", "keep-alive", "transfer-encoding", "expect")


@dataclass
class _Order:
    kind: str
    method: str
    contains: str
    times: float


@dataclass(frozen=True)
class Request:
    """What passed: method, path with query, the fault it met (empty for none)."""

    method: str
    path: str
    fault: str = field(default="")


class FaultProxy:
    """A proxy in front of `upstream_host`:`upstream_port`, on a free port of 127.0.0.1; use it as a context manager.

    Attributes:
        counts: Faults injected so far, by kind.
        requests: Everything that passed, in order.
    """

    def __init__(
        self,
        upstream_host: str,
        upstream_port: int,
        *,
        seed: int = 0,
        rates: Mapping[str, float] | None = None,
        delay_s: float = 0.2,
        late_s: float = 1.0,
    ) -> None:
        self.rates = dict(rates or {})
        unknown = set(self.rates) - set(KINDS)
        assert not unknown, f"no such fault: {unknown}"
        assert sum(self.rates.values()) <= 1
        self.upstream = (upstream_host, upstream_port)
        self.delay_s, self.late_s = delay_s, late_s
        self.counts: Counter[str] = Counter()
        self.requests: list[Request] = []
        self._orders: list[_Order] = []
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        proxy = self

        class Handler(_Handler):
            faults = proxy

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def host(self) -> str:
        return "127.0.0.1"

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def inject(self, kind: str, *, method: str = "", contains: str = "", times: float = 1) -> None:
        """Order a fault for the next requests of that method whose path contains a text; `times` may be `math.inf`."""
        assert kind in KINDS, kind
        with self._lock:
            self._orders.append(_Order(kind, method, contains, times))

    def clear(self) -> None:
        """Break nothing from now on; orders and rates are dropped, counts stay."""
        with self._lock:
            self._orders.clear()
            self.rates.clear()

    def decide(self, method: str, path: str) -> str:
        """The fault that a request meets; empty for none."""
        with self._lock:
            for order in self._orders:
                if order.times > 0 and order.method in ("", method) and order.contains in path:
                    order.times -= 1
                    return order.kind
            draw = self._random.random()
            for kind, rate in self.rates.items():
                draw -= rate
                if draw < 0:
                    return kind
            return ""

    def note(self, method: str, path: str, fault: str) -> None:
        """Count a request and what was done to it."""
        with self._lock:
            self.requests.append(Request(method, path, fault))
            if fault:
                self.counts[fault] += 1

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that gave up are the purpose of this server."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True
    faults: FaultProxy
    _upstream: http.client.HTTPConnection | None = None

    def _pass(self) -> None:
        body = self._body()
        fault = self.faults.decide(self.command, self.path)
        if fault in _CODES or fault == "reset":
            self.faults.note(self.command, self.path, fault)
            self._refuse(fault)
            return
        if fault == "delay":
            time.sleep(self.faults.delay_s)
        status, reason, headers, answer = self._ask(body)
        if fault in ("truncate", "damage") and (len(answer) < 2 or self.command == "HEAD"):
            fault = ""
        if fault == "damage":
            middle = len(answer) // 2
            answer = answer[:middle] + bytes([answer[middle] ^ 1]) + answer[middle + 1 :]
        self.faults.note(self.command, self.path, fault)
        if fault == "lost":
            self._reset()
            return
        if fault == "late":
            time.sleep(self.faults.late_s)
        self._answer(status, reason, headers, answer[: len(answer) // 2] if fault == "truncate" else answer)
        if fault == "truncate":
            self.close_connection = True

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length)
        if len(body) < length:
            raise ConnectionResetError("the client gave up")
        return body

    def _refuse(self, fault: str) -> None:
        if fault == "reset":
            self._reset()
            return
        status, code = _CODES[fault]
        document = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>injected</Message></Error>'.encode()
        headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(document)))]
        self._answer(status, code, headers, b"" if self.command == "HEAD" else document)

    def _ask(self, body: bytes) -> tuple[int, str, list[tuple[str, str]], bytes]:
        """The server's own answer; the Host header stays, since the signature covers it."""
        for fresh in (False, True):  # a connection kept alive may have been closed meanwhile
            if self._upstream is None:
                self._upstream = http.client.HTTPConnection(*self.faults.upstream, timeout=60)
            try:
                self._upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    if name.lower() not in (*_HOP_BY_HOP, "content-length"):
                        self._upstream.putheader(name, value)
                if body or self.command in ("PUT", "POST"):
                    self._upstream.putheader("Content-Length", str(len(body)))
                self._upstream.endheaders(body)
                answer = self._upstream.getresponse()
                return answer.status, answer.reason, answer.getheaders(), answer.read()
            except (OSError, http.client.HTTPException):
                self._upstream.close()
                self._upstream = None
                if fresh:
                    raise
        raise AssertionError("unreachable")

    def _answer(self, status: int, reason: str, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response_only(status, reason)
        length = next((value for name, value in headers if name.lower() == "content-length"), None)
        for name, value in headers:
            if name.lower() not in (*_HOP_BY_HOP, "content-length"):
                self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body)) if length is None else length)
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def _reset(self) -> None:
        """End the connection with RST instead of FIN."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        # The stream objects hold the socket too: without this the server's own shutdown would send FIN first.
        self.rfile.close()
        self.wfile.close()
        self.connection.close()

    def handle_expect_100(self) -> bool:
        """Ask for the body at once; the buffer would hold the answer back."""
        super().handle_expect_100()
        self.wfile.flush()
        return True

    def finish(self) -> None:
        if self._upstream is not None:
            self._upstream.close()
        if not self.wfile.closed:
            super().finish()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Quiet."""
