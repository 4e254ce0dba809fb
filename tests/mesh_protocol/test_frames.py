"""Frames: cut anywhere, they come out the same; what is no frame is refused before it is kept."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vaultfs.mesh.frames import (
    DATA_BYTES,
    FIRST_PAYLOAD_BYTES,
    LENGTH_BYTES,
    MAX_PAYLOAD_BYTES,
    FrameDecoder,
    FrameError,
    frame,
)


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=20), st.data())
def test_frames_come_out_however_the_stream_is_cut(payloads: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(map(frame, payloads))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=30)))
    decoder = FrameDecoder()
    found: list[bytes] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        decoder.feed(stream[start:end])
        found += decoder.payloads()
    assert found == payloads
    assert decoder.held_bytes == 0


def test_many_frames_in_one_piece() -> None:
    decoder = FrameDecoder()
    decoder.feed(b"".join(frame(bytes([number])) for number in range(200)))
    assert list(decoder.payloads()) == [bytes([number]) for number in range(200)]


def test_what_is_held_is_counted() -> None:
    decoder = FrameDecoder()
    decoder.feed(frame(b"abc")[:5])
    assert list(decoder.payloads()) == []
    assert decoder.held_bytes == 5


@pytest.mark.parametrize("length", [0, FIRST_PAYLOAD_BYTES + 1, MAX_PAYLOAD_BYTES, 0xFFFFFFFF])
def test_a_length_out_of_bounds_is_refused_by_itself(length: int) -> None:
    decoder = FrameDecoder(FIRST_PAYLOAD_BYTES)
    decoder.feed(length.to_bytes(LENGTH_BYTES, "big"))
    with pytest.raises(FrameError, match=str(length)):
        list(decoder.payloads())


@pytest.mark.parametrize("limit", [FIRST_PAYLOAD_BYTES, MAX_PAYLOAD_BYTES])
def test_the_longest_payload_passes(limit: int) -> None:
    decoder = FrameDecoder(limit)
    decoder.feed(frame(b"x" * limit))
    assert [len(payload) for payload in decoder.payloads()] == [limit]


def test_the_limit_may_change_between_two_payloads() -> None:
    decoder = FrameDecoder(FIRST_PAYLOAD_BYTES)
    decoder.feed(frame(b"hello") + frame(b"x" * DATA_BYTES))
    payloads = decoder.payloads()
    assert next(payloads) == b"hello"
    decoder.limit_bytes = MAX_PAYLOAD_BYTES
    assert len(next(payloads)) == DATA_BYTES


@pytest.mark.parametrize("payload", [b"", b"x" * (MAX_PAYLOAD_BYTES + 1)])
def test_no_such_frame_is_made(payload: bytes) -> None:
    with pytest.raises(ValueError, match="1 to"):
        frame(payload)
