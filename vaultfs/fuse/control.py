"""The private socket of a mounted vault: how ``status``, ``umount`` and others talk to its daemon.

One JSON object per line each way: ``{"verb": ..., "arguments": {...}}``, answered by ``{"result": {...}}`` or
``{"error": ..., "exit_code": ...}``.  The socket lies in a directory that only its owner may enter.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from platformdirs import user_state_dir

from vaultfs.errors import ExitCode, UsageError, VaultError

if TYPE_CHECKING:
    import trio

log = logging.getLogger(__name__)

LARGEST_MESSAGE_BYTES: Final = 16 << 20
ANSWER_WAIT_S: Final = 24 * 3600.0
"""A commit or scrub may take long; that the daemon is gone shows at once."""

ACCEPT_PAUSE_S: Final = 0.1
_ACCEPT_LATER: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ECONNABORTED}

Handler = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]


class RemoteError(VaultError):
    """What the daemon answered instead of a result."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = ExitCode(exit_code)  # type: ignore[misc]  # the class's value is only a default


def _directory() -> Path:
    return Path(user_state_dir("vaultfs")) / "control"


def _name(mountpoint: Path) -> str:
    return hashlib.sha256(bytes(mountpoint)).hexdigest()[:24] + ".sock"


@contextlib.contextmanager
def _short_path(mountpoint: Path) -> Any:
    """The socket's address; through a descriptor, because an address has at most 107 bytes."""
    descriptor = os.open(_directory(), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{_name(mountpoint)}"
    finally:
        os.close(descriptor)


def request(mountpoint: Path, verb: str, **arguments: Any) -> dict[str, Any]:
    """Ask the daemon of a mounted vault, and wait for its answer.

    Args:
        mountpoint: absolute, symlinks resolved.
        verb: what to do.
        arguments: of the verb; JSON values.

    Raises:
        VaultError: no daemon answers.
        RemoteError: it answered with an error.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(ANSWER_WAIT_S)
        try:
            with _short_path(mountpoint) as address:
                connection.connect(address)
            connection.sendall(json.dumps({"verb": verb, "arguments": arguments}).encode() + b"\n")
            answer = b""
            while not answer.endswith(b"\n"):
                piece = connection.recv(1 << 16)
                if not piece or len(answer) > LARGEST_MESSAGE_BYTES:
                    raise VaultError(f"the daemon of {mountpoint} ended before it answered; its log may say why")
                answer += piece
        except OSError as error:
            raise VaultError(f"the daemon of {mountpoint} does not answer: {error.strerror or error}") from error
    return read_answer(answer)


def read_answer(answer: bytes) -> dict[str, Any]:
    """The result in a daemon's answer.

    Args:
        answer: one line.

    Raises:
        RemoteError: it is an error.
        VaultError: it is no answer.
    """
    with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
        message = json.loads(answer)
        if "error" in message:
            raise RemoteError(str(message["error"]), message["exit_code"])
        result = message["result"]
        if isinstance(result, dict):
            return result
    raise VaultError("the daemon answered with something that is no answer; it may be of another version: mount again")


@asynccontextmanager
async def listening(mountpoint: Path, handler: Handler) -> AsyncIterator[None]:
    """Answer requests while the body runs.

    Args:
        mountpoint: absolute, symlinks resolved.
        handler: called with verb and arguments; its VaultErrors become the answer.

    Raises:
        VaultError: the socket cannot be made.
    """
    import trio  # noqa: PLC0415  # who only asks does not need it, and it takes long to load

    directory = _directory()
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = directory / _name(mountpoint)
    listener = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        with _short_path(mountpoint) as address:
            await listener.bind(address)
        path.chmod(0o600)
        listener.listen(16)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_accept, listener, handler, nursery)
            yield
            nursery.cancel_scope.cancel()
    finally:
        listener.close()
        path.unlink(missing_ok=True)


async def _accept(listener: trio.socket.SocketType, handler: Handler, nursery: trio.Nursery) -> None:
    import trio  # noqa: PLC0415  # see above

    while True:
        try:
            connection, _ = await listener.accept()
        except OSError as error:
            if error.errno not in _ACCEPT_LATER:
                raise
            log.warning("the control socket: %s", error)
            await trio.sleep(ACCEPT_PAUSE_S)
            continue
        nursery.start_soon(_serve_one, trio.SocketStream(connection), handler)


async def _serve_one(stream: trio.SocketStream, handler: Handler) -> None:
    import trio  # noqa: PLC0415  # see above

    async with stream:
        try:
            line = b""
            while not line.endswith(b"\n"):
                piece = await stream.receive_some(1 << 16)
                if not piece or len(line) > LARGEST_MESSAGE_BYTES:
                    return
                line += piece
            await stream.send_all(json.dumps(await _answer(line, handler)).encode() + b"\n")
        except trio.BrokenResourceError:
            log.info("a client of the control socket went away")


async def _answer(line: bytes, handler: Handler) -> dict[str, Any]:
    try:
        message = json.loads(line)
        verb, arguments = message["verb"], message["arguments"]
        if not isinstance(verb, str) or not isinstance(arguments, dict):
            raise UsageError("the control socket was sent something else than a request")
        return {"result": await handler(verb, arguments)}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        return {"error": f"not a request: {error!r}", "exit_code": int(ExitCode.USAGE)}
    except VaultError as error:
        return {"error": str(error), "exit_code": int(error.exit_code)}
