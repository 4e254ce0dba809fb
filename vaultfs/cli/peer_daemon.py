"""What runs while `vaultfs peer serve` does: the server, and around it systemd, the local network and confirmations."""

from __future__ import annotations

import ctypes
import logging
import socket
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from functools import partial
from json import dumps
from pathlib import Path
from typing import Final

import trio

from vaultfs.cli.core_warnings import show_warnings
from vaultfs.cli.output import error_line, say
from vaultfs.cli.service_notice import notify
from vaultfs.errors import ExitCode, ObjectMissingError, RemoteError, UsageError, VaultError
from vaultfs.ids import PeerId
from vaultfs.mesh.addresses import DEFAULT_PORT, Address
from vaultfs.mesh.confirmations import Confirmations
from vaultfs.mesh.discovery import announced
from vaultfs.mesh.grants import LARGEST_LABEL_CHARACTERS, Grants
from vaultfs.mesh.identity import Identity, format_peer_id
from vaultfs.mesh.pairing import Pairings
from vaultfs.mesh.places import confirmations_path, default_store, grants_path, pairing_path
from vaultfs.mesh.replicas import ReplicaStore
from vaultfs.mesh.server import close_listeners, open_listeners, serve, stop_at_signals
from vaultfs.storage.private_files import make_private_directory

log = logging.getLogger(__name__)

LARGEST_KEPT_BLOCK_BYTES: Final = 4 << 20
_M_MMAP_THRESHOLD: Final = -3  # <malloc.h>, mallopt(3)

CONFIRMATION_S: Final = 5.0
"""How often it is looked whether a person has confirmed a device: one stat."""

_GOODBYE_S: Final = 5.0
_ALL_IPV6: Final = Address("::", DEFAULT_PORT)
_ALL_IPV4: Final = Address("0.0.0.0", DEFAULT_PORT)  # noqa: S104  # others are to reach it


def run_daemon(
    identity: Identity,
    root: Path,
    quota_bytes: int | None,
    addresses: Sequence[Address],
    *,
    announce: bool,
    json: bool,
    on_listening: Callable[[], None] = lambda: None,
) -> int:
    """Serve until SIGTERM or Ctrl-C, and go down in order.

    Args:
        identity: of this machine.
        root: of the store, absolute.
        quota_bytes: of the store; None: as much as the disk has.
        addresses: where to listen; everywhere if there is none.
        announce: tell the local network.
        json: say as JSON where it listens.
        on_listening: called when it does.

    Raises:
        UsageError: it cannot listen there.
        VaultLockedError: another server has the store.
        VaultError: the store cannot be opened.
    """
    show_warnings(logging.INFO)
    give_back_large_blocks()
    make_private_directory(grants_path().parent)
    if root == default_store():  # another one may be on a disk that is not mounted now, and is not made then
        make_private_directory(root.parent)
    with closing(ReplicaStore.open(root, quota_bytes)) as store:
        for warning in store.warnings:
            log.warning("%s", warning)
        daemon = _Daemon(identity, store, announce=announce, json=json, on_listening=on_listening)
        trio.run(daemon.run, addresses)
        if daemon.failure is not None:
            raise daemon.failure
    return ExitCode.OK


def give_back_large_blocks() -> None:
    """Have the C library return blocks of megabytes to the kernel as soon as they are freed.

    By default it keeps blocks of up to 32 MiB once it has freed one, in each thread's part of the heap: four manifests
    of 16 MiB, checked one after another in four threads, then took 115 MiB instead of 80.  Another C library goes its
    own way.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, LARGEST_KEPT_BLOCK_BYTES)


class _Daemon:
    """The tasks of the daemon.

    Attributes:
        failure: why it could not begin.
    """

    def __init__(
        self,
        identity: Identity,
        store: ReplicaStore,
        *,
        announce: bool,
        json: bool,
        on_listening: Callable[[], None],
    ) -> None:
        self.failure: VaultError | None = None
        self._identity: Final = identity
        self._store: Final = store
        self._announce: Final = announce
        self._json: Final = json
        self._on_listening: Final = on_listening

    async def run(self, addresses: Sequence[Address]) -> None:
        """All of it."""
        try:
            listeners = await _listeners(addresses)
        except UsageError as error:
            self.failure = error
            return
        stop = trio.Event()
        try:
            bound = [_address_of(listener) for listener in listeners]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stop_at_signals, stop)
                nursery.start_soon(_tell_stopping, stop)
                nursery.start_soon(self._take_confirmations)
                await nursery.start(self._serve, listeners, stop, nursery.cancel_scope)
                if self._announce:
                    nursery.start_soon(announce_until_cancelled, self._identity.peer_id, bound)
                self._tell_listening(bound)
                notify("READY=1")
        finally:
            close_listeners(listeners)

    async def _serve(
        self,
        listeners: Sequence[trio.SocketListener],
        stop: trio.Event,
        all_tasks: trio.CancelScope,
        task_status: trio.TaskStatus[object],
    ) -> None:
        await serve(
            self._identity,
            self._store,
            Grants(grants_path()),
            Pairings(pairing_path()),
            listeners,
            stop=stop,
            label=socket.gethostname()[:LARGEST_LABEL_CHARACTERS],
            task_status=task_status,
        )
        all_tasks.cancel()

    def _tell_listening(self, bound: Sequence[Address]) -> None:
        own_id = format_peer_id(self._identity.peer_id)
        for address in bound:
            line = f"listening on {address} as {own_id}"
            say(dumps({"host": address.host, "port": address.port, "id": own_id}) if self._json else line)
        self._on_listening()

    async def _take_confirmations(self) -> None:
        confirmations = Confirmations(confirmations_path())
        told = ""
        while True:
            try:
                await trio.to_thread.run_sync(take_confirmations, confirmations, self._store)
                told = ""
            except VaultError as error:
                if str(error) != told:
                    told = str(error)
                    log.warning("%s", told)
            await trio.sleep(CONFIRMATION_S)


def take_confirmations(confirmations: Confirmations, store: ReplicaStore) -> None:
    """Tell the store which devices a person has confirmed.

    Args:
        confirmations: what is taken is struck out there.
        store: the replicas.

    Raises:
        VaultError: the file or the store cannot be read or written; what was not taken is tried again.
    """
    if not confirmations.is_there():
        return
    for each in confirmations.waiting():
        try:
            store.confirm_device(each.vault, each.device)
        except ObjectMissingError as error:
            log.warning("the device %s was not confirmed: %s", each.device.hex(), error)
        confirmations.remove(each)


async def announce_until_cancelled(peer_id: PeerId, bound: Sequence[Address]) -> None:
    """Announce the first port, and say goodbye at the end; a network that does not allow it is no reason to stop.

    Args:
        peer_id: of this machine.
        bound: where it listens.
    """
    port = bound[0].port
    announcement = announced(peer_id, port, [address.host for address in bound if address.port == port])
    try:
        await trio.to_thread.run_sync(announcement.__enter__)
    except (RemoteError, UsageError) as error:
        error_line(f"warning: {error}")
        return
    try:
        await trio.sleep_forever()
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + _GOODBYE_S):
            leave: Callable[[], object] = partial(announcement.__exit__, None, None, None)
            await trio.to_thread.run_sync(leave, abandon_on_cancel=True)


async def _listeners(addresses: Sequence[Address]) -> list[trio.SocketListener]:
    """Those that were asked for; if none was, everywhere, with or without IPv6.

    Raises:
        UsageError: it cannot listen there.
    """
    if addresses:
        return await open_listeners(addresses)
    listeners = await open_listeners([_ALL_IPV4])
    try:
        return [*await open_listeners([_ALL_IPV6]), *listeners]
    except UsageError as error:
        error_line(f"warning: {error}")
        return listeners
    except BaseException:
        close_listeners(listeners)
        raise


async def _tell_stopping(stop: trio.Event) -> None:
    await stop.wait()
    notify("STOPPING=1")


def _address_of(listener: trio.SocketListener) -> Address:
    host, port, *_ = listener.socket.getsockname()
    return Address(host, port)
