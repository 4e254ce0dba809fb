"""Frames are sealed in portions that are neither too large nor lone heads."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from vaultfs.mesh.outgoing_lot import LOT_SEND_BYTES, OutgoingLot

HEAD = b"head"


class Sealer:
    """Adds a byte to all that is sealed, as TLS adds some."""

    def __init__(self) -> None:
        self._held = b""

    def seal(self, data: memoryview) -> None:
        self._held += b"!" + data

    def take(self) -> bytes:
        held, self._held = self._held, b""
        return held


def portions(*frames: Sequence[bytes]) -> list[bytes]:
    left = iter(frames)
    lot, sealer, found = OutgoingLot(lambda: next(left, None)), Sealer(), []
    while lot.begin_frame():
        assert lot.has_sent
        while not lot.is_between_frames:
            lot.seal_next(sealer.seal, sealer.take)
            found.append(bytes(lot.sealed))
            lot.sealed = lot.sealed[len(lot.sealed) :]
    return found


def test_a_head_goes_along_with_its_bytes() -> None:
    assert portions((HEAD, b"bytes"), (HEAD,)) == [b"!head!bytes", b"!head"]


@pytest.mark.parametrize("head", [(), (HEAD,)])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_no_portion_is_larger_than_one_part_and_its_head(head: tuple[bytes, ...], count: int) -> None:
    for more in (-1, 0, 1):
        data = bytes(count * LOT_SEND_BYTES + more)
        sizes = [len(each) for each in portions((*head, data))]
        assert len(sizes) == count + (more > 0)
        assert max(sizes) <= LOT_SEND_BYTES + 1 + len(b"!" + HEAD) * len(head)


def test_a_frame_is_under_way_until_all_of_it_was_sent() -> None:
    lot, sealer = OutgoingLot(lambda: (HEAD, b"x")), Sealer()
    states = [(lot.is_between_frames, lot.has_sent)]
    lot.begin_frame()
    states.append((lot.is_between_frames, lot.has_sent))
    lot.seal_next(sealer.seal, sealer.take)
    states.append((lot.is_between_frames, lot.has_sent))
    lot.sealed = lot.sealed[-1:]
    states.append((lot.is_between_frames, lot.has_sent))
    lot.sealed = lot.sealed[1:]
    states.append((lot.is_between_frames, lot.has_sent))
    assert states == [(True, False), (False, True), (False, True), (False, True), (True, True)]


def test_what_cannot_be_sealed_stays_under_way() -> None:
    def refuse(_: memoryview) -> None:
        raise OSError("broken")

    lot = OutgoingLot(lambda: (HEAD,))
    lot.begin_frame()
    with pytest.raises(OSError, match="broken"):
        lot.seal_next(refuse, bytes)
    assert not lot.is_between_frames
