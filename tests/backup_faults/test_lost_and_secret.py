"""Uploads that were acknowledged and are not there, clocks that are wrong, and what a remote gets to see."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cli.conftest import PASSWORD, Run, make_snapshot, objects, opened, read_file, write_file

import vaultfs
from vaultfs.errors import ExitCode
from vaultfs.remotes.s3 import _make_client as make_client

from .conftest import require_complete_heads, require_next_is_clean, verified
from .s3_double import Asked, S3Double, Say, each

TAKEN = Say(200, b"", {"ETag": '"x"'})
TEN_YEARS_S = 10 * 365 * 24 * 3600


def puts(double: S3Double) -> list[Asked]:
    return [asked for asked in double.asked if asked.method == "PUT"]


# --- uploads that the store says it took and did not


def test_each_upload_in_turn(source: Path, double: S3Double, run: Run, impatient: None, own_state: Path) -> None:
    """Whichever is lost: it is noticed in the same run, before any snapshot is shown that needs it."""
    assert run("sync", source, "--quiet", "--connections", "1", bare=True).code == 0
    keys = [asked.key for asked in puts(double)]
    assert len(keys) >= 5
    for number, key in enumerate(keys):
        double.objects.clear()
        double.heal()
        os.environ["XDG_STATE_HOME"] = str(own_state / str(number))
        double.plan = each(lambda asked, key=key: (asked.method, asked.key) == ("PUT", key), TAKEN)  # type: ignore[misc]
        said = run("sync", source, "--quiet", bare=True)
        assert said.code == ExitCode.ERROR
        assert f"said that it had stored {key.removeprefix('backup/')}" in said.err
        assert "up to date" not in said.out.decode().replace("not up to date", "")
        assert run("status", source, bare=True).code == ExitCode.PARTIAL, "not safe to close"
        require_next_is_clean(source, double, run)


def test_a_replaced_header_that_was_not_stored(copied: Path, double: S3Double, run: Run, tmp_path: Path) -> None:
    """The old one is still there, and has the same size: whoever restores it would need the old password."""
    new = tmp_path / "new"
    new.write_text("another password")
    new.chmod(0o600)
    old = double.objects["backup/vault.json"]
    assert run("passwd", copied, "--new-passfile", new).code == 0
    assert len((copied / "vault.json").read_bytes()) == len(old), "else its size would tell"
    double.plan = each(lambda asked: asked.method == "PUT", TAKEN)
    said = run("sync", copied, "--quiet", bare=True)
    assert (said.code, "vault.json" in said.err) == (ExitCode.ERROR, True), said
    assert run("status", copied, bare=True).code == ExitCode.PARTIAL
    require_next_is_clean(copied, double, run)


@pytest.mark.parametrize("part", ["segments/", "heads/", "vault.json"])
def test_what_is_lost_later(copied: Path, double: S3Double, run: Run, part: str) -> None:
    """Nobody can know before somebody asks: `verify` does, and a sync that is told to check mends it."""
    lost = min(key for key in double.objects if key.startswith(f"backup/{part}"))
    double.watch = lambda _asked: None  # the snapshot on the remote is not whole, of course
    del double.objects[lost]
    said = run("verify", copied, "s3", "--read-data", "--quiet", bare=True)
    assert (said.code == ExitCode.INTEGRITY) or part == "heads/", said
    assert run("sync", copied, "--check", "--quiet", bare=True).code == 0
    require_next_is_clean(copied, double, run)


# --- clocks


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the clock by so many seconds; what measures time is not moved, as with a real clock."""
    now_s, now_ns = time.time, time.time_ns

    def move(by_s: float) -> None:
        monkeypatch.setattr(time, "time", lambda: now_s() + by_s)
        monkeypatch.setattr(time, "time_ns", lambda: now_ns() + int(by_s * 1e9))

    return move


@pytest.mark.parametrize("by_s", [-TEN_YEARS_S, TEN_YEARS_S])
def test_a_clock_that_is_ten_years_wrong(
    vault: Path, disk: Path, run: Run, tmp_path: Path, clock: Callable[[float], None], by_s: float
) -> None:
    """Snapshots before, during and after: in the order of their numbers, and the newest is the newest."""
    assert run("remote", "add", vault, "disk", disk.as_uri(), bare=True).code == 0
    for number, moved in enumerate((0.0, by_s, 0.0)):
        clock(moved)
        write_file(vault, "/file", b"%d" % number)
        said = run("sync", vault, "--snapshot", "--quiet")
        assert (said.code, said.err) == (0, "")
        assert run("sync", vault, "--quiet", bare=True).out == b"disk: up to date\n"
        require_complete_heads(objects(disk))
        said = run("verify", vault, "disk", "--read-data", "--quiet", bare=True)
        assert (said.code, said.out.endswith(b"nothing is wrong\n")) == (0, True)
        back = tmp_path / f"back {number}"
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_STATE_HOME", str(tmp_path / f"machine {number}"))
            assert run("restore", disk.as_uri(), back, "--quiet").code == 0
            assert read_file(back, "/file") == b"%d" % number


def test_a_clock_that_was_set_back(copied: Path, run: Run, clock: Callable[[float], None]) -> None:
    """What was written since is younger than a snapshot from the future, and must not count as saved."""
    assert run("status", copied, bare=True).code == 0
    clock(TEN_YEARS_S)
    assert run("sync", copied, "--snapshot", "--quiet").code == 0
    clock(0.0)
    assert run("sync", copied, "--quiet", bare=True).code == 0
    write_file(copied, "/later", os.urandom(100_000))
    said = run("status", copied, bare=True)
    assert (said.code, b"safe to close:  no" in said.out) == (ExitCode.PARTIAL, True)
    assert run("sync", copied, "--snapshot", "--quiet").code == 0
    assert run("status", copied, bare=True).code == 0


def test_a_server_that_finds_the_clock_wrong(copied: Path, double: S3Double, run: Run, tmp_path: Path) -> None:
    """One line that says what to do; no try is repeated, as that would not help."""
    skewed = b"<?xml version='1.0'?><Error><Code>RequestTimeTooSkewed</Code><RequestTime>x</RequestTime></Error>"
    for words in (
        ["sync", copied],
        ["verify", copied, "s3"],
        ["remote", "test", copied, "s3"],
        ["restore", double.url, tmp_path / "back", *double.options],
        ["clone", double.url, tmp_path / "back", *double.options],
    ):
        double.heal()
        double.plan = lambda _asked: Say(403, skewed, {"Content-Type": "application/xml"})
        quiet = [] if words[0] == "remote" else ["--quiet"]
        said = run(*words, *quiet, bare=words[0] in {"sync", "verify", "remote"})
        assert said.code == ExitCode.REMOTE_REFUSED
        assert said.err.splitlines()[-1].endswith("the clock of this machine is wrong; set it")
        assert len(double.asked) == 1
    require_next_is_clean(copied, double, run)


# --- what a remote, and the state directory, get to see


CANARIES = {kind: f"canary-{kind}-3b1d77" for kind in ("content", "name", "xattr-name", "xattr", "target", "label")}


def seed(vault: Path) -> None:
    """Put a canary into everything that is secret."""
    name = CANARIES["name"]
    with opened(vault) as found:
        found.mkdir(f"/{name}-folder")
        with found.open(f"/{name}-folder/{name}", "wb") as file:
            file.write(CANARIES["content"].encode() * 20_000)
        with found.open("/tiny", "wb") as file:
            file.write(CANARIES["content"].encode())
        found.symlink(CANARIES["target"], f"/{name}-link")
        found.setxattr("/tiny", f"user.{CANARIES['xattr-name']}".encode(), CANARIES["xattr"].encode())
        found.create_snapshot(CANARIES["label"])


def require_no_canary(what: str, data: bytes) -> None:
    for canary in (*CANARIES.values(), PASSWORD):
        for form in (canary.encode(), canary.encode("utf-16-le"), canary.encode().hex().encode()):
            assert form not in data, f"{canary} is in {what}"


def test_only_ciphertext_leaves(
    vault: Path, double: S3Double, run: Run, impatient: None, disk: Path, own_state: Path, tmp_path: Path
) -> None:
    """Invariant 6, for a store with all that was ever sent to it, a directory, ledgers, logs and witnesses."""
    seed(vault)
    assert run("remote", "add", vault, "s3", double.url, *double.options, bare=True).code == 0
    assert run("remote", "add", vault, "disk", disk.as_uri(), bare=True).code == 0
    for _ in range(2):
        assert run("sync", vault, "--snapshot", "--quiet").code == 0
        write_file(vault, f"/{CANARIES['name']}-more", CANARIES["content"].encode() * 3)
    assert run("verify", vault, "s3", "--read-data", "--quiet", bare=True).code == 0
    assert run("clone", double.url, tmp_path / "clone", *double.options, "--fill", "--quiet").code == 0
    assert len(puts(double)) > 5
    for asked in double.asked:
        require_no_canary("a request", asked.head.encode())
    sent = double.stored() | objects(disk)
    assert len(sent) > 5
    for key, data in sent.items():
        require_no_canary(key, data)
        require_no_canary("a key", key.encode())
    kept = [path for top in (own_state, vault, tmp_path / "clone") for path in top.rglob("*") if path.is_file()]
    assert any(path.name == "ledger" for path in kept)
    for path in kept:
        require_no_canary(str(path), path.read_bytes())
    with vaultfs.open_vault(tmp_path / "clone", vaultfs.Secret.password(PASSWORD), read_only=True) as found:
        assert found.readlink(f"/{CANARIES['name']}-link") == CANARIES["target"].encode(), "they were there"
    require_complete_heads(double.stored())
    assert verified(double, run).code == 0


def test_an_error_shows_no_secret(copied: Path, double: S3Double, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does what VAULTFS_DEBUG adds for those who look for a fault."""
    monkeypatch.setenv("VAULTFS_DEBUG", "1")
    monkeypatch.setattr("vaultfs.remotes.s3._make_client", make_client)  # one that has these credentials
    secrets = {name: f"canary-of-{name}" for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    for answer in (Say(418, b"<Error><Code>Teapot</Code></Error>"), Say(200, b"<"), Say(0), Say(403)):
        double.plan = lambda _asked, answer=answer: answer  # type: ignore[misc]
        said = run("sync", copied, "--quiet", bare=True)
        assert said.code != 0
        assert any(secrets["AWS_SESSION_TOKEN"] in asked.head for asked in double.asked), "it was used"
        for secret in (*secrets.values(), "Signature="):
            assert secret not in said.err
    make_snapshot(copied)
    require_next_is_clean(copied, double, run)
