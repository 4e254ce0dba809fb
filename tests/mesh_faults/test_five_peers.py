"""Five peers, two copies: any two machines burn one after the other, the laptop too, and every file comes back.

All of it by commands, as the quickstart has it, in processes of their own; what is compared are names, modes, times,
links and bytes.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

import vaultfs

from .conftest import MakeHousehold
from .household import Household
from .machines import Forker, Machine, PeerMachine

PEERS = 5
SOURCES = Path(vaultfs.__file__).parent
MIB = 1 << 20


class Town:
    """A laptop with a vault, and five peers, made by commands alone."""

    def __init__(self, where: Path, forker: Forker, vault: Path) -> None:
        self.laptop = Machine(where / "laptop", forker)
        self.peers = [PeerMachine(where / f"peer{number}", forker, settings={}) for number in range(PEERS)]
        self.vault = where / "vault"
        self.source = where / "source"
        shutil.copytree(vault, self.vault)
        _make_files(self.source)

    def begin(self) -> None:
        """Everybody knows everybody, and the files are in the vault."""
        ask = self.laptop.run("peer", "init", "--json").require(0).json["id"]
        for peer in self.peers:
            peer.run("peer", "init").require(0)
            peer.run("peer", "accept", ask).require(0)
            peer.serve()
            at = f"{peer.run('peer', 'id').require(0).out.strip()}@{peer.listens_at}"
            self.laptop.run("peer", "add", self.vault, at).require(0)
        self.laptop.run("put", self.vault, self.source, "/").require(0)
        self.laptop.run("mesh", "replicate", self.vault, "--replicas", "2", "--snapshot", "--quiet").require(0)

    def burn(self, peer: PeerMachine) -> None:
        """A machine is gone with all it has."""
        peer.kill()
        shutil.rmtree(peer.store)

    def close(self) -> None:
        for peer in self.peers:
            if peer.process is not None:
                peer.process.kill()


def _make_files(top: Path) -> None:
    """Files of programs, large ones, and what else there is in a directory."""
    shutil.copytree(SOURCES / "mesh", top / "mesh", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(SOURCES / "storage", top / "storage", ignore=shutil.ignore_patterns("__pycache__"))
    (top / "photo.jpg").write_bytes(os.urandom(10 * MIB))
    (top / "empty").touch()
    (top / "nothing here").mkdir()
    (top / "nothing here").chmod(0o700)
    (top / "Grüße, 𝄞\n").write_text("a name with everything in it")
    (top / "link").symlink_to("mesh/pool.py")
    (top / "gone").symlink_to("where/nothing/is")
    with (top / "sparse").open("wb") as file:
        file.truncate(3 * MIB)
        file.seek(MIB)
        file.write(b"in the middle")
    for number, path in enumerate(sorted(top.rglob("*"))):
        if not path.is_symlink():
            os.utime(path, ns=(10**18 + number, 10**18 + number))


def described(top: Path) -> dict[str, tuple[object, ...]]:
    """What can be compared of everything below a directory."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(top.rglob("*")):
        status = path.lstat()
        kind = stat.S_IFMT(status.st_mode)
        mode = stat.S_IMODE(status.st_mode)
        if stat.S_ISLNK(kind):
            what: object = path.readlink()
        elif stat.S_ISREG(kind):
            what = path.read_bytes()
        else:
            what = None
        is_timed = stat.S_ISREG(kind)
        found[str(path.relative_to(top))] = (kind, mode, status.st_mtime_ns if is_timed else None, what)
    return found


def require_files(town: Town, machine: Machine, where: Path, url: str, *, has_fuse: bool) -> None:
    """A clone of the peers has every file as it was: read through a mount, where that is possible."""
    wanted = described(town.source)
    assert len(wanted) > 80
    back = where / "back"
    if has_fuse:
        machine.run("clone", url, where / "clone", "--quiet").require(0)
        back.mkdir()
        machine.run("mount", where / "clone", back).require(0)
        try:
            found = described(back / town.source.name)
        finally:
            machine.run("umount", back).require(0)
    else:
        back.mkdir()
        machine.run("restore", url, back, f"/{town.source.name}", "--quiet").require(0)
        found = described(back / town.source.name)
    different = {name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)}
    assert not different


@pytest.fixture
def town(scratch: Path, forker: Forker, small: Path) -> Iterator[Town]:
    made = Town(scratch / "town", forker, small)
    try:
        made.begin()
        yield made
    finally:
        made.close()


def test_two_of_five_burn_in_turn_and_the_laptop_too(town: Town, scratch: Path, has_fuse: bool) -> None:
    laptop = town.laptop
    for burning in town.peers[:2]:
        town.burn(burning)
        repaired = laptop.run("mesh", "repair", town.vault, "--quiet", "--json").require(0).json
        assert repaired["is_safe"]
        assert repaired["segments_by_copies"][2] == repaired["needed_segments"] > 2
    url = laptop.run("status", town.vault, "--json").require(0).json["backup"]["remotes"][0]["url"]
    shutil.rmtree(town.vault)
    shutil.rmtree(laptop.root)
    new = Machine(scratch / "new", laptop.forker)
    own_id = new.run("peer", "init", "--json").require(0).json["id"]
    for peer in town.peers[2:]:
        peer.run("peer", "accept", own_id, "--read").require(0)
        at = f"{peer.printed_id}@{peer.listens_at}"
        new.run("peer", "add", url.removeprefix("mesh://"), at).require(0)
    require_files(town, new, scratch, url, has_fuse=has_fuse)


def test_without_the_laptop_the_peers_alone_mend_each_other(make_household: MakeHousehold) -> None:
    """The harsher reading: the vault is gone before the second peer is, so a repair has the peers' copies only."""
    home = make_household(PEERS)
    home.sync().require(0)
    home.peers[0].kill()
    home.repair().require(0)
    shutil.rmtree(home.vault)
    for number in range(1, 4):
        _require_mended_by_peers(home, number)
    home.require_right_bytes()
    home.require_restorable()
    home.require_no_connections()


def _require_mended_by_peers(home: Household, number: int) -> None:
    home.peers[number].kill()
    left = [peer for peer in home.peers if peer.is_running]
    said = home.laptop.run("mesh", "repair", home.vault_id.hex(), "--quiet", "--json")
    if len(left) >= 2:
        assert said.require(0).json["segments_by_copies"][2] == len(home.segments)
        home.require_copies()
    else:
        said.require(3)
        home.require_copies(1)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("is_burnt", [False, True], ids=["killed", "burnt"])
@pytest.mark.parametrize("number", range(PEERS))
def test_every_two_of_five_in_either_order(make_household: MakeHousehold, number: int, is_burnt: bool) -> None:
    home = make_household(PEERS, is_large=True)
    home.sync().require(0)
    first = home.peers[number]
    for second in home.peers:
        if second is first:
            continue
        for peer in (first, second):
            peer.kill()
            if is_burnt:
                shutil.rmtree(peer.store)
            home.repair().require(0)
            home.require_copies()
        home.require_restorable()
        for peer in (first, second):
            peer.serve()
        home.require_sound()
