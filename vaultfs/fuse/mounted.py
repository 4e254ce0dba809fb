"""A mounted vault as a process: open, mount, serve, unmount, close."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

from vaultfs.crypto.slots import Secret
from vaultfs.errors import ExitCode, StorageError, UsageError, VaultError
from vaultfs.fuse import control, kernel_mount
from vaultfs.fuse.admission import Admission
from vaultfs.fuse.allocator import keep_freed_memory
from vaultfs.fuse.compacting import BackgroundCompaction
from vaultfs.fuse.daemon import daemonise
from vaultfs.fuse.durability import Durability
from vaultfs.fuse.filling import BackgroundFill
from vaultfs.fuse.handshake import Negotiated
from vaultfs.fuse.operations import VaultOperations
from vaultfs.fuse.read_around import ReadAround
from vaultfs.fuse.scrubbing import scrub_some
from vaultfs.fuse.session import MOST_WORKERS, MountRequest, Tricks, serve
from vaultfs.storage.segment_source import SegmentFiller, SegmentSource
from vaultfs.vault.compaction import NOTHING_MORE
from vaultfs.vault.filesystem import FileSystem
from vaultfs.vault.opening import open_filesystem
from vaultfs.vault.shipping import has_holes, is_changed, preparing
from vaultfs.vault.snapshot_deleting import deleting
from vaultfs.vault.snapshot_image import open_snapshot
from vaultfs.vault.snapshot_listing import all_snapshots
from vaultfs.vault.snapshot_making import creating
from vaultfs.vault.transfer_staging import sweep_unfinished

log = logging.getLogger(__name__)

LOCK_WAIT_S: Final = 10.0
"""umount(8) returns before the daemon is done; a mount right after it waits for the lock that long."""
IDLE_CHECK_S: Final = 1.0


class DaemonError(VaultError):
    """The daemon could not start; the message and the exit code are its own."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = ExitCode(exit_code)  # type: ignore[misc]  # the class's value is only a default


@dataclass(frozen=True, kw_only=True)
class _Mount:
    vault_path: Path
    mountpoint: Path
    source: str
    secret: Secret = field(repr=False)
    read_only: bool
    allow_other: bool
    idle_s: float | None
    commit_interval_s: float
    snapshot: str | None
    options: tuple[str, ...]
    foreground: bool
    log_path: Path
    source_of_segments: SegmentSource | None
    filler: SegmentFiller | None


def mount_vault(
    *,
    vault_path: Path,
    mountpoint: Path,
    source: str,
    secret: Secret,
    read_only: bool = False,
    allow_other: bool = False,
    idle_s: float | None = None,
    commit_interval_s: float = 5.0,
    snapshot: str | None = None,
    options: tuple[str, ...] = (),
    foreground: bool = False,
    log_path: Path,
    source_of_segments: SegmentSource | None = None,
    filler: SegmentFiller | None = None,
) -> None:
    """Mount a vault; returns when programs can use the folder, or with ``foreground`` when it was unmounted.

    Args:
        vault_path: the vault's directory, absolute.
        mountpoint: the folder, absolute, symlinks resolved.
        source: what ``mount`` shows as the device.
        secret: opens the vault.
        read_only: refuse every change.
        allow_other: let other users in.
        idle_s: unmount after so many seconds without a request.
        commit_interval_s: everything is durable after so many seconds.
        snapshot: mount this snapshot, read-only, instead of the present; the vault may be mounted elsewhere.
        options: words of ``-o`` for the kernel.
        foreground: serve in this process, and log to standard error.
        log_path: where a daemon logs; its directory exists.
        source_of_segments: has segments that are missing or damaged here; closed at the end.
        filler: brings those that are missing while the vault is mounted; closed at the end.

    Raises:
        VaultError: with the exit code that says what went wrong.
    """
    mount = _Mount(
        vault_path=vault_path,
        mountpoint=mountpoint,
        source=source,
        secret=secret,
        read_only=read_only or snapshot is not None,
        allow_other=allow_other,
        idle_s=idle_s,
        commit_interval_s=commit_interval_s,
        snapshot=snapshot,
        options=options,
        foreground=foreground,
        log_path=log_path,
        source_of_segments=source_of_segments,
        filler=filler,
    )
    if foreground:
        _run(mount, lambda: None)
        return
    start = daemonise(lambda report_ready: _run(mount, report_ready), log_file=log_path)
    if start.exit_code:
        raise DaemonError(start.message, start.exit_code)


def _run(mount: _Mount, report_ready: Callable[[], None]) -> None:
    """Everything from the password to the end of the process."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", force=True
    )
    keep_freed_memory()
    tricks = Tricks(dont_mask=True).overridden()
    with ExitStack() as stack:
        for lent in (mount.filler, mount.source_of_segments):
            if lent is not None:
                stack.callback(lent.close)
        fs = _open(mount)
        try:
            if not fs.is_read_only:
                sweep_unfinished(fs)
            failure: VaultError | None = None
            try:
                trio.run(_MountedVault(mount, fs, tricks, report_ready).serve)
            except* VaultError as group:
                failure = _first(group)
            if failure is not None:  # raised in the clause above it would be wrapped again
                raise failure
        finally:
            fs.close()
            log.info("unmounted %s", mount.mountpoint)


def _open(mount: _Mount) -> FileSystem:
    if mount.snapshot is not None:
        return open_snapshot(mount.vault_path, mount.secret, mount.snapshot, source=mount.source_of_segments)
    return open_filesystem(
        mount.vault_path,
        mount.secret,
        read_only=mount.read_only,
        lock_wait_s=LOCK_WAIT_S if kernel_mount_is_fresh(mount) else 0.0,
        purpose="mounted",
        source=mount.source_of_segments,
    )


def kernel_mount_is_fresh(mount: _Mount) -> bool:
    """Whether whoever holds the vault may be a daemon on its way out: nothing is mounted from it any more."""
    table = Path("/proc/self/mounts").read_bytes()
    return f" fuse.{kernel_mount.SUBTYPE} ".encode() not in table or os.fsencode(mount.source) not in table


def _first(group: BaseExceptionGroup[VaultError]) -> VaultError:
    """The error behind groups within groups, as nurseries make them."""
    first: VaultError | BaseExceptionGroup[VaultError] = group
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first


class _MountedVault:
    """The tasks of one mount."""

    def __init__(self, mount: _Mount, fs: FileSystem, tricks: Tricks, report_ready: Callable[[], None]) -> None:
        self._mount = mount
        self._fs = fs
        self._tricks = tricks
        self._report_ready = report_ready
        self._stop = trio.Event()
        self._snapshot_lock = trio.Lock()
        self._fill: BackgroundFill | None = None

    async def serve(self) -> None:
        """Mount, serve until unmounted, and return; the vault is then still open."""
        mount = self._mount
        self._durability = Durability(self._fs)
        admission = Admission(MOST_WORKERS)
        read_around = ReadAround(is_on=self._tricks.read_around, admission=admission)
        self._operations = VaultOperations(self._fs, self._durability, read_around)
        request = MountRequest(
            mount.source,
            mount.mountpoint,
            read_only=mount.read_only,
            allow_other=mount.allow_other,
            options=mount.options,
            tricks=self._tricks,
            reads_elsewhere=mount.source_of_segments is not None,
        )
        async with trio.open_nursery() as nursery:
            if not mount.read_only:
                nursery.start_soon(
                    self._durability.commit_regularly,
                    mount.commit_interval_s,
                    partial(kernel_mount.sync_filesystem, mount.mountpoint),
                    self._operations.handles,
                )
                nursery.start_soon(self._durability.sweep_when_idle, self._operations)
                nursery.start_soon(BackgroundCompaction(self._fs, self._durability, self._operations).run)
            if mount.filler is not None:
                self._fill = BackgroundFill(self._fs, mount.filler)
                nursery.start_soon(self._fill.run)
            if mount.idle_s is not None:
                nursery.start_soon(self._stop_when_idle, mount.idle_s)
            async with control.listening(mount.mountpoint, self._answer):
                try:
                    await serve(
                        self._operations,
                        request,
                        on_ready=self._ready,
                        on_negotiated=self._negotiated,
                        stop=self._stop,
                        admission=admission,
                        before_terminating=read_around.end,
                        on_over=partial(nursery.start_soon, self._let_go_of_remotes),
                    )
                finally:
                    read_around.close()
            nursery.cancel_scope.cancel()

    async def _let_go_of_remotes(self) -> None:
        """Reads of programs that were killed may still wait for a remote; nobody wants their answers any more."""
        for lent in (self._mount.filler, self._mount.source_of_segments):
            if lent is not None:
                await trio.to_thread.run_sync(lent.close, abandon_on_cancel=True)

    def _negotiated(self, negotiated: Negotiated) -> None:
        log.info("kernel and filesystem agreed on %s", negotiated)

    def _ready(self) -> None:
        log.info("mounted %s on %s", self._mount.vault_path, self._mount.mountpoint)
        self._report_ready()

    async def _stop_when_idle(self, idle_s: float) -> None:
        """Unmount when there was no request, and no open file, for so long."""
        idle_since = trio.current_time()
        seen = -1
        while True:
            await trio.sleep(min(IDLE_CHECK_S, idle_s / 4))
            if self._operations.requests != seen or len(self._operations.handles):
                seen = self._operations.requests
                idle_since = trio.current_time()
            elif trio.current_time() - idle_since >= idle_s:
                log.info("nobody used %s for %g s", self._mount.mountpoint, idle_s)
                self._stop.set()
                return

    async def _answer(self, verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """The control socket's verbs.  What fails is told to who asked; it must not end the daemon."""
        try:
            with self._fs.database_safe():
                return await self._answer_verb(verb, arguments)
        except OSError as error:
            raise StorageError(f"{verb}: {error.strerror or error}") from error

    async def _answer_verb(self, verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        if verb == "status":
            return {
                **self._fs.status(),
                "pid": os.getpid(),
                "log": None if self._mount.foreground else str(self._mount.log_path),
                "requests": self._operations.requests,
                "open_handles": len(self._operations.handles),
                "commit_interval_s": self._mount.commit_interval_s,
                "snapshot": self._mount.snapshot,
                "changed_since_snapshot": is_changed(self._fs),
                "fill": None if self._fill is None else self._fill.state(),
            }
        if verb == "commit":
            if not self._mount.read_only:
                await self._durability.commit()
            return {}
        if verb == "scrub":
            return await scrub_some(self._fs, arguments)
        if verb == "sync-prepare" or verb.startswith("snapshot-"):
            return await self._answer_snapshot(verb, arguments)
        raise UsageError(f"the daemon knows no verb {verb!r}")

    async def _answer_snapshot(self, verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """The verbs on snapshots; one at a time, the others wait."""
        if self._mount.snapshot is not None:
            raise UsageError(
                f"{self._mount.mountpoint} shows snapshot {self._mount.snapshot}; name the vault, or a folder that "
                "shows its present"
            )
        async with self._snapshot_lock:
            if verb == "sync-prepare":
                return await self._prepare_sync()
            if verb == "snapshot-create":
                if not self._mount.read_only:
                    await self._collect_pages()
                return asdict(await self._durability.run(creating(self._fs, str(arguments.get("label", "")))))
            if verb == "snapshot-list":
                return {"snapshots": [asdict(info) for info in all_snapshots(self._fs)]}
            if verb == "snapshot-delete":
                return asdict(await self._durability.run(deleting(self._fs, str(arguments.get("snapshot", "")))))
        raise UsageError(f"the daemon knows no verb {verb!r}")

    async def _prepare_sync(self) -> dict[str, Any]:
        """A snapshot that a sync can carry away."""
        await self._collect_pages()
        if has_holes(self._fs):
            compaction = BackgroundCompaction(self._fs, self._durability, self._operations, NOTHING_MORE)
            while await compaction.step():
                pass
        info, is_new = await self._durability.run(preparing(self._fs))
        return {**asdict(info), "is_new": is_new}

    async def _collect_pages(self) -> None:
        """Have the kernel hand over what programs wrote and it still holds.

        Raises:
            StorageError: it cannot; the vault may be full.
        """
        try:
            await trio.to_thread.run_sync(kernel_mount.sync_filesystem, self._mount.mountpoint)
        except OSError as error:
            raise StorageError(
                f"{self._mount.mountpoint}: the kernel cannot hand over its dirty pages: {error}"
            ) from error
