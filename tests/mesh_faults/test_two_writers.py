"""Two machines that have the same vault and send it, or what they have each made of it, to the same peers at once."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from vaultfs.errors import ExitCode

from .conftest import MakeHousehold
from .household import Household, require_contents
from .machines import Machine


@pytest.fixture
def home(make_household: MakeHousehold) -> Household:
    """Three peers, and a vault with a segment of 8 MiB."""
    return make_household(3, is_large=True)


def second_machine(home: Household) -> tuple[Machine, Path]:
    """A machine that has a copy of the vault, and is known to the peers."""
    machine = home.machine("desktop", Machine)
    vault = machine.root / "vault"
    shutil.copytree(home.vault, vault)
    for peer in home.peers:
        peer.accept(machine.id)
        home.know(peer.id, peer.listens_at, machine)
    return machine, vault


def test_the_same_from_two_machines_at_once(home: Household) -> None:
    """Each object is stored once, whoever was faster."""
    machine, vault = second_machine(home)
    running = [
        home.laptop.start("sync", home.vault, "--quiet"),
        machine.start("sync", vault, "--quiet"),
    ]
    codes = {each.wait().code for each in running}
    assert codes <= {0, ExitCode.PARTIAL}
    home.require_right_bytes()
    home.sync().require(0)
    machine.run("sync", vault, "--quiet").require(0)
    home.require_sound()


def test_two_histories_from_two_machines_at_once(home: Household) -> None:
    """One goes on, the other is told of it and sends its own beside; no byte of either is lost."""
    home.sync().require(0)
    machine, vault = second_machine(home)
    machine.run("sync", vault, "--quiet").require(0)
    mine, other = os.urandom(300_000), os.urandom(300_000)
    before = home.contents
    home.write("/mine", mine)
    home.write("/other", other, machine, vault)
    running = [
        home.laptop.start("sync", home.vault, "--quiet"),
        machine.start("sync", vault, "--quiet"),
    ]
    ended = [each.wait() for each in running]
    assert {each.code for each in ended} <= {0, ExitCode.ERROR, ExitCode.PARTIAL, ExitCode.INTEGRITY}
    home.require_right_bytes()
    home.laptop.run("sync", home.vault, "--quiet", "--fork").require(0)
    machine.run("sync", vault, "--quiet", "--fork").require(0)
    assert home.repair().require(0).json["is_safe"]
    home.require_copies()
    home.require_right_bytes()
    home.require_no_connections()
    expected = [
        (home.laptop, home.vault, {**before, "/mine": mine}),
        (machine, vault, {**before, "/other": other}),
    ]
    for owner, place, contents in expected:
        newest = max((place / "heads").glob("*.manifest")).name.removesuffix(".manifest").partition("-")[2]
        back = owner.root / "back"
        owner.run("restore", home.url, back, "--quiet", "--snapshot", newest[:12]).require(0)
        require_contents(back, contents)
