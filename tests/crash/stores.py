"""What crash workloads write to: one interface, a model in memory, and stores that keep their promise on a disk."""

from __future__ import annotations

import errno
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import apsw


class Entry(NamedTuple):
    """What is visible of one name.

    Attributes:
        kind: ``d``, ``f`` or ``l``.
        data: bytes of a file, target of a symlink.
        nlink: number of names; 0 for directories.
        mode: permissions; None where nobody has set them.
        attributes: extended attributes, sorted.
    """

    kind: str
    data: bytes
    nlink: int
    mode: int | None
    attributes: tuple[tuple[str, bytes], ...]


Tree = dict[str, Entry]
"""Every name below the root, as ``a/b``, and every name in a snapshot, as ``@label/a/b``."""


def differences(expected: Tree, found: Tree) -> list[str]:
    """What differs, a line each; permissions count only where the expected tree states them."""
    lines = [f"{path} is missing" for path in sorted(expected.keys() - found.keys())]
    lines += [f"{path} should not exist" for path in sorted(found.keys() - expected.keys())]
    for path in sorted(expected.keys() & found.keys()):
        wanted, seen = expected[path], found[path]
        if wanted.mode is None:
            seen = seen._replace(mode=None)
        for name, left, right in zip(Entry._fields, wanted, seen, strict=True):
            if left != right:
                lines.append(f"{path}: {name} is {_short(right)}, not {_short(left)}")
    return lines


def _short(value: object) -> str:
    if isinstance(value, bytes) and len(value) > 40:
        return f"{len(value)} bytes {value[:20]!r}..."
    return repr(value)


class Store(Protocol):
    """A small file tree; paths are relative and exist as the operation needs them."""

    def mkdir(self, path: str) -> None: ...
    def rmdir(self, path: str) -> None: ...
    def write(self, path: str, offset: int, data: bytes) -> None:
        """Write at an offset; creates the file."""

    def truncate(self, path: str, size: int) -> None: ...
    def remove(self, path: str) -> None: ...
    def rename(self, old: str, new: str) -> None: ...
    def link(self, old: str, new: str) -> None: ...
    def symlink(self, target: str, path: str) -> None: ...
    def chmod(self, path: str, mode: int) -> None: ...
    def set_attribute(self, path: str, name: str, value: bytes) -> None: ...
    def hold(self, path: str) -> None:
        """Keep the file open until the store is closed, whatever becomes of its name."""

    def fsync(self, path: str) -> None:
        """On return, what the file holds now survives anything."""

    def commit(self) -> None:
        """On return, everything so far survives anything."""

    def snapshot(self, label: str) -> None:
        """As commit; keep what is there now."""

    def drop_snapshot(self, label: str) -> None: ...
    def close(self) -> None:
        """As commit, and end."""

    def tree(self) -> Tree: ...


@dataclass(slots=True)
class ModelNode:
    """A file, directory or symlink in memory."""

    kind: str
    data: bytearray = field(default_factory=bytearray)
    entries: dict[str, ModelNode] = field(default_factory=dict)
    mode: int | None = None
    attributes: dict[str, bytes] = field(default_factory=dict)


class ModelStore:
    """The truth: a tree in memory that nothing ever happens to."""

    def __init__(self) -> None:
        self.root = ModelNode("d")
        self.snapshots: dict[str, Tree] = {}

    def find(self, path: str) -> ModelNode:
        """The node at a path; ENOENT if there is none."""
        node = self.root
        for name in path.split("/") if path else []:
            if name not in node.entries:
                raise FileNotFoundError(errno.ENOENT, path)
            node = node.entries[name]
        return node

    def _place(self, path: str) -> tuple[dict[str, ModelNode], str]:
        parent, _, name = path.rpartition("/")
        return self.find(parent).entries, name

    def mkdir(self, path: str) -> None:
        entries, name = self._place(path)
        entries[name] = ModelNode("d")

    def rmdir(self, path: str) -> None:
        self.remove(path)

    def write(self, path: str, offset: int, data: bytes) -> None:
        entries, name = self._place(path)
        content = entries.setdefault(name, ModelNode("f")).data
        content.extend(bytes(max(0, offset - len(content))))
        content[offset : offset + len(data)] = data

    def truncate(self, path: str, size: int) -> None:
        content = self.find(path).data
        del content[size:]
        content.extend(bytes(size - len(content)))

    def remove(self, path: str) -> None:
        entries, name = self._place(path)
        del entries[name]

    def rename(self, old: str, new: str) -> None:
        source, name = self._place(old)
        node = source.pop(name)
        target, name = self._place(new)
        target[name] = node

    def link(self, old: str, new: str) -> None:
        entries, name = self._place(new)
        entries[name] = self.find(old)

    def symlink(self, target: str, path: str) -> None:
        entries, name = self._place(path)
        entries[name] = ModelNode("l", bytearray(target.encode()))

    def chmod(self, path: str, mode: int) -> None:
        self.find(path).mode = mode

    def set_attribute(self, path: str, name: str, value: bytes) -> None:
        self.find(path).attributes[name] = value

    def hold(self, path: str) -> None:
        pass

    def fsync(self, path: str) -> None:
        pass

    def commit(self) -> None:
        pass

    def snapshot(self, label: str) -> None:
        self.snapshots[label] = self._present()

    def drop_snapshot(self, label: str) -> None:
        del self.snapshots[label]

    def close(self) -> None:
        pass

    def nodes(self, node: ModelNode | None = None, prefix: str = "") -> Iterator[tuple[str, ModelNode]]:
        """Every path with its node, parents first."""
        for name, child in sorted((node or self.root).entries.items()):
            yield prefix + name, child
            yield from self.nodes(child, f"{prefix}{name}/")

    def tree(self) -> Tree:
        found = self._present()
        for label, tree in self.snapshots.items():
            found[f"@{label}"] = Entry("d", b"", 0, None, ())
            found.update({f"@{label}/{path}": entry for path, entry in tree.items()})
        return found

    def _present(self) -> Tree:
        found = list(self.nodes())
        names: dict[int, int] = {}
        for _, node in found:
            names[id(node)] = names.get(id(node), 0) + 1
        return {
            path: Entry(
                node.kind,
                bytes(node.data),
                0 if node.kind == "d" else names[id(node)],
                node.mode,
                tuple(sorted(node.attributes.items())),
            )
            for path, node in found
        }


class SqliteStore(ModelStore):
    """A store that is known to be safe, to test the tests: one row in SQLite for the whole tree, ``synchronous=FULL``.

    Args:
        root: a directory.
        synchronous: SQLite's setting; ``OFF`` makes it a store that breaks its promise.
    """

    def __init__(self, root: Path, synchronous: str = "FULL") -> None:
        super().__init__()
        self._database = apsw.Connection(str(root / "store.db"))
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute(f"PRAGMA synchronous={synchronous}")
        self._database.execute("CREATE TABLE IF NOT EXISTS tree (id INTEGER PRIMARY KEY, text BLOB)")
        row = self._database.execute("SELECT text FROM tree").fetchone()
        nodes: dict[int, ModelNode] = {}
        present, self.snapshots = pickle.loads(row[0]) if row else ([], {})
        for path, number, kind, data, mode, attributes in present:
            node = nodes.setdefault(number, ModelNode(kind, data, {}, mode, attributes))
            parent, _, name = path.rpartition("/")
            self.find(parent).entries[name] = node
        for label, tree in self.snapshots.items():
            self.snapshots[label] = {path: Entry(*entry) for path, entry in tree.items()}

    def commit(self) -> None:
        present = [(path, id(node), node.kind, node.data, node.mode, node.attributes) for path, node in self.nodes()]
        snapshots = {
            label: {path: tuple(entry) for path, entry in tree.items()} for label, tree in self.snapshots.items()
        }
        text = pickle.dumps((present, snapshots))
        self._database.execute("INSERT OR REPLACE INTO tree VALUES (1, ?)", (text,))

    def fsync(self, path: str) -> None:
        self.commit()

    def snapshot(self, label: str) -> None:
        super().snapshot(label)
        self.commit()

    def close(self) -> None:
        self.commit()
        self._database.close()
