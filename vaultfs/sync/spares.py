"""The spares on a remote as a prune sees them: what syncs of other machines rely on.

All are heeded, whatever their dates, because the clock of a machine that syncs may be wrong.  Old ones, of syncs that
never ended, are removed only after a deletion that has heeded them: what they named has to be given up anew before it
can be deleted, which takes another grace period.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from vaultfs.errors import IntegrityError, ObjectMissingError, RemoteError
from vaultfs.ids import SegmentName, VaultId
from vaultfs.remotes.store import Store
from vaultfs.sync.condemned import Spare, put_spare, read_spare
from vaultfs.sync.remote_layout import SPARED_PREFIX
from vaultfs.sync.remote_objects import MOST_OBJECTS, Tick

SPARE_NS: Final = 30 * 24 * 3600 * 10**9
"""A spare of a sync that was never ended protects so long, and in the first deletion after that."""
SKEW_NS: Final = 3600 * 10**9
"""A note from further in the future than this was written by a wrong clock, and is dated anew."""


class Spares:
    """Those of one remote.

    Args:
        store: the remote.
        vault_id: of the vault.
        now_ns: nanoseconds since 1970.
        tick: called meanwhile; may raise, to end it.
    """

    def __init__(self, store: Store, vault_id: VaultId, now_ns: int, tick: Tick) -> None:
        self._store: Final = store
        self._vault_id: Final = vault_id
        self._now_ns: Final = now_ns
        self._tick: Final = tick
        self._ages_ns: Final[dict[str, int]] = {}

    def read(self, tokens: Iterable[str]) -> set[SegmentName]:
        """What spares name.

        Raises:
            IntegrityError, FormatTooNewError: one cannot be read.
            RemoteError: as `Store.get`, or they name more than there can be.
        """
        found: set[SegmentName] = set()
        for token in sorted(tokens):
            spare = self._read(token)
            if spare is not None:
                found |= spare.segments
                self._ages_ns[token] = self._now_ns - spare.created_ns
            if len(found) > MOST_OBJECTS:
                raise RemoteError(
                    f"{self._store.name}: {SPARED_PREFIX} names more than {MOST_OBJECTS} segments, and no remote has "
                    "as many"
                )
        return found

    def remove_old(self) -> None:
        """Remove those that `read` found too old, and date those from the future anew, where they would never get old.

        Raises:
            IntegrityError, RemoteError: as `read`, or `Store.delete`.
        """
        for token, age_ns in self._ages_ns.items():
            if -SKEW_NS <= age_ns < SPARE_NS:
                continue
            spare = self._read(token) if age_ns < 0 else None
            if spare is not None:
                put_spare(self._store, self._vault_id, self._now_ns, spare.segments)
            self._store.delete(SPARED_PREFIX + token)

    def _read(self, token: str) -> Spare | None:
        try:
            return read_spare(self._store, token, self._tick)
        except ObjectMissingError:  # that sync is over
            return None
        except IntegrityError as error:
            raise IntegrityError(f"{error}; nothing was deleted; remove it when no machine is syncing") from error
