"""Extended attributes: user, trusted and security."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .calls import fails, opened
from .other_user import ALICE, run_as

NAME_MAX = 255
NET_RAW_CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)


@pytest.fixture
def file(mounted: Path) -> Path:
    path = mounted / "file"
    path.write_bytes(b"data")
    return path


def test_set_get_list_remove(file: Path) -> None:
    os.setxattr(file, "user.one", b"1")
    os.setxattr(file, "user.two", b"\0\xff binary \0")
    assert sorted(os.listxattr(file)) == ["user.one", "user.two"]
    assert os.getxattr(file, "user.two") == b"\0\xff binary \0"
    os.removexattr(file, "user.one")
    assert os.listxattr(file) == ["user.two"]
    with fails(errno.ENODATA):
        os.getxattr(file, "user.one")
    with fails(errno.ENODATA):
        os.removexattr(file, "user.one")


def test_a_value_is_replaced_whole(file: Path) -> None:
    os.setxattr(file, "user.x", b"a long value")
    os.setxattr(file, "user.x", b"short")
    assert os.getxattr(file, "user.x") == b"short"


def test_an_empty_value_is_a_value(file: Path) -> None:
    os.setxattr(file, "user.empty", b"")
    assert os.listxattr(file) == ["user.empty"]
    assert os.getxattr(file, "user.empty") == b""


def test_create_and_replace_flags(file: Path) -> None:
    with fails(errno.ENODATA):
        os.setxattr(file, "user.x", b"1", os.XATTR_REPLACE)
    os.setxattr(file, "user.x", b"2", os.XATTR_CREATE)
    with fails(errno.EEXIST):
        os.setxattr(file, "user.x", b"3", os.XATTR_CREATE)
    os.setxattr(file, "user.x", b"4", os.XATTR_REPLACE)
    assert os.getxattr(file, "user.x") == b"4"


def test_a_folder_and_an_open_file_have_them_too(file: Path) -> None:
    os.setxattr(file.parent, "user.x", b"folder")
    assert os.getxattr(file.parent, "user.x") == b"folder"
    with opened(file, os.O_RDWR) as descriptor:
        os.setxattr(descriptor, "user.x", b"descriptor")
    assert os.getxattr(file, "user.x") == b"descriptor"


def test_names_share_a_file_but_not_a_copy(file: Path) -> None:
    os.setxattr(file, "user.x", b"1")
    second = file.with_name("second")
    second.hardlink_to(file)
    assert os.getxattr(second, "user.x") == b"1"
    file.unlink()
    file.touch()
    assert os.listxattr(file) == []


def test_the_largest_name(file: Path) -> None:
    name = "user." + "n" * (NAME_MAX - 5)
    os.setxattr(file, name, b"value")
    assert os.listxattr(file) == [name]
    with fails(errno.ERANGE):
        os.setxattr(file, name + "n", b"value")


@pytest.mark.parametrize("size_bytes", [1, 255, 256, 3_000])
def test_values_of_many_sizes(file: Path, size_bytes: int) -> None:
    value = os.urandom(size_bytes)
    os.setxattr(file, "user.x", value)
    assert os.getxattr(file, "user.x") == value


def test_a_value_beyond_what_linux_allows(file: Path) -> None:
    with fails(errno.E2BIG):
        os.setxattr(file, "user.x", bytes(65_537))
    assert os.listxattr(file) == []


def test_many_attributes(file: Path) -> None:
    expected = {f"user.{number}": b"%d" % number * 3 for number in range(60)}
    for name, value in expected.items():
        os.setxattr(file, name, value)
    assert {name: os.getxattr(file, name) for name in os.listxattr(file)} == expected


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.binary(min_size=1, max_size=NAME_MAX - 5).filter(lambda name: b"\0" not in name),
    value=st.binary(max_size=500),
)
def test_any_bytes_in_names_and_values(file: Path, name: bytes, value: bytes) -> None:
    os.setxattr(file, b"user." + name, value)
    assert os.getxattr(file, b"user." + name) == value
    assert [os.fsencode(each) for each in os.listxattr(file)] == [b"user." + name]
    os.removexattr(file, b"user." + name)


def test_user_attributes_are_for_files_and_folders(mounted: Path) -> None:
    fifo, link = mounted / "fifo", mounted / "link"
    os.mkfifo(fifo)
    link.symlink_to("fifo")
    with fails(errno.EPERM):
        os.setxattr(fifo, "user.x", b"1")
    with fails(errno.EPERM):
        os.setxattr(link, "user.x", b"1", follow_symlinks=False)


def test_an_unknown_namespace_is_refused(file: Path) -> None:
    with fails(errno.EOPNOTSUPP):
        os.setxattr(file, "nonsense", b"1")
    with fails(errno.EOPNOTSUPP):
        os.setxattr(file, "foreign.x", b"1")


@pytest.mark.root
def test_trusted_attributes_are_roots(file: Path) -> None:
    os.setxattr(file, "trusted.x", b"secret")
    file.chmod(0o666)
    assert os.getxattr(file, "trusted.x") == b"secret"
    assert run_as(ALICE, lambda: os.getxattr(file, "trusted.x")) == "ENODATA"
    assert run_as(ALICE, lambda: os.setxattr(file, "trusted.x", b"2")) == "EPERM"


@pytest.mark.root
def test_a_symlink_has_trusted_attributes(mounted: Path) -> None:
    link = mounted / "link"
    link.symlink_to("nowhere")
    os.setxattr(link, "trusted.x", b"1", follow_symlinks=False)
    assert os.getxattr(link, "trusted.x", follow_symlinks=False) == b"1"
    assert os.listxattr(link, follow_symlinks=False) == ["trusted.x"]


@pytest.mark.root
def test_security_attributes(file: Path) -> None:
    os.setxattr(file, "security.note", b"1")
    assert os.getxattr(file, "security.note") == b"1"


@pytest.mark.root
@pytest.mark.parametrize("change", ["write", "truncate", "chown"])
def test_file_capabilities_do_not_outlive_a_change(file: Path, change: str) -> None:
    os.setxattr(file, "security.capability", NET_RAW_CAPABILITY)
    assert os.getxattr(file, "security.capability") == NET_RAW_CAPABILITY
    if change == "write":
        with opened(file, os.O_WRONLY) as descriptor:
            os.write(descriptor, b"other")
    elif change == "truncate":
        os.truncate(file, 1)
    else:
        os.chown(file, ALICE, ALICE)
    assert os.listxattr(file) == []


@pytest.mark.root
def test_user_attributes_follow_permissions(file: Path) -> None:
    os.setxattr(file, "user.x", b"1")
    file.chmod(0o604)
    assert run_as(ALICE, lambda: os.getxattr(file, "user.x")) == "ok"
    assert run_as(ALICE, lambda: os.setxattr(file, "user.x", b"2")) == "EACCES"
    file.chmod(0o602)
    assert run_as(ALICE, lambda: os.getxattr(file, "user.x")) == "EACCES"
    assert run_as(ALICE, lambda: os.setxattr(file, "user.x", b"2")) == "ok"
    assert os.getxattr(file, "user.x") == b"2"
