"""What the peers of a vault are to hold: every snapshot that one of them lists, with all its segments.

Manifests are read from this machine where it has them, else from a peer, and checked in all respects that take no key:
hash, encoding, and that the device they name has signed them.  Whether a device is the vault's only the key tells.
So a manifest counts if this machine knows its device from the vault's history, or if two peers list manifests of that
device: one peer alone can make nobody carry its inventions to the others.  Where nothing is known and nobody else
answers, all are believed.

A snapshot that only this machine has needs its segments too, but is sent by a sync, which sees to histories that have
parted.  What a prune has given up is not needed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Final

import trio

from vaultfs.errors import FormatTooNewError, IntegrityError, ObjectMissingError, RemoteError, VaultError
from vaultfs.ids import PeerId, SegmentName, VaultId
from vaultfs.mesh.claims import readable
from vaultfs.mesh.client import MeshClient
from vaultfs.mesh.local_copy import LocalCopy
from vaultfs.mesh.manifest_check import check_manifest
from vaultfs.mesh.manifest_shelf import ManifestShelf
from vaultfs.mesh.reading import Reader
from vaultfs.mesh.survey import Survey
from vaultfs.storage.manifest_format import MAX_MANIFEST_BYTES, Manifest
from vaultfs.sync.condemned import LARGEST_NOTE_BYTES, decode_record
from vaultfs.sync.local_vault import LocalManifest
from vaultfs.sync.remote_layout import (
    CONDEMNED_PREFIX,
    LARGEST_SEGMENT_BYTES,
    RemoteHead,
    head_key,
    parse_head,
    parse_note,
)


@dataclass
class Needs:
    """What is needed.

    Attributes:
        segments: names and sizes in bytes.
        heads: snapshots that a peer lists, and the sizes of their manifests.
        awaited: of these snapshots, those that need segments which no peer has, and which ones.
        unsent: snapshots of this machine that no peer lists.
        strange: snapshots that one peer alone lists, of a device that nobody knows; or with another number or device
            than they have.
        unreadable: snapshots of which nobody can say what they need, and why.
    """

    segments: dict[SegmentName, int] = field(default_factory=dict)
    heads: dict[RemoteHead, int] = field(default_factory=dict)
    awaited: dict[RemoteHead, frozenset[SegmentName]] = field(default_factory=dict)
    unsent: list[RemoteHead] = field(default_factory=list)
    strange: list[RemoteHead] = field(default_factory=list)
    unreadable: dict[RemoteHead, VaultError] = field(default_factory=dict)

    @property
    def newest(self) -> RemoteHead | None:
        """The snapshot with the highest number; the one that a new machine would take."""
        return max((*self.heads, *self.unsent), key=lambda head: (head.seq, head.hash), default=None)


class ManifestReader:
    """Reads manifests of one vault, from wherever they are.

    Args:
        client: to ask peers with.
        vault_id: whose.
        reader: reads objects of this vault from peers.
        here: the vault on this machine; None: there is none.
        shelf: keeps what peers sent; None: nothing is kept.
    """

    def __init__(
        self,
        client: MeshClient,
        vault_id: VaultId,
        reader: Reader,
        here: LocalCopy | None = None,
        shelf: ManifestShelf | None = None,
    ) -> None:
        self._client: Final = client
        self._vault_id: Final = vault_id
        self._reader: Final = reader
        self._shelf: Final = shelf
        self._here: Final = here
        self._local: Final = {} if here is None else {each.hash: each for each in here.manifests}

    async def read(self, head: RemoteHead, holders: Sequence[PeerId]) -> bytes:
        """The bytes of a manifest, checked; the signature against the device that it names.

        Args:
            head: which.
            holders: peers that list it.

        Raises:
            IntegrityError: what peers have under this name is something else.
            FormatTooNewError: a newer vaultfs wrote it.
            VaultError: it cannot be had.
        """
        return (await self._read(head, holders))[0]

    async def segments(self, head: RemoteHead, holders: Sequence[PeerId]) -> tuple[int, Manifest]:
        """How many bytes a manifest has, and what it says.

        Raises:
            IntegrityError: as `read`; or it needs what cannot be a segment.
            VaultError: as `read`.
        """
        data, manifest = await self._read(head, holders)
        if any(size > LARGEST_SEGMENT_BYTES for _, size in manifest.segments):
            raise IntegrityError(f"the manifest of snapshot {head.seq} names a segment larger than any")
        return len(data), manifest

    async def _read(self, head: RemoteHead, holders: Sequence[PeerId]) -> tuple[bytes, Manifest]:
        return await trio.to_thread.run_sync(self._kept, head) or await self._fetched(head, holders)

    def _kept(self, head: RemoteHead) -> tuple[bytes, Manifest] | None:
        """What is on this machine's disk."""
        local = self._local.get(head.hash)
        if local is not None and self._here is not None:
            found = self._here.content(local)
            if found is not None and (found[1].device.hex(), found[1].seq) == (head.device, head.seq):
                return found
        data = None if self._shelf is None else self._shelf.get(head.hash)
        return None if data is None else (data, self._checked(head, data))

    async def _fetched(self, head: RemoteHead, holders: Sequence[PeerId]) -> tuple[bytes, Manifest]:
        if not holders:
            raise ObjectMissingError(f"the manifest of snapshot {head.seq} is damaged here, and no peer has it")
        file = await self._reader.whole(self._client, holders, head_key(head), head.hash, MAX_MANIFEST_BYTES)

        def checked() -> tuple[bytes, Manifest]:
            with closing(file):
                data = file.read()
            manifest = self._checked(head, data)
            if self._shelf is not None:
                self._shelf.keep(head.hash, data)
            return data, manifest

        return await trio.to_thread.run_sync(checked)

    def _checked(self, head: RemoteHead, data: bytes) -> Manifest:
        check_manifest(data, self._vault_id, bytes.fromhex(head.device), head.seq, bytes.fromhex(head.hash))
        return Manifest.decode(data)[0]


async def find_needs(
    client: MeshClient,
    vault_id: VaultId,
    survey: Survey,
    manifests: ManifestReader,
    reader: Reader,
    here: LocalCopy | None = None,
) -> Needs:
    """Find out what is needed.

    Args:
        client: to ask with.
        vault_id: whose.
        survey: what the peers list.
        manifests: reads manifests.
        reader: reads other objects.
        here: the vault on this machine; None: there is none.

    Raises:
        FormatTooNewError: a newer vaultfs wrote a manifest here.
        StorageError: the disk here failed.
    """
    needs = Needs()
    listed = _listed(survey)
    dropped = set() if here is None else set(here.dropped)
    dropped |= await _given_up(client, vault_id, survey, reader)
    if here is not None:
        dropped -= {each.hash for each in here.manifests[-1:]}  # a vault's present is never given up
        await _add_local(needs, here, listed, dropped)
    devices = _known_devices(listed, here)
    held = readable(survey.present)
    failures: dict[RemoteHead, VaultError] = {}
    for head in sorted(listed, key=lambda each: (each.seq, each.hash, each.device)):
        if head.hash in dropped:
            continue
        if head.device not in devices:
            needs.strange.append(head)
            continue
        try:
            size_bytes, manifest = await manifests.segments(head, listed[head])
        except (IntegrityError, FormatTooNewError, RemoteError) as error:
            failures[head] = error
            continue
        needs.heads[head] = size_bytes
        for name, size in manifest.segments:
            needs.segments.setdefault(name, size)
        awaited = frozenset(name for name, _ in manifest.segments if name not in held)
        if awaited:
            needs.awaited[head] = awaited
    known = {head.hash for head in needs.heads}
    for head, failure in failures.items():
        if head.hash in known:  # one hash has one name; another is somebody's invention
            needs.strange.append(head)
        else:
            needs.unreadable[head] = failure
    return needs


def _listed(survey: Survey) -> dict[RemoteHead, list[PeerId]]:
    """The manifests that peers list, and which peers."""
    found: defaultdict[RemoteHead, list[PeerId]] = defaultdict(list)
    for view in survey.present:
        for key in view.heads:
            head = parse_head(key)
            if head is not None:
                found[head].append(view.known.id)
    return found


async def _add_local(
    needs: Needs, here: LocalCopy, listed: Mapping[RemoteHead, Sequence[PeerId]], dropped: Collection[str]
) -> None:
    """Take in what this machine's snapshots need, first: where manifests contradict each other, these count."""

    def look(local: LocalManifest) -> None:
        found = here.content(local)
        if found is None:
            return
        manifest = found[1]
        head = RemoteHead(manifest.device.hex(), manifest.seq, local.hash)
        here.devices.add(head.device)
        if local.hash in dropped:
            return
        for name, size in manifest.segments:
            needs.segments.setdefault(name, size)
        if head not in listed:
            needs.unsent.append(head)

    for local in here.manifests:
        await trio.to_thread.run_sync(look, local)


def _known_devices(listed: Mapping[RemoteHead, Sequence[PeerId]], here: LocalCopy | None) -> set[str]:
    peers_of: defaultdict[str, set[PeerId]] = defaultdict(set)
    for head, peers in listed.items():
        peers_of[head.device].update(peers)
    known = {device for device, peers in peers_of.items() if len(peers) > 1}
    if here is not None:
        known |= here.devices
    return known or set(peers_of)


async def _given_up(client: MeshClient, vault_id: VaultId, survey: Survey, reader: Reader) -> set[str]:
    """Hashes of the snapshots that prunes have given up, and not deleted yet.

    A prune tells all peers.  So what one alone lists, where others answer, says nothing, as it could make this machine
    care for nothing any more; nor does what cannot be read.  Then more is kept than need be.
    """
    holders: defaultdict[str, list[PeerId]] = defaultdict(list)
    for view in survey.present:
        for key in view.heads:
            digest = parse_note(key, CONDEMNED_PREFIX)
            if digest is not None:
                holders[digest].append(view.known.id)
    given_up: set[str] = set()
    for digest, peers in holders.items():
        if len(peers) < min(2, len(survey.present)):
            continue
        try:
            with closing(
                await reader.whole(client, peers, CONDEMNED_PREFIX + digest, digest, LARGEST_NOTE_BYTES)
            ) as file:
                record = decode_record(file.read(), digest, vault_id, "peers")
        except (IntegrityError, FormatTooNewError, RemoteError):
            continue
        given_up.update(head.hash for head in record.heads)
    return given_up
