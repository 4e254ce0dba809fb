"""Where the state machine works: a plain directory, or a vault that can be restarted and killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path
from typing import Protocol

from backup_faults.real_processes import Forker

PASSWORD = "correct horse battery staple"
CHUNK_SIZE = "4K"
"""Small, so that files of some dozen KiB have many chunks."""


class Folder(Protocol):
    """A directory that programs can use."""

    path: Path

    def restart(self) -> None:
        """Unmount and mount; nothing may be open."""

    def crash(self) -> None:
        """Kill whoever serves it, and mount again; nothing may be open."""

    def close(self) -> None:
        """Leave nothing behind."""


class PlainFolder:
    """A directory of the system's own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()

    def restart(self) -> None:
        """Nothing to do."""

    def crash(self) -> None:
        """Nothing to lose."""

    def close(self) -> None:
        """Nothing to do."""


class MountedVault:
    """A vault of its own, mounted.

    Args:
        base: an empty directory.
        forker: starts the commands.
        commit_interval_s: long, so that nothing but promises makes anything durable.
    """

    def __init__(self, base: Path, forker: Forker, commit_interval_s: float = 3600.0) -> None:
        self.path = base / "folder"
        self._forker = forker
        self._vault = base / "vault"
        self._passfile = base / "passfile"
        self._interval = str(commit_interval_s)
        self.path.mkdir()
        self._passfile.touch(mode=0o600)
        self._passfile.write_text(PASSWORD)
        self._vaultfs("init", self._vault, "--kdf-memory", "64M", "--chunk-size", CHUNK_SIZE)
        forker.stretch(self._vault, PASSWORD)
        self._mount()

    def _vaultfs(self, verb: str, *words: str | Path) -> None:
        secret: list[str | Path] = [] if verb == "umount" else ["--passfile", self._passfile]
        done = self._forker.run(verb, *words, *secret)
        if done.code != 0:
            raise AssertionError(f"vaultfs {verb} ended with {done.code}: {done.err}")

    def _mount(self) -> None:
        self._vaultfs("mount", self._vault, self.path, "--commit-interval", self._interval)

    @property
    def daemon(self) -> int:
        """The process that holds the vault's lock."""
        return int((self._vault / "lock").read_text().split()[0])

    def restart(self) -> None:
        """Unmount and mount."""
        self._vaultfs("umount", self.path)
        self._mount()

    def crash(self) -> None:
        """Kill the daemon and mount again, without anything in between but to take the dead mount away."""
        daemon = self.daemon
        handle = os.pidfd_open(daemon)
        try:
            os.kill(daemon, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):  # it is init's child, not ours
                os.waitid(os.P_PIDFD, handle, os.WEXITED)
            _wait_for_end(handle)
        finally:
            os.close(handle)
        subprocess.run(["umount", "-l", self.path], check=True)
        self._mount()

    def fsck(self) -> None:
        """Check the vault while it is not mounted."""
        self._vaultfs("umount", self.path)
        try:
            self._vaultfs("fsck", self._vault)
        finally:
            self._mount()

    def close(self) -> None:
        """Unmount."""
        self._vaultfs("umount", self.path)


def _wait_for_end(handle: int) -> None:
    """Wait until the process of a pidfd is gone."""
    import select

    poll = select.poll()
    poll.register(handle, select.POLLIN)
    if not poll.poll(30_000):
        raise AssertionError("the daemon survived SIGKILL")
