"""The rows of the table that all systems share: one function per row, which works in the mount and returns a time.

A row function leaves out of its time what it needs first (a file, a tree, a cold mount) and what it checks afterwards;
it raises `BenchError` when what the system gives back is not what was put in.
"""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from benchmark.inputs import BLOCK, MIB, SEED, Inputs, git
from benchmark.systems import BenchError, System, run


class Stage:
    """One system with an empty vault, mounted, and what the rows so far have put into it.

    Args:
        system: mounted.
        inputs: the common input.
    """

    def __init__(self, system: System, inputs: Inputs) -> None:
        self.system = system
        self.inputs = inputs
        self.sizes = inputs.sizes

    @property
    def root(self) -> Path:
        """Where the rows work."""
        return self.system.mount_point

    @property
    def tree(self) -> Path:
        """Where the untarred tree is, or will be."""
        return self.root / self.inputs.tree.name

    def file(self, name: str, size_mib: int) -> Path:
        """Return a file of that much of the random input, written if it is not there."""
        path = self.root / name
        if not path.exists():
            write_pieces(path, self.inputs.random_bytes[: size_mib * MIB], MIB, sync=True)
            self.system.settle()
        return path

    def untarred(self) -> Path:
        """Return the tree, untarred if it is not there."""
        if not self.tree.exists():
            run(["tar", "-xf", str(self.inputs.tarball), "-C", str(self.root)])
            self.system.settle()
        return self.tree


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Args:
        key: its name in options and JSON.
        title: its name in the table.
        unit: "s" for the whole or "ms" for one operation.
        target: the least time of the better anchor over time of vaultfs that is wanted.
        measure: does the work and returns the time in that unit.
        on_disk: the vault lies on a real disk; otherwise on a tmpfs.
    """

    key: str
    title: str
    unit: str
    target: float
    measure: Callable[[Stage], float]
    on_disk: bool = False


def write_pieces(path: Path, data: memoryview, piece_bytes: int, *, sync: bool) -> float:
    """Write a new file piece by piece and return the seconds from open to close.

    Args:
        path: the file.
        data: all of its content.
        piece_bytes: length of each write(2).
        sync: call fsync(2) before close(2).
    """
    pieces = [data[at : at + piece_bytes] for at in range(0, len(data), piece_bytes)]
    write = os.write
    start = time.perf_counter()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        for piece in pieces:
            if write(descriptor, piece) != len(piece):
                raise BenchError(f"a write to {path.name} was short")
        if sync:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return time.perf_counter() - start


def check_content(path: Path, wanted: memoryview) -> None:
    """Compare a file with what it must hold.

    Raises:
        BenchError: they differ.
    """
    at = 0
    with path.open("rb", buffering=0) as file:
        while piece := file.read(MIB):
            if piece != wanted[at : at + len(piece)]:
                raise BenchError(f"{path.name} came back with other bytes near offset {at}")
            at += len(piece)
    if at != len(wanted):
        raise BenchError(f"{path.name} came back with {at} instead of {len(wanted)} bytes")


def sequential_write(stage: Stage) -> float:
    path = stage.root / "sequential"
    return write_pieces(path, stage.inputs.random_bytes[: stage.sizes.sequential_mib * MIB], MIB, sync=True)


def sequential_read(stage: Stage) -> float:
    path = stage.file("sequential", stage.sizes.sequential_mib)
    stage.system.go_cold()
    buffer = bytearray(MIB)
    start = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    seconds = time.perf_counter() - start
    check_content(path, stage.inputs.random_bytes[: stage.sizes.sequential_mib * MIB])
    path.unlink()
    return seconds


def buffered_write(stage: Stage) -> float:
    path = stage.root / "buffered"
    data = stage.inputs.random_bytes[: stage.sizes.buffered_mib * MIB]
    seconds = write_pieces(path, data, BLOCK, sync=False)
    stage.system.go_cold()
    check_content(path, data)
    path.unlink()
    return seconds


def random_read(stage: Stage) -> float:
    size = stage.sizes.random_file_mib * MIB
    path = stage.file("random", stage.sizes.random_file_mib)
    # Each block at most once: a block read twice would come from the kernel's cache.
    blocks = random.Random(SEED).sample(range(size // BLOCK), min(stage.sizes.random_operations, size // BLOCK))
    stage.system.go_cold()
    read = os.pread
    descriptor = os.open(path, os.O_RDONLY)
    try:
        start = time.perf_counter()
        got = [read(descriptor, BLOCK, block * BLOCK) for block in blocks]
        seconds = time.perf_counter() - start
    finally:
        os.close(descriptor)
    for block, data in zip(blocks, got, strict=True):
        if data != stage.inputs.random_bytes[block * BLOCK : (block + 1) * BLOCK]:
            raise BenchError(f"a random read at offset {block * BLOCK} returned other bytes")
    return seconds * 1000 / len(blocks)


def random_write(stage: Stage) -> float:
    size = stage.sizes.random_file_mib * MIB
    path = stage.file("random", stage.sizes.random_file_mib)
    generator = random.Random(SEED + 1)
    offsets = [generator.randrange(size // BLOCK) * BLOCK for _ in range(stage.sizes.random_operations)]
    wanted = bytearray(stage.inputs.random_bytes[:size])
    pieces = []
    for offset in offsets:
        pieces.append(piece := generator.randbytes(BLOCK))
        wanted[offset : offset + BLOCK] = piece
    write = os.pwrite
    descriptor = os.open(path, os.O_WRONLY)
    try:
        start = time.perf_counter()
        for piece, offset in zip(pieces, offsets, strict=True):
            write(descriptor, piece, offset)
        os.fsync(descriptor)
        seconds = time.perf_counter() - start
    finally:
        os.close(descriptor)
    stage.system.go_cold()
    check_content(path, memoryview(wanted))
    path.unlink()
    return seconds


def untar(stage: Stage) -> float:
    command = ["tar", "-xf", str(stage.inputs.tarball), "-C", str(stage.root)]
    start = time.perf_counter()
    run(command)
    return time.perf_counter() - start


def find_once(tree: Path) -> float:
    """Return the seconds find(1) takes to stat everything below ``tree``."""
    start = time.perf_counter()
    run(["find", str(tree), "-printf", "%s %m %T@ %l\\n"])
    return time.perf_counter() - start


def find_cold(stage: Stage) -> float:
    tree = stage.untarred()
    stage.system.go_cold()
    return find_once(tree)


def find_warm(stage: Stage) -> float:
    tree = stage.untarred()
    find_once(tree)
    return find_once(tree)


def read_all_cold(stage: Stage) -> float:
    tree = stage.untarred()
    stage.system.go_cold()
    start = time.perf_counter()
    with subprocess.Popen(["find", str(tree), "-type", "f", "-print0"], stdout=subprocess.PIPE) as find:
        cat = subprocess.run(["xargs", "-0", "cat"], stdin=find.stdout, stdout=subprocess.DEVNULL,
                             stderr=subprocess.PIPE, text=True, check=False)  # fmt: skip
    seconds = time.perf_counter() - start
    if find.returncode or cat.returncode:
        raise BenchError((cat.stderr.strip().splitlines() or ["find or cat failed"])[-1])
    run(["diff", "-r", "--no-dereference", str(stage.inputs.tree), str(tree)])
    return seconds


def git_clone(stage: Stage) -> float:
    url, clone = stage.inputs.repository.as_uri(), stage.root / "clone"
    start = time.perf_counter()
    git(["clone", "-q", url, str(clone)], stage.root)
    status = git(["status", "--porcelain"], clone)
    seconds = time.perf_counter() - start
    if status:
        raise BenchError(f"git status of a fresh clone names {len(status.splitlines())} files")
    git(["fsck", "--no-progress"], clone)
    run(["rm", "-rf", str(clone)])
    return seconds


def remove_tree(stage: Stage) -> float:
    tree = stage.untarred()
    start = time.perf_counter()
    run(["rm", "-rf", str(tree)])
    seconds = time.perf_counter() - start
    if tree.exists():
        raise BenchError("rm -rf returned 0, but the tree is still there")
    return seconds


def write_and_sync(stage: Stage) -> float:
    path = stage.root / "log"
    data = stage.inputs.random_bytes[: stage.sizes.syncs * BLOCK]
    pieces = [data[at : at + BLOCK] for at in range(0, len(data), BLOCK)]
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        start = time.perf_counter()
        for piece in pieces:
            os.write(descriptor, piece)
            os.fsync(descriptor)
        seconds = time.perf_counter() - start
    finally:
        os.close(descriptor)
    check_content(path, data)
    return seconds * 1000 / len(pieces)


def sqlite_commits(stage: Stage) -> float:
    path = stage.root / "sqlite.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA synchronous=FULL")
        database.execute("CREATE TABLE entries (id INTEGER PRIMARY KEY, body TEXT)")
        start = time.perf_counter()
        for number in range(stage.sizes.commits):
            database.execute("INSERT INTO entries (body) VALUES (?)", (f"entry {number} " * 10,))
        seconds = time.perf_counter() - start
    stage.system.go_cold()
    with closing(sqlite3.connect(path)) as database:
        (count,) = database.execute("SELECT count(*) FROM entries").fetchone()
        (verdict,) = database.execute("PRAGMA integrity_check").fetchone()
    if (count, verdict) != (stage.sizes.commits, "ok"):
        raise BenchError(f"the database came back with {count} rows: {verdict}")
    return seconds * 1000 / stage.sizes.commits


ROWS = (
    Row("sequential-write", "sequential write, 1 MiB pieces, fsync", "s", 2.0, sequential_write),
    Row("sequential-read", "the same file read cold", "s", 1.3, sequential_read),
    Row("buffered-write", "4 KiB buffered writes", "s", 5.0, buffered_write),
    Row("untar", "untar of small files", "s", 1.3, untar),
    Row("find-cold", "find with stat, cold", "s", 1.5, find_cold),
    Row("find-warm", "find with stat, warm", "s", 1.5, find_warm),
    Row("read-all", "read all files cold", "s", 1.2, read_all_cold),
    Row("rm", "rm -rf", "s", 1.0, remove_tree),
    Row("git-clone", "git clone and status", "s", 1.2, git_clone),
    Row("random-read", "random 4 KiB read, each", "ms", 0.8, random_read),
    Row("random-write", "random 4 KiB writes, one fsync", "s", 1.2, random_write),
    Row("write-fsync", "4 KiB write + fsync on a disk, each", "ms", 0.8, write_and_sync, on_disk=True),
    Row("sqlite", "SQLite commit on a disk, synchronous=FULL, each", "ms", 0.8, sqlite_commits, on_disk=True),
)
"""In the order they run: a row may use what one before it left, and makes it itself if that one was left out."""
