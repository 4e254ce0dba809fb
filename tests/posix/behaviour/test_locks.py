"""flock, POSIX record locks and open file description locks between processes."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from .calls import fails, opened

F_OFD_SETLK = 37


@pytest.fixture
def file(mounted: Path) -> Path:
    path = mounted / "file"
    path.write_bytes(b"0123456789")
    return path


def in_child(action: Callable[[], object]) -> str:
    """Run an action in a child; return ``ok`` or the name of its errno."""
    child = os.fork()
    if child == 0:
        code = 0
        try:
            action()
        except OSError as error:
            code = error.errno or 255
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return errno.errorcode[code] if code else "ok"


def flock(path: Path, operation: int) -> None:
    with opened(path, os.O_RDWR) as descriptor:
        fcntl.flock(descriptor, operation | fcntl.LOCK_NB)


def lockf(path: Path, operation: int, length: int, start: int) -> None:
    with opened(path, os.O_RDWR) as descriptor:
        fcntl.lockf(descriptor, operation | fcntl.LOCK_NB, length, start)


def test_flock_excludes_others_until_it_is_released(file: Path) -> None:
    with opened(file, os.O_RDWR) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        assert in_child(lambda: flock(file, fcntl.LOCK_SH)) == "EAGAIN"
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        assert in_child(lambda: flock(file, fcntl.LOCK_EX)) == "ok"


def test_flock_can_be_shared(file: Path) -> None:
    with opened(file, os.O_RDONLY) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        assert in_child(lambda: flock(file, fcntl.LOCK_SH)) == "ok"
        assert in_child(lambda: flock(file, fcntl.LOCK_EX)) == "EAGAIN"


def test_flock_ends_with_close(file: Path) -> None:
    with opened(file, os.O_RDWR) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    with opened(file, os.O_RDWR) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_flock_is_of_the_open_file_not_the_process(file: Path) -> None:
    with opened(file, os.O_RDWR) as one, opened(file, os.O_RDWR) as two:
        fcntl.flock(one, fcntl.LOCK_EX)
        with fails(errno.EAGAIN):
            fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_record_locks_exclude_by_range(file: Path) -> None:
    with opened(file, os.O_RDWR) as descriptor:
        fcntl.lockf(descriptor, fcntl.LOCK_EX, 4, 2)
        assert in_child(lambda: lockf(file, fcntl.LOCK_EX, 1, 5)) == "EAGAIN"
        assert in_child(lambda: lockf(file, fcntl.LOCK_EX, 2, 0)) == "ok"
        assert in_child(lambda: lockf(file, fcntl.LOCK_EX, 0, 6)) == "ok"
        fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, 3)
        assert in_child(lambda: lockf(file, fcntl.LOCK_EX, 1, 3)) == "ok"
        assert in_child(lambda: lockf(file, fcntl.LOCK_EX, 1, 2)) == "EAGAIN"


def test_the_holder_of_a_record_lock_is_told(file: Path) -> None:
    with opened(file, os.O_RDWR) as descriptor:
        fcntl.lockf(descriptor, fcntl.LOCK_EX, 4, 2)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                with opened(file, os.O_RDWR) as own:
                    asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
                    os.write(writer, fcntl.fcntl(own, fcntl.F_GETLK, asked))
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        os.close(writer)
        kind, _, start, length, holder = struct.unpack("hhqqi4x", os.read(reader, 100))
        os.close(reader)
    assert (kind, start, length, holder) == (fcntl.F_WRLCK, 2, 4, os.getpid())


def test_record_locks_end_when_any_descriptor_of_the_process_is_closed(file: Path) -> None:
    with opened(file, os.O_RDWR) as descriptor:
        fcntl.lockf(descriptor, fcntl.LOCK_EX)
        with opened(file, os.O_RDONLY):
            pass
        assert in_child(lambda: lockf(file, fcntl.LOCK_EX, 0, 0)) == "ok"


def test_locks_of_open_file_descriptions_exclude_one_another(file: Path) -> None:
    wanted = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    with opened(file, os.O_RDWR) as one, opened(file, os.O_RDWR) as two:
        fcntl.fcntl(one, F_OFD_SETLK, wanted)
        with fails(errno.EAGAIN):
            fcntl.fcntl(two, F_OFD_SETLK, wanted)


def test_a_lock_that_is_waited_for_is_granted(file: Path) -> None:
    ready, started = os.pipe()
    with opened(file, os.O_RDWR) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        child = os.fork()
        if child == 0:
            try:
                os.close(descriptor)
                with opened(file, os.O_RDWR) as own:
                    os.write(started, b"x")
                    fcntl.flock(own, fcntl.LOCK_EX)
                    os.write(own, b"child")
            finally:
                os._exit(0)
        os.read(ready, 1)
        os.pwrite(descriptor, b"mother", 0)
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.waitpid(child, 0)
    os.close(ready)
    os.close(started)
    assert file.read_bytes()[:6] == b"childr"
