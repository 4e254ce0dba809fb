"""What peers say to each other, in frames: msgpack arrays whose first element tells which message it is.  Pure.

docs/mesh-protocol.md specifies them, and a test compares the two.  Elements that a newer version adds at the end are
ignored.  What a peer says is bounded here in every length; what it means is judged by those who ask.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from vaultfs.mesh.failure_codes import Code
from vaultfs.mesh.frames import DATA_BYTES
from vaultfs.remotes.store import LARGEST_KEY_BYTES

VERSION: Final = 1
MAGIC: Final = "vaultfs mesh"
HASH_BYTES: Final = 32
MOST_NAMES: Final = 4096
"""In one question; 128 KiB of hashes."""
MOST_ENTRIES: Final = 1000
MOST_RANGES: Final = 256
MOST_AUDITED_BYTES: Final = 64 << 20
MOST_KEYS: Final = 256
LONGEST_SHARE: Final = 96
"""Of the last part of a share's key, which has 83 characters at most."""
SHARE_AUDITS: Final = "share-audits"
"""The feature of peers that prove parts of shares."""
MOST_PIPELINED: Final = 32
"""Requests that a peer takes before it has answered the first."""
LARGEST_STATEMENT_BYTES: Final = 16 << 10

_LIMIT: Final = (1 << 63) - 1
_Number = Annotated[int, msgspec.Meta(ge=0, le=_LIMIT)]
_Request = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
_VaultId = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
_Hash = Annotated[bytes, msgspec.Meta(min_length=HASH_BYTES, max_length=HASH_BYTES)]
_Signature = Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]
_Key = Annotated[str, msgspec.Meta(min_length=1, max_length=LARGEST_KEY_BYTES)]
_Prefix = Annotated[str, msgspec.Meta(max_length=LARGEST_KEY_BYTES)]
_Word = Annotated[str, msgspec.Meta(max_length=64)]
_Text = Annotated[str, msgspec.Meta(max_length=500)]


class Message(msgspec.Struct, array_like=True, frozen=True):
    """Any of them; the first element is its number."""


class Hello(Message, tag=1, frozen=True):
    """The first thing a caller says.  It lists the versions and features it knows."""

    magic: _Word
    versions: Annotated[tuple[_Number, ...], msgspec.Meta(min_length=1, max_length=16)]
    features: Annotated[tuple[_Word, ...], msgspec.Meta(max_length=32)]
    agent: _Word


class Welcome(Message, tag=2, frozen=True):
    """The answer: one version, the features that both know, and whether the caller may do anything but `Pair`."""

    version: _Number
    features: Annotated[tuple[_Word, ...], msgspec.Meta(max_length=32)]
    agent: _Word
    is_known: bool


class Fail(Message, tag=3, frozen=True):
    """A request could not be done.  Request 0: the connection ends."""

    request: _Request
    code: Code
    text: _Text


class Goodbye(Message, tag=4, frozen=True):
    """No further request is answered but those that came before; from either side."""

    text: _Text


class Data(Message, tag=5, frozen=True):
    """Bytes of an object."""

    data: Annotated[bytes, msgspec.Meta(min_length=1, max_length=DATA_BYTES)]


class Abort(Message, tag=6, frozen=True):
    """The sender of an object gives up; what came of it may be kept for another try."""

    request: _Request


class Ping(Message, tag=10, frozen=True):
    """Asks whether the peer is there."""

    request: _Request


class Pong(Message, tag=11, frozen=True):
    """Yes."""

    request: _Request


class Have(Message, tag=12, frozen=True):
    """Asks which of these segments are there.  ``names`` are 32-byte hashes, joined."""

    request: _Request
    vault: _VaultId
    names: Annotated[bytes, msgspec.Meta(max_length=MOST_NAMES * HASH_BYTES)]


class Holds(Message, tag=13, frozen=True):
    """The sizes in bytes, in the same order; 0 where there is none."""

    request: _Request
    sizes: Annotated[tuple[_Number, ...], msgspec.Meta(max_length=MOST_NAMES)]


class List(Message, tag=14, frozen=True):
    """Asks which objects have keys that begin so, in ascending order, after ``after``."""

    request: _Request
    vault: _VaultId
    prefix: _Prefix
    after: _Prefix


class Listing(Message, tag=15, frozen=True):
    """Keys and sizes; if there are more, the next question goes on after the last of them."""

    request: _Request
    entries: Annotated[tuple[tuple[_Key, _Number], ...], msgspec.Meta(max_length=MOST_ENTRIES)]
    has_more: bool


class Stat(Message, tag=16, frozen=True):
    """Asks how long an object is."""

    request: _Request
    vault: _VaultId
    key: _Key


class Size(Message, tag=17, frozen=True):
    """So many bytes; nil if there is none.  ``revision`` is that of the last `Put` of it, 0 where that says nothing."""

    request: _Request
    size_bytes: _Number | None
    revision: _Number


class Get(Message, tag=18, frozen=True):
    """Send an object, or a part of it; to its end if ``length`` is nil."""

    request: _Request
    vault: _VaultId
    key: _Key
    offset: _Number
    length: _Number | None


class Body(Message, tag=19, frozen=True):
    """So many bytes follow, in `Data`; a `Fail` may come in between, and ends it."""

    request: _Request
    size_bytes: _Number
    body_bytes: _Number


class Put(Message, tag=20, frozen=True):
    """Asks to send an object.  ``digest`` is the BLAKE3 of its bytes."""

    request: _Request
    vault: _VaultId
    key: _Key
    size_bytes: _Number
    digest: _Hash
    if_absent: bool
    revision: _Number


class Go(Message, tag=21, frozen=True):
    """Yes, from this byte on; what is before it came in an earlier try."""

    request: _Request
    offset: _Number


class Stored(Message, tag=22, frozen=True):
    """It is there, durably; either now, or, as the answer to `Put`, already."""

    request: _Request


class Challenge(Message, tag=23, frozen=True):
    """I want to delete something."""

    request: _Request


class Nonce(Message, tag=24, frozen=True):
    """Sign this.  It counts once, on this connection, for the next `Delete`."""

    request: _Request
    nonce: _Hash


class Delete(Message, tag=25, frozen=True):
    """Delete objects.  A device of the vault has signed `delete_order`."""

    request: _Request
    vault: _VaultId
    keys: Annotated[tuple[_Key, ...], msgspec.Meta(min_length=1, max_length=MOST_KEYS)]
    device: _Hash
    signature: _Signature


class Forget(Message, tag=26, frozen=True):
    """Delete a note, which takes no signature."""

    request: _Request
    vault: _VaultId
    key: _Key


class Deleted(Message, tag=27, frozen=True):
    """So many of them were there; none is any more."""

    request: _Request
    count: _Number


class Range(msgspec.Struct, array_like=True, frozen=True):
    """A part of a segment that an audit asks for; or, with the feature `SHARE_AUDITS`, of a share of it.

    ``share`` is what follows the segment in the share's key; empty: the segment itself is meant.
    """

    name: _Hash
    offset: _Number
    length: _Number
    share: Annotated[str, msgspec.Meta(max_length=LONGEST_SHARE)] = ""


class Audit(Message, tag=28, frozen=True):
    """Prove that you have these parts of segments.  ``key`` is drawn anew for each audit."""

    request: _Request
    vault: _VaultId
    key: _Hash
    ranges: Annotated[tuple[Range, ...], msgspec.Meta(min_length=1, max_length=MOST_RANGES)]


class Proof(Message, tag=29, frozen=True):
    """For each range the BLAKE3 of its bytes keyed with ``key``, joined; zeros where they are not all there."""

    request: _Request
    digests: Annotated[bytes, msgspec.Meta(max_length=MOST_RANGES * HASH_BYTES)]


class Witness(Message, tag=30, frozen=True):
    """Asks for the newest snapshot that the peer has seen.  ``nonce`` keeps old answers from being shown again."""

    request: _Request
    vault: _VaultId
    nonce: _Hash


class Statement(Message, tag=31, frozen=True):
    """A `vaultfs.mesh.witness` statement, and the peer's signature of it."""

    request: _Request
    statement: Annotated[bytes, msgspec.Meta(max_length=LARGEST_STATEMENT_BYTES)]
    public_key: _Hash
    signature: _Signature


class Status(Message, tag=32, frozen=True):
    """Asks how much room there is."""

    request: _Request
    vault: _VaultId


class State(Message, tag=33, frozen=True):
    """How much room there is.

    ``quota_bytes`` bounds what this caller may store in all, of which ``used_bytes`` are taken; ``free_bytes`` can be
    stored now, as quotas and disk are.  ``objects`` and ``vault_bytes`` are those of the vault.
    """

    request: _Request
    quota_bytes: _Number
    used_bytes: _Number
    free_bytes: _Number
    objects: _Number
    vault_bytes: _Number
    may_write: bool


class Pair(Message, tag=34, frozen=True):
    """I know the code that you show; see `vaultfs.mesh.pairing`.  ``vault`` is what I want to store."""

    request: _Request
    vault: _VaultId
    nonce: _Hash
    proof: _Hash
    label: _Word


class Paired(Message, tag=35, frozen=True):
    """I know it too, and know you from now on."""

    request: _Request
    proof: _Hash
    label: _Word


FromCaller = (
    Hello
    | Goodbye
    | Data
    | Abort
    | Ping
    | Have
    | List
    | Stat
    | Get
    | Put
    | Challenge
    | Delete
    | Forget
    | Audit
    | Witness
    | Status
    | Pair
)
FromPeer = (
    Welcome
    | Fail
    | Goodbye
    | Data
    | Pong
    | Holds
    | Listing
    | Size
    | Body
    | Go
    | Stored
    | Nonce
    | Deleted
    | Proof
    | Statement
    | State
    | Paired
)
Request = Ping | Have | List | Stat | Get | Put | Challenge | Delete | Forget | Audit | Witness | Status | Pair
