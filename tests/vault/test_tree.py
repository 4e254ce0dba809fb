"""Names against a model: every pair of kinds renamed over each other, link counts, listings, access control lists."""

from __future__ import annotations

import errno
import itertools
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vaultfs.errors import FileSystemError
from vaultfs.ids import ROOT_INODE, InodeId
from vaultfs.vault import inodes
from vaultfs.vault.acl import ACCESS, DEFAULT
from vaultfs.vault.api import Vault
from vaultfs.vault.tree import LISTING_BATCH, RENAME_EXCHANGE, RENAME_NOREPLACE

from .vaults import Makers, Place, read, require_consistent, write

_counter = itertools.count()


@pytest.fixture
def vault(place: Place) -> Iterator[Vault]:
    with place.opened() as vault:
        yield vault
    require_consistent(place.root)


def require_errno(code: int, call: object, *arguments: object) -> None:
    with pytest.raises(FileSystemError) as info:
        call(*arguments)  # type: ignore[operator]
    assert errno.errorcode[info.value.errno] == errno.errorcode[code]


# --- rename

KINDS = ("file", "symlink", "empty", "full", "absent")


def make(vault: Vault, path: str, kind: str) -> None:
    if kind == "file":
        write(vault, path, path.encode())
    elif kind == "symlink":
        vault.symlink("target", path)
    elif kind in {"empty", "full"}:
        vault.mkdir(path)
        if kind == "full":
            write(vault, f"{path}/child", path.encode())


def kind_of(vault: Vault, path: str) -> str:
    if not vault.exists(path):
        try:
            vault.readlink(path)
        except FileSystemError:
            return "absent"
        return "symlink"
    if stat.S_ISDIR(vault.stat(path, follow=False).st_mode):
        return "full" if vault.listdir(path) else "empty"
    return "symlink" if stat.S_ISLNK(vault.stat(path, follow=False).st_mode) else "file"


def expected_error(old: str, new: str, flags: int) -> int:
    if old == "absent":
        return errno.ENOENT
    if flags == RENAME_EXCHANGE:
        return errno.ENOENT if new == "absent" else 0
    if new == "absent":
        return 0
    if flags == RENAME_NOREPLACE:
        return errno.EEXIST
    if old in {"empty", "full"}:
        return {"empty": 0, "full": errno.ENOTEMPTY}.get(new, errno.ENOTDIR)
    return errno.EISDIR if new in {"empty", "full"} else 0


@pytest.mark.parametrize("flags", [0, RENAME_NOREPLACE, RENAME_EXCHANGE], ids=["plain", "noreplace", "exchange"])
@pytest.mark.parametrize("is_far", [False, True], ids=["same-directory", "other-directory"])
def test_rename_matrix(vault: Vault, flags: int, is_far: bool) -> None:
    for number, (old, new) in enumerate(itertools.product(KINDS, KINDS)):
        base, target = f"/{number}", f"/{number}/to" if is_far else f"/{number}"
        vault.makedirs(target)
        make(vault, f"{base}/old", old)
        make(vault, f"{target}/new", new)
        code = expected_error(old, new, flags)
        if code:
            require_errno(code, vault.rename, f"{base}/old", f"{target}/new", flags)
            after = (old, new)
        else:
            vault.rename(f"{base}/old", f"{target}/new", flags)
            after = (new, old) if flags == RENAME_EXCHANGE else ("absent", old)
        assert (kind_of(vault, f"{base}/old"), kind_of(vault, f"{target}/new")) == after, (old, new)
        kinds_there = [kind_of(vault, f"{base}/{name.decode()}") for name in vault.listdir(base)]
        assert vault.stat(base).st_nlink == 2 + sum(kind in {"empty", "full"} for kind in kinds_there)


def test_flags_that_exclude_each_other(vault: Vault) -> None:
    write(vault, "/a", b"")
    write(vault, "/b", b"")
    require_errno(errno.EINVAL, vault.rename, "/a", "/b", RENAME_NOREPLACE | RENAME_EXCHANGE)
    require_errno(errno.EINVAL, vault.rename, "/a", "/b", 4)


def test_no_directory_gets_into_itself(vault: Vault) -> None:
    vault.makedirs("/a/b/c")
    for target in ("/a/x", "/a/b/x", "/a/b/c/x"):
        require_errno(errno.EINVAL, vault.rename, "/a", target)
    # Neither the other way round: /a would be in what was in it.
    for name in ("/a/b", "/a/b/c"):
        require_errno(errno.EINVAL, vault.rename, name, "/a", RENAME_EXCHANGE)
        require_errno(errno.EINVAL, vault.rename, "/a", name, RENAME_EXCHANGE)
    assert vault.listdir() == [b"a"]
    assert vault.listdir("/a/b") == [b"c"]


def test_rename_of_one_file_by_two_names_does_nothing(vault: Vault) -> None:
    write(vault, "/a", b"text")
    vault.link("/a", "/b")
    vault.rename("/a", "/b")
    assert sorted(vault.listdir()) == [b"a", b"b"]
    assert vault.stat("/a").st_nlink == 2
    require_errno(errno.EEXIST, vault.rename, "/a", "/b", RENAME_NOREPLACE)
    vault.rename("/a", "/b", RENAME_EXCHANGE)
    assert vault.stat("/a").st_nlink == 2


def test_a_moved_directory_knows_its_parent(vault: Vault) -> None:
    fs = vault.filesystem
    for path in ("/a", "/b", "/a/d", "/b/e"):
        vault.mkdir(path)
    a, b, d, e = (InodeId(vault.stat(path).st_ino) for path in ("/a", "/b", "/a/d", "/b/e"))
    vault.rename("/a/d", "/b/e", RENAME_EXCHANGE)
    assert (fs.inodes.get(d).parent, fs.inodes.get(e).parent) == (b, a)
    vault.rename("/b/e", "/d")
    assert fs.inodes.get(d).parent == ROOT_INODE
    assert [fs.inodes.get(number).nlink for number in (a, b)] == [3, 2]


def test_nothing_is_made_in_a_removed_directory(vault: Vault) -> None:
    fs = vault.filesystem
    vault.mkdir("/d")
    write(vault, "/f", b"")
    number = InodeId(vault.stat("/d").st_ino)
    directory = fs.inodes.get(number)
    fs.open(directory)
    vault.rmdir("/d")
    with fs.changing():
        require_errno(errno.ENOENT, fs.make, number, b"x", stat.S_IFREG | 0o644, 0, 0)
        require_errno(errno.ENOENT, fs.tree.link, fs.inodes.get(InodeId(vault.stat("/f").st_ino)), number, b"x")
        require_errno(errno.ENOENT, fs.rename, ROOT_INODE, b"f", number, b"x", 0)
    assert fs.tree.batch(number, 0) == []
    fs.release(directory)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        (b"", errno.EINVAL),
        (b".", errno.EINVAL),
        (b"..", errno.EINVAL),
        (b"a/b", errno.EINVAL),
        (b"a\0b", errno.EINVAL),
        (b"x" * 256, errno.ENAMETOOLONG),
    ],
)
def test_names_that_cannot_be(vault: Vault, name: bytes, code: int) -> None:
    fs = vault.filesystem
    write(vault, "/f", b"")
    inode = fs.inodes.get(InodeId(vault.stat("/f").st_ino))
    require_errno(code, fs.tree.add, ROOT_INODE, name, stat.S_IFREG, 0, 0)
    require_errno(code, fs.tree.link, inode, ROOT_INODE, name)
    require_errno(code, fs.tree.rename, ROOT_INODE, b"f", ROOT_INODE, name)


def test_any_other_bytes_are_a_name(vault: Vault) -> None:
    names = [bytes([code]) for code in range(1, 256) if code not in b"./"] + [b"\xff" * 255, b"...", b"a\nb"]
    for name in names:
        write(vault, b"/" + name, name)  # type: ignore[arg-type]
    assert vault.listdir() == names
    assert all(read(vault, b"/" + name) == name for name in names)  # type: ignore[arg-type]


def test_a_listing_goes_on_after_changes(vault: Vault) -> None:
    """What is there all the time is listed exactly once, whatever comes, goes, or is renamed meanwhile."""
    count = 3 * LISTING_BATCH
    for number in range(count):
        write(vault, f"/stay-{number}", b"")
        write(vault, f"/go-{number}", b"")
    tree = vault.filesystem.tree
    cookie, seen, round_ = 0, [], 0
    while batch := tree.batch(ROOT_INODE, cookie):
        # A program takes a part of what was read, and asks again from there.
        taken = batch[: LISTING_BATCH // 3]
        seen += [entry.name for entry in taken]
        cookie = taken[-1].cookie
        if round_ < 9:
            for number in range(round_ * 50, round_ * 50 + 50):
                vault.remove(f"/go-{number}")
                write(vault, f"/new-{number}", b"")
            vault.filesystem.committer.commit()
        round_ += 1
    stayed = [name for name in seen if name.startswith(b"stay-")]
    assert sorted(stayed) == sorted(f"stay-{number}".encode() for number in range(count))
    assert len(set(seen)) == len(seen)


# --- against a model, with a cache so small that inodes are forgotten all the time


@dataclass
class Node:
    is_directory: bool
    links: int = 0
    entries: dict[bytes, Node] = field(default_factory=dict)

    @property
    def nlink(self) -> int:
        return 2 + sum(child.is_directory for child in self.entries.values()) if self.is_directory else self.links


paths = st.lists(st.sampled_from([b"a", b"b", b"c"]), min_size=1, max_size=3).map(tuple)
operations = st.one_of(
    st.tuples(st.sampled_from(["mkdir", "create", "remove", "rmdir"]), paths, paths),
    st.tuples(st.sampled_from(["link", "rename", "noreplace", "exchange"]), paths, paths),
    st.tuples(st.sampled_from(["commit"]), paths, paths),
)


class Model:
    def __init__(self) -> None:
        self.root = Node(is_directory=True)

    def _parent(self, path: tuple[bytes, ...]) -> tuple[list[Node], bytes]:
        chain = [self.root]
        for name in path[:-1]:
            child = chain[-1].entries.get(name)
            if child is None:
                raise FileSystemError(errno.ENOENT)
            if not child.is_directory:
                raise FileSystemError(errno.ENOTDIR)
            chain.append(child)
        return chain, path[-1]

    def apply(self, verb: str, path: tuple[bytes, ...], other: tuple[bytes, ...]) -> None:
        chain, name = self._parent(path)
        entries = chain[-1].entries
        found = entries.get(name)
        if verb in {"mkdir", "create"}:
            if found is not None:
                raise FileSystemError(errno.EEXIST)
            entries[name] = Node(is_directory=verb == "mkdir", links=1)
            return
        if found is None:
            raise FileSystemError(errno.ENOENT)
        if verb in {"remove", "rmdir"}:
            if found.is_directory != (verb == "rmdir"):
                raise FileSystemError(errno.ENOTDIR if verb == "rmdir" else errno.EISDIR)
            if found.entries:
                raise FileSystemError(errno.ENOTEMPTY)
            del entries[name]
            found.links -= 1
            return
        other_chain, other_name = self._parent(other)
        target = other_chain[-1].entries.get(other_name)
        if verb == "link":
            if found.is_directory:
                raise FileSystemError(errno.EPERM)
            if target is not None:
                raise FileSystemError(errno.EEXIST)
            found.links += 1
            other_chain[-1].entries[other_name] = found
            return
        if found in other_chain or (verb == "exchange" and target is not None and target in chain):
            raise FileSystemError(errno.EINVAL)
        if verb == "exchange":
            if target is None:
                raise FileSystemError(errno.ENOENT)
            entries[name], other_chain[-1].entries[other_name] = target, found
            return
        if target is not None:
            if verb == "noreplace":
                raise FileSystemError(errno.EEXIST)
            if target is found:
                return
            if target.is_directory != found.is_directory:
                raise FileSystemError(errno.EISDIR if target.is_directory else errno.ENOTDIR)
            if target.entries:
                raise FileSystemError(errno.ENOTEMPTY)
            target.links -= 1
        del entries[name]
        other_chain[-1].entries[other_name] = found

    __eq__ = object.__eq__
    __hash__ = object.__hash__


Node.__eq__ = object.__eq__  # type: ignore[method-assign]
Node.__hash__ = object.__hash__  # type: ignore[method-assign]


def apply(vault: Vault, verb: str, path: tuple[bytes, ...], other: tuple[bytes, ...]) -> None:
    old, new = b"/" + b"/".join(path), b"/" + b"/".join(other)
    if verb == "create":
        vault.mknod(old, stat.S_IFREG | 0o644)
    elif verb in {"mkdir", "remove", "rmdir"}:
        getattr(vault, verb)(old)
    elif verb == "link":
        vault.link(old, new)
    else:
        vault.rename(old, new, {"rename": 0, "noreplace": RENAME_NOREPLACE, "exchange": RENAME_EXCHANGE}[verb])


def compare(vault: Vault, node: Node, path: bytes) -> None:
    status = vault.stat(path or b"/")
    assert status.st_nlink == node.nlink, path
    if node.is_directory:
        assert sorted(vault.listdir(path or b"/")) == sorted(node.entries)
        for name, child in node.entries.items():
            compare(vault, child, path + b"/" + name)


@pytest.mark.parametrize("cached", [4, 20_000])
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(program=st.lists(operations, max_size=25))
def test_the_tree_is_what_was_made(
    makers: Makers,
    scratch: Path,
    monkeypatch: pytest.MonkeyPatch,
    program: list[tuple[str, tuple[bytes, ...], tuple[bytes, ...]]],
    cached: int,
) -> None:
    monkeypatch.setattr(inodes, "CACHED_INODES", cached)
    base = scratch / f"run-{next(_counter)}"
    base.mkdir()
    place = makers.place(base)
    model = Model()
    with place.opened() as vault:
        for verb, path, other in program:
            if verb == "commit":
                vault.commit()
                continue
            outcomes = []
            for call in (model.apply, lambda *words: apply(vault, *words)):
                try:
                    call(verb, path, other)
                except FileSystemError as error:
                    outcomes.append(errno.errorcode[error.errno])
                else:
                    outcomes.append("")
            if outcomes[0] != outcomes[1]:
                # Which of two errors comes first is not agreed upon.
                assert all(outcomes), (verb, path, other, outcomes)
            compare(vault, model.root, b"")
    require_consistent(place.root)


def test_a_directory_that_is_forgotten_in_the_middle_of_a_change(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Making an inode pushes the oldest out of the cache, which may be the very directory that is being changed."""
    monkeypatch.setattr(inodes, "CACHED_INODES", 4)
    with place.opened() as vault:
        for name in ("d", "x", "y", "z"):
            vault.mkdir(f"/{name}")
        numbers = [InodeId(vault.stat(f"/{name}").st_ino) for name in "dxyz"]
    with place.opened() as vault:
        fs = vault.filesystem
        fs.inodes._cached.clear()
        for number in numbers:
            fs.inodes.get(number)
        with fs.changing():
            fs.make(numbers[0], b"one", stat.S_IFDIR | 0o755, 0, 0)
            assert fs.inodes.get(numbers[0]).nlink == 3
            fs.make(numbers[0], b"two", stat.S_IFDIR | 0o755, 0, 0)
            assert fs.inodes.get(numbers[0]).nlink == 4
    require_consistent(place.root)


# --- access control lists


def acl(*lines: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *line) for line in lines)


NOBODY = 0xFFFFFFFF
USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 1, 2, 4, 8, 16, 32


def permissions(vault: Vault, path: str) -> dict[tuple[int, int], int]:
    value = vault.getxattr(path, ACCESS)
    return {(tag, number): bits for tag, bits, number in struct.iter_unpack("<HHI", value[4:])}


DEFAULT_LIST = acl(
    (USER_OBJ, 7, NOBODY), (USER, 6, 1000), (GROUP_OBJ, 5, NOBODY), (MASK, 7, NOBODY), (OTHER, 0, NOBODY)
)


def test_new_files_inherit_the_default_list(vault: Vault) -> None:
    fs = vault.filesystem
    vault.mkdir("/d")
    vault.setxattr("/d", DEFAULT, DEFAULT_LIST)
    number = InodeId(vault.stat("/d").st_ino)
    with fs.changing():
        fs.make(number, b"f", stat.S_IFREG | 0o666, 0, 0, umask=0o077)
        fs.make(number, b"sub", stat.S_IFDIR | 0o777, 0, 0, umask=0o077)
        fs.make(number, b"link", stat.S_IFLNK | 0o777, 0, 0, umask=0o077, target=b"f")
    # The umask does not apply; what the program asked for limits owner, mask and others.
    assert vault.stat("/d/f").st_mode == stat.S_IFREG | 0o660
    assert permissions(vault, "/d/f") == {
        (USER_OBJ, NOBODY): 6,
        (USER, 1000): 6,
        (GROUP_OBJ, NOBODY): 5,
        (MASK, NOBODY): 6,
        (OTHER, NOBODY): 0,
    }
    assert vault.getxattr("/d/sub", DEFAULT) == DEFAULT_LIST
    assert vault.listxattr("/d/f") == [ACCESS]
    assert vault.listxattr("/d/link") == []


def test_a_minimal_default_list_becomes_the_mode(vault: Vault) -> None:
    fs = vault.filesystem
    vault.mkdir("/d")
    vault.setxattr("/d", DEFAULT, acl((USER_OBJ, 6, NOBODY), (GROUP_OBJ, 4, NOBODY), (OTHER, 0, NOBODY)))
    with fs.changing():
        fs.make(InodeId(vault.stat("/d").st_ino), b"f", stat.S_IFREG | 0o777, 0, 0, umask=0o777)
    assert vault.stat("/d/f").st_mode == stat.S_IFREG | 0o640
    assert vault.listxattr("/d/f") == []


def test_the_umask_applies_without_a_default_list(vault: Vault) -> None:
    with vault.filesystem.changing():
        vault.filesystem.make(ROOT_INODE, b"f", stat.S_IFREG | 0o666, 0, 0, umask=0o027)
    assert vault.stat("/f").st_mode == stat.S_IFREG | 0o640


def test_chmod_sets_the_mask(vault: Vault) -> None:
    write(vault, "/f", b"")
    vault.setxattr(
        "/f",
        ACCESS,
        acl((USER_OBJ, 6, NOBODY), (USER, 7, 1000), (GROUP_OBJ, 5, NOBODY), (MASK, 7, NOBODY), (OTHER, 4, NOBODY)),
    )
    assert vault.stat("/f").st_mode == stat.S_IFREG | 0o674
    vault.chmod("/f", 0o421)
    assert permissions(vault, "/f") == {
        (USER_OBJ, NOBODY): 4,
        (USER, 1000): 7,
        (GROUP_OBJ, NOBODY): 5,
        (MASK, NOBODY): 2,
        (OTHER, NOBODY): 1,
    }


def test_a_list_that_says_no_more_than_the_mode_is_not_kept(vault: Vault) -> None:
    write(vault, "/f", b"")
    vault.setxattr("/f", ACCESS, acl((USER_OBJ, 4, NOBODY), (GROUP_OBJ, 2, NOBODY), (OTHER, 1, NOBODY)))
    assert vault.listxattr("/f") == []
    assert vault.stat("/f").st_mode == stat.S_IFREG | 0o421


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\2\0\0",
        acl((USER_OBJ, 7, NOBODY)),
        acl((USER_OBJ, 7, NOBODY), (USER, 7, 1), (GROUP_OBJ, 7, NOBODY), (OTHER, 7, NOBODY)),
        acl((USER_OBJ, 8, NOBODY), (GROUP_OBJ, 7, NOBODY), (OTHER, 7, NOBODY)),
        acl((USER_OBJ, 7, NOBODY), (USER_OBJ, 7, NOBODY), (GROUP_OBJ, 7, NOBODY), (OTHER, 7, NOBODY)),
    ],
)
def test_lists_that_make_no_sense_are_refused(vault: Vault, value: bytes) -> None:
    vault.mkdir("/d")
    before = vault.stat("/d").st_mode
    for name in (ACCESS, DEFAULT):
        require_errno(errno.EINVAL, vault.setxattr, "/d", name, value)
    assert vault.stat("/d").st_mode == before
    assert vault.listxattr("/d") == []
