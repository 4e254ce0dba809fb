"""O_APPEND."""

from __future__ import annotations

import os
from pathlib import Path

from .calls import opened


def test_every_write_goes_to_the_end(mounted: Path) -> None:
    file = mounted / "file"
    file.write_bytes(b"one ")
    with opened(file, os.O_WRONLY | os.O_APPEND) as descriptor:
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, b"two ")
        os.lseek(descriptor, 1, os.SEEK_SET)
        os.write(descriptor, b"three")
    assert file.read_bytes() == b"one two three"


def test_two_appenders_do_not_overwrite_each_other(mounted: Path) -> None:
    file = mounted / "file"
    flags = os.O_CREAT | os.O_WRONLY | os.O_APPEND
    with opened(file, flags) as one, opened(file, flags) as two:
        for _ in range(100):
            os.write(one, b"a" * 777)
            os.write(two, b"b" * 888)
    assert file.read_bytes() == (b"a" * 777 + b"b" * 888) * 100


def test_processes_append_whole_lines(mounted: Path) -> None:
    file = mounted / "file"
    children = []
    for letter in b"abcd":
        child = os.fork()
        if child == 0:
            try:
                with opened(file, os.O_CREAT | os.O_WRONLY | os.O_APPEND) as descriptor:
                    for _ in range(200):
                        os.write(descriptor, bytes([letter]) * 99 + b"\n")
            finally:
                os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    lines = file.read_bytes().splitlines()
    assert sorted(lines) == [bytes([letter]) * 99 for letter in b"abcd" for _ in range(200)]


def test_appending_follows_a_truncation_by_another_descriptor(mounted: Path) -> None:
    file = mounted / "file"
    with opened(file, os.O_CREAT | os.O_WRONLY | os.O_APPEND) as descriptor:
        os.write(descriptor, b"0123456789")
        os.truncate(file, 4)
        os.write(descriptor, b"end")
    assert file.read_bytes() == b"0123end"


def test_reading_and_appending_in_one_descriptor(mounted: Path) -> None:
    file = mounted / "file"
    file.write_bytes(b"abc")
    with opened(file, os.O_RDWR | os.O_APPEND) as descriptor:
        os.write(descriptor, b"def")
        assert os.lseek(descriptor, 0, os.SEEK_CUR) == 6
        assert os.pread(descriptor, 10, 2) == b"cdef"
