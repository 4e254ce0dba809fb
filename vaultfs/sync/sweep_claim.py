"""The claim by which one prune at a time deletes on a remote.

It is put first, and then everything is listed: of two prunes at least one sees the other's claim, and whoever sees one
gives way.  A claim that a crash has left behind is not told from that of a prune that is slow, but for those of this
machine, which the ledger knows; so another machine waits for a day.  Who holds one stops after half of that, by a clock
that goes on while the machine sleeps.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterable
from typing import Final

from vaultfs.errors import ObjectMissingError, RemoteError, VaultLockedError
from vaultfs.ids import VaultId
from vaultfs.remotes.store import Store
from vaultfs.sync.condemned import put_claim, read_claim
from vaultfs.sync.ledger import OpenLedger
from vaultfs.sync.remote_layout import SWEEPING_PREFIX
from vaultfs.sync.remote_objects import Tick, list_head_objects

CLAIM_NS: Final = 24 * 3600 * 10**9
"""So old is no claim of a prune that still runs, if clocks differ by less than half of it."""


def awake_or_asleep_ns() -> int:
    """Nanoseconds since some moment, those included in which the machine slept."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class SweepClaim:
    """The claim of one prune; `take` it before anything is deleted, and `release` it afterwards.

    Args:
        store: the remote.
        ledger: of this machine, open; no other process of it prunes this remote meanwhile.
        vault_id: whose remote it is.
        now_ns: nanoseconds since 1970.
        tick: called meanwhile; may raise, to end it.
    """

    def __init__(self, store: Store, ledger: OpenLedger, vault_id: VaultId, now_ns: int, tick: Tick) -> None:
        self._store: Final = store
        self._ledger: Final = ledger
        self._vault_id: Final = vault_id
        self._now_ns: Final = now_ns
        self._tick: Final = tick
        self._token: Final = secrets.token_hex(32)
        self._since_ns = 0
        self._left_behind: set[str] = set()

    def take(self) -> None:
        """Claim the deletion.

        Raises:
            VaultLockedError: another prune has it.
            IntegrityError, FormatTooNewError: a claim makes no sense.
            RemoteError: the remote failed, or does not list what was put just before.
        """
        self._since_ns = awake_or_asleep_ns()
        self._ledger.claim(self._token)
        put_claim(self._store, self._token, self._vault_id, self._now_ns)
        claims = list_head_objects(self._store, self._tick).sweeping
        if self._token not in claims:
            raise RemoteError(
                f"{self._store.name} does not list what was stored there just before, so prunes and syncs could not "
                "see each other; nothing was deleted; run 'vaultfs prune' again later"
            )
        for token in sorted(claims - {self._token}):
            self._require_old(token)
            self._left_behind.add(token)

    def _require_old(self, token: str) -> None:
        if token in self._ledger.holdings.claims:
            return
        try:
            since_ns = read_claim(self._store, token, self._tick)
        except ObjectMissingError:  # it has just ended
            since_ns = self._now_ns
        age_ns = self._now_ns - since_ns
        if age_ns >= CLAIM_NS:
            return
        if age_ns < -CLAIM_NS:  # by a clock that is wrong; it would stand until then
            put_claim(self._store, secrets.token_hex(32), self._vault_id, self._now_ns)
            self._store.delete(SWEEPING_PREFIX + token)
        raise VaultLockedError(
            f"another prune is deleting on {self._store.name}, or was interrupted; nothing was deleted; run "
            "'vaultfs prune' again when that has ended, or, if it never does, tomorrow"
        )

    def require_valid(self) -> None:
        """To be called before each deletion.

        Raises:
            RemoteError: it was taken so long ago that another prune may soon take it for left behind.
        """
        if awake_or_asleep_ns() - self._since_ns > CLAIM_NS // 2:
            raise RemoteError(
                f"deleting on {self._store.name} took too long, or this machine slept meanwhile; run 'vaultfs prune' "
                "again"
            )

    def release(self) -> None:
        """Let others delete, and remove the claims that crashes have left behind.

        Raises:
            RemoteError: as `Store.delete`.
        """
        for token in (self._token, *sorted(self._left_behind)):
            self._store.delete(SWEEPING_PREFIX + token)

    def remove_left_behind(self, claims: Iterable[str]) -> None:
        """Remove those of these claims that a crash has left behind, when nothing is deleted.

        Raises:
            IntegrityError, FormatTooNewError: a claim makes no sense.
            RemoteError: the remote failed.
        """
        for token in claims:
            with contextlib.suppress(VaultLockedError):  # it may be that of a prune which runs
                self._require_old(token)
                self._store.delete(SWEEPING_PREFIX + token)

    def give_up(self) -> None:
        """As `release`, after a failure; if the remote does not take it, this machine's next prune does it."""
        with contextlib.suppress(RemoteError):
            self._store.delete(SWEEPING_PREFIX + self._token)
