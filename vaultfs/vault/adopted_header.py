"""Which ``vault.json`` a vault has that takes over another history, and with which keys everything in it opens.

The remote's, if it is another one and not older: then passwords, and what a rotation has revoked, are as the other
device has set them.  Older keys that it has thrown away, and that this vault is sealed with, are added to it at first.
At the end they are kept for the snapshots alone (`vaultfs.vault.kept_keys`), because the header has to be the same on
all devices.
"""

from __future__ import annotations

from typing import NamedTuple

from vaultfs.crypto.header import VaultHeader
from vaultfs.crypto.keys import Keyring
from vaultfs.crypto.slots import Secret
from vaultfs.errors import IntegrityError, UsageError, WrongPasswordError


class AdoptedHeader(NamedTuple):
    """The header that a vault shall have.

    Attributes:
        header: from now on; the secret opens it.
        keyring: its keys; they open what is here, and what is adopted.
        at_the_end: the header in its place once the other history is the present; None: the same.
    """

    header: VaultHeader
    keyring: Keyring
    at_the_end: VaultHeader | None = None


def adopted_header(ours: VaultHeader, theirs: VaultHeader | None, secret: Secret) -> AdoptedHeader:
    """Decide.

    Args:
        ours: of this vault.
        theirs: of the remote; None if it is known to be older.
        secret: a person's.

    Raises:
        WrongPasswordError: the secret does not open the header that counts.
        UsageError: it does not open the keys of this vault, which are needed too; or both devices have rotated them.
        IntegrityError: a header is not as it was written.
    """
    if theirs is None or theirs.encode() == ours.encode() or theirs.epoch < ours.epoch:
        return AdoptedHeader(ours, ours.unlock(secret))
    if theirs.vault_id != ours.vault_id:
        raise UsageError("the remote holds another vault; nothing was changed")
    try:
        keyring = theirs.unlock(secret)
    except WrongPasswordError as error:
        raise WrongPasswordError(
            f"{error} of the vault as it is on the remote, where passwords or keys were changed; nothing was changed "
            "here.  Give one that opens it there"
        ) from None
    here = _keys_here(ours, keyring, secret)
    if set(here.epochs) <= set(keyring.epochs):
        return AdoptedHeader(theirs, keyring)
    known = set(keyring.epochs)
    missing = (each for each in here.masters if each.epoch not in known)
    larger, everything = theirs.with_older(Keyring(ours.vault_id, (*keyring.masters, *missing)))
    return AdoptedHeader(larger, everything, theirs)


def _keys_here(ours: VaultHeader, theirs: Keyring, secret: Secret) -> Keyring:
    """The keys of this vault's own header, with those of the remote's if they are enough."""
    if ours.epoch not in theirs.epochs:
        try:
            return ours.unlock(secret)
        except WrongPasswordError:
            raise UsageError(
                "the other device has rotated the vault's key and changed the password, so that no secret opens both "
                "the remote and what is here; nothing was changed.  Change the password here to that of the other "
                "device (vaultfs passwd), and adopt again"
            ) from None
    try:
        return ours.unlock_with(theirs)
    except IntegrityError:
        ours.unlock(secret)  # if this vault's header is damaged, that is what there is to tell
        raise UsageError(
            "both this device and the other one have rotated the vault's key, so the two cannot become one; nothing "
            "was changed.  Clone or restore the remote into another directory"
        ) from None
