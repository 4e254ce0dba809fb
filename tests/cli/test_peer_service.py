"""``vaultfs peer serve --install-service``: a unit that means what was asked for, and nothing in silence."""

from __future__ import annotations

import json
import os
import shlex
import stat
from pathlib import Path

import pytest

from vaultfs.cli import systemd
from vaultfs.cli.peer_unit import MARK, UNIT_NAME, PeerService
from vaultfs.errors import ExitCode, UsageError

from .conftest import Programs, Run, digest
from .systemd_units import accepted, command_of, section, words

ODD = "odd 'name' with \"quotes\", 100%d $HOME ${x} \\back\\x41; ; *"


@pytest.fixture
def peer(units: Path, run: Run) -> Path:
    """A machine with an identity; where its unit goes."""
    assert run("peer", "init", bare=True).code == 0
    return units / UNIT_NAME


def test_installed(peer: Path, tmp_path: Path, fake: Programs, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = fake()
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / ODD))
    said = run("peer", "serve", "--install-service", bare=True)
    assert said.code == 0
    assert said.out.decode() == f"Wrote {peer}\n"
    assert said.error_line.endswith("loginctl enable-linger")
    assert asked() == ["--user show-environment", "--user daemon-reload", f"--user enable --now {UNIT_NAME}"]
    assert os.listdir(peer.parent) == [UNIT_NAME]
    assert stat.S_IMODE(peer.stat().st_mode) == 0o644
    text = peer.read_text()
    program, *arguments = command_of(text)
    assert (os.path.isabs(program), os.access(program, os.X_OK)) == (True, True)
    store = tmp_path / ODD / "vaultfs" / "peer"
    assert arguments[-4:] == ["peer", "serve", "--store", str(store)]
    settings = dict(section(text, "Service"))
    assert words(settings["ReadWritePaths"], replaces_variables=False) == [
        str(store),
        str(tmp_path / "config" / "vaultfs" / "mesh"),
    ]
    assert store.is_dir(), "or systemd would not start it"
    assert (settings["Type"], settings["NoNewPrivileges"], settings["ProtectSystem"]) == ("notify", "yes", "strict")
    assert "MemoryMax" in settings
    assert (settings["PrivateUsers"], "CapabilityBoundingSet" in settings) == ("yes", False)
    assert section(text, "Install") == [("WantedBy", "default.target")]
    environment = [
        each
        for key, value in section(text, "Service")
        if key == "Environment"
        for each in words(value, replaces_variables=False)
    ]
    assert environment == [
        f"XDG_CONFIG_HOME={tmp_path / 'config'}",
        f"XDG_DATA_HOME={tmp_path / ODD}",
        f"XDG_STATE_HOME={os.environ['XDG_STATE_HOME']}",
    ]
    accepted(peer)


def test_options_that_the_service_uses(peer: Path, tmp_path: Path, run: Run, no_systemd: None) -> None:
    options = ["--quota", "1.5T", "--listen", "[::1]", "--listen", "127.0.0.1:0", "--announce"]
    relative = os.path.relpath(tmp_path / "store")
    said = run("peer", "serve", "--install-service", "--no-enable", "--store", relative, *options, bare=True)
    assert said.code == 0
    assert command_of(peer.read_text())[-9:] == [
        *("--store", os.path.normpath(tmp_path / "store"), "--quota", "1.5T"),
        *("--listen", "[::1]:7741", "--listen", "127.0.0.1:0", "--announce"),
    ]
    accepted(peer)


def test_for_root(
    run: Run, units: Path, tmp_path: Path, fake: Programs, monkeypatch: pytest.MonkeyPatch, peer: Path
) -> None:
    monkeypatch.setattr(systemd.os, "geteuid", lambda: 0)  # type: ignore[attr-defined]
    monkeypatch.setattr(systemd, "SYSTEM_UNITS", tmp_path / "etc")
    asked = fake()
    said = run("peer", "serve", "--install-service", "--store", tmp_path / "store", bare=True)
    assert (said.code, said.err) == (0, "")
    assert asked() == ["show-environment", "daemon-reload", f"enable --now {UNIT_NAME}"]
    text = (tmp_path / "etc" / UNIT_NAME).read_text()
    assert ("After", "network-online.target") in section(text, "Unit")
    assert section(text, "Install") == [("WantedBy", "multi-user.target")]
    settings = dict(section(text, "Service"))
    assert (settings["CapabilityBoundingSet"], "PrivateUsers" in settings) == ("", False)
    accepted(tmp_path / "etc" / UNIT_NAME)


@pytest.mark.parametrize("why", ["not installed", "does not answer", "refuses"])
def test_not_enabled(
    peer: Path, tmp_path: Path, fake: Programs, run: Run, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """The file is there, and it is told what to do."""
    asked = fake("*show-env*" if why == "does not answer" else "*enable*")
    if why == "not installed":
        monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    said = run("peer", "serve", "--install-service", "--store", tmp_path / "store", bare=True)
    assert said.code == ExitCode.PARTIAL
    first, *commands = said.err.splitlines()
    assert commands == [
        "vaultfs: to enable it: systemctl --user daemon-reload",
        f"vaultfs: to enable it: systemctl --user enable --now {shlex.quote(UNIT_NAME)}",
    ]
    if why == "refuses":
        assert first.endswith(": refused by the fake")
        assert asked()[1:] == ["--user daemon-reload", f"--user enable --now {UNIT_NAME}"]
    else:
        assert first == "vaultfs: systemd does not answer here, so the service is not enabled"
    assert peer.is_file()


def test_replaces_our_own_only(peer: Path, tmp_path: Path, fake: Programs, run: Run) -> None:
    asked = fake()
    for name in ("one", "two"):
        assert run("peer", "serve", "--install-service", "--store", tmp_path / name, bare=True).code == 0
    assert command_of(peer.read_text())[-1] == str(tmp_path / "two")
    asked()
    for words_ in (["--install-service", "--store", tmp_path / "three"], ["--remove-service"]):
        peer.write_text("[Service]\n")
        before = digest(tmp_path, "password")
        said = run("peer", "serve", *words_, bare=True)
        assert (said.code, "was not written by vaultfs" in said.error_line) == (ExitCode.USAGE, True)
        assert digest(tmp_path, "password") == before
    assert asked() == []


def test_removed(peer: Path, tmp_path: Path, fake: Programs, run: Run) -> None:
    asked = fake()
    said = run("peer", "serve", "--remove-service", bare=True)
    assert (said.code, "there is no service" in said.error_line) == (ExitCode.USAGE, True)
    assert run("peer", "serve", "--install-service", "--store", tmp_path / "store", bare=True).code == 0
    (tmp_path / "store" / "stored").write_bytes(b"by others")
    asked()
    said = run("peer", "serve", "--remove-service", bare=True)
    assert (said.code, said.err, said.out.decode()) == (0, "", f"Removed {peer}\n")
    assert asked() == ["--user show-environment", f"--user disable --now {UNIT_NAME}", "--user daemon-reload"]
    assert list(peer.parent.iterdir()) == []
    assert (tmp_path / "store" / "stored").read_bytes() == b"by others"


def test_removed_without_systemd(peer: Path, tmp_path: Path, run: Run, no_systemd: None) -> None:
    """What a systemd that ran then has made of it goes too."""
    assert run("peer", "serve", "--install-service", "--store", tmp_path / "store", bare=True).code == 3
    wants = peer.parent / "default.target.wants"
    wants.mkdir()
    (wants / UNIT_NAME).symlink_to(peer)
    said = run("peer", "serve", "--remove-service", "--json", bare=True)
    assert json.loads(said.out) == {"removed": str(peer)}
    assert [path for path in peer.parent.rglob("*") if not path.is_dir()] == []


def test_json(peer: Path, tmp_path: Path, fake: Programs, run: Run) -> None:
    fake()
    said = run("peer", "serve", "--install-service", "--store", tmp_path / "store", "--json", bare=True)
    assert json.loads(said.out) == {"service": str(peer), "store": str(tmp_path / "store"), "is_enabled": True}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--install-service", "--remove-service"], "goes with nothing else"),
        (["--remove-service", "--quota", "1G"], "goes with nothing else"),
        (["--remove-service", "--listen", "nas"], "goes with nothing else"),
        (["--remove-service", "--no-enable"], "goes with nothing else"),
        (["--no-enable"], "goes with --install-service"),
        (["--install-service", "--quota", "much"], "no size"),
        (["--install-service", "--listen", "::1"], "in brackets"),
        (["--install-service", "--listen", "nas:65536"], "no port"),
        (["--install-service", "--store", "new\nline"], "control characters"),
    ],
)
def test_words_that_make_no_sense(peer: Path, fake: Programs, run: Run, options: list[str], reason: str) -> None:
    asked = fake()
    said = run("peer", "serve", *options, bare=True)
    assert (said.code, reason in said.error_line) == (ExitCode.USAGE, True)
    assert not peer.parent.exists()
    assert asked() == []


def test_odd_names(tmp_path: Path) -> None:
    program = tmp_path / "odd name, 100%d $HOME ${x}; ; *"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o700)
    for is_system in (True, False):
        unit = PeerService([str(program)], ["--store", f"/{ODD}"], {"XDG_DATA_HOME": ODD}, [Path(f"/{ODD}")], is_system)
        assert command_of(unit.text()) == [str(program), "peer", "serve", "--store", f"/{ODD}"]
        assert unit.text().startswith(MARK)
        (tmp_path / "unit.service").write_text(unit.text())
        accepted(tmp_path / "unit.service")
    with pytest.raises(UsageError, match="quotes or backslashes"):
        PeerService(['/a"b'], [], {}, [], is_system=False).text()
