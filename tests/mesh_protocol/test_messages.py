"""Messages: bounds, unknown kinds, garbage; errors to codes and back."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vaultfs.errors import (
    IntegrityError,
    NoSpaceError,
    ObjectExistsError,
    ObjectMissingError,
    RemoteError,
    RemoteRefusedError,
    RemoteUnreachableError,
    StorageError,
    VaultError,
)
from vaultfs.mesh import failure_codes, message_codec, messages
from vaultfs.mesh.failure_codes import Code
from vaultfs.mesh.frames import DATA_BYTES, FrameDecoder, FrameError
from vaultfs.mesh.message_codec import data_frame, decode_from_caller, decode_from_peer, encode
from vaultfs.mesh.messages import Data, Fail, Hello, Ping

HASH = bytes(32)
VAULT = bytes(16)


def packed(*elements: Any) -> bytes:
    return msgspec.msgpack.encode(elements)


@given(st.binary(max_size=300))
def test_garbage_is_a_frame_error_or_a_message(payload: bytes) -> None:
    for decode in (decode_from_caller, decode_from_peer):
        try:
            found = decode(payload)
        except FrameError:
            continue
        assert isinstance(found, messages.Message)


@pytest.mark.parametrize(
    "payload",
    [
        packed(99, 1),
        packed(),
        packed("ping"),
        packed(10),
        packed(10, -1),
        packed(10, 1 << 32),
        packed(10, "1"),
        packed(12, 1, bytes(15), b""),
        packed(12, 1, VAULT, bytes(32 * 4096 + 1)),
        packed(16, 1, VAULT, ""),
        packed(16, 1, VAULT, "x" * 513),
        packed(18, 1, VAULT, "k", -1, None),
        packed(18, 1, VAULT, "k", 0, 1 << 63),
        packed(20, 1, VAULT, "k", 1, bytes(31), False, 0),
        packed(25, 1, VAULT, [], HASH, bytes(64)),
        packed(25, 1, VAULT, ["k"] * 257, HASH, bytes(64)),
        packed(25, 1, VAULT, ["k"], HASH, bytes(63)),
        packed(28, 1, VAULT, HASH, []),
        packed(28, 1, VAULT, HASH, [[HASH, 0, 1]] * 257),
        packed(5, b""),
        packed(1, "vaultfs mesh", [], [], ""),
        b"\x91" * 100_000,
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
    ],
)
def test_what_a_caller_may_not_say(payload: bytes) -> None:
    with pytest.raises(FrameError):
        decode_from_caller(payload)


@pytest.mark.parametrize("name", ["Welcome", "Fail", "Pong", "Holds", "Body", "Go", "Stored"])
def test_a_caller_says_nothing_that_a_peer_says(name: str) -> None:
    samples: dict[str, messages.Message] = {
        "Welcome": messages.Welcome(1, (), "", True),
        "Fail": Fail(1, Code.BUSY, ""),
        "Pong": messages.Pong(1),
        "Holds": messages.Holds(1, ()),
        "Body": messages.Body(1, 2, 2),
        "Go": messages.Go(1, 0),
        "Stored": messages.Stored(1),
    }
    with pytest.raises(FrameError):
        decode_from_caller(encode(samples[name])[4:])


def test_a_peer_asks_nothing() -> None:
    with pytest.raises(FrameError):
        decode_from_peer(encode(Ping(1))[4:])


def test_elements_of_later_versions_are_ignored() -> None:
    assert decode_from_caller(packed(10, 7, "new")) == Ping(7)
    hello = packed(1, "vaultfs mesh", [1, 2], ["x"], "agent", {"more": 1})
    assert decode_from_caller(hello) == Hello("vaultfs mesh", (1, 2), ("x",), "agent")


@pytest.mark.parametrize("count", [1, 255, 256, 65535, 65536, DATA_BYTES])
def test_data_frames_are_those_of_the_encoder(count: int) -> None:
    data = bytes(count)
    assert data_frame(data) == encode(Data(data))
    assert data_frame(memoryview(data)) == encode(Data(data))
    decoder = FrameDecoder()
    decoder.feed(data_frame(data))
    assert decode_from_peer(next(decoder.payloads())) == Data(data)


def test_more_data_than_a_frame_holds_is_refused() -> None:
    with pytest.raises(FrameError):
        decode_from_caller(packed(5, bytes(DATA_BYTES + 1)))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RemoteRefusedError("x"), Code.REFUSED),
        (ObjectMissingError("x"), Code.MISSING),
        (ObjectExistsError("x"), Code.EXISTS),
        (NoSpaceError("x"), Code.FULL),
        (IntegrityError("x"), Code.WRONG_BYTES),
        (RemoteUnreachableError("x"), Code.BUSY),
        (FrameError("x"), Code.NOT_UNDERSTOOD),
        (RemoteError("x"), Code.FAILED),
        (StorageError("x"), Code.FAILED),
    ],
)
def test_errors_and_codes(error: VaultError, code: Code) -> None:
    assert failure_codes.failure_of(error) is code
    back = failure_codes.error_of(code, "it failed")
    assert str(back) == "it failed"
    assert isinstance(error, type(back) if code is not Code.FAILED else (RemoteError, StorageError))


def test_a_delete_order_is_bound_to_everything() -> None:
    base = {"nonce": HASH, "peer_id": HASH, "vault": VAULT, "keys": ("a", "b")}
    changed = {"nonce": b"\1" * 32, "peer_id": b"\1" * 32, "vault": b"\1" * 16, "keys": ("ab",)}
    orders = {message_codec.delete_order(**base)}  # type: ignore[arg-type]
    for name, value in changed.items():
        orders.add(message_codec.delete_order(**{**base, name: value}))  # type: ignore[arg-type]
    assert len(orders) == 5
