"""Talking to the systemd that runs a person's timers and services: the user's own, or the system's for root."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import platformdirs

from vaultfs.cli.output import error_line, note
from vaultfs.errors import UsageError
from vaultfs.storage.durable import storage_errors

SYSTEM_UNITS: Final = Path("/etc/systemd/system")
_PATIENCE_S: Final = 60


class Systemd:
    """Which one it is, and how it is asked.

    Attributes:
        is_system: whether it is the system's.
        directory: of the unit files of administrators, or of this user.
        command: what talks to it.
    """

    def __init__(self) -> None:
        self.is_system = os.geteuid() == 0
        user_units = platformdirs.user_config_path("systemd", appauthor=False) / "user"
        self.directory = SYSTEM_UNITS if self.is_system else user_units
        self.command = ["systemctl"] if self.is_system else ["systemctl", "--user"]

    def answers(self) -> bool:
        """Whether it can be asked for anything."""
        return shutil.which("systemctl") is not None and _failure([*self.command, "show-environment"]) is None

    def run(self, *words: str) -> bool:
        """Ask it for something; what it has against it is told."""
        failure = _failure([*self.command, *words])
        if failure is not None:
            error_line(f"{shlex.join([*self.command, *words])}: {failure}")
        return failure is None

    def enable(self, unit: str, what: str) -> bool:
        """Have it enable and start a unit that is new, or has changed; whether it did.

        Args:
            unit: its name.
            what: it is, for the message.
        """
        if not self.answers():
            note(f"systemd does not answer here, so the {what} is not enabled")
            return False
        return all(self.run(*words) for words in enabling(unit))


def enabling(unit: str) -> list[list[str]]:
    """What has to be asked of systemd for a unit that is new, or has changed."""
    return [["daemon-reload"], ["enable", "--now", unit]]


def require_ours(path: Path, mark: str) -> None:
    """Refuse to touch a unit that somebody else has written.

    Args:
        path: of the unit.
        mark: how those of ours begin.

    Raises:
        UsageError: it is somebody else's.
        StorageError: it cannot be read.
    """
    with storage_errors(f"cannot read {path}"):
        if os.path.lexists(path) and (
            path.is_symlink() or not path.is_file() or not path.read_bytes().startswith(mark.encode())
        ):
            raise UsageError(f"{path} was not written by vaultfs; move it away")


def understands_calendar(text: str) -> bool:
    """Whether systemd knows what a calendar expression means; True where there is nobody to ask.

    Args:
        text: without anything that looks like an option.
    """
    program = shutil.which("systemd-analyze")
    return program is None or _failure([program, "calendar", text]) is None


def _failure(words: Sequence[str]) -> str | None:
    """Run a program, and say why it failed; None if it did not."""
    try:
        done = subprocess.run(  # noqa: S603  # no shell, and no word that is an option but ours
            words, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PATIENCE_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return None if done.returncode == 0 else done.stderr.decode(errors="replace").strip() or "it failed"
