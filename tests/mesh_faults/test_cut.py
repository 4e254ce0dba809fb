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
REQUEST_BYTES = 3_000
"""So much a peer says at most until it is asked for something."""


@pytest.fixture
def home(make_household: MakeHousehold, network: Network) -> Household:
    """Two peers in a network, and a vault with a segment of 8 MiB."""
    return make_household(2, is_large=True, network=network)


def test_what_was_cut_goes_on_where_it_ended(home: Household, network: Network) -> None:
    network.cut_after("laptop", "peer1", ALMOST_BYTES)
    said = home.sync().require(ExitCode.PARTIAL)
    assert "1 segment with too few copies" in said.err
    line = network.line("laptop", "peer1")
    assert line.is_cut
    home.require_copies(1)
    home.require_short()
    until(lambda: not home.peers[1].is_receiving, "the peer has noticed as well, and keeps what came")
    network.cut("peer1", is_cut=False)
    carried_bytes = line.carried_bytes
    home.require_sound()
    assert line.carried_bytes - carried_bytes < LARGE_BYTES // 2, "it was sent again from the beginning"


def test_a_short_cut_is_not_noticed(home: Household, network: Network) -> None:
    """A second transfer of the same is not begun, and nothing is short."""
    line = network.line("laptop", "peer1")
    network.cut_after("laptop", "peer1", ALMOST_BYTES)
    running = home.laptop.start("sync", home.vault, "--quiet")
    until(lambda: line.is_cut, "the cable is pulled")
    network.cut("peer1", is_cut=False)
    running.wait().require(0)
    home.require_copies()
    assert line.carried_bytes < 2 * LARGE_BYTES
    home.require_sound()


def test_a_peer_that_is_cut_off_for_good_is_replaced(home: Household, network: Network) -> None:
    """What it was to have goes to another in the same run; when it comes back nothing is wrong."""
    home.set_replicas(1)
    lost = home.add_peer(identity=home.nearest_identity())
    others = home.peers[:2]
    network.cut_after("laptop", "peer2", MIB // 2)
    home.sync().require(0, ExitCode.PARTIAL, ExitCode.REMOTE_UNREACHABLE)
    assert network.line("laptop", "peer2").is_cut
    large = max(home.segments, key=home.segments.__getitem__)
    assert home.holders(large, others)
    assert not home.holders(large, [lost])
    home.sync().require(0)
    home.repair().require(0)
    home.require_copies(1, others)
    network.cut("peer2", is_cut=False)
    home.set_replicas(2)
    home.require_sound()


def test_a_read_goes_on_with_another_peer(home: Household, network: Network) -> None:
    home.sync().require(0)
    line = network.line("peer0", "laptop")
    network.cut_after("peer0", "laptop", MIB)
    back = home.laptop.root / "back"
    home.laptop.run("restore", home.url, back, "--quiet").require(0)
    assert line.is_cut or line.cut_after_bytes is not None
    large = max(home.segments, key=home.segments.__getitem__)
    assert (back / "segments" / large[:2] / f"{large}.seg").stat().st_size == home.segments[large]
    network.cut("peer0", is_cut=False)
    home.require_sound()


ONE_WAY = [
    pytest.param("laptop", "peer1", ALMOST_BYTES, id="to the peer, sending"),
    pytest.param("peer1", "laptop", 0, id="from the peer, first", marks=pytest.mark.long),
    pytest.param("laptop", "peer1", 0, id="to the peer, first", marks=pytest.mark.long),
    pytest.param("laptop", "peer1", 20_000, id="to the peer, asking", marks=pytest.mark.long),
    pytest.param("peer1", "laptop", REQUEST_BYTES, id="from the peer, sending", marks=pytest.mark.long),
]


@pytest.mark.parametrize(("source", "target", "count"), ONE_WAY)
def test_one_direction_alone_is_cut(home: Household, network: Network, source: str, target: str, count: int) -> None:
    """Whoever waits for an answer, or for room to send, gives up; both sides do."""
    line = network.line(source, target)
    line.cut_after_bytes = count
    home.sync().require(ExitCode.PARTIAL)
    assert line.is_cut
    home.require_short()
    network.cut("peer1", is_cut=False)
    home.require_sound()


@pytest.mark.parametrize(
    "is_to_peers",
    [pytest.param(True, id="to the peers", marks=pytest.mark.long), pytest.param(False, id="from the peers")],
)
def test_one_direction_of_all_is_cut(home: Household, network: Network, is_to_peers: bool) -> None:
    home.sync().require(0)
    for number in range(2):
        ends = ("laptop", f"peer{number}") if is_to_peers else (f"peer{number}", "laptop")
        network.line(*ends).is_cut = True
    for verb in (["mesh", "repair"], ["sync", "--check"], ["mesh", "audit"]):
        said = home.laptop.run(*verb, home.vault).require(ExitCode.REMOTE_UNREACHABLE)
        assert "Traceback" not in said.err
        assert "did not answer within" in said.err or "cannot be reached" in said.err
    for number in range(2):
        network.cut(f"peer{number}", is_cut=False)
    home.require_sound()


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_patient_machines_find_out_as_well(make_household: MakeHousehold, network: Network) -> None:
    """With the times that people have: a peer that is cut off costs a minute or two, and nothing else."""
    home = make_household(2, is_large=True, network=network, is_patient=True)
    home.laptop.settings = {}
    network.cut_after("laptop", "peer1", ALMOST_BYTES)
    home.laptop.run("sync", home.vault, "--quiet", within_s=240).require(ExitCode.PARTIAL)
    network.cut("peer1", is_cut=False)
    home.require_sound()
