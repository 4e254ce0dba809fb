"""Peers whose power goes while something comes, whose disk fills, and whose clock is wrong."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vaultfs.errors import ExitCode

from .conftest import LARGE, MakeHousehold
from .household import Household
from .machines import DEADLINE_S, PeerMachine, Running, until

MIB = 1 << 20
LARGE_BYTES = len(LARGE["/large"])


def partials(home: Household, peer: PeerMachine) -> list[Path]:
    """What a peer has of objects that were interrupted."""
    return list((home.stored(peer) / ".mesh" / "partial").glob("*"))


def largest_partial_bytes(home: Household, peer: PeerMachine) -> int:
    sizes = [0]
    for path in partials(home, peer):
        with contextlib.suppress(FileNotFoundError):
            sizes.append(path.stat().st_size)
    return max(sizes)


def begun(home: Household, peer: PeerMachine) -> Running:
    """A sync that is in the midst of sending the large segment to a peer."""
    running = home.laptop.start("sync", home.vault, "--quiet", "--bwlimit", "12M")
    until(lambda: largest_partial_bytes(home, peer) > 2 * MIB, "some MiB are there")
    return running


@pytest.fixture
def home(make_household: MakeHousehold) -> Household:
    """Two peers, and a vault with a segment of 8 MiB."""
    return make_household(2, is_large=True)


def test_what_came_before_the_power_went_need_not_come_again(home: Household) -> None:
    peer = home.peers[1]
    running = begun(home, peer)
    peer.kill()
    running.wait().require(ExitCode.PARTIAL)
    came = largest_partial_bytes(home, peer)
    (path,) = [path for path in partials(home, peer) if path.stat().st_size == came]
    number = path.stat().st_ino
    peer.serve()
    home.require_right_bytes()
    home.require_sound()
    large = max(home.segments, key=home.segments.__getitem__)
    stored = home.stored(peer) / "segments" / large[:2] / large
    assert stored.stat().st_ino == number, "it is not what was there"
    assert partials(home, peer) == []


@pytest.mark.parametrize(
    "damage", ["torn", pytest.param("long", marks=pytest.mark.long), pytest.param("empty", marks=pytest.mark.long)]
)
def test_what_the_power_cut_left_is_not_believed(home: Household, damage: str) -> None:
    """Pages that never reached the disk, which is all that a file system without a sync promises."""
    peer = home.peers[1]
    running = begun(home, peer)
    peer.kill()
    running.wait().require(ExitCode.PARTIAL)
    path = max(partials(home, peer), key=lambda path: path.stat().st_size)
    with path.open("r+b") as file:
        if damage == "torn":
            file.seek(-MIB, os.SEEK_END)
            file.write(bytes(MIB))
        elif damage == "long":
            file.truncate(LARGE_BYTES + 10 * MIB)
        else:
            file.truncate(0)
    peer.serve()
    home.require_sound()


def test_the_laptop_loses_its_power_while_it_sends(home: Household) -> None:
    running = begun(home, home.peers[1])
    running.kill()
    home.require_no_connections()
    home.require_right_bytes()
    home.sync().require(0)
    home.require_sound()


def test_all_machines_lose_their_power_at_once(home: Household) -> None:
    running = begun(home, home.peers[1])
    for process in (running, *(peer.process for peer in home.peers)):
        assert process is not None
        process.kill()
    for peer in home.peers:
        peer.serve()
    home.sync().require(0)
    home.require_sound()


# --- disks


@pytest.fixture
def disk(scratch: Path) -> Iterator[Path]:
    """A disk on which 64 MiB stay free for others, and little more is there."""
    if os.geteuid():
        pytest.skip("a small disk needs root, to mount a tmpfs")
    where = scratch / "disk"
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=90m", "tmpfs", where], check=True, timeout=DEADLINE_S)
    yield where
    subprocess.run(["umount", "-l", where], check=True, timeout=DEADLINE_S)


def on_disk(home: Household, disk: Path) -> PeerMachine:
    """A peer more, whose store is on that disk."""
    peer = home.add_peer()
    peer.stop()
    shutil.rmtree(peer.store, ignore_errors=True)
    peer.store = disk / "store"
    peer.serve()
    return peer


def fill(disk: Path, left_bytes: int) -> Path:
    """Somebody else needs the disk."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while (free := shutil.disk_usage(disk).free) > left_bytes:
            file.write(bytes(min(MIB, free - left_bytes)))
    return ballast


def test_a_full_disk_is_told_and_nothing_wrong_is_there(make_household: MakeHousehold, disk: Path) -> None:
    home = make_household(1, is_large=True)
    peer = on_disk(home, disk)
    ballast = fill(disk, 66 * MIB)
    said = home.sync().require(ExitCode.PARTIAL)
    assert "1 segment with too few copies" in said.err
    home.require_short()
    repaired = home.repair().require(ExitCode.PARTIAL).json
    assert repaired["short_segments"] == 1
    assert home.holders(max(home.segments, key=home.segments.__getitem__)) == home.peers[:1]
    assert largest_partial_bytes(home, peer) == 0
    ballast.unlink()
    home.require_sound()
    peer.stop()


@pytest.mark.parametrize(
    "left_bytes", [pytest.param(30 * MIB, id="reserve", marks=pytest.mark.long), pytest.param(0, id="all")]
)
def test_a_disk_that_fills_while_something_comes(make_household: MakeHousehold, disk: Path, left_bytes: int) -> None:
    """Another peer takes its part."""
    home = make_household(1, is_large=True)
    peer = on_disk(home, disk)
    running = begun(home, peer)
    ballast = fill(disk, left_bytes)
    spare = home.add_peer()
    running.wait().require(ExitCode.PARTIAL, 0)
    home.require_right_bytes()
    repaired = home.repair().require(ExitCode.PARTIAL).json
    assert repaired["segments_by_copies"][2] == repaired["needed_segments"], "only manifests are lacking there"
    home.require_copies()
    large = max(home.segments, key=home.segments.__getitem__)
    assert len(home.holders(large)) == 2
    ballast.unlink()
    home.require_sound()
    assert spare.is_running
    peer.stop()


# --- clocks

SHIFT = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
static long shift(void) { return atol(getenv("CLOCK_SHIFT_S")); }
int clock_gettime(clockid_t id, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(id, now);
    if (!failed && id == CLOCK_REALTIME) now->tv_sec += shift();
    return failed;
}
int gettimeofday(struct timeval *now, void *zone) {
    struct timespec precise;
    int failed = clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return failed;
}
time_t time(time_t *where) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (where) *where = now.tv_sec;
    return now.tv_sec;
}
"""
YEAR_S = 366 * 24 * 3600


@pytest.fixture(scope="module")
def shifting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that gives a process, libraries of C included, another time."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("another clock needs a C compiler")
    where = tmp_path_factory.mktemp("shift")
    (where / "shift.c").write_text(SHIFT)
    words = [compiler, "-shared", "-fPIC", "-O1", "-o", "shift.so", "shift.c", "-ldl"]
    subprocess.run(words, cwd=where, check=True, timeout=DEADLINE_S)
    return where / "shift.so"


@pytest.mark.parametrize(
    ("is_peer", "years"),
    [
        pytest.param(True, 30, id="peer ahead"),
        pytest.param(False, -30, id="laptop behind", marks=pytest.mark.long),
        pytest.param(True, -30, id="peer behind", marks=pytest.mark.long),
        pytest.param(False, 30, id="laptop ahead", marks=pytest.mark.long),
    ],
)
def test_a_clock_that_is_decades_off_does_not_matter(
    make_household: MakeHousehold, shifting: Path, years: int, is_peer: bool
) -> None:
    """Neither to TLS, nor to grants, orders, audits and witnesses."""
    home = make_household(2)
    extra = {"LD_PRELOAD": str(shifting), "CLOCK_SHIFT_S": str(years * YEAR_S)}
    machine = home.peers[0] if is_peer else home.laptop
    if is_peer:
        home.peers[0].stop()
    machine.extra, machine.executable = extra, sys.executable
    code = "import time; print(time.gmtime().tm_year)"
    seen = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **extra}, capture_output=True, check=True, timeout=DEADLINE_S
    )
    assert abs(int(seen.stdout) - time.gmtime().tm_year) > 20
    if is_peer:
        home.peers[0].serve()
    home.sync().require(0)
    assert {each["verdict"] for each in home.audit().require(0).json["peers"]} == {"proven"}
    machine.extra, machine.executable = {}, None
    home.require_sound()
