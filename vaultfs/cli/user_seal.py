"""What encrypts the tokens of logins to drives, under a key of this user: for `vaultfs.remotes`, which cannot encrypt.

The key is 32 random bytes in ``$XDG_STATE_HOME/vaultfs/logins/key``, made at the first login; or those of the
credential ``vaultfs-token-key`` that systemd gives a service (systemd.exec(5)).
"""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

from platformdirs import user_state_path

from vaultfs.crypto.user_seal import UserSeal
from vaultfs.errors import IntegrityError
from vaultfs.storage.durable import fsync_directory, storage_errors, write_all

CREDENTIAL_NAME: Final = "vaultfs-token-key"
_KEY_BYTES: Final = 32
_FLAGS: Final = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def user_seal() -> UserSeal:
    """The seal of this user.

    Raises:
        IntegrityError: the file of its key holds no key.
        NoSpaceError, ReadOnlyError, StorageError: the key cannot be read or made.
    """
    return UserSeal(_key())


def _key() -> bytes:
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    if directory:
        given = _read(Path(directory) / CREDENTIAL_NAME)
        if given is not None:
            return given
    path = user_state_path("vaultfs", appauthor=False) / "logins" / "key"
    key = _read(path)
    return _make(path) if key is None else key


def _read(path: Path) -> bytes | None:
    with storage_errors(f"cannot read {path}"):
        try:
            descriptor = os.open(path, os.O_RDONLY | _FLAGS)
        except FileNotFoundError:
            return None
        with open(descriptor, "rb") as file:  # noqa: PTH123  # a descriptor
            key = file.read(_KEY_BYTES + 1) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""
    if len(key) != _KEY_BYTES:
        raise IntegrityError(
            f"{path} is not the key of your logins: it must have {_KEY_BYTES} bytes. Move it away and log in again",
        )
    return key


def _make(path: Path) -> bytes:
    """Make a key; or take that of another process which makes one at the same time.

    A name is given only to what is whole and on the disk, and is given once.
    """
    with storage_errors(f"cannot create {path}"):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, 0o600)
        try:
            try:
                write_all(descriptor, secrets.token_bytes(_KEY_BYTES))
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            with suppress(FileExistsError):
                os.link(temporary, path)
        finally:
            os.unlink(temporary)  # noqa: PTH108  # beside os.link
        fsync_directory(path.parent)
    key = _read(path)
    assert key is not None, "it was made just now"
    return key
