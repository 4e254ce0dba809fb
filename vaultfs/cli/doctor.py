"""``vaultfs doctor``: check whether this machine can mount vaults, and say what to do where it cannot.

It imports neither the core nor pyfuse3, so it works where they do not.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from vaultfs.cli.directories import state_directory
from vaultfs.cli.output import emit_json, fields, say
from vaultfs.cli.sizes import format_size
from vaultfs.errors import ExitCode, UsageError

_OLD_KERNEL = (5, 11)
_OLDEST_KERNEL = (4, 20)
_LITTLE_SPACE_BYTES = 1 << 30
_LITTLE_MEMORY_BYTES = 512 << 20
_NETWORK_FILESYSTEMS = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "fuse.rclone", "ceph"})


@dataclass(frozen=True)
class Check:
    """One finding.

    Args:
        name: what was looked at.
        result: ``problem`` means vaults cannot be mounted as they should; ``advice`` that something could be better.
        detail: what was found.
        advice: what to do; empty where all is well.
    """

    name: str
    result: Literal["ok", "advice", "problem"]
    detail: str
    advice: str = ""


@dataclass(frozen=True)
class Machine:
    """Where the checks look; tests give another.

    Args:
        root: the directory that holds ``dev``, ``proc`` and ``etc``.
        release: the kernel's release, as ``uname -r`` prints it.
        uid: the user that asks.
        which: finds a program.
    """

    root: Path
    release: str
    uid: int
    which: Callable[[str], str | None]


def run(path: Path | None = None, /, *, json: bool = False) -> int:
    """Check whether this machine can mount vaults, and advise.

    Exits with 0 if nothing stands in the way, and with 1 if something does.

    Args:
        path: Directory that shall hold a vault; its disk is looked at. The home directory if not given.
        json: Print JSON.
    """
    place = path or Path.home()
    if not place.is_dir():
        raise UsageError(f"{place}: not a directory")
    machine = Machine(Path("/"), os.uname().release, os.geteuid(), shutil.which)
    checks = list(examine(machine, place))
    problems = sum(check.result == "problem" for check in checks)
    if json:
        emit_json({"ok": not problems, "checks": [asdict(check) for check in checks]})
    else:
        fields([(check.name, f"{check.result:<8} {check.detail}") for check in checks])
        for check in checks:
            if check.advice:
                say(f"\n{check.name}: {check.advice}")
        say(f"\n{problems} problem(s)." if problems else "\nThis machine can mount vaults.")
    return ExitCode.ERROR if problems else ExitCode.OK


def examine(machine: Machine, place: Path) -> Iterator[Check]:
    """All checks, in the order in which they are shown."""
    yield _python()
    yield _kernel(machine.release)
    yield _fuse_device(machine)
    yield _fusermount(machine)
    yield _allow_other(machine)
    yield _aes(machine)
    yield _memory(machine)
    yield _disk(machine, place)
    yield _state(state_directory())


def _python() -> Check:
    return Check("Python", "ok", ".".join(str(part) for part in sys.version_info[:3]))


def _kernel(release: str) -> Check:
    """FUSE grew the requests that vaultfs needs by 4.20; killpriv v2, which makes small writes fast, came with 5.11."""
    match = re.match(r"(\d+)\.(\d+)", release)
    version = (int(match[1]), int(match[2])) if match else (0, 0)
    if version < _OLDEST_KERNEL:
        return Check("kernel", "problem", release, "Linux 4.20 or newer is needed.")
    if version < _OLD_KERNEL:
        return Check("kernel", "advice", release, "From Linux 5.11 on, small buffered writes are much faster.")
    return Check("kernel", "ok", release)


def _fuse_device(machine: Machine) -> Check:
    device = machine.root / "dev/fuse"
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        advice = "Load the module with 'modprobe fuse'; a container needs '--device /dev/fuse --cap-add SYS_ADMIN'."
        return Check("/dev/fuse", "problem", "missing", advice)
    except OSError as error:
        advice = "Allow reading and writing it: 'chmod 666 /dev/fuse', or in a container '--device /dev/fuse'."
        return Check("/dev/fuse", "problem", os.strerror(error.errno or 0), advice)
    return Check("/dev/fuse", "ok", "can be opened")


def _fusermount(machine: Machine) -> Check:
    found = machine.which("fusermount3")
    advice = "Install it with 'apt install fuse3'."
    if found is None:
        if machine.uid == 0:
            return Check("fusermount3", "advice", "missing; root can mount without it", advice)
        return Check("fusermount3", "problem", "missing", advice)
    version = subprocess.run([found, "--version"], capture_output=True, text=True, check=False).stdout.strip()  # noqa: S603  # found by which()
    detail = version.removeprefix("fusermount3 version: ") or found
    if machine.uid != 0 and not Path(found).stat().st_mode & stat.S_ISUID:
        advice = f"An ordinary user can mount only if it is set-uid root: 'chmod u+s {found}' as root."
        return Check("fusermount3", "problem", f"{detail}, not set-uid", advice)
    return Check("fusermount3", "ok", detail)


def _allow_other(machine: Machine) -> Check:
    name = "allow_other"
    try:
        lines = (machine.root / "etc/fuse.conf").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    if any(line.strip() == "user_allow_other" for line in lines):
        return Check(name, "ok", "every user may use --allow-other")
    if machine.uid == 0:
        return Check(name, "ok", "root may use --allow-other")
    advice = "Only needed if other users shall see your mounts: add a line 'user_allow_other' to /etc/fuse.conf."
    return Check(name, "advice", "--allow-other is for root only", advice)


def _aes(machine: Machine) -> Check:
    name = "AES instructions"
    try:
        text = (machine.root / "proc/cpuinfo").read_text(errors="replace")
    except OSError:
        text = ""
    words = {word for line in text.splitlines() if line.startswith(("flags", "Features")) for word in line.split()}
    if "aes" in words:
        return Check(name, "ok", "vector" if "vaes" in words else "present")
    advice = "AES runs in software, at perhaps a tenth of the speed. In a virtual machine, pass the host's CPU through."
    return Check(name, "advice", "not found", advice)


def _memory(machine: Machine) -> Check:
    try:
        text = (machine.root / "proc/meminfo").read_text(errors="replace")
    except OSError:
        text = ""
    match = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)
    if match is None:
        return Check("memory", "advice", "unknown", "/proc/meminfo does not tell.")
    available = int(match[1]) * 1024
    detail = f"{format_size(available)} available"
    if available < _LITTLE_MEMORY_BYTES:
        advice = "Unlocking takes the memory that --kdf-memory of 'vaultfs init' says, and a mount up to 200 MiB."
        return Check("memory", "advice", detail, advice)
    return Check("memory", "ok", detail)


def _disk(machine: Machine, place: Path) -> Check:
    usage = os.statvfs(place)
    free = usage.f_bavail * usage.f_frsize
    kind = filesystem_type(machine, place)
    detail = f"{place}: {format_size(free)} free on {kind}"
    if usage.f_flag & os.ST_RDONLY:
        return Check("disk", "problem", f"{detail}, read-only", "Choose a directory on a disk that can be written.")
    if kind in _NETWORK_FILESYSTEMS:
        advice = "Keep the vault on a local disk: network filesystems break locks and the meaning of fsync."
        return Check("disk", "advice", detail, advice)
    if kind == "tmpfs":
        return Check("disk", "advice", detail, "A vault here is gone after a restart of the machine.")
    if free < _LITTLE_SPACE_BYTES:
        return Check("disk", "advice", detail, "There is little room for a vault.")
    return Check("disk", "ok", detail)


def filesystem_type(machine: Machine, place: Path) -> str:
    """The type of the filesystem that holds a directory, from /proc/self/mountinfo; ``unknown`` if it is not there."""
    device = place.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = (machine.root / "proc/self/mountinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        left, _, right = line.partition(" - ")
        if left.split()[2] == wanted:
            return right.split()[0]
    return "unknown"


def _state(directory: Path) -> Check:
    """The witness against rollback and the logs live there."""
    existing = next(parent for parent in (directory, *directory.parents) if parent.exists())
    if os.access(existing, os.W_OK | os.X_OK):
        return Check("state directory", "ok", str(directory))
    advice = "Logs and the protection against rollback need it: make it writable, or set XDG_STATE_HOME."
    return Check("state directory", "problem", f"{directory} cannot be written", advice)
