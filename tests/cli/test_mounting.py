"""mount, status and umount with real daemons: what mount(8) shows, two daemons, idleness, death, ordinary users."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from vaultfs.cli.mounts import live_mounts
from vaultfs.errors import ExitCode
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.lock import read_holder

from .conftest import (
    NOBODY,
    PASSWORD,
    REPOSITORY,
    Said,
    command,
    give_to_ordinary_user,
    listing,
    process,
    read_file,
)

pytestmark = pytest.mark.fuse
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
PATIENCE_S = 60


def mount(vault: Path | str, folder: Path, passfile: Path, *words: str, **options: Any) -> None:
    said = process("mount", vault, folder, "--passfile", passfile, *words, **options)
    assert (said.code, said.out, said.err) == (0, b"", "")


def umount(folder: Path, *words: str) -> None:
    said = process("umount", folder, *words)
    assert (said.code, said.out, said.err) == (0, b"", "")
    assert not os.path.ismount(folder)


def status(path: Path, **options: Any) -> dict[str, Any]:
    said = process("status", path, "--json", **options)
    assert said.code == 0, said.err
    found: dict[str, Any] = json.loads(said.out)
    return found


PRIVATE_DEVICE = """
node=$(mktemp -u /tmp/fuse-node-XXXXXX)
mknod -m 666 "$node" c 10 229 && mount --bind "$node" /dev/fuse && rm "$node" && exec "$@"
"""
"""fusermount3 opens /dev/fuse with the user's rights.  Where only root may open it, the test of an ordinary user gets a
node as udev makes it, in a mount namespace of its own."""


def mounts_on(mountpoint: Path) -> list[tuple[str, str, str]]:
    """Source, type and options of what is mounted there, oldest first."""
    found = []
    for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines():
        source, where, kind, options = line.split(" ")[:4]
        if where.encode().decode("unicode_escape") == str(mountpoint):
            found.append((source.encode().decode("unicode_escape"), kind, options))
    return found


@contextmanager
def watched(pid: int) -> Iterator[None]:
    """At the end, wait for a process to end."""
    descriptor = os.pidfd_open(pid)
    try:
        yield
        ready, _, _ = select.select([descriptor], [], [], PATIENCE_S)
        assert ready, f"process {pid} still runs"
    finally:
        os.close(descriptor)


def test_mount_work_umount(vault: Path, folder: Path, passfile: Path, own_state: Path) -> None:
    mount(vault, folder, passfile)
    ((source, kind, options),) = mounts_on(folder)
    assert (source, kind) == (str(vault), "fuse.vaultfs")
    assert {"rw", "nosuid", "nodev"} <= set(options.split(","))
    (folder / "file").write_bytes(b"contents")
    found = status(folder)
    assert (found["state"], found["source"], found["vault"]) == ("mounted", str(vault), str(vault))
    assert status(vault)["state"] == "in use"
    assert str(folder) in process("status").out.decode()
    with watched(found["pid"]):
        umount(folder)
    assert status(vault)["state"] == "not mounted"
    assert read_file(vault, "/file") == b"contents"
    log = Path(found["log"])
    assert log.is_relative_to(own_state)
    assert log.stat().st_mode & 0o777 == 0o600
    assert f"mounted {vault}" in log.read_text()
    assert PASSWORD not in log.read_text()


def test_source_is_the_argument_as_it_was_written(vault: Path, folder: Path, passfile: Path) -> None:
    mount(vault.name, folder, passfile, cwd=vault.parent)
    assert mounts_on(folder)[0][0] == vault.name
    umount(folder)
    mount(vault, folder, passfile, "-o", "fsname=another name,noatime,noexec", "--read-only")
    ((source, _, options),) = mounts_on(folder)
    assert source == "another name"
    assert {"ro", "noatime", "noexec"} <= set(options.split(","))
    with pytest.raises(OSError, match="Read-only"):
        (folder / "file").write_bytes(b"x")
    umount(folder)


def test_second_daemon_and_other_commands(vault: Path, folder: Path, passfile: Path, tmp_path: Path) -> None:
    mount(vault, folder, passfile)
    (tmp_path / "second").mkdir()
    pid = status(folder)["pid"]
    answers: list[Said] = [
        process("mount", vault, tmp_path / "second", "--passfile", passfile),
        process("ls", vault, "--passfile", passfile),
        process("put", vault, passfile, "/", "--passfile", passfile),
    ]
    for said in answers:
        assert said.code == ExitCode.LOCKED
        assert f"process {pid}" in said.error_line
    said = process("mount", vault, folder, "--passfile", passfile)
    assert said.code == ExitCode.MOUNT_FAILED
    assert "mounted there already" in said.error_line
    said = process("ls", folder, "--passfile", passfile)
    assert said.code == ExitCode.USAGE
    assert "mounted folder" in said.error_line
    assert status(folder)["pid"] == pid
    umount(folder)


def test_idle_folder_unmounts_itself(vault: Path, folder: Path, passfile: Path, own_state: Path) -> None:
    mount(vault, folder, passfile, "--idle", "2s")
    holder = read_holder(VaultLayout(vault))
    assert holder is not None
    with watched(holder.pid):
        (folder / "file").write_bytes(b"contents")
    assert not os.path.ismount(folder)
    (log,) = (own_state / "vaultfs" / "log").iterdir()
    assert "nobody used" in log.read_text()
    assert read_file(vault, "/file") == b"contents"


def test_busy_folder(vault: Path, folder: Path, passfile: Path) -> None:
    mount(vault, folder, passfile)
    with subprocess.Popen(["sleep", "600"], cwd=folder) as program:
        said = process("umount", folder)
        assert said.code == ExitCode.MOUNT_FAILED
        assert f"sleep ({program.pid})" in said.error_line
        assert os.path.ismount(folder)
        with watched(status(folder)["pid"]), subprocess.Popen(command("umount", folder, "--lazy")) as lazy:
            program.terminate()
            program.wait()
            assert lazy.wait(PATIENCE_S) == 0
    assert not os.path.ismount(folder)


def test_daemon_that_was_killed(vault: Path, folder: Path, passfile: Path) -> None:
    mount(vault, folder, passfile)
    descriptor = os.open(folder / "file", os.O_WRONLY | os.O_CREAT)
    os.write(descriptor, b"durable")
    os.fsync(descriptor)
    os.close(descriptor)
    pid = status(folder)["pid"]
    with watched(pid):
        os.kill(pid, signal.SIGKILL)
    assert status(folder)["state"] == "dead"
    said = process("umount", folder)
    assert said.code == ExitCode.ERROR
    assert "its daemon had died" in said.error_line
    assert not os.path.ismount(folder)
    assert list(live_mounts()) == [mount for mount in live_mounts() if mount.mountpoint != folder]
    mount(vault, folder, passfile)
    assert (folder / "file").read_bytes() == b"durable"
    umount(folder)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_foreground(vault: Path, folder: Path, passfile: Path, number: signal.Signals) -> None:
    words = command("mount", "-f", vault, folder, "--passfile", passfile)
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as daemon:
        assert daemon.stderr is not None
        said = ""
        while f"mounted {vault}" not in said:
            line = daemon.stderr.readline()
            assert line, f"it ended: {said}"
            said += line
        (folder / "file").write_bytes(b"contents")
        daemon.send_signal(number)
        said += daemon.stderr.read()
        assert daemon.wait(PATIENCE_S) == 0
    assert PASSWORD not in said
    assert not os.path.ismount(folder)
    assert read_file(vault, "/file") == b"contents"


def test_daemon_with_another_state_directory(vault: Path, folder: Path, passfile: Path, tmp_path: Path) -> None:
    """As when root unmounts what a user mounted: the control socket is out of reach, the lock tells the process."""
    mount(vault, folder, passfile, env={**os.environ, "XDG_STATE_HOME": str(tmp_path / "elsewhere")})
    (folder / "file").write_bytes(b"contents")
    found = status(folder)
    assert found["state"] == "mounted"
    assert "another user" in found["note"]
    with watched(status(vault)["pid"]):
        umount(folder)
    assert status(vault)["state"] == "not mounted"


def test_umount_that_mount8_did(vault: Path, folder: Path, passfile: Path) -> None:
    """umount(8) returns before the daemon is done; a mount right after it waits."""
    mount(vault, folder, passfile)
    for number in range(3):
        (folder / f"file {number}").write_bytes(os.urandom(1 << 20))
        subprocess.run(
            ["umount" if os.geteuid() == 0 else "fusermount3", *([] if os.geteuid() == 0 else ["-u"]), folder],
            check=True,
        )
        mount(vault, folder, passfile)
    assert len(os.listdir(folder)) == 3
    umount(folder)


@needs_root
def test_mount_by_an_ordinary_user(passfile: Path, reachable: Path) -> None:
    if not Path("/usr/bin/fusermount3").exists():
        pytest.skip("there is no fusermount3")
    (reachable / "folder").mkdir()
    shutil.move(passfile, reachable / "password")
    give_to_ordinary_user(reachable)
    done = subprocess.run(
        [
            *("unshare", "--mount", "sh", "-c", PRIVATE_DEVICE, "sh", sys.executable, "-m", "tests.cli.as_user"),
            *(reachable / "own", reachable / "folder", reachable / "password"),
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    output, _, results = done.stdout.rstrip("\n").rpartition("\n")
    found = json.loads(results)
    assert found.pop("allow_other") in {0, ExitCode.MOUNT_FAILED}, done.stderr
    found.pop("umount again", None)
    assert found == {
        "init": 0,
        "mount": 0,
        "owner": [NOBODY, NOBODY],
        "source": [str(reachable / "own")],
        "umount": 0,
        "is_mount": False,
        "cat": 0,
    }
    assert "by an ordinary user" in output


# --- the helper of mount(8)


def helper(*words: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "vaultfs.cli.mount_helper", *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, **options)


def test_helper_mounts(vault: Path, folder: Path, passfile: Path) -> None:
    done = helper(vault, folder, "-o", f"rw,passfile={passfile},noatime,x-systemd.automount,_netdev")
    assert (done.returncode, done.stderr) == (0, "")
    ((source, _, options),) = mounts_on(folder)
    assert source == str(vault)
    assert "noatime" in options.split(",")
    umount(folder)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ([], ExitCode.USAGE),
        (["{v}"], ExitCode.USAGE),
        (["{v}", "{d}", "{d}"], ExitCode.USAGE),
        (["{v}", "{d}", "-x"], ExitCode.USAGE),
        (["{v}", "{d}", "-o", "nonsense"], ExitCode.USAGE),
        (["{v}", "{d}", "-o", "passfile="], ExitCode.USAGE),
        (["{v}", "{d}"], ExitCode.USAGE),
        (["{d}", "{v}"], ExitCode.NOT_A_VAULT),
        (["{v}", "{d}", "-o", "remount,ro"], ExitCode.MOUNT_FAILED),
        (["{v}", "{d}", "-f"], ExitCode.OK),
    ],
)
def test_helper_refuses(vault: Path, folder: Path, words: list[str], code: ExitCode) -> None:
    done = helper(*[word.format(v=vault, d=folder) for word in words], start_new_session=True)
    assert done.returncode == code
    assert len(done.stderr.splitlines()) == (0 if code == 0 else 1)
    assert not os.path.ismount(folder)


THROUGH_MOUNT8 = """
set -e
mount -t overlay overlay -o "lowerdir=$(readlink -f /sbin),upperdir=$BASE/up,workdir=$BASE/work" "$(readlink -f /sbin)"
rm -f /sbin/mount.fuse.vaultfs
scripts/install-mount-helper >/dev/null
mount -t fuse.vaultfs "$VAULT" "$FOLDER" -o "passfile=$PASSFILE,noexec"
findmnt -n -o SOURCE,FSTYPE,OPTIONS "$FOLDER"
echo contents >"$FOLDER/file"
mount -o remount,ro "$FOLDER"
if echo changed 2>/dev/null >"$FOLDER/file"; then exit 3; fi
mount -o remount,rw "$FOLDER"
umount "$FOLDER"
echo "$VAULT $FOLDER fuse.vaultfs noauto,nofail,passfile=$PASSFILE,fsname=from-fstab 0 0" >"$BASE/fstab"
mount -T "$BASE/fstab" "$FOLDER"
findmnt -n -o SOURCE "$FOLDER"
cat "$FOLDER/file"
"$PYTHON" -m vaultfs.cli umount "$FOLDER"
scripts/install-mount-helper --uninstall
test ! -e /sbin/mount.fuse.vaultfs
echo 'mine' >/sbin/mount.fuse.vaultfs
if scripts/install-mount-helper 2>/dev/null; then exit 4; fi
"""


@needs_root
def test_through_mount8_and_fstab(vault: Path, folder: Path, passfile: Path, tmp_path: Path) -> None:
    if not (REPOSITORY / ".venv/bin/python").exists():
        pytest.skip("vaultfs is not installed in .venv")
    for name in ("up", "work"):
        (tmp_path / name).mkdir()
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", THROUGH_MOUNT8],
        env={
            **os.environ,
            "BASE": str(tmp_path),
            "VAULT": str(vault),
            "FOLDER": str(folder),
            "PASSFILE": str(passfile),
            "PYTHON": sys.executable,
        },
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    if "overlay" in done.stderr:
        pytest.skip(f"no overlay over /sbin here: {done.stderr}")
    assert done.returncode == 0, done.stderr
    first, second, third = done.stdout.splitlines()
    source, kind, options = first.split()
    assert (source, kind) == (str(vault), "fuse.vaultfs")
    assert "noexec" in options.split(",")
    assert (second, third) == ("from-fstab", "contents")
    assert listing(vault) == [b"file"]
