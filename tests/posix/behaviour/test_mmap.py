"""Memory mappings."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from .calls import opened

SIZE = 300_000


@pytest.fixture
def file(mounted: Path) -> Path:
    path = mounted / "file"
    path.write_bytes(b"." * SIZE)
    return path


def test_stores_into_a_shared_mapping_reach_the_file(file: Path) -> None:
    with opened(file, os.O_RDWR) as descriptor, mmap.mmap(descriptor, SIZE) as memory:
        memory[200_000:200_004] = b"here"
        assert os.pread(descriptor, 6, 199_999) == b".here."
        memory.flush()
    assert file.read_bytes() == b"." * 200_000 + b"here" + b"." * (SIZE - 200_004)


def test_a_mapping_outlives_its_descriptor(file: Path) -> None:
    with opened(file, os.O_RDWR) as descriptor:
        memory = mmap.mmap(descriptor, SIZE)
    memory[0:5] = b"after"
    memory.close()
    assert file.read_bytes()[:6] == b"after."


def test_writes_are_seen_in_the_mapping(file: Path) -> None:
    with opened(file, os.O_RDWR) as descriptor, mmap.mmap(descriptor, SIZE, prot=mmap.PROT_READ) as memory:
        assert memory[1000:1001] == b"."
        os.pwrite(descriptor, b"changed", 1000)
        assert memory[999:1008] == b".changed."


def test_another_process_sees_the_stores(file: Path) -> None:
    with opened(file, os.O_RDWR) as descriptor, mmap.mmap(descriptor, SIZE) as memory:
        child = os.fork()
        if child == 0:
            try:
                with opened(file, os.O_RDWR) as own, mmap.mmap(own, SIZE) as view:
                    view[5000:5005] = b"child"
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        assert memory[4999:5006] == b".child."


def test_private_stores_stay_private(file: Path) -> None:
    with opened(file, os.O_RDWR) as descriptor, mmap.mmap(descriptor, SIZE, flags=mmap.MAP_PRIVATE) as memory:
        memory[0:4] = b"mine"
        assert os.pread(descriptor, 4, 0) == b"...."
    assert file.read_bytes() == b"." * SIZE


def test_the_rest_of_the_last_page_is_zero_and_stays_out_of_the_file(mounted: Path) -> None:
    file = mounted / "file"
    file.write_bytes(b"short")
    with opened(file, os.O_RDWR) as descriptor:
        with mmap.mmap(descriptor, 5) as memory:
            assert memory[:] == b"short"
        # mmap.mmap refuses a length beyond the file, so the file is longer for a moment.
        os.ftruncate(descriptor, mmap.PAGESIZE)
        with mmap.mmap(descriptor, mmap.PAGESIZE) as memory:
            os.ftruncate(descriptor, 5)
            assert memory[:] == b"short" + bytes(mmap.PAGESIZE - 5)
            memory[100:104] = b"junk"
            memory.flush()
            assert os.fstat(descriptor).st_size == 5
    assert file.read_bytes() == b"short"


def test_a_hole_can_be_mapped_and_filled(mounted: Path) -> None:
    file = mounted / "file"
    with opened(file, os.O_CREAT | os.O_RDWR) as descriptor:
        os.ftruncate(descriptor, 10 << 20)
        with mmap.mmap(descriptor, 10 << 20) as memory:
            assert memory[5 << 20] == 0
            memory[5 << 20] = 7
    data = file.read_bytes()
    assert (data[5 << 20], data.count(0)) == (7, (10 << 20) - 1)


def test_an_unlinked_file_can_be_mapped(file: Path) -> None:
    with opened(file, os.O_RDWR) as descriptor:
        file.unlink()
        with mmap.mmap(descriptor, SIZE) as memory:
            memory[0:4] = b"data"
            memory.flush()
        assert os.pread(descriptor, 5, 0) == b"data."


def test_a_store_moves_mtime(file: Path) -> None:
    os.utime(file, ns=(1, 2))
    with opened(file, os.O_RDWR) as descriptor, mmap.mmap(descriptor, SIZE) as memory:
        memory[0:1] = b"x"
        memory.flush()
    assert file.stat().st_mtime_ns > 2
