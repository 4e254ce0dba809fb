"""Compression: exact, bounded, and only where it pays."""

from __future__ import annotations

import os
import random
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vaultfs.crypto.compression import compress, decompress
from vaultfs.errors import ChunkIntegrityError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


@given(st.binary(max_size=50), st.integers(1, 3000))
def test_what_was_compressed_expands(piece: bytes, count: int) -> None:
    data = piece * count
    packed = compress(data)
    if packed is not None:
        assert len(data) - len(packed) >= len(data) / 16
        assert decompress(packed, len(data)) == data


def test_text_is_compressed() -> None:
    packed = compress(memoryview(b"all work and no play " * 6000))
    assert packed is not None
    assert len(packed) < 1000


@pytest.mark.parametrize("size", [0, 1, 20, 4096, 131072])
def test_random_bytes_are_left_alone(size: int) -> None:
    assert compress(os.urandom(size)) is None


def test_a_saving_below_a_sixteenth_is_left_alone() -> None:
    """4096 bytes of which 1/16 is a run save a little less than that, because the frame costs some bytes."""
    noise = random.Random(1).randbytes(4096)
    assert compress(noise[:3840] + bytes(256)) is None
    assert compress(noise[:3700] + bytes(396)) is not None


@pytest.mark.parametrize("length", [0, 1, 5999, 6001, 1 << 20])
def test_another_length_is_noticed(length: int) -> None:
    packed = compress(b"abcdef" * 1000)
    assert packed is not None
    with pytest.raises(ChunkIntegrityError):
        decompress(packed, length)


def test_a_bomb_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame of 1 GiB expands to no more than the chunk's length and one byte."""
    asked: list[int] = []
    genuine = zstd.ZstdDecompressor

    class Counting:
        def __init__(self, **options: object) -> None:
            self.inner = genuine(**options)  # type: ignore[arg-type]

        def decompress(self, data: bytes, max_length: int) -> bytes:
            plain = self.inner.decompress(data, max_length)
            asked.append(len(plain))
            return plain

        @property
        def eof(self) -> bool:
            return self.inner.eof

    monkeypatch.setattr(zstd, "ZstdDecompressor", Counting)
    compressor = zstd.ZstdCompressor(level=1)
    bomb = b"".join(compressor.compress(bytes(1 << 20)) for _ in range(64)) + compressor.flush()
    with pytest.raises(ChunkIntegrityError):
        decompress(bomb, 1000)
    assert asked == [1001]


def test_a_frame_with_a_huge_window_is_refused() -> None:
    compressor = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: 27})
    frame = compressor.compress(b"x" * 100) + compressor.flush()
    with pytest.raises(ChunkIntegrityError):
        decompress(frame, 100)


def test_frames_that_are_cut_grown_or_two_are_noticed() -> None:
    packed = compress(b"abcdef" * 1000)
    assert packed is not None
    for size in range(len(packed)):
        with pytest.raises(ChunkIntegrityError):
            decompress(packed[:size], 6000)
    for more in (b"\0", packed):
        with pytest.raises(ChunkIntegrityError):
            decompress(packed + more, 6000)


def test_a_frame_without_its_end_is_noticed() -> None:
    """All of the data is there; but then something was cut off."""
    compressor = zstd.ZstdCompressor(level=1)
    packed = compressor.compress(b"abcdef" * 1000, mode=zstd.ZstdCompressor.FLUSH_BLOCK)
    assert decompress(packed + compressor.flush(), 6000) == b"abcdef" * 1000
    with pytest.raises(ChunkIntegrityError):
        decompress(packed, 6000)


@given(st.binary(max_size=300), st.integers(1, 10000))
def test_garbage_raises_one_error(data: bytes, length: int) -> None:
    with pytest.raises(ChunkIntegrityError):
        decompress(data, length)


def test_two_threads_compress_at_once() -> None:
    wrong: list[bytes] = []

    def work(piece: bytes) -> None:
        for count in range(1000, 1200):
            packed = compress(piece * count)
            if packed is None or decompress(packed, len(piece) * count) != piece * count:
                wrong.append(piece)

    threads = [threading.Thread(target=work, args=(piece,)) for piece in (b"0123456789", b"abcdefghij")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
