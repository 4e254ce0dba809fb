"""Workloads: lists of operations that depend on nothing but a seed, and what a vault may show after any of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .recorder import Mark
from .stores import ModelStore, Store, Tree, differences

CANARY: Final = "canary-7f1c9e"
"""Is in contents, names, attributes and symlinks; must be in no byte on the disk."""

PROMISES: Final = frozenset({"commit", "fsync", "snapshot", "reopen"})
"""Operations after which the state must survive."""

BLOCK: Final = 4096
"""The chunk size of vaults under test: small, so that files of a few dozen KiB have many chunks."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One call of a `Store`: the method's name and its arguments; ``reopen`` closes and opens."""

    verb: str
    arguments: tuple[str | int | bytes, ...] = ()

    def __str__(self) -> str:
        shown = [f"<{len(a)} bytes>" if isinstance(a, bytes) else repr(a) for a in self.arguments]
        return f"{self.verb}({', '.join(shown)})"


def apply(store: Store, operation: Operation, reopen: Callable[[], Store]) -> Store:
    """Execute one operation and return the store to go on with."""
    if operation.verb == "reopen":
        store.close()
        return reopen()
    getattr(store, operation.verb)(*operation.arguments)
    return store


def run(operations: Sequence[Operation], reopen: Callable[[], Store], marks: Path) -> None:
    """Execute a workload, and write to ``marks`` when each operation begins and when it has returned."""
    with marks.open("wb", buffering=0) as log:
        store = reopen()
        for index, operation in enumerate(operations):
            log.write(b"begin %d\n" % index)
            store = apply(store, operation, reopen)
            log.write(b"end %d\n" % index)
        store.close()


class Expectation:
    """What may be seen after a crash within a workload."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        model = ModelStore()
        self.operations = operations
        self._survivors: range | None = None
        self.trees: list[Tree] = [model.tree()]
        """``trees[n]`` is the truth after ``n`` operations."""
        for operation in operations:
            apply(model, operation, lambda: model)
            self.trees.append(model.tree())

    def bounds(self, marks: Sequence[Mark], cut: int) -> range:
        """How many operations may have survived a crash at a position of the recording."""
        if self._survivors is not None:
            return self._survivors
        begun = promised = 0
        for mark in marks:
            if mark.position >= cut:
                break
            word, index = mark.text.split()
            if word == "begin":
                begun = int(index) + 1
            elif self.is_promise(mark):
                promised = int(index) + 1
        return range(promised, begun + 1)

    def from_now_on(self, survivors: range) -> Expectation:
        """What may be seen after another crash, in which nothing is done but to open and close."""
        now = Expectation([])
        now.trees, now._survivors = self.trees, survivors
        return now

    def is_promise(self, mark: Mark) -> bool:
        """Whether a mark says that everything before it must survive from now on."""
        word, index = mark.text.split()
        return word == "end" and self.operations[int(index)].verb in PROMISES

    def mismatch(self, tree: Tree, survivors: range) -> str:
        """Empty if the tree is that of one moment within the bounds, else what is wrong with it."""
        closest: list[str] = []
        for index in survivors:
            found = differences(self.trees[index], tree)
            if not found:
                return ""
            if not closest or len(found) < len(closest):
                closest = found
        for index, earlier in enumerate(self.trees):
            if not differences(earlier, tree):
                return f"the tree is that after operation {index}: a promise was broken"
        return f"no moment had this tree; the closest differs: {'; '.join(closest[:5])}"


class _Generator:
    """Chooses operations that make sense in the state they meet."""

    def __init__(self, seed: str) -> None:
        self.chance = random.Random(seed)
        self.model = ModelStore()
        self.operations: list[Operation] = []
        self._names = 0

    def add(self, verb: str, *arguments: str | int | bytes) -> None:
        operation = Operation(verb, arguments)
        apply(self.model, operation, lambda: self.model)
        self.operations.append(operation)

    def new_name(self, directory: str | None = None) -> str:
        self._names += 1
        parent = self.pick("d") if directory is None else directory
        return f"{parent}/{CANARY}-{self._names}".lstrip("/")

    def pick(self, kind: str) -> str:
        """Some path of a kind; for directories also the root, for files a new name if there is none."""
        paths = [path for path, node in self.model.nodes() if node.kind == kind]
        if kind == "d":
            paths.append("")
        return self.chance.choice(paths) if paths else self.new_name("")

    def existing_file(self) -> str:
        path = self.pick("f")
        if all(path != known for known, _ in self.model.nodes()):
            self.add("write", path, 0, self.payload())
        return path

    def payload(self, largest: int = 3 * BLOCK) -> bytes:
        """Bytes with the canary in them; half of the time compressible, sometimes equal to earlier ones."""
        size = self.chance.choice([1, 100, BLOCK - 1, BLOCK, BLOCK + 1, self.chance.randrange(1, largest)])
        seed = self.chance.randrange(12)
        body = random.Random(seed).randbytes(size) if seed % 2 else f"{CANARY} {seed} ".encode() * (size // 10 + 1)
        return (CANARY.encode() + body)[:size]

    def promise(self) -> None:
        if self.chance.random() < 0.6:
            self.add("commit")
        else:
            self.add("fsync", self.existing_file())

    def offset(self, path: str) -> int:
        size = len(self.model.find(path).data)
        return self.chance.choice([0, size, self.chance.randrange(size + 1), size + self.chance.randrange(2 * BLOCK)])


def _save_documents(generator: _Generator) -> None:
    """What editors do: a new file beside the old one, fsync, rename over it."""
    target = generator.existing_file()
    beside = generator.new_name(target.rpartition("/")[0])
    generator.add("write", beside, 0, generator.payload())
    if generator.chance.random() < 0.7:
        generator.add("fsync", beside)
    generator.add("rename", beside, target)
    if generator.chance.random() < 0.3:
        generator.promise()


def _cut_and_grow(generator: _Generator, path: str) -> None:
    """What was cut off must not come back where the file grows again."""
    generator.add("write", path, 0, generator.payload(2 * BLOCK) * 2)
    generator.add("commit")
    size = generator.chance.randrange(1, len(generator.model.find(path).data))
    generator.add("truncate", path, size)
    generator.add("write", path, size + generator.chance.randrange(50, 500), generator.payload(300)[:300])
    generator.add("fsync", path)


def _rewrite(generator: _Generator) -> None:
    """Writes at all offsets, truncates both ways, holes."""
    path = generator.existing_file()
    choice = generator.chance.random()
    if choice < 0.15:
        generator.add("write", generator.new_name(), 0, generator.payload(8 * BLOCK))
    elif choice < 0.6:
        generator.add("write", path, generator.offset(path), generator.payload())
    elif choice < 0.8:
        generator.add("truncate", path, generator.offset(path))
    elif choice < 0.85:
        _cut_and_grow(generator, path)
    elif choice < 0.9:
        if generator.chance.random() < 0.5:
            generator.add("hold", path)
        generator.add("remove", path)
    if generator.chance.random() < 0.25:
        generator.promise()


def _rename_trees(generator: _Generator) -> None:
    """Names of all sorts."""
    choice = generator.chance.random()
    if choice < 0.2:
        generator.add("mkdir", generator.new_name())
    elif choice < 0.35:
        generator.add("symlink", f"{CANARY}/target/{generator.chance.randrange(9)}", generator.new_name())
    elif choice < 0.5:
        generator.add("link", generator.existing_file(), generator.new_name())
    elif choice < 0.7:
        old, parent = generator.chance.choice([generator.existing_file(), generator.pick("d")]), generator.pick("d")
        if old and not f"{parent}/".startswith(f"{old}/"):
            generator.add("rename", old, generator.new_name(parent))
    elif choice < 0.8:
        empty = [path for path, node in generator.model.nodes() if node.kind == "d" and not node.entries]
        if empty:
            generator.add("rmdir", generator.chance.choice(empty))
    elif choice < 0.9:
        generator.add("set_attribute", generator.existing_file(), f"user.{CANARY}", generator.payload(200)[:200])
    else:
        generator.add("chmod", generator.existing_file(), generator.chance.choice([0o600, 0o644, 0o755]))
    if generator.chance.random() < 0.25:
        generator.promise()


def _seal(generator: _Generator) -> None:
    """Sessions, snapshots, and much that is deleted: segments are sealed, reclaimed and compacted."""
    choice = generator.chance.random()
    if choice < 0.5:
        generator.add("write", generator.new_name(""), 0, generator.payload(8 * BLOCK))
    elif choice < 0.7:
        generator.add("remove", generator.existing_file())
    elif choice < 0.8:
        generator.add("reopen")
    elif choice < 0.87:
        if len(generator.model.snapshots) > 1:
            generator.add("drop_snapshot", generator.chance.choice(sorted(generator.model.snapshots)))
        else:
            generator.add("snapshot", f"{CANARY}-{len(generator.operations)}")
    else:
        generator.add("commit")


STEPS: Final[dict[str, Callable[[_Generator], None]]] = {
    "documents": _save_documents,
    "rewrite": _rewrite,
    "names": _rename_trees,
    "sessions": _seal,
}


def generate(name: str, seed: int, steps: int) -> list[Operation]:
    """The workload of a name: the same list for the same arguments.

    Args:
        name: a key of `STEPS`.
        seed: any number.
        steps: how often the workload's step is taken; each is one to four operations.
    """
    generator = _Generator(f"{name} {seed}")
    for _ in range(steps):
        STEPS[name](generator)
    generator.add("commit")
    return generator.operations
