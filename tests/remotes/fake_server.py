"""An HTTP server on loopback that answers what it is told, and remembers what it was asked."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Answer:
    """What to answer.

    Attributes:
        status: 0: none at all, the connection is closed.
        body: the content.
        headers: besides the length.
        announced: the length that is announced, if it is not the true one.
        wait_s: how long to wait before; until the next test at most.
    """

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    announced: int | None = None
    wait_s: float = 0.0


@dataclass
class Asked:
    """What was asked."""

    method: str
    path: str
    headers: Message
    body: bytes


class FakeServer:
    """A running server.

    Attributes:
        url: where.
        answers: what comes next; the last is repeated.
        asked: what came.
    """

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.answers: list[Answer] = [Answer()]
        self.asked: list[Asked] = []
        self.over = threading.Event()

    def begin(self) -> None:
        """Forget all, for a new test."""
        self.over.set()
        self.over = threading.Event()
        self.answers = [Answer()]
        self.asked = []

    def next_answer(self) -> Answer:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def s3_error(status: int, code: str) -> Answer:
    body = f"<Error><Code>{code}</Code><Message>a very-secret message</Message></Error>".encode()
    return Answer(status, body, {"Content-Type": "application/xml"})


@contextmanager
def serving() -> Iterator[FakeServer]:
    """Run a server."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _handle(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            fake.asked.append(Asked(self.command, self.path, self.headers, self.rfile.read(length)))
            answer = fake.next_answer()
            fake.over.wait(answer.wait_s)
            self.close_connection = True
            if answer.status:
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                announced = len(answer.body) if answer.announced is None else answer.announced
                self.send_header("Content-Length", str(announced))
                self.send_header("Connection", "close")
                self.end_headers()
                if self.command != "HEAD":
                    with suppress(OSError):
                        self.wfile.write(answer.body)
            with suppress(OSError):  # it has hung up already
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)

        do_GET = do_PUT = do_HEAD = do_DELETE = do_PROPFIND = do_MKCOL = do_MOVE = do_POST = _handle  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    fake = FakeServer(server.server_port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield fake
    finally:
        fake.over.set()
        server.shutdown()
        thread.join()
        server.server_close()
