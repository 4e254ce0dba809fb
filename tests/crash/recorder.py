"""Turns traced system calls into a `Recording` of one directory tree, and collects the marks left in between."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .simulated_disk import UNDURABLE_SUFFIX, Change, Naming, Node, Recording
from .trace import MUTATIONS, WRITES, Call, TraceError, absolute_paths


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that the program said between its system calls."""

    position: int
    text: str


class Recorder:
    """Follows calls, one after the other in the order of their completion.

    Args:
        root: absolute path of the tree, which must be as it was before the first call.
        marks: a file outside the tree; what is written to it are marks, one a line.
    """

    def __init__(self, root: Path, marks: Path) -> None:
        self.recording = Recording()
        self.marks: list[Mark] = []
        self._root = os.fsencode(root)
        self._marks_path = os.fsencode(marks)
        self._live: list[dict[bytes, int]] = [{}]
        self._sizes: list[int] = [0]
        self._gone: dict[bytes, int] = {}
        self._positions: dict[tuple[int, bytes], int] = {}
        self._appending: set[tuple[int, bytes]] = set()
        self._scan(0, self._root, {})

    def follow(self, calls: Iterable[Call]) -> Recording:
        """Take in all calls."""
        for call in calls:
            if any(path == self._marks_path for _, path in call.descriptors) and call.name in WRITES:
                self.marks += [Mark(call.end, line) for line in b"".join(call.strings).decode().splitlines()]
            elif self._concerns(call):
                self._take(call)
                if call.name in MUTATIONS:
                    self.recording.cuts.append(call.end + 1)
        return self.recording

    # --- the tree as it was

    def _scan(self, number: int, path: bytes, seen: dict[int, int]) -> None:
        for entry in os.scandir(path):
            status = entry.stat(follow_symlinks=False)
            if status.st_ino in seen:
                child = seen[status.st_ino]
            elif stat.S_ISDIR(status.st_mode):
                child = self._new(Node(entries={}), 0)
                self._scan(child, entry.path, seen)
            elif stat.S_ISLNK(status.st_mode):
                child = self._new(Node(target=os.readlink(entry.path)), 0)
            else:
                content = Path(os.fsdecode(entry.path)).read_bytes()
                child = self._new(Node(content=content), len(content))
            seen[status.st_ino] = child
            entries = self.recording.nodes[number].entries
            assert entries is not None
            entries[entry.name] = self._live[number][entry.name] = child

    def _new(self, node: Node, size: int) -> int:
        self.recording.nodes.append(node)
        self._live.append({})
        self._sizes.append(size)
        return len(self.recording.nodes) - 1

    # --- names

    def _inside(self, path: bytes) -> bool:
        return path == self._root or path.startswith(self._root + b"/")

    def _concerns(self, call: Call) -> bool:
        paths = [path for _, path in call.descriptors] + [call.result_path]
        if call.name not in WRITES:
            paths += absolute_paths(call)
        return any(self._inside(path) for path in paths)

    def _lookup(self, path: bytes) -> int | None:
        """The node that a path names now."""
        number = 0
        for name in path[len(self._root) :].split(b"/"):
            if name:
                child = self._live[number].get(name)
                if child is None:
                    return None
                number = child
        return number

    def _node(self, path: bytes) -> int:
        """The node of an open descriptor or an existing name."""
        number = self._lookup(path)
        if number is None:
            number = self._gone.get(path)
        if number is None:
            raise TraceError(f"nothing is known about {path!r}")
        return number

    def _split(self, path: bytes) -> tuple[int, bytes]:
        parent, name = os.path.split(path)
        return self._node(parent), name

    def _name(self, call: Call, *changes: tuple[bytes, int | None]) -> None:
        """Record that names change: at once where they are in the same directory."""
        by_parent: dict[int, list[tuple[bytes, int | None]]] = {}
        for path, child in changes:
            parent, name = self._split(path)
            by_parent.setdefault(parent, []).append((name, child))
            if child is None:
                self._gone[path] = self._live[parent].pop(name)
            else:
                self._live[parent][name] = child
        for parent, names in by_parent.items():
            leaves = len(by_parent) > 1 and all(child is None for _, child in names)
            self.recording.nodes[parent].namings.append(Naming(call.end, tuple(names), needs_arrival=leaves))

    # --- calls

    def _take(self, call: Call) -> None:
        match call.name:
            case "open" | "openat" | "creat":
                self._open(call)
            case "write" | "writev" | "pwrite64" | "pwritev" | "pwritev2":
                self._write(call)
            case "lseek":
                self._positions[call.descriptors[0]] = call.result
            case "fsync" | "fdatasync":
                self.recording.nodes[self._node(call.descriptors[0][1])].syncs.append((call.start, call.end))
            case "sync" | "syncfs":
                for node in self.recording.nodes:
                    node.syncs.append((call.start, call.end))
            case "sync_file_range":
                pass  # promises nothing
            case "truncate":
                self._resize(call, self._node(absolute_paths(call)[0]), int(call.arguments[1]))
            case "ftruncate":
                self._resize(call, self._node(call.descriptors[0][1]), int(call.arguments[1]))
            case "fallocate":
                self._allocate(call)
            case "mkdir" | "mkdirat":
                self._name(call, (absolute_paths(call)[0], self._new(Node(entries={}), 0)))
            case "symlink" | "symlinkat":
                target, path = absolute_paths(call)
                self._name(call, (path, self._new(Node(target=target), 0)))
            case "unlink" | "unlinkat" | "rmdir":
                self._name(call, (absolute_paths(call)[0], None))
            case "link" | "linkat":
                source, path = absolute_paths(call)
                self._name(call, (path, self._node(source)))
            case "rename" | "renameat" | "renameat2":
                self._rename(call)
            case "mmap":
                flags = " ".join(call.arguments)
                path = call.descriptors[0][1]
                if "PROT_WRITE" in flags and "MAP_SHARED" in flags and not path.endswith(UNDURABLE_SUFFIX):
                    raise TraceError(f"writes through mmap are not recorded: {path!r}")
            case _:
                raise TraceError(f"{call.name} is not recorded")

    def _open(self, call: Call) -> None:
        path, flags = call.result_path, call.arguments[2 if call.name == "openat" else 1]
        opened = (call.result, path)
        self._positions[opened] = 0
        self._appending.discard(opened)
        if "O_TMPFILE" in flags:
            raise TraceError("O_TMPFILE is not recorded")
        if "O_APPEND" in flags:
            self._appending.add(opened)
        if "O_CREAT" in flags and self._lookup(path) is None:
            self._name(call, (path, self._new(Node(), 0)))
            self.recording.cuts.append(call.end + 1)
        elif "O_TRUNC" in flags:
            self._resize(call, self._node(path), 0)
            self.recording.cuts.append(call.end + 1)

    def _write(self, call: Call) -> None:
        opened = call.descriptors[0]
        number = self._node(opened[1])
        data = b"".join(call.strings)[: call.result]
        offset = int(call.arguments[3]) if call.name.startswith("p") else -1
        if offset < 0:
            offset = self._sizes[number] if opened in self._appending else self._positions.get(opened, 0)
            self._positions[opened] = offset + len(data)
        self.recording.nodes[number].changes.append(Change(call.end, offset, data))
        self._sizes[number] = max(self._sizes[number], offset + len(data))

    def _resize(self, call: Call, number: int, size: int) -> None:
        self.recording.nodes[number].changes.append(Change(call.end, size, None))
        self._sizes[number] = size

    def _allocate(self, call: Call) -> None:
        number = self._node(call.descriptors[0][1])
        mode, offset, length = call.arguments[1], int(call.arguments[2]), int(call.arguments[3])
        if "PUNCH_HOLE" in mode or "ZERO_RANGE" in mode:
            zeros = bytes(max(0, min(length, self._sizes[number] - offset)))
            self.recording.nodes[number].changes.append(Change(call.end, offset, zeros, is_hole=True))
        elif mode == "0":
            self._resize(call, number, max(self._sizes[number], offset + length))
        elif mode != "FALLOC_FL_KEEP_SIZE":
            raise TraceError(f"fallocate with {mode} is not recorded")

    def _rename(self, call: Call) -> None:
        source, path = absolute_paths(call)
        moved, replaced = self._node(source), self._lookup(path)
        if "RENAME_EXCHANGE" in call.arguments[-1]:
            assert replaced is not None
            self._name(call, (path, moved), (source, replaced))
            return
        if replaced is not None:
            self._gone[path] = replaced
        self._name(call, (path, moved), (source, None))
