"""An object on its way out: in frames, and never another number of bytes than was announced."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from vaultfs.errors import RemoteError
from vaultfs.mesh.frames import DATA_BYTES
from vaultfs.mesh.message_codec import data_frame
from vaultfs.mesh.outgoing_object import DataSource


def reading(*pieces: bytes) -> Callable[[], bytes]:
    left = iter(pieces)
    return lambda: next(left, b"")


def frames_of(source: DataSource) -> list[bytes]:
    found = []
    while (frame := source.next_frame()) is not None:
        found.append(b"".join(frame))
    return found


def test_pieces_are_cut_to_frames_and_not_joined() -> None:
    large = bytes(2 * DATA_BYTES + 5)
    source = DataSource(reading(b"abc", large, b"d"), len(large) + 4)
    wanted = [b"abc", bytes(DATA_BYTES), bytes(DATA_BYTES), bytes(5), b"d"]
    assert frames_of(source) == [data_frame(part) for part in wanted]
    assert source.sent_bytes == len(large) + 4


def test_nothing_is_read_beyond_the_end() -> None:
    reads: list[int] = []
    source = DataSource(lambda: reads.append(1) or b"abc", 3)  # type: ignore[func-returns-value]
    assert frames_of(source) == [data_frame(b"abc")]
    assert source.next_frame() is None
    assert len(reads) == 1


@pytest.mark.parametrize("pieces", [(b"abc", b"de"), (b"abcde",), (b"abc",)])
def test_another_length_is_told_before_a_byte_too_many(pieces: tuple[bytes, ...]) -> None:
    source = DataSource(reading(*pieces), 4)
    with pytest.raises(RemoteError, match="changed its length"):
        frames_of(source)
    assert source.sent_bytes <= 4


def test_nothing_more_is_begun_in_vain() -> None:
    answers = iter([False, True])
    source = DataSource(reading(b"abc", b"def"), 6, lambda: next(answers))
    assert frames_of(source) == [data_frame(b"abc")]
    assert source.sent_bytes == 3
