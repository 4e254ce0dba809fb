from __future__ import annotations

import errno
import os
import shutil
import stat
from pathlib import Path

import blake3
import pytest
from descriptors import open_files

from vaultfs.errors import FormatTooNewError, IntegrityError, NoSpaceError, StorageError
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.segment_format import SegmentHeader
from vaultfs.storage.segment_reader import hash_file
from vaultfs.storage.segment_writer import SegmentWriter, discard_open_name, seal_leftover

from .disk_model import Recorder
from .faults import failing
from .foreign import KINDS, put

KEPT = b"kept" * 100
CUT = b"cut off" * 100


@pytest.fixture
def leftover(layout: VaultLayout, header: SegmentHeader) -> str:
    writer = SegmentWriter.create(layout, header)
    writer.append([KEPT, CUT])
    writer.close()
    return writer.token


@pytest.fixture
def keep_bytes(header: SegmentHeader) -> int:
    return len(header.encode() + KEPT)


def test_what_no_commit_refers_to_is_cut_off(
    layout: VaultLayout, leftover: str, keep_bytes: int, header: SegmentHeader
) -> None:
    content = header.encode() + KEPT
    before = open_files()
    assert seal_leftover(layout, leftover, keep_bytes) == (blake3.blake3(content).hexdigest(), keep_bytes)
    assert open_files() == before
    (name,) = layout.sealed_names()
    assert layout.sealed_path(name).read_bytes() == content
    assert stat.S_IMODE(layout.sealed_path(name).stat().st_mode) == 0o400
    assert layout.open_tokens() == [leftover]
    assert seal_leftover(layout, leftover, keep_bytes) == (name, keep_bytes)
    discard_open_name(layout, leftover)
    assert layout.open_tokens() == []
    assert hash_file(layout.sealed_path(name)) == name


def test_a_whole_file_is_kept_as_it_is(layout: VaultLayout, leftover: str, header: SegmentHeader) -> None:
    content = header.encode() + KEPT + CUT
    assert seal_leftover(layout, leftover, len(content)) == (blake3.blake3(content).hexdigest(), len(content))


def test_a_segment_nothing_refers_to_keeps_its_header(
    layout: VaultLayout, leftover: str, header: SegmentHeader
) -> None:
    assert seal_leftover(layout, leftover, 0) == (blake3.blake3(header.encode()).hexdigest(), 64)


def test_a_complete_seal_is_not_cut(layout: VaultLayout, header: SegmentHeader, keep_bytes: int) -> None:
    writer = SegmentWriter.create(layout, header)
    writer.append([KEPT, b"index and trailer"])
    name = writer.seal()
    size = writer.size_bytes
    writer.close()
    assert seal_leftover(layout, writer.token, keep_bytes) == (name, size)
    assert hash_file(layout.sealed_path(name)) == name


def test_a_complete_seal_in_a_copy_without_hard_links(
    layout: VaultLayout, header: SegmentHeader, keep_bytes: int, tmp_path: Path
) -> None:
    writer = SegmentWriter.create(layout, header)
    writer.append([KEPT])
    name = writer.seal()
    writer.close()
    shutil.copytree(layout.root, tmp_path / "copy")
    copy = VaultLayout(tmp_path / "copy")
    assert not copy.open_path(writer.token).samefile(copy.sealed_path(name))
    assert seal_leftover(copy, writer.token, keep_bytes) == (name, keep_bytes)
    assert list(copy.sealed_names()) == [name]


def test_a_hard_link_elsewhere_is_no_seal(layout: VaultLayout, leftover: str, keep_bytes: int, tmp_path: Path) -> None:
    os.link(layout.open_path(leftover), tmp_path / "link")
    _, size = seal_leftover(layout, leftover, keep_bytes)
    assert size == keep_bytes


def test_a_file_shorter_than_what_was_durable(layout: VaultLayout, leftover: str, keep_bytes: int) -> None:
    os.truncate(layout.open_path(leftover), keep_bytes - 1)
    with pytest.raises(IntegrityError, match=f"{keep_bytes - 1} bytes"):
        seal_leftover(layout, leftover, keep_bytes)
    os.truncate(layout.open_path(leftover), 63)
    with pytest.raises(IntegrityError):
        seal_leftover(layout, leftover, 0)
    assert list(layout.sealed_names()) == []


def test_a_missing_file(layout: VaultLayout) -> None:
    with pytest.raises(IntegrityError, match="missing"):
        seal_leftover(layout, "0" * 32, 64)
    with pytest.raises(IntegrityError, match="token"):
        seal_leftover(layout, "../../vault.json", 64)


@pytest.mark.parametrize("kind", KINDS)
def test_something_else_in_its_place(layout: VaultLayout, kind: str, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"keep" * 100)
    put(layout.open_path("0" * 32), kind, target)
    before = open_files()
    with pytest.raises(IntegrityError):
        seal_leftover(layout, "0" * 32, 64)
    assert target.read_bytes() == b"keep" * 100
    assert open_files() == before


def test_a_hard_link_to_a_foreign_file_is_not_touched(layout: VaultLayout, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"keep" * 100)
    target.chmod(0o640)
    os.link(target, layout.open_path("0" * 32))
    with pytest.raises(IntegrityError):
        seal_leftover(layout, "0" * 32, 64)
    assert target.read_bytes() == b"keep" * 100
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


def test_a_segment_of_a_newer_version_is_not_touched(layout: VaultLayout, leftover: str, keep_bytes: int) -> None:
    path = layout.open_path(leftover)
    data = bytearray(path.read_bytes())
    data[7] = 2
    path.write_bytes(data)
    with pytest.raises(FormatTooNewError):
        seal_leftover(layout, leftover, keep_bytes)
    assert path.read_bytes() == data


def test_the_order_of_system_calls(
    layout: VaultLayout, leftover: str, keep_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(layout.root, monkeypatch)
    seal_leftover(layout, leftover, keep_bytes)
    segment = "segments/open/*.seg"
    assert [call for call in recorder.calls if call[0] != "fchmod"] == [
        ("ftruncate", segment),
        ("fdatasync", segment),
        ("mkdir", "segments/*"),
        ("fsync", "segments"),
        ("link", "segments/*/*.seg"),
        ("fsync", "segments/*"),
    ]


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize(
    ("call", "skip"),
    [
        ("open", 0),
        ("open", 1),
        ("fchmod", 0),
        ("fchmod", 2),
        ("pread", 0),
        ("ftruncate", 0),
        ("fdatasync", 0),
        ("preadv", 0),
        ("mkdir", 0),
        ("fsync", 0),
        ("link", 0),
        ("fsync", 1),
    ],
)
def test_errors_are_reported_and_it_can_be_repeated(
    layout: VaultLayout,
    leftover: str,
    keep_bytes: int,
    header: SegmentHeader,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    skip: int,
    code: int,
) -> None:
    before = open_files()
    with monkeypatch.context() as patch:
        failing(patch, call, code, skip=skip, times=1)
        with pytest.raises(StorageError if code == errno.EIO else NoSpaceError):
            seal_leftover(layout, leftover, keep_bytes)
    assert open_files() == before
    name, size = seal_leftover(layout, leftover, keep_bytes)
    assert size == keep_bytes
    assert layout.sealed_path(name).read_bytes() == header.encode() + KEPT
    assert list(layout.sealed_names()) == [name]
