"""The right ``vault.json`` of those that peers offer: the newest that the vault's key vouches for.

Peers cannot tell.  Somebody who has stolen the identity of a machine can put a header there that says it is newer, or
the one from before a password was changed.  So all that peers have, and had, are tried in order, newest first; what
does not verify is told and ignored.  Three outcomes are told apart:

- a header that the secret does not open, and that no key it opens vouches for: false, or from after a rotation of the
  key that left this secret out; the next is tried, and a line says so;
- one that the secret does not open, but whose key it has, and that is newer by what peers count and by what is written
  in it: the secret was removed, and is a wrong password;
- one that is older by the dates of its slots, though peers count it as newer: it is used if the secret opens nothing
  else, and a line says that the other one is there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from vaultfs.cli.core_warnings import show_warnings
from vaultfs.cli.dates import format_moment
from vaultfs.cli.output import counted, note, printable
from vaultfs.crypto.header import VaultHeader
from vaultfs.crypto.keys import Keyring
from vaultfs.crypto.slots import Secret
from vaultfs.errors import IntegrityError, VaultError, WrongPasswordError
from vaultfs.ids import PeerId
from vaultfs.remotes.locations import Location
from vaultfs.remotes.store import Store

if TYPE_CHECKING:
    from vaultfs.mesh.headers import OfferedHeader
    from vaultfs.mesh.store import MeshStore

_LARGEST_MEMORY_KIB: Final = 1 << 20
"""Of the key derivation in one of several headers: as much as vaultfs ever chooses by itself."""


class OpenedPeers:
    """Opens the stores of peers, and keeps them: they can tell more than other remotes.

    Attributes:
        stores: those that were opened.
    """

    def __init__(self) -> None:
        self.stores: Final[list[MeshStore]] = []

    def open(self, location: Location, options: Mapping[str, str]) -> Store:
        """The peers that a URL means, as `vaultfs.remotes.urls.StoreMaker`.

        Raises:
            VaultError: as `MeshStore.of_url`.
        """
        from vaultfs.mesh.store import MeshStore  # noqa: PLC0415  # loads an event loop and TLS

        show_warnings()  # for whom it waits
        self.stores.append(MeshStore.of_url(location, options))
        return self.stores[-1]

    @property
    def only(self) -> MeshStore | None:
        """The store that was opened; None if there is none."""
        return self.stores[0] if self.stores else None


class OpenedHeader(NamedTuple):
    """A header that is believed."""

    data: bytes
    header: VaultHeader
    keyring: Keyring


class _Tried(NamedTuple):
    offer: OfferedHeader
    header: VaultHeader


def open_newest(offers: Sequence[OfferedHeader], secret: Secret, describe: Callable[[PeerId], str]) -> OpenedHeader:
    """The newest header that the secret opens and that is as the holder of the key wrote it.

    Args:
        offers: at least one, the newest first.
        secret: of any slot.
        describe: names a peer.

    Raises:
        WrongPasswordError: the secret opens none, or only one that is older than another which its key vouches for.
        VaultError: what was wrong with the only one.
    """
    unopened: list[_Tried] = []
    wrong: VaultError | None = None
    for number, offer in enumerate(offers):
        try:
            header = _decoded(offer, is_only=len(offers) == 1)
            keyring = header.unlock(secret)
        except WrongPasswordError as error:
            wrong = error
            unopened.append(_Tried(offer, header))
        except VaultError as error:
            if len(offers) == 1:
                raise
            wrong = wrong or error
            _tell(offer, f"{str(error).removesuffix('; restore the file')}; it is ignored", describe)
        else:
            chosen = _Tried(offer, header)
            _judge(chosen, keyring, unopened, offers[number + 1 :], describe)
            return OpenedHeader(offer.data, header, keyring)
    assert wrong is not None, "there is at least one"
    raise wrong


def _decoded(offer: OfferedHeader, *, is_only: bool) -> VaultHeader:
    header = VaultHeader.decode(offer.data)
    if not is_only and any(
        slot.kdf is not None and slot.kdf.memory_kib > _LARGEST_MEMORY_KIB for slot in header.key_slots
    ):
        raise IntegrityError("trying the password would take more memory than vaultfs ever chooses")
    return header


def _judge(
    chosen: _Tried,
    keyring: Keyring,
    unopened: Sequence[_Tried],
    others: Sequence[OfferedHeader],
    describe: Callable[[PeerId], str],
) -> None:
    """Look at the others with the key that one has given.

    Raises:
        WrongPasswordError: one of them is genuine and newer, so what opens the chosen one was removed.
    """
    for each in unopened:
        if not _is_genuine(each.header, keyring):
            _tell(
                each.offer,
                "nothing proves that it is the vault's, and this password does not open it; it is ignored.  If the "
                "key was rotated on another machine, take the password from after that",
                describe,
            )
        elif _is_newer(each, chosen):
            raise WrongPasswordError(
                "wrong password, recovery key or key file: it was replaced or removed, by the newer vault.json that is "
                f"on {_names(each.offer, describe)}"
            )
        else:
            _tell(each.offer, "it is an older one that was put back there; it is ignored", describe)
    for offer in others:
        try:
            header = VaultHeader.decode(offer.data)
        except VaultError:  # it says that it is older, so nobody misses it
            continue
        if _newest_slot_s(header) > _newest_slot_s(chosen.header) and _is_genuine(header, keyring):
            moment = format_moment(_newest_slot_s(header) * 10**9)
            _tell(
                offer,
                f"it has a password from {moment}, newer than what is used now: if a password was changed then, "
                "somebody has put the older vault.json back",
                describe,
            )


def _is_genuine(header: VaultHeader, keyring: Keyring) -> bool:
    try:
        header.unlock_with(keyring)
    except IntegrityError:
        return False
    return True


def _is_newer(one: _Tried, other: _Tried) -> bool:
    """Whether a genuine header comes after another of the same key.

    What peers count can be made up by who may store there, and the dates of slots are those of clocks: so both have to
    say it, but that fewer of the same slots come after more needs no date.
    """
    slots = {slot.id for slot in one.header.slots}
    is_reduced = slots <= {slot.id for slot in other.header.slots}
    return one.offer.revision > other.offer.revision and (
        is_reduced or _newest_slot_s(one.header) >= _newest_slot_s(other.header)
    )


def _newest_slot_s(header: VaultHeader) -> int:
    return max(slot.created_s for slot in header.slots)


def _tell(offer: OfferedHeader, text: str, describe: Callable[[PeerId], str]) -> None:
    note(f"warning: the vault.json of epoch {offer.epoch} on {printable(_names(offer, describe))}: {printable(text)}")


def _names(offer: OfferedHeader, describe: Callable[[PeerId], str]) -> str:
    more = len(offer.peers) - 1
    return describe(offer.peers[0]) + (f" and {counted(more, 'other peer')}" if more else "")
