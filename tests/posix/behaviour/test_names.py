"""Names of arbitrary bytes, long names, deep paths."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .calls import fails

LONGEST = 255
BYTES = st.integers(1, 255).filter(lambda byte: byte != ord("/"))
NAMES = st.lists(BYTES, min_size=1, max_size=LONGEST).map(bytes).filter(lambda name: name not in {b".", b".."})


def test_every_byte_is_a_name(mounted: Path) -> None:
    names = [bytes([byte]) for byte in range(1, 256) if byte not in b"/."]
    for name in names:
        os.mkdir(os.fsencode(mounted) + b"/" + name)
    assert sorted(os.listdir(os.fsencode(mounted))) == names


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.sets(NAMES, min_size=1, max_size=5))
def test_any_bytes_are_a_name(mounted: Path, names: set[bytes]) -> None:
    folder = os.fsencode(mounted)
    for name in names:
        with open(folder + b"/" + name, "xb") as file:
            file.write(name)
    assert set(os.listdir(folder)) == names
    for name in names:
        with open(folder + b"/" + name, "rb") as file:
            assert file.read() == name
        os.unlink(folder + b"/" + name)


@pytest.mark.parametrize("name", ["n" * LONGEST, "\N{SNOWMAN}" * 85, "\udcff" * LONGEST])
def test_the_longest_name(mounted: Path, name: str) -> None:
    (mounted / name).write_bytes(b"data")
    (mounted / name).rename(mounted / ("x" + name[1:]))
    assert os.listdir(mounted) == ["x" + name[1:]]


def test_a_name_that_is_too_long(mounted: Path) -> None:
    name = mounted / ("n" * (LONGEST + 1))
    (mounted / "there").touch()
    for action in (
        name.touch,
        name.mkdir,
        name.stat,
        name.unlink,
        name.rmdir,
        lambda: name.symlink_to("x"),
        lambda: name.hardlink_to(mounted / "there"),
        lambda: (mounted / "there").rename(name),
        lambda: os.mkfifo(name),
    ):
        with fails(errno.ENAMETOOLONG):
            action()
    assert os.listdir(mounted) == ["there"]


def test_a_path_that_is_too_long(mounted: Path) -> None:
    with fails(errno.ENAMETOOLONG):
        os.stat(str(mounted) + "/." * 2048)


def test_names_differ_by_bytes_and_nothing_else(mounted: Path) -> None:
    names = ["a", "A", "\u00e9", "e\u0301", "a ", " a", "a.", "-a", "a\n", "*", "con", ".a", "..."]
    for name in names:
        (mounted / name).write_text(name, encoding="utf-8")
    assert sorted(os.listdir(mounted)) == sorted(names)
    assert [(mounted / name).read_text(encoding="utf-8") for name in names] == names


def test_a_tree_deeper_than_a_path_may_be_long(mounted: Path) -> None:
    """30 folders with names of 255 bytes: a path of 7,680 bytes."""
    name = "d" * LONGEST
    levels = [os.open(mounted, os.O_RDONLY)]
    try:
        for _ in range(30):
            os.mkdir(name, dir_fd=levels[-1])
            levels.append(os.open(name, os.O_RDONLY, dir_fd=levels[-1]))
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=levels[-1]))
        assert os.listdir(levels[-1]) == ["file"]
        inodes = [os.fstat(level).st_ino for level in levels]
        assert len(set(inodes)) == 31
        assert os.stat("..", dir_fd=levels[-1]).st_ino == inodes[-2]
    finally:
        for level in levels:
            os.close(level)


def test_names_too_long_inside_an_encrypted_tree_fit_here(mounted: Path) -> None:
    path = mounted
    for _ in range(14):
        path /= "p" * LONGEST
        path.mkdir()
    (path / "file").write_bytes(b"deep")
    assert (path / "file").read_bytes() == b"deep"
