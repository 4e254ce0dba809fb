"""Where the browser comes back to after a login: a server on 127.0.0.1 that takes one answer (RFC 8252).

What does not hold the state that was sent out is no answer, whoever sends it: it is refused, and waiting goes on.
What is shown in the browser is constant.
"""

from __future__ import annotations

import errno
import queue
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final
from urllib.parse import parse_qsl, urlsplit

from vaultfs.errors import RemoteRefusedError, UsageError, VaultError

_REQUEST_TIMEOUT_S: Final = 10.0
_LARGEST_CODE: Final = 4096
_PAGE: Final = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><title>vaultfs</title>'
    "<p>{}</p><p>You can close this window and go back to vaultfs.</p></html>"
)
_DONE: Final = _PAGE.format("The answer has arrived.")
_NOTHING: Final = _PAGE.format("This is not the answer to a login that vaultfs waits for.")


class Loopback:
    """A server that waits for one answer.

    Attributes:
        port: where.
        state: what the answer has to hold; nobody can guess it.
    """

    def __init__(self, port: int, state: str, answers: queue.Queue[dict[str, str]]) -> None:
        self.port = port
        self.state = state
        self._answers = answers

    def wait(self, title: str, timeout_s: float) -> str:
        """The code that the service sent by way of the browser.

        Args:
            title: of the service, for messages.
            timeout_s: seconds.

        Raises:
            RemoteRefusedError: the person or the service refused, or nothing came in time.
        """
        try:
            answer = self._answers.get(timeout=timeout_s)
        except queue.Empty:
            answer = {}
        code = answer.get("code", "")
        if "error" in answer:
            if answer["error"] == "access_denied":
                raise RemoteRefusedError(f"the login was refused in the browser; {title} gives vaultfs no access")
            raise RemoteRefusedError(f"{title} refused the login; try again, and see what the browser shows")
        if not code:
            message = f"nobody has logged in to {title} within {timeout_s / 60:g} minutes; nothing was changed"
            raise RemoteRefusedError(message)
        return code


@contextmanager
def listening(port: int) -> Iterator[Loopback]:
    """Be there for the browser.

    Args:
        port: 0: any that is free.

    Raises:
        UsageError: the port is taken, or may not be used.
        VaultError: there can be no server.
    """
    answers: queue.Queue[dict[str, str]] = queue.Queue(1)
    state = secrets.token_urlsafe(32)
    first = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        timeout = _REQUEST_TIMEOUT_S
        server_version = "vaultfs"
        sys_version = ""

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            found = dict(parse_qsl(parts.query[: 4 * _LARGEST_CODE], errors="replace"))
            is_ours = parts.path == "/" and secrets.compare_digest(found.get("state", "").encode(), state.encode())
            is_answer = is_ours and ("error" in found or 0 < len(found.get("code", "")) <= _LARGEST_CODE)
            is_taken = is_answer and first.acquire(blocking=False)
            try:
                self._show(200 if is_taken else 404, _DONE if is_taken else _NOTHING)
            finally:
                if is_taken:  # now, and not before: the process may end, and the page with it
                    answers.put(found)

        def _show(self, status: int, page: str) -> None:
            body = page.encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Security-Policy", "default-src 'none'")
            self.send_header("Referrer-Policy", "no-referrer")
            self.send_header("Cache-Control", "no-store")
            self.send_header("Connection", "close")
            self.end_headers()
            with suppress(OSError):  # it has hung up
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nowhere: what is asked holds the code."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True  # a browser may keep a connection open that it never uses
        block_on_close = False

        def handle_error(self, *_: object) -> None:
            """Nothing: whoever it was has hung up, or sent nonsense."""

    try:
        server = Server(("127.0.0.1", port), Handler)
    except (OSError, OverflowError) as error:
        code = error.errno if isinstance(error, OSError) else None
        if isinstance(error, OverflowError) or code in {errno.EADDRINUSE, errno.EACCES}:
            raise UsageError(f"port {port} of this machine is taken or may not be used; see --port") from None
        raise VaultError(f"there can be no server on 127.0.0.1: {error}") from error
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield Loopback(server.server_port, state, answers)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
