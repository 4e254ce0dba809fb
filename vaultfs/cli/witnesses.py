"""Does a remote show the newest snapshot of a vault?  The peers that hold the vault have seen for themselves.

A remote that hides the newest snapshots, or was set back, is not found out by hashes and signatures: what is older is
as good.  So before a vault is brought back, the peers that this machine knows of it are asked.  Without any nothing is
asked, nor loaded.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from vaultfs.cli.dates import format_moment
from vaultfs.cli.output import counted, note, printable
from vaultfs.crypto.device import DeviceKey
from vaultfs.crypto.header import VaultHeader
from vaultfs.crypto.keys import Keyring
from vaultfs.crypto.slots import Secret
from vaultfs.errors import IntegrityError, RollbackError, VaultError
from vaultfs.ids import PeerId, VaultId
from vaultfs.mesh.places import book_path, identity_path, vault_state_path
from vaultfs.sync.remote_layout import RemoteHead
from vaultfs.vault.snapshot_manifest import open_manifest

if TYPE_CHECKING:
    from vaultfs.mesh.book import VaultPeers
    from vaultfs.mesh.client import MeshClient
    from vaultfs.mesh.witness import Head
    from vaultfs.mesh.witnessing import Evidence, FallenBack, Heard, Proved

log = logging.getLogger(__name__)

_SHOWN_ID: Final = 12
_LARGEST_MEMORY_KIB: Final = 1 << 20
"""Of the key derivation in a header that a peer shows: as much as vaultfs ever chooses by itself."""


class WitnessKeys:
    """What proves claims, as `vaultfs.mesh.witnessing.VaultKeys`.

    Args:
        keyring: that the header of the remote gave.
        secret: that opened it.
    """

    def __init__(self, keyring: Keyring, secret: Secret) -> None:
        self._secret: Final = secret
        self._vault_id: Final = keyring.vault_id
        self._keyrings: Final = [keyring]

    def devices(self) -> frozenset[bytes]:
        """As `VaultKeys.devices`."""
        return frozenset(
            DeviceKey(keyring.subkeys(epoch).device).public
            for keyring in tuple(self._keyrings)
            for epoch in keyring.epochs
        )

    def learn(self, header: bytes) -> None:
        """As `VaultKeys.learn`.  A header of an older epoch than that of the remote has nothing to teach.

        Raises:
            VaultError: it is none of this vault, or the secret does not open it.
        """
        known = self._keyrings[0].epoch
        decoded = VaultHeader.decode(header)
        if decoded.vault_id != self._vault_id:
            raise IntegrityError("the vault.json that comes with it is of another vault")
        if decoded.epoch <= known:
            raise IntegrityError("the vault.json that comes with it is no newer one")
        if any(slot.kdf.memory_kib > _LARGEST_MEMORY_KIB for slot in decoded.key_slots if slot.kdf is not None):
            raise IntegrityError("the vault.json that comes with it takes more memory than vaultfs ever does")
        self._keyrings.append(decoded.unlock(self._secret))

    def check(self, head: Head, manifest: bytes) -> None:
        """As `VaultKeys.check`.

        Raises:
            IntegrityError: no device of the vault has signed it, or it is another one.
        """
        for keyring in tuple(self._keyrings):
            if any(DeviceKey(keyring.subkeys(epoch).device).public == head.device for epoch in keyring.epochs):
                open_manifest(keyring, manifest, head.seq, head.hash.hex())
                return
        raise IntegrityError(f"the manifest of snapshot {head.seq} is signed by no device of the vault")


def require_witnessed(
    name: str,
    head: RemoteHead,
    keyring: Keyring,
    secret: Secret,
    wanted: str | None,
    away: Mapping[PeerId, VaultError] = MappingProxyType({}),
) -> None:
    """Check that no peer has seen a newer snapshot than the newest that a remote shows, or another beside it.

    Args:
        name: of the remote.
        head: the newest snapshot that it shows, whose manifest was checked.
        keyring: of the vault.
        secret: that opened it; opens newer headers that peers show.
        wanted: how the person named the snapshot; whoever names one means it, whatever others have seen.
        away: peers that were found to be out of reach just now, and are not waited for again.

    Raises:
        RollbackError: a peer has proved a newer one.
        IntegrityError: a peer has proved another one with the same number.
    """
    if wanted is not None:
        return
    page = _page(keyring.vault_id)
    if page is None:
        return
    from vaultfs.mesh.identity import require_identity  # noqa: PLC0415  # only with peers

    try:
        identity = require_identity(identity_path())
    except VaultError as error:
        note(f"the peers of the vault are not asked what they have seen: {printable(str(error))}")
        return
    from vaultfs.cli.async_calls import completed  # noqa: PLC0415  # loads an event loop
    from vaultfs.mesh.client import Contact, open_client  # noqa: PLC0415
    from vaultfs.mesh.pool import PoolLimits  # noqa: PLC0415
    from vaultfs.mesh.witness import Head  # noqa: PLC0415
    from vaultfs.mesh.witnessing import ASK_S, ask_witnesses, prove_claims  # noqa: PLC0415

    shown = Head(head.seq, bytes.fromhex(head.hash), bytes.fromhex(head.device))
    keys = WitnessKeys(keyring, secret)
    contacts = [Contact(peer.id, peer.address) for peer in page.peers]
    asked = replace(page, peers=tuple(peer for peer in page.peers if peer.id not in away))
    limits = PoolLimits(connect_timeout_s=ASK_S, wait_s=ASK_S, close_timeout_s=1.0)

    async def ask() -> tuple[Heard, Evidence]:
        async with open_client(identity, contacts, limits, vault=page.vault_id) as client:
            heard = await ask_witnesses(client, asked)
            heard.failures.update({peer: error for peer, error in away.items() if peer in names})
            return heard, await prove(client, heard)

    async def prove(client: MeshClient, heard: Heard) -> Evidence:
        return await prove_claims(client, page.vault_id, heard.statements.values(), shown, keys)

    names = {contact.peer: contact.name for contact in contacts}
    heard, evidence = completed(ask)
    _tell(names, heard, evidence, _remember(page.vault_id, heard))
    if evidence.proved:
        raise _refusal(name, head, page.vault_id, names, evidence.proved)


def _page(vault_id: VaultId) -> VaultPeers | None:
    """The peers of a vault; None if there are none."""
    path = book_path()
    if not os.path.exists(path):  # noqa: PTH110  # Path.exists raises where one may not look: then it is not this user's
        return None
    from vaultfs.mesh.book import Book  # noqa: PLC0415  # only with peers

    try:
        page = Book(path).peers_of(vault_id)
    except VaultError as error:
        note(f"the peers of the vault are not asked what they have seen: {printable(str(error))}")
        return None
    return page if page.peers else None


def _remember(vault_id: VaultId, heard: Heard) -> list[FallenBack]:
    from vaultfs.mesh.standing import StandingFile  # noqa: PLC0415  # only with peers
    from vaultfs.mesh.witnessing import remember  # noqa: PLC0415

    file = StandingFile(vault_state_path(vault_id))
    standing = file.load()
    fallen = remember(standing, heard, time.time_ns())
    try:
        file.save(standing)
    except VaultError as error:  # hints only
        log.warning("%s", error)
    return fallen


def _tell(names: dict[PeerId, str], heard: Heard, evidence: Evidence, fallen: Sequence[FallenBack]) -> None:
    if heard.failures:
        first = next(iter(heard.failures.values()))
        note(
            f"{len(heard.failures)} of {counted(len(names), 'peer')} of the vault did not say what they have seen: "
            f"{printable(str(first))}"
        )
    for peer, (head, why) in evidence.unproved.items():
        note(
            f"warning: {printable(names[peer])} says that it has seen snapshot {head.seq} ({_short(head.hash.hex())}), "
            f"and does not prove it, so that counts for nothing: {printable(why)}"
        )
    for each in fallen:
        note(f"warning: {printable(names[each.peer])} {each.text}")


def _refusal(
    name: str, head: RemoteHead, vault_id: VaultId, names: dict[PeerId, str], proved: Sequence[Proved]
) -> VaultError:
    first = proved[0]
    others = f" and {counted(len(first.peers) - 1, 'other peer')}" if len(first.peers) > 1 else ""
    have = "have" if len(first.peers) > 1 else "has"
    shown_id, seen_id = _short(head.hash), _short(first.head.hash.hex())
    seen = f"snapshot {first.head.seq} ({seen_id}), made {format_moment(first.created_ns)}"
    mesh_url = f"mesh://{vault_id.hex()}"
    advice = "ask again when more peers answer" if name == mesh_url else f"take {mesh_url}, which has it"
    last = f"or, if that of the remote is good enough, ask for it: --snapshot {shown_id}"
    if first.head.seq > head.seq:
        return RollbackError(
            f"{name} shows snapshot {head.seq} as the newest, but {names[first.peers[0]]}{others} {have} seen {seen}: "
            f"the remote is behind, was set back, or holds it back.  Either {advice}; {last}"
        )
    return IntegrityError(
        f"{name} shows snapshot {head.seq} ({shown_id}) as the newest, but {names[first.peers[0]]}{others} {have} seen "
        f"another {seen}: two histories of the vault exist.  Either {advice}; {last}"
    )


def _short(digest: str) -> str:
    return digest[:_SHOWN_ID]
