"""A state machine: the same operations on two folders must have the same outcome, whatever their order.

Everything a program does through system calls is a rule: names, data at all offsets, mmap, links, attributes, files
that are open without a name; and what happens to a folder: a restart, and the death of its daemon.  After a restart
nothing may have changed.  After a crash the names are those of one moment since the last promise.  A file that was not
changed since it was synced is as it was; of others, every byte is one that stood there since.  (The kernel keeps what
was written for a while, so the daemon cannot promise more.)
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import random
import shutil
import stat
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from .folders import Folder
from .observing import Tree, attributes_of, describe_differences, look, look_at_all, times_of

NAMES = ["a", "b", "c", "with space", "ümläut", "n" * 255, "\udcff\udc80"]
BLOCK = 4096
LARGEST = 6 * BLOCK
CALM_STEPS = 8
"""So many changes lie between two restarts or crashes: each takes a second, and tells nothing without changes."""
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
AT_FDCWD = -100

_libc = ctypes.CDLL(None, use_errno=True)

names = st.sampled_from(NAMES)
offsets = st.one_of(st.integers(0, LARGEST), st.sampled_from([0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK]))
sizes = st.one_of(st.integers(0, LARGEST), st.sampled_from([0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK]))
seeds = st.integers(0, 5)
modes = st.sampled_from([0o600, 0o644, 0o755, 0o000, 0o4755, 0o2755, 0o1777])
attribute_names = st.sampled_from(["user.a", "user.b", "user." + "x" * 200])


def payload(seed: int, size: int) -> bytes:
    """Bytes that depend on the seed: zeros, text, or random ones."""
    if seed == 0:
        return bytes(size)
    if seed == 1:
        return (b"the same line again\n" * (size // 20 + 1))[:size]
    return random.Random(seed).randbytes(size)


@dataclass(slots=True)
class Handle:
    """The same file, open in both folders."""

    descriptors: tuple[int, int]
    path: str

    def close(self) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)


@dataclass(frozen=True, slots=True)
class Moment:
    """The reference at some time.

    Attributes:
        inodes: the inode number of each regular file.
    """

    tree: Tree
    inodes: dict[str, int]

    @classmethod
    def of(cls, root: Path) -> Moment:
        """What is there now."""
        tree = look_at_all(root)
        files = [path for path, seen in tree.items() if seen.kind == stat.S_IFREG]
        return cls(tree, {path: (root / path).lstat().st_ino for path in files})


class Machine(RuleBasedStateMachine):
    """Two folders that must stay equal.

    Args:
        subject: the folder under test.
        reference: a folder that is known to be right.
    """

    runs = 0

    def __init__(self, subject: Folder, reference: Folder) -> None:
        super().__init__()
        self.subject, self.reference = subject, reference
        self.handles: list[Handle] = []
        type(self).runs += 1
        self._calm = 0
        self._moments: list[Moment] = []
        self._versions: dict[int, list[bytes]] = {}
        self._directory = f"run-{os.getpid()}-{type(self).runs}"

    @initialize()
    def begin(self) -> None:
        for root in self._roots():
            root.mkdir()
        _sync_all(self._roots()[0])
        self._promised()

    def _roots(self) -> tuple[Path, Path]:
        return self.subject.path / self._directory, self.reference.path / self._directory

    # --- doing everything twice

    def _both(self, work: Callable[[Path], Any]) -> Any:
        """Do something in both folders; results and errors must be equal."""
        outcomes = [_outcome(work, root) for root in self._roots()]
        assert outcomes[0] == outcomes[1], f"{outcomes[0]!r} in the vault, {outcomes[1]!r} in the directory"
        return outcomes[0]

    def _changed(self) -> None:
        """Note all names and bytes that may be seen after a crash."""
        now = Moment.of(self._roots()[1])
        self._moments.append(now)
        self._calm += 1
        for path, inode in now.inodes.items():
            versions = self._versions.setdefault(inode, [b""])
            if versions[-1] != now.tree[path].content:
                versions.append(now.tree[path].content)

    def _promised(self) -> None:
        """From now on, what is there now survives."""
        now = Moment.of(self._roots()[1])
        self._calm = 0
        self._moments = [now]
        self._versions = {inode: [now.tree[path].content] for path, inode in now.inodes.items()}

    @property
    def _tree(self) -> Tree:
        return self._moments[-1].tree

    def _pick(self, data: st.DataObject, *, new: bool = False) -> str:
        """A path: of something that exists, or a name in a directory that exists."""
        known = sorted(self._tree)
        directories = ["", *(path for path in known if self._tree[path].kind == stat.S_IFDIR)]
        if known and not new and data.draw(st.integers(0, 9)) > 0:
            return data.draw(st.sampled_from(known))
        parent = data.draw(st.sampled_from(directories))
        return str(Path(parent, data.draw(names)))

    # --- names

    @rule(data=st.data(), mode=modes)
    def mkdir(self, data: st.DataObject, mode: int) -> None:
        path = self._pick(data, new=True)
        self._both(lambda root: (root / path).mkdir(mode))
        self._changed()

    @rule(data=st.data())
    def rmdir(self, data: st.DataObject) -> None:
        path = self._pick(data)
        self._both(lambda root: (root / path).rmdir())
        self._changed()

    @rule(data=st.data())
    def unlink(self, data: st.DataObject) -> None:
        path = self._pick(data)
        self._both(lambda root: (root / path).unlink())
        self._changed()

    @rule(data=st.data(), flags=st.sampled_from([0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE]))
    def rename(self, data: st.DataObject, flags: int) -> None:
        old, new = self._pick(data), self._pick(data, new=data.draw(st.booleans()))
        self._both(lambda root: _renameat2(root / old, root / new, flags))
        self._changed()

    @rule(data=st.data())
    def link(self, data: st.DataObject) -> None:
        old, new = self._pick(data), self._pick(data, new=True)
        self._both(lambda root: os.link(root / old, root / new, follow_symlinks=False))
        self._changed()

    @rule(data=st.data(), pointee=st.sampled_from(["a", "../b", "/nowhere", "t" * 1000]))
    def symlink(self, data: st.DataObject, pointee: str) -> None:
        path = self._pick(data, new=True)
        self._both(lambda root: (root / path).symlink_to(pointee))
        self._changed()

    @rule(data=st.data(), kind=st.sampled_from([stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFREG]))
    def mknod(self, data: st.DataObject, kind: int) -> None:
        path = self._pick(data, new=True)
        self._both(lambda root: os.mknod(root / path, kind | 0o640))
        self._changed()

    @rule(data=st.data())
    def listdir(self, data: st.DataObject) -> None:
        path = self._pick(data)
        self._both(lambda root: sorted(os.listdir(root / path)))

    # --- attributes

    @rule(data=st.data(), mode=modes)
    def chmod(self, data: st.DataObject, mode: int) -> None:
        path = self._pick(data)
        self._both(lambda root: _without_links(root, path).chmod(mode))
        self._changed()

    @rule(data=st.data(), owner=st.sampled_from([0, 1000]), group=st.sampled_from([-1, 0, 1000]))
    @precondition(lambda _: os.geteuid() == 0)
    def chown(self, data: st.DataObject, owner: int, group: int) -> None:
        path = self._pick(data)
        self._both(lambda root: os.chown(root / path, owner, group, follow_symlinks=False))
        self._changed()

    @rule(data=st.data(), time_ns=st.sampled_from([0, 1, 999_999_999, 2**31 * 10**9 + 7, 1_700_000_000_123_456_789]))
    def utime(self, data: st.DataObject, time_ns: int) -> None:
        path = self._pick(data)

        def work(root: Path) -> tuple[int, int]:
            os.utime(root / path, ns=(time_ns, time_ns + 1), follow_symlinks=False)
            status = (root / path).lstat()
            return status.st_atime_ns, status.st_mtime_ns

        self._both(work)
        self._changed()

    @rule(data=st.data(), name=attribute_names, seed=seeds, size=st.integers(0, 500))
    def set_attribute(self, data: st.DataObject, name: str, seed: int, size: int) -> None:
        path, flags = self._pick(data), data.draw(st.sampled_from([0, os.XATTR_CREATE, os.XATTR_REPLACE]))
        self._both(lambda root: os.setxattr(_without_links(root, path), name, payload(seed, size), flags))
        self._both(lambda root: attributes_of(_without_links(root, path)))
        self._changed()

    @rule(data=st.data(), name=attribute_names)
    def remove_attribute(self, data: st.DataObject, name: str) -> None:
        path = self._pick(data)
        self._both(lambda root: os.removexattr(_without_links(root, path), name))
        self._changed()

    @rule(data=st.data())
    def look_closely(self, data: st.DataObject) -> None:
        path = self._pick(data)
        self._both(lambda root: look(root / path))

    # --- data

    @rule(
        data=st.data(),
        flags=st.sampled_from([os.O_CREAT, os.O_CREAT | os.O_EXCL, os.O_TRUNC, os.O_APPEND, 0]),
    )
    def open(self, data: st.DataObject, flags: int) -> None:
        path = self._pick(data, new=bool(flags & os.O_CREAT))
        opened: list[int] = []

        def work(root: Path) -> None:
            mode = stat.S_IFMT((root / path).lstat().st_mode) if os.path.lexists(root / path) else stat.S_IFREG
            if mode == stat.S_IFREG:  # opening a FIFO would wait for another program
                opened.append(os.open(root / path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | flags, 0o640))

        self._both(work)
        if len(opened) == 2:
            self.handles.append(Handle((opened[0], opened[1]), path))
        self._changed()

    def _handle(self, data: st.DataObject) -> Handle:
        return data.draw(st.sampled_from(self.handles))

    def _both_open(self, handle: Handle, work: Callable[[int], Any]) -> Any:
        outcomes = [_outcome(work, descriptor) for descriptor in handle.descriptors]
        assert outcomes[0] == outcomes[1], f"{outcomes[0]!r} in the vault, {outcomes[1]!r} in the directory"
        return outcomes[0]

    @rule(data=st.data(), offset=offsets, size=sizes, seed=seeds)
    @precondition(lambda self: self.handles)
    def pwrite(self, data: st.DataObject, offset: int, size: int, seed: int) -> None:
        handle = self._handle(data)
        self._both_open(handle, lambda descriptor: os.pwrite(descriptor, payload(seed, size), offset))
        self._changed()

    @rule(data=st.data(), size=sizes, seed=seeds)
    @precondition(lambda self: self.handles)
    def write(self, data: st.DataObject, size: int, seed: int) -> None:
        handle = self._handle(data)
        self._both_open(handle, lambda descriptor: os.write(descriptor, payload(seed, size)))
        self._both_open(handle, lambda descriptor: os.lseek(descriptor, 0, os.SEEK_CUR))
        self._changed()

    @rule(data=st.data(), offset=offsets, size=sizes)
    @precondition(lambda self: self.handles)
    def pread(self, data: st.DataObject, offset: int, size: int) -> None:
        self._both_open(self._handle(data), lambda descriptor: os.pread(descriptor, size, offset))

    @rule(data=st.data(), size=sizes)
    @precondition(lambda self: self.handles)
    def ftruncate(self, data: st.DataObject, size: int) -> None:
        handle = self._handle(data)
        self._both_open(handle, lambda descriptor: os.ftruncate(descriptor, size))
        self._changed()

    @rule(data=st.data(), size=sizes)
    def truncate(self, data: st.DataObject, size: int) -> None:
        path = self._pick(data)
        self._both(lambda root: os.truncate(_without_links(root, path), size))
        self._changed()

    @rule(data=st.data(), offset=offsets, size=sizes, seed=seeds, is_flushed=st.booleans())
    @precondition(lambda self: self.handles)
    def write_through_mmap(self, data: st.DataObject, offset: int, size: int, seed: int, is_flushed: bool) -> None:
        handle = self._handle(data)

        def work(descriptor: int) -> int:
            length = os.fstat(descriptor).st_size
            if length == 0:
                return 0
            with mmap.mmap(descriptor, length) as mapped:
                end = min(length, offset + size)
                if offset < end:
                    mapped[offset:end] = payload(seed, end - offset)
                if is_flushed:
                    mapped.flush()
            return length

        self._both_open(handle, work)
        self._changed()

    @rule(data=st.data())
    @precondition(lambda self: self.handles)
    def fstat(self, data: st.DataObject) -> None:
        def work(descriptor: int) -> tuple[int, int, int]:
            status = os.fstat(descriptor)
            return status.st_size, status.st_nlink, status.st_mode

        self._both_open(self._handle(data), work)

    @rule(data=st.data())
    @precondition(lambda self: self.handles)
    def close(self, data: st.DataObject) -> None:
        handle = self._handle(data)
        self.handles.remove(handle)
        handle.close()

    # --- promises, restarts and crashes

    @rule(data=st.data())
    @precondition(lambda self: self.handles)
    def fsync(self, data: st.DataObject) -> None:
        """After it the file survives, and so do the names of the moment."""
        handle = self._handle(data)
        self._both_open(handle, os.fsync)
        self._moments = [Moment.of(self._roots()[1])]
        status = os.fstat(handle.descriptors[1])
        self._versions[status.st_ino] = [os.pread(handle.descriptors[1], status.st_size, 0)]

    def _close_all(self) -> None:
        for handle in self.handles:
            handle.close()
        self.handles.clear()

    @rule()
    @precondition(lambda self: self._calm >= CALM_STEPS)
    def restart(self) -> None:
        self._close_all()
        before = times_of(self._roots()[0])
        self.subject.restart()
        assert times_of(self._roots()[0]) == before
        self._compare()
        self._promised()

    @rule()
    @precondition(lambda self: self._calm >= CALM_STEPS)
    def crash_after_promise(self) -> None:
        """Everything was synced: nothing may be lost."""
        _sync_all(self._roots()[0])
        self._crash()
        self._compare()
        self._promised()

    @rule()
    @precondition(lambda self: self._calm >= CALM_STEPS)
    def crash(self) -> None:
        """Something was synced: see at the top."""
        self._changed()
        self._crash()
        found = look_at_all(self._roots()[0])
        problems = check_survivors(self._moments, self._versions, found)
        assert not problems, problems
        self._start_over_from(found)

    def _crash(self) -> None:
        """Kill the daemon while files are open in its folder; closing them then fails, and closes them."""
        self.subject.crash()
        for handle in self.handles:
            with contextlib.suppress(OSError):
                os.close(handle.descriptors[0])
            os.close(handle.descriptors[1])
        self.handles.clear()

    def _start_over_from(self, found: Tree) -> None:
        """Make the reference like the folder under test."""
        left, right = self._roots()
        shutil.rmtree(right)
        subprocess.run(["cp", "-a", "--", left, right], check=True)
        differences = describe_differences(found, look_at_all(right))
        assert not differences, differences
        self._promised()

    def _compare(self) -> None:
        left, right = (look_at_all(root) for root in self._roots())
        differences = describe_differences(left, right)
        assert not differences, differences

    def teardown(self) -> None:
        try:
            self._compare()
        finally:
            self._close_all()
            for root in self._roots():
                shutil.rmtree(root, ignore_errors=True)


def check_survivors(moments: list[Moment], versions: dict[int, list[bytes]], found: Tree) -> list[str]:
    """What is wrong with the tree after a crash.

    Args:
        moments: at the last promise, and after each change since.
        versions: of each inode, what was in it when it was last synced, and after each change since.
        found: what is there.
    """
    shape = _shape(found)
    matching = [moment for moment in moments if _shape(moment.tree) == shape]
    if not matching:
        closest = min((_shape(moment.tree) for moment in moments), key=lambda each: len(each.items() ^ shape.items()))
        return [f"no moment had these names: {sorted(closest.items() ^ shape.items())[:6]}"]
    problems: list[list[str]] = []
    for moment in matching:
        problems.append([])
        for path, inode in moment.inodes.items():
            content, known = found[path].content, versions[inode]
            if not is_woven_of(content, known):
                sizes = [len(version) for version in known]
                problems[-1].append(f"{path!r} has {len(content)} bytes that it never had; it had {sizes}")
    return min(problems, key=len)


def _shape(tree: Tree) -> dict[str, tuple[int, int, int, tuple[str, ...]]]:
    return {path: (seen.kind, seen.mode, seen.nlink, seen.aliases) for path, seen in tree.items()}


def is_woven_of(content: bytes, versions: list[bytes]) -> bool:
    """Whether each byte stood there in some version, or zero past its end; of one version, whether it is that."""
    if len(versions) == 1 or len(content) > max(len(version) for version in versions):
        return content == versions[0]
    padded = [version.ljust(len(content), b"\0") for version in versions]
    return content in padded or all(any(byte == version[n] for version in padded) for n, byte in enumerate(content))


def _outcome(work: Callable[[Any], Any], where: Any) -> Any:
    try:
        return work(where)
    except OSError as error:
        code = errno.EEXIST if error.errno == errno.ENOTEMPTY else error.errno or 0
        return errno.errorcode.get(code, str(code))


def _without_links(root: Path, path: str) -> Path:
    """The path; a symlink there would lead out of the folder."""
    if (root / path).is_symlink():
        raise OSError(errno.ELOOP, "a symlink")
    return root / path


def _renameat2(old: Path, new: Path, flags: int) -> None:
    if _libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _sync_all(root: Path) -> None:
    """fsync every file and directory: after that nothing may be lost."""
    for base, _, files in os.walk(root):
        for path in [Path(base), *(Path(base, name) for name in files)]:
            if stat.S_IFMT(path.lstat().st_mode) in {stat.S_IFREG, stat.S_IFDIR}:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
