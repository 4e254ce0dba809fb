from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from vaultfs.errors import IntegrityError, NotAVaultError, ReadOnlyError, StorageError
from vaultfs.ids import SegmentName
from vaultfs.storage.layout import VaultLayout

from .foreign import KINDS, put

NAME = SegmentName("ab" + "0" * 61 + "1")
TOKEN = "0123456789abcdef" * 2


def test_paths() -> None:
    layout = VaultLayout(Path("/v"))
    expected = {
        layout.header: "/v/vault.json",
        layout.database: "/v/metadata.db",
        layout.segments: "/v/segments",
        layout.open_segments: "/v/segments/open",
        layout.heads: "/v/heads",
        layout.head: "/v/heads/HEAD",
        layout.lock: "/v/lock",
        layout.sealed_path(NAME): f"/v/segments/ab/{NAME}.seg",
        layout.open_path(TOKEN): f"/v/segments/open/{TOKEN}.seg",
        layout.manifest_path(7, NAME): f"/v/heads/0000000007-{NAME}.manifest",
    }
    assert {str(path): text for path, text in expected.items()} == {text: text for text in expected.values()}


@pytest.mark.parametrize("name", ["", "..", "../" * 21 + "x", "A" * 64, "0" * 63, "0" * 65, "0" * 64 + "\n", "0" * 32])
def test_what_is_no_name_never_becomes_a_path(name: str) -> None:
    layout = VaultLayout(Path("/v"))
    with pytest.raises(IntegrityError):
        layout.sealed_path(SegmentName(name))
    with pytest.raises(IntegrityError):
        layout.manifest_path(1, name)
    if len(name) != 32:
        with pytest.raises(IntegrityError):
            layout.open_path(name)


def test_directories_are_private_whatever_the_umask(tmp_path: Path) -> None:
    layout = VaultLayout(tmp_path / "vault")
    old = os.umask(0)
    try:
        layout.create_directories()
    finally:
        os.umask(old)
    for directory in (layout.root, layout.segments, layout.open_segments, layout.heads):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    layout.create_directories()


def test_creating_directories_reports_what_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "segments").write_bytes(b"")
    with pytest.raises(StorageError, match="segments"):
        VaultLayout(tmp_path).create_directories()


def test_creating_directories_on_a_read_only_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, os.strerror(30))

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(ReadOnlyError):
        VaultLayout(tmp_path / "vault").create_directories()


def test_the_directory_above_is_left_alone_if_the_vaults_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "vault"
    root.mkdir()
    opened: list[object] = []
    real = os.open

    def record(path: object, *args: object, **kwargs: object) -> int:
        opened.append(path)
        return real(path, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", record)
    VaultLayout(root).create_directories()
    assert root in opened
    assert tmp_path not in opened


def test_require_vault(tmp_path: Path) -> None:
    layout = VaultLayout(tmp_path)
    with pytest.raises(NotAVaultError, match="vaultfs init"):
        layout.require_vault()
    with pytest.raises(NotAVaultError):
        VaultLayout(tmp_path / "missing").require_vault()
    layout.header.mkdir()
    with pytest.raises(NotAVaultError, match="regular"):
        layout.require_vault()
    layout.header.rmdir()
    (tmp_path / "real.json").write_bytes(b"{}")
    layout.header.symlink_to("real.json")
    with pytest.raises(NotAVaultError):
        layout.require_vault()
    layout.header.unlink()
    layout.header.write_bytes(b"{}")
    layout.require_vault()


def test_require_vault_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotAVaultError):
        VaultLayout(tmp_path / "file").require_vault()


@pytest.mark.parametrize("kind", ["file", *KINDS])
def test_only_regular_files_count(layout: VaultLayout, kind: str, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"x")
    put(layout.sealed_path(NAME), kind, target)
    put(layout.open_path(TOKEN), kind, target)
    assert list(layout.sealed_names()) == ([NAME] if kind == "file" else [])
    assert layout.open_tokens() == ([TOKEN] if kind == "file" else [])


def test_foreign_names_are_passed_over(layout: VaultLayout, tmp_path: Path) -> None:
    shard = layout.segments / "ab"
    shard.mkdir()
    for name in ["README", f"{NAME}", f"{NAME}.seg.part", f"x{NAME}.seg", f"{NAME[:-1]}.seg", "cd" + NAME[2:] + ".seg"]:
        (shard / name).write_bytes(b"x")
        (layout.open_segments / name).write_bytes(b"x")
    for name in ["abc", "AB", "a", "zz", ".."]:
        (layout.segments / name).mkdir(exist_ok=True)
        (layout.segments / name / f"{NAME}.seg").write_bytes(b"x")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / f"{'ef' + NAME[2:]}.seg").write_bytes(b"x")
    (layout.segments / "ef").symlink_to(elsewhere)
    (layout.segments / "01").write_bytes(b"x")
    assert list(layout.sealed_names()) == []
    assert layout.open_tokens() == []


def test_names_are_sorted(layout: VaultLayout) -> None:
    names = [SegmentName(f"{number:02x}" * 32) for number in (255, 0, 16, 1)]
    names.append(SegmentName("00" * 31 + "01"))
    for name in names:
        put(layout.sealed_path(name), "file", layout.root)
    assert list(layout.sealed_names()) == sorted(names)
    tokens = ["f" * 32, "0" * 32, "a" * 32]
    for token in tokens:
        put(layout.open_path(token), "file", layout.root)
    assert layout.open_tokens() == sorted(tokens)


def test_a_missing_directory_is_empty_and_an_unreadable_one_is_an_error(tmp_path: Path) -> None:
    layout = VaultLayout(tmp_path)
    assert list(layout.sealed_names()) == []
    assert layout.open_tokens() == []
    layout.segments.write_bytes(b"")
    with pytest.raises(StorageError, match="cannot list"):
        list(layout.sealed_names())
