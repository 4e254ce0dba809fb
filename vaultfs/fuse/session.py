"""One mounted folder from mount to unmount: `serve` returns when the kernel has let go of it.

Mounts (by hand with the INIT handshake, or as pyfuse3 does it), runs pyfuse3's workers, says when a program could use
the folder, and turns signals, a stop event and cancellation into a clean unmount.  The workers go on during that,
because the kernel writes its dirty pages then.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Final

import pyfuse3
import trio

from vaultfs.errors import MountError, UsageError
from vaultfs.fuse import kernel_mount
from vaultfs.fuse.admission import Admission
from vaultfs.fuse.handshake import InitFlag, Negotiated, Relay
from vaultfs.fuse.polling import NO_LIMIT, PollingWaiter, PyfuseTrio, installed
from vaultfs.fuse.wakefulness import Wakefulness

log = logging.getLogger(__name__)

TRICKS_VARIABLE: Final = "VAULTFS_TRICKS"
READ_AHEAD_KIB: Final = 1024
GRACE_S: Final = 5.0
_RETRY_S: Final = 0.1
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
MOST_WORKERS: Final = 16
MOST_WORKERS_ELSEWHERE: Final = 64
"""If some wait for a remote that does not answer, for seconds, others are still served."""


@dataclass(frozen=True, slots=True)
class Tricks:
    """Switches for what goes beyond a plain pyfuse3 mount; all but ``dont_mask`` are on.

    Attributes:
        hand_mount: mount without libfuse; without it there is no handshake either.
        killpriv_v2: negotiate FUSE_HANDLE_KILLPRIV_V2 (no security.capability request before each write).
        cache_symlinks: negotiate FUSE_CACHE_SYMLINKS.
        dont_mask: negotiate FUSE_DONT_MASK: the operations apply the umask, as default ACLs demand.
        polling: poll before sleeping.
        awake: as root, keep idle processors from deep sleep while requests come fast (with ``polling`` only).
        dirty_pages: as root, let the kernel collect as many dirty pages as for other filesystems.  Otherwise it stops
            writers of FUSE at 1 % of the memory, and random writes reach the vault in several passes.
        read_around: give the kernel the rest of a chunk that was read in part.
        read_ahead: as root, raise the kernel's read-ahead to READ_AHEAD_KIB.
    """

    hand_mount: bool = True
    killpriv_v2: bool = True
    cache_symlinks: bool = True
    dont_mask: bool = False
    polling: bool = True
    awake: bool = True
    read_ahead: bool = True
    read_around: bool = True
    dirty_pages: bool = True

    def overridden(self, environment: Mapping[str, str] = os.environ) -> Tricks:
        """Apply the variable VAULTFS_TRICKS, for example ``-polling,-killpriv_v2`` or ``none,polling``.

        Raises:
            UsageError: a word in it is no switch.
        """
        names = {each.name for each in fields(self)}
        changed: dict[str, bool] = {}
        for word in environment.get(TRICKS_VARIABLE, "").replace(",", " ").split():
            name = word.lstrip("+-")
            if word == "none":
                changed = dict.fromkeys(names, False)
            elif name in names:
                changed[name] = not word.startswith("-")
            else:
                raise UsageError(
                    f"{TRICKS_VARIABLE}: no switch is called {name!r}; there are {', '.join(sorted(names))}"
                )
        return replace(self, **changed)

    @property
    def init_flags(self) -> InitFlag:
        """The flags to negotiate in the handshake."""
        flags = InitFlag(0)
        flags |= InitFlag.HANDLE_KILLPRIV_V2 if self.killpriv_v2 else 0
        flags |= InitFlag.CACHE_SYMLINKS if self.cache_symlinks else 0
        flags |= InitFlag.DONT_MASK if self.dont_mask else 0
        return flags


@dataclass(frozen=True, slots=True)
class MountRequest:
    """What to mount where.

    Attributes:
        source: what ``mount`` shows as the device.
        mountpoint: an existing directory; absolute if the process is a daemon.
        read_only: mount read-only.
        allow_other: let other users in.
        options: words of ``-o``, split at commas.
        tricks: switches; see `Tricks`.
        reads_elsewhere: requests may have to wait for a remote.
    """

    source: str
    mountpoint: Path
    read_only: bool = False
    allow_other: bool = False
    options: tuple[str, ...] = ()
    tricks: Tricks = field(default_factory=Tricks)
    reads_elsewhere: bool = False


def _ignore(_: Negotiated) -> None:
    """Nobody wants to know."""


async def serve(
    operations: pyfuse3.Operations,
    mount: MountRequest,
    *,
    on_ready: Callable[[], None],
    on_negotiated: Callable[[Negotiated], None] = _ignore,
    stop: trio.Event | None = None,
    handle_signals: bool = True,
    grace_s: float = GRACE_S,
    admission: Admission | None = None,
    before_terminating: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint,
    on_over: Callable[[], None] = lambda: None,
) -> None:
    """Mount, serve, and return when unmounted.

    Args:
        operations: the filesystem.
        mount: what to mount where.
        on_ready: called in the event loop once a program can use the folder.
        on_negotiated: called before the first request other than INIT, with what kernel and filesystem agreed on.
        stop: unmount when it is set.
        handle_signals: unmount at SIGTERM, SIGINT and SIGHUP (main thread only).
        grace_s: seconds for which a busy folder is tried again; then it is detached lazily, and after as many seconds
            more the session ends although files are open.  Another signal ends either wait at once.
        admission: which requests do not count towards the limit; what its limit is is set here.
        before_terminating: awaited, while requests are still served, before the session ends although files are open;
            for ``grace_s`` at most.
        on_over: called when no more requests will come; some may still be under way, and hold up the return.

    Raises:
        MountError: the folder could not be mounted; nothing is left behind.
        Cancelled: after a clean unmount.
    """
    session = _Session(operations, mount, grace_s, admission or Admission(MOST_WORKERS), before_terminating, on_over)
    with ExitStack() as stack:
        # Before anything is mounted: the default is to die at once, and that would leave a dead mount behind.
        signals = stack.enter_context(trio.open_signal_receiver(*_SIGNALS)) if handle_signals else None
        await session.begin(stack, on_negotiated)
        await session.run(on_ready, trio.Event() if stop is None else stop, signals)


class _Session:
    """The state of one `serve`."""

    def __init__(
        self,
        operations: pyfuse3.Operations,
        mount: MountRequest,
        grace_s: float,
        admission: Admission,
        before_terminating: Callable[[], Awaitable[None]],
        on_over: Callable[[], None],
    ) -> None:
        self._before_terminating = before_terminating
        self._on_over = on_over
        admission.most = MOST_WORKERS_ELSEWHERE if mount.reads_elsewhere else MOST_WORKERS
        self._admission = admission
        self._operations = operations
        self._mount = mount
        self._grace_s = grace_s
        self._is_over = trio.Event()
        self._urgent = trio.Event()
        self._device_number = -1
        self._wakefulness: Wakefulness | None = None

    async def begin(self, stack: ExitStack, on_negotiated: Callable[[Negotiated], None]) -> None:
        """Mount and prepare pyfuse3; what must be undone goes on the stack."""
        mount, tricks = self._mount, self._mount.tricks
        options = kernel_mount.parse_options(
            mount.source, mount.options, read_only=mount.read_only, allow_other=mount.allow_other
        )
        waiter: PollingWaiter | None = None
        if tricks.polling:
            if tricks.awake:
                self._wakefulness = Wakefulness()
                stack.callback(self._wakefulness.close)
            waiter = PollingWaiter(note_request=self._wakefulness.note_request if self._wakefulness else None)
        relay: Relay | None = None
        if tricks.hand_mount:
            device = await trio.to_thread.run_sync(kernel_mount.mount, mount.mountpoint, options)
            stack.callback(self._detach_leftover)
            descriptor = device
            if tricks.init_flags:
                relay = Relay(device, tricks.init_flags, on_negotiated)
                stack.callback(relay.close)
                descriptor = relay.descriptor
            else:
                on_negotiated(Negotiated())
            try:
                if relay is not None:
                    await trio.to_thread.run_sync(relay.let_request_in)
                pyfuse3.init(self._operations, f"/dev/fd/{descriptor}", set())
            except BaseException:
                os.close(descriptor)  # later it is pyfuse3.close() that closes it
                raise
            stack.callback(pyfuse3.close, unmount=False)
        else:
            kernel_mount.check_mountpoint(mount.mountpoint)
            on_negotiated(Negotiated())
            try:
                pyfuse3.init(self._operations, str(mount.mountpoint), set(kernel_mount.libfuse_options(options)))
            except RuntimeError as error:
                raise MountError(f"cannot mount on {mount.mountpoint}: libfuse said why on stderr") from error
            stack.callback(self._detach_leftover)
            stack.callback(pyfuse3.close, unmount=False)
        stack.enter_context(installed(PyfuseTrio(waiter, relay, self._admission, self._on_over)))

    async def run(self, on_ready: Callable[[], None], stop: trio.Event, signals: AsyncIterator[int] | None) -> None:
        """Serve requests until the kernel ends the session."""
        try:
            async with trio.open_nursery() as helpers:
                if signals is not None:
                    helpers.start_soon(self._watch_signals, signals, stop)
                helpers.start_soon(self._announce, on_ready)
                helpers.start_soon(self._unmount_at_stop, stop)
                if self._wakefulness is not None:
                    helpers.start_soon(self._wakefulness.withdraw_when_quiet)
                with trio.CancelScope(shield=True):  # the workers are needed until the kernel has unmounted
                    try:
                        await pyfuse3.main(max_tasks=NO_LIMIT)
                    finally:
                        self._is_over.set()
                helpers.cancel_scope.cancel()
        except* MountError as group:
            raise _first(group) from None

    async def _announce(self, on_ready: Callable[[], None]) -> None:
        self._device_number = await trio.to_thread.run_sync(_probe, self._mount.mountpoint, abandon_on_cancel=True)
        if os.geteuid() == 0:
            settings: dict[str, int] = {}
            if self._mount.tricks.read_ahead:
                settings["read_ahead_kb"] = READ_AHEAD_KIB
            if self._mount.tricks.dirty_pages:
                settings["strict_limit"] = 0
                settings["max_ratio"] = 100
            await trio.to_thread.run_sync(_tune, self._device_number, settings)
        on_ready()

    async def _watch_signals(self, signals: AsyncIterator[int], stop: trio.Event) -> None:
        async for number in signals:
            log.info("%s: unmounting %s", signal.Signals(number).name, self._mount.mountpoint)
            if stop.is_set():
                self._urgent.set()
            stop.set()

    async def _unmount_at_stop(self, stop: trio.Event) -> None:
        """Wait for the stop event or for cancellation, and unmount while the workers still serve."""
        try:
            await stop.wait()
        finally:
            if not self._is_over.is_set():
                with trio.CancelScope(shield=True):
                    await self._unmount()

    async def _unmount(self) -> None:
        """Unmount; when busy for too long lazily; when still in use after that end the session all the same."""
        mountpoint = self._mount.mountpoint
        with trio.move_on_after(self._grace_s):
            while not self._urgent.is_set():
                try:
                    await trio.to_thread.run_sync(kernel_mount.unmount, mountpoint)
                except kernel_mount.MountBusyError:
                    await self._wait_for_end(_RETRY_S)
                except MountError as error:
                    log.warning("%s", error)  # someone else was faster, or it takes more rights: see below
                    break
                if await self._wait_for_end(_RETRY_S):
                    return
        log.warning("%s is still in use: detaching it", mountpoint)
        try:
            await trio.to_thread.run_sync(kernel_mount.sync_filesystem, mountpoint)
            await trio.to_thread.run_sync(partial(kernel_mount.unmount, mountpoint, lazy=True))
        except (MountError, OSError) as error:
            log.warning("%s: %s", mountpoint, error)
        if not await self._wait_for_end(self._grace_s):
            log.warning("%s: programs still have files open; they will see errors", mountpoint)
            with trio.move_on_after(self._grace_s):
                await self._before_terminating()
            if not self._is_over.is_set():
                pyfuse3.terminate()

    async def _wait_for_end(self, seconds: float) -> bool:
        """Wait until the session is over, the time is up, or a second signal came; return whether it is over."""
        with trio.move_on_after(seconds):
            async with trio.open_nursery() as nursery:

                async def cancel_when(event: trio.Event) -> None:
                    await event.wait()
                    nursery.cancel_scope.cancel()

                nursery.start_soon(cancel_when, self._urgent)
                nursery.start_soon(cancel_when, self._is_over)
        return self._is_over.is_set()

    def _detach_leftover(self) -> None:
        """After the descriptor is closed: detach the mount if it is still there, dead as it is now."""
        mountpoint = self._mount.mountpoint
        try:
            is_ours = mountpoint.stat().st_dev == self._device_number
        except OSError as error:
            is_ours = error.errno in {errno.ENOTCONN, errno.ECONNABORTED}
        if is_ours:
            try:
                kernel_mount.unmount(mountpoint, lazy=True)
            except MountError as error:
                log.warning("%s", error)


def _first(group: BaseExceptionGroup[MountError]) -> MountError:
    first: BaseException = group
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    assert isinstance(first, MountError)
    return first


def _probe(mountpoint: Path) -> int:
    """Use the folder as a program would, and return the number of its device; blocks until the daemon has answered."""
    os.statvfs(mountpoint)
    return mountpoint.stat().st_dev


def _tune(device_number: int, settings: Mapping[str, int]) -> None:
    """Change how the kernel treats the mount's pages (Documentation/ABI/testing/sysfs-class-bdi)."""
    directory = Path(f"/sys/class/bdi/{os.major(device_number)}:{os.minor(device_number)}")
    for name, value in settings.items():
        try:
            (directory / name).write_text(f"{value}\n", encoding="ascii")
        except OSError as error:  # read-only in many containers, or an older kernel; everything works, only slower
            log.info("%s stays as it is: %s", name, error)
