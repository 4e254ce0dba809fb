"""Programs that use a folder and may be killed at any moment; run as ``python programs.py KIND FOLDER SEED JOURNAL``.

Each keeps a journal outside the folder of what the kernel has acknowledged, one number per line.  `expected` says what
of its files must be there then, whatever killed it.  An exit code of 1 means that the folder has lied to it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import mmap
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

BIG: Final = "big"
"""A file that is only read: `pattern` of seed 0."""
BIG_BYTES: Final = 6 << 20
SHARED: Final = "shared"
"""A file that many open for writing and read, and whose bytes never change."""
SHARED_BYTES: Final = 1 << 20
LOCK: Final = "lock"
ROUNDS: Final = 60
PAGE_BYTES: Final = 4096
_VERSION_BYTES: Final = 3000


def pattern(seed: int, size: int) -> bytes:
    """Bytes that belong to a seed; those of a shorter size are a prefix."""
    return hashlib.shake_128(b"%d" % seed).digest(size)


class Journal:
    """Acknowledged steps, for whoever looks after the program is dead."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(self, number: int) -> None:
        """The kernel has acknowledged this much."""
        os.write(self._descriptor, b"%d\n" % number)


def acknowledged(journal: Path) -> int:
    """The last number that a journal holds; 0 if it never came to that."""
    try:
        lines = journal.read_text(encoding="ascii").splitlines()
    except FileNotFoundError:
        return 0
    return int(lines[-1]) if lines else 0


def _require(condition: object, what: str) -> None:
    if not condition:
        print(f"the folder lied: {what}", file=sys.stderr, flush=True)
        os._exit(1)


# --- what programs do; each gets its own folder, which does not exist yet


def append(own: Path, choose: random.Random, seed: int, journal: Journal) -> None:
    """A file grows by pieces, and is sometimes synced."""
    text = pattern(seed, 4 << 20)
    done = 0
    with open(own / "file", "xb", buffering=0) as file:
        for _ in range(ROUNDS):
            piece = text[done : done + choose.choice((1, 700, 4096, 5000, 70_000, 300_000))]
            done += file.write(piece)
            journal.note(done)
            if choose.random() < 0.1:
                os.fsync(file)


def replace(own: Path, choose: random.Random, seed: int, journal: Journal) -> None:
    """A new file takes the place of an old one."""
    for version in range(1, ROUNDS):
        (own / "new").write_bytes(pattern(seed + version, _VERSION_BYTES + version))
        if choose.random() < 0.2:
            descriptor = os.open(own / "new", os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
        os.rename(own / "new", own / "file")
        journal.note(version)


def map_pages(own: Path, choose: random.Random, seed: int, journal: Journal) -> None:
    """A mapping is filled page by page."""
    text = pattern(seed, ROUNDS * PAGE_BYTES)
    with open(own / "file", "x+b") as file:
        file.truncate(len(text))
        with mmap.mmap(file.fileno(), len(text)) as view:
            for page in range(ROUNDS):
                at = page * PAGE_BYTES
                view[at : at + PAGE_BYTES] = text[at : at + PAGE_BYTES]
                journal.note(page + 1)
                if choose.random() < 0.05:
                    view.flush()


def cut(own: Path, choose: random.Random, seed: int, journal: Journal) -> None:
    """A file is cut and grows; what comes back is zeros."""
    text = pattern(seed, 200_000)
    with open(own / "file", "xb+", buffering=0) as file:
        for number in range(ROUNDS):
            size = choose.randrange(len(text))
            file.seek(0)
            file.write(text)
            os.ftruncate(file.fileno(), size)
            os.ftruncate(file.fileno(), size + 5000)
            file.seek(0)
            _require(file.read() == text[:size] + bytes(5000), "a file that was cut and grew")
            journal.note(number)


def link_and_list(own: Path, choose: random.Random, seed: int, journal: Journal) -> None:
    """Names come and go; what is listed is what is there."""
    names: set[str] = set()
    for number in range(ROUNDS):
        name = f"{number}"
        (own / name).write_bytes(b"x" * number)
        os.setxattr(own / name, b"user.seed", b"%d" % seed)
        os.link(own / name, own / f"{name}.link")
        names |= {name, f"{name}.link"}
        if choose.random() < 0.5:
            os.unlink(own / name)
            names.discard(name)
        if choose.random() < 0.2:
            (own / "folder").mkdir()
            os.rename(own / f"{name}.link", own / "folder" / "moved")
            os.unlink(own / "folder" / "moved")
            (own / "folder").rmdir()
            names.discard(f"{name}.link")
        _require(set(os.listdir(own)) == names, "a listing")
        for each in names:
            _require(os.getxattr(own / each, b"user.seed") == b"%d" % seed, "an attribute")
        journal.note(number)


def nameless(own: Path, choose: random.Random, seed: int, journal: Journal) -> None:
    """A file is removed while it is open, as temporary files are."""
    for number in range(ROUNDS):
        with open(own / "temporary", "xb+", buffering=0) as file:
            os.unlink(own / "temporary")
            text = pattern(seed + number, choose.choice((100, 5000, 300_000)))
            file.write(text)
            file.seek(0)
            _require(file.read() == text, "a file without a name")
        journal.note(number)


def read(own: Path, choose: random.Random, _: int, journal: Journal) -> None:
    """Random reads, buffered, direct and mapped, of a file that nobody changes; pages are dropped all the time."""
    text = pattern(0, BIG_BYTES)
    flags = choose.choice((os.O_RDONLY, os.O_RDONLY, os.O_RDONLY | os.O_DIRECT))
    descriptor = os.open(own.parent / BIG, flags)
    buffer = mmap.mmap(-1, 1 << 20)
    for number in range(ROUNDS):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        at = choose.randrange(BIG_BYTES // PAGE_BYTES) * PAGE_BYTES
        size = choose.choice((PAGE_BYTES, PAGE_BYTES, 32 * PAGE_BYTES, 256 * PAGE_BYTES))
        got = os.preadv(descriptor, [memoryview(buffer)[:size]], at)
        _require(buffer[:got] == text[at : at + size], "what was read")
        journal.note(number)


def reopen(own: Path, choose: random.Random, _: int, journal: Journal) -> None:
    """Opens for writing and reads by turns of one file: what is put around reads must have ended before."""
    text = pattern(1, SHARED_BYTES)
    for number in range(ROUNDS):
        is_writing = choose.random() < 0.5
        descriptor = os.open(own.parent / SHARED, os.O_RDWR if is_writing else os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        for _ in range(4):
            at = choose.randrange(SHARED_BYTES // PAGE_BYTES) * PAGE_BYTES
            _require(os.pread(descriptor, PAGE_BYTES, at) == text[at : at + PAGE_BYTES], "what was read of the shared")
        if is_writing:
            os.pwrite(descriptor, text[at : at + PAGE_BYTES], at)
        os.close(descriptor)
        journal.note(number)


def lock(own: Path, choose: random.Random, _: int, journal: Journal) -> None:
    """Waits for locks that others hold when they are killed."""
    descriptor = os.open(own.parent / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    for number in range(ROUNDS):
        take: Callable[[int, int], object] = choose.choice((fcntl.flock, fcntl.lockf))
        take(descriptor, fcntl.LOCK_EX)
        value = os.pread(descriptor, 8, 0)
        os.pwrite(descriptor, bytes(8), 0)
        os.pwrite(descriptor, value or bytes(8), 0)
        take(descriptor, fcntl.LOCK_UN)
        journal.note(number)


KINDS: Final[dict[str, Callable[[Path, random.Random, int, Journal], None]]] = {
    "append": append,
    "replace": replace,
    "map_pages": map_pages,
    "cut": cut,
    "link_and_list": link_and_list,
    "nameless": nameless,
    "read": read,
    "reopen": reopen,
    "lock": lock,
}


def _read(path: Path, *, has_ended: bool) -> bytes:
    """What is in a file.

    If a program is killed while the kernel tells the daemon the ctime of a file that it has linked, renamed or removed,
    the kernel keeps that as an error of the file, which the next close(2) of it reports (fuse_flush_time_update).
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        pieces = []
        while piece := os.read(descriptor, 1 << 20):
            pieces.append(piece)
    finally:
        try:
            os.close(descriptor)
        except OSError as error:
            if has_ended or error.errno != errno.EIO:
                raise
    return b"".join(pieces)


def look(kind: str, own: Path, seed: int, journal: Path, *, has_ended: bool) -> None:
    """Compare what a program has left with what it was told.

    Args:
        kind: of the program.
        own: its folder.
        seed: its.
        journal: its.
        has_ended: it was not killed.

    Raises:
        AssertionError: something was lost, or is there that nobody wrote.
    """
    done = acknowledged(journal)
    file = own / "file"
    if kind == "append":
        found = _read(file, has_ended=has_ended) if file.exists() else b""
        assert found == pattern(seed, len(found)), f"{file} holds what nobody wrote"
        assert done <= len(found) <= (done if has_ended else done + 300_000), f"{file}: {len(found)} bytes, not {done}"
    elif kind == "replace" and (done or file.exists()):
        found = _read(file, has_ended=has_ended)
        version = len(found) - _VERSION_BYTES
        assert found == pattern(seed + version, len(found)), f"{file} is no version"
        assert done <= version <= (done if has_ended else done + 1), f"{file}: version {version}, not {done}"
    elif kind == "map_pages" and done:
        found, text = _read(file, has_ended=has_ended), pattern(seed, ROUNDS * PAGE_BYTES)
        assert found[: done * PAGE_BYTES] == text[: done * PAGE_BYTES], f"{file}: pages were lost"
        assert not any(found[(done + 1) * PAGE_BYTES :]), f"{file}: pages that nobody wrote"
    elif kind == "link_and_list" and own.exists():
        for entry in os.scandir(own):
            if entry.is_file():
                left = _read(Path(entry.path), has_ended=has_ended).strip(b"x")
                assert not left, f"{entry.path} holds what nobody wrote"
    if has_ended and kind == "nameless":
        assert os.listdir(own) == []


def main() -> None:
    """Run one program until its end, or until it is killed."""
    kind, folder, seed, journal = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    with contextlib.suppress(OSError):
        ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL: a test that ends leaves nobody behind
    own = folder / f"{kind}-{seed}"
    own.mkdir()
    KINDS[kind](own, random.Random(seed), seed, Journal(journal))


if __name__ == "__main__":
    main()
