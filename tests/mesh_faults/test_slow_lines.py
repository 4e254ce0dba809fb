"""Lines that are slow and lose something, and connections whose other end is gone without a word."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Final

import pytest
import trio

from vaultfs.errors import RemoteUnreachableError
from vaultfs.mesh.client import Contact, MeshClient, open_client
from vaultfs.mesh.pool import PoolCounters, PoolLimits

from .conftest import MakeHousehold
from .household import Household
from .machines import DEADLINE_S
from .network import Network

IDLE_S = 0.2
"""So long nobody uses a connection here before it is pinged; 30 s for people."""
PING_S = 0.5
LIMITS = PoolLimits(
    health_check_after_s=IDLE_S, ping_timeout_s=PING_S, connect_timeout_s=2.0, wait_s=20.0, close_timeout_s=0.5
)
PATIENT: Final = replace(LIMITS, connect_timeout_s=40.0, wait_s=50.0)
"""For what succeeds in the end: a lost SYN is sent again after 1 s, 3 s, 7 s, and to start a process may take long."""
LOSSY_DEADLINE_S: Final = 200.0
"""What is lost is sent again after a time that doubles: seconds mostly, and no bound that a test could name."""


def make_slow(network: Network, *names: str, delay_s: float, loss: float) -> None:
    for name in names:
        for line in network.lines(name):
            line.delay_s, line.loss = delay_s, loss


def test_delay_and_loss_are_borne(make_household: MakeHousehold, network: Network) -> None:
    """100 ms for a question and its answer, and one frame in twenty lost; more of both with ``--long``."""
    home = make_household(2, network=network, is_patient=True)
    home.laptop.settings = {}
    make_slow(network, "laptop", delay_s=0.05, loss=0.05)
    home.laptop.run("sync", home.vault, "--quiet", within_s=LOSSY_DEADLINE_S).require(0)
    make_slow(network, "laptop", delay_s=0.0, loss=0.0)
    home.require_sound()


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("loss", [0.0, 0.05, 0.15])
def test_much_of_it_is_borne(make_household: MakeHousehold, network: Network, loss: float) -> None:
    home = make_household(3, is_large=True, network=network, is_patient=True)
    home.laptop.settings = {}
    make_slow(network, "laptop", delay_s=0.2, loss=loss)
    home.laptop.run("sync", home.vault, "--quiet", within_s=900).require(0)
    home.peers[0].kill()
    home.laptop.run("mesh", "repair", home.vault, "--quiet", within_s=900).require(0)
    make_slow(network, "laptop", delay_s=0.0, loss=0.0)
    home.require_sound()


def test_a_slow_line_is_slow_and_nothing_else(make_household: MakeHousehold, network: Network) -> None:
    """Bytes that wait in a router for a second are no sign of death."""
    home = make_household(2, network=network, is_patient=True)
    home.laptop.settings = {}
    network.line("laptop", "peer1").bytes_per_s = 300_000
    home.sync().require(0)
    home.require_copies()
    home.require_sound()


# --- half-open connections


def used_again(
    home: Household,
    network: Network,
    while_idle: Callable[[], None],
    while_pinged: Callable[[], None],
    limits: PoolLimits = LIMITS,
) -> PoolCounters:
    """Use a connection, let something happen, use it again; and what the pool counts at the end."""
    peer = home.peers[0]

    async def ping_again(client: MeshClient) -> None:
        await client.ping(peer.id)
        assert client.pool.snapshot().counters.open == 1
        await trio.to_thread.run_sync(while_idle)
        await trio.sleep(2 * IDLE_S)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.ping, peer.id)
            await until_async(lambda: client.pool.snapshot().counters.pings == 1)
            await until_async(lambda: client.pool.snapshot().counters.open == 0)
            await trio.to_thread.run_sync(while_pinged)

    async def main() -> PoolCounters:
        with trio.fail_after(DEADLINE_S):
            async with open_client(home.laptop.identity, [Contact(peer.id, peer.listens_at)], limits) as client:
                await ping_again(client)
            assert client.pool.audit() == []
            return client.pool.snapshot().counters

    return network.inside("laptop", lambda: trio.run(main))


async def until_async(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  # nothing tells
        await trio.sleep(0.01)


def test_a_connection_that_is_half_open_is_replaced(make_household: MakeHousehold, network: Network) -> None:
    """The peer's interface goes down while nobody says anything, and comes back when the ping has not been answered."""
    home = make_household(1, network=network)
    down, up = partial(network.link, "peer0", "down"), partial(network.link, "peer0", "up")
    counters = used_again(home, network, down, up, PATIENT)
    assert (counters.pings, counters.ping_failures, counters.closed_stale, counters.opened) == (1, 1, 1, 2)
    assert (counters.open, counters.idle, counters.leases, counters.waiting) == (0, 0, 0, 0)
    home.require_no_connections()


def test_a_peer_that_lost_its_power_is_found_out_and_used_again(
    make_household: MakeHousehold, network: Network
) -> None:
    """Nobody tells the laptop that the other end is gone; when it is back, a reset or silence does."""
    home = make_household(1, network=network)

    def lose_power() -> None:
        network.cut("peer0")
        home.peers[0].kill()

    def come_back() -> None:
        home.peers[0].serve()  # first, or the laptop may be told that nobody listens there
        network.cut("peer0", is_cut=False)

    counters = used_again(home, network, lose_power, come_back, PATIENT)
    assert (counters.pings, counters.ping_failures, counters.opened) == (1, 1, 2)
    home.require_no_connections()


def test_a_connection_that_is_half_open_for_good_ends_in_an_error(
    make_household: MakeHousehold, network: Network
) -> None:
    home = make_household(1, network=network)
    with pytest.raises(ExceptionGroup) as caught:
        used_again(home, network, lambda: network.cut("peer0"), lambda: None)
    assert caught.group_contains(RemoteUnreachableError, match="did not answer")
    network.cut("peer0", is_cut=False)
    home.require_no_connections()
