"""What operations cost, counted: SQL statements, syncs, segments.  Counts do not depend on the machine."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import apsw
import pytest

from vaultfs.ids import ROOT_INODE, InodeId
from vaultfs.vault.api import Vault
from vaultfs.vault.filesystem import FileSystem

from .vaults import CHUNK_BYTES, Place, read, write


@contextmanager
def statements(fs: FileSystem) -> Iterator[list[str]]:
    """Every SQL statement, once for each row that it is executed for."""
    found: list[str] = []

    def note(_: object, sql: str, __: object) -> bool:
        found.append(sql)
        return True

    connection = fs.database._connection
    connection.exec_trace = note
    try:
        yield found
    finally:
        with suppress(apsw.ConnectionClosedError):
            connection.exec_trace = None


@contextmanager
def syncs() -> Iterator[Counter[str]]:
    """Syncs by what was synced: the kind of file, or a directory."""
    found: Counter[str] = Counter()
    real = {name: getattr(os, name) for name in ("fsync", "fdatasync")}

    def wrap(name: str) -> object:
        def call(descriptor: int) -> None:
            path = os.readlink(f"/proc/self/fd/{descriptor}")
            found["directory" if os.path.isdir(path) else path.rpartition(".")[2]] += 1
            real[name](descriptor)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in real:
            patch.setattr(os, name, wrap(name))
        yield found


@pytest.fixture
def fs(place: Place) -> Iterator[FileSystem]:
    fs = place.open()
    vault = Vault(fs)
    vault.mkdir("/d")
    for number in range(20):
        write(vault, f"/d/{number}", b"text")
    write(vault, "/large", b"x" * 40 * CHUNK_BYTES)
    fs.committer.commit()
    fs.committer.fsync()
    try:
        yield fs
    finally:
        fs.abandon()


def test_statements_for_names(fs: FileSystem) -> None:
    directory = InodeId(Vault(fs).stat("/d").st_ino)
    with statements(fs) as found:
        # As the kernel does it: the name is looked for first.
        fs.tree.lookup(directory, b"new")
        fs.make(directory, b"new", stat.S_IFREG | 0o644, 0, 0)
    assert len(found) == 2, found
    with statements(fs) as found:
        fs.tree.lookup(directory, b"new")
    assert len(found) == 1, found
    with statements(fs) as found:
        fs.tree.lookup(ROOT_INODE, b"absent")
    assert len(found) == 1, found
    fs.committer.commit()
    with statements(fs) as found:
        fs.unlink(directory, b"new")
    assert len(found) <= 4, found
    with statements(fs) as found:
        fs.rename(directory, b"1", ROOT_INODE, b"moved", 0)
    assert len(found) <= 4, found


def test_a_listing_takes_no_statement_per_name(fs: FileSystem) -> None:
    directory = InodeId(Vault(fs).stat("/d").st_ino)
    list(fs.tree.entries(directory))
    with statements(fs) as found:
        assert len(list(fs.tree.entries(directory))) == 20
    assert len(found) <= 2, found


def test_attributes_take_no_statement_where_nothing_has_any(fs: FileSystem) -> None:
    inode = fs.inodes.get(InodeId(Vault(fs).stat("/d/1").st_ino))
    with statements(fs) as found:
        fs.set_attributes(inode, mode=0o600, uid=1, gid=2, mtime_ns=3)
        assert fs.xattrs.names(inode) == []
    assert found == []


def test_statements_for_data(fs: FileSystem) -> None:
    vault = Vault(fs)
    small = fs.inodes.get(InodeId(vault.stat("/d/1").st_ino))
    large = fs.inodes.get(InodeId(vault.stat("/large").st_ino))
    with statements(fs) as found:
        fs.files.plan_read(large, 0, 32 * CHUNK_BYTES)
    assert len(found) <= 2, found  # the extents, and the segment once
    fs.write(small, 0, b"more")
    with statements(fs) as found:
        for number in range(100):
            fs.write(small, number, b"again")
    assert found == []
    fs.committer.fsync()
    with statements(fs) as found:
        fs.write(small, 0, b"x")
        fs.committer.fsync()
    # The record, the inode, COMMIT, BEGIN.
    assert len(found) <= 5, found


def test_the_short_way_is_one_sync(fs: FileSystem) -> None:
    inode = fs.inodes.get(InodeId(Vault(fs).stat("/d/1").st_ino))
    for _ in range(20):
        fs.write(inode, 0, b"new")
        with syncs() as found:
            fs.committer.fsync()
        assert found == {"db-wal": 1}


def test_a_commit_is_two_syncs(fs: FileSystem) -> None:
    vault = Vault(fs)
    write(vault, "/new", b"a" * 20 * CHUNK_BYTES)
    fs.committer.commit()
    for number in range(5):
        write(vault, "/new", bytes([number + 1]) * 20 * CHUNK_BYTES)
        with syncs() as found:
            fs.committer.commit()
        assert found == {"seg": 1, "db-wal": 1}


def test_a_commit_costs_what_was_changed(fs: FileSystem) -> None:
    """Not what is open, or cached, or there."""
    vault = Vault(fs)
    for number in range(3000):
        write(vault, f"/d/more-{number}", b"")
    vault.commit()
    files = [vault.open(f"/d/more-{number}") for number in range(3000)]
    for file in files:
        file.read()
    write(vault, "/one", b"text")
    with statements(fs) as found:
        vault.commit()
    assert len(found) < 40, Counter(found)
    with statements(fs) as found:
        for file in files:
            file.close()
    assert found == []


def test_closing_a_vault_costs_nothing_per_file_that_was_looked_at(place: Place) -> None:
    with place.opened() as vault:
        for number in range(10_000):
            vault.mknod(f"/{number}", stat.S_IFREG | 0o644)
    fs = place.open()
    vault = Vault(fs)
    assert len(list(vault.scan())) == 10_000
    for number in range(0, 10_000, 10):
        assert read(vault, f"/{number}") == b""
    with statements(fs) as found, syncs() as synced:
        fs.close()
    assert len(found) < 60, Counter(found)
    assert sum(synced.values()) < 20, synced
