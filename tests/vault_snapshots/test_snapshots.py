"""Snapshots of an open vault: what is in them, what they cost, and what is left when they are gone."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vault_snapshots.checking import problems
from vault_snapshots.sample import Sample, contents, write
from vaultfs import open_vault
from vaultfs.crypto.slots import Secret
from vaultfs.errors import IntegrityError, ReadOnlyError, UsageError, VaultLockedError, WrongPasswordError
from vaultfs.vault.api import Vault


def change_all(vault: Vault) -> None:
    """Overwrite, cut, grow, rename, delete, and make new."""
    with vault.open(b"/d/own", "r+b") as file:
        file.pwrite(os.urandom(10_000), 5_000)
        file.truncate(200_000)
    write(vault, b"/small", os.urandom(70_000))
    vault.remove(b"/twin")
    vault.rename(b"/d/shared", b"/moved")
    vault.truncate(b"/moved", 10)
    write(vault, b"/new", os.urandom(90_000))


@pytest.mark.parametrize("kind", ["sample", "compressed"])
def test_a_snapshot_stays_as_it_was(kind: str, request: pytest.FixtureRequest) -> None:
    sample: Sample = request.getfixturevalue(kind)
    with sample.open() as vault:
        then = contents(vault)
        info = vault.create_snapshot("before")
        assert (info.seq, info.label, info.files) == (1, "before", len(then) + 1)
        assert info.bytes == sum(len(data) for data in then.values() if data is not None)
        change_all(vault)
        vault.commit()
        assert sample.snapshot_contents(1) == then
        now = contents(vault)
        vault.create_snapshot("after")
        for name in list(vault.listdir()):
            if name != b"d":
                vault.remove(b"/" + name)
        vault.commit()
        assert problems(vault.filesystem) == []
    assert sample.snapshot_contents(1) == then
    assert sample.snapshot_contents(2) == now
    with sample.open() as vault:
        assert [(each.seq, each.label) for each in vault.snapshots()] == [(1, "before"), (2, "after")]
        assert vault.snapshots()[0] == info
        assert problems(vault.filesystem) == []


def test_data_in_memory_only_is_in_the_snapshot(sample: Sample) -> None:
    with sample.open() as vault:
        with vault.open(b"/log", "wb") as file:
            file.write(b"first")
            file.fsync()  # in the intent log
            file.write(b", then")  # nowhere yet
            vault.create_snapshot()
            file.write(b", too late")
        assert sample.snapshot_contents(1)[b"/log"] == b"first, then"


def test_deleted_files_are_not_kept(sample: Sample) -> None:
    """Those that are gone before the moment, though their chunks were not given back yet."""
    with sample.open() as vault:
        write(vault, b"/big", os.urandom(4 << 20))
        vault.commit()
        vault.remove(b"/big")
        assert vault.filesystem.files.ended
        vault.create_snapshot()
        vault.commit()
        assert sample.stored_bytes() < 2 << 20
        assert vault.snapshots()[0].files == len(contents(vault)) + 1


def test_deleting_gives_back_what_nothing_else_needs(sample: Sample) -> None:
    with sample.open() as vault:
        empty = sample.stored_bytes()
        write(vault, b"/first", os.urandom(3 << 20))
        vault.create_snapshot()
        vault.remove(b"/first")
        write(vault, b"/second", os.urandom(2 << 20))
        vault.create_snapshot()
        vault.remove(b"/second")
        while vault.filesystem.files.sweep():
            pass
        vault.commit()
        assert sample.stored_bytes() > empty + (5 << 20)
        second = sample.snapshot_contents(2)
        vault.delete_snapshot(1)
        vault.commit()
        assert empty + (2 << 20) < sample.stored_bytes() < empty + (3 << 20)
        assert sample.snapshot_contents(2) == second
        assert problems(vault.filesystem) == []
        vault.delete_snapshot(2)
        vault.commit()
        assert sample.stored_bytes() < empty + (1 << 19)
        assert vault.snapshots() == []
        assert problems(vault.filesystem) == []
    with sample.open() as vault:
        assert problems(vault.filesystem) == []
        assert vault.create_snapshot().seq == 3, "a number is never used twice"


def test_an_unchanged_vault_costs_little_more(sample: Sample) -> None:
    with sample.open() as vault:
        for number in range(4_000):
            vault.symlink(b"target of a link %d" % number, b"/d/link %d" % number)
        vault.create_snapshot()
        image = vault.filesystem.database.image_bytes()
        assert image > 300_000
        before = sample.stored_bytes()
        pieces = set(vault.filesystem.snapshot_rows.pieces(vault.snapshots()[0].seq))
        vault.create_snapshot()
        assert sample.stored_bytes() - before < image // 3
        again = vault.filesystem.snapshot_rows.pieces(vault.snapshots()[1].seq)
        assert len(pieces.intersection(again)) > len(pieces) * 2 // 3
        vault.delete_snapshot(1)
        assert problems(vault.filesystem) == []
    with contextlib.closing(sample.open_snapshot(2)) as snapshot:
        assert len(snapshot.listdir(b"/d")) == 4_002
        assert snapshot.readlink(b"/d/link 7") == b"target of a link 7"


def test_a_chunk_that_comes_back_is_not_lost(sample: Sample) -> None:
    """Equal data written after the file was deleted, with a snapshot in between."""
    data = os.urandom(64 << 10)
    with sample.open() as vault:
        write(vault, b"/a", data)
        vault.create_snapshot()
        vault.remove(b"/a")
        vault.commit()
        write(vault, b"/b", data)
        vault.delete_snapshot(1)
        vault.commit()
        assert contents(vault)[b"/b"] == data
        assert problems(vault.filesystem) == []


def test_names_of_snapshots(sample: Sample) -> None:
    with sample.open() as vault:
        ids = [vault.create_snapshot().id for _ in range(3)]
        for wrong in ("4", "0", "", "zzzz", ids[0][:3], "../1", "-1"):
            with pytest.raises(UsageError, match="no snapshot"):
                vault.delete_snapshot(wrong)
        assert vault.delete_snapshot(ids[1][:8]).seq == 2
        assert vault.delete_snapshot(3).seq == 3
        assert [info.seq for info in vault.snapshots()] == [1]
        with pytest.raises(UsageError, match="no snapshot"):
            sample.open_snapshot(2)
        with contextlib.closing(sample.open_snapshot(ids[0][:6].upper())) as snapshot:
            assert snapshot.exists(b"/small")


@pytest.mark.parametrize("label", ["x" * 256, "ä" * 128, "two\nlines", "\x1b[2J"])
def test_labels_that_are_refused(sample: Sample, label: str) -> None:
    with sample.open() as vault:
        with pytest.raises(UsageError, match="label"):
            vault.create_snapshot(label)
        assert vault.snapshots() == []
        assert problems(vault.filesystem) == []


def test_a_snapshot_is_read_only(sample: Sample) -> None:
    with sample.open() as vault:
        vault.create_snapshot()
    with contextlib.closing(sample.open_snapshot(1)) as snapshot:
        with pytest.raises(ReadOnlyError):
            write(snapshot, b"/small", b"x")
        with pytest.raises(ReadOnlyError):
            snapshot.mkdir(b"/x")
        with pytest.raises(ReadOnlyError):
            snapshot.create_snapshot()


def test_a_read_only_vault(sample: Sample) -> None:
    with sample.open() as vault:
        vault.create_snapshot("one")
    with sample.open(read_only=True) as vault:
        assert [info.label for info in vault.snapshots()] == ["one"]
        with pytest.raises(ReadOnlyError):
            vault.create_snapshot()
        with pytest.raises(ReadOnlyError):
            vault.delete_snapshot(1)
        assert [info.label for info in vault.snapshots()] == ["one"]


def test_an_open_snapshot_is_not_deleted(sample: Sample) -> None:
    with sample.open() as vault:
        vault.create_snapshot()
        then = contents(vault)
        with contextlib.closing(sample.open_snapshot(1)) as snapshot:
            with pytest.raises(VaultLockedError, match="mounted"):
                vault.delete_snapshot(1)
            change_all(vault)
            vault.commit()
            assert contents(snapshot) == then
        vault.delete_snapshot(1)
        assert problems(vault.filesystem) == []


def test_nothing_is_left_in_the_temporary_directory(
    sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    with sample.open() as vault:
        vault.create_snapshot()
    with contextlib.closing(sample.open_snapshot(1)):
        assert list(temporary.iterdir()) == []
    for segment in sample.layout.segments.rglob("*.seg"):
        segment.unlink()
    with pytest.raises(IntegrityError):
        sample.open_snapshot(1)
    assert list(temporary.iterdir()) == []


def test_open_vault_with_a_snapshot(sample: Sample) -> None:
    with sample.open() as vault:
        vault.create_snapshot()
        write(vault, b"/small", b"changed")
        with open_vault(sample.path, sample.secret, snapshot=1) as snapshot:
            assert snapshot.open(b"/small").read() == b"a few bytes"
        with pytest.raises(WrongPasswordError):
            open_vault(sample.path, Secret.password(b"wrong"), snapshot=1)
        with pytest.raises(UsageError, match="no snapshot"):
            open_vault(sample.path, Secret.password(b"wrong"), snapshot=2)


def test_every_number_of_changes_between_snapshots(sample: Sample, tmp_path: Path) -> None:
    """Hypothesis: any order of writing, deleting, snapshots and their deletion; each snapshot keeps its contents."""

    names = st.sampled_from([b"/a", b"/b", b"/c"])
    actions = st.one_of(
        st.tuples(st.just("write"), names, st.integers(0, 40_000)),
        st.tuples(st.just("remove"), names, st.just(0)),
        st.tuples(st.just("snapshot"), st.just(b""), st.just(0)),
        st.tuples(st.just("delete"), st.just(b""), st.integers(0, 5)),
        st.tuples(st.just("commit"), st.just(b""), st.just(0)),
        st.tuples(st.just("reopen"), st.just(b""), st.booleans().map(int)),
    )
    cases = iter(range(1 << 20))

    @settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(actions, min_size=5, max_size=20))
    def check(plan: list[tuple[str, bytes, int]]) -> None:
        number = next(cases)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_STATE_HOME", str(tmp_path / f"state {number}"))
            _follow(sample.copy(tmp_path / f"case {number}"), plan)

    check()


def _follow(sample: Sample, plan: list[tuple[str, bytes, int]]) -> None:
    vault = sample.open()
    kept = {}
    try:
        for kind, name, number in plan:
            if kind == "write":
                # From few different pieces, so that files and times share chunks.
                write(vault, name, b"".join(bytes([number % 3 + 1, each % 5]) * 2048 for each in range(number // 4096)))
            elif kind == "remove" and vault.exists(name):
                vault.remove(name)
            elif kind == "snapshot":
                now = contents(vault)
                kept[vault.create_snapshot().seq] = now
            elif kind == "delete" and kept:
                seq = sorted(kept)[number % len(kept)]
                vault.delete_snapshot(seq)
                del kept[seq]
            elif kind == "commit":
                vault.commit()
            elif kind == "reopen":
                if number:
                    vault.close()
                else:
                    vault.filesystem.abandon()
                vault = sample.open()
        vault.commit()
        assert problems(vault.filesystem) == []
        assert [info.seq for info in vault.snapshots()] == sorted(kept)
        for seq, then in kept.items():
            assert sample.snapshot_contents(seq) == then
    finally:
        vault.close()
