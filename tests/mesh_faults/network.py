"""Several hosts on one machine: network namespaces, and a switch between them that loses, delays and cuts.

Each host is a namespace with one interface, a TAP device, whose other end is here: so every frame passes through the
hands of the test, which can cut one direction only, at the n-th byte, on kernels that have neither netem nor filters.
Namespaces have no name and go with the last process in them; nothing of it is visible outside.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import itertools
import os
import random
import select
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

import pytest

MTU_BYTES: Final = 9000
_CLONE_NEWNET: Final = 0x40000000
_TUNSETIFF: Final = 0x400454CA
_IFF_TAP_WITHOUT_HEADER: Final = 0x1002
_BROADCAST: Final = b"\xff" * 6
_ETHERNET_BYTES: Final = 14
_TCP: Final = 6
_MOST_QUEUED_S: Final = 1.0
"""A line that is slow keeps so much, and drops the rest, as a router does."""
_FRAMES_AT_ONCE: Final = 64

_T = TypeVar("_T")
_libc: Final = ctypes.CDLL(None, use_errno=True)


@dataclass
class Line:
    """One direction between two hosts.

    Attributes:
        delay_s: every frame takes so long.
        loss: so many of all frames are lost, 0 to 1.
        is_cut: nothing passes.
        bytes_per_s: it is not faster; None: as fast as can be.
        cut_after_bytes: it is cut when so many bytes of TCP have passed from now on; None: it is not.
        twin: is cut together with it then; None: this direction alone.
        carried_bytes: of TCP that have passed.
    """

    delay_s: float = 0.0
    loss: float = 0.0
    is_cut: bool = False
    bytes_per_s: float | None = None
    cut_after_bytes: int | None = None
    twin: Line | None = field(default=None, repr=False)
    carried_bytes: int = 0
    free_s: float = field(default=0.0, repr=False)


@dataclass(frozen=True)
class Host:
    """One host.

    Attributes:
        name: for messages.
        address: of it.
        namespace: a path for `setns`.
    """

    name: str
    address: str
    namespace: str
    mac: bytes
    tap: int


class Network:
    """The switch, which is a thread, and the hosts that hang on it."""

    def __init__(self) -> None:
        self._hosts: list[Host] = []
        self._descriptors: list[int] = []
        self._lines: dict[tuple[str, str], Line] = {}
        self._lock = threading.Lock()
        self._waiting: list[tuple[float, int, int, bytes]] = []
        self._count = itertools.count()
        self._random = random.Random(1)
        self._wake_out, self._wake_in = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._is_over = False
        self._thread = threading.Thread(target=self._run, name="switch")
        self._thread.start()

    def host(self, name: str) -> Host:
        """A new host, connected."""
        number = len(self._hosts) + 1
        mac = bytes([2, 0, 0, 0, 0, number])
        address = f"10.77.0.{number}"

        def make() -> tuple[int, int]:
            if _libc.unshare(_CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "cannot make a network namespace")
            namespace = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            tap = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
            fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH22x", b"eth0", _IFF_TAP_WITHOUT_HEADER))
            for words in (
                ["link", "set", "eth0", "address", mac.hex(":"), "mtu", str(MTU_BYTES)],
                ["addr", "add", f"{address}/24", "dev", "eth0"],
                ["link", "set", "lo", "up"],
                ["link", "set", "eth0", "up"],
            ):
                subprocess.run(["ip", *words], check=True, timeout=30)
            return namespace, tap

        namespace, tap = _in_a_thread(make)
        self._descriptors += [namespace, tap]
        host = Host(name, address, f"/proc/{os.getpid()}/fd/{namespace}", mac, tap)
        with self._lock:
            for other in self._hosts:
                self._lines[name, other.name] = Line()
                self._lines[other.name, name] = Line()
            self._hosts.append(host)
        os.write(self._wake_in, b"x")
        return host

    def line(self, source: str, target: str) -> Line:
        """One direction; what is changed of it counts at once."""
        return self._lines[source, target]

    def lines(self, name: str) -> list[Line]:
        """All from and to a host."""
        return [line for ends, line in self._lines.items() if name in ends]

    def cut(self, name: str, *, is_cut: bool = True) -> None:
        """Pull the cable of a host, or put it in again."""
        for line in self.lines(name):
            line.is_cut = is_cut
            line.cut_after_bytes = None
            line.twin = None

    def cut_after(self, source: str, target: str, count: int) -> None:
        """Cut both directions when so many bytes have gone one way."""
        line = self.line(source, target)
        line.twin = self.line(target, source)
        line.cut_after_bytes = count

    def inside(self, name: str, work: Callable[[], _T]) -> _T:
        """Do something in the network of a host."""
        return _in_namespace(next(host for host in self._hosts if host.name == name), work)

    def link(self, name: str, state: str) -> None:
        """Set the interface of a host ``up`` or ``down``: it knows of that itself."""
        self.inside(name, lambda: subprocess.run(["ip", "link", "set", "eth0", state], check=True, timeout=30))

    def close(self) -> None:
        """Take it down."""
        self._is_over = True
        os.write(self._wake_in, b"x")
        self._thread.join()
        for descriptor in (*self._descriptors, self._wake_in, self._wake_out):
            os.close(descriptor)

    # --- the thread

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._wake_out, select.POLLIN)
        known: set[int] = set()
        while not self._is_over:
            with self._lock:
                hosts = list(self._hosts)
            for host in hosts:
                if host.tap not in known:
                    known.add(host.tap)
                    poll.register(host.tap, select.POLLIN)
            taps = {host.tap: host for host in hosts}
            timeout_s = max(0.0, self._waiting[0][0] - time.monotonic()) if self._waiting else 60.0
            for descriptor, _ in poll.poll(timeout_s * 1000):
                if descriptor == self._wake_out:
                    os.read(self._wake_out, 64)
                elif descriptor in taps:
                    self._take(taps[descriptor], hosts)
            now_s = time.monotonic()
            while self._waiting and self._waiting[0][0] <= now_s:
                _, _, tap, frame = heapq.heappop(self._waiting)
                _deliver(tap, frame)

    def _take(self, source: Host, hosts: list[Host]) -> None:
        for _ in range(_FRAMES_AT_ONCE):
            try:
                frame = os.read(source.tap, MTU_BYTES + 64)
            except OSError:  # nothing more, or the interface is down
                return
            for target in hosts:
                if target is not source and frame[:6] in {target.mac, _BROADCAST}:
                    self._pass_on(self._lines[source.name, target.name], target, frame)

    def _pass_on(self, line: Line, target: Host, frame: bytes) -> None:
        if line.is_cut or (line.loss and self._random.random() < line.loss):
            return
        payload_bytes = _tcp_payload_bytes(frame)
        if line.cut_after_bytes is not None:
            line.cut_after_bytes -= payload_bytes
            if line.cut_after_bytes < 0:
                line.is_cut = True
                if line.twin is not None:
                    line.twin.is_cut = True
                return
        now_s = time.monotonic()
        due_s = now_s + line.delay_s
        if line.bytes_per_s is not None:
            line.free_s = max(line.free_s, now_s)
            if line.free_s - now_s > _MOST_QUEUED_S:
                return
            line.free_s += len(frame) / line.bytes_per_s
            due_s += line.free_s - now_s
        line.carried_bytes += payload_bytes
        if due_s <= now_s and not self._waiting:
            _deliver(target.tap, frame)
        else:
            heapq.heappush(self._waiting, (due_s, next(self._count), target.tap, frame))


def _deliver(tap: int, frame: bytes) -> None:
    try:
        os.write(tap, frame)
    except OSError:  # the interface is down, or its queue is full: the frame is lost
        return


def _tcp_payload_bytes(frame: bytes) -> int:
    """How many bytes of a TCP stream are in a frame."""
    if frame[12:14] != b"\x08\x00" or frame[_ETHERNET_BYTES + 9] != _TCP:
        return 0
    header_bytes = (frame[_ETHERNET_BYTES] & 15) * 4
    total_bytes = int.from_bytes(frame[_ETHERNET_BYTES + 2 : _ETHERNET_BYTES + 4], "big")
    tcp_bytes = (frame[_ETHERNET_BYTES + header_bytes + 12] >> 4) * 4
    return total_bytes - header_bytes - tcp_bytes


def _in_namespace(host: Host, work: Callable[[], _T]) -> _T:
    """Do something in the network of a host; processes that it starts are there too."""

    def enter() -> _T:
        descriptor = os.open(host.namespace, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if _libc.setns(descriptor, _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"cannot enter the network of {host.name}")
        finally:
            os.close(descriptor)
        return work()

    return _in_a_thread(enter)


def _in_a_thread(work: Callable[[], _T]) -> _T:
    """Do something in a thread that ends: only it is in another namespace."""
    done: list[_T] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            done.append(work())
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, name="namespace")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return done[0]


def why_not() -> str | None:
    """Why there can be no namespaces here; None: there can."""
    if os.geteuid():
        return "network namespaces need root"
    if not Path("/dev/net/tun").exists():
        return "network namespaces need /dev/net/tun"
    try:
        subprocess.run(["ip", "-V"], check=True, capture_output=True, timeout=30)
        _in_a_thread(_try)
    except (OSError, subprocess.SubprocessError) as error:
        return f"network namespaces cannot be made: {error}"
    return None


def _try() -> None:
    if _libc.unshare(_CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@contextmanager
def networking() -> Iterator[Network]:
    """Have a network, where that is possible."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    network = Network()
    try:
        yield network
    finally:
        network.close()
