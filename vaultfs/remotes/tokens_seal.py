"""What encrypts the tokens of logins: the program brings it, once, as nothing in `vaultfs.remotes` can encrypt.

It is made when the first token is read or written, so a vault without drives pays nothing for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from vaultfs.errors import RemoteRefusedError


class Seal(Protocol):
    """Encrypts with a key of this user."""

    def seal(self, purpose: bytes, data: bytes) -> bytes:
        """Encrypt and authenticate.

        Args:
            purpose: public; bound into what comes out.
            data: what to hide.
        """
        ...

    def open(self, purpose: bytes, sealed: bytes) -> bytes:
        """Decrypt and check.

        Raises:
            IntegrityError: it was not sealed so, or with another key.
        """
        ...


_makers: Final[list[Callable[[], Seal]]] = []


def bring_seal(maker: Callable[[], Seal]) -> None:
    """Say what makes the seal of this process; the newest counts.

    Args:
        maker: raises errors of vaultfs.
    """
    _makers[:] = [maker]


def brought_seal() -> Seal:
    """The seal of this process.

    Raises:
        RemoteRefusedError: the program that runs brought none.
        VaultError: it cannot be made.
    """
    if not _makers:
        raise RemoteRefusedError("this program cannot open the logins to drives; the command vaultfs can")
    return _makers[0]()
