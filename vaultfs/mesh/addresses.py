"""Where a peer listens, and how people write it: ``HOST``, ``HOST:PORT``, ``[IPV6]:PORT``, ``ID@HOST:PORT``.  Pure."""

from __future__ import annotations

import ipaddress
import re
from typing import Final, NamedTuple

from vaultfs.errors import UsageError
from vaultfs.ids import PeerId
from vaultfs.mesh.identity import parse_peer_id

DEFAULT_PORT: Final = 7741
LONGEST_HOST: Final = 253

_NAME: Final = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)(?:\.(?!-)[A-Za-z0-9_-]{1,63}(?<!-))*\.?")
_PORT: Final = re.compile(r"[0-9]{1,5}")
_SCOPE: Final = re.compile(r"[A-Za-z0-9._-]{1,15}")
"""The name of a network interface, as in fe80::1%eth0; Linux allows 15 characters."""


class Address(NamedTuple):
    """A host and a port.

    Attributes:
        host: a name, an IPv4 address, or an IPv6 address without brackets.
        port: 1 to 65535; to listen at 0: one that is free.
    """

    host: str
    port: int = DEFAULT_PORT

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str, what: str, *, may_be_any_port: bool = False) -> Address:
    """An address as people write it.

    Args:
        text: as written; without a port it has `DEFAULT_PORT`.
        what: the argument, for the message.
        may_be_any_port: port 0 makes sense.

    Raises:
        UsageError: it is none.
    """
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or not is_ipv6(host) or rest[:1] not in {"", ":"}:
            raise _no_address(text, what)
        port = rest[1:] if rest else None
    else:
        host, colon, port_text = text.partition(":")
        port = port_text if colon else None
        if is_ipv6(text):
            raise UsageError(f"{what}: write an IPv6 address in brackets, as in [{text}]:{DEFAULT_PORT}")
    if port is not None and not _PORT.fullmatch(port):
        raise _no_address(text, what)
    number = DEFAULT_PORT if port is None else int(port)
    if not is_host(host):
        raise _no_address(text, what)
    if not (0 if may_be_any_port else 1) <= number <= 65535:
        raise UsageError(f"{what}: {number} is no port, which is from 1 to 65535")
    return Address(host, number)


def parse_peer_address(text: str, what: str) -> tuple[PeerId | None, Address]:
    """A peer as people write it.

    Args:
        text: ``ID@HOST:PORT``, or without ``ID@``.
        what: the argument, for the message.

    Returns:
        its id, None if it was not written, and where it is.

    Raises:
        UsageError: it is neither, or the id was mistyped.
    """
    before, at, after = text.rpartition("@")
    address = parse_address(after, what)
    return (parse_peer_id(before) if at else None), address


def is_host(text: str) -> bool:
    """Whether it is a name, an IPv4 address, or an IPv6 address without brackets, perhaps with ``%INTERFACE``."""
    return len(text) <= LONGEST_HOST and (is_ipv6(text) or _is_ipv4(text) or _is_name(text))


def is_ipv6(text: str) -> bool:
    """Whether it is an IPv6 address, without brackets."""
    address, percent, scope = text.partition("%")
    if percent and not _SCOPE.fullmatch(scope):
        return False
    try:
        ipaddress.IPv6Address(address)
    except ValueError:
        return False
    return True


def _is_ipv4(text: str) -> bool:
    try:
        ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return True


def _is_name(text: str) -> bool:
    # A last part of digits only is no name (RFC 1123, 2.1): 10.0.0.999 is a mistyped address, and so is 7741.
    return _NAME.fullmatch(text) is not None and not text.rstrip(".").rpartition(".")[2].isdigit()


def _no_address(text: str, what: str) -> UsageError:
    shown = "".join(character if " " <= character <= "~" else "?" for character in text[:100])
    return UsageError(
        f"{what}: {shown!r} is no address; write it as HOST, HOST:PORT or [IPV6]:PORT, as in nas.example:{DEFAULT_PORT}"
    )
