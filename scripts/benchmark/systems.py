"""The measured filesystems: how each makes a vault, mounts it, unmounts it until its daemon is gone, and goes cold.

Every system keeps its defaults, as a person who types its shortest command gets them.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

PASSWORD = "bench password of no value"
COMMAND_LIMIT_S = 600.0
DAEMON_EXIT_LIMIT_S = 120.0
VENV_BIN = Path(sys.executable).parent


class BenchError(Exception):
    """A system did not do what a row asked of it; the message goes into the report."""


def run(
    command: list[str],
    *,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
    text: str = "",
    limit_s: float = COMMAND_LIMIT_S,
) -> str:
    """Run a program to its end and return what it printed.

    Args:
        command: program and arguments.
        env: variables on top of this process's own.
        cwd: its working directory.
        text: what it reads on standard input.
        limit_s: how long it may take.

    Raises:
        BenchError: it returned anything but 0, or took longer.
    """
    expired = threading.Event()
    # Files and not pipes take the output: a daemon that keeps them open must not keep us waiting.
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        given.write(text.encode())
        given.seek(0)
        environment = {**os.environ, **(env or {})}
        with subprocess.Popen(command, cwd=cwd, env=environment, stdin=given, stdout=out, stderr=errors) as child:

            def give_up() -> None:
                expired.set()
                child.kill()

            # Not wait(timeout): it looks every 50 ms only, which would show in the times.
            watchdog = threading.Timer(limit_s, give_up)
            watchdog.start()
            try:
                child.wait()
            finally:
                watchdog.cancel()
                child.kill()
        out.seek(0)
        errors.seek(0)
        printed = out.read().decode(errors="replace")
        said = errors.read().decode(errors="replace").strip()
    if expired.is_set():
        raise BenchError(f"{Path(command[0]).name} took longer than {limit_s:.0f} s")
    if child.returncode != 0:
        last = (said or printed.strip()).splitlines()[-1:] or ["no message"]
        raise BenchError(f"{Path(command[0]).name} returned {child.returncode}: {last[0]}")
    return printed


def processes_about(path: Path) -> Iterator[int]:
    """Yield the ids of running processes (zombies are not) that have ``path`` among their arguments."""
    wanted = os.fsencode(path)
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            arguments = (entry / "cmdline").read_bytes().split(b"\0")
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if wanted in arguments and state != "Z":
            yield int(entry.name)


def mount_points_under(directory: Path) -> list[Path]:
    """Return what is mounted below ``directory``, innermost first."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [Path(line.split()[4].replace("\\040", " ")) for line in lines]
    return sorted((point for point in points if point.is_relative_to(directory)), reverse=True)


def drop_page_cache() -> bool:
    """Write back and drop the kernel's caches; return whether this user may."""
    os.sync()
    if os.geteuid() == 0:
        Path("/proc/sys/vm/drop_caches").write_text("3\n")
        return True
    if shutil.which("sudo") is None:
        return False
    done = subprocess.run(
        ["sudo", "-n", "tee", "/proc/sys/vm/drop_caches"], input=b"3\n", capture_output=True, check=False
    )
    return done.returncode == 0


class System:
    """One filesystem with its vault and its mount point; the base class is a plain directory, the native speed.

    Args:
        home: a directory of its own, not there yet, in which the vault and the mount point are made.
    """

    name: ClassVar[str] = "native"

    def __init__(self, home: Path) -> None:
        self.home = home

    @property
    def vault(self) -> Path:
        """Where the ciphertext is."""
        return self.home / "vault"

    @property
    def mount_point(self) -> Path:
        """Where programs work."""
        return self.home / "mount"

    @property
    def state(self) -> dict[str, str]:
        """Variables that keep a program's own state inside ``home``."""
        return {"XDG_STATE_HOME": str(self.home / "state"), "XDG_CONFIG_HOME": str(self.home / "state")}

    @classmethod
    def installed(cls) -> bool:
        """Return whether the program is there."""
        return True

    @classmethod
    def version(cls) -> str:
        """Return one line that names program and version."""
        return "a plain directory"

    def prepare(self) -> None:
        """Make the directories around the vault."""
        self.mount_point.mkdir(parents=True)
        (self.home / "state").mkdir()

    def create(self) -> None:
        """Make an empty vault."""
        self.prepare()

    def mount(self) -> None:
        """Mount the vault; returns when programs can work in it."""

    def unmount(self) -> None:
        """Unmount; returns when the daemon is gone."""

    def daemons(self) -> list[int]:
        """Return the process ids that serve the mount."""
        return []

    def go_cold(self) -> None:
        """Unmount, mount again and drop the kernel's caches."""
        self.unmount()
        self.mount()
        drop_page_cache()

    def settle(self, limit_s: float = 10.0) -> None:
        """Wait until the daemon uses no processor time, so that work left by one row is not charged to the next."""
        deadline = time.monotonic() + limit_s
        before = -1
        while time.monotonic() < deadline:
            used = sum(processor_ticks(pid) for pid in self.daemons())
            if used == before:
                return
            before = used
            time.sleep(0.25)

    def kill(self) -> None:
        """Kill the daemon: what hangs on the mount gets an error instead."""
        for pid in self.daemons():
            os.kill(pid, signal.SIGKILL)

    def destroy(self) -> None:
        """Unmount by force if need be and delete everything."""
        for point in mount_points_under(self.home):
            subprocess.run(["fusermount", "-u", "-z", str(point)], check=False, capture_output=True)
        self.kill()
        shutil.rmtree(self.home, ignore_errors=True)


def processor_ticks(pid: int) -> int:
    """Return the clock ticks of processor time ``pid`` has used; 0 once it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(fields[11]) + int(fields[12])


class FuseSystem(System):
    """A FUSE filesystem with a daemon per mount."""

    executable: ClassVar[str]
    version_command: ClassVar[tuple[str, ...]]

    @classmethod
    def installed(cls) -> bool:
        return shutil.which(cls.executable) is not None

    @classmethod
    def version(cls) -> str:
        done = subprocess.run(list(cls.version_command), check=False, capture_output=True, text=True)
        package = subprocess.run(
            ["dpkg-query", "-W", "-f", "${Package} ${Version}", cls.executable],
            check=False,
            capture_output=True,
            text=True,
        )
        return package.stdout.strip() or (done.stdout + done.stderr).strip().splitlines()[0]

    def create(self) -> None:
        self.prepare()
        self.vault.mkdir()

    def daemons(self) -> list[int]:
        return list(processes_about(self.mount_point))

    def wait_until_mounted(self, limit_s: float = 30.0) -> None:
        """Return when the mount point shows in the kernel's table."""
        deadline = time.monotonic() + limit_s
        while not os.path.ismount(self.mount_point):
            if time.monotonic() > deadline:
                raise BenchError(f"{self.name} said it had mounted, but there is no mount")
            time.sleep(0.002)

    def unmount(self) -> None:
        daemons = self.daemons()
        run(["fusermount", "-u", str(self.mount_point)])
        self.wait_until_gone(daemons)

    def wait_until_gone(self, daemons: list[int]) -> None:
        """Return when none of ``daemons`` runs any more."""
        deadline = time.monotonic() + DAEMON_EXIT_LIMIT_S
        while set(self.daemons()).intersection(daemons):
            if time.monotonic() > deadline:
                raise BenchError(f"{self.name}'s daemon did not end within {DAEMON_EXIT_LIMIT_S:.0f} s of the unmount")
            time.sleep(0.005)


class Vaultfs(FuseSystem):
    """This project."""

    name = "vaultfs"
    executable = str(VENV_BIN / "vaultfs")
    version_command = (str(VENV_BIN / "vaultfs"), "version")

    @property
    def environment(self) -> dict[str, str]:
        """Password and state directory for every command."""
        return {**self.state, "VAULTFS_PASSWORD": PASSWORD}

    def create(self) -> None:
        self.prepare()
        run([self.executable, "init", str(self.vault)], env=self.environment)

    def mount(self) -> None:
        run([self.executable, "mount", str(self.vault), str(self.mount_point)], env=self.environment)
        if not os.path.ismount(self.mount_point):
            raise BenchError("vaultfs mount returned 0, but there is no mount")

    def unmount(self) -> None:
        daemons = self.daemons()
        run([self.executable, "umount", str(self.mount_point)], env=self.environment)
        if left := set(self.daemons()).intersection(daemons):
            raise BenchError(f"vaultfs umount returned 0, but its daemon still runs (process {min(left)})")


class Gocryptfs(FuseSystem):
    """gocryptfs: AES-GCM in 4 KiB blocks, a file per file, names encrypted."""

    name = "gocryptfs"
    executable = "gocryptfs"
    version_command = ("gocryptfs", "--version")

    def create(self) -> None:
        super().create()
        run(["gocryptfs", "-q", "-init", "-extpass", f"echo {PASSWORD}", str(self.vault)])

    def mount(self) -> None:
        run(["gocryptfs", "-q", "-extpass", f"echo {PASSWORD}", str(self.vault), str(self.mount_point)])
        self.wait_until_mounted()


class Securefs(FuseSystem):
    """securefs in its default format."""

    name = "securefs"
    executable = "securefs"
    version_command = ("securefs", "version")

    def create(self) -> None:
        super().create()
        run(["securefs", "create", "--pass", PASSWORD, str(self.vault)])

    def mount(self) -> None:
        log = str(self.home / "log")
        run(["securefs", "mount", "-b", "--log", log, "--pass", PASSWORD, str(self.vault), str(self.mount_point)])
        self.wait_until_mounted()


class Cryfs(FuseSystem):
    """CryFS: blocks of 16 KiB, structure hidden.  Its first mount creates the vault."""

    name = "cryfs"
    executable = "cryfs"
    version_command = ("cryfs", "--version")

    def mount(self) -> None:
        settings = {
            **self.state,
            "CRYFS_FRONTEND": "noninteractive",
            "CRYFS_NO_UPDATE_CHECK": "true",
            "CRYFS_LOCAL_STATE_DIR": str(self.home / "state"),
        }
        run(["cryfs", str(self.vault), str(self.mount_point)], env=settings, text=PASSWORD + "\n")
        self.wait_until_mounted()


class Encfs(FuseSystem):
    """EncFS in its standard mode.  Its first mount creates the vault."""

    name = "encfs"
    executable = "encfs"
    version_command = ("encfs", "--version")

    def mount(self) -> None:
        run(["encfs", "--standard", f"--extpass=echo {PASSWORD}", str(self.vault), str(self.mount_point)])
        self.wait_until_mounted()


SYSTEMS: dict[str, type[System]] = {kind.name: kind for kind in (Vaultfs, Gocryptfs, Securefs, Cryfs, Encfs, System)}
ANCHORS = ("gocryptfs", "securefs")
"""The systems vaultfs is held against; of each row the better one counts."""
