"""An S3 server on loopback that does what real ones do, until a test tells it to misbehave at the n-th request.

It keeps objects of one bucket in memory, where tests may look at them and change them.  Requests are counted from 1.
`S3Double.plan` is called for each request, and says what goes wrong with it, if anything:

    double.plan = at(3, Stop("after"))            the third is carried out, and then nothing more happens
    double.plan = each(lambda asked: asked.method == "PUT", Say(200, headers={"ETag": '"x"'}))       takes, stores not

A request that is stopped waits until the client hangs up or `release` is called; `stopped` tells the test that it is so
far.  So a process can be interrupted or killed at any request, and in the middle of a body, without a clock.
"""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final, Literal
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import blake3

BUCKET: Final = "bucket"
PATIENCE_S: Final = 60.0
PAGE: Final = 1000
XML: Final = {"Content-Type": "application/xml"}


@dataclass
class Asked:
    """A request.

    Attributes:
        number: from 1.
        method: ``PUT``, ``GET``, ``HEAD``, ``DELETE``, or ``LIST``.
        key: the object, or the prefix of a listing; without the bucket.
        query: of the URL.
        headers: as sent.
        head: the request line and all headers, as they came.
    """

    number: int
    method: str
    key: str
    query: dict[str, list[str]]
    headers: Message
    head: str


@dataclass(frozen=True)
class Stop:
    """The request waits.

    Attributes:
        where: before anything is done; in the middle of its body, for those that have one, else as before; when it has
            been carried out, but not answered; in the middle of the answer's body, else as after.
    """

    where: Literal["before", "sending", "after", "answering"]


@dataclass(frozen=True)
class Say:
    """The request is not carried out, and answered so.

    Attributes:
        status: 0: the connection is reset.
        body: the content.
        headers: of the answer.
        announced: the length that is announced, if it is not the true one; -1: none, the end of the connection tells.
        repeat: how often the body is sent; it is not announced so.
        is_reset: the connection is reset after the body.
    """

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    announced: int | None = None
    repeat: int = 1
    is_reset: bool = False


@dataclass(frozen=True)
class Change:
    """The request is carried out, but its answer's body is another.

    Attributes:
        body: makes it from the right one.
    """

    body: Callable[[bytes], bytes]


Act = Stop | Say | Change | None
Plan = Callable[[Asked], Act]


def well(_asked: Asked) -> Act:
    """Nothing goes wrong."""
    return None


def at(number: int, act: Act) -> Plan:
    """One request."""
    return lambda asked: act if asked.number == number else None


def each(is_meant: Callable[[Asked], bool], act: Act, *, times: int | None = None) -> Plan:
    """Every request that is meant, or the first few."""
    left = [times]
    lock = threading.Lock()

    def plan(asked: Asked) -> Act:
        if not is_meant(asked):
            return None
        with lock:
            if left[0] is not None:
                if left[0] == 0:
                    return None
                left[0] -= 1
        return act

    return plan


def error(status: int, code: str, headers: dict[str, str] | None = None) -> Say:
    """An answer as S3 words its errors."""
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>very-secret</Message></Error>"
    return Say(status, body.encode(), XML | (headers or {}))


class S3Double:
    """A running server.

    Attributes:
        endpoint: its URL.
        objects: the bucket's.
        plan: what goes wrong.
        asked: every request so far.
        page: how many objects one answer lists.
        watch: called with each request, before anything is done and again when it was; one at a time.
        troubles: what `watch` raised.
    """

    def __init__(self, port: int) -> None:
        self.endpoint: Final = f"http://127.0.0.1:{port}"
        self.lock: Final = threading.RLock()
        self.connections: Final[set[socket.socket]] = set()
        self._stopped: queue.SimpleQueue[Asked] = queue.SimpleQueue()
        self._released = threading.Event()
        self.begin()

    def begin(self) -> None:
        """Empty and well-behaved again, for a new test or case."""
        self.release()
        self.objects: dict[str, bytes] = {}
        self.page = PAGE
        self.watch: Callable[[Asked], None] = lambda _asked: None
        self.troubles: list[BaseException] = []
        self.heal()

    def heal(self) -> None:
        """Nothing goes wrong from now on, and requests are counted anew."""
        self.plan: Plan = well
        self.asked: list[Asked] = []

    @property
    def options(self) -> list[str]:
        """How a command is told to use it."""
        given = (f"endpoint={self.endpoint}", "region=us-east-1", "path_style=true")
        return [word for each in given for word in ("--option", each)]

    @property
    def url(self) -> str:
        """The remote."""
        return f"s3://{BUCKET}/backup"

    def stored(self) -> dict[str, bytes]:
        """The objects of the remote, by their keys there."""
        with self.lock:
            return {key.removeprefix("backup/"): data for key, data in self.objects.items()}

    def stopped(self) -> Asked:
        """Wait until a request has come to where it stops."""
        return self._stopped.get(timeout=PATIENCE_S)

    def release(self) -> None:
        """Let all go on that are stopped."""
        self._released.set()
        self._released = threading.Event()
        while not self._stopped.empty():
            self._stopped.get()

    def stop_here(self, asked: Asked, connection: socket.socket) -> bool:
        """Wait; whether the client is still there."""
        released = self._released
        self._stopped.put(asked)
        connection.settimeout(0.01)
        try:
            while not released.wait(0.01):
                try:
                    if not connection.recv(1, socket.MSG_PEEK):
                        return False
                except TimeoutError:
                    continue
                except OSError:
                    return False
                released.wait(0.05)  # it has more to say, and waits too
        finally:
            with suppress(OSError):
                connection.settimeout(None)
        return True

    def observe(self, asked: Asked) -> None:
        """Have a look, as the test wants it."""
        try:
            self.watch(asked)
        except BaseException as trouble:
            self.troubles.append(trouble)

    def carry_out(self, asked: Asked, body: bytes) -> Say:
        """What a sound server does."""
        key = asked.key
        match asked.method:
            case "PUT":
                if asked.headers.get("If-None-Match") == "*" and key in self.objects:
                    return error(412, "PreconditionFailed")
                self.objects[key] = body
                return Say(200, b"", {"ETag": f'"{blake3.blake3(body).hexdigest()[:32]}"'})
            case "DELETE":
                self.objects.pop(key, None)
                return Say(204)
            case "LIST":
                return self._list(asked)
        data = self.objects.get(key)
        if data is None:
            return error(404, "NoSuchKey")
        etag = {"ETag": f'"{blake3.blake3(data).hexdigest()[:32]}"'}
        part = asked.headers.get("Range")
        if part is None:
            return Say(200, data, etag)
        first, _, last = part.removeprefix("bytes=").partition("-")
        start, end = int(first), min(int(last or len(data)) + 1, len(data))
        if start >= len(data):
            return error(416, "InvalidRange")
        return Say(206, data[start:end], etag | {"Content-Range": f"bytes {start}-{end - 1}/{len(data)}"})

    def _list(self, asked: Asked) -> Say:
        after = asked.query.get("continuation-token", [""])[0]
        found = sorted(key for key in self.objects if key.startswith(asked.key) and key > after)
        return listing(
            [(key, len(self.objects[key])) for key in found[: self.page]],
            found[self.page - 1 : self.page] if len(found) > self.page else [],
        )


def listing(objects: list[tuple[str, int]], token: list[str] | None = None) -> Say:
    """An answer that lists objects; with a token, it says that there are more."""
    contents = "".join(f"<Contents><Key>{escape(key)}</Key><Size>{size}</Size></Contents>" for key, size in objects)
    more = (
        f"<IsTruncated>true</IsTruncated><NextContinuationToken>{escape(token[0])}</NextContinuationToken>"
        if token
        else "<IsTruncated>false</IsTruncated>"
    )
    page = (
        f"<?xml version='1.0'?><ListBucketResult>{more}<KeyCount>{len(objects)}</KeyCount>{contents}</ListBucketResult>"
    )
    return Say(200, page.encode(), XML)


def _handler(double: S3Double) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def setup(self) -> None:
            super().setup()
            with double.lock:
                double.connections.add(self.connection)

        def finish(self) -> None:
            with double.lock:
                double.connections.discard(self.connection)
            with suppress(OSError):
                super().finish()

        def _handle(self) -> None:
            parts = urlsplit(self.path)
            query = parse_qs(parts.query)
            key = unquote(parts.path).removeprefix(f"/{BUCKET}").removeprefix("/")
            method = self.command
            if method == "GET" and "list-type" in query:
                method, key = "LIST", query.get("prefix", [""])[0]
            with double.lock:
                asked = Asked(
                    len(double.asked) + 1, method, key, query, self.headers, f"{self.requestline}\n{self.headers}"
                )
                double.asked.append(asked)
                double.observe(asked)
                act = double.plan(asked)
            where = act.where if isinstance(act, Stop) else ""
            length = int(self.headers.get("Content-Length") or 0)
            if where == "before" or (where == "sending" and length < 2):
                if not self._stop(asked):
                    return
            elif where == "sending":
                half = self.rfile.read(length // 2)
                if not self._stop(asked):
                    return
                body = half + self.rfile.read(length - len(half))
            if where != "sending" or length < 2:
                body = self.rfile.read(length)
            if len(body) < length:  # the client went away
                self.close_connection = True
                return
            if isinstance(act, Say):
                self._answer(act)
                return
            with double.lock:
                answer = double.carry_out(asked, body)
                double.observe(asked)
            if isinstance(act, Change):
                answer = Say(answer.status, act.body(answer.body), answer.headers)
            if where == "after" or (where == "answering" and (len(answer.body) < 2 or method == "HEAD")):
                if not self._stop(asked):
                    return
                where = ""
            self._answer(answer, stop=asked if where == "answering" else None)

        def _stop(self, asked: Asked) -> bool:
            is_there = double.stop_here(asked, self.connection)
            if not is_there:
                self.close_connection = True
            return is_there

        def _answer(self, answer: Say, stop: Asked | None = None) -> None:
            try:
                if answer.status:
                    self._send(answer, stop)
                if answer.is_reset or not answer.status:
                    self._reset()
            except OSError:  # the client went away
                self.close_connection = True

        def _send(self, answer: Say, stop: Asked | None) -> None:
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            if answer.announced is None:
                self.send_header("Content-Length", str(len(answer.body)))
            elif answer.announced >= 0:
                self.send_header("Content-Length", str(answer.announced))
            if answer.announced is not None or answer.repeat > 1:
                self.send_header("Connection", "close")
                self.close_connection = True
            self.end_headers()
            if self.command == "HEAD":
                return
            if stop is not None:
                half = len(answer.body) // 2
                self.wfile.write(answer.body[:half])
                if self._stop(stop):
                    self.wfile.write(answer.body[half:])
                return
            for _ in range(answer.repeat):
                self.wfile.write(answer.body)

        def _reset(self) -> None:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            self.close_connection = True
            with suppress(OSError):
                self.connection.close()

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _handle  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@contextmanager
def running() -> Iterator[S3Double]:
    """Run a server."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    server.daemon_threads = False  # so that closing it waits for them
    double = S3Double(server.server_port)
    server.RequestHandlerClass = _handler(double)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield double
    finally:
        double.release()
        server.shutdown()
        thread.join()
        # Clients in this process keep connections; the threads that serve them must not outlive the test.
        with double.lock:
            for connection in double.connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        server.server_close()
