"""For whom a command waits: it says so once, and does not wait for the same peer again."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from vaultfs.cli import async_calls
from vaultfs.cli.async_calls import completed
from vaultfs.cli.peer_visits import visited_all
from vaultfs.errors import RemoteUnreachableError
from vaultfs.ids import PeerId, VaultId
from vaultfs.mesh import first_contact, witnessing
from vaultfs.mesh.addresses import Address
from vaultfs.mesh.book import KnownPeer, VaultPeers
from vaultfs.mesh.client import MeshClient
from vaultfs.mesh.first_contact import Visit
from vaultfs.mesh.identity import Identity, short_peer_id
from vaultfs.mesh.witnessing import Heard

from .conftest import Run
from .served_peers import ServedPeers

PEERS = [KnownPeer(PeerId(bytes([number]) * 32), Address("nas.example", 7741 + number)) for number in range(3)]


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(async_calls, "TELL_AFTER_S", 0.0)


def test_what_takes_long_is_told(at_once: None, capsys: pytest.CaptureFixture[str]) -> None:
    told = trio.Event()

    def slow() -> str:
        told.set()
        return "no answer yet"

    async def ask() -> int:
        await told.wait()
        return 7

    assert completed(ask, slow) == 7
    assert capsys.readouterr().err == "vaultfs: no answer yet\n"


def test_what_is_done_in_time_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    async def ask() -> int:
        return 7

    assert completed(ask, lambda: "no answer yet") == 7
    assert capsys.readouterr().err == ""


def test_the_peers_that_are_late_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    told, refused = trio.Event(), trio.Event()

    async def sleep(_: float) -> None:
        await refused.wait()

    def note(line: str) -> None:
        lines.append(line)
        told.set()

    async def look(identity: Identity, address: Address, expected: PeerId, vault: VaultId) -> Visit:
        if address.port == PEERS[0].address.port:
            refused.set()
            raise RemoteUnreachableError("connection refused")
        await told.wait()
        return Visit(0.0, None)

    monkeypatch.setattr(trio, "sleep", sleep)
    monkeypatch.setattr(first_contact, "look", look)
    monkeypatch.setattr(async_calls, "note", note)
    found = visited_all(Identity.of_seed(b"i" * 32), PEERS, VaultId(bytes(16)))
    assert [each.error is None for each in found] == [False, True, True]
    late = ", ".join(sorted(f"peer {short_peer_id(peer.id)} at {peer.address}" for peer in PEERS[1:]))
    assert lines == [f"no answer yet from {late}; waiting for them"]


@pytest.fixture
def peers(held_by_peers: Path, tmp_path: Path, own_config: Path) -> Iterator[ServedPeers]:
    shutil.copytree(held_by_peers, tmp_path, dirs_exist_ok=True)
    served = ServedPeers.of(tmp_path)
    yield served
    served.close()


def test_a_peer_that_was_out_of_reach_is_not_asked_again_as_a_witness(
    peers: ServedPeers, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[PeerId] = []
    real = witnessing.ask_witnesses

    async def ask(client: MeshClient, page: VaultPeers) -> Heard:
        asked.extend(peer.id for peer in page.peers)
        return await real(client, page)

    monkeypatch.setattr(witnessing, "ask_witnesses", ask)
    peers.peers[0].stop()
    said = run("restore", peers.url, tmp_path / "back", "--quiet")
    assert said.code == 0
    assert asked == [peers.peers[1].identity.peer_id]
    assert "1 of 2 peers of the vault did not say what they have seen" in said.err
