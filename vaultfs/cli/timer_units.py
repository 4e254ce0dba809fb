"""The systemd units of a regular sync, as text.  Pure: nothing here looks at the machine."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vaultfs.cli.unit_syntax import command_line, environment_lines, plain
from vaultfs.errors import ExitCode, UsageError

MARK: Final = "# Written by 'vaultfs sync --install-timer', which replaces it; change it with 'systemctl edit'."
"""The first line of a unit, by which we know our own."""

_PREFIX: Final = "vaultfs-sync-"
_LONGEST_NAME_BYTES: Final = 220
"""Of the 255 that a file may have: the suffix, and what a temporary file beside it adds, come on top."""
_KEPT: Final = frozenset(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz:_.")
_CALENDAR: Final = re.compile(r"[A-Za-z0-9*][A-Za-z0-9 ,.:*/~_+-]{0,199}")
_DELAYS: Final = {"daily": "1h", "hourly": "5min"}
_OTHER_DELAY: Final = "1min"

_SERVICE: Final = """\
{mark}
[Unit]
Description=Copy the vault {description} to its remotes
{unit}
[Service]
Type=oneshot
ExecStart={command}
Restart=on-failure
RestartPreventExitStatus={final}
RestartSec=10min
{environment}Nice=10
IOSchedulingClass=idle
UMask=0077
NoNewPrivileges=yes
LockPersonality=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictNamespaces=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
SystemCallArchitectures=native
"""
# A timer that missed its time fires when the machine wakes up, before its network does; so who could not be reached is
# tried again, and nothing else, which only a person can mend.
_FINAL: Final = " ".join(str(int(code)) for code in ExitCode if code not in {ExitCode.OK, ExitCode.REMOTE_UNREACHABLE})
# Nothing that needs a mount namespace of its own: the folders of mounted vaults must be seen as they are.  Whatever is
# not 0 is a failure, 3 too.
_TIMER: Final = """\
{mark}
[Unit]
Description=Copy the vault {description} to its remotes, {every}

[Timer]
OnCalendar={every}
RandomizedDelaySec={delay}
Persistent=true

[Install]
WantedBy=timers.target
"""


@dataclass(frozen=True)
class SyncTimer:
    """What a timer shall do.

    Attributes:
        vault: its directory, absolute.
        program: the words that run vaultfs; the first is an absolute path.
        arguments: options of ``sync``, beside ``--quiet``.
        every: when, as systemd.time(7) has it.
        environment: variables that the service needs.
        is_system: for the system's manager, not for a user's.
        remotes: their names; all if there is none.
    """

    vault: Path
    program: Sequence[str]
    arguments: Sequence[str]
    every: str
    environment: Mapping[str, str]
    is_system: bool
    remotes: Sequence[str] = ()

    def service(self) -> str:
        """The text of the service.

        Raises:
            UsageError: a path cannot be written into a unit, or systemd would not run the program.
        """
        words = ["sync", "--quiet", *self.arguments, "--", str(self.vault), *self.remotes]
        return _SERVICE.format(
            mark=MARK,
            description=plain(str(self.vault)),
            unit="Wants=network-online.target\nAfter=network-online.target\n" if self.is_system else "",
            command=command_line(self.program, words),
            final=_FINAL,
            environment=environment_lines(self.environment),
        )

    def timer(self) -> str:
        """The text of the timer.

        Raises:
            UsageError: a path cannot be written into a unit, or ``every`` is no calendar expression.
        """
        if not _CALENDAR.fullmatch(self.every):
            raise UsageError(f"--every: {self.every!r} is none of daily, hourly, or a calendar as in 'Mon..Fri 03:00'")
        return _TIMER.format(
            mark=MARK,
            description=plain(str(self.vault)),
            every=self.every,
            delay=_DELAYS.get(self.every, _OTHER_DELAY),
        )


def unit_name(vault: Path) -> str:
    """The name of a vault's units without their suffix: its path, escaped as ``systemd-escape --path`` does.

    Args:
        vault: its directory, absolute.  A path too long for a name is hashed.
    """
    name = _PREFIX + escaped_path(os.fsencode(vault))
    if len(name) > _LONGEST_NAME_BYTES:
        return _PREFIX + hashlib.sha256(os.fsencode(vault)).hexdigest()
    return name


def escaped_path(path: bytes) -> str:
    """An absolute path as systemd makes it a part of a unit's name.

    Args:
        path: without ``.`` and ``..``.
    """
    plain = b"/".join(part for part in path.split(b"/") if part)
    if not plain:
        return "-"
    return "".join(
        "-" if byte == 0x2F else chr(byte) if byte in _KEPT and (position or byte != 0x2E) else f"\\x{byte:02x}"
        for position, byte in enumerate(plain)
    )
