"""Keeps idle processors from deep sleep while requests come fast, so that answers wake programs at once.

A program waits for each answer, and its processor goes to sleep meanwhile.  To wake it takes 1 to 100 us on bare metal
(leaving a C-state), and as much in a virtual machine, where both the halt and the interrupt that ends it are exits to
the host: on one with two cores a round trip took 50 us, and 12 us with processors that stay awake.

The kernel has an interface for this, PM QoS (Documentation/power/pm_qos_interface.rst): as long as a process holds
``/dev/cpu_dma_latency`` open, no processor sleeps deeper than the number of microseconds that it has written there.  It
ends with the process, however that ends.  Only root may open the device, as a rule; without it nothing changes.

Processors that stay awake use power.  So the wish is made when `BUSY_REQUESTS` come within `WINDOW_NS`, and withdrawn
when they do not any more; a daemon without requests never makes it.
"""

from __future__ import annotations

import logging
import os
import struct
import time
from typing import Final

import trio

log = logging.getLogger(__name__)

DEVICE: Final = "/dev/cpu_dma_latency"
WINDOW_NS: Final = 10_000_000
BUSY_REQUESTS: Final = 6
"""So many requests within a window, 600 in a second, are worth it."""
QUIET_S: Final = 0.02
"""The wish is withdrawn after so many seconds with fewer than `BUSY_REQUESTS` requests."""

_AT_ONCE: Final = struct.pack("=i", 0)
_ANY_TIME: Final = struct.pack("=i", 2_000_000_000)  # PM_QOS_CPU_LATENCY_DEFAULT_VALUE in include/linux/pm_qos.h


class Wakefulness:
    """The wish of one mount.

    Args:
        device: what to write the wish to; where it cannot be opened, nothing is ever wished.
    """

    def __init__(self, device: str = DEVICE) -> None:
        self._window_began_ns = 0
        self._in_window = 0
        self._is_wished = False
        self._began = trio.Event()
        try:
            self._descriptor = os.open(device, os.O_WRONLY | os.O_CLOEXEC)
        except OSError as error:
            log.info("processors sleep as they like: %s", error)
            self._descriptor = -1
        else:
            self._write(_ANY_TIME)  # from the moment of opening it stands for zero otherwise

    @property
    def is_wished(self) -> bool:
        """Whether processors stay awake now."""
        return self._is_wished

    def note_request(self, now_ns: int) -> None:
        """A request came at a monotonic time."""
        self._in_window += 1
        if self._in_window < BUSY_REQUESTS or self._is_wished or self._descriptor < 0:
            return
        if now_ns - self._window_began_ns < WINDOW_NS:
            self._is_wished = True
            self._write(_AT_ONCE)
            self._began.set()
        self._in_window = 0
        self._window_began_ns = now_ns

    async def withdraw_when_quiet(self) -> None:
        """End the wish when requests end.  Runs until cancelled; the wish ends then, too."""
        try:
            while True:
                await self._began.wait()
                self._began = trio.Event()
                while True:
                    before = self._in_window
                    await trio.sleep(QUIET_S)
                    if self._in_window - before < BUSY_REQUESTS:
                        break
                self._withdraw()
        finally:
            self._withdraw()

    def _withdraw(self) -> None:
        if self._is_wished:
            self._is_wished = False
            self._in_window = 0
            self._window_began_ns = time.perf_counter_ns()
            self._write(_ANY_TIME)

    def _write(self, wish: bytes) -> None:
        try:
            os.write(self._descriptor, wish)
        except OSError as error:
            log.info("processors sleep as they like: %s", error)
            self.close()

    def close(self) -> None:
        """End the wish for good."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        self._is_wished = False
