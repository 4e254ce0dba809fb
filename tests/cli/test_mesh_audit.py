"""``vaultfs mesh audit``: over connections to real peers, some of which lie."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vaultfs.errors import ExitCode
from vaultfs.ids import SegmentName
from vaultfs.mesh import message_stream
from vaultfs.mesh.grants import Grant
from vaultfs.mesh.identity import format_peer_id, short_peer_id
from vaultfs.mesh.message_codec import encode
from vaultfs.mesh.places import book_path, vault_state_path
from vaultfs.mesh.standing import StandingFile
from vaultfs.sync.remote_layout import parse_segment, segment_key

from .conftest import Run, Said
from .served_peers import ServedPeer, ServedPeers


@pytest.fixture
def peers(held_by_peers: Path, tmp_path: Path, own_config: Path) -> Iterator[ServedPeers]:
    shutil.copytree(held_by_peers, tmp_path, dirs_exist_ok=True)
    served = ServedPeers.of(tmp_path)
    yield served
    served.close()


@pytest.fixture
def held(peers: ServedPeers, tmp_path: Path) -> Path:
    """The vault."""
    return tmp_path / "vault"


@pytest.fixture
def audit(run: Run) -> Audit:
    return Audit(run)


class Audit:
    def __init__(self, run: Run) -> None:
        self._run = run

    def __call__(self, *words: str | Path) -> Said:
        return self._run("mesh", "audit", *words, bare=True)

    def json(self, *words: str | Path, code: int = 0) -> dict[str, Any]:
        said = self(*words, "--json")
        assert said.code == code, said.err
        found: dict[str, Any] = json.loads(said.out)
        return found

    def verdicts(self, peers: ServedPeers, *words: str | Path, code: int = 0) -> list[str | None]:
        found = {each["id"]: each["verdict"] for each in self.json(*words, code=code)["peers"]}
        return [found.get(format_peer_id(peer.identity.peer_id)) for peer in peers.peers]


def some_segment(peer: ServedPeer, peers: ServedPeers) -> SegmentName:
    name = parse_segment(min(peer.keys(peers.vault_id, "segments/")))
    assert name is not None
    return name


def test_honest_peers(held: Path, peers: ServedPeers, audit: Audit) -> None:
    said = audit(held)
    assert (said.code, said.err) == (0, "")
    text = said.out.decode()
    for peer in peers.peers:
        (row,) = (line for line in text.splitlines() if line.startswith(short_peer_id(peer.identity.peer_id)))
        assert row.split()[-2:] == ["200", "proven"]
        assert str(peer.address) in row
    assert "would have been found for certain" in text
    found = audit.json(held, "--samples", "5")
    segments = len(peers.keys("segments/")[0])
    assert segments > 5
    assert [each["claimed_segments"] for each in found["peers"]] == [segments] * 2
    assert [each["proven"] for each in found["peers"]] == [5, 5]
    assert found["peers"][0]["chance_of_finding_1_percent"] == pytest.approx(1 - 0.99**5)
    assert found["fetched_bytes"] == 0


def test_the_probability_is_told(held: Path, audit: Audit) -> None:
    assert "with a probability of 5 %" in audit(held, "--samples", "5").out.decode()


def test_all(held: Path, peers: ServedPeers, audit: Audit) -> None:
    found = audit.json(held, "--all")
    assert [each["proven"] for each in found["peers"]] == [len(peers.keys("segments/")[0])] * 2
    assert [each["chance_of_finding_1_percent"] for each in found["peers"]] == [1.0, 1.0]


def test_one_peer(held: Path, peers: ServedPeers, audit: Audit) -> None:
    chosen = format_peer_id(peers.peers[1].identity.peer_id)
    assert audit.verdicts(peers, held, "--peer", chosen[:8]) == [None, "proven"]


def test_a_vault_that_is_not_here(peers: ServedPeers, audit: Audit) -> None:
    """Then peers are compared with each other."""
    assert audit.verdicts(peers, peers.vault_id.hex()) == ["proven", "proven"]


def test_damage_is_found_and_remembered_until_it_is_mended(held: Path, peers: ServedPeers, audit: Audit) -> None:
    bad = peers.peers[1]
    key = segment_key(some_segment(bad, peers))
    (path,) = bad.root.rglob(key)
    good = path.read_bytes()
    bad.change(key, bytes(len(good)))
    said = audit(held)
    assert said.code == ExitCode.INTEGRITY
    assert f"segment {some_segment(bad, peers)[:16]}: it has other bytes" in said.out.decode()
    assert "vaultfs mesh repair" in said.error_line
    file = StandingFile(vault_state_path(peers.vault_id))
    assert [bool(file.load().of(peer.identity.peer_id).failed_audit_ns) for peer in peers.peers] == [False, True]
    bad.change(key, good)
    assert audit.verdicts(peers, held, "--samples", "30") == ["proven", "proven"]
    assert file.load().of(bad.identity.peer_id).failed_audit_ns
    assert audit.verdicts(peers, held) == ["proven", "proven"]
    assert not file.load().of(bad.identity.peer_id).failed_audit_ns


def test_damage_is_found_without_the_vault(peers: ServedPeers, audit: Audit) -> None:
    bad = peers.peers[0]
    key = segment_key(some_segment(bad, peers))
    (path,) = bad.root.rglob(key)
    size = path.stat().st_size
    bad.change(key, bytes(size))
    found = audit.json(peers.vault_id.hex(), code=ExitCode.INTEGRITY)
    assert audit.verdicts(peers, peers.vault_id.hex(), code=ExitCode.INTEGRITY) == ["failed", "proven"]
    assert 0 < found["fetched_bytes"] <= 2 * size


@pytest.mark.parametrize("proof", [bytes, lambda size: b"\x5a" * size], ids=["zeros", "noise"])
def test_a_peer_that_proves_nothing(held: Path, peers: ServedPeers, audit: Audit, proof: Any) -> None:
    peers.peers[0].store.proves = lambda honest: proof(len(honest))
    assert audit.verdicts(peers, held, code=ExitCode.INTEGRITY) == ["failed", "proven"]
    # the other one's answers can be compared with nothing then
    assert audit.verdicts(peers, peers.vault_id.hex(), code=ExitCode.INTEGRITY) == ["failed", "unproven"]


def test_a_peer_that_says_in_have_that_it_has_all(held: Path, peers: ServedPeers, audit: Audit) -> None:
    liar = peers.peers[0]
    keys = liar.keys(peers.vault_id, "segments/")
    liar.store.invents = {}
    for key in keys:
        name = parse_segment(key)
        (path,) = liar.root.rglob(key)
        assert name is not None
        liar.store.invents[name] = path.stat().st_size
        path.unlink()
    found = audit.json(held, code=ExitCode.INTEGRITY)
    assert [each["verdict"] for each in found["peers"]] == ["failed", "proven"]
    assert 0 < found["peers"][0]["claimed_segments"] <= len(keys)
    assert found["peers"][0]["proven"] == 0


def test_a_peer_that_is_away(held: Path, peers: ServedPeers, audit: Audit) -> None:
    peers.peers[0].stop()
    assert audit.verdicts(peers, held, code=ExitCode.PARTIAL) == ["unanswered", "proven"]
    said = audit(held)
    assert said.code == ExitCode.PARTIAL
    assert "cannot be reached" in said.error_line
    peers.peers[1].stop()
    said = audit(held)
    assert said.code == ExitCode.REMOTE_UNREACHABLE
    assert "cannot be reached" in said.error_line


def test_a_peer_that_refuses(held: Path, peers: ServedPeers, audit: Audit) -> None:
    peers.peers[0].grants.remove(peers.caller, every=True)
    peers.peers[0].grants.add(Grant(peers.caller, bytes(16), "write", None, "", 0))  # type: ignore[arg-type]
    assert audit.verdicts(peers, held, code=ExitCode.PARTIAL) == ["unanswered", "proven"]


def test_alone_and_without_the_vault_nothing_is_proved(peers: ServedPeers, audit: Audit) -> None:
    peers.peers[1].stop()
    chosen = format_peer_id(peers.peers[0].identity.peer_id)
    said = audit(peers.vault_id.hex(), "--peer", chosen)
    assert said.code == ExitCode.PARTIAL
    assert "200 answers could be compared with nothing" in said.error_line


def test_what_goes_over_the_network_is_bounded(
    held: Path, peers: ServedPeers, audit: Audit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted where bytes go in and out, TLS and greetings not included; both ends are in this process."""
    counted = {"sent": 0}
    real = message_stream.MessageStream.send

    async def send(self: message_stream.MessageStream, message: Any) -> None:
        counted["sent"] += len(message) if isinstance(message, bytes) else len(encode(message))
        await real(self, message)

    monkeypatch.setattr(message_stream.MessageStream, "send", send)
    told = audit.json(held, "--samples", "200")["proof_bytes"]
    segments = len(peers.keys("segments/")[0])
    assert told <= 2 * 200 * 81 + 1000
    assert told < counted["sent"] <= told + 2 * (100 * segments + 1000)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--samples", "0"], "--samples: 0 is not from 1"),
        (["--samples", "100001"], "--samples: 100001 is not from 1"),
        (["--peer", "aaaaaaaa"], "there is no peer"),
        (["--all", "--samples", "200"], "exclude each other"),
    ],
)
def test_what_makes_no_sense(held: Path, audit: Audit, words: list[str], text: str) -> None:
    said = audit(held, *words)
    assert said.code == ExitCode.USAGE
    assert text in said.error_line


def test_a_vault_without_peers(held: Path, audit: Audit) -> None:
    book_path().unlink()
    said = audit(held)
    assert said.code == ExitCode.USAGE
    assert "vaultfs peer add" in said.error_line
