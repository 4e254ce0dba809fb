"""The directory of a store goes away while the server runs: requests fail, connections and the server go on."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mesh_replicas.peer_objects import VAULT, put_segment, segment_key

from vaultfs.errors import RemoteError
from vaultfs.mesh.failure_codes import Code
from vaultfs.mesh.messages import Fail, Go, Have, Holds, List, Ping, Pong, Stat, State, Status

from .running import Peer


async def test_removed(peer: Peer, scratch: Path) -> None:
    key = put_segment(peer.store, b"data")
    async with peer.call() as caller:
        shutil.rmtree(scratch / "peer" / "replicas")
        assert (await caller.ask(Have(1, VAULT, bytes.fromhex(key[-64:])), Holds)).sizes == (0,)
        caller.number = 1
        for data in (b"data", b"other"):
            assert (await caller.ask(caller.put(segment_key(data), data), Fail)).code is Code.FAILED
        await caller.ask(Status(caller.next(), VAULT), State)
        await caller.ask(Ping(caller.next()), Pong)
    assert peer.store.scrub_some(1000).checked_objects == 0


async def test_unplugged(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every system call with a name fails, in the middle of an object too."""
    key = put_segment(peer.store, b"data")
    async with peer.call() as caller:
        await caller.ask(caller.put(segment_key(b"other"), b"other"), Go)
        with monkeypatch.context() as patch:
            for name in ("open", "stat", "mkdir", "rename", "unlink", "scandir", "fstatvfs", "fsync", "pread"):
                patch.setattr(os, name, failing(name, getattr(os, name)))
            with pytest.raises(RemoteError):
                peer.store.scrub_some(1000)
            await caller.say(b"\0\0\0\x09\x92\x05\xc4\x05other")
            assert (await caller.hear(Fail)).code is Code.FAILED
            for message in (
                Have(2, VAULT, bytes.fromhex(key[-64:])),
                Stat(3, VAULT, key),
                List(4, VAULT, "", ""),
                Status(5, VAULT),
            ):
                assert (await caller.ask(message, Fail)).code is Code.FAILED
            await caller.ask(Ping(6), Pong)
        assert (await caller.ask(Have(7, VAULT, bytes.fromhex(key[-64:])), Holds)).sizes == (4,)
        caller.number = 7
        await caller.ask(caller.put(segment_key(b"other"), b"other"), Go)


def failing(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
    """Fails where a store uses it: with a name in an open directory, or an open file."""

    def fail(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("dir_fd") is not None or "src_dir_fd" in kwargs or (args and isinstance(args[0], int)):
            raise OSError(errno.EIO, f"unplugged: {name}")
        return real(*args, **kwargs)

    return fail
