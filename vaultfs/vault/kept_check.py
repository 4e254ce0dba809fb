"""Whether what kept snapshots need is whole: their segments, as the metadata says nothing of most of them.

A segment is read as a whole, and its hash must be its name.  One that had holes before it was kept is opened chunk by
chunk instead, by its own index; what was punched out is zeros, and is not missed.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, NamedTuple

from vaultfs.crypto.aead import OVERHEAD_BYTES
from vaultfs.errors import VaultError
from vaultfs.ids import SegmentName
from vaultfs.storage.durable import storage_errors
from vaultfs.storage.kept_manifests import kept_files
from vaultfs.storage.segment_file import open_segment
from vaultfs.storage.segment_reader import hash_file
from vaultfs.vault.kept_keys import KeptKeysDamagedError, with_kept_keys
from vaultfs.vault.kept_snapshots import open_kept
from vaultfs.vault.segment_index import chunk_opens, open_by_header, read_index
from vaultfs.vault.snapshot_manifest import SegmentFacts

if TYPE_CHECKING:
    from vaultfs.crypto.keys import Keyring
    from vaultfs.ids import SnapshotSeq
    from vaultfs.storage.layout import VaultLayout


class KeptProblem(NamedTuple):
    """Something wrong with a kept snapshot; ``is_manifest``: it cannot be opened at all."""

    seq: SnapshotSeq
    id: str
    message: str
    is_manifest: bool = False


def kept_problems(
    layout: VaultLayout, keyring: Keyring, *, known: Collection[str], elsewhere: Collection[str], reads_data: bool
) -> Iterator[KeptProblem]:
    """Look at all kept snapshots.

    Args:
        layout: the vault.
        keyring: its keys.
        known: names of segments that need not be read.
        elsewhere: names of segments that are not missed on this disk.
        reads_data: read the others; without it only that they are there.
    """
    seen: set[str] = set(known)
    try:
        all_keys = with_kept_keys(layout, keyring)
    except VaultError:  # then none of the manifests that need them opens
        all_keys = keyring
    for seq, snapshot_id in kept_files(layout):
        try:
            content = open_kept(layout, keyring, seq, snapshot_id)
        except VaultError as error:
            # Without its keys a manifest may be as good as ever, and stays where they are looked for again.
            is_manifest = not isinstance(error, KeptKeysDamagedError)
            yield KeptProblem(seq, snapshot_id, str(error), is_manifest=is_manifest)
            continue
        missing = [facts for facts in content.segments if not _is_there(layout, facts)]
        missed = [facts for facts in missing if facts.name not in elsewhere]
        if missed:
            message = (
                f"{len(missed)} of its {len(content.segments)} segments are missing or cut, {missed[0].name} first"
            )
            yield KeptProblem(seq, snapshot_id, message)
        absent = {facts.name for facts in missing}
        for facts in content.segments if reads_data else ():
            if facts.name in seen or facts.name in absent:
                continue
            seen.add(facts.name)
            reason = _damage(layout, all_keys, facts.name)
            if reason:
                yield KeptProblem(seq, snapshot_id, f"segment {facts.name}: {reason}")


def _is_there(layout: VaultLayout, facts: SegmentFacts) -> bool:
    path = layout.sealed_path(facts.name)
    with storage_errors(f"cannot look at {path}"):
        try:
            return path.lstat().st_size == facts.size
        except FileNotFoundError:
            return False


def _damage(layout: VaultLayout, keyring: Keyring, name: SegmentName) -> str:
    """What is wrong with a segment; empty if nothing is."""
    path = layout.sealed_path(name)
    try:
        if hash_file(path) == name:
            return ""
        if not _has_holes(layout, name):
            return "its bytes do not have the hash that is its name"
        bad = _chunks_that_do_not_open(layout, keyring, name)
    except VaultError as error:
        return str(error)
    return f"{bad} chunks in it do not open" if bad else ""


def _has_holes(layout: VaultLayout, name: SegmentName) -> bool:
    descriptor = open_segment(layout.sealed_path(name), segment=name)
    try:
        with storage_errors(f"cannot read the segment {name}"):
            return os.lseek(descriptor, 0, os.SEEK_HOLE) < os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)


def _chunks_that_do_not_open(layout: VaultLayout, keyring: Keyring, name: SegmentName) -> int:
    entries = read_index(layout, name, keyring).entries
    _, segment = open_by_header(layout, name, keyring)
    try:
        # A sealed chunk looks random: so many zeros do not occur in one.
        return sum(
            not chunk_opens(entry, segment)
            and bytes(OVERHEAD_BYTES) not in segment.reader.read(entry.offset, entry.stored)
            for entry in entries
        )
    finally:
        segment.reader.close()
