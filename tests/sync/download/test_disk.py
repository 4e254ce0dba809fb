"""The disk below a fetch fails, is full, or has something in the way; a manifest comes last."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from remotes.memory_store import MemoryStore

from sync.fabricated import Fabricated
from vaultfs.errors import (
    NoSpaceError,
    VaultError,
)
from vaultfs.storage import durable
from vaultfs.storage.layout import VaultLayout
from vaultfs.sync import fetched_file
from vaultfs.sync.download import RemoteHead, fetch
from vaultfs.sync.fetched_file import part_path

from .fetched import names_of, require_fetched, require_nothing_false


def test_a_full_disk(
    vault: Fabricated, filled: MemoryStore, head: RemoteHead, into: VaultLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every write may be the one for which there is no room; what came before is kept."""
    real = durable.write_all
    for allowed in range(10):
        count = 0

        def full(descriptor: int, data: bytes) -> None:
            nonlocal count
            count += 1
            if count > allowed:  # noqa: B023  # called within the loop
                real(descriptor, data[:7])
                raise OSError(28, "No space left on device")
            real(descriptor, data)

        with monkeypatch.context() as patch:
            patch.setattr(fetched_file, "write_all", full)
            try:
                fetch(filled, into, head, connections=1)
            except NoSpaceError as error:
                assert "No space left on device" in str(error)  # noqa: PT017
                require_nothing_false(into, head)
                assert len(list(into.segments.rglob(".*.part"))) == 1
            else:
                break
    else:
        pytest.fail("never done")
    require_fetched(vault, head, into)


@pytest.mark.parametrize("call", ["fdatasync", "rename", "fsync", "mkdir"])
def test_a_disk_that_fails(
    vault: Fabricated,
    filled: MemoryStore,
    head: RemoteHead,
    into: VaultLayout,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
) -> None:
    real = getattr(os, call)
    done = False
    for number in range(30):
        count = 0

        def failing(*arguments: object, **options: object) -> object:
            nonlocal count
            count += 1
            if count == number + 1:  # noqa: B023  # called within the loop
                raise OSError(5, "Input/output error")
            return real(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, failing)
            try:
                fetch(filled, into, head, connections=1)
            except VaultError:
                require_nothing_false(into, head)
            else:
                done = True
                break
    assert done
    require_fetched(vault, head, into)


def test_everything_is_durable_before_the_manifest(
    filled: MemoryStore, head: RemoteHead, into: VaultLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of system calls: data, names, and only then the manifest."""
    calls: list[tuple[str, str]] = []
    real = {name: getattr(os, name) for name in ("fdatasync", "fsync", "rename")}

    def path_of(descriptor: int) -> str:
        return os.readlink(f"/proc/self/fd/{descriptor}")

    def fdatasync(descriptor: int) -> None:
        calls.append(("data", path_of(descriptor)))
        real["fdatasync"](descriptor)

    def fsync(descriptor: int) -> None:
        calls.append(("sync", path_of(descriptor)))
        real["fsync"](descriptor)

    def rename(old: Path, new: Path) -> None:
        calls.append(("name", str(new)))
        real["rename"](old, new)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    manifest = fetch(filled, into, head)
    done = calls.index(("name", str(into.manifest_path(head.seq, head.hash))))
    for name, _ in manifest.segments:
        path = into.sealed_path(name)
        data = calls.index(("data", str(part_path(into, name))))
        named = calls.index(("name", str(path)))
        assert data < named
        assert any(call == ("sync", str(path.parent)) for call in calls[named:done])
    assert ("sync", str(into.segments)) in calls[:done]
    assert ("sync", str(into.heads)) in calls[done:]


@pytest.mark.parametrize("kind", ["symlink", "fifo", "hardlink"])
def test_something_in_the_place_of_a_part(
    vault: Fabricated, filled: MemoryStore, head: RemoteHead, into: VaultLayout, scratch: Path, kind: str
) -> None:
    into.create_directories()
    part = part_path(into, names_of(vault)[0])
    part.parent.mkdir(mode=0o700)
    precious = scratch / "precious"
    precious.write_bytes(b"precious")
    if kind == "symlink":
        part.symlink_to(precious)
    elif kind == "fifo":
        os.mkfifo(part)
    else:
        part.hardlink_to(precious)
    with pytest.raises(VaultError):
        fetch(filled, into, head)
    assert precious.read_bytes() == b"precious"
    part.unlink()
    fetch(filled, into, head)
    require_fetched(vault, head, into)
