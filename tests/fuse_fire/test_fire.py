"""A real mount under programs that are killed, stopped and continued at any moment: nothing hangs, lies or is lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from . import programs
from .fire import Fire, ends_of, forced_ends_of, use_of

MOST_MEMORY_KIB = 200 << 10
MOST_DESCRIPTORS = 330
"""Open segments are kept, up to 256 of them."""
MOST_THREADS = 50
BUSY = ["read", "reopen", "reopen", "append", "cut"]

pytestmark = [pytest.mark.fuse, pytest.mark.root]


@pytest.fixture
def fire(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Fire]:
    if not Path("/dev/fuse").exists():
        pytest.skip("there is no /dev/fuse")
    fire = Fire(tmp_path, getattr(request, "param", 0))
    try:
        yield fire
    finally:
        fire.kill_all()


@pytest.mark.timeout(240)
def test_nothing_is_lost_by_who_is_not_killed(fire: Fire) -> None:
    fire.mount("--commit-interval", "0.05")
    fire.wave([*programs.KINDS, "read", "reopen"])
    fire.look()
    fire.umount()
    fire.await_end()
    fire.check()
    fire.mount()
    fire.look()
    fire.umount()
    fire.await_end()


@pytest.mark.timeout(240)
def test_a_mount_that_is_ended_by_force_ends(fire: Fire) -> None:
    fire.mount("--commit-interval", "0.05")
    fire.end_while_busy(BUSY, forced_ends_of(fire)["SIGTERM twice"])
    fire.check()


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("fire", range(10, 16), indirect=True)
def test_many_waves(fire: Fire) -> None:
    for _ in range(6):
        fire.mount("--commit-interval", fire.choose.choice(("0.05", "0.5", "5")))
        for _ in range(fire.choose.choice((1, 4))):
            fire.wave(fire.choose.choices(sorted(programs.KINDS), k=fire.choose.choice((6, 12, 24))))
            fire.look()
        ends_of(fire)[fire.choose.choice(sorted(ends_of(fire)))]()
        fire.await_end()
        fire.check()
        fire.mount()
        fire.look()
        fire.forget()
        fire.end_while_busy(BUSY, forced_ends_of(fire)[fire.choose.choice(sorted(forced_ends_of(fire)))])
        fire.check()


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_daemon_does_not_grow(fire: Fire) -> None:
    fire.mount("--commit-interval", "0.05")
    for _ in range(100):
        fire.wave(fire.choose.choices(sorted(programs.KINDS), k=6))
        fire.look()
        fire.forget()
        use = use_of(fire.pid)
        assert use.memory_kib < MOST_MEMORY_KIB
        assert use.descriptors < MOST_DESCRIPTORS
        assert use.threads < MOST_THREADS
    fire.umount()
    fire.await_end()
    fire.check()
