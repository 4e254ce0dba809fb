"""Peers that answer, in order and in time, and lie: what they say they have, what they send, what they have stored.

In each case two honest peers are there besides.  A liar is not believed once an audit, or a byte, has shown what it is,
and then its share lies elsewhere.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from vaultfs.errors import ExitCode
from vaultfs.mesh.identity import format_peer_id

from .conftest import MakeHousehold
from .hostile import LyingPeer
from .household import Household


@pytest.fixture
def home(make_household: MakeHousehold) -> Household:
    """Two honest peers."""
    return make_household(2)


@pytest.fixture
def liar(home: Household, scratch: Path) -> Iterator[LyingPeer]:
    """And one that may be told to lie."""
    with ExitStack() as stack:
        peer = LyingPeer(scratch / "liar", home.laptop.id)
        stack.callback(peer.close)
        home.know(peer.id, peer.address)
        yield peer


def verdict(home: Household, peer: LyingPeer, *codes: int) -> str:
    """What an audit of every segment says of it."""
    said = home.audit("--all").require(*codes).json
    return str(next(each["verdict"] for each in said["peers"] if each["id"] == format_peer_id(peer.id)))


def require_found_out(home: Household, liar: LyingPeer) -> None:
    """It fails the audit, and a repair stores its share with the honest ones."""
    assert verdict(home, liar, ExitCode.INTEGRITY) == "failed"
    home.require_sound()


def test_one_that_says_it_has_all(home: Household, liar: LyingPeer) -> None:
    """A sync believes it, and an audit does not."""
    liar.lies.claims = home.segments
    home.sync().require(0)
    home.require_right_bytes()
    require_found_out(home, liar)


def test_one_that_acknowledges_and_stores_nothing(home: Household, liar: LyingPeer) -> None:
    liar.lies.drops = True
    home.sync().require(0)
    assert liar.lies.claims, "it was given nothing"
    require_found_out(home, liar)


@pytest.mark.parametrize(
    "lie",
    [
        lambda honest: os.urandom(len(honest)),
        lambda honest: honest[32:] + honest[:32],
        lambda honest: bytes(len(honest)),
    ],
    ids=["random", "of others", "zeros"],
)
def test_one_that_lies_in_audits(home: Household, liar: LyingPeer, lie: Callable[[bytes], bytes]) -> None:
    home.sync().require(0)
    liar.lies.claims = home.segments
    liar.lies.proves = lie
    require_found_out(home, liar)


def test_one_that_sends_wrong_bytes_is_asked_in_vain(home: Household, liar: LyingPeer) -> None:
    """Whole segments: a repair takes them from others; and restoring needs no audit."""
    home.set_replicas(3)
    home.sync().require(0)
    liar.lies.spoils = True
    back = home.laptop.root / "back"
    home.laptop.run("restore", home.url, back, "--quiet").require(0)
    home.peers[0].stop()
    shutil.rmtree(home.stored(home.peers[0]) / "segments")
    home.peers[0].serve()
    shutil.rmtree(home.vault / "segments")  # so what a repair copies has to come from peers
    repaired = home.laptop.run("mesh", "repair", home.vault_id.hex(), "--quiet", "--json").require(0, ExitCode.PARTIAL)
    assert repaired.json["copied_segments"] > 0
    home.require_copies()
    home.require_right_bytes()


def test_one_that_sends_wrong_bytes_to_a_clone(home: Household, liar: LyingPeer, has_fuse: bool, scratch: Path) -> None:
    """Parts of segments have to open with the key; what does not is asked of the next peer."""
    if not has_fuse:
        pytest.skip("a clone that fetches what is read needs /dev/fuse")
    home.set_replicas(3)
    home.sync().require(0)
    liar.lies.spoils = True
    clone, folder = scratch / "clone", scratch / "folder"
    home.laptop.run("clone", home.url, clone, "--quiet").require(0)
    folder.mkdir()
    home.laptop.run("mount", clone, folder).require(0)
    try:
        assert {f"/{path.name}": path.read_bytes() for path in folder.iterdir()} == home.contents
    finally:
        home.laptop.run("umount", folder).require(0)
    home.require_no_connections()


def test_one_that_was_set_back_to_an_old_backup(home: Household, scratch: Path) -> None:
    """It does not know of what it has acknowledged since; who asks finds out, and gives it everything again."""
    home.sync().require(0)
    peer = home.peers[0]
    peer.stop()
    shutil.copytree(peer.store, scratch / "backup")
    peer.serve()
    home.write("/new", os.urandom(100_000))
    home.sync().require(0)
    home.require_copies()
    peer.stop()
    shutil.rmtree(peer.store)
    shutil.copytree(scratch / "backup", peer.store)
    peer.serve()
    home.require_short()
    assert verdict_of_honest(home) == {"proven"}
    home.require_sound()


def verdict_of_honest(home: Household) -> set[str]:
    return {each["verdict"] for each in home.audit().require(0).json["peers"]}


def test_one_that_was_set_back_shows_no_restore_an_old_state(home: Household, scratch: Path) -> None:
    """One honest witness is enough to know better."""
    home.sync().require(0)
    for peer in home.peers:
        peer.stop()
        shutil.copytree(peer.store, scratch / f"backup-{peer.port}")
        peer.serve()
    home.write("/new", os.urandom(100_000))
    home.sync().require(0)
    peer = home.peers[0]
    peer.stop()
    shutil.rmtree(peer.store)
    shutil.copytree(scratch / f"backup-{peer.port}", peer.store)
    peer.serve()
    home.require_restorable()
    home.require_sound()
