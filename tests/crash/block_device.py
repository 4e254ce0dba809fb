"""Loop devices, ext4 on them, and the replay of what was written to a disk up to any moment."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import random
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from .block_server import FLUSH, MARK, Record
from .recorder import Mark
from .simulated_disk import PAGE_BYTES

DISK_BYTES: Final = 48 << 20
_LOOP_CTL_GET_FREE: Final = 0x4C82
_LOOP_CONFIGURE: Final = 0x4C0A
_CONFIG_BYTES: Final = 304  # sizeof(struct loop_config), linux/loop.h
_FLAGS_OFFSET: Final = 8 + 52  # lo_flags within it
_AUTOCLEAR: Final = 4
_DETACH: Final = 2
_ATTEMPTS: Final = 50

_libc = ctypes.CDLL(None, use_errno=True)


def make_ext4(image: Path) -> None:
    """Create a file of `DISK_BYTES` with an empty ext4; nothing of it is left to be done after mounting."""
    with image.open("wb") as file:
        file.truncate(DISK_BYTES)
    lazy = "lazy_itable_init=0,lazy_journal_init=0,nodiscard,root_owner=0:0"
    words: list[str | Path] = [
        "mkfs.ext4",
        "-q",
        "-b",
        "4096",
        "-N",
        "512",
        "-J",
        "size=4",
        "-m",
        "0",
        "-E",
        lazy,
        image,
    ]
    subprocess.run(words, check=True, capture_output=True)


@contextlib.contextmanager
def loop_device(file: Path) -> Iterator[str]:
    """Put a loop device on a file; the kernel removes it when nobody has it open any more, whatever becomes of us."""
    backing = os.open(file, os.O_RDWR | os.O_CLOEXEC)
    try:
        device, loop = _attach(backing)
    finally:
        os.close(backing)
    try:
        yield device
    finally:
        os.close(loop)


def _attach(backing: int) -> tuple[str, int]:
    config = bytearray(_CONFIG_BYTES)
    struct.pack_into("<I", config, 0, backing)
    struct.pack_into("<I", config, _FLAGS_OFFSET, _AUTOCLEAR)
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_ATTEMPTS):
            device = f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
            loop = os.open(device, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(loop, _LOOP_CONFIGURE, config)
            except OSError as error:
                os.close(loop)
                if error.errno != errno.EBUSY:  # else another process was faster
                    raise
            else:
                return device, loop
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, "no free loop device")


@contextlib.contextmanager
def mounted_ext4(file: Path, mountpoint: Path) -> Iterator[None]:
    """Mount the ext4 in a file; its journal is replayed as after a reboot."""
    with loop_device(file) as device:
        if _libc.mount(device.encode(), os.fsencode(mountpoint), b"ext4", 0, b"") != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(mountpoint))
        try:
            yield
        finally:
            if _libc.umount2(os.fsencode(mountpoint), 0) != 0:
                code = ctypes.get_errno()
                _libc.umount2(os.fsencode(mountpoint), _DETACH)
                raise OSError(code, os.strerror(code), str(mountpoint))


@contextlib.contextmanager
def remembering_disk(image: Path, where: Path, log: Path) -> Iterator[None]:
    """Serve ``where/disk`` and ``where/marks`` from a process of its own; see block_server."""
    command: list[str | Path] = [sys.executable, "-m", "tests.crash.block_server", image, where, log]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as server:
        try:
            assert server.stdout is not None
            if server.stdout.readline() != "ready\n":
                raise RuntimeError("the block server did not start")
            yield
        finally:
            _libc.umount2(os.fsencode(where), _DETACH)
            try:
                server.wait(timeout=30)
            except subprocess.TimeoutExpired:
                server.kill()


def marks_of(records: Sequence[Record]) -> list[Mark]:
    """The marks in a log."""
    return [
        Mark(position, line)
        for position, record in enumerate(records)
        if record.kind == MARK
        for line in record.data.decode().splitlines()
    ]


def copy_sparse(source: Path, target: Path) -> None:
    """Copy a file with its holes; ``target`` is a new file."""
    target.unlink(missing_ok=True)
    size = source.stat().st_size
    with source.open("rb") as left, target.open("wb") as right:
        right.truncate(size)
        position = 0
        while position < size:
            try:
                begin = os.lseek(left.fileno(), position, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # only a hole follows
                    return
                raise
            position = os.lseek(left.fileno(), begin, os.SEEK_HOLE)
            os.pwrite(right.fileno(), os.pread(left.fileno(), position - begin, begin), begin)


class Replay:
    """Makes the disk as it was after any number of records, from the first to the last.

    Args:
        base: the image before the first record; it is changed as the replay goes on.
        records: the log.
    """

    def __init__(self, base: Path, records: Sequence[Record]) -> None:
        self._base = base
        self._records = records
        self._flushed = 0
        """So many records are in ``base``."""

    def image(self, count: int, target: Path, chance: random.Random | None) -> bool:
        """Write the disk after a power cut to ``target``.

        Args:
            count: so many records had happened; never fewer than in the call before.
            target: replaced.
            chance: drops and tears what came after the last flush; None keeps it all.

        Returns:
            whether chance has dropped or torn anything.
        """
        flush = max((n for n in range(self._flushed, count) if self._records[n].kind == FLUSH), default=self._flushed)
        with self._base.open("r+b", buffering=0) as file:
            for record in self._records[self._flushed : flush]:
                os.pwrite(file.fileno(), record.data, record.offset)
        self._flushed = flush
        copy_sparse(self._base, target)
        is_changed = False
        with target.open("r+b", buffering=0) as file:
            for record in self._records[flush:count]:
                for offset, piece in _pieces(record, chance):
                    if piece is None:
                        is_changed = True
                    else:
                        os.pwrite(file.fileno(), piece, offset)
        return is_changed


def _pieces(record: Record, chance: random.Random | None) -> Iterator[tuple[int, bytes | None]]:
    """What of a write reaches the disk; None for what does not."""
    fate = 0.0 if chance is None else chance.random()
    if fate < 0.5:
        yield record.offset, record.data
    elif fate < 0.8 or chance is None:
        yield record.offset, None
    else:
        for begin in range(0, len(record.data), PAGE_BYTES):
            piece = record.data[begin : begin + PAGE_BYTES]
            yield record.offset + begin, piece if chance.random() < 0.5 else None
