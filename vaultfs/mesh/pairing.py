"""Pairing: a code that a person carries from the peer that stores to the machine that asks, instead of ids.

docs/mesh-protocol.md, section 11.  A code has 80 random bits, counts once, and for some minutes.  Both sides prove that
they know it, over the ids that TLS has proved, so nobody in the middle can stand in for one of them.  What is in the
file of a peer is the hash of a code, which proves as much as the code, so the file is readable by its user alone.

The functions are pure; `Pairings` is the file ``pairing.json``, which `vaultfs peer pair` writes and the server reads.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import msgspec

from vaultfs.errors import UsageError
from vaultfs.ids import PeerId, VaultId
from vaultfs.storage.kept_file import FORMAT_VERSION, KeptFile

ANY_VAULT: Final = VaultId(bytes(16))
NONCE_BYTES: Final = 32
MOST_OFFERS: Final = 32
LONGEST_MINUTES: Final = 24 * 60

_CODE_CHARACTERS: Final = 16
_GROUP: Final = 4
_ALPHABET: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567")
_KEY_PURPOSE: Final = b"vaultfs mesh 1 pairing code\0"
_CONTEXT_PURPOSE: Final = b"vaultfs mesh 1 pair\0"
_LARGEST_FILE_BYTES: Final = 64 << 10
_MINUTE_NS: Final = 60 * 10**9
_LIMIT: Final = (1 << 63) - 1

_Number = Annotated[int, msgspec.Meta(ge=0, le=_LIMIT)]


class _StoredOffer(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    key: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
    vault_id: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")] | None
    may_write: bool
    quota_bytes: _Number | None
    label: Annotated[str, msgspec.Meta(max_length=64)]
    created_ns: _Number
    expires_ns: _Number


class _StoredFile(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    format: int
    offers: Annotated[tuple[_StoredOffer, ...], msgspec.Meta(max_length=MOST_OFFERS)]


def new_code() -> str:
    """A code as people see it: four groups of four."""
    return format_code(base64.b32encode(secrets.token_bytes(_CODE_CHARACTERS * 5 // 8)).decode())


def format_code(characters: str) -> str:
    """A code as people see it.

    Args:
        characters: the 16, as `parse_code` returns them.
    """
    return "-".join(characters[start : start + _GROUP] for start in range(0, _CODE_CHARACTERS, _GROUP))


def parse_code(text: str) -> str:
    """The 16 characters of a code as people type it: case, dashes and white space do not count.

    Raises:
        UsageError: it is none.  The message does not show it.
    """
    characters = "".join(text.replace("-", "").split()).upper()
    if len(characters) != _CODE_CHARACTERS or not _ALPHABET.issuperset(characters):
        raise UsageError(
            "that is not a pairing code, which has 16 characters of A to Z and 2 to 7, and is shown by "
            "'vaultfs peer pair' on the other machine"
        )
    return characters


def code_key(characters: str) -> bytes:
    """What proves that a code is known.

    Args:
        characters: the 16, as `parse_code` returns them.
    """
    return hashlib.sha256(_KEY_PURPOSE + characters.encode("ascii")).digest()


@dataclass(frozen=True)
class Meeting:
    """Who meets whom; both sides prove a code over this.

    Attributes:
        caller: his id, as TLS has proved it.
        peer: its id, likewise.
        vault: 16 bytes; `ANY_VAULT`: whichever.
        nonce: the caller's, drawn at random, 32 bytes.
    """

    caller: PeerId
    peer: PeerId
    vault: VaultId
    nonce: bytes

    @property
    def context(self) -> bytes:
        """What the proofs are about; every part of it has a fixed length."""
        return _CONTEXT_PURPOSE + self.caller + self.peer + self.vault + self.nonce

    def caller_proof(self, key: bytes) -> bytes:
        """What the caller shows.

        Args:
            key: as `code_key` returns it.
        """
        return hmac.digest(key, b"caller" + self.context, "sha256")

    def peer_proof(self, key: bytes) -> bytes:
        """What the peer shows.

        Args:
            key: as `code_key` returns it.
        """
        return hmac.digest(key, b"peer" + self.context, "sha256")

    def is_peer_proof(self, key: bytes, proof: bytes) -> bool:
        """Whether the peer knows the code too; the caller asks before it trusts the peer."""
        return hmac.compare_digest(proof, self.peer_proof(key))


def new_nonce() -> bytes:
    """For a `Meeting`."""
    return secrets.token_bytes(NONCE_BYTES)


@dataclass(frozen=True)
class Redeemed:
    """A code was known: the caller is to have a grant, and the proof.

    Attributes:
        vault: which; `ANY_VAULT`: any.
        may_write: or only read.
        quota_bytes: at most; None: as much as the store has.
        label: how the person calls the caller; empty: not at all.
        proof: for the answer.
    """

    vault: VaultId
    may_write: bool
    quota_bytes: int | None
    label: str
    proof: bytes


class Pairings:
    """The codes that this peer shows.  Methods block; threads and processes may share the file.

    Args:
        path: of ``pairing.json``.
        clock_ns: nanoseconds since the epoch.
    """

    def __init__(self, path: Path, *, clock_ns: Callable[[], int] = time.time_ns) -> None:
        self._file: Final = KeptFile(
            path,
            _StoredFile,
            _LARGEST_FILE_BYTES,
            title="the list of pairing codes",
            advice="Move it away; codes that were shown count no more then",
        )
        self._clock_ns: Final = clock_ns

    def offer(
        self,
        *,
        vault: VaultId = ANY_VAULT,
        may_write: bool = True,
        quota_bytes: int | None = None,
        label: str = "",
        minutes: int = 10,
    ) -> str:
        """Make a code, and return it as people see it; it is stored nowhere.

        Args:
            vault: what it is good for; `ANY_VAULT`: the one that the caller names, or any if he names none.
            may_write: the caller may store, or only read.
            quota_bytes: the caller may store at most; None: as much as the store has.
            label: how to call the caller, at most 64 characters.
            minutes: so long it counts, at most `LONGEST_MINUTES`.

        Raises:
            UsageError: too many codes are open.
            IntegrityError, FormatTooNewError: the file is damaged, or of a newer vaultfs.
            VaultLockedError, NoSpaceError, ReadOnlyError, StorageError: it cannot be written.
        """
        code = new_code()
        now_ns = self._clock_ns()
        with self._file.locked():
            offers = self._open_offers()
            if len(offers) >= MOST_OFFERS:
                raise UsageError(f"{MOST_OFFERS} pairing codes are open already; wait until one has expired")
            added = _StoredOffer(
                code_key(parse_code(code)).hex(),
                None if vault == ANY_VAULT else vault.hex(),
                may_write,
                quota_bytes,
                label,
                now_ns,
                now_ns + minutes * _MINUTE_NS,
            )
            self._save([*offers, added])
        return code

    def redeem(self, meeting: Meeting, proof: bytes) -> Redeemed | None:
        """Whether a caller knows a code; that counts no more then, which is durable on return.

        A wrong proof costs a code nothing: 80 bits cannot be guessed, and nobody shall be able to use codes up.

        Args:
            meeting: with the ids that TLS has proved, and what the caller sent.
            proof: the caller's.

        Returns:
            what the caller may have; None: no code, or not for this vault.

        Raises:
            IntegrityError, FormatTooNewError: the file is damaged, or of a newer vaultfs.
            VaultLockedError, NoSpaceError, ReadOnlyError, StorageError: it cannot be written; the code still counts.
        """
        if self._matching(meeting, proof) is None:
            return None  # without the lock, which strangers cannot keep busy so
        with self._file.locked():
            found = self._matching(meeting, proof)
            if found is None:
                return None
            self._save([offer for offer in self._open_offers() if offer.key != found.key])
        return Redeemed(
            meeting.vault if found.vault_id is None else VaultId(bytes.fromhex(found.vault_id)),
            found.may_write,
            found.quota_bytes,
            found.label,
            meeting.peer_proof(bytes.fromhex(found.key)),
        )

    def _matching(self, meeting: Meeting, proof: bytes) -> _StoredOffer | None:
        for offer in self._open_offers():
            if hmac.compare_digest(proof, meeting.caller_proof(bytes.fromhex(offer.key))):
                is_fit = offer.vault_id is None or meeting.vault == ANY_VAULT or meeting.vault.hex() == offer.vault_id
                return offer if is_fit else None
        return None

    def _open_offers(self) -> list[_StoredOffer]:
        """Those that count now; one from the future was made by a clock that has been put back since."""
        content = self._file.load()
        now_ns = self._clock_ns()
        offers: Sequence[_StoredOffer] = () if content is None else content.offers
        return [offer for offer in offers if offer.created_ns <= now_ns < offer.expires_ns]

    def _save(self, offers: Sequence[_StoredOffer]) -> None:
        self._file.save(_StoredFile(FORMAT_VERSION, tuple(offers)))
