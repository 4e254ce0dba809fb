"""The ten invariants of a vault, checked by reading what is on the disk, without the code that keeps them.

| | invariant | here |
|---|---|---|
| 1 | every referenced chunk exists and opens | `check_chunks` |
| 2 | the state is that of one moment, at or after the last promise | `Expectation.mismatch` |
| 3 | a rename over a file shows the complete old or new one | likewise |
| 4 | link counts, sizes, reference counts are exact; bytes past the end are zero | `check_tree`, `check_chunks` |
| 5 | garbage may be left, a dangling reference never | both |
| 6 | no plaintext on the disk | `check_secrecy` |
| 7 | no pair of key and nonce occurs twice | `check_nonces` |
| 8 | a head refers to present objects only | `check_chunks`, for the pieces of snapshots too |
| 9 | generations never go back | `inspect_vault` |
| 10 | mounting needs no manual step, and a second look finds nothing | `inspect_vault` |
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import blake3

from vaultfs import Secret
from vaultfs.crypto.aead import NONCE_BYTES, SegmentCipher
from vaultfs.crypto.compression import decompress
from vaultfs.crypto.head import HeadRecord
from vaultfs.crypto.header import VaultHeader
from vaultfs.crypto.keys import Keyring
from vaultfs.errors import VaultError
from vaultfs.ids import ROOT_INODE, ChunkId, KeyEpoch, SegmentName
from vaultfs.metadata.database import MetadataDatabase
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.segment_format import HEADER_BYTES, SegmentHeader
from vaultfs.vault.fsck import check

from .report import Inspection
from .stores import Entry, Tree, differences
from .vault_store import PASSWORD, VaultStore, use_state_of
from .workload import CANARY

OVERHEAD_BYTES = 28


def inspect_vault(root: Path) -> Inspection:
    """Open the vault after a crash, go on working, close it, look at everything, and open it once more."""
    use_state_of(root)
    problems = check_secrecy(root) + check_with_fsck(root)
    before = generation_of(root)
    store = VaultStore(root)
    try:
        tree = store.tree()
        changed = _go_on(store, tree)
    finally:
        store.close()
    problems += check_secrecy(root) + check_with_fsck(root)
    with UnlockedVault(root) as vault:
        problems += check_tree(vault) + check_chunks(vault) + check_nonces(vault)
    after = generation_of(root)
    if after <= before:
        problems.append(f"the generation went from {before} to {after}")
    again = VaultStore(root)
    try:
        problems += [f"at the second mount {line}" for line in differences(changed, again.tree())]
    finally:
        again.close()
    return Inspection(tree, problems)


def _go_on(store: VaultStore, tree: Tree) -> Tree:
    """Change the beginning of every file, add one, and return what must be there at the next mount."""
    changed = dict(tree)
    for path, entry in tree.items():
        if entry.kind == "f" and entry.nlink == 1 and not path.startswith("@"):
            store.write(path, 0, b"later")
            changed[path] = entry._replace(data=b"later" + entry.data[5:])
    path = f"{CANARY}-written-after-the-crash"
    store.write(path, 0, path.encode())
    changed[path] = Entry("f", path.encode(), 1, None, ())
    return changed


def _keyring(layout: VaultLayout) -> Keyring:
    return VaultHeader.decode(layout.header.read_bytes()).unlock(Secret.password(PASSWORD))


def generation_of(root: Path) -> int:
    """The generation in HEAD."""
    layout = VaultLayout(root / "vault")
    return HeadRecord.open(_keyring(layout), layout.head.read_bytes()).generation


class UnlockedVault:
    """The database and the keys of a vault that is closed, read-only; a context manager."""

    def __init__(self, root: Path) -> None:
        self.layout = VaultLayout(root / "vault")
        self.keyring = _keyring(self.layout)
        self.database = MetadataDatabase.open(self.layout.database, self.keyring.current.metadata, immutable=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.database.close()

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """All rows of a query."""
        return self.database.rows(sql)

    def segment_files(self) -> Iterator[Path]:
        """Everything that looks like a segment, referred to or not."""
        return self.layout.segments.rglob("*.seg")


def check_with_fsck(root: Path) -> list[str]:
    """Invariant 10: our own fsck finds nothing, neither before the mount that recovers nor after it."""
    report = check(root / "vault", Secret.password(PASSWORD))
    return [f"fsck: {finding.message}" for finding in report.findings if finding.severity != "note"]


def check_secrecy(root: Path) -> list[str]:
    """Invariant 6: the canary of the workloads is in no file and no file's name."""
    needle = CANARY.encode()
    found = []
    for base, _, names in os.walk(root):
        for name in names:
            path = Path(base, name)
            if needle in os.fsencode(path.relative_to(root)) or needle in path.read_bytes():
                found.append(f"plaintext in {path.relative_to(root)}")
    return found


def check_tree(vault: UnlockedVault) -> list[str]:
    """Invariants 4 and 5 for names: one tree, exact link counts, nothing without a name."""
    inodes = {row[0]: row[1:] for row in vault.rows("SELECT id, mode, nlink, size, chunks, target FROM inode")}
    entries = vault.rows("SELECT parent, name, inode, cookie FROM entry")
    names = Counter(inode for _, _, inode, _ in entries)
    parents: dict[int, int] = {inode: parent for parent, _, inode, _ in entries}
    problems = [
        f"entry {name!r} in {parent} names no inode" for parent, name, inode, _ in entries if inode not in inodes
    ]
    problems += [
        f"inode {parent} has entries but is no directory"
        for parent in {row[0] for row in entries}
        if parent not in inodes or not stat.S_ISDIR(inodes[parent][0])
    ]
    below = Counter(parent for parent, _, inode, _ in entries if inode in inodes and stat.S_ISDIR(inodes[inode][0]))
    for inode, (mode, nlink, size, _, target) in inodes.items():
        if stat.S_ISDIR(mode):
            if nlink != 2 + below[inode] or names[inode] != (inode != ROOT_INODE):
                problems.append(f"directory {inode}: nlink {nlink}, {below[inode]} in it, {names[inode]} names")
            if not _reaches_root(inode, parents):
                problems.append(f"directory {inode} cannot be reached")
        elif nlink != names[inode] or not nlink:
            problems.append(f"inode {inode}: nlink {nlink}, {names[inode]} names")
        if stat.S_ISLNK(mode) != (target is not None) or (target is not None and size != len(target)):
            problems.append(f"inode {inode}: a symlink with size {size} and target {target!r}")
    bad = [name for _, name, _, _ in entries if not 0 < len(name) < 256 or name in {b".", b".."} or {*name} & {0, 47}]
    problems += [f"{name!r} is no name" for name in bad]
    problems += [
        f"xattr of inode {row[0]}, which is not there"
        for row in vault.rows("SELECT DISTINCT inode FROM xattr WHERE inode NOT IN (SELECT id FROM inode)")
    ]
    next_cookie, next_inode = vault.database.setting("next_cookie"), vault.database.setting("next_inode")
    if any(cookie >= next_cookie for *_, cookie in entries) or any(inode >= next_inode for inode in inodes):
        problems.append(f"next_cookie {next_cookie} or next_inode {next_inode} was given away already")
    for table in ("orphan", "intent"):
        count = vault.database.scalar(f"SELECT count(*) FROM {table}")
        if count:
            problems.append(f"{count} rows in {table} after a clean close")
    return problems + vault.database.integrity_problems()


def _reaches_root(inode: int, parents: dict[int, int]) -> bool:
    seen = set()
    while inode != ROOT_INODE:
        if inode in seen or inode not in parents:
            return False
        seen.add(inode)
        inode = parents[inode]
    return True


@dataclass(frozen=True, slots=True)
class _Segment:
    """A row of the table, and its file's bytes."""

    label: str
    data: bytes
    cipher: SegmentCipher


def _segments(vault: UnlockedVault, problems: list[str]) -> dict[int, _Segment]:
    found = {}
    live = dict(vault.rows("SELECT segment, sum(stored) FROM chunk GROUP BY segment"))
    for number, token, name, epoch, salt, size, row_live, holes in vault.rows(
        "SELECT id, token, name, epoch, salt, size, live, holes FROM segment"
    ):
        label = f"segment {number} ({name or token})"
        path = vault.layout.open_path(token) if name is None else vault.layout.sealed_path(SegmentName(name))
        if name is None:
            problems.append(f"{label} is open after a clean close")
        if live.get(number, 0) != row_live:
            problems.append(f"{label}: live {row_live}, its chunks have {live.get(number, 0)} bytes")
        if not path.is_file():
            problems.append(f"{label} has no file")
            continue
        data = path.read_bytes()
        if len(data) != size:
            problems.append(f"{label} has {len(data)} bytes, its row says {size}")
        if not holes and blake3.blake3(data).hexdigest() != name:
            problems.append(f"{label} has another hash")
        header = SegmentHeader.decode(data[:HEADER_BYTES])
        if (header.vault_id, header.epoch, header.salt) != (vault.keyring.vault_id, epoch, salt):
            problems.append(f"{label}: header and row differ")
        cipher = SegmentCipher(vault.keyring.subkeys(KeyEpoch(epoch)).chunk, vault.keyring.vault_id, salt)
        found[number] = _Segment(label, data, cipher)
    return found


def check_chunks(vault: UnlockedVault) -> list[str]:
    """Invariants 1, 4, 5 and 8 for data: every chunk opens, every count is exact, nothing lies past a file's end."""
    problems: list[str] = []
    segments = _segments(vault, problems)
    sizes = {row[0]: (row[1], row[2]) for row in vault.rows("SELECT id, size, chunks FROM inode")}
    extents = vault.rows("SELECT inode, idx, chunk FROM extent")
    chunk_size = vault.database.setting("chunk_size")
    pieces = [row[0] for row in vault.rows("SELECT chunk FROM snapshot_piece")]
    refs = Counter([*pieces, *(chunk for _, _, chunk in extents)])
    opened: dict[int, bytes] = {}
    for chunk, segment, offset, stored, length, row_refs, died in vault.rows(
        "SELECT id, segment, offset, stored, length, refs, died FROM chunk"
    ):
        if row_refs != refs[chunk] or (row_refs and died is not None):
            problems.append(f"chunk {chunk}: refs {row_refs}, {refs[chunk]} rows that name it, died {died}")
        place = segments.get(segment)
        if place is None or offset < HEADER_BYTES or offset + stored > len(place.data):
            problems.append(f"chunk {chunk} is not in segment {segment}")
            continue
        try:
            data = place.cipher.open(ChunkId(chunk), place.data[offset : offset + stored], length=length)
            opened[chunk] = decompress(data, length) if stored < length + OVERHEAD_BYTES else data
        except VaultError as error:
            problems.append(f"chunk {chunk} in {place.label} does not open: {error}")
    if opened and max(opened) >= vault.database.setting("next_chunk"):
        problems.append("next_chunk was given away already")
    for inode, index, chunk in extents:
        if inode not in sizes or chunk not in opened:
            problems.append(f"extent {index} of inode {inode} refers to chunk {chunk}: one of them is not there")
        elif any(opened[chunk][max(0, sizes[inode][0] - index * chunk_size) :]):
            problems.append(f"inode {inode}: chunk {index} has bytes past the end, {sizes[inode][0]}")
    counted = Counter(inode for inode, _, _ in extents)
    problems += [
        f"inode {n}: chunks {rows}, {counted[n]} extents" for n, (_, rows) in sizes.items() if rows != counted[n]
    ]
    return problems + [
        f"a snapshot refers to chunk {chunk}, which is not there" for chunk in pieces if chunk not in opened
    ]


def check_nonces(vault: UnlockedVault) -> list[str]:
    """Invariant 7: no two segments share a salt, and in none of them two chunks a nonce."""
    salts: dict[bytes, bytes] = {}
    problems = []
    for path in vault.segment_files():
        data = path.read_bytes()
        if len(data) < HEADER_BYTES:  # a crash came while its header was written; it holds nothing
            continue
        salt, digest = SegmentHeader.decode(data[:HEADER_BYTES]).salt, hashlib.blake2b(data).digest()
        if salts.setdefault(salt, digest) != digest:
            problems.append(f"{path.name} shares its salt with another segment")
    nonces: Counter[tuple[int, bytes]] = Counter()
    names = dict(vault.rows("SELECT id, name FROM segment WHERE name IS NOT NULL"))
    contents = {number: vault.layout.sealed_path(SegmentName(name)) for number, name in names.items()}
    for segment, offset in vault.rows("SELECT DISTINCT segment, offset FROM chunk"):
        if segment in contents and contents[segment].is_file():
            nonces[segment, contents[segment].read_bytes()[offset : offset + NONCE_BYTES]] += 1
    return problems + [
        f"a nonce occurs {count} times in segment {key[0]}" for key, count in nonces.items() if count > 1
    ]
