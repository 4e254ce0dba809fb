"""What a peer answers to a request: first who may ask that, then the store.  Synchronous; called in threads.

Grants are looked at for every request, and again before an object gets its name, so that one which is revoked ends at
once.  What goes wrong is raised as an error of vaultfs; `failure` says what the caller hears of it: nothing of this
machine's paths and files.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Iterable
from typing import Final

from vaultfs.errors import RemoteError, RemoteRefusedError, VaultError
from vaultfs.ids import PeerId, VaultId
from vaultfs.mesh.failure_codes import Code, failure_of
from vaultfs.mesh.frames import MAX_PAYLOAD_BYTES
from vaultfs.mesh.grants import Grant, Grants
from vaultfs.mesh.identity import Identity, short_peer_id, verify_signature
from vaultfs.mesh.message_codec import delete_order
from vaultfs.mesh.messages import (
    HASH_BYTES,
    MOST_ENTRIES,
    Audit,
    Delete,
    Deleted,
    Fail,
    Forget,
    Get,
    Have,
    Holds,
    List,
    Listing,
    Message,
    Pair,
    Paired,
    Ping,
    Pong,
    Proof,
    Put,
    Size,
    Stat,
    State,
    Statement,
    Status,
    Witness,
)
from vaultfs.mesh.pairing import ANY_VAULT, Meeting, Pairings
from vaultfs.mesh.partial_uploads import Upload
from vaultfs.mesh.quiet_log import QuietLog
from vaultfs.mesh.replica_reading import Reader
from vaultfs.mesh.replicas import ReplicaStore
from vaultfs.mesh.witness import make_statement

log = logging.getLogger(__name__)

SimpleRequest = Ping | Have | List | Stat | Delete | Forget | Audit | Witness | Status | Pair
"""Those that have no body and one answer; `Challenge` belongs to the conversation."""

_ENTRY_BYTES: Final = 16
"""Of a listing besides the key: the array, the key's length and a size take 13 bytes at most."""
_SHORTENED_CHARACTERS: Final = 400
_OWN_AFFAIRS: Final = {
    Code.FULL: "a quota or the disk of this peer is full",
    Code.FAILED: "this peer has failed; its log says more",
}
"""What callers hear of these: the errors name paths."""


class RevokedError(RemoteRefusedError):
    """There is no grant for the caller any more: nothing that it asks is answered."""


def new_nonce() -> bytes:
    """For one order to delete."""
    return secrets.token_bytes(HASH_BYTES)


def failure(request: int, error: VaultError) -> Fail:
    """What a caller hears of an error."""
    code = failure_of(error)
    text = _OWN_AFFAIRS.get(code, str(error))
    return Fail(request, code, "".join(c if c.isprintable() else "?" for c in text[:_SHORTENED_CHARACTERS]))


class Answers:
    """What the callers of one peer are told.  Threads may share it.

    Args:
        identity: of this peer.
        store: the replicas.
        grants: who may do what.
        pairings: the codes that this peer shows.
        label: what this peer calls itself, at most 64 characters.
        clock_ns: nanoseconds since 1970.
    """

    def __init__(
        self,
        identity: Identity,
        store: ReplicaStore,
        grants: Grants,
        pairings: Pairings,
        label: str = "",
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._identity: Final = identity
        self._store: Final = store
        self._grants: Final = grants
        self._pairings: Final = pairings
        self._label: Final = label[:64]
        self._clock_ns: Final = clock_ns
        self._faults: Final = QuietLog(log)

    def is_known(self, caller: PeerId) -> bool:
        """Whether a caller has any grant.

        Raises:
            RemoteError: the grants cannot be read, which was logged.
        """
        try:
            return self._grants.is_known(caller)
        except VaultError as error:
            raise self._unreadable(error) from error

    def unknown_of(self, callers: Iterable[PeerId]) -> set[PeerId]:
        """Those of some callers that have no grant.

        Raises:
            RemoteError: the grants cannot be read, which was logged.
        """
        return {caller for caller in callers if not self.is_known(caller)}

    def answer(self, caller: PeerId, message: SimpleRequest, nonce: bytes | None) -> Message:
        """The answer to a request without a body.

        Args:
            caller: who asks, as TLS has proved it.
            message: the request.
            nonce: what the request before this one drew on this connection, if it was a `Challenge`.

        Raises:
            RevokedError: the caller has no grant at all.
            RemoteRefusedError: it has none for this.
            VaultError: what the store raises.
        """
        store = self._store
        number = message.request
        if isinstance(message, Ping):
            return Pong(number)
        if isinstance(message, Pair):
            return self._pair(caller, message)
        vault = VaultId(message.vault)
        may_write = isinstance(message, Delete | Forget)
        grant = self._require(caller, vault, may_write=may_write)
        if isinstance(message, Have):
            return Holds(number, tuple(store.have(vault, message.names)))
        if isinstance(message, List):
            return self._listing(vault, message)
        if isinstance(message, Stat):
            return Size(number, *store.stat(vault, message.key))
        if isinstance(message, Audit):
            return Proof(number, store.audit(vault, message.key, message.ranges))
        if isinstance(message, Witness):
            heads = store.newest_heads(vault)
            statement, signature = make_statement(self._identity, vault, message.nonce, self._clock_ns(), heads)
            return Statement(number, statement, self._identity.public_key, signature)
        if isinstance(message, Status):
            room = store.state(caller, vault, grant.quota_bytes)
            return State(
                number,
                room.quota_bytes,
                room.used_bytes,
                room.free_bytes,
                room.objects,
                room.vault_bytes,
                grant.may_write,
            )
        if isinstance(message, Forget):
            return Deleted(number, store.forget(vault, message.key))
        return Deleted(number, self._delete(vault, message, nonce))

    def challenge(self, caller: PeerId) -> bytes:
        """A nonce for an order to delete.  For which vault it is, the order says.

        Raises:
            RevokedError: the caller has no grant at all.
        """
        if not self.is_known(caller):
            raise RevokedError("this peer does not know you")
        return new_nonce()

    def open_reader(self, caller: PeerId, message: Get) -> Reader:
        """Open an object that a caller wants.

        Raises:
            RemoteRefusedError, VaultError: as `answer`.
        """
        vault = VaultId(message.vault)
        self._require(caller, vault, may_write=False)
        return self._store.reader(vault, message.key, message.offset, message.length)

    def begin_put(self, caller: PeerId, message: Put) -> Upload | None:
        """Begin to take an object; None if it is there already.

        Raises:
            RemoteRefusedError, VaultError: as `answer`.
        """
        vault = VaultId(message.vault)
        grant = self._require(caller, vault, may_write=True)
        return self._store.begin_put(
            caller,
            vault,
            message.key,
            message.size_bytes,
            message.digest,
            message.if_absent,
            message.revision,
            grant.quota_bytes,
        )

    def finish_put(self, caller: PeerId, message: Put, upload: Upload) -> None:
        """Give an object its name, if the caller may still store.

        Raises:
            RemoteRefusedError, VaultError: as `answer`.
        """
        self._require(caller, VaultId(message.vault), may_write=True)
        upload.finish()

    def _require(self, caller: PeerId, vault: VaultId, *, may_write: bool) -> Grant:
        try:
            grant = self._grants.lookup(caller, vault)
        except VaultError as error:
            raise self._unreadable(error) from error
        if grant is None:
            if not self.is_known(caller):
                raise RevokedError("this peer does not know you")
            raise RemoteRefusedError(
                "it has not accepted this machine for this vault; 'vaultfs peer accept' there does that"
            )
        if may_write and not grant.may_write:
            raise RemoteRefusedError("the grant for this vault is for reading only")
        return grant

    def _listing(self, vault: VaultId, message: List) -> Listing:
        """As many entries as an answer may have and as fit into a frame."""
        found, has_more = self._store.listing(vault, message.prefix, message.after, MOST_ENTRIES)
        left_bytes = MAX_PAYLOAD_BYTES - 4 * _ENTRY_BYTES
        for count, (key, _) in enumerate(found):
            left_bytes -= len(key.encode()) + _ENTRY_BYTES
            if left_bytes < 0:
                return Listing(message.request, tuple(found[:count]), has_more=True)
        return Listing(message.request, tuple(found), has_more)

    def _delete(self, vault: VaultId, message: Delete, nonce: bytes | None) -> int:
        if nonce is None:
            raise RemoteRefusedError("an order to delete has to follow a challenge, and counts once")
        order = delete_order(nonce, self._identity.peer_id, vault, message.keys)
        if not verify_signature(message.device, order, message.signature):
            raise RemoteRefusedError("the order to delete is not signed by the device that it names")
        if not self._store.may_delete(vault, message.device):
            raise RemoteRefusedError(
                "the device may not delete here yet: seven days after its first snapshot it may, if that came from the "
                "machine that stored here first; or when a person has "
                f"run here: vaultfs peer confirm-device {vault.hex()} {message.device.hex()}"
            )
        return self._store.delete(vault, message.keys)

    def _pair(self, caller: PeerId, message: Pair) -> Paired:
        meeting = Meeting(caller, self._identity.peer_id, VaultId(message.vault), message.nonce)
        try:
            redeemed = self._pairings.redeem(meeting, message.proof)
            if redeemed is None:
                raise RemoteRefusedError(
                    "it shows no such pairing code, or not for this vault; a code counts once, and for some minutes"
                )
            label = redeemed.label or "".join(c for c in message.label if c.isprintable())
            vault = None if redeemed.vault == ANY_VAULT else redeemed.vault
            access: Final = "write" if redeemed.may_write else "read"
            self._grants.add(Grant(caller, vault, access, redeemed.quota_bytes, label, self._clock_ns()))
        except RemoteRefusedError:
            raise
        except VaultError as error:
            self._faults.warning("peer %s could not be paired: %s", short_peer_id(caller), error)
            raise RemoteError("the pairing could not be written down") from error
        return Paired(message.request, redeemed.proof, self._label)

    def _unreadable(self, error: VaultError) -> RemoteError:
        self._faults.warning("nobody may do anything here: %s", error)
        return RemoteError("the grants of this peer cannot be read")
