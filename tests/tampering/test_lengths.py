"""Files of a vault that were cut or extended."""

from __future__ import annotations

import random

import pytest
from fsck.vault_copies import Copy, codes, damaged_files, named, repair, writable

from vaultfs.errors import ExitCode, IntegrityError, VaultError
from vaultfs.storage.segment_format import HEADER_BYTES


def cut(copy: Copy, number: int, size: int) -> None:
    segment = writable(copy.segments()[number])
    with segment.open("r+b") as file:
        file.truncate(size)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.55, 0.9])
def test_a_segment_that_was_cut(copy: Copy, share: float) -> None:
    size = copy.segments()[0].stat().st_size
    cut(copy, 0, int(size * share))
    failing = damaged_files(copy)
    assert b"/folder/file7" in failing or share > 0.5
    report = copy.check()
    assert report.exit_code == ExitCode.INTEGRITY
    assert "segment-cut" in codes(report) or "segment-header" in codes(report)
    for path in failing:
        assert named(report, path), path
    repaired = repair(copy, lost=failing)
    assert repaired.exit_code == (ExitCode.PARTIAL if failing else ExitCode.OK)


def test_a_segment_whose_header_was_cut(copy: Copy) -> None:
    cut(copy, 1, HEADER_BYTES - 1)
    assert damaged_files(copy) == {b"/folder/deep/er/late"}
    assert named(copy.check(), b"/folder/deep/er/late")
    repair(copy, lost={b"/folder/deep/er/late"})


@pytest.mark.parametrize("more", [b"\0", b"x" * 100_000])
def test_a_segment_that_was_extended(copy: Copy, more: bytes) -> None:
    segment = writable(copy.segments()[1])
    size = segment.stat().st_size
    with segment.open("ab") as file:
        file.write(more)
    assert damaged_files(copy) == set()
    assert codes(copy.check()) == {"segment-extended"}
    assert repair(copy).exit_code == ExitCode.OK
    assert segment.stat().st_size == size


def test_a_segment_with_holes_that_was_extended(copy: Copy) -> None:
    """Its hash proves nothing any more, so nothing is cut off; the chunks speak for themselves."""
    segment = writable(copy.segments()[0])
    with segment.open("ab") as file:
        file.write(b"more")
    assert damaged_files(copy) == set()
    assert repair(copy).exit_code == ExitCode.OK


def test_a_database_that_was_cut_or_extended(template: Copy, tmp_path_factory: pytest.TempPathFactory) -> None:
    source = random.Random(5)
    size = template.layout.database.stat().st_size
    for new in (0, 1, 4096, source.randrange(size), size - 4096, size - 1, size + 1, size + 4096):
        copy = template.copy(tmp_path_factory.mktemp("cut") / "vault")
        with copy.layout.database.open("r+b") as file:
            file.truncate(new)
        with pytest.raises(IntegrityError):
            copy.open()
        assert copy.check().exit_code == ExitCode.INTEGRITY
        copy.check(repair=True)
        assert copy.check().is_clean
        with copy.open(read_only=True) as vault:
            assert vault.listdir(b"/")


def test_a_head_that_was_cut_or_extended(template: Copy, tmp_path_factory: pytest.TempPathFactory) -> None:
    data = template.layout.head.read_bytes()
    for changed in (b"", data[:-1], data[:20], data + b"\0", data * 100):
        copy = template.copy(tmp_path_factory.mktemp("cut") / "vault")
        copy.layout.head.write_bytes(changed)
        with pytest.raises(IntegrityError):
            copy.open()
        assert codes(copy.check()) == {"head-damaged"}
        assert repair(copy).exit_code == ExitCode.OK


def test_a_header_that_was_cut_or_extended(copy: Copy) -> None:
    data = copy.layout.header.read_bytes()
    for changed in (b"", data[:-5], data[: len(data) // 2], data + b"{}", data * 2):
        copy.layout.header.write_bytes(changed)
        with pytest.raises(VaultError):
            copy.check(repair=True)
        with pytest.raises(VaultError):
            copy.open()
    copy.layout.header.write_bytes(data)
    assert damaged_files(copy) == set()
