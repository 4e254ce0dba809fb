"""Copies of one small vault to damage, what must be in them, and how to look at them without being told wrong bytes."""

from __future__ import annotations

import os
import random
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vaultfs.crypto.kdf import KdfParameters
from vaultfs.crypto.keys import Keyring
from vaultfs.crypto.slots import Secret
from vaultfs.errors import ExitCode, VaultError
from vaultfs.ids import InodeId
from vaultfs.metadata.chunk_rows import ChunkPlace, ChunkRows, SegmentRow
from vaultfs.metadata.database import MetadataDatabase
from vaultfs.storage.layout import VaultLayout
from vaultfs.vault.api import Vault, open_vault
from vaultfs.vault.fsck import check
from vaultfs.vault.fsck_report import FsckReport
from vaultfs.vault.head import Head, witness_path
from vaultfs.vault.opening import create_vault, load_header, open_database

PASSWORD = b"correct horse battery staple"
CHUNK = 4096


def secret() -> Secret:
    return Secret.password(PASSWORD)


def _contents(seed: int) -> dict[bytes, bytes]:
    """Path to bytes; the sizes lie on both sides of the ends of chunks."""
    source = random.Random(seed)
    sizes = [1, 100, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 5 * CHUNK + 17, 40_000]
    found = {b"/folder/file%d" % number: source.randbytes(size) for number, size in enumerate(sizes)}
    found[b"/folder/deep/er/late"] = source.randbytes(30_000)
    found[b"/\xff\xfe not text"] = source.randbytes(2 * CHUNK)
    found[b"/empty"] = b""
    found[b"/sparse"] = source.randbytes(CHUNK) + bytes(6 * CHUNK) + source.randbytes(10)
    return found


@dataclass(frozen=True)
class Copy:
    """A vault, and what was put into it.

    Attributes:
        contents: of every regular file; the hard link ``/folder/deep/link`` and the symlink ``/symlink`` come on top.
    """

    path: Path
    keyring: Keyring
    contents: dict[bytes, bytes]

    @property
    def layout(self) -> VaultLayout:
        return VaultLayout(self.path)

    def copy(self, path: Path) -> Copy:
        """As on a machine that has never seen the vault: copies of one vault are rollbacks of each other."""
        witness_path(self.keyring).unlink(missing_ok=True)
        shutil.copytree(self.path, path, symlinks=True)
        return Copy(path, self.keyring, self.contents)

    # --- looking

    def open(self, *, read_only: bool = False) -> Vault:
        return open_vault(self.path, secret(), read_only=read_only)

    def check(self, *, repair: bool = False, reads_data: bool = True) -> FsckReport:
        return check(self.path, secret(), repair=repair, reads_data=reads_data)

    def segments(self) -> list[Path]:
        """The sealed segments, the largest first."""
        return sorted(self.layout.segments.glob("??/*.seg"), key=lambda path: -path.stat().st_size)

    def places(self, path: bytes) -> tuple[list[ChunkPlace], list[SegmentRow]]:
        """Where the chunks of a file lie, and the segments of each."""
        with self.open(read_only=True) as vault:
            number = InodeId(vault.stat(path).st_ino)
            rows = vault.filesystem.chunk_rows
            places = rows.places(number, 0, 1 << 40)
            segments = [rows.segment(place.segment) for place in places]
        return places, [row for row in segments if row is not None]

    def segment_of(self, path: bytes, index: int = 0) -> tuple[Path, ChunkPlace]:
        """The segment's file and the place in it of one chunk of a file."""
        places, segments = self.places(path)
        name = segments[index].name
        assert name is not None
        return self.layout.sealed_path(name), places[index]  # type: ignore[arg-type]

    # --- damaging

    @contextmanager
    def database(self) -> Iterator[MetadataDatabase]:
        """The database for writing whatever one likes; HEAD vouches for it afterwards, as if vaultfs had written it."""
        record = Head(self.layout, self.keyring).load()
        database = open_database(self.layout, self.keyring)
        try:
            yield database
            database.commit()
            database.checkpoint(truncate=True)
        finally:
            database.close()
        Head(self.layout, self.keyring).write_clean(record.generation + 1, manifest_hash=record.manifest_hash)

    def edit(self, sql: str, *bindings: object) -> None:
        """Change rows behind vaultfs's back; HEAD vouches for them."""
        with self.database() as database:
            before = database.changes()
            database.execute(sql, bindings)
            assert database.changes() > before, "nothing was changed"

    def inode(self, path: bytes) -> int:
        with self.open(read_only=True) as vault:
            return vault.stat(path, follow=False).st_ino

    def chunk_rows(self) -> ChunkRows:
        with self.database() as database:
            return ChunkRows(database)


def make(path: Path, seed: int = 1) -> Copy:
    """A vault with two segments, of which the first has dead chunks in it."""
    create_vault(path, secret(), chunk_size_bytes=CHUNK, kdf=KdfParameters.weakest())
    wanted = _contents(seed)
    source = random.Random(seed + 1)
    with open_vault(path, secret()) as vault:
        for directory in (b"/folder", b"/folder/deep", b"/folder/deep/er"):
            vault.mkdir(directory)
        for name, data in wanted.items():
            if name.endswith(b"late"):
                continue
            with vault.open(name, "wb") as file:
                # Written over once, so that an older version of each chunk lies in the segment.
                file.write(source.randbytes(len(data)))
            vault.commit()
        for name, data in wanted.items():
            if name.endswith(b"late"):
                continue
            with vault.open(name, "r+b") as file:
                for start in range(0, len(data), CHUNK):
                    file.pwrite(data[start : start + CHUNK], start)
        vault.link(b"/folder/file6", b"/folder/deep/link")
        vault.symlink(b"folder/file5", b"/symlink")
        vault.setxattr(b"/folder/file1", b"user.colour", b"blue")
        vault.mknod(b"/fifo", stat.S_IFIFO | 0o600)
    with open_vault(path, secret()) as vault, vault.open(b"/folder/deep/er/late", "wb") as file:
        file.write(wanted[b"/folder/deep/er/late"])
    return Copy(path, load_header(VaultLayout(path)).unlock(secret()), wanted)


def writable(path: Path) -> Path:
    """A sealed segment, made writable for its owner."""
    path.chmod(0o600)
    return path


def flip(path: Path, offset: int, bit: int = 0) -> None:
    """Flip one bit of a file."""
    with writable(path).open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ (1 << bit)]))


def walk(vault: Vault, directory: bytes = b"") -> Iterator[bytes]:
    """The paths of all regular files, as far as directories can be listed."""
    for name, status in vault.scan(directory or b"/"):
        path = directory + b"/" + name
        if stat.S_ISDIR(status.st_mode):
            yield from walk(vault, path)
        elif stat.S_ISREG(status.st_mode):
            yield path


def read_everything(vault: Vault) -> dict[bytes, bytes | VaultError]:
    """The bytes of every file, or the error that reading it gives."""
    found: dict[bytes, bytes | VaultError] = {}
    for path in walk(vault):
        try:
            with vault.open(path) as file:
                found[path] = file.read()
        except VaultError as error:
            found[path] = error
    return found


def damaged_files(copy: Copy) -> set[bytes]:
    """Open the vault as any program would; every file has its bytes or fails.  Return those that fail.

    Raises:
        VaultError: the vault does not open at all.
    """
    with copy.open(read_only=True) as vault:
        found = read_everything(vault)
    failing = set()
    for path, data in copy.contents.items():
        got = found[path]
        if isinstance(got, VaultError):
            assert got.exit_code == ExitCode.INTEGRITY, got
            failing.add(path)
        else:
            assert got == data, f"wrong bytes in {path!r}"
    return failing


def readable_part(data: bytes, lost: list[tuple[int, int]]) -> bytes:
    """The bytes with zeros at (offset, length)."""
    changed = bytearray(data)
    for offset, length in lost:
        changed[offset : offset + length] = bytes(min(length, max(len(data) - offset, 0)))
    return bytes(changed)


def repair(copy: Copy, *, lost: set[bytes] | None = None) -> FsckReport:
    """Repair; then everything but ``lost`` has its bytes, ``lost`` fails, and a second check finds nothing.

    Returns:
        the report of the repair.
    """
    report = copy.check(repair=True)
    assert report.exit_code in {ExitCode.OK, ExitCode.PARTIAL}, report.findings
    assert report.problems
    assert not report.unrepaired
    assert damaged_files(copy) == (lost or set())
    # Opening it did not spoil it, and a check finds nothing.
    assert_sound(copy)
    return report


def assert_sound(copy: Copy) -> None:
    second = copy.check()
    assert second.is_clean, [(each.code, each.message) for each in second.findings]
    assert second.exit_code == ExitCode.OK
    with copy.open() as vault:
        vault.mkdir(b"/made after the repair")
        with vault.open(b"/made after the repair/file", "wb") as file:
            file.write(b"x" * 10_000)
    third = copy.check()
    assert third.is_clean, [(each.code, each.message) for each in third.findings]


def names_in(copy: Copy, directory: bytes) -> set[bytes]:
    with copy.open(read_only=True) as vault:
        return set(vault.listdir(directory))


def data_of(copy: Copy, path: bytes) -> bytes:
    with copy.open(read_only=True) as vault, vault.open(path) as file:
        return file.read()


def codes(report: FsckReport) -> set[str]:
    """The codes of what is more than a note."""
    return {each.code for each in report.findings if each.severity != "note"}


def named(report: FsckReport, path: bytes) -> list[str]:
    """The messages that name a file."""
    text = os.fsdecode(path)
    return [each.message for each in report.findings if text in each.paths or text in each.message]


def quick_derive() -> Callable[[KdfParameters, bytes, bytes], bytes]:
    """A key derivation that remembers: stretching a password takes longer than most tests."""
    known: dict[tuple[object, bytes, bytes], bytes] = {}
    real = KdfParameters.derive

    def derive(self: KdfParameters, secret: bytes, salt: bytes) -> bytes:
        key = (self, bytes(secret), bytes(salt))
        if key not in known:
            known[key] = real(self, secret, salt)
        return known[key]

    return derive
