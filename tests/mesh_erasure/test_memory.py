"""Whatever the size of a segment, a few blocks are held."""

from __future__ import annotations

import io
import os
import tracemalloc
from collections.abc import Callable
from io import BufferedRandom
from pathlib import Path

import pytest

from vaultfs.errors import IntegrityError
from vaultfs.mesh.erasure import decode, encode, find_wrong, rebuild
from vaultfs.mesh.share_format import BLOCK_BYTES

from .shares import flipped
from .specified import coded_segment, some_segment

SIZE_BYTES = 12 << 20
SPARE_BYTES = 256 << 10
"""For hashers, zfec's tables, buffers of files."""


def peak_bytes(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def drop(data: bytes) -> None:
    pass


@pytest.mark.parametrize("coding", ["4/7", "1/3", "16/20"])
def test_memory_is_bounded(tmp_path: Path, coding: str) -> None:
    segment = some_segment(SIZE_BYTES + 1)
    coded = coded_segment(segment, coding)
    needed, total = coded.coding.needed, coded.coding.total
    bound = (2 * needed + total) * BLOCK_BYTES + SPARE_BYTES
    (tmp_path / "segment").write_bytes(segment)
    del segment
    everything = dict.fromkeys(range(total), drop)
    with (tmp_path / "segment").open("rb") as source:
        assert peak_bytes(lambda: encode(source, coded, everything)) < bound
        source.seek(0)
        files = [(tmp_path / str(index)).open("w+b") for index in range(total)]
        try:
            encode(source, coded, {index: file.write for index, file in enumerate(files)})
            for file in files:
                file.flush()

            def last() -> list[BufferedRandom]:
                for file in files:
                    file.seek(0)
                return files[-needed:]

            assert peak_bytes(lambda: decode(coded, last(), drop)) < bound
            assert peak_bytes(lambda: rebuild(coded, last(), everything)) < bound
            files[0].seek(100)
            changed = flipped(os.pread(files[0].fileno(), 1, 100), 0)
            files[0].write(changed)
            files[0].flush()
            assert peak_bytes(lambda: find_wrong(coded, files)) < bound
        finally:
            for file in files:
                file.close()


def test_a_share_without_end_is_not_read(tmp_path: Path) -> None:
    segment = some_segment(1000)
    coded = coded_segment(segment, "1/1")
    with (tmp_path / "share").open("w+b") as file:
        encode(io.BytesIO(segment), coded, {0: file.write})
        file.truncate(1 << 40)
        file.seek(0)
        with pytest.raises(IntegrityError, match="too long"):
            decode(coded, [file], drop)
        assert file.tell() <= 1 << 20
        with pytest.raises(IntegrityError, match="no 1 of 1"):
            find_wrong(coded, [file])
