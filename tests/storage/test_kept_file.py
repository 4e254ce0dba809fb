"""A writer waits for another, and not for ever."""

from __future__ import annotations

import threading
from pathlib import Path

import msgspec
import pytest

from vaultfs.errors import StorageError, VaultLockedError
from vaultfs.storage import kept_file
from vaultfs.storage.kept_file import KeptFile
from vaultfs.storage.private_files import make_private_directory


class Content(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    format: int
    number: int


def kept(path: Path) -> KeptFile[Content]:
    return KeptFile(path, Content, 1000, title="the file", advice="Restore it")


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    """A second one gets in when the first has left, and sees what that wrote."""
    file = kept(tmp_path / "file.json")
    seen: list[Content | None] = []

    def second() -> None:
        with kept(file.path).locked():
            seen.append(file.load())

    with file.locked():
        thread = threading.Thread(target=second)
        thread.start()
        file.save(Content(1, 7))
        assert seen == []
    thread.join()
    assert seen == [Content(1, 7)]


def test_not_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_file, "_LOCK_PATIENCE_S", 0.0)
    file = kept(tmp_path / "file.json")
    with file.locked(), pytest.raises(VaultLockedError, match="for too long"), kept(file.path).locked():
        pass
    with file.locked():
        pass


def test_a_lock_is_given_back_after_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_file, "_LOCK_PATIENCE_S", 0.0)
    file = kept(tmp_path / "file.json")
    with pytest.raises(StorageError), file.locked():
        raise StorageError("it broke")
    with file.locked():
        pass


def test_where_no_file_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot"), kept(tmp_path / "file" / "file.json").locked():
        pass
    with pytest.raises(StorageError, match="cannot create"):
        make_private_directory(tmp_path / "file" / "directory")
    (tmp_path / "directory").mkdir()
    (tmp_path / "directory" / "file.json.lock").mkdir()
    with (
        pytest.raises(StorageError, match="cannot lock"),
        kept(tmp_path / "directory" / "file.json").locked(),
    ):
        pass
