"""Announcements on the loopback interface only: what is announced is heard, and what makes no sense is passed over."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence

import pytest
import zeroconf

from vaultfs.errors import RemoteError, UsageError
from vaultfs.mesh import discovery
from vaultfs.mesh.addresses import Address
from vaultfs.mesh.discovery import SERVICE, Sighting, announced, heard, require_discovery
from vaultfs.mesh.identity import Identity, format_peer_id, parse_peer_id

LOOPBACK = ["127.0.0.1"]
PEER = Identity.of_seed(bytes(32)).peer_id
PRINTED = format_peer_id(PEER)


def test_what_is_announced_is_heard() -> None:
    threads = set(threading.enumerate())
    with announced(PEER, 4711, LOOPBACK):
        tries = (heard(1.3, LOOPBACK) for _ in range(10))  # multicast is lost at times on a machine that is busy
        assert next(filter(None, tries)) == [Sighting(PEER, (Address("127.0.0.1", 4711),))]
    assert set(threading.enumerate()) <= threads


@pytest.mark.parametrize(
    "name", ["printer", PRINTED.upper(), PRINTED[:-1], f"x.{PRINTED}", PRINTED.replace("-", ""), ""]
)
def test_names_that_no_peer_announces(name: str) -> None:
    assert discovery._peer_of(f"{name}.{SERVICE}") is None
    assert discovery._peer_of(f"{PRINTED}.{SERVICE}") == PEER


@pytest.mark.parametrize(
    ("port", "addresses", "expected"),
    [
        (4711, ["192.0.2.7", "2001:db8::7"], (Address("192.0.2.7", 4711), Address("2001:db8::7", 4711))),
        (0, ["192.0.2.7"], None),
        (4711, [], None),
        (1, [f"192.0.2.{number}" for number in range(100)], tuple(Address(f"192.0.2.{n}", 1) for n in range(8))),
    ],
)
def test_what_is_believed(port: int, addresses: list[str], expected: tuple[Address, ...] | None) -> None:
    info = zeroconf.ServiceInfo(SERVICE, f"{PRINTED}.{SERVICE}", port=port, parsed_addresses=addresses)
    sighting = discovery._sighting(PEER, info, zeroconf.IPVersion)
    assert (None if sighting is None else sighting.addresses) == expected
    assert discovery._sighting(PEER, None, zeroconf.IPVersion) is None


def test_an_instance_has_room_for_an_id() -> None:
    """A label of the DNS has at most 63 bytes."""
    assert len(format_peer_id(PEER)) <= 63
    assert parse_peer_id(format_peer_id(PEER)) == PEER


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        (["127.0.0.1"], ["127.0.0.1"]),
        (["192.0.2.7", "fe80::7%eth9"], ["192.0.2.7", "fe80::7"]),
        (["0.0.0.0", "::"], ["192.0.2.1", "2001:db8::1"]),
        (["0.0.0.0", "192.0.2.1"], ["192.0.2.1", "2001:db8::1"]),
    ],
)
def test_which_addresses_are_announced(
    monkeypatch: pytest.MonkeyPatch, hosts: Sequence[str], expected: list[str]
) -> None:
    class Ip:
        def __init__(self, ip: str | tuple[str, int, int]) -> None:
            self.ip, self.is_IPv4 = ip, isinstance(ip, str)

    class Adapter:
        ips = (
            Ip("127.0.0.1"),
            Ip("192.0.2.1"),
            Ip(("::1", 0, 0)),
            Ip(("2001:db8::1", 0, 0)),
            Ip(("fe80::1", 0, 2)),
        )

    monkeypatch.setattr("ifaddr.get_adapters", lambda: [Adapter()])
    assert discovery._announceable(hosts) == expected


def test_a_machine_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ifaddr.get_adapters", list)
    with pytest.raises(RemoteError, match="no address"):
        announced(PEER, 4711, ["0.0.0.0"]).__enter__()


def test_a_network_that_does_not_allow_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(zeroconf, "Zeroconf", refuse)
    for action in (lambda: heard(0, LOOPBACK), lambda: announced(PEER, 1, LOOPBACK).__enter__()):
        with pytest.raises(RemoteError, match="cannot be used: Operation not permitted"):
            action()


def test_an_id_that_somebody_else_announces(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []

    class Busy:
        def __init__(self, interfaces: object) -> None:
            assert interfaces == LOOPBACK

        def register_service(self, info: zeroconf.ServiceInfo) -> None:
            raise zeroconf.NonUniqueNameException

        def close(self) -> None:
            closed.append(1)

    monkeypatch.setattr(zeroconf, "Zeroconf", Busy)
    with pytest.raises(RemoteError, match="cannot be announced: NonUniqueNameException"):
        announced(PEER, 1, LOOPBACK).__enter__()
    assert closed == [1]


def test_without_zeroconf(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an extra."""
    monkeypatch.setitem(sys.modules, "zeroconf", None)
    for action in (require_discovery, lambda: heard(0), lambda: announced(PEER, 1, LOOPBACK).__enter__()):
        with pytest.raises(UsageError, match=r"pip install 'vaultfs\[discovery\]'"):
            action()
