"""POSIX access control lists, in the form in which the kernel takes them as extended attributes."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

import pytest

from .calls import fails
from .other_user import ALICE, BOB, run_as

ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
OWNER, USER, GROUP, NAMED_GROUP, MASK, OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
NOBODY_IN_PARTICULAR = 0xFFFFFFFF

Entry = tuple[int, int, int]


def encode(*entries: Entry) -> bytes:
    """Entries are (tag, permissions, id), in the order of their tags."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def decode(data: bytes) -> list[Entry]:
    return [(tag, permissions, number) for tag, permissions, number in struct.iter_unpack("<HHI", data[4:])]


def acl(owner: int, group: int, other: int, *, mask: int | None = None, users: dict[int, int] | None = None) -> bytes:
    named = [(USER, permissions, number) for number, permissions in sorted((users or {}).items())]
    masks = [] if mask is None else [(MASK, mask, NOBODY_IN_PARTICULAR)]
    return encode(
        (OWNER, owner, NOBODY_IN_PARTICULAR),
        *named,
        (GROUP, group, NOBODY_IN_PARTICULAR),
        *masks,
        (OTHER, other, NOBODY_IN_PARTICULAR),
    )


@pytest.fixture
def file(mounted: Path) -> Path:
    path = mounted / "file"
    path.write_bytes(b"data")
    path.chmod(0o600)
    return path


def _mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.mark.root
def test_a_named_user_gets_in(file: Path) -> None:
    os.setxattr(file, ACCESS, acl(6, 0, 0, mask=4, users={ALICE: 4}))
    assert run_as(ALICE, file.read_bytes) == "ok"
    assert run_as(ALICE, lambda: file.write_bytes(b"x")) == "EACCES"
    assert run_as(BOB, file.read_bytes) == "EACCES"


@pytest.mark.root
def test_a_named_user_is_kept_out(file: Path) -> None:
    os.setxattr(file, ACCESS, acl(6, 4, 4, mask=4, users={ALICE: 0}))
    assert run_as(ALICE, file.read_bytes) == "EACCES"
    assert run_as(BOB, file.read_bytes) == "ok"


@pytest.mark.root
def test_the_mask_limits(file: Path) -> None:
    os.setxattr(file, ACCESS, acl(6, 0, 0, mask=4, users={ALICE: 6}))
    assert run_as(ALICE, lambda: file.write_bytes(b"x")) == "EACCES"


@pytest.mark.root
def test_a_named_group_gets_in(file: Path) -> None:
    os.setxattr(
        file,
        ACCESS,
        encode(
            (OWNER, 6, NOBODY_IN_PARTICULAR),
            (GROUP, 0, NOBODY_IN_PARTICULAR),
            (NAMED_GROUP, 4, BOB),
            (MASK, 4, NOBODY_IN_PARTICULAR),
            (OTHER, 0, NOBODY_IN_PARTICULAR),
        ),
    )
    assert run_as(ALICE, file.read_bytes, groups=[BOB]) == "ok"
    assert run_as(ALICE, file.read_bytes) == "EACCES"


def test_the_mode_shows_the_mask_and_chmod_changes_it(file: Path) -> None:
    os.setxattr(file, ACCESS, acl(6, 4, 0, mask=6, users={ALICE: 6}))
    assert _mode(file) == 0o660
    file.chmod(0o640)
    assert decode(os.getxattr(file, ACCESS)) == decode(acl(6, 4, 0, mask=4, users={ALICE: 6}))


def test_a_list_that_says_no_more_than_the_mode_becomes_the_mode(file: Path) -> None:
    os.setxattr(file, ACCESS, acl(7, 5, 1))
    assert _mode(file) == 0o751
    with fails(errno.ENODATA):
        os.getxattr(file, ACCESS)


def test_removing_a_list(file: Path) -> None:
    os.setxattr(file, ACCESS, acl(6, 4, 0, mask=6, users={ALICE: 6}))
    assert os.listxattr(file) == [ACCESS]
    os.removexattr(file, ACCESS)
    assert os.listxattr(file) == []


def test_a_default_is_for_folders(file: Path) -> None:
    with fails(errno.EACCES):
        os.setxattr(file, DEFAULT, acl(7, 5, 5))


def test_nonsense_is_refused(file: Path) -> None:
    with fails(errno.EINVAL):
        os.setxattr(file, ACCESS, acl(6, 0, 0, users={ALICE: 6}))
    with pytest.raises(OSError):
        os.setxattr(file, ACCESS, b"nonsense")
    assert _mode(file) == 0o600


def test_a_new_file_inherits_the_default_list(mounted: Path) -> None:
    os.setxattr(mounted, DEFAULT, acl(7, 5, 0, mask=7, users={ALICE: 7}))
    child = mounted / "child"
    os.close(os.open(child, os.O_CREAT | os.O_WRONLY, 0o664))
    assert decode(os.getxattr(child, ACCESS)) == decode(acl(6, 5, 0, mask=6, users={ALICE: 7}))
    assert _mode(child) == 0o660


def test_a_new_folder_inherits_and_hands_on(mounted: Path) -> None:
    default = acl(7, 5, 0, mask=7, users={ALICE: 7})
    os.setxattr(mounted, DEFAULT, default)
    child = mounted / "child"
    child.mkdir(0o777)
    assert decode(os.getxattr(child, DEFAULT)) == decode(default)
    assert decode(os.getxattr(child, ACCESS)) == decode(default)
    assert _mode(child) == 0o770


def test_a_default_list_takes_the_place_of_the_umask(mounted: Path) -> None:
    os.setxattr(mounted, DEFAULT, acl(7, 7, 7))
    os.umask(0o077)
    child = mounted / "child"
    os.close(os.open(child, os.O_CREAT | os.O_WRONLY, 0o666))
    assert _mode(child) == 0o666


@pytest.mark.root
def test_an_owner_outside_the_group_loses_set_group_id_by_a_new_list(file: Path) -> None:
    """As by chmod: else the owner could hand out the rights of a group that is not theirs."""
    os.chown(file, ALICE, BOB)
    value = acl(7, 5, 5, mask=7, users={BOB: 7})
    file.chmod(0o2755)
    assert run_as(ALICE, lambda: os.setxattr(file, ACCESS, value), groups=[BOB]) == "ok"
    assert file.stat().st_mode & 0o7000 == 0o2000
    assert run_as(ALICE, lambda: os.setxattr(file, ACCESS, value)) == "ok"
    assert file.stat().st_mode & 0o7000 == 0
