"""The systemd unit of `vaultfs peer serve`, as text.  Pure: nothing here looks at the machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vaultfs.cli.unit_syntax import command_line, environment_lines, quoted

MARK: Final = "# Written by 'vaultfs peer serve --install-service', which replaces it; change it with 'systemctl edit'."
"""The first line of the unit, by which we know our own."""

UNIT_NAME: Final = "vaultfs-peer.service"
"""One for each user, as each has one identity."""

_SERVICE: Final = """\
{mark}
[Unit]
Description=Hold copies of vaults for other machines
{after}
[Service]
Type=notify
ExecStart={command}
{environment}Restart=on-failure
RestartSec=5
TimeoutStopSec=30
UMask=0077
MemoryMax=256M
LimitNOFILE=4096
Nice=5
ReadWritePaths={writable}
ProtectSystem=strict
ProtectHome=read-only
PrivateTmp=yes
{for_manager}NoNewPrivileges=yes
LockPersonality=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictNamespaces=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM

[Install]
WantedBy={wanted_by}
"""
# TimeoutStopSec: bodies under way are given 10 s.  MemoryMax: a peer needs less than 100 MiB, and the cache of what it
# reads and writes counts too, but is given back.  AF_NETLINK: for looking up names and interfaces.
_FOR_USER: Final = "PrivateUsers=yes\n"
# A user's manager can make a mount namespace within a user namespace only, and can drop no capabilities (it has none).
_FOR_SYSTEM: Final = """\
PrivateDevices=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
CapabilityBoundingSet=
"""


@dataclass(frozen=True)
class PeerService:
    """What the service shall do.

    Attributes:
        program: the words that run vaultfs; the first is an absolute path.
        arguments: options of ``peer serve``.
        environment: variables that it needs.
        writable: directories where it writes, absolute.
        is_system: for the system's manager, not for a user's.
    """

    program: Sequence[str]
    arguments: Sequence[str]
    environment: Mapping[str, str]
    writable: Sequence[Path]
    is_system: bool

    def text(self) -> str:
        """The text of the unit.

        Raises:
            UsageError: a path cannot be written into a unit, or systemd would not run the program.
        """
        return _SERVICE.format(
            mark=MARK,
            after="Wants=network-online.target\nAfter=network-online.target\n" if self.is_system else "",
            command=command_line(self.program, ["peer", "serve", *self.arguments]),
            environment=environment_lines(self.environment),
            writable=" ".join(quoted(str(path)) for path in self.writable),
            for_manager=_FOR_SYSTEM if self.is_system else _FOR_USER,
            wanted_by="multi-user.target" if self.is_system else "default.target",
        )
