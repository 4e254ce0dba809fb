"""Makes request handlers of plain methods: refuses changes where there are none, and translates errors.

Whatever goes wrong, the program gets an errno and the daemon lives.  A change that broke in the middle stops the vault,
because half of it must never reach the disk.
"""

from __future__ import annotations

import errno
import functools
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, Final, ParamSpec, Protocol, TypeVar, cast

from pyfuse3 import FUSEError

from vaultfs.errors import VaultError
from vaultfs.metadata.database import database_failures
from vaultfs.vault.filesystem import FileSystem

log = logging.getLogger(__name__)

_Database: Final = database_failures()


class Answering(Protocol):
    """What has request handlers.

    Attributes:
        fs: the vault.
        requests: how many there were.
    """

    fs: FileSystem
    requests: int

    @property
    def is_stopped(self) -> bool:
        """Whether changes are refused."""


P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S", bound=Answering)


def reading(
    method: Callable[Concatenate[S, P], R],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, R]]:
    """A handler that changes nothing."""
    return _handler(method, change=False)


def changing(
    method: Callable[Concatenate[S, P], R],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, R]]:
    """A handler that changes something."""
    return _handler(method, change=True)


def _handler(
    method: Callable[Concatenate[S, P], R], *, change: bool
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, R]]:
    @functools.wraps(method)
    async def handler(self: S, *args: P.args, **kwargs: P.kwargs) -> R:
        self.requests += 1
        try:
            if change and self.is_stopped:
                self.fs.check_writable()
            return method(self, *args, **kwargs)
        except VaultError as error:
            raise FUSEError(error.errno) from None
        except _Database as error:
            raise FUSEError(self.fs.committer.fail(error).errno) from None
        except FUSEError:
            raise
        except Exception as error:
            # A fault of ours.
            log.exception("%s failed", method.__name__)
            if change:
                self.fs.committer.fail(error)
            raise FUSEError(errno.EIO) from None

    return cast("Callable[Concatenate[S, P], Coroutine[Any, Any, R]]", handler)
