from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from vaultfs.errors import ExitCode, MountError
from vaultfs.fuse import kernel_mount
from vaultfs.fuse.kernel_mount import KernelOptions, MountBusyError, check_mountpoint, parse_options, unmount

from .conftest import Host, mounts_on


def parse(*options: str, read_only: bool = False, allow_other: bool = False) -> KernelOptions:
    return parse_options("/vault", options, read_only=read_only, allow_other=allow_other)


def test_default_is_nosuid_and_nodev() -> None:
    assert parse() == KernelOptions("/vault", 2 | 4, (), allow_other=False, max_read=None)


def test_words_become_flags_and_the_last_one_wins() -> None:
    assert parse("suid", "dev", "noexec", "ro", "rw").flags == 8
    assert parse("rw", read_only=True).flags & 1


def test_fsname_replaces_the_source_and_words_of_fstab_are_ignored() -> None:
    options = parse(
        "fsname=a=b", "_netdev", "x-systemd.automount", "nofail", "defaults", "max_read=4096", "allow_other"
    )
    assert options == KernelOptions("a=b", 6, (), allow_other=True, max_read=4096)


@pytest.mark.parametrize("option", ["nonsense", "max_read=many", "fsname=", "ro=1"])
def test_unknown_option_is_refused(option: str) -> None:
    with pytest.raises(MountError, match="unknown mount option"):
        parse(option)


def test_commas_and_backslashes_are_escaped_for_fusermount() -> None:
    options = parse_options("a,b\\c", ("ro",), read_only=False, allow_other=True)
    words = kernel_mount.libfuse_options(options)
    assert words == ["fsname=a\\,b\\\\c", "subtype=vaultfs", "default_permissions", "ro", "allow_other"]


def test_missing_mountpoint(tmp_path: Path) -> None:
    with pytest.raises(MountError, match=r"does not exist; create it with: mkdir") as caught:
        check_mountpoint(tmp_path / "missing")
    assert caught.value.exit_code == ExitCode.MOUNT_FAILED


def test_file_as_mountpoint(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MountError, match="is not a directory"):
        check_mountpoint(tmp_path / "file")
    with pytest.raises(MountError, match="is not a directory"):
        check_mountpoint(tmp_path / "file" / "below")


def test_fusermount_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(MountError, match="fusermount3 is not installed"):
        kernel_mount.mount(tmp_path, parse())


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            "fusermount3: option allow_other only allowed if 'user_allow_other' is set in /etc/fuse.conf",
            "allow_other needs the line",
        ),
        ("fusermount3: user has no write access to mountpoint /x", "no permission to mount"),
        ("fusermount3: mount failed: Operation not permitted", "not setuid root"),
        ("fusermount3: fuse device not found, try 'modprobe fuse' first", "modprobe fuse"),
        ("fusermount3: unsafe option 'dev' ignored\nfusermount3: something new", "cannot mount on /x: something new"),
        ("/usr/bin/fusermount3: failed to open /dev/fuse: Permission denied", "/dev/fuse may not be opened"),
        ("", "no reason given"),
    ],
)
def test_what_fusermount_says_is_explained(said: str, message: str) -> None:
    explained = kernel_mount._explain(said, Path("/x"))
    assert message in explained
    assert "\n" not in explained


@pytest.mark.fuse
def test_unmount_where_nothing_is_mounted(mountpoint: Path) -> None:
    with pytest.raises(MountError, match="nothing is mounted"):
        unmount(mountpoint)


@pytest.mark.fuse
def test_busy_mount_is_said_to_be_busy(mountpoint: Path, start_host: Callable[..., Host]) -> None:
    host = start_host()
    with subprocess.Popen(["sleep", "60"], cwd=mountpoint) as sleeper:
        with pytest.raises(MountBusyError, match="is busy"):
            unmount(mountpoint)
        sleeper.kill()
    unmount(mountpoint)
    host.ended()


@pytest.mark.fuse
def test_stale_mount_is_explained_and_can_be_cleared(mountpoint: Path, start_host: Callable[..., Host]) -> None:
    host = start_host()
    host.process.send_signal(signal.SIGKILL)
    host.process.wait()
    with pytest.raises(MountError, match=r"daemon is gone; clear it with: .*(umount -l|fusermount3 -u -z)"):
        check_mountpoint(mountpoint)
    unmount(mountpoint, lazy=True)
    assert mounts_on(mountpoint) == []
    check_mountpoint(mountpoint)
