"""Whatever happens to the file, and however it is read: nobody gets a whole body of other bytes than the name's."""

from __future__ import annotations

import io
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sync.fabricated import Fabricated
from vaultfs.errors import IntegrityError, StorageError
from vaultfs.ids import SegmentName
from vaultfs.remotes.bodies import PIECE_BYTES, opened
from vaultfs.storage.segment_reader import punch
from vaultfs.sync import sealed_source
from vaultfs.sync.sealed_source import SegmentSource, open_source
from vaultfs.sync.workers import StoppedError

SIZE = 2 * PIECE_BYTES + 4567


@pytest.fixture
def sealed(scratch: Path) -> Sealed:
    return Sealed(Fabricated(scratch / "vault"))


class Sealed:
    """A vault with a segment of three pieces."""

    def __init__(self, vault: Fabricated, size: int = SIZE) -> None:
        self.vault = vault
        self.name = vault.segment(size)
        self.data = vault.segments[self.name]

    @contextmanager
    def reading(self) -> Iterator[tuple[SegmentSource, BinaryIO]]:
        with open_source(self.vault.layout, self.name, len(self.data)) as source, source.open() as file:
            yield source, file

    def write(self, offset: int, data: bytes) -> None:
        path = self.vault.layout.sealed_path(self.name)
        path.chmod(0o600)
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(data)

    def resize(self, size: int) -> None:
        path = self.vault.layout.sealed_path(self.name)
        path.chmod(0o600)
        os.truncate(path, size)

    def flip(self, offset: int) -> None:
        self.write(offset, bytes([self.data[offset] ^ 1]))


def taken(file: BinaryIO, size: int = 64 << 10) -> bytes:
    """What a library gets that reads until there is no more, or an error."""
    got = b""
    try:
        while piece := file.read(size):
            got += piece
    except IntegrityError:
        pass
    return got


def test_it_gives_the_segment_as_often_as_wanted(sealed: Sealed) -> None:
    with sealed.reading() as (source, file):
        assert source.size_bytes == SIZE
        assert file.read() == sealed.data
        assert file.read(1) == b""
        file.seek(0)
        assert taken(file, 1000) == sealed.data
        assert file.seek(0, io.SEEK_END) == SIZE
        assert file.read() == b""
        file.seek(0)
        with source.open() as other:
            assert other.read(10) == file.read(10) == sealed.data[:10]
        assert source.failure is None


def test_libraries_find_a_file(sealed: Sealed) -> None:
    with open_source(sealed.vault.layout, sealed.name, SIZE) as source, opened("key", source) as file:
        assert len(file) == SIZE
        assert file.readall() == sealed.data
        assert file.seek(0) == 0
        assert file.read(5) == sealed.data[:5]
        file.check()


@pytest.mark.parametrize("offset", [0, PIECE_BYTES - 1, PIECE_BYTES, SIZE - 1])
@pytest.mark.parametrize("size", [1000, 64 << 10, SIZE, -1])
def test_a_wrong_bit_keeps_the_end_back(sealed: Sealed, offset: int, size: int) -> None:
    sealed.flip(offset)
    with sealed.reading() as (source, file):
        assert len(taken(file, size)) <= 2 * PIECE_BYTES
        assert isinstance(source.failure, IntegrityError)
        assert "damaged" in str(source.failure)
        sealed.write(0, sealed.data)
        file.seek(0)
        with pytest.raises(IntegrityError):  # it was damaged, so whoever reads it again may meet that again
            file.read()


@pytest.mark.parametrize("offset", [0, PIECE_BYTES + 5, SIZE - 1])
def test_the_second_reading_is_hashed_too(sealed: Sealed, offset: int) -> None:
    with sealed.reading() as (source, file):
        assert taken(file) == sealed.data
        sealed.flip(offset)
        file.seek(0)
        assert len(taken(file)) < SIZE
        assert source.failure is not None


@pytest.mark.parametrize("read", [0, 100, PIECE_BYTES, PIECE_BYTES + 1, 2 * PIECE_BYTES])
def test_a_file_that_changes_while_it_is_read(sealed: Sealed, read: int) -> None:
    with sealed.reading() as (_, file):
        begin = file.read(read)
        sealed.flip(SIZE - 1)
        assert len(begin + taken(file)) < SIZE
    sealed.write(0, sealed.data)
    with sealed.reading() as (_, file):
        begin = file.read(read)
        if read:
            sealed.flip(0)  # which was read before
            assert begin + taken(file) == sealed.data


@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES, SIZE - 1])
def test_a_file_that_is_cut_while_it_is_read(sealed: Sealed, size: int) -> None:
    with sealed.reading() as (source, file):
        begin = file.read(1)
        sealed.resize(size)
        assert len(begin + taken(file)) < SIZE
        assert f"has {size} bytes instead of {SIZE}" in str(source.failure)


def test_a_file_that_grows_while_it_is_read_still_has_the_right_bytes(sealed: Sealed) -> None:
    with sealed.reading() as (source, file):
        begin = file.read(1)
        sealed.resize(SIZE + 10)
        assert begin + taken(file) == sealed.data
        assert source.failure is None
    with pytest.raises(IntegrityError, match="bytes instead of"), sealed.reading():
        pass


def test_a_segment_without_bytes(scratch: Path) -> None:
    vault = Fabricated(scratch / "vault")
    empty = vault.segment(data=b"")
    with open_source(vault.layout, empty, 0) as source, source.open() as file:
        assert file.read() == b""
    other = SegmentName("a" * 64)
    path = vault.layout.sealed_path(other)
    path.parent.mkdir()
    path.touch()
    with open_source(vault.layout, other, 0) as source:
        with pytest.raises(IntegrityError):
            source.open()
        assert source.failure is not None


def test_holes_are_told_apart(sealed: Sealed) -> None:
    assert punch(sealed.vault.layout.sealed_path(sealed.name), 8192, 16384)
    with sealed.reading() as (source, file):
        taken(file)
        assert "has holes" in str(source.failure)


def test_there_is_no_going_to_the_middle(sealed: Sealed) -> None:
    with sealed.reading() as (_, file):
        for position in (PIECE_BYTES + 1, SIZE - 1):
            with pytest.raises(io.UnsupportedOperation):
                file.seek(position)
        file.seek(0)
        assert taken(file) == sealed.data
        with pytest.raises(io.UnsupportedOperation):
            file.seek(5)


def test_a_disk_that_fails(sealed: Sealed, monkeypatch: pytest.MonkeyPatch) -> None:
    with sealed.reading() as (source, file):
        file.read(1)
        with monkeypatch.context() as patch:
            patch.setattr(os, "preadv", lambda *_: (_ for _ in ()).throw(OSError(5, "Input/output error")))
            with pytest.raises(StorageError, match=sealed.name):
                file.read()
        assert isinstance(source.failure, StorageError)


def test_who_stops_it_is_no_failure_of_the_segment(sealed: Sealed) -> None:
    asked = iter([None])

    def check() -> None:
        if next(asked, 1) is not None:
            raise StoppedError("stopped")

    with open_source(sealed.vault.layout, sealed.name, SIZE, check) as source, source.open() as file:
        assert file.read(PIECE_BYTES) == sealed.data[:PIECE_BYTES]
        with pytest.raises(StoppedError):
            file.read(1)
        assert source.failure is None


_steps = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.integers(-1, 300)),
        st.tuples(st.just("rewind"), st.just(0)),
        st.tuples(st.just("flip"), st.integers(0, 199)),
        st.tuples(st.just("mend"), st.just(0)),
        st.tuples(st.just("resize"), st.integers(0, 260)),
        st.tuples(st.just("seek"), st.integers(0, 210)),
    ),
    max_size=30,
)


@given(steps=_steps)
def test_a_whole_body_is_the_right_one(steps: list[tuple[str, int]], tmp_path_factory: pytest.TempPathFactory) -> None:
    """With pieces of 64 bytes: what was read since the last beginning is either not all of it, or right."""
    sealed = Sealed(Fabricated(tmp_path_factory.mktemp("vault"), seed=random.randrange(1 << 30)), 200)
    body = b""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sealed_source, "PIECE_BYTES", 64)
        with sealed.reading() as (_, file):
            for step, number in steps:
                try:
                    if step == "read":
                        body += file.read(number)
                    elif step == "rewind":
                        file.seek(0)
                        body = b""
                    elif step == "seek":
                        body = body[: file.seek(number)]
                    elif step == "flip":
                        sealed.write(number, bytes([sealed.data[number] ^ 1]))
                    elif step == "mend":
                        sealed.resize(200)
                        sealed.write(0, sealed.data)
                    else:
                        sealed.resize(number)
                except (IntegrityError, io.UnsupportedOperation):
                    file.seek(0)
                    body = b""
                if len(body) == 200:
                    assert body == sealed.data
