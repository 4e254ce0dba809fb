"""A ``vault.json`` that somebody with a stolen identity puts on peers keeps no restore from the right one."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import blake3
import pytest

import vaultfs
from vaultfs.cli.offered_headers import open_newest
from vaultfs.crypto.header import VaultHeader
from vaultfs.errors import ExitCode, WrongPasswordError
from vaultfs.ids import PeerId
from vaultfs.mesh.headers import FoundHeader, OfferedHeader, offers_of
from vaultfs.sync.remote_layout import HEADER_KEY

from .conftest import PASSWORD, Run, read_file
from .served_peers import ServedPeer, ServedPeers

HUGE = (1 << 32) - 1
PEER = PeerId(b"p" * 32)


@pytest.fixture(autouse=True)
def quick_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vaultfs.KdfParameters, "calibrate", lambda *_: vaultfs.KdfParameters.weakest())


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
def new(tmp_path: Path) -> Path:
    """A file with another password."""
    file = tmp_path / "new"
    file.write_text("quite another password")
    file.chmod(0o600)
    return file


def put(peer: ServedPeer, peers: ServedPeers, data: bytes, revision: int | None = None) -> None:
    """As somebody with the identity of the machine does it, who has not the vault's key."""
    if revision is None:
        revision = peer.store.stat(peers.vault_id, HEADER_KEY)[1] + 1
    digest = blake3.blake3(data).digest()
    upload = peer.store.begin_put(
        peers.caller,
        peers.vault_id,
        HEADER_KEY,
        len(data),
        digest,
        if_absent=False,
        revision=revision,
        quota_bytes=None,
    )
    if upload is not None:
        upload.write(data)
        upload.finish()


def changed(data: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    fields = json.loads(data)
    change(fields)
    return json.dumps(fields).encode()


def with_huge_epoch(data: bytes) -> bytes:
    """The slots open as before, and the seal over all is wrong."""
    return changed(data, partial(dict.update, epoch=HUGE))


def that_nothing_opens(data: bytes, epoch: int = HUGE) -> bytes:
    def change(fields: dict[str, Any]) -> None:
        fields["epoch"] = epoch
        for slot in fields["slots"]:
            slot["mac"] = "00" * 32

    return changed(data, change)


def that_costs_too_much(data: bytes) -> bytes:
    def change(fields: dict[str, Any]) -> None:
        fields["epoch"] = HUGE
        for slot in fields["slots"]:
            slot["argon2id"] = [4 << 20, 64, 1]

    return changed(data, change)


HOSTILE = {
    "a huge epoch": with_huge_epoch,
    "one that nothing opens": that_nothing_opens,
    "one of the same epoch": lambda data: that_nothing_opens(data, 1),
    "one that costs too much": that_costs_too_much,
}


@pytest.mark.parametrize(
    ("verb", "count", "name"),
    [("restore", 1, "a huge epoch"), ("clone", 2, "a huge epoch"), *(("restore", 2, name) for name in HOSTILE)],
)
def test_the_right_one_is_found(
    held: Path, peers: ServedPeers, tmp_path: Path, run: Run, verb: str, count: int, name: str
) -> None:
    genuine, contents = (held / "vault.json").read_bytes(), read_file(held, "/file")
    for peer in peers.peers[:count]:
        put(peer, peers, HOSTILE[name](genuine))
    fill = ["--fill"] if verb == "clone" else []
    said = run(verb, peers.url, tmp_path / "back", "--quiet", *fill)
    assert said.code == 0, said.err
    (line,) = [line for line in said.err.splitlines() if "the vault.json of epoch" in line]
    assert f"at {peers.peers[0].address}" in line or f"at {peers.peers[-1].address}" in line
    assert ("and 1 other peer" in line) == (count == 2)
    assert line.endswith("it is ignored") or "it is ignored." in line
    assert "restore the file" not in line
    assert (tmp_path / "back" / "vault.json").read_bytes() == genuine
    assert read_file(tmp_path / "back", "/file") == contents


def test_files_too(held: Path, peers: ServedPeers, tmp_path: Path, run: Run) -> None:
    contents = read_file(held, "/file")
    for peer in peers.peers:
        put(peer, peers, with_huge_epoch((held / "vault.json").read_bytes()))
    said = run("restore", peers.url, tmp_path / "back", "file", "--quiet")
    assert said.code == 0, said.err
    assert (tmp_path / "back" / "file").read_bytes() == contents


def test_many_hostile_ones(held: Path, peers: ServedPeers, tmp_path: Path, run: Run) -> None:
    genuine = (held / "vault.json").read_bytes()
    for peer in peers.peers:
        for number in range(40):
            put(peer, peers, changed(that_nothing_opens(genuine), partial(dict.update, mac=f"{number:064x}")))
    said = run("restore", peers.url, tmp_path / "back", "--quiet")
    assert said.code == 0, said.err
    assert (tmp_path / "back" / "vault.json").read_bytes() == genuine


@pytest.mark.parametrize("name", ["a huge epoch", "one that costs too much"])
def test_a_wrong_password_is_one(
    held: Path, peers: ServedPeers, tmp_path: Path, run: Run, new: Path, name: str
) -> None:
    for peer in peers.peers:
        put(peer, peers, HOSTILE[name]((held / "vault.json").read_bytes()))
    said = run("restore", peers.url, tmp_path / "back", "--quiet", "--passfile", new, bare=True)
    assert said.code == ExitCode.WRONG_PASSWORD
    assert "wrong password" in said.err.splitlines()[-1]
    assert not (tmp_path / "back").exists()


def test_a_single_one_that_is_wrong_is_told_as_before(held: Path, peers: ServedPeers, tmp_path: Path, run: Run) -> None:
    for peer in peers.peers:
        peer.change(HEADER_KEY, with_huge_epoch((held / "vault.json").read_bytes()))
    said = run("restore", peers.url, tmp_path / "back", "--quiet")
    assert said.code == ExitCode.INTEGRITY
    assert "ignored" not in said.err


# --- passwords that were changed


def change_password(run: Run, held: Path, new: Path) -> None:
    assert run("passwd", held, "--new-passfile", new).code == 0
    assert run("sync", held, "--quiet").code == 0


def test_the_newer_password_wins(held: Path, peers: ServedPeers, tmp_path: Path, run: Run, new: Path) -> None:
    old = (held / "vault.json").read_bytes()
    change_password(run, held, new)
    for peer in peers.peers:
        assert len(peer.keys(peers.vault_id, "headers/")) == 1
    said = run("restore", peers.url, tmp_path / "old", "--quiet")
    assert said.code == ExitCode.WRONG_PASSWORD
    assert "it was replaced or removed" in said.err.splitlines()[-1]
    said = run("restore", peers.url, tmp_path / "back", "--quiet", "--passfile", new, bare=True)
    assert (said.code, said.err.count("\n")) == (0, 1)  # that this machine knows the vault
    assert (tmp_path / "back" / "vault.json").read_bytes() == (held / "vault.json").read_bytes() != old


def test_a_peer_that_was_away_does_not_bring_the_old_password_back(
    held: Path, peers: ServedPeers, tmp_path: Path, run: Run, new: Path
) -> None:
    peers.peers[0].stop()
    assert run("passwd", held, "--new-passfile", new).code == 0
    run("sync", held, "--quiet")
    peers.peers[0].start()
    assert run("restore", peers.url, tmp_path / "old", "--quiet").code == ExitCode.WRONG_PASSWORD
    assert run("restore", peers.url, tmp_path / "back", "--quiet", "--passfile", new, bare=True).code == 0


def test_the_older_one_put_back(
    held: Path, peers: ServedPeers, tmp_path: Path, run: Run, new: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = (held / "vault.json").read_bytes()
    later_s = time.time() + 1000
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: later_s)  # slots are dated in seconds
        change_password(run, held, new)
    for peer in peers.peers:
        put(peer, peers, old)
    said = run("restore", peers.url, tmp_path / "back", "--quiet", "--passfile", new, bare=True)
    assert said.code == 0, said.err
    assert "an older one that was put back there" in said.err
    said = run("restore", peers.url, tmp_path / "old", "--quiet")
    assert said.code == 0
    assert "somebody has put the older vault.json back" in said.err


def test_one_slot_less_needs_no_date(held: Path, peers: ServedPeers, tmp_path: Path, run: Run, new: Path) -> None:
    password = ["--passfile", tmp_path / "password"]
    added = run("key", "add", held, "--label", "second", "--new-passfile", new, *password, bare=True)
    assert added.code == 0, added.err
    assert run("sync", held, "--quiet").code == 0
    assert run("key", "remove", held, "second", *password, bare=True).code == 0
    assert run("sync", held, "--quiet").code == 0
    said = run("restore", peers.url, tmp_path / "back", "--quiet", "--passfile", new, bare=True)
    assert said.code == ExitCode.WRONG_PASSWORD


def test_after_a_rotation_without_this_password(
    held: Path, peers: ServedPeers, tmp_path: Path, run: Run, new: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but a newer key could prove the newer header, so what the old one gives is taken, and a line says so."""
    assert run("key", "rotate", held, "--passfile", tmp_path / "password", bare=True).code == 0
    assert run("passwd", held, "--new-passfile", new).code == 0
    run("sync", held, "--quiet")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another machine"))
    said = run("restore", peers.url, tmp_path / "back", "--quiet")
    assert said.code == 0, said.err
    assert "the vault.json of epoch 2 on" in said.err
    assert "take the password from after that" in said.err
    said = run("restore", peers.url, tmp_path / "new back", "--quiet", "--passfile", new, bare=True)
    assert (tmp_path / "new back" / "vault.json").read_bytes() == (held / "vault.json").read_bytes()


# --- the machine with the vault


def test_taken_away_at_the_peer_the_right_one_comes_back(held: Path, peers: ServedPeers, run: Run) -> None:
    """What docs/mesh.md says to do: remove the file at the peer, and sync."""
    genuine = (held / "vault.json").read_bytes()
    put(peers.peers[0], peers, with_huge_epoch(genuine), revision=(1 << 63) - 1)
    said = run("sync", held, "--quiet")
    assert said.code != 0
    assert "somebody has put a false one on a peer" in said.err
    (path,) = peers.peers[0].root.glob("*/vault.json")
    path.unlink()
    assert run("mesh", "repair", held, "--quiet", bare=True).code == 0
    assert path.read_bytes() == genuine
    assert run("sync", held, "--quiet").code == 0


def test_a_prune_by_url_takes_the_right_one(held: Path, peers: ServedPeers, run: Run) -> None:
    for peer in peers.peers:
        put(peer, peers, with_huge_epoch((held / "vault.json").read_bytes()))
    said = run("prune", peers.url, "--keep-last", "1", "--grace", "0s", "--quiet")
    assert said.code == 0, said.err
    assert "it is ignored" in said.err


# --- what peers offer together


def test_of_one_revision_nobody_knows_which_came_later(capsys: pytest.CaptureFixture[str]) -> None:
    old, other = vaultfs.Secret.password(PASSWORD), vaultfs.Secret.password("another one, and long enough")
    kdf = vaultfs.KdfParameters.weakest()
    first, keyring = VaultHeader.create(old, label="password", kdf=kdf)
    second = first.replace_secret(keyring, old, other, kdf)

    def opened(revision: int) -> bytes:
        offers = [OfferedHeader(1, revision, second.encode(), (PEER,)), OfferedHeader(1, 5, first.encode(), (PEER,))]
        return open_newest(offers, old, lambda _: "a peer").data

    assert opened(5) == first.encode()
    assert "an older one that was put back there" in capsys.readouterr().err
    with pytest.raises(WrongPasswordError, match=r"by the newer vault\.json that is on a peer"):
        opened(6)


def test_offers_are_put_together() -> None:
    one, other = PeerId(b"a" * 32), PeerId(b"b" * 32)
    found = {
        one: [FoundHeader(1, 3, b"x"), FoundHeader(1, 2, b"y")],
        other: [FoundHeader(1, 4, b"y"), FoundHeader(2, 0, b"z")],
    }
    assert offers_of(found) == [
        OfferedHeader(2, 0, b"z", (other,)),
        OfferedHeader(1, 4, b"y", (one, other)),
        OfferedHeader(1, 3, b"x", (one,)),
    ]
