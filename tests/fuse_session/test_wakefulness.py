"""Processors stay awake while requests come fast, and only then.  A file stands for the kernel's device."""

from __future__ import annotations

import errno
import os
import struct
import time
from pathlib import Path

import pytest
import trio
import trio.testing

from vaultfs.fuse.wakefulness import BUSY_REQUESTS, DEVICE, QUIET_S, WINDOW_NS, Wakefulness

AT_ONCE = 0
ANY_TIME = 2_000_000_000


@pytest.fixture
def device(tmp_path: Path) -> Path:
    path = tmp_path / "device"
    path.touch()
    return path


def wishes(device: Path) -> list[int]:
    return [number for (number,) in struct.iter_unpack("=i", device.read_bytes())]


def is_wished(wakefulness: Wakefulness) -> bool:
    return wakefulness.is_wished


def burst(wakefulness: Wakefulness, requests: int, *, began_ns: int, within_ns: int) -> None:
    for number in range(requests):
        wakefulness.note_request(began_ns + within_ns * number // requests)


def test_nothing_is_wished_at_first(device: Path) -> None:
    wakefulness = Wakefulness(str(device))
    assert wishes(device) == [ANY_TIME]  # an open device alone would mean zero
    assert not is_wished(wakefulness)
    wakefulness.close()


def test_fast_requests_are_wished_for_once(device: Path) -> None:
    wakefulness = Wakefulness(str(device))
    began = 10 * WINDOW_NS
    burst(wakefulness, BUSY_REQUESTS, began_ns=began, within_ns=20 * WINDOW_NS)
    assert not is_wished(wakefulness)
    burst(wakefulness, 10 * BUSY_REQUESTS, began_ns=40 * WINDOW_NS, within_ns=WINDOW_NS)
    assert is_wished(wakefulness)
    assert wishes(device) == [ANY_TIME, AT_ONCE]
    wakefulness.close()
    assert not is_wished(wakefulness)


def test_slow_requests_never_are(device: Path) -> None:
    wakefulness = Wakefulness(str(device))
    for number in range(1, 1000):
        wakefulness.note_request(number * WINDOW_NS // (BUSY_REQUESTS - 2))
    assert wishes(device) == [ANY_TIME]


async def test_the_wish_ends_with_the_requests(device: Path, autojump_clock: trio.testing.MockClock) -> None:
    wakefulness = Wakefulness(str(device))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wakefulness.withdraw_when_quiet)
        await trio.testing.wait_all_tasks_blocked()
        for turn in range(1, 4):
            burst(wakefulness, 3 * BUSY_REQUESTS, began_ns=time.perf_counter_ns() + WINDOW_NS, within_ns=1000)
            assert is_wished(wakefulness)
            for _ in range(5):
                await trio.sleep(QUIET_S / 2)
                burst(wakefulness, 2 * BUSY_REQUESTS, began_ns=time.perf_counter_ns(), within_ns=1000)
            assert is_wished(wakefulness)
            await trio.sleep(3 * QUIET_S)
            assert not is_wished(wakefulness)
            assert wishes(device) == [ANY_TIME] + [AT_ONCE, ANY_TIME] * turn
        nursery.cancel_scope.cancel()


async def test_the_wish_ends_with_the_mount(device: Path) -> None:
    wakefulness = Wakefulness(str(device))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wakefulness.withdraw_when_quiet)
        burst(wakefulness, 3 * BUSY_REQUESTS, began_ns=10 * WINDOW_NS, within_ns=1000)
        assert is_wished(wakefulness)
        nursery.cancel_scope.cancel()
    assert wishes(device)[-1] == ANY_TIME


async def test_without_the_device_nothing_happens(tmp_path: Path) -> None:
    wakefulness = Wakefulness(str(tmp_path / "none"))
    burst(wakefulness, 10 * BUSY_REQUESTS, began_ns=10 * WINDOW_NS, within_ns=1000)
    assert not is_wished(wakefulness)
    with trio.move_on_after(0.01):
        await wakefulness.withdraw_when_quiet()
    wakefulness.close()


def test_a_device_that_refuses_is_let_go(device: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Wakefulness(str(device))

    def refuse(*_: object) -> int:
        raise OSError(errno.EINVAL, "no")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", refuse)
        burst(made, 3 * BUSY_REQUESTS, began_ns=10 * WINDOW_NS, within_ns=1000)
    assert not is_wished(made)
    burst(made, 3 * BUSY_REQUESTS, began_ns=30 * WINDOW_NS, within_ns=1000)
    assert wishes(device) == [ANY_TIME]


@pytest.mark.skipif(not os.access(DEVICE, os.W_OK), reason="needs root, and a kernel with PM QoS")
def test_the_kernel_takes_both_wishes() -> None:
    made = Wakefulness()
    burst(made, 3 * BUSY_REQUESTS, began_ns=10 * WINDOW_NS, within_ns=1000)
    assert is_wished(made)
    made.close()
