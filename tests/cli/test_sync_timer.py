"""``vaultfs sync --install-timer``: units that mean what was asked for, whatever names are, and nothing in silence."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from vaultfs.cli import sync_timer, systemd
from vaultfs.cli.timer_units import MARK, SyncTimer, escaped_path, unit_name
from vaultfs.errors import ExitCode, StorageError, UsageError
from vaultfs.storage.durable import atomic_replace

from .conftest import Programs, Run, digest, objects
from .systemd_units import ANALYZE, accepted, command_of, section, words

ODD = "odd 'name' with \"quotes\", 100%d $HOME ${x} \\back\\x41; ; *"
ESCAPE = shutil.which("systemd-escape")


def test_what_accepted_would_not_accept(tmp_path: Path) -> None:
    if ANALYZE is None:
        pytest.skip("systemd-analyze is not installed")
    unit = timer_for("/vault", "/bin/true")
    (tmp_path / "unit.timer").write_text(unit.timer())
    for wrong in ("NoNewPrivileges=perhaps", "NoSuchThing=yes", 'ExecStart="unfinished'):
        (tmp_path / "unit.service").write_text(f"{unit.service()}{wrong}\n")
        with pytest.raises(AssertionError):
            accepted(tmp_path / "unit.service")


# --- installing


def test_installed(backed_up: Path, disk: Path, units: Path, fake: Programs, run: Run) -> None:
    asked = fake()
    before = digest(backed_up)
    said = run("sync", backed_up, "--install-timer", bare=True)
    name = unit_name(backed_up)
    assert said.code == 0
    assert said.out.decode().splitlines() == [f"Wrote {units}/{name}.service", f"Wrote {units}/{name}.timer"]
    assert said.error_line.endswith("loginctl enable-linger")
    assert asked() == ["--user show-environment", "--user daemon-reload", f"--user enable --now {name}.timer"]
    assert sorted(os.listdir(units)) == [f"{name}.service", f"{name}.timer"]
    service, timer = (units / f"{name}.{kind}" for kind in ("service", "timer"))
    assert service.stat().st_mode == timer.stat().st_mode == 0o100644
    assert dict(section(timer.read_text(), "Timer")) == {
        "OnCalendar": "daily",
        "RandomizedDelaySec": "1h",
        "Persistent": "true",
    }
    assert section(timer.read_text(), "Install") == [("WantedBy", "timers.target")]
    settings = section(service.read_text(), "Service")
    assert dict(settings)["Type"] == "oneshot"
    assert dict(settings)["NoNewPrivileges"] == "yes"
    assert (dict(settings)["Restart"], dict(settings)["RestartSec"]) == ("on-failure", "10min")
    final = {int(code) for code in dict(settings)["RestartPreventExitStatus"].split()}
    assert {int(code) for code in ExitCode} - final == {0, 17}, "who could not be reached is tried again"
    assert not {"SuccessExitStatus", "User", "PrivateTmp", "ProtectHome"} & dict(settings).keys()
    program, *arguments = command_of(service.read_text())
    assert (os.path.isabs(program), os.access(program, os.X_OK)) == (True, True)
    assert arguments[-4:] == ["sync", "--quiet", "--", str(backed_up)]
    accepted(service)
    assert digest(backed_up) == before
    assert objects(disk) == {}, "nothing is copied now"


def test_what_the_service_does(
    backed_up: Path, disk: Path, units: Path, fake: Programs, run: Run, passfile: Path
) -> None:
    """Its command line, run from elsewhere with nothing but what the unit sets."""
    odd = backed_up.rename(backed_up.with_name(ODD))
    fake()
    assert run("sync", odd, "disk", "--install-timer", "--snapshot", "--passfile", passfile, bare=True).code == 0
    (service,) = units.glob("*.service")
    text = service.read_text()
    environment = dict(
        each.split("=", 1)
        for key, value in section(text, "Service")
        if key == "Environment"
        for each in words(value, replaces_variables=False)
    )
    assert environment == {"XDG_STATE_HOME": os.environ["XDG_STATE_HOME"]}
    accepted(service)
    done = subprocess.run(command_of(text), cwd="/", env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.endswith(b"; up to date\n")
    assert len(objects(disk)) > 2
    assert b"correct horse" not in service.read_bytes()


def test_options_that_the_timer_uses(backed_up: Path, units: Path, run: Run, no_systemd: None, tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(bytes(32))
    options = ["--bwlimit", "2M", "--connections", "8", "--every", "Mon..Fri *-*-* 03:00:00", "--no-enable"]
    relative = os.path.relpath(tmp_path / "key")
    said = run("sync", backed_up, "disk", "--install-timer", *options, "--snapshot", "--keyfile", relative, bare=True)
    assert said.code == 0
    (service,) = units.glob("*.service")
    assert command_of(service.read_text())[1:] == [
        *("sync", "--quiet", "--snapshot", "--keyfile", os.path.join(os.getcwd(), relative)),
        *("--bwlimit", "2M", "--connections", "8", "--", str(backed_up), "disk"),
    ]
    timer = dict(section(service.with_suffix(".timer").read_text(), "Timer"))
    assert (timer["OnCalendar"], timer["RandomizedDelaySec"]) == ("Mon..Fri *-*-* 03:00:00", "1min")


def test_again_replaces_our_own_only(backed_up: Path, units: Path, fake: Programs, run: Run) -> None:
    fake()
    assert run("sync", backed_up, "--install-timer", bare=True).code == 0
    assert run("sync", backed_up, "--install-timer", "--every", "hourly", bare=True).code == 0
    (timer,) = units.glob("*.timer")
    assert "OnCalendar=hourly\nRandomizedDelaySec=5min\n" in timer.read_text()
    text = timer.read_text()
    for foreign in ("[Timer]\n", None):
        timer.unlink()
        if foreign is None:
            (units / "other").write_text(text)
            timer.symlink_to(units / "other")
        else:
            timer.write_text(foreign)
        before = digest(units)
        for option in ("--install-timer", "--remove-timer"):
            said = run("sync", backed_up, option, bare=True)
            assert (said.code, "was not written by vaultfs" in said.error_line) == (ExitCode.USAGE, True)
            assert digest(units) == before


def test_json(backed_up: Path, units: Path, fake: Programs, run: Run) -> None:
    fake()
    said = run("sync", backed_up, "--install-timer", "--json", bare=True)
    name = unit_name(backed_up)
    assert json.loads(said.out) == {
        "service": f"{units}/{name}.service",
        "timer": f"{units}/{name}.timer",
        "every": "daily",
        "is_enabled": True,
    }
    said = run("sync", backed_up, "--remove-timer", "--json", bare=True)
    assert json.loads(said.out) == {"removed": [f"{units}/{name}.timer", f"{units}/{name}.service"]}


def test_for_root(backed_up: Path, tmp_path: Path, fake: Programs, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's units, and the system's manager."""
    monkeypatch.setattr(systemd.os, "geteuid", lambda: 0)  # type: ignore[attr-defined]
    monkeypatch.setattr(systemd, "SYSTEM_UNITS", tmp_path / "etc")
    asked = fake()
    said = run("sync", backed_up, "--install-timer", bare=True)
    name = unit_name(backed_up)
    assert (said.code, said.err) == (0, "")
    assert asked() == ["show-environment", "daemon-reload", f"enable --now {name}.timer"]
    text = (tmp_path / "etc" / f"{name}.service").read_text()
    assert section(text, "Unit")[1:] == [("Wants", "network-online.target"), ("After", "network-online.target")]
    accepted(tmp_path / "etc" / f"{name}.service")


# --- systemd is away, or refuses


@pytest.mark.parametrize("why", ["not installed", "does not answer", "refuses", "not asked"])
def test_not_enabled(
    backed_up: Path, units: Path, tmp_path: Path, fake: Programs, run: Run, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """The files are there, and it is told what to do."""
    asked = fake("*show-env*" if why == "does not answer" else "*enable*")
    if why == "not installed":
        monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    said = run("sync", backed_up, "--install-timer", *(["--no-enable"] if why == "not asked" else []), bare=True)
    name = unit_name(backed_up)
    assert said.code == (0 if why == "not asked" else 3)
    assert len(said.out.splitlines()) == 2
    first, *commands = said.err.splitlines() if why != "not asked" else ["", *said.err.splitlines()]
    assert commands == [
        "vaultfs: to enable it: systemctl --user daemon-reload",
        f"vaultfs: to enable it: systemctl --user enable --now {shlex.quote(f'{name}.timer')}",
    ]
    if why == "refuses":
        assert first.endswith(": refused by the fake")
        assert asked()[1:] == ["--user daemon-reload", f"--user enable --now {name}.timer"]
    elif why != "not asked":
        assert first == "vaultfs: systemd does not answer here, so the timer is not enabled"
    else:
        assert asked() == []
    assert len(list(units.iterdir())) == 2


def test_half_written(backed_up: Path, units: Path, fake: Programs, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written is told before the rest fails, and systemd is not asked for anything."""
    asked = fake()
    real = atomic_replace

    def replace(path: Path, data: bytes, mode: int = 0o600) -> None:
        if path.suffix == ".timer":
            raise StorageError(f"cannot write {path}: it broke")
        real(path, data, mode)

    monkeypatch.setattr(sync_timer, "atomic_replace", replace)
    said = run("sync", backed_up, "--install-timer", bare=True)
    assert (said.code, said.error_line.endswith("it broke")) == (ExitCode.ERROR, True)
    assert said.out.decode() == f"Wrote {units}/{unit_name(backed_up)}.service\n"
    assert asked() == []
    assert run("sync", backed_up, "--remove-timer", bare=True).code == 0
    assert list(units.iterdir()) == []


# --- removing


def test_removed(backed_up: Path, units: Path, tmp_path: Path, fake: Programs, run: Run) -> None:
    asked = fake()
    name = unit_name(backed_up)
    said = run("sync", backed_up, "--remove-timer", bare=True)
    assert (said.code, "there is no timer" in said.error_line) == (ExitCode.USAGE, True)
    assert run("sync", backed_up, "--install-timer", bare=True).code == 0
    asked()
    backed_up.rename(tmp_path / "gone")  # a timer outlives its vault, and can be removed all the same
    said = run("sync", backed_up, "--remove-timer", bare=True)
    assert (said.code, said.err) == (0, "")
    assert said.out.decode().splitlines() == [f"Removed {units}/{name}.timer", f"Removed {units}/{name}.service"]
    assert asked() == ["--user show-environment", f"--user disable --now {name}.timer", "--user daemon-reload"]
    assert list(units.iterdir()) == []


def test_removed_without_systemd(backed_up: Path, units: Path, run: Run, no_systemd: None) -> None:
    """What a systemd that ran then has made of it goes too."""
    assert run("sync", backed_up, "--install-timer", bare=True).code == 3
    name = f"{unit_name(backed_up)}.timer"
    (units / "timers.target.wants").mkdir()
    (units / "timers.target.wants" / name).symlink_to(units / name)
    said = run("sync", backed_up, "--remove-timer", bare=True)
    assert (said.code, len(said.out.splitlines())) == (0, 3)
    assert [path for path in units.rglob("*") if not path.is_dir()] == []


# --- words and names


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--install-timer", "--remove-timer"], "exclude each other"),
        (["--every", "daily"], "--every goes with --install-timer"),
        (["--no-enable"], "--no-enable goes with --install-timer"),
        (["--install-timer", "--check"], "--check goes with no timer"),
        (["--install-timer", "--dry-run"], "--dry-run goes with no timer"),
        (["--remove-timer", "--every", "daily"], "with nothing else"),
        (["--remove-timer", "--bwlimit", "1M"], "with nothing else"),
        (["--remove-timer", "disk"], "with nothing else"),
        (["--install-timer", "cloud"], "no remote 'cloud'"),
        (["--install-timer", "--every", "now and then"], "--every: "),
        (["--install-timer", "--every", "daily\nPersistent=false"], "--every: "),
        (["--install-timer", "--every", "--version"], "--every"),
        (["--install-timer", "--every", "25:00"], "--every: systemd does not understand"),
        (["--install-timer", "--snapshot"], "--passfile FILE or --keyfile FILE"),
        (["--install-timer", "--snapshot", "--password-fd", "0"], "--passfile FILE or --keyfile FILE"),
        (["--install-timer", "--snapshot", "--passfile", "no-such-file"], "is no file"),
        (["--install-timer", "--passfile", "no-such-file"], "--passfile goes with --snapshot"),
        (["--install-timer", "--connections", "0"], "--connections"),
        (["--install-timer", "--bwlimit", "fast"], "--bwlimit"),
    ],
)
def test_words_that_make_no_sense(
    backed_up: Path, units: Path, fake: Programs, run: Run, options: list[str], reason: str
) -> None:
    if "25:00" in options and ANALYZE is None:
        pytest.skip("systemd-analyze is not installed")
    asked = fake()
    said = run("sync", backed_up, *options, bare=True)
    assert (said.code, reason in said.error_line) == (ExitCode.USAGE, True)
    assert not units.exists()
    assert asked() == []


@pytest.mark.parametrize("name", [b"new\nline", b"tab\t", b"not \xff utf-8", b"\xc2\x9b", b"\xe2\x80\xa8"])
def test_names_that_no_unit_can_hold(backed_up: Path, units: Path, run: Run, no_systemd: None, name: bytes) -> None:
    odd = backed_up.rename(backed_up.with_name(os.fsdecode(name)))
    said = run("sync", odd, "--install-timer", bare=True)
    assert (said.code, "or use cron" in said.error_line) == (ExitCode.USAGE, True)
    assert not units.exists()


def timer_for(vault: str, *program: str) -> SyncTimer:
    return SyncTimer(Path(vault), program or ("/usr/bin/vaultfs",), [], "daily", {"XDG_STATE_HOME": f"/s {ODD}"}, False)


def test_odd_names(tmp_path: Path) -> None:
    """Every word comes out of the unit as it went in; a program's path has no variables, so it may have dollars."""
    odd = tmp_path / "odd name, 100%d $HOME ${x}; ; *"
    odd.mkdir()
    program = odd / "vault$fs"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o700)
    unit = timer_for(f"/vaults/{ODD}", str(program), "-m", "vaultfs.cli")
    assert command_of(unit.service()) == [
        *(str(program), "-m", "vaultfs.cli", "sync", "--quiet", "--", f"/vaults/{ODD}"),
    ]
    (environment,) = [value for key, value in section(unit.service(), "Service") if key == "Environment"]
    assert words(environment, replaces_variables=False) == [f"XDG_STATE_HOME=/s {ODD}"]
    assert (
        dict(section(unit.timer(), "Unit"))["Description"]
        .replace("%%", "%")
        .startswith(f"Copy the vault /vaults/{ODD}")
    )
    assert unit.service().startswith(MARK)
    (tmp_path / "unit.service").write_text(unit.service())
    (tmp_path / "unit.timer").write_text(unit.timer())
    accepted(tmp_path / "unit.service")


@pytest.mark.parametrize("odd", ["new\nline", 'quo"te', "quo'te", "back\\slash"])
def test_programs_that_systemd_does_not_run(odd: str) -> None:
    with pytest.raises(UsageError, match="use cron"):
        timer_for("/vault", f"/opt/{odd}/vaultfs").service()


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/", "-"),
        ("/a", "a"),
        ("/home/me/a vault", "home-me-a\\x20vault"),
        ("//home//me/", "home-me"),
        ("/.hidden/.more", "\\x2ehidden-.more"),
        ("/a-b/c_d:e.f~g", "a\\x2db-c_d:e.f\\x7eg"),
        ("/é%$\\'\"", "\\xc3\\xa9\\x25\\x24\\x5c\\x27\\x22"),
    ],
)
def test_names_of_units(path: str, name: str) -> None:
    assert escaped_path(os.fsencode(path)) == name
    if ESCAPE is not None:
        said = subprocess.run([ESCAPE, "--path", path], capture_output=True, check=True)
        assert said.stdout.decode() == name + "\n"


def test_names_that_are_too_long() -> None:
    """They are hashed, and differ still."""
    long = [unit_name(Path("/" + "a" * 200 + "/" + last * 50)) for last in "ab"]
    assert len(set(long)) == 2
    assert {len(name) for name in long} == {len("vaultfs-sync-") + 64}
    assert unit_name(Path("/" + "a" * 200)) == "vaultfs-sync-" + "a" * 200


def test_how_this_program_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside its Python, else on the path, else as a module."""
    bin_directory = tmp_path / "bin"
    bin_directory.mkdir()
    monkeypatch.setattr(sync_timer.sys, "executable", str(bin_directory / "python"))  # type: ignore[attr-defined]
    monkeypatch.setenv("PATH", str(tmp_path / "other"))
    assert sync_timer.program_words() == [str(bin_directory / "python"), "-m", "vaultfs.cli"]
    for where in (tmp_path / "other", bin_directory):
        where.mkdir(exist_ok=True)
        (where / "vaultfs").write_text("#!/bin/sh\n")
        (where / "vaultfs").chmod(0o700)
        assert sync_timer.program_words() == [str(where / "vaultfs")]
