from __future__ import annotations

import ctypes
import errno
import os
import stat
from pathlib import Path

import blake3
import pytest
from descriptors import open_files

from vaultfs.errors import IntegrityError, StorageError
from vaultfs.storage import segment_reader
from vaultfs.storage.segment_reader import SegmentReader, hash_file, punch

from .faults import failing
from .foreign import KINDS, put

DATA = bytes(range(256)) * 400


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "x.seg"
    made.write_bytes(DATA)
    return made


@pytest.fixture
def reader(path: Path) -> SegmentReader:
    return SegmentReader.open(path, segment="x")


def nowait(reader: SegmentReader, offset: int, length: int) -> bytes | None:
    """What `read_nowait` puts into a buffer, and that it touches nothing beside it."""
    buffer = bytearray(b"#" * (length + 2))
    is_read = reader.read_nowait(offset, memoryview(buffer)[1:-1])
    assert (buffer[0], buffer[-1]) == (ord("#"), ord("#"))
    return bytes(buffer[1:-1]) if is_read else None


def test_reading(reader: SegmentReader) -> None:
    assert reader.read(0, 5) == DATA[:5]
    assert reader.read(1000, 70_000) == DATA[1000:71_000]
    assert reader.read(len(DATA), 0) == b""
    assert reader.read(len(DATA) - 1, 1) == DATA[-1:]
    assert reader.size_bytes() == len(DATA)


@pytest.mark.parametrize(("offset", "length"), [(len(DATA), 1), (len(DATA) - 1, 2), (0, len(DATA) + 1), (2**40, 1)])
def test_reading_beyond_the_end(reader: SegmentReader, offset: int, length: int) -> None:
    with pytest.raises(IntegrityError, match="cut"):
        reader.read(offset, length)
    assert nowait(reader, offset, length) is None


def test_short_reads_are_continued(reader: SegmentReader, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, length, offset: real(fd, min(length, 1000), offset))
    assert reader.read(5, 10_000) == DATA[5:10_005]
    with pytest.raises(IntegrityError):
        reader.read(5, len(DATA))


@pytest.mark.parametrize("skip", [0, 1])
def test_a_failing_disk(reader: SegmentReader, monkeypatch: pytest.MonkeyPatch, skip: int) -> None:
    failing(monkeypatch, "pread", errno.EIO, skip=skip)
    with pytest.raises(StorageError, match="segment x: Input/output error"):
        reader.read(len(DATA) - 5, 10)


def test_what_is_in_memory_is_read_without_waiting(reader: SegmentReader) -> None:
    assert reader.read(0, len(DATA)) == DATA
    assert nowait(reader, 1000, 5000) == DATA[1000:6000]


class FakePreadv:
    """Stands for preadv(RWF_NOWAIT) on a file system of which nothing else is known."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answer: int | None = None) -> None:
        self.answer = answer
        self.flags: list[int] = []
        monkeypatch.setattr(os, "preadv", self)

    def __call__(self, _descriptor: int, buffers: list[memoryview], offset: int, flags: int) -> int:
        self.flags.append(flags)
        if self.answer is not None:
            raise OSError(self.answer, os.strerror(self.answer))
        buffers[0][:10] = DATA[offset : offset + 10]
        return 10


def test_what_is_not_in_memory_is_left_to_a_thread(reader: SegmentReader, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakePreadv(monkeypatch, errno.EAGAIN)
    assert nowait(reader, 0, 10) is None
    fake.answer = None
    assert nowait(reader, 0, 10) == DATA[:10]
    assert nowait(reader, 0, 11) is None  # only part of it is in memory
    assert fake.flags == [os.RWF_NOWAIT] * 3


def test_a_file_system_that_cannot_tell_is_asked_once(reader: SegmentReader, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakePreadv(monkeypatch, errno.EOPNOTSUPP)
    assert nowait(reader, 0, 10) is None
    assert nowait(reader, 0, 10) is None
    assert len(fake.flags) == 1


def test_a_disk_that_fails_without_waiting(reader: SegmentReader, monkeypatch: pytest.MonkeyPatch) -> None:
    FakePreadv(monkeypatch, errno.EIO)
    with pytest.raises(StorageError):
        nowait(reader, 0, 10)


@pytest.mark.parametrize("kind", KINDS)
def test_something_else_in_a_segments_place(path: Path, tmp_path: Path, kind: str) -> None:
    before = open_files()
    place = tmp_path / "place.seg"
    put(place, kind, path)
    with pytest.raises(IntegrityError, match="not a regular file"):
        SegmentReader.open(place, segment="place")
    with pytest.raises(IntegrityError):
        hash_file(place)
    with pytest.raises(IntegrityError):
        punch(place, 0, len(DATA))
    assert path.read_bytes() == DATA
    assert open_files() == before


def test_a_missing_segment(tmp_path: Path) -> None:
    for missing in (tmp_path / "missing", tmp_path / "missing" / "below"):
        with pytest.raises(IntegrityError, match="the segment abc is missing"):
            SegmentReader.open(missing, segment="abc")


@pytest.mark.parametrize("call", ["open", "fstat"])
def test_a_segment_that_cannot_be_opened(path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    before = open_files()
    with monkeypatch.context() as patch:
        failing(patch, call, errno.EIO)
        with pytest.raises(StorageError, match="cannot open"):
            SegmentReader.open(path, segment="x")
    assert open_files() == before


def test_a_hard_link_to_another_segment_is_told_by_its_hash(path: Path, tmp_path: Path) -> None:
    name = hash_file(path)
    other = tmp_path / "other.seg"
    other.write_bytes(b"another segment")
    path.unlink()
    os.link(other, path)
    assert SegmentReader.open(path, segment="x").read(0, 7) == b"another"
    assert hash_file(path) != name


def test_a_closed_reader_says_so(reader: SegmentReader) -> None:
    before = open_files()
    reader.close()
    reader.close()
    assert open_files() == before - 1
    for act in (lambda: reader.read(0, 1), lambda: nowait(reader, 0, 1), reader.size_bytes):
        with pytest.raises(StorageError, match="Bad file descriptor"):
            act()


def test_programs_that_are_started_do_not_inherit_segments(reader: SegmentReader) -> None:
    assert not os.get_inheritable(reader._descriptor)


def test_hash_of_files(tmp_path: Path) -> None:
    for size in (0, 1, 2**20 - 1, 2**20, 2**20 + 1, 3_000_000):
        data = (DATA * 30)[:size]
        (tmp_path / "x").write_bytes(data)
        assert hash_file(tmp_path / "x") == blake3.blake3(data).hexdigest()


def test_hash_of_a_failing_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, "preadv", errno.EIO)
    with pytest.raises(StorageError):
        hash_file(path)


def test_punching_gives_whole_blocks_back(path: Path) -> None:
    path.chmod(0o400)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    blocks = path.stat().st_blocks
    assert punch(path, 4000, 20_000)
    assert path.read_bytes() == DATA[:4096] + bytes(4 * 4096) + DATA[5 * 4096 :]
    assert path.stat().st_blocks == blocks - 4 * 8
    assert stat.S_IMODE(path.stat().st_mode) == 0o400
    assert punch(path, 0, 4096)
    assert path.read_bytes()[:4096] == bytes(4096)


@pytest.mark.parametrize(("offset", "length"), [(0, 0), (0, 4095), (1, 4096), (4095, 4096), (5000, 3000), (8191, 1)])
def test_punching_less_than_a_block_changes_nothing(path: Path, offset: int, length: int) -> None:
    assert punch(path, offset, length)
    assert path.read_bytes() == DATA


def test_punching_beyond_the_end_does_not_make_it_longer(path: Path) -> None:
    assert punch(path, 4096, 10 * len(DATA))
    assert path.read_bytes() == DATA[:4096] + bytes(len(DATA) - 4096)


def test_a_file_with_more_links_is_not_punched(path: Path, tmp_path: Path) -> None:
    os.link(path, tmp_path / "backup")
    assert not punch(path, 0, len(DATA))
    assert path.read_bytes() == DATA


def fail_fallocate(monkeypatch: pytest.MonkeyPatch, *codes: int) -> None:
    left = list(codes)

    def fail(*_: object) -> int:
        if not left:
            return 0
        ctypes.set_errno(left.pop(0))
        return -1

    monkeypatch.setattr(segment_reader, "_LIBC_FALLOCATE", fail)


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_that_cannot_punch(path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    fail_fallocate(monkeypatch, code)
    assert not punch(path, 0, len(DATA))


def test_an_interrupted_punch_is_repeated(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_fallocate(monkeypatch, errno.EINTR, errno.EINTR)
    assert punch(path, 0, len(DATA))


def test_a_failing_disk_while_punching(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.chmod(0o400)
    before = open_files()
    fail_fallocate(monkeypatch, errno.EIO)
    with pytest.raises(StorageError, match="cannot punch"):
        punch(path, 0, len(DATA))
    assert stat.S_IMODE(path.stat().st_mode) == 0o400
    assert open_files() == before


def test_a_segment_that_is_replaced_while_it_is_opened_is_not_punched(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.write_bytes(DATA)
    real = os.fchmod
    before = open_files()

    def replace(descriptor: int, mode: int) -> None:
        real(descriptor, mode)
        if other.exists():
            other.rename(path)

    monkeypatch.setattr(os, "fchmod", replace)
    with pytest.raises(IntegrityError, match="replaced"):
        punch(path, 0, len(DATA))
    assert path.read_bytes() == DATA
    assert open_files() == before


def test_the_owner_can_punch_what_the_mode_protects(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may open anything for writing; the system refuses it to everybody else, and so does this."""
    real = os.open

    def refuse(file: Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_RDWR and not stat.S_IMODE(file.stat().st_mode) & stat.S_IWUSR:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(file, flags, mode)

    path.chmod(0o400)
    monkeypatch.setattr(os, "open", refuse)
    assert punch(path, 0, len(DATA))
    assert path.read_bytes() == bytes(len(DATA) // 4096 * 4096)
    assert stat.S_IMODE(path.stat().st_mode) == 0o400
