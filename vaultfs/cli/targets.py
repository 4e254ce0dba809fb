"""What the verbs about remotes share: which vault is meant, which of its remotes, how stores are opened and left."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Annotated, Final, Self

from cyclopts import Parameter

from vaultfs.cli.interrupts import Interrupts
from vaultfs.cli.live import daemon_of, request
from vaultfs.cli.mounts import LiveMount, vault_at
from vaultfs.cli.sizes import parse_size
from vaultfs.errors import UsageError
from vaultfs.remotes.configured import Remote, load_remotes
from vaultfs.remotes.counting import CountingStore
from vaultfs.remotes.limiting import LimitedStore, TokenBucket
from vaultfs.remotes.store import Store
from vaultfs.remotes.urls import StoreMaker, open_store
from vaultfs.storage.layout import VaultLayout
from vaultfs.sync.workers import MOST_CONNECTIONS, StoppedError

OptionWords = Annotated[list[str] | None, Parameter(name=("--option", "-o"))]
"""``--option KEY=VALUE``, as often as need be."""

_OPTION: Final = re.compile(r"[a-z][a-z0-9_-]*")
_GRACE_S: Final = 3.0
"""Enough for what is under way with a server that answers."""


def vault_of(path: Path) -> tuple[VaultLayout, LiveMount | None]:
    """The vault that a path means, and the mount whose daemon serves its present, if there is one that answers.

    Args:
        path: a vault, or a folder where one is mounted.

    Raises:
        NotAVaultError: it is neither.
        VaultError: the folder's daemon does not answer.
    """
    mount = daemon_of(path)
    if mount is None:
        return VaultLayout(vault_at(path)), None
    return VaultLayout(Path(request(mount, "status")["vault"])), mount


def chosen_remotes(layout: VaultLayout, names: Sequence[str] = ()) -> list[Remote]:
    """The vault's remotes with these names, in the order of the list; all of them if no name is given.

    Args:
        layout: the vault.
        names: as written.

    Raises:
        UsageError: the vault has no remote, or none of a name.
        IntegrityError: the list is damaged.
    """
    remotes = load_remotes(layout)
    if not remotes:
        raise UsageError(f"{layout.root} has no remote; add one with 'vaultfs remote add {layout.root} NAME URL'")
    known = {remote.name for remote in remotes}
    for name in names:
        if name not in known:
            raise UsageError(f"there is no remote {name!r}; {layout.root} has: {', '.join(sorted(known))}")
    return [remote for remote in remotes if not names or remote.name in names]


def parse_options(words: Sequence[str] | None) -> dict[str, str]:
    """The values of ``--option key=value``.

    Args:
        words: as written.

    Raises:
        UsageError: not of that form, or a key twice.
    """
    options: dict[str, str] = {}
    for word in words or ():
        key, equals, value = word.partition("=")
        if not equals or not _OPTION.fullmatch(key):
            # What stands there may be a secret that was meant for somewhere else, so it is not shown.
            raise UsageError("--option: write it as KEY=VALUE, as in --option region=eu-central-1")
        if key in options:
            raise UsageError(f"--option: {key} is given twice")
        options[key] = value
    return options


def parse_rate(text: str | None) -> int | None:
    """Bytes per second from ``--bwlimit``; None: no limit.

    Args:
        text: as written.

    Raises:
        UsageError: it is no size, or zero.
    """
    if text is None:
        return None
    rate = parse_size(text, "--bwlimit")
    if rate == 0:
        raise UsageError("--bwlimit: must be more than 0")
    return rate


def check_connections(connections: int) -> None:
    """Refuse numbers of connections that make no sense.

    Args:
        connections: as written.

    Raises:
        UsageError: it is not from 1 to `MOST_CONNECTIONS`.
    """
    if not 1 <= connections <= MOST_CONNECTIONS:
        raise UsageError(f"--connections: {connections} is not from 1 to {MOST_CONNECTIONS}")


class Stores:
    """The stores of one command: counted, limited together, and closed at the end.  A context manager.

    Args:
        bytes_per_s: of all of them together, in both directions; None: no limit.
    """

    def __init__(self, bytes_per_s: int | None = None) -> None:
        self._bucket = None if bytes_per_s is None else TokenBucket(bytes_per_s)
        self._opened: list[Store] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with ExitStack() as stack:
            for store in self._opened:
                stack.callback(store.close)

    def open(
        self, url: str, options: Mapping[str, str], makers: Mapping[str, StoreMaker] | None = None
    ) -> CountingStore:
        """The store that a URL means; nothing is asked of it yet.

        Args:
            url: of the remote.
            options: settings of its kind.
            makers: open the stores of some schemes in place of what else would.

        Raises:
            VaultError: it makes no sense, or what it needs is not installed.
        """
        store = open_store(url, options, makers=makers or {})
        self._opened.append(store)
        if self._bucket is not None:
            store = LimitedStore(store, sending=self._bucket, receiving=self._bucket)
        return CountingStore(store)

    @contextmanager
    def interruptible(self) -> Iterator[Callable[[], bool]]:
        """Ctrl-C and SIGTERM end what runs in threads, and then this; gives what says whether one came.

        What does not end in time is left alone: the process ends.  All that runs in this may be killed at any moment.

        Raises:
            KeyboardInterrupt, Terminated: one came.
        """
        with Interrupts(_GRACE_S) as interrupts:

            def is_stopped() -> bool:
                if interrupts.is_asked:
                    self.hurry()
                return interrupts.is_asked

            try:
                yield is_stopped
            except StoppedError:
                interrupts.check()
                raise
            interrupts.check()

    def hurry(self) -> None:
        """Whoever waits for its turn, or to try something again, waits no more."""
        if self._bucket is not None:
            self._bucket.open()
        for store in self._opened:
            store.close()
