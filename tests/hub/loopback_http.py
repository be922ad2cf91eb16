"""The HTTP side of the loopback Hub: requests, answers, a server on 127.0.0.1 whose threads end with it."""

from __future__ import annotations

import json
import socket
import socketserver
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from loopback_store import Caller, HubError

CUT = 0


@dataclass
class Request:
    """A request with its whole body."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: Any
    body: bytes = field(repr=False)
    caller: Caller | None = None

    def json(self) -> dict[str, Any]:
        """Return the JSON body, or a form's fields as lists."""
        if self.headers.get("Content-Type", "").startswith("application/x-www-form-urlencoded"):
            return dict(parse_qs(self.body.decode()))
        try:
            value = json.loads(self.body or b"{}")
        except ValueError as error:
            raise HubError(400, f"The body is not JSON: {error}") from error
        if not isinstance(value, dict):
            raise HubError(400, "The body must be a JSON object.")
        return value

    def flag(self, name: str) -> bool:
        """Return whether a query parameter is set."""
        return self.query.get(name, ["0"])[-1].lower() in ("1", "true")


@dataclass
class Answer:
    """Status, headers and body of a response."""

    body: bytes = field(default=b"", repr=False)
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


def json_answer(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
    """Return an answer in JSON; dates, which YAML metadata may hold, become strings."""
    body = json.dumps(value, default=str).encode()
    return Answer(body, status, {"Content-Type": "application/json; charset=utf-8", **(headers or {})})


def error_answer(error: HubError) -> Answer:
    """Return what a client gets for an error."""
    message = error.message.replace("\n", " ").encode("latin-1", "replace").decode("latin-1")
    headers = {"X-Error-Message": message} | ({"X-Error-Code": error.code} if error.code else {}) | error.headers
    return json_answer({"error": error.message, **error.body}, error.status, headers)


class _Handler(BaseHTTPRequestHandler):
    """Read a request to its end, let the server answer it, keep the connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def setup(self) -> None:
        super().setup()
        self.server.connections[threading.current_thread()] = self.connection

    def finish(self) -> None:
        super().finish()
        self.server.connections.pop(threading.current_thread(), None)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing: the Hub keeps a list of its requests."""

    def _read_body(self, cut: bool) -> bytes:
        """Return the body; with `cut` only its first half."""
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            chunks = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
                if cut:
                    break
            else:
                while self.rfile.readline() not in (b"\r\n", b"\n", b""):
                    pass
            return b"".join(chunks)
        size = int(self.headers.get("Content-Length") or 0)
        return self.rfile.read(size // 2 if cut else size)

    def _serve(self) -> None:
        url = urlsplit(self.path)
        failure = self.server.planned_failure(self.command, unquote(url.path))
        upload = self.command in ("POST", "PUT")
        request = Request(self.command, url.path, parse_qs(url.query), self.headers, b"")
        request.body = self._read_body(cut=failure == CUT and upload)
        if failure == CUT and upload:
            self._hang_up()
            return
        refused = failure not in (None, CUT)
        injected = HubError(failure or 500, "injected failure", headers={"Retry-After": "0"})
        answer = error_answer(injected) if refused else self.server.answer(request)
        self.send_response(answer.status)
        for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body[: len(answer.body) // 2] if failure == CUT else answer.body)
        if failure == CUT:
            self._hang_up()

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _hang_up(self) -> None:
        """Drop the connection as a dying network does."""
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


class Server(ThreadingHTTPServer):
    """A server on a free port of 127.0.0.1.

    Args:
        answer: Answers a request.
        planned_failure: Given method and path, the status to fail with, `CUT`, or `None`.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, answer: Callable[[Request], Answer], planned_failure: Callable[[str, str], int | None]) -> None:
        self.answer, self.planned_failure = answer, planned_failure
        self.connections: dict[threading.Thread, socket.socket] = {}
        self.crashes: list[str] = []
        super().__init__(("127.0.0.1", 0), _Handler)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True, name="loopback-hub")
        self._thread.start()

    def server_bind(self) -> None:
        """Bind without the look-up of the host's name that http.server does."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Remember what went wrong here; a client that hung up is no error."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            self.crashes.append(traceback.format_exc())

    def close(self) -> None:
        """Stop listening, hang up on every client, and wait for the threads."""
        self.shutdown()
        self.server_close()
        self._thread.join(5)
        for thread, connection in list(self.connections.items()):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:  # the client was faster
                pass
            thread.join(5)
