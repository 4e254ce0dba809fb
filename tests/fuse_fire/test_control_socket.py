"""What goes wrong around a question to the daemon is told to who asked, and the daemon goes on."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any, cast

import apsw
import pytest
import trio

from vaultfs.crypto.kdf import KdfParameters
from vaultfs.crypto.slots import Secret
from vaultfs.errors import StorageError
from vaultfs.fuse import control
from vaultfs.fuse.mounted import _Mount, _MountedVault
from vaultfs.fuse.session import Tricks
from vaultfs.vault.opening import create_vault, open_filesystem

KEY, _ = Secret.generate_recovery()
pytestmark = pytest.mark.timeout(30)


class Listener:
    """Refuses the first connections, and ends with EBADF.

    Args:
        numbers: of errors.
    """

    def __init__(self, *numbers: int) -> None:
        self.left = list(numbers)
        self.ours, self.theirs = trio.socket.socketpair()

    async def accept(self) -> tuple[trio.socket.SocketType, bytes]:
        await trio.lowlevel.checkpoint()
        if self.left:
            number = self.left.pop(0)
            raise OSError(number, os.strerror(number))
        self.left.append(errno.EBADF)
        return self.theirs, b""


async def test_no_descriptor_for_a_connection_now_but_later(autojump_clock: Any) -> None:
    listener = Listener(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.ECONNABORTED)
    answers: list[str] = []

    async def answer(verb: str, _: dict[str, Any]) -> dict[str, Any]:
        answers.append(verb)
        return {}

    await listener.ours.send(b'{"verb": "status", "arguments": {}}\n')
    accept = listener.accept

    async def accept_until_answered() -> tuple[trio.socket.SocketType, bytes]:
        if listener.left == [errno.EBADF]:
            assert await listener.ours.recv(100) == b'{"result": {}}\n'
        return await accept()

    listener.accept = accept_until_answered  # type: ignore[method-assign]
    with pytest.raises(ExceptionGroup) as caught:
        async with trio.open_nursery() as nursery:
            await control._accept(cast("trio.socket.SocketType", listener), answer, nursery)
    assert answers == ["status"]
    assert [cast("OSError", each).errno for each in caught.value.exceptions] == [errno.EBADF]
    listener.ours.close()


@pytest.mark.parametrize("is_disk", [True, False], ids=["disk", "database"])
async def test_a_question_that_cannot_be_answered_is_an_error_of_who_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_disk: bool
) -> None:
    """Not the end of the daemon, and with it of the mount."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    create_vault(tmp_path / "vault", KEY, kdf=KdfParameters.weakest())
    fs = open_filesystem(tmp_path / "vault", KEY)
    try:
        mounted = _MountedVault(cast("_Mount", None), fs, Tricks(), lambda: None)
        error: Exception = OSError(errno.EIO, os.strerror(errno.EIO)) if is_disk else apsw.IOError("no disk")

        def fails() -> None:
            raise error

        monkeypatch.setattr(fs, "status", fails)
        with pytest.raises(StorageError):
            await mounted._answer("status", {})
        assert (fs.committer.failure is None) == is_disk
    finally:
        fs.abandon()
