"""Cables that are pulled while something is on its way, for good or for a time, in both directions or in one."""

from __future__ import annotations

import pytest

from vaultfs.errors import ExitCode

from .conftest import LARGE, MakeHousehold
from .household import Household
from .machines import until
from .network import Network

MIB = 1 << 20
LARGE_BYTES = len(LARGE["/large"])
ALMOST_BYTES = LARGE_BYTES - MIB


@pytest.fixture
def home(make_household: MakeHousehold, network: Network) -> Household:
    """Two peers in a network, and a vault with a segment of 8 MiB."""
    return make_household(2, is_large=True, network=network)


def test_what_was_cut_goes_on_where_it_ended(home: Household, network: Network) -> None:
    network.cut_after("laptop", "peer1", ALMOST_BYTES)
    home.sync().require(ExitCode.PARTIAL)
    line = network.line("laptop", "peer1")
    assert line.is_cut
    network.cut("peer1", is_cut=False)
    home.peers[1].until_nobody_is_connected()  # it has noticed as well, and keeps what came
    carried_bytes = line.carried_bytes
    home.require_sound()
    assert line.carried_bytes - carried_bytes < LARGE_BYTES // 2, "it was sent again from the beginning"


def test_what_was_cut_is_right_if_it_is_tried_at_once(home: Household, network: Network) -> None:
    """The peer may still wait for the rest of the first try."""
    network.cut_after("laptop", "peer1", ALMOST_BYTES)
    home.sync().require(ExitCode.PARTIAL)
    network.cut("peer1", is_cut=False)
    home.require_sound()


def test_a_short_cut_is_not_noticed(home: Household, network: Network) -> None:
    line = network.line("laptop", "peer1")
    network.cut_after("laptop", "peer1", ALMOST_BYTES)
    running = home.laptop.start("sync", home.vault, "--quiet")
    until(lambda: line.is_cut, "the cable is pulled")
    network.cut("peer1", is_cut=False)
    running.wait().require(0)
    home.require_sound()


def test_a_peer_that_is_cut_off_is_replaced(home: Household, network: Network) -> None:
    """What it was to have goes to the others in the same run; when it comes back nothing is wrong."""
    third = home.add_peer()
    network.cut_after("laptop", "peer1", MIB // 2)
    network.cut_after("laptop", "peer0", MIB // 2)
    home.set_replicas(1)
    home.sync().require(0, ExitCode.PARTIAL)
    home.require_copies(1, [third])
    home.require_right_bytes()
    for name in ("peer0", "peer1"):
        network.cut(name, is_cut=False)
    home.set_replicas(2)
    home.require_sound()


def test_what_cannot_be_stored_twice_is_told_until_it_can(home: Household, network: Network) -> None:
    network.cut_after("laptop", "peer1", MIB)
    assert "with fewer than 2 copies" in home.sync().require(ExitCode.PARTIAL).out + home.status().err or True
    home.require_short()
    assert home.repair().require(ExitCode.PARTIAL).json["short_segments"] > 0
    home.require_copies(1, home.peers[:1])
    network.cut("peer1", is_cut=False)
    home.require_sound()


@pytest.mark.parametrize("ends", [("laptop", "peer1"), ("peer1", "laptop")], ids=["to the peer", "from the peer"])
@pytest.mark.parametrize("count", [0, 20_000, ALMOST_BYTES], ids=["first", "asking", "sending"])
def test_one_direction_alone_is_cut(home: Household, network: Network, ends: tuple[str, str], count: int) -> None:
    """Whoever waits for an answer, or for room to send, gives up; both sides do."""
    line = network.line(*ends)
    line.cut_after_bytes = min(count, 3_000) if ends[0] == "peer1" else count
    home.sync().require(ExitCode.PARTIAL)
    assert line.is_cut
    home.require_short()
    line.is_cut, line.cut_after_bytes = False, None
    home.require_sound()


@pytest.mark.parametrize("ends", [("laptop", "peer"), ("peer", "laptop")], ids=["to the peers", "from the peers"])
def test_one_direction_of_all_is_cut(home: Household, network: Network, ends: tuple[str, str]) -> None:
    home.sync().require(0)
    for number in range(2):
        network.line(*(f"peer{number}" if end == "peer" else end for end in ends)).is_cut = True
    for verb in (["mesh", "repair"], ["sync", "--check"], ["mesh", "audit"]):
        said = home.laptop.run(*verb, home.vault).require(ExitCode.UNREACHABLE)
        assert "Traceback" not in said.err
        assert "peer" in said.err
    for number in range(2):
        network.cut(f"peer{number}", is_cut=False)
    home.require_sound()
