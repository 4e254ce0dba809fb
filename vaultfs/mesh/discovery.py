"""Peers on the local network, by multicast DNS (RFC 6762 and 6763): announced and looked for if a person wants it.

What is heard is a hint where a peer may listen, and nothing more: anybody on the network can announce anything.  TLS
proves who is there, and a person says who is trusted.  Announcing tells everybody on the network that this machine has
a peer, and its id; so it is off unless asked for.

The service is ``_vaultfs-mesh._tcp.local.``; an instance is named by the printed id, which just fits into a label.
zeroconf has an event loop of its own, in a thread of its own; it is in the extra ``vaultfs[discovery]``.
"""

from __future__ import annotations

import ipaddress
import queue
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Final, NamedTuple

from vaultfs.errors import RemoteError, UsageError
from vaultfs.ids import PeerId
from vaultfs.mesh.addresses import Address
from vaultfs.mesh.identity import format_peer_id, parse_peer_id, short_peer_id

if TYPE_CHECKING:
    from zeroconf import IPVersion, ServiceInfo, Zeroconf

SERVICE: Final = "_vaultfs-mesh._tcp.local."
LISTEN_S: Final = 2.0
"""A question is repeated after one second, and whoever has just announced himself answers only the second."""

_MOST_SEEN: Final = 200
"""Whoever floods the network with announcements gets no more of ours."""
_MOST_ADDRESSES: Final = 8
_RESOLVE_ONE_MS: Final = 1000
_RESOLVE_S: Final = 5.0
"""In all, for names without an address; that of an honest one has usually come along with its name."""


class Sighting(NamedTuple):
    """Somebody claims to be a peer.

    Attributes:
        peer_id: which he claims to be.
        addresses: where he claims to listen.
    """

    peer_id: PeerId
    addresses: tuple[Address, ...]


def require_discovery() -> None:
    """See that the extra is installed.

    Raises:
        UsageError: it is not.
    """
    _zeroconf()


@contextmanager
def announced(peer_id: PeerId, port: int, hosts: Sequence[str]) -> Iterator[None]:
    """Announce a peer while the block runs.  Entering takes some two seconds, as the network is asked first.

    Args:
        peer_id: of this machine.
        port: where it listens.
        hosts: addresses at which it listens; an unspecified one means all that this machine has.

    Raises:
        UsageError: the extra is not installed.
        RemoteError: the network does not allow it, or somebody else announces this id.
    """
    zeroconf = _zeroconf()
    addresses = _announceable(hosts)
    if not addresses:
        raise RemoteError("there is nothing to be announced: this machine has no address in a local network")
    info = zeroconf.ServiceInfo(
        SERVICE,
        f"{format_peer_id(peer_id)}.{SERVICE}",
        port=port,
        parsed_addresses=addresses,
        server=f"vaultfs-{short_peer_id(peer_id)}.local.",
    )
    instance = _started(zeroconf, hosts)
    try:
        try:
            instance.register_service(info)
        except (zeroconf.Error, OSError) as error:
            raise RemoteError(f"the peer cannot be announced: {str(error) or type(error).__name__}") from error
        yield
    finally:
        instance.close()  # says that it goes, too


def heard(seconds: float = LISTEN_S, hosts: Sequence[str] = ()) -> list[Sighting]:
    """Who announces himself on the local network, in the order of ids.

    Args:
        seconds: how long to listen.
        hosts: addresses of this machine in the networks to listen to; all if there is none.

    Raises:
        UsageError: the extra is not installed.
        RemoteError: the network does not allow it.
    """
    zeroconf = _zeroconf()
    names: queue.SimpleQueue[str] = queue.SimpleQueue()

    class Listener(zeroconf.ServiceListener):  # type: ignore[name-defined,misc]
        """Only takes notes: it is called in zeroconf's thread."""

        def add_service(self, zc: Zeroconf, type_: str, name: str) -> None:  # noqa: ARG002
            names.put(name)

        def update_service(self, zc: Zeroconf, type_: str, name: str) -> None:
            """An address that changes meanwhile is found by the question that follows."""

        def remove_service(self, zc: Zeroconf, type_: str, name: str) -> None:
            """Who goes meanwhile was there: it is a hint all the same."""

    instance = _started(zeroconf, hosts)
    try:
        browser = zeroconf.ServiceBrowser(instance, SERVICE, Listener())
        time.sleep(seconds)
        browser.cancel()
        found: dict[PeerId, Sighting] = {}
        deadline_s = time.monotonic() + _RESOLVE_S
        while not names.empty() and len(found) < _MOST_SEEN and time.monotonic() < deadline_s:
            name = names.get()
            peer_id = _peer_of(name)
            if peer_id is None or peer_id in found:
                continue
            sighting = _sighting(peer_id, instance.get_service_info(SERVICE, name, _RESOLVE_ONE_MS), zeroconf.IPVersion)
            if sighting is not None:
                found[peer_id] = sighting
    except (zeroconf.Error, OSError) as error:
        raise RemoteError(f"cannot listen to the local network: {str(error) or type(error).__name__}") from error
    finally:
        instance.close()
    return [found[peer_id] for peer_id in sorted(found)]


def _peer_of(name: str) -> PeerId | None:
    """Whose instance has this name; None: nobody's."""
    label = name.removesuffix(f".{SERVICE}")
    try:
        peer_id = parse_peer_id(label)
    except UsageError:
        return None
    return peer_id if format_peer_id(peer_id) == label else None


def _sighting(peer_id: PeerId, info: ServiceInfo | None, versions: type[IPVersion]) -> Sighting | None:
    if info is None or not info.port:
        return None
    texts = info.parsed_scoped_addresses(versions.All)[:_MOST_ADDRESSES]
    return Sighting(peer_id, tuple(Address(text, info.port) for text in texts)) if texts else None


def _announceable(hosts: Sequence[str]) -> list[str]:
    """The addresses that others can reach; those of the loopback only if nothing else was meant."""
    found: list[str] = []
    for host in hosts:
        if ipaddress.ip_address(host.partition("%")[0]).is_unspecified:
            found += _own_addresses()
        else:
            found.append(host.partition("%")[0])
    return list(dict.fromkeys(found))[:_MOST_ADDRESSES]


def _own_addresses() -> list[str]:
    import ifaddr  # noqa: PLC0415  # comes with zeroconf

    texts = [str(ip.ip if ip.is_IPv4 else ip.ip[0]) for adapter in ifaddr.get_adapters() for ip in adapter.ips]
    addresses = (ipaddress.ip_address(text) for text in texts)
    # An address of a link alone cannot be used without the name of an interface, which is the other machine's.
    return [str(address) for address in addresses if not address.is_loopback and not address.is_link_local]


def _started(zeroconf: ModuleType, hosts: Sequence[str]) -> Zeroconf:
    is_all = not hosts or any(ipaddress.ip_address(host.partition("%")[0]).is_unspecified for host in hosts)
    try:
        instance: Zeroconf = zeroconf.Zeroconf(zeroconf.InterfaceChoice.All if is_all else list(hosts))
    except OSError as error:
        raise RemoteError(f"the local network cannot be used: {error.strerror or error}") from error
    return instance


def _zeroconf() -> ModuleType:
    try:
        import zeroconf  # noqa: PLC0415  # an extra
    except ImportError as error:
        raise UsageError("this needs zeroconf; install it with: pip install 'vaultfs[discovery]'") from error
    return zeroconf
