"""Telling systemd how a service is (sd_notify(3)); without systemd nothing happens."""

from __future__ import annotations

import os
import socket

from vaultfs.cli.output import note


def notify(state: str) -> None:
    """Tell systemd; it is never waited for.

    Args:
        state: as ``READY=1`` or ``STOPPING=1``; several are on lines of their own.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address[0] == "@":  # the abstract namespace of unix(7)
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.setblocking(False)
        try:
            sender.connect(address)
            sender.send(state.encode())
        except OSError as error:
            note(f"systemd cannot be told {state}: {error.strerror}")
