"""One question to several peers at once, and what comes of it."""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

import trio

from vaultfs.errors import (
    ExitCode,
    IntegrityError,
    ObjectMissingError,
    RemoteError,
    RemoteRefusedError,
    RemoteUnreachableError,
    VaultError,
)
from vaultfs.ids import PeerId

log = logging.getLogger(__name__)

_T = TypeVar("_T")

_MORE: Final = " more failed"
"""How a text ends that speaks for several already."""


class NotAllPeersError(RemoteError):
    """Some peers do not answer, where all have to.  Unlike what is unreachable it is not tried again soon."""

    errno = errno.EHOSTUNREACH
    exit_code = ExitCode.REMOTE_UNREACHABLE


@dataclass
class Answers(Generic[_T]):
    """What came.

    Attributes:
        values: by peer, of those that answered.
        failures: by peer, of those that did not.
    """

    values: dict[PeerId, _T] = field(default_factory=dict)
    failures: dict[PeerId, VaultError] = field(default_factory=dict)

    def require_any(self, what: str) -> None:
        """See that somebody answered.

        Args:
            what: was asked for; for the message.

        Raises:
            VaultError: nobody did; as `worst_of`.
        """
        if not self.values:
            raise worst_of(list(self.failures.values()), what)

    def require_all(self, what: str) -> None:
        """See that everybody answered, as who deletes has to: one that is away may have what others rely on.

        Args:
            what: was asked for; for the message.

        Raises:
            NotAllPeersError: somebody did not.
            VaultError: nobody did, as `worst_of`; or somebody said something else.
        """
        self.require_any(what)
        if self.failures:
            raise not_all(first_of(list(self.failures.values())))


def not_all(error: VaultError) -> VaultError:
    """The error of who deletes, and cannot ask all peers.

    Args:
        error: why not.
    """
    kind = NotAllPeersError if isinstance(error, RemoteUnreachableError) else type(error)
    return kind(
        f"{error}; a prune takes all peers, as one that is away may have snapshots that nobody else knows of; try "
        "again when all are there, and 'vaultfs peer remove' those that are gone for good"
    )


async def ask_all(peers: Iterable[PeerId], ask: Callable[[PeerId], Awaitable[_T]]) -> Answers[_T]:
    """Ask all of them at once; no failure of one disturbs another.

    Args:
        peers: whom.
        ask: asks one.
    """
    answers: Answers[_T] = Answers()

    async def ask_one(peer: PeerId) -> None:
        try:
            answers.values[peer] = await ask(peer)
        except VaultError as error:
            answers.failures[peer] = error
            if not isinstance(error, ObjectMissingError):
                log.info("%s", error)

    async with trio.open_nursery() as nursery:
        for peer in peers:
            nursery.start_soon(ask_one, peer)
    return answers


def first_of(errors: Sequence[VaultError]) -> VaultError:
    """One error for several: the first, with how many others failed."""
    text = str(errors[0])
    more = f"; {len(errors) - 1} more failed" if len(errors) > 1 and not text.endswith(_MORE) else ""
    return type(errors[0])(f"{text}{more}")


def worst_of(failures: Sequence[VaultError], what: str) -> VaultError:
    """What to say when no peer could give what was asked for.

    That it is nowhere can be said only if all have answered.  If one is out of reach, that comes first, as trying later
    may help.

    Args:
        failures: of all that were asked.
        what: was asked for.
    """
    if not failures:
        return RemoteUnreachableError(f"no peer can be asked for {what}; see 'vaultfs peer list'")
    for kind in (RemoteUnreachableError, RemoteRefusedError, IntegrityError):
        some = [error for error in failures if isinstance(error, kind)]
        if some:
            return first_of(some)
    others = [error for error in failures if not isinstance(error, ObjectMissingError)]
    if others:
        return first_of(others)
    return ObjectMissingError(f"none of the {len(failures)} peers has {what}")
