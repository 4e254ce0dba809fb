from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vaultfs.errors import IntegrityError, RemoteError, RemoteRefusedError, StorageError
from vaultfs.remotes.bodies import PIECE_BYTES, MeteredSource, SourceReader, exact, opened, read_all, wanted_bytes
from vaultfs.remotes.store import BytesSource

from .data import body


def reader(data: bytes, size_bytes: int | None = None) -> SourceReader:
    return SourceReader(io.BytesIO(data), len(data) if size_bytes is None else size_bytes, "it")


class TestSourceReader:
    def test_it_is_a_file(self) -> None:
        made = reader(b"0123456789")
        assert len(made) == 10
        assert made.readable()
        assert made.seekable()
        assert made.read(4) == b"0123"
        assert made.tell() == 4
        assert made.seek(0) == 0
        assert made.seek(-2, io.SEEK_END) == 8
        assert made.seek(-1, io.SEEK_CUR) == 7
        assert made.read() == b"789"
        assert made.read(1) == b""
        assert made.read(0) == b""
        made.seek(0)
        assert made.readall() == b"0123456789"
        made.check()

    @pytest.mark.parametrize(("data", "size_bytes"), [(b"12345", 6), (b"12345", 4), (b"", 1), (b"1", 0)])
    def test_a_wrong_length_is_remembered(self, data: bytes, size_bytes: int) -> None:
        made = reader(data, size_bytes)
        with pytest.raises(IntegrityError):
            made.readall()
        with pytest.raises(IntegrityError):
            made.check()

    def test_an_error_is_remembered(self) -> None:
        class Broken(io.BytesIO):
            def read(self, size: int | None = -1, /) -> bytes:
                raise OSError(5, "Input/output error")

        made = SourceReader(Broken(b"12345"), 5, "it")
        with pytest.raises(StorageError, match="cannot read it"):
            made.read(1)
        with pytest.raises(StorageError):
            made.check()

    def test_meters_hear_only_of_what_is_sent(self) -> None:
        heard: list[int] = []
        source = MeteredSource(MeteredSource(BytesSource(bytes(10)), heard.append), lambda count: heard.append(-count))
        with opened("key", source) as made:
            made.is_sending = False
            made.read()
            assert heard == []
            made.seek(0)
            made.is_sending = True
            made.read(3)
            made.read(7)
            assert made.read(1) == b""
        assert sorted(heard) == [-7, -3, 3, 7]

    def test_an_error_of_a_meter_is_remembered(self) -> None:
        def stop(_count: int) -> None:
            raise RemoteRefusedError("stopped")

        with opened("key", MeteredSource(BytesSource(b"x"), stop)) as made:
            with pytest.raises(RemoteRefusedError):
                made.read()
            with pytest.raises(RemoteRefusedError):
                made.check()

    def test_read_all(self) -> None:
        data = body(3 * PIECE_BYTES + 1)
        assert read_all("key", BytesSource(data)) == data


class TestExact:
    @given(st.lists(st.integers(0, 3 * PIECE_BYTES), max_size=4))
    def test_pieces_are_cut(self, sizes: list[int]) -> None:
        pieces = [bytes(size) for size in sizes]
        came = list(exact("it", pieces, sum(sizes)))
        assert sum(len(piece) for piece in came) == sum(sizes)
        assert all(0 < len(piece) <= PIECE_BYTES for piece in came)

    @pytest.mark.parametrize("expected", [0, 4, 6, 11])
    def test_a_wrong_sum(self, expected: int) -> None:
        came: list[bytes] = []
        with pytest.raises(RemoteError):
            came.extend(exact("it", [b"12345", b"67890"][: 2 if expected != 4 else 1], expected))
        assert sum(len(piece) for piece in came) <= expected


@given(st.integers(0, 100), st.integers(0, 120), st.none() | st.integers(0, 120))
def test_wanted_bytes(size_bytes: int, offset: int, length: int | None) -> None:
    data = bytes(size_bytes)
    is_within = offset <= size_bytes and (length is None or offset + length <= size_bytes)
    if is_within:
        part = data[offset : None if length is None else offset + length]
        assert wanted_bytes("it", size_bytes, offset, length) == len(part)
    else:
        with pytest.raises(RemoteError):
            wanted_bytes("it", size_bytes, offset, length)
