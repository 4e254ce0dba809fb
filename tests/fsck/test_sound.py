"""A vault with which nothing is wrong: fsck says so, and changes nothing."""

from __future__ import annotations

import contextlib
import hashlib
import random
from pathlib import Path

import pytest

from fsck.vault_copies import Copy, damaged_files, secret
from vaultfs.crypto.slots import Secret
from vaultfs.errors import ExitCode, FileSystemError, NotAVaultError, VaultLockedError, WrongPasswordError
from vaultfs.vault.api import Vault
from vaultfs.vault.fsck import check


def digest(directory: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(directory.rglob("*")):
        status = path.lstat()
        total.update(f"{path.relative_to(directory)} {status.st_mode}".encode())
        if path.is_file() and path.name != "lock":
            total.update(path.read_bytes())
    return total.hexdigest()


def test_a_check_finds_nothing_and_changes_nothing(copy: Copy) -> None:
    before = digest(copy.path)
    report = copy.check()
    assert report.findings == []
    assert report.exit_code == ExitCode.OK
    assert report.inodes == len(copy.contents) + 6  # the root, three directories, a symlink, a FIFO
    assert report.read_bytes > sum(map(len, copy.contents.values())) - 6 * 4096
    assert digest(copy.path) == before


def test_a_repair_of_a_sound_vault_changes_no_file(copy: Copy) -> None:
    for _ in range(2):
        report = copy.check(repair=True)
        assert report.findings == []
        assert report.exit_code == ExitCode.OK
    assert damaged_files(copy) == set()
    assert copy.check().findings == []


def test_progress_ends_at_the_total(copy: Copy) -> None:
    seen: list[tuple[int, int | None]] = []
    report = check(copy.path, secret(), on_progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (report.read_bytes, report.read_bytes)
    assert seen == sorted(seen)


def test_a_vault_in_use_is_left_alone(copy: Copy) -> None:
    with copy.open(), pytest.raises(VaultLockedError):
        copy.check(repair=True)


def test_wrong_password_and_no_vault(copy: Copy, tmp_path: Path) -> None:
    with pytest.raises(WrongPasswordError):
        check(copy.path, Secret.password(b"wrong"), repair=True)
    with pytest.raises(NotAVaultError):
        check(tmp_path, secret(), repair=True)


def test_after_a_crash_there_are_only_notes(copy: Copy) -> None:
    vault = copy.open()
    with vault.open(b"/folder/file3", "r+b") as file:
        file.pwrite(b"new", 5)
        file.fsync()
    with vault.open(b"/more", "wb") as file:
        file.write(b"y" * 50_000)
    vault.commit()
    with vault.open(b"/folder/file3", "r+b") as file:
        file.pwrite(b"newer", 50)
        file.fsync()
    vault.filesystem.abandon()
    report = copy.check()
    assert report.is_clean, report.findings
    assert {each.code for each in report.findings} >= {"not-closed", "open-segment", "intents"}
    with copy.open() as vault:
        assert vault.open(b"/more").read() == b"y" * 50_000
        assert vault.open(b"/folder/file3").read()[50:55] == b"newer"
    assert copy.check().findings == []


def test_a_repair_after_a_crash_recovers_like_a_mount(copy: Copy) -> None:
    vault = copy.open()
    with vault.open(b"/folder/file3", "r+b") as file:
        file.pwrite(b"newer", 50)
        file.fsync()
    vault.remove(b"/folder/file4")
    vault.commit()
    vault.filesystem.abandon()
    report = copy.check(repair=True)
    assert report.exit_code == ExitCode.OK
    with copy.open(read_only=True) as vault:
        assert vault.open(b"/folder/file3").read()[50:55] == b"newer"
        assert not vault.exists(b"/folder/file4")
        assert not vault.exists(b"/lost+found")
    assert copy.check().findings == []


def _work(vault: Vault, source: random.Random) -> None:
    """A hundred things that programs do, all at random."""
    for _ in range(100):
        name, other = b"/f%d" % source.randrange(12), b"/f%d" % source.randrange(12)
        with contextlib.suppress(FileSystemError):
            match source.randrange(8):
                case 0 | 1 | 2:
                    with vault.open(name, "a+b") as file:
                        file.pwrite(source.randbytes(source.randrange(1, 20_000)), source.randrange(30_000))
                        if source.random() < 0.3:
                            file.fsync()
                case 3:
                    vault.truncate(name, source.randrange(40_000))
                case 4:
                    vault.remove(name)
                case 5:
                    vault.rename(name, other)
                case 6:
                    vault.link(name, other)
                case 7:
                    vault.commit()


@pytest.mark.parametrize("seed", range(6))
def test_after_crashes_of_a_busy_vault(copy: Copy, seed: int) -> None:
    source = random.Random(seed)
    for round_number in range(3):
        vault = copy.open()
        _work(vault, source)
        vault.filesystem.abandon()
        report = copy.check()
        assert report.is_clean, report.findings
        if round_number == 1:
            assert copy.check(repair=True).is_clean
        else:
            with copy.open():
                pass
        assert copy.check().findings == []
    assert damaged_files(copy) == set()
