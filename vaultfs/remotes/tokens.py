"""The tokens of a login, in a sealed file: ``$XDG_CONFIG_HOME/vaultfs/logins/SERVICE.ACCOUNT``, for this user alone.

The file is the line ``vaultfs login 1`` and then what a `Seal` made of a JSON object, bound to the service and the
account.  What seals is brought by the program (`vaultfs.remotes.tokens_seal`); its key lies elsewhere.  One process at
a time changes a login: it holds ``$XDG_STATE_HOME/vaultfs/logins/SERVICE.ACCOUNT.lock``.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import msgspec
from platformdirs import user_config_path, user_state_path

from vaultfs.errors import IntegrityError, RemoteUnreachableError, UsageError
from vaultfs.remotes.tokens_seal import Seal
from vaultfs.storage.durable import atomic_replace, fsync_directory, storage_errors
from vaultfs.storage.private_files import exclusive_lock, make_private_directory

DEFAULT_ACCOUNT: Final = "default"
_ACCOUNT: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
_MAGIC: Final = b"vaultfs login 1\n"
_LARGEST_BYTES: Final = 1 << 18
_LOCK_PATIENCE_S: Final = 120.0
"""Whoever has the lock waits for a server meanwhile, with a time limit."""


class Login(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is known of a login.

    Attributes:
        client_id: of the application that was given access; public.
        client_secret: what the service wants of the application besides; None: nothing.
        refresh_token: the newest.
        access_token: the newest.
        issued_at_s: when the service gave the access token, since the epoch.
        renew_at_s: when it is time for another, since the epoch.
    """

    client_id: str
    client_secret: str | None
    refresh_token: str
    access_token: str
    issued_at_s: float
    renew_at_s: float

    def __repr__(self) -> str:
        return "Login(...)"


def require_account(account: str) -> str:
    """Check the name of an account.

    Raises:
        UsageError: it cannot be one.
    """
    if not _ACCOUNT.fullmatch(account):
        raise UsageError("the name of an account has at most 32 lower-case letters, digits, '_' and '-'")
    return account


class LoginFile:
    """The file of one login.

    Args:
        service: its name.
        account: what the user calls the account.
        seal: see above; is called at the first use.
    """

    def __init__(self, service: str, account: str, seal: Callable[[], Seal]) -> None:
        name = f"{service}.{require_account(account)}"
        self.path: Final = user_config_path("vaultfs", appauthor=False) / "logins" / name
        self._lock_path: Final = user_state_path("vaultfs", appauthor=False) / "logins" / f"{name}.lock"
        self._purpose: Final = f"vaultfs login {name}".encode("ascii")
        self._seal: Final = seal

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes, and other threads, from changing the login.

        Raises:
            RemoteUnreachableError: somebody else takes too long.
            StorageError: there can be no lock.
        """
        message = f"another process has been changing the login {self.path.name} for too long; try again"
        with exclusive_lock(self._lock_path, _LOCK_PATIENCE_S, RemoteUnreachableError(message)):
            yield

    def load(self) -> Login | None:
        """What is known; None if nobody has logged in.

        Raises:
            IntegrityError: the file is damaged, or was sealed with another key.
            StorageError: it cannot be read.
        """
        data = self._read()
        if data is None:
            return None
        seal = self._seal()
        try:
            if data.startswith(_MAGIC):
                return msgspec.json.decode(seal.open(self._purpose, data[len(_MAGIC) :]), type=Login)
        except (IntegrityError, msgspec.DecodeError, UnicodeDecodeError):
            pass
        raise IntegrityError(
            f"the login in {self.path} does not open: it is damaged, or the key of this user's logins is another one "
            "now; log in again",
        )

    def save(self, login: Login) -> None:
        """Replace what is known; it is on the disk when this returns.

        Raises:
            NoSpaceError, ReadOnlyError, StorageError: the old file is still there.
        """
        make_private_directory(self.path.parent)
        atomic_replace(self.path, _MAGIC + self._seal().seal(self._purpose, msgspec.json.encode(login)))

    def remove(self) -> None:
        """Forget the login.

        Raises:
            StorageError: it cannot be removed.
        """
        with storage_errors(f"cannot remove {self.path}"):
            self.path.unlink(missing_ok=True)
            if self.path.parent.is_dir():
                fsync_directory(self.path.parent)

    def _read(self) -> bytes | None:
        with storage_errors(f"cannot read {self.path}"):
            try:
                descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            except FileNotFoundError:
                return None
            with open(descriptor, "rb") as file:  # noqa: PTH123  # a descriptor
                return file.read(_LARGEST_BYTES) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""
