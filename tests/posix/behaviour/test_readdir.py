"""Listing folders, also while entries come and go."""

from __future__ import annotations

import itertools
import os
import stat
from pathlib import Path

import pytest

from .directory_stream import DirectoryStream

COUNT = 2_000
"""Several times what one getdents64 of 32 KiB holds."""


@pytest.fixture
def full(mounted: Path) -> Path:
    for number in range(COUNT):
        os.close(os.open(mounted / f"entry-{number:05}", os.O_CREAT | os.O_WRONLY))
    return mounted


NAMES = [b"entry-%05d" % number for number in range(COUNT)]


def test_every_entry_once(full: Path) -> None:
    with DirectoryStream(full) as stream:
        names = [name for name, _, _ in stream]
    assert sorted(names) == [b".", b"..", *NAMES]


def test_an_empty_folder_has_only_itself_and_its_parent(mounted: Path) -> None:
    (mounted / "empty").mkdir()
    with DirectoryStream(mounted / "empty") as stream:
        entries = {name: (inode, kind) for name, inode, kind in stream}
    assert set(entries) == {b".", b".."}
    assert entries[b"."] == ((mounted / "empty").stat().st_ino, 4)


def test_kinds_and_inodes_are_those_of_stat(mounted: Path) -> None:
    (mounted / "file").touch()
    (mounted / "folder").mkdir()
    (mounted / "link").symlink_to("x")
    os.mkfifo(mounted / "fifo")
    with DirectoryStream(mounted) as stream:
        for name, inode, kind in stream:
            if name not in {b".", b".."}:
                status = os.lstat(os.fsencode(mounted) + b"/" + name)
                assert (inode, kind) == (status.st_ino, stat.S_IFMT(status.st_mode) >> 12)


def test_what_stays_is_listed_once_while_others_are_removed(full: Path) -> None:
    seen: list[bytes] = []
    with DirectoryStream(full) as stream:
        for count, (name, _, _) in enumerate(stream):
            seen.append(name)
            if count == 100:
                for number in range(1, COUNT, 2):
                    (full / f"entry-{number:05}").unlink()
    kept = set(NAMES[::2])
    assert [name for name in sorted(seen) if name in kept] == sorted(kept)
    assert len(seen) == len(set(seen))


def test_what_was_there_is_listed_once_while_others_are_created(full: Path) -> None:
    seen: list[bytes] = []
    with DirectoryStream(full) as stream:
        for count, (name, _, _) in enumerate(stream):
            seen.append(name)
            if count % 50 == 0 and count < COUNT:
                (full / f"a-new-{count}").touch()
                (full / f"z-new-{count}").touch()
    old = set(NAMES)
    assert [name for name in sorted(seen) if name in old] == NAMES
    assert len(seen) == len(set(seen))


def test_removing_each_entry_as_it_is_listed_removes_all(full: Path) -> None:
    with DirectoryStream(full) as stream:
        for name, _, _ in stream:
            if name not in {b".", b".."}:
                os.unlink(os.fsencode(full) + b"/" + name)
    assert os.listdir(full) == []


def test_replacing_each_entry_as_it_is_listed_ends(full: Path) -> None:
    """As sed -i and rsync do it: a temporary file takes the entry's name."""
    with DirectoryStream(full) as stream:
        for name, _, _ in itertools.islice(stream, 3 * COUNT):
            if name not in {b".", b".."}:
                temporary = full / "temporary"
                temporary.touch()
                temporary.rename(full / os.fsdecode(name))
    assert sorted(os.listdir(os.fsencode(full))) == NAMES


def test_renaming_each_entry_as_it_is_listed_ends(full: Path) -> None:
    """A filesystem that lists the new names again would go on for ever."""
    with DirectoryStream(full) as stream:
        listed = 0
        for name, _, _ in itertools.islice(stream, 3 * COUNT):
            listed += 1
            if name not in {b".", b".."}:
                os.rename(os.fsencode(full) + b"/" + name, os.fsencode(full) + b"/" + b"renamed-%d" % listed)
    assert listed < 3 * COUNT
    assert len(os.listdir(full)) == COUNT


def test_rewinding_shows_the_present(mounted: Path) -> None:
    (mounted / "before").touch()
    with DirectoryStream(mounted) as stream:
        assert b"before" in {name for name, _, _ in stream}
        (mounted / "before").rename(mounted / "after")
        stream.rewind()
        assert {name for name, _, _ in stream} == {b".", b"..", b"after"}


def test_a_position_can_be_returned_to(full: Path) -> None:
    with DirectoryStream(full) as stream:
        list(itertools.islice(stream, 700))
        position = stream.position()
        rest = [name for name, _, _ in stream]
        stream.seek(position)
        assert [name for name, _, _ in stream] == rest
        assert len(rest) == COUNT + 2 - 700


def test_a_position_outlives_the_removal_of_the_entry_before_it(full: Path) -> None:
    with DirectoryStream(full) as stream:
        before = [name for name, _, _ in itertools.islice(stream, 700)]
        position = stream.position()
        rest = [name for name, _, _ in stream]
        for name in before:
            if name not in {b".", b".."}:
                os.unlink(os.fsencode(full) + b"/" + name)
        stream.seek(position)
        assert [name for name, _, _ in stream] == rest


def test_two_listings_at_once(full: Path) -> None:
    with DirectoryStream(full) as one, DirectoryStream(full) as two:
        pairs = list(zip(one, two, strict=True))
    assert len(pairs) == COUNT + 2


def test_a_listing_goes_on_in_a_folder_that_is_opened_anew(mounted: Path) -> None:
    """As an NFS server does it; POSIX promises positions within one stream only."""
    for number in range(300):
        os.close(os.open(mounted / f"entry-{number:05}", os.O_CREAT | os.O_WRONLY))
    with DirectoryStream(mounted) as stream:
        listed = [(name, stream.position()) for name, _, _ in stream]
    names = [name for name, _ in listed]
    for taken in (1, 2, 3, 150, 299):
        descriptor = os.open(mounted, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.lseek(descriptor, listed[taken][1], os.SEEK_SET)
            rest = [os.fsencode(name) for name in os.listdir(descriptor)]
        finally:
            os.close(descriptor)
        assert sorted(rest) == sorted(set(names[taken + 1 :]) - {b".", b".."})
