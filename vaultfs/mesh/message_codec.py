"""Messages as bytes and back: what is sent is framed, and what comes is decoded strictly, or refused.  Pure.

Who asks and who answers say different things, and neither may say what is the other's.
"""

from __future__ import annotations

from typing import Final

import msgspec

from vaultfs.mesh.frames import FrameError, frame
from vaultfs.mesh.messages import FromCaller, FromPeer, Message

_FROM_CALLER: Final[msgspec.msgpack.Decoder[FromCaller]] = msgspec.msgpack.Decoder(FromCaller)
_FROM_PEER: Final[msgspec.msgpack.Decoder[FromPeer]] = msgspec.msgpack.Decoder(FromPeer)
_ENCODER: Final = msgspec.msgpack.Encoder()

_DELETE_PURPOSE: Final = b"vaultfs mesh 1 delete\0"


def encode(message: Message) -> bytes:
    """A message in its frame."""
    return frame(_ENCODER.encode(message))


def data_head(count: int) -> bytes:
    """What stands before the bytes in the frame of a `Data`.

    Args:
        count: of the bytes, 1 to `DATA_BYTES`.
    """
    if count < 1 << 8:
        head = b"\x92\x05\xc4" + count.to_bytes(1, "big")
    elif count < 1 << 16:
        head = b"\x92\x05\xc5" + count.to_bytes(2, "big")
    else:
        head = b"\x92\x05\xc6" + count.to_bytes(4, "big")
    return (len(head) + count).to_bytes(4, "big") + head


def data_frame(data: bytes | memoryview) -> bytes:
    """What `encode` makes of `Data`, with one copy of the bytes instead of three.

    Args:
        data: 1 to `DATA_BYTES`.
    """
    return b"".join((data_head(len(data)), data))


def decode_from_caller(payload: bytes) -> FromCaller:
    """What a caller said.

    Raises:
        FrameError: nothing that a caller may say.
    """
    try:
        return _FROM_CALLER.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _nonsense(error) from error


def decode_from_peer(payload: bytes) -> FromPeer:
    """What a peer answered.

    Raises:
        FrameError: nothing that a peer may answer.
    """
    try:
        return _FROM_PEER.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _nonsense(error) from error


def _nonsense(error: Exception) -> FrameError:
    return FrameError(f"what came is no message of the protocol: {type(error).__name__}")


def delete_order(nonce: bytes, peer_id: bytes, vault: bytes, keys: tuple[str, ...]) -> bytes:
    """What a device of the vault signs so that a peer deletes objects: it counts once, and for this peer.

    Args:
        nonce: of the peer, 32 bytes.
        peer_id: of the peer, 32 bytes.
        vault: its id, 16 bytes.
        keys: of the objects.
    """
    return _DELETE_PURPOSE + nonce + peer_id + vault + _ENCODER.encode(keys)
