"""Bytes of objects come out of their frames wherever the stream is cut; what is another frame is left to others."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vaultfs.mesh.data_frames import DataFrames, Next
from vaultfs.mesh.frames import DATA_BYTES, MAX_PAYLOAD_BYTES, frame
from vaultfs.mesh.message_codec import data_frame, encode
from vaultfs.mesh.messages import Abort, Data, Goodbye

MANY = 1 << 40


class Stream:
    """Gives what has come, in pieces; between two of them nothing is there."""

    def __init__(self, *pieces: bytes, has_ended: bool = False) -> None:
        self.pieces = list(pieces)
        self.has_ended = has_ended

    def read(self, into: memoryview) -> int | None:
        if not self.pieces:
            return 0 if self.has_ended else None
        piece = self.pieces.pop(0)
        if not piece:
            return None
        count = min(len(piece), len(into))
        into[:count] = piece[:count]
        if piece[count:]:
            self.pieces.insert(0, piece[count:])
        return count


def taken(stream: Stream, most_bytes: int = MANY, room_bytes: int = 1000) -> tuple[bytes, Next, DataFrames]:
    """What comes until something else is next; that nothing is there counts only when nothing comes any more."""
    frames = DataFrames(stream.read)
    found = bytearray()
    while True:
        buffer = bytearray(room_bytes)
        following, count = frames.read(memoryview(buffer), most_bytes - len(found))
        found += buffer[:count]
        if following is Next.NOTHING and stream.pieces:
            continue
        if following is not Next.BYTES:
            return bytes(found), following, frames


@given(st.lists(st.binary(min_size=1, max_size=600), max_size=8), st.integers(1, 700), st.data())
def test_bytes_come_out_however_the_stream_is_cut(parts: list[bytes], room_bytes: int, data: st.DataObject) -> None:
    other = encode(Goodbye("soon"))
    stream = b"".join(map(data_frame, parts)) + other
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=30)))
    source = Stream(*(stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)))
    found, following, frames = taken(source, room_bytes=room_bytes)
    assert found == b"".join(parts)
    assert following is Next.OTHER
    assert frames.take_head() + b"".join(source.pieces) == other


@pytest.mark.parametrize("count", [1, 255, 256, 65535, 65536, DATA_BYTES])
def test_every_length_of_a_length(count: int) -> None:
    data = bytes(count)
    found, following, _ = taken(Stream(data_frame(data)), room_bytes=DATA_BYTES)
    assert (found, following) == (data, Next.NOTHING)


def test_the_end_is_told_wherever_it_is() -> None:
    whole = data_frame(b"x" * 300)
    for length in range(len(whole) + 1):
        _, following, _ = taken(Stream(*filter(None, [whole[:length]]), has_ended=True))
        assert following is Next.END, length


def test_after_another_frame_the_next_one_is_read() -> None:
    stream = Stream(encode(Abort(7)), data_frame(b"abc"))
    _, following, frames = taken(stream)
    assert following is Next.OTHER
    rest = stream.pieces.pop(0) if len(stream.pieces) == 2 else b""
    assert frames.take_head() + rest == encode(Abort(7))
    buffer = bytearray(3)
    assert frames.read(memoryview(buffer), 3) == (Next.BYTES, 3)
    assert buffer == b"abc"


ODD = {
    "more than may come": data_frame(b"12345"),
    "an element more": frame(b"\x93\x05\xc4\x01x\x01"),
    "a length in more bytes than it needs, which counts": frame(b"\x92\x05\xc5\x00"),
    "no bytes": frame(b"\x92\x05\xc4\x00"),
    "more in the frame than it says": frame(b"\x92\x05\xc4\x01xy"),
    "less in the frame than it says": frame(b"\x92\x05\xc4\x03xy"),
    "text": frame(b"\x92\x05\xa1x."),
}


@pytest.mark.parametrize("stream", ODD.values(), ids=ODD.keys())
def test_another_encoding_is_left_to_others(stream: bytes) -> None:
    source = Stream(stream, has_ended=True)
    found, following, frames = taken(source, most_bytes=4)
    assert (found, following) == (b"", Next.OTHER)
    assert frames.take_head() + b"".join(source.pieces) == stream


def test_more_than_a_frame_may_have_is_left_to_others() -> None:
    too_many = (DATA_BYTES + 1).to_bytes(4, "big")
    stream = (DATA_BYTES + 8).to_bytes(4, "big") + b"\x92\x05\xc6" + too_many
    _, following, _ = taken(Stream(stream))
    assert following is Next.OTHER


@pytest.mark.parametrize(("length", "is_odd"), [(0, True), (4, True), (5, False), (MAX_PAYLOAD_BYTES, False),
                                                (MAX_PAYLOAD_BYTES + 1, True), (0xFFFFFFFF, True)])  # fmt: skip
def test_a_length_that_is_none_is_told_by_itself(length: int, is_odd: bool) -> None:
    _, following, frames = taken(Stream(length.to_bytes(4, "big")))
    assert following is (Next.OTHER if is_odd else Next.NOTHING)
    assert frames.take_head() == length.to_bytes(4, "big")


def test_the_shortest_frame_is_no_odd_one() -> None:
    assert len(encode(Data(b"x"))) == 4 + 5
    found, _, _ = taken(Stream(data_frame(b"x")[:4], b"", data_frame(b"x")[4:]))
    assert found == b"x"
