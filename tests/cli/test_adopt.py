"""``vaultfs sync --adopt``: two devices with copies of one vault, taking turns and getting apart."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import vaultfs
from vaultfs.cli.spare_segments import spare_segments
from vaultfs.crypto.device import DeviceKey
from vaultfs.errors import ExitCode, RemoteUnreachableError
from vaultfs.ids import SnapshotSeq
from vaultfs.storage.manifest_format import Manifest, manifest_hash
from vaultfs.sync import fetched_file

from .conftest import PASSWORD, Run, Said, command, digest, objects, process, write_file

KEY = vaultfs.Secret.password(PASSWORD)
PATIENCE_S = 60


class Device:
    """A copy of the vault on a machine of its own: with its own state directory.

    Args:
        vault: the copy.
        state: the directory.
        passfile: the password.
        run: calls ``main`` in this process.
        monkeypatch: sets the environment.
    """

    def __init__(self, vault: Path, state: Path, passfile: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        self.vault = vault
        self._passfile = passfile
        self._state = state
        self._run = run
        self._monkeypatch = monkeypatch

    def here(self) -> None:
        """From now on this is the machine where everything happens."""
        self._monkeypatch.setenv("XDG_STATE_HOME", str(self._state))

    def run(self, verb: str, *words: str | Path, bare: bool = False) -> Said:
        """A command on this machine, after the vault."""
        self.here()
        return self._run(verb, self.vault, *words, bare=bare)

    def write(self, name: str, data: bytes) -> None:
        self.here()
        write_file(self.vault, f"/{name}", data)

    def snapshot(self, label: str = "") -> str:
        self.here()
        with vaultfs.open_vault(self.vault, KEY) as opened:
            return opened.create_snapshot(label).id

    def contents(self, snapshot: str | None = None) -> dict[str, bytes]:
        """Every file of the present, or of a snapshot."""
        self.here()
        with vaultfs.open_vault(
            self.vault, KEY, read_only=True, snapshot=snapshot, source=spare_segments(self.vault)
        ) as opened:
            found = {}
            for name in opened.listdir("/"):
                with opened.open(b"/" + name) as file:
                    found[name.decode()] = file.read()
            return found

    def sync(self) -> None:
        said = self.run("sync", "--snapshot", "--quiet")
        assert said.code == 0, said.err

    def adopt(self, *words: str) -> dict[str, Any]:
        said = self.run("sync", "--adopt", "--quiet", "--json", *words)
        assert said.code == 0, said.err
        document: dict[str, Any] = json.loads(said.out)
        return document

    def snapshots(self) -> dict[str, dict[str, Any]]:
        """By their ids, oldest first."""
        self.here()
        said = self._run("snapshot", "list", self.vault, "--json", "--passfile", self._passfile, bare=True)
        assert said.code == 0, said.err
        return {each["id"]: each for each in json.loads(said.out)["snapshots"]}

    def require_sound(self) -> None:
        said = self.run("fsck", "--quiet", "--json")
        assert said.code == 0, (said.out, said.err)


Devices = tuple[Device, Device]


@pytest.fixture
def devices(
    vault: Path, disk: Path, tmp_path: Path, passfile: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> Devices:
    """A vault with a synced past, and a copy of it on another machine."""
    first = Device(vault, tmp_path / "state-1", passfile, run, monkeypatch)
    second = Device(tmp_path / "second", tmp_path / "state-2", passfile, run, monkeypatch)
    first.write("common", b"from the time before")
    first.write("large", os.urandom(700_000))
    first.here()
    assert run("remote", "add", vault, "disk", disk.as_uri(), bare=True).code == 0
    first.sync()
    shutil.copytree(vault, second.vault)
    return first, second


@pytest.fixture
def apart(devices: Devices) -> Devices:
    """The first has synced what the second does not come from."""
    for device, text in zip(devices, ("first", "second"), strict=True):
        device.write("text", text.encode())
        device.write(f"only {text}", os.urandom(150_000))
        device.snapshot("by hand")
        device.write("unsaved", text.encode())
    devices[0].sync()
    return devices


def test_taking_turns_and_getting_apart(devices: Devices, disk: Path) -> None:
    """Rounds in which both write and make snapshots of the same numbers; one syncs first, the other adopts."""
    kept: list[dict[str, dict[str, bytes]]] = [{}, {}]
    for number in range(4):
        ahead, behind = devices[number % 2], devices[1 - number % 2]
        for device in devices:
            device.write("turn", os.urandom(20_000))
            device.write(f"file {number}", os.urandom(200_000))
            device.snapshot("by hand")
            device.write("unsaved", os.urandom(100))
        ahead.sync()
        refused = behind.run("sync", bare=True)
        assert (refused.code, "another copy of the vault has moved" in refused.err) == (ExitCode.ERROR, True), refused
        synced = {name.rpartition("-")[2] for name in objects(disk) if name.startswith("heads/")}
        known = behind.snapshots()
        present = behind.contents()
        before = kept[1 - number % 2]
        before |= {snapshot: behind.contents(snapshot) for snapshot in known}
        outcome = behind.adopt()
        assert (outcome["relation"], outcome["made"]["label"]) == ("apart", "before adopt")
        before[outcome["made"]["id"]] = present
        assert behind.contents() == ahead.contents()
        listed = behind.snapshots()
        gone = {snapshot for snapshot in before if snapshot not in listed}
        assert len(gone) <= 2
        for snapshot in gone:
            del before[snapshot]
            assert (known[snapshot]["label"], snapshot in synced) == ("sync", True)
        assert {each for each in listed if listed[each]["is_kept"]} == before.keys()
        for index, device in enumerate(devices):
            device.require_sound()
            for snapshot, contents in kept[index].items():
                assert device.contents(snapshot) == contents
        there = objects(disk)
        said = behind.run("sync", bare=True)
        assert (said.code, said.out) == (0, b"disk: up to date\n"), said.err
        assert objects(disk) == there


def test_by_real_processes(apart: Devices, disk: Path, passfile: Path, tmp_path: Path) -> None:
    _, behind = apart
    behind.here()
    secret = ("--passfile", passfile)
    said = process("sync", behind.vault, "--adopt", *secret)
    assert said.code == 0, said.err
    lines = said.out.decode().splitlines()
    assert lines[0].startswith("Made snapshot 3 (")
    assert lines[1].startswith("disk: took over snapshot 3 (")
    assert lines[2].startswith("3 snapshots of before stay here: 1 (")
    assert process("cat", behind.vault, "/unsaved", *secret).out == b"first"
    said = process("snapshot", "list", behind.vault, *secret)
    ends = [line.split()[-1] for line in said.out.decode().splitlines()]
    assert (ends[0], sorted(ends[1:])) == ("history", ["kept", "kept", "kept", "sync"])
    # What is written then goes on from theirs, and is theirs to take over in turn.
    behind.write("answer", b"from the second")
    assert process("sync", behind.vault, "--snapshot", "--quiet", *secret).code == 0
    assert process("verify", behind.vault, "disk", "--read-data", "--quiet").code == 0
    apart[0].here()
    said = process("sync", apart[0].vault, "--adopt", "--quiet", "--json", *secret)
    assert json.loads(said.out)["relation"] == "behind"
    assert json.loads(said.out)["made"] is None
    assert process("cat", apart[0].vault, "/answer", *secret).out == b"from the second"


def test_simply_behind(devices: Devices) -> None:
    """No snapshot is made, and only the newest of the syncs' is kept."""
    ahead, behind = devices
    for number in range(3):
        ahead.write("text", bytes([number]) * 1000)
        ahead.sync()
        before = behind.contents()
        outcome = behind.adopt()
        assert (outcome["relation"], outcome["made"], outcome["has_new_header"]) == ("behind", None, False)
        assert behind.contents() == ahead.contents()
        (kept,) = (snapshot for snapshot, info in behind.snapshots().items() if info["is_kept"])
        assert behind.contents(kept) == before
        behind.require_sound()


def test_nothing_to_take_over(devices: Devices, disk: Path) -> None:
    """What is on the remote is in our own history, whether we have the snapshot still or not."""
    device = devices[0]
    for _ in range(4):
        device.write("text", os.urandom(100))
        device.snapshot("local")
    device.write("unsaved", b"x")
    before, listed = device.contents(), device.snapshots()
    said = device.run("sync", "--adopt")
    assert (said.code, b"there is nothing to take over" in said.out) == (0, True)
    for count in (1, 2, 3):  # after the first the chain is known from the remote, later not at all
        with vaultfs.open_vault(device.vault, KEY) as opened:
            opened.delete_snapshot(count)
        assert device.adopt()["relation"] == "ours"
        if count == 1:
            assert device.adopt("--take", "1")["relation"] == "ours"
        assert device.contents() == before
        assert device.snapshots().keys() == set(list(listed)[count:])
    assert not (device.vault / ".adopting").exists()


def test_an_older_one_of_theirs(apart: Devices) -> None:
    ahead, behind = apart
    middle = ahead.contents()
    ahead.write("text", b"too new")
    ahead.sync()
    assert behind.adopt("--take", "3")["adopted"]["seq"] == 3
    assert behind.contents() == middle
    behind.write("more", b"x")
    behind.snapshot()
    assert list(behind.snapshots().values())[-1]["seq"] == 5, "higher than all that are on the remote"
    said = behind.run("sync", "--adopt", "--take", "99")
    assert (said.code, "no snapshot '99'" in said.error_line) == (ExitCode.USAGE, True)


def test_a_number_that_somebody_made_up(apart: Devices, disk: Path) -> None:
    """Only snapshots that the vault has signed count, or none could ever be made again."""
    ahead, behind = apart
    ahead.write("text", b"newer")
    ahead.sync()
    newest = max((disk / "heads").glob("*/*"))
    last = (1 << 63) - 1
    (newest.parent / f"{last}-{newest.name.partition('-')[2]}").write_bytes(newest.read_bytes())
    manifest, _ = Manifest.decode(newest.read_bytes())
    stranger = DeviceKey(bytes(32))
    forged = replace(manifest, device=stranger.public, seq=SnapshotSeq(last))
    data = forged.encode(stranger.sign(forged.signed_bytes()))
    path = disk / "heads" / stranger.public.hex() / f"{last}-{manifest_hash(data)}"
    path.parent.mkdir()
    path.write_bytes(data)
    assert behind.adopt("--take", "3")["adopted"]["seq"] == 3
    behind.snapshot()
    assert list(behind.snapshots().values())[-1]["seq"] == 5, "higher than all that the vault has there"
    behind.require_sound()


def test_two_histories_side_by_side(apart: Devices, disk: Path) -> None:
    """Nobody guesses which is meant; and our own, which is there as well, can be taken back."""
    ahead, behind = apart
    behind.snapshot("ours")
    said = behind.run("sync", "--fork", "--quiet", bare=True)
    assert said.code == 0, said.err
    mine = [*behind.snapshots()][-1]
    before = behind.contents()
    said = behind.run("sync", "--adopt")
    assert (said.code, "two histories" in said.error_line) == (ExitCode.USAGE, True)
    assert behind.adopt("--take", [*ahead.snapshots()][-1])["relation"] == "apart"
    assert behind.contents() == ahead.contents()
    said = behind.run("sync", bare=True)
    assert (said.code, said.out) == (0, b"disk: up to date\n"), said.err
    behind.write("text", b"goes on")
    behind.sync()
    assert behind.adopt("--take", mine)["relation"] == "apart"
    assert behind.contents() == before
    behind.require_sound()
    there = objects(disk)
    said = behind.run("sync", bare=True)
    assert (said.code, said.out) == (0, b"disk: up to date\n"), said.err
    assert objects(disk) == there


def test_interrupted_while_it_fetches(apart: Devices, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is as it was, and what has come is not fetched again."""
    _, behind = apart
    before = behind.contents()
    real = fetched_file.SegmentFetch.run
    done: list[None] = []

    def fails_in_time(self: fetched_file.SegmentFetch) -> None:
        if len(done) > 1:
            raise RemoteUnreachableError("the network is gone")
        real(self)
        done.append(None)

    with monkeypatch.context() as patch:
        patch.setattr(fetched_file.SegmentFetch, "run", fails_in_time)
        said = behind.run("sync", "--adopt", "--quiet", "--connections", "1")
        assert (said.code, said.error_line) == (ExitCode.REMOTE_UNREACHABLE, "vaultfs: the network is gone")
    assert behind.contents() == before
    assert [info["label"] for info in behind.snapshots().values()] == ["sync", "by hand", "before adopt"]
    behind.require_sound()
    waiting = {path.stem for path in (behind.vault / ".adopting").glob("segments/??/*.seg")}
    assert len(waiting) == 2
    outcome = behind.adopt()
    assert outcome["made"] is None
    assert behind.contents() == apart[0].contents()
    assert {path.stem for path in behind.vault.glob("segments/??/*.seg")} >= waiting


def test_ctrl_c_while_it_fetches(apart: Devices, passfile: Path) -> None:
    """The command ends at once; everything is as it was, and the same command goes on."""
    ahead, behind = apart
    before = behind.contents()
    words = command("sync", behind.vault, "--adopt", "--bwlimit", "100K", "--passfile", passfile)
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as adopting:
        deadline = time.monotonic() + PATIENCE_S
        while not list(behind.vault.glob(".adopting/segments/??/.*.part")) and time.monotonic() < deadline:
            time.sleep(0.01)
        adopting.send_signal(signal.SIGINT)
        out, err = adopting.communicate(timeout=PATIENCE_S)
    assert (adopting.returncode, out) == (ExitCode.SIGINT, b""), err
    assert behind.contents() == before
    assert behind.adopt()["made"] is None
    assert behind.contents() == ahead.contents()
    behind.require_sound()


def test_damage_on_the_remote(apart: Devices, disk: Path) -> None:
    """Nothing of theirs is believed but hashes and signatures; ours stays."""
    _, behind = apart
    before = behind.contents()
    whole = {path: path.read_bytes() for path in disk.rglob("*") if path.is_file()}
    for path, data in whole.items():
        path.chmod(0o600)
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        said = behind.run("sync", "--adopt", "--quiet")
        is_needed = said.code != 0
        assert said.code in {0, ExitCode.INTEGRITY, ExitCode.USAGE}, (path, said.err)
        path.write_bytes(data)
        assert behind.contents() == (before if is_needed else apart[0].contents())
        if not is_needed:
            break
    behind.require_sound()
    behind.adopt()
    assert behind.contents() == apart[0].contents()


def test_a_clone_stays_one(
    apart: Devices, disk: Path, tmp_path: Path, passfile: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the metadata is fetched; what is read then comes from the remote."""
    ahead, _ = apart
    clone = Device(tmp_path / "clone", tmp_path / "state-3", passfile, run, monkeypatch)
    clone.here()
    assert run("clone", disk.as_uri(), clone.vault, "--quiet").code == 0
    ahead.write("new", os.urandom(300_000))
    ahead.sync()
    clone.write("mine", b"of the clone")
    present = clone.contents()
    said = clone.run("sync", "--adopt", "--quiet", "--json")
    assert (said.code, "stays one: only the metadata is fetched" in said.err) == (0, True)
    assert json.loads(said.out)["received_bytes"] < 200_000
    assert clone.contents() == ahead.contents()
    made = json.loads(said.out)["made"]["id"]
    assert clone.contents(made) == present
    clone.require_sound()
    said = clone.run("sync", bare=True)
    assert (said.code, said.out) == (0, b"origin: up to date\n")


def test_a_password_that_was_changed_there(apart: Devices, run: Run, tmp_path: Path) -> None:
    """A sync refuses; with the new password everything is taken over, and the old one opens nothing any more."""
    ahead, behind = apart
    ahead.here()
    new = tmp_path / "new password"
    new.write_text("tray lamp battery\n")
    new.chmod(0o600)
    assert run("passwd", ahead.vault, "--new-passfile", new).code == 0
    assert ahead.run("sync", bare=True).code == 0
    refused = behind.run("sync", bare=True)
    assert (refused.code, "vaultfs sync --adopt" in refused.err) == (ExitCode.ERROR, True)
    assert behind.run("sync", "--adopt").code == ExitCode.WRONG_PASSWORD
    said = run("sync", behind.vault, "--adopt", "--passfile", new, bare=True)
    assert (said.code, b"took over its vault.json" in said.out) == (0, True), said.err
    assert (behind.vault / "vault.json").read_bytes() == (ahead.vault / "vault.json").read_bytes()
    assert behind.run("ls").code == ExitCode.WRONG_PASSWORD
    assert run("ls", behind.vault, "--passfile", new, bare=True).code == 0
    assert behind.run("sync", bare=True).code == 0


def test_a_password_that_was_changed_here_stays(apart: Devices, run: Run, tmp_path: Path) -> None:
    """What lies on the remote is what this machine has put there, so it is the older one."""
    ahead, _ = apart
    ahead.here()
    new = tmp_path / "new password"
    new.write_text("tray lamp battery\n")
    new.chmod(0o600)
    assert run("passwd", ahead.vault, "--new-passfile", new).code == 0
    said = run("sync", ahead.vault, "--adopt", "--passfile", new, bare=True)
    assert (said.code, b"vault.json" in said.out) == (0, False)
    assert run("ls", ahead.vault, "--passfile", new, bare=True).code == 0


def test_a_key_that_was_rotated_here_overrules_a_password_that_was_changed_there(
    apart: Devices, run: Run, passfile: Path, tmp_path: Path
) -> None:
    """Else each device would refuse what the other has put there, for ever."""
    other, device = apart
    new = tmp_path / "new password"
    new.write_text("tray lamp battery\n")
    new.chmod(0o600)
    device.adopt()
    device.write("text", b"by the second")
    device.sync()
    other.adopt()
    assert run("passwd", other.vault, "--new-passfile", new, "--passfile", passfile, bare=True).code == 0
    assert other.run("sync", bare=True).code == 0
    device.here()
    device.write("text", b"again")
    assert run("key", "rotate", device.vault, "--passfile", passfile, bare=True).code == 0
    said = device.run("sync", "--snapshot", "--quiet")
    assert (said.code, "passwords or keys are not those of this vault" in said.err) == (ExitCode.ERROR, True)
    outcome = device.adopt()
    assert (outcome["relation"], outcome["has_new_header"]) == ("ours", False)
    device.sync()
    other.here()
    assert run("sync", other.vault, "--adopt", "--passfile", new, bare=True).code == ExitCode.WRONG_PASSWORD
    said = run("sync", other.vault, "--adopt", "--passfile", passfile, bare=True)
    assert (said.code, b"took over its vault.json" in said.out) == (0, True), said.err
    assert other.contents() == device.contents()


def test_what_makes_no_sense(devices: Devices, disk: Path, run: Run, tmp_path: Path) -> None:
    device = devices[0]
    for words in (
        ("--adopt", "--snapshot"),
        ("--adopt", "--check"),
        ("--adopt", "--dry-run"),
        ("--adopt", "--fork"),
        ("--take", "3"),
        ("none", "--adopt"),
    ):
        before = digest(device.vault), objects(disk)
        assert device.run("sync", *words).code == ExitCode.USAGE, words
        assert (digest(device.vault), objects(disk)) == before
    (tmp_path / "two").mkdir()
    assert run("remote", "add", device.vault, "two", (tmp_path / "two").as_uri(), bare=True).code == 0
    said = device.run("sync", "--adopt")
    assert (said.code, "say which: disk, two" in said.error_line) == (ExitCode.USAGE, True)
    said = device.run("sync", "two", "--adopt")
    assert (said.code, "no snapshot on the remote" in said.error_line) == (ExitCode.USAGE, True)


def test_kept_snapshots_by_commands(apart: Devices, passfile: Path, run: Run) -> None:
    _, behind = apart
    present = behind.contents()
    made = behind.adopt()["made"]["id"]
    assert run("status", behind.vault, bare=True).out.decode().splitlines()[-1].split() == [
        "safe",
        "to",
        "close:",
        "yes",
    ]
    secret = ("--passfile", passfile)
    said = run("snapshot", "delete", behind.vault, "3", *secret, bare=True)
    assert (said.code, "2 snapshots have the number 3" in said.error_line) == (ExitCode.USAGE, True)
    assert behind.contents(made) == present
    for number in range(3):  # syncs give up their older snapshots, of which one has the number of a kept one
        behind.write("text", bytes([number]))
        behind.sync()
    for snapshot, info in behind.snapshots().items():
        if info["is_kept"]:
            assert run("snapshot", "delete", behind.vault, snapshot[:8], *secret, bare=True).code == 0
    assert [info["is_kept"] for info in behind.snapshots().values()] == [False, False]
    assert list((behind.vault / "heads" / "kept").iterdir()) == []
    behind.require_sound()


@pytest.mark.fuse
def test_mounted(apart: Devices, folder: Path, passfile: Path, run: Run) -> None:
    """A mounted vault is not taken from under its programs; kept snapshots are mounted, listed and deleted."""
    _, behind = apart
    behind.here()
    present = behind.contents()
    assert process("mount", behind.vault, folder, "--passfile", passfile).code == 0
    for path in (behind.vault, folder):
        said = run("sync", path, "--adopt")
        assert (said.code, "unmount it" in said.error_line) == (ExitCode.LOCKED, True)
    assert run("umount", folder, bare=True).code == 0
    made = behind.adopt()["made"]["id"]
    assert process("mount", "--snapshot", made, behind.vault, folder, "--passfile", passfile).code == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == present
    said = run("snapshot", "delete", behind.vault, made, "--passfile", passfile, bare=True)
    assert (said.code, "is mounted or being read" in said.error_line) == (ExitCode.LOCKED, True)
    assert run("umount", folder, bare=True).code == 0
    assert process("mount", behind.vault, folder, "--passfile", passfile).code == 0
    listed = json.loads(run("snapshot", "list", folder, "--json", bare=True).out)["snapshots"]
    assert sorted(each["is_kept"] for each in listed) == [False, True, True, True]
    assert json.loads(run("status", folder, "--json", bare=True).out)["kept_snapshots"] == 3
    assert run("snapshot", "delete", folder, made[:8], bare=True).code == 0
    assert (folder / "unsaved").read_bytes() == b"first"
    assert run("umount", folder, bare=True).code == 0
    assert made not in behind.snapshots()
    behind.require_sound()
