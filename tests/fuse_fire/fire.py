"""A mounted vault under programs that are killed, stopped and continued, while snapshots and commits are made.

What happens follows from a seed; when it happens is up to the machine.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple

from vaultfs.crypto.kdf import KdfParameters
from vaultfs.crypto.slots import Secret
from vaultfs.errors import ExitCode, VaultError
from vaultfs.fuse import control, kernel_mount
from vaultfs.vault.opening import create_vault

from . import programs

PASSWORD: Final = "correct horse battery staple"
PATIENCE_S: Final = 60.0
"""Everything ends within this; nothing takes a tenth of it on an idle machine."""
VERBS: Final = ("status", "commit", "snapshot-create", "sync-prepare", "snapshot-list")
_SCRIPT: Final = Path(programs.__file__)


class Use(NamedTuple):
    """What a daemon holds: memory in KiB, descriptors, threads."""

    memory_kib: int
    descriptors: int
    threads: int


class _Program(NamedTuple):
    process: subprocess.Popen[bytes]
    kind: str
    seed: int
    own: Path
    journal: Path


def use_of(pid: int) -> Use:
    """What a process holds now."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return Use(int(status["VmRSS"].split()[0]), len(os.listdir(f"/proc/{pid}/fd")), int(status["Threads"]))


def forced_ends_of(mounted: Fire) -> dict[str, Callable[[], None]]:
    """The ways in which a mount may be ended although it is in use."""

    def signals(first: int, second: int) -> None:
        os.kill(mounted.pid, first)
        time.sleep(mounted.choose.uniform(0, 0.3))
        with contextlib.suppress(ProcessLookupError):
            os.kill(mounted.pid, second)

    def lazily() -> None:
        kernel_mount.unmount(mounted.folder, lazy=True)

    return {
        "SIGTERM twice": lambda: signals(signal.SIGTERM, signal.SIGTERM),
        "SIGHUP, SIGINT": lambda: signals(signal.SIGHUP, signal.SIGINT),
        "lazy": lazily,
    }


def ends_of(mounted: Fire) -> dict[str, Callable[[], None]]:
    """The ways in which a mount may be ended."""
    return {
        "umount": mounted.umount,
        "umount twice": mounted.umount_twice,
        "kernel": lambda: kernel_mount.unmount(mounted.folder),
        "lazy": lambda: kernel_mount.unmount(mounted.folder, lazy=True),
        "SIGTERM": lambda: os.kill(mounted.pid, signal.SIGTERM),
    }


class Fire:
    """A vault, its folder, and whoever plays with fire there.

    Args:
        base: an empty directory.
        seed: of all choices.
    """

    def __init__(self, base: Path, seed: int) -> None:
        self.choose: Final = random.Random(seed)
        self.vault: Final = base / "vault"
        self.folder: Final = base / "folder"
        self._passfile: Final = base / "password"
        self._journals: Final = base / "journals"
        self._next_seed = seed * 100_000
        self._programs: list[_Program] = []
        self._cut_short: list[_Program] = []
        self.pid = 0
        self.folder.mkdir()
        self._journals.mkdir()
        self._passfile.write_text(f"{PASSWORD}\n")
        self._passfile.chmod(0o600)
        create_vault(self.vault, Secret.password(PASSWORD), kdf=KdfParameters.weakest())

    # --- the mount

    def command(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """Run ``vaultfs`` with a time limit."""
        return subprocess.run(
            [sys.executable, "-m", "vaultfs.cli", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=2 * PATIENCE_S,
        )

    def must(self, *words: str | Path) -> str:
        """Run ``vaultfs``, which succeeds; return what it wrote."""
        done = self.command(*words)
        assert done.returncode == 0, f"{words}: {done.returncode}: {done.stderr}"
        return done.stdout

    def mount(self, *more: str) -> None:
        """Mount, and have the files that programs only read."""
        self.must("mount", self.vault, self.folder, "--passfile", self._passfile, *more)
        self.pid = self.ask("status")["pid"]
        if not (self.folder / programs.BIG).exists():
            (self.folder / programs.BIG).write_bytes(programs.pattern(0, programs.BIG_BYTES))
            (self.folder / programs.SHARED).write_bytes(programs.pattern(1, programs.SHARED_BYTES))

    def ask(self, verb: str) -> dict[str, Any]:
        """Ask the daemon, which must answer in time."""
        began_s = time.monotonic()
        answer = control.request(self.folder, verb)
        took_s = time.monotonic() - began_s
        assert took_s < PATIENCE_S, f"{verb} took {took_s:.0f} s"
        return answer

    def umount(self) -> None:
        """``vaultfs umount``."""
        self.must("umount", self.folder)

    def umount_twice(self) -> None:
        """The same by two at once, of whom one may come too late."""
        said: list[subprocess.CompletedProcess[str]] = []
        threads = [threading.Thread(target=lambda: said.append(self.command("umount", self.folder))) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        first, second = sorted(said, key=lambda each: each.returncode)
        assert first.returncode == 0, first.stderr
        late = (ExitCode.OK, ExitCode.ERROR, ExitCode.MOUNT_FAILED)
        assert second.returncode in late, second.stderr

    def await_end(self) -> None:
        """The daemon ends, and leaves no mount behind."""
        until_s = time.monotonic() + PATIENCE_S
        while Path(f"/proc/{self.pid}").exists():
            assert time.monotonic() < until_s, f"daemon {self.pid} does not end"
            time.sleep(0.02)
        assert not self.folder.is_mount()

    def check(self) -> None:
        """Nothing is wrong with the vault."""
        self.must("fsck", self.vault, "--passfile", self._passfile)

    # --- programs

    def start(self, kind: str) -> None:
        """Start a program of a kind."""
        self._next_seed += 1
        seed = self._next_seed
        journal = self._journals / f"{seed}"
        process = subprocess.Popen(
            [sys.executable, "-S", "-E", _SCRIPT, kind, self.folder, str(seed), journal], stderr=subprocess.PIPE
        )
        self._programs.append(_Program(process, kind, seed, self.folder / f"{kind}-{seed}", journal))

    def wave(self, kinds: Iterable[str], *, quiet: float = 0.4) -> None:
        """Programs of these kinds run together; most are killed, some end by themselves.

        Args:
            kinds: one program each.
            quiet: this part of them is left alone.
        """
        before = len(self._programs)
        for kind in kinds:
            self.start(kind)
        running = self._programs[before:]
        asking = threading.Thread(target=self._ask_often)
        self._is_asking = True
        self._asked_in_vain: BaseException | None = None
        asking.start()
        try:
            victims = [each for each in running if self.choose.random() >= quiet]
            for victim in self.choose.sample(victims, len(victims)):
                time.sleep(self.choose.uniform(0, 0.05))
                self._disturb(victim.process)
            for each in running:
                try:
                    _, said = each.process.communicate(timeout=PATIENCE_S)
                except subprocess.TimeoutExpired:
                    raise AssertionError(f"{each.kind}, process {each.process.pid}, does not end") from None
                assert b"lied" not in said, said.decode()
                assert each in victims or each.process.returncode == 0, said.decode()
        finally:
            self._is_asking = False
            asking.join(2 * PATIENCE_S)
            assert not asking.is_alive(), "the daemon does not answer"
        if self._asked_in_vain is not None:
            raise self._asked_in_vain

    def end_while_busy(self, kinds: Iterable[str], end: Callable[[], None]) -> None:
        """End the mount under programs of these kinds; they get errors, and the daemon ends all the same.

        What they wrote and did not sync is lost, as in a crash, so nobody looks at it.
        """
        before = len(self._programs)
        for kind in kinds:
            self.start(kind)
        running = self._programs[before:]
        self._cut_short += running
        until_s = time.monotonic() + PATIENCE_S
        while not all(programs.acknowledged(each.journal) for each in running if each.process.poll() is None):
            assert time.monotonic() < until_s, "programs do not begin"
            time.sleep(0.01)
        time.sleep(self.choose.uniform(0, 0.2))
        end()
        self.await_end()
        for each in running:
            try:
                each.process.communicate(timeout=PATIENCE_S)
            except subprocess.TimeoutExpired:
                raise AssertionError(f"{each.kind}, process {each.process.pid}, does not end") from None
        del self._programs[before:]

    def _disturb(self, process: subprocess.Popen[bytes]) -> None:
        number = self.choose.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGTERM, signal.SIGSTOP))
        process.send_signal(number)
        if number == signal.SIGSTOP:
            time.sleep(self.choose.uniform(0, 0.1))
            process.send_signal(signal.SIGCONT if self.choose.random() < 0.5 else signal.SIGKILL)

    def _ask_often(self) -> None:
        choose = random.Random(self._next_seed)
        try:
            while self._is_asking:
                self.ask(choose.choice(VERBS))
                time.sleep(choose.uniform(0, 0.1))
        except (VaultError, AssertionError) as error:
            self._asked_in_vain = error

    def look(self) -> None:
        """All files of all programs are as they must be."""
        for each in self._programs:
            ended = each.process.returncode == 0
            programs.look(each.kind, each.own, each.seed, each.journal, has_ended=ended)
        assert (self.folder / programs.BIG).read_bytes() == programs.pattern(0, programs.BIG_BYTES)
        assert (self.folder / programs.SHARED).read_bytes() == programs.pattern(1, programs.SHARED_BYTES)

    def forget(self) -> None:
        """Remove what programs have left."""
        for each in (*self._programs, *self._cut_short):
            subprocess.run(["rm", "-rf", each.own], check=True, timeout=PATIENCE_S)
        self._programs.clear()
        self._cut_short.clear()

    def kill_all(self) -> None:
        """At the end of a test that failed."""
        for each in (*self._programs, *self._cut_short):
            if each.process.poll() is None:
                each.process.kill()
        if self.pid and f" {self.folder} ".encode() in Path("/proc/self/mounts").read_bytes():
            os.kill(self.pid, signal.SIGKILL)  # first: one that hangs would keep whoever looks at the folder
            kernel_mount.unmount(self.folder, lazy=True)
