"""The list of all snapshots that were made: what is read is what was added, whatever happened to the file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vaultfs.errors import StorageError
from vaultfs.ids import SnapshotSeq
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.snapshot_history import LARGEST_BYTES, add_to_history, read_history

HASH = "0123456789abcdef" * 4


@pytest.fixture
def layout(tmp_path: Path) -> VaultLayout:
    layout = VaultLayout(tmp_path / "vault")
    layout.create_directories()
    return layout


def test_nobody_knows(layout: VaultLayout) -> None:
    assert read_history(layout) == []


def test_what_was_added(layout: VaultLayout) -> None:
    added = [(SnapshotSeq(number), f"{number:064x}") for number in (1, 2, (1 << 63) - 1)]
    for each in added:
        add_to_history(layout, *each)
    assert read_history(layout) == added
    assert layout.history.stat().st_mode & 0o777 == 0o600


@given(cut=st.integers(0, 200))
def test_a_torn_line_does_not_spoil_the_next(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    layout = VaultLayout(tmp_path_factory.mktemp("vault"))
    layout.create_directories()
    for number in (1, 2):
        add_to_history(layout, SnapshotSeq(number), HASH)
    whole = layout.history.read_bytes()
    layout.history.write_bytes(whole[:cut])
    before = read_history(layout)
    assert before == [(1, HASH), (2, HASH)][: len(before)]
    add_to_history(layout, SnapshotSeq(3), HASH)
    assert read_history(layout) == [*before, (3, HASH)]


def test_only_the_end_of_a_huge_one_is_read(layout: VaultLayout) -> None:
    with layout.history.open("wb") as file:
        file.truncate(LARGEST_BYTES * 4)
    add_to_history(layout, SnapshotSeq(7), HASH)
    assert read_history(layout) == [(7, HASH)]


def test_what_is_no_file_is_not_followed(layout: VaultLayout, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"\n%019d %s\n" % (1, HASH.encode()))
    layout.history.symlink_to(elsewhere)
    with pytest.raises(StorageError):
        read_history(layout)
    with pytest.raises(StorageError):
        add_to_history(layout, SnapshotSeq(2), HASH)
    layout.history.unlink()
    os.mkfifo(layout.history)
    assert read_history(layout) == []
