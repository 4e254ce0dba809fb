"""What a power cut can leave of files and directories, after POSIX at its most pessimistic or a journal.

A recording holds every change of a directory tree.  POSIX promises that bytes are on the disk once ``fsync`` of their
file has returned, and a name once ``fsync`` of its directory has.  Everything else may be there or not, whole or torn,
in any order.  `Recording.crash` makes one such tree for a position in the recording and a `Loss`.

What is more than pessimistic is left out: a rename within a directory is atomic, and a name that moved between
directories never disappears from both.
"""

from __future__ import annotations

import enum
import hashlib
import os
import random
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

PAGE_BYTES = 4096
SECTOR_BYTES = 512

UNDURABLE_SUFFIX = b"-shm"
"""SQLite's shared memory: written through mmap, and rebuilt after a crash whatever is in it."""


class Loss(enum.Enum):
    """What of that which was not synced is lost."""

    NOTHING = "nothing: a kill, the page cache survives"
    EVERYTHING = "everything"
    DATA = "bytes, but no name and no size"
    NAMES = "names, but no bytes"
    JOURNAL = "bytes at random; of names, sizes and holes the last changes, by chance, in the order of a journal"
    SCATTERED = "bytes and names at random"


@dataclass(frozen=True, slots=True)
class Change:
    """One change of a file's bytes: a write of ``data`` at ``offset``, or without data a new size.

    Attributes:
        end: position in the recording at which it was complete.
        offset: bytes.
        data: what was written; None where the size became ``offset``.
        is_hole: the zeros in ``data`` are a hole.  Holes and sizes are metadata, so a journal keeps their order.
    """

    end: int
    offset: int
    data: bytes | None
    is_hole: bool = False


@dataclass(frozen=True, slots=True)
class Naming:
    """One change of a directory: names that now mean a node, or None: nothing.

    Attributes:
        end: position in the recording at which it was complete.
        names: all change at once.
        needs_arrival: the name moved to another directory, in the change with the same end.
    """

    end: int
    names: tuple[tuple[bytes, int | None], ...]
    needs_arrival: bool = False


@dataclass(slots=True)
class Node:
    """A file, directory or symlink."""

    content: bytes = b""
    target: bytes | None = None
    entries: dict[bytes, int] | None = None
    changes: list[Change] = field(default_factory=list)
    namings: list[Naming] = field(default_factory=list)
    syncs: list[tuple[int, int]] = field(default_factory=list)


Tree = dict[bytes, tuple[int, bytes | None]]
"""Path relative to the root: the node's number, and its bytes; None for a directory."""


@dataclass(frozen=True, slots=True)
class State:
    """What is on the disk after the cut."""

    tree: Tree
    targets: dict[bytes, bytes]

    def digest(self) -> bytes:
        """Equal for equal states; what is in SQLite's shared memory counts for nothing, as it is always made anew."""
        digest = hashlib.blake2b()
        for path, (_, content) in sorted(self.tree.items()):
            kept = b"" if content is not None and path.endswith(UNDURABLE_SUFFIX) else content
            digest.update(repr((path, None if kept is None else len(kept))).encode())
            digest.update(kept or b"")
        digest.update(repr(sorted(self.targets.items())).encode())
        return digest.digest()

    def write_to(self, root: Path) -> None:
        """Make ``root`` look like this, whatever it was before."""
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(mode=0o700)
        base = os.fsencode(root)
        linked: dict[int, bytes] = {}
        for path, (node, content) in sorted(self.tree.items()):
            full = os.path.join(base, path)
            if content is None:
                os.mkdir(full, 0o700)
            elif node in linked:
                os.link(linked[node], full)
            else:
                linked[node] = full
                with open(full, "wb", buffering=0, opener=_private) as file:
                    file.write(content)
        for path, target in self.targets.items():
            os.symlink(target, os.path.join(base, path))


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


class Recording:
    """The history of a directory tree: what it was at first, and every change since.  Node 0 is its root."""

    def __init__(self) -> None:
        self.nodes: list[Node] = [Node(entries={})]
        self.cuts: list[int] = []

    def crash(self, cut: int, loss: Loss, seed: int = 0) -> State:
        """The tree after a cut.

        Args:
            cut: position in the recording; what was complete before it has happened.
            loss: what of that is lost.
            seed: chooses among what is possible, where chance decides.
        """
        chance = random.Random(f"{cut} {loss.name} {seed}")
        journal_end = self._journal_end(cut, chance) if loss is Loss.JOURNAL else cut
        kept = [self._surviving(node, cut, loss, chance, journal_end) for node in self.nodes]
        arrivals = {naming.end for namings in kept for naming in namings if not naming.needs_arrival}
        names = [_entries(node, namings, arrivals) for node, namings in zip(self.nodes, kept, strict=True)]
        state = State({}, {})
        self._walk(0, b"", names, state, _Bytes(cut, loss, chance, journal_end))
        return state

    def _walk(self, number: int, path: bytes, names: list[dict[bytes, int]], state: State, content: _Bytes) -> None:
        for name, child in sorted(names[number].items()):
            node, where = self.nodes[child], os.path.join(path, name)
            if node.target is not None:
                state.targets[where] = node.target
            elif node.entries is not None:
                state.tree[where] = (child, None)
                self._walk(child, where, names, state, content)
            else:
                state.tree[where] = (child, content.of(child, node))

    def _journal_end(self, cut: int, chance: random.Random) -> int:
        """Metadata changed before this position survives: at least that before the last sync of anything."""
        floor = max((begin for node in self.nodes for begin, end in node.syncs if end < cut), default=0)
        ends = {naming.end for node in self.nodes for naming in node.namings if floor <= naming.end < cut}
        for node in self.nodes:
            for change in node.changes:
                if floor <= change.end < cut and (change.data is None or change.is_hole):
                    ends.add(change.end)
        return chance.choice([floor, *(end + 1 for end in sorted(ends))])

    def _surviving(self, node: Node, cut: int, loss: Loss, chance: random.Random, journal_end: int) -> list[Naming]:
        """Which changes of a directory are on the disk after the cut."""
        kept = []
        synced = _synced_before(node, cut)
        dropped: set[bytes] = set()
        for naming in node.namings:
            if naming.end >= cut:
                continue
            if naming.end >= synced:
                if loss in {Loss.EVERYTHING, Loss.NAMES} or (loss is Loss.JOURNAL and naming.end >= journal_end):
                    continue
                if loss is Loss.SCATTERED:
                    touched = {name for name, _ in naming.names}
                    # Of one name the changes keep their order: after a lost one the later ones are lost too.
                    if touched & dropped or chance.random() < 0.4:
                        dropped |= touched
                        continue
            kept.append(naming)
        return kept


def _entries(node: Node, namings: list[Naming], arrivals: set[int]) -> dict[bytes, int]:
    """What a directory holds after some changes, where names that left it only leave if they have arrived."""
    entries = dict(node.entries or {})
    for naming in namings:
        if naming.needs_arrival and naming.end not in arrivals:
            continue
        for name, child in naming.names:
            if child is None:
                entries.pop(name, None)
            else:
                entries[name] = child
    return entries


def _synced_before(node: Node, cut: int) -> int:
    """Changes of the node that were complete before this position are durable at the cut."""
    return max((begin for begin, end in node.syncs if end < cut), default=-1)


@dataclass(slots=True)
class _Bytes:
    """Decides the bytes of each file, once."""

    cut: int
    loss: Loss
    chance: random.Random
    journal_end: int
    known: dict[int, bytes] = field(default_factory=dict)

    def of(self, number: int, node: Node) -> bytes:
        if number not in self.known:
            self.known[number] = self._decide(node)
        return self.known[number]

    def _decide(self, node: Node) -> bytes:
        done = [change for change in node.changes if change.end < self.cut]
        synced = _synced_before(node, self.cut)
        durable = [change for change in done if change.end < synced]
        volatile = [change for change in done if change.end >= synced]
        content = bytearray(node.content)
        _apply(content, durable)
        if self.loss is Loss.NOTHING:
            _apply(content, volatile)
        elif self.loss is Loss.DATA:
            size = bytearray(content)
            _apply(size, volatile)
            _resize(content, len(size))
        elif self.loss in {Loss.JOURNAL, Loss.SCATTERED}:
            for change in volatile:
                self._apply_by_chance(content, change)
        return bytes(content)

    def _apply_by_chance(self, content: bytearray, change: Change) -> None:
        if self.loss is Loss.JOURNAL and (change.data is None or change.is_hole):
            if change.end < self.journal_end:
                _apply(content, [change])
            return
        fate = self.chance.random()
        if fate < 0.4:
            _apply(content, [change])
        elif change.data is not None:
            end = change.offset + len(change.data)
            if fate < 0.7:  # lost; in half of the cases the size is kept, and zeros are there
                if self.chance.random() < 0.5 and end > len(content):
                    _resize(content, end)
                return
            unit = self.chance.choice([PAGE_BYTES, SECTOR_BYTES])
            for begin in range(change.offset // unit * unit, end, unit):
                if self.chance.random() < 0.5:
                    left, right = max(begin, change.offset), min(begin + unit, end)
                    piece = change.data[left - change.offset : right - change.offset]
                    _apply(content, [Change(change.end, left, piece)])


def _apply(content: bytearray, changes: Iterable[Change]) -> None:
    for change in changes:
        if change.data is None:
            _resize(content, change.offset)
        else:
            if len(content) < change.offset:
                _resize(content, change.offset)
            content[change.offset : change.offset + len(change.data)] = change.data


def _resize(content: bytearray, size: int) -> None:
    if size < len(content):
        del content[size:]
    else:
        content.extend(bytes(size - len(content)))
