"""A vault, a remote, and prunes of it at any time one likes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from remotes.faults import FaultyStore
from remotes.memory_store import MemoryStore

from sync.fabricated import Fabricated, require_complete_heads, small_vault, target
from vaultfs.storage.layout import VaultLayout
from vaultfs.sync.keep_policy import KeepPolicy
from vaultfs.sync.ledger import Holdings, OpenLedger
from vaultfs.sync.prune import PruneReport, prune
from vaultfs.sync.remote_layout import segment_key
from vaultfs.sync.upload import Target, TargetOutcome, sync

DAY_NS = 24 * 3600 * 10**9
WEEK_NS = 7 * DAY_NS
START_NS = 1_700_000_000 * 10**9
LAST = KeepPolicy(last=1)


class Machine:
    """A machine with the vault, or with a ledger of its own for the same.

    Args:
        vault: the vault.
        memory: the remote.
        state: where its ledger is.
    """

    def __init__(self, vault: Fabricated, memory: MemoryStore, state: Path) -> None:
        self.vault = vault
        self.memory = memory
        self.store = FaultyStore(memory)
        self.store.before = lambda _operation, _key: require_complete_heads(memory)
        self.target: Target = target(vault, self.store, state)

    def sync(self, *, fork: bool = False) -> TargetOutcome:
        [outcome] = sync(self.vault.layout, [self.target], fork=fork)
        require_complete_heads(self.memory)
        return outcome

    def require_synced(self, **options: bool) -> None:
        outcome = self.sync(**options)
        assert outcome.error is None
        assert outcome.is_up_to_date

    def prune(
        self,
        policy: KeepPolicy = LAST,
        *,
        now_ns: int = START_NS,
        drop: Sequence[str] = (),
        grace_ns: int = WEEK_NS,
        dry_run: bool = False,
    ) -> PruneReport:
        ledger = self.target.ledger
        if dry_run:
            return self._prune(ledger.looking(self.store.name), policy, now_ns, drop, grace_ns, dry_run=True)
        with ledger.locked(self.store.name) as opened:
            report = self._prune(opened, policy, now_ns, drop, grace_ns, dry_run=False)
        require_complete_heads(self.memory)
        return report

    def _prune(
        self,
        ledger: OpenLedger,
        policy: KeepPolicy,
        now_ns: int,
        drop: Sequence[str],
        grace_ns: int,
        *,
        dry_run: bool,
    ) -> PruneReport:
        return prune(
            self.store,
            ledger,
            policy,
            now_ns=now_ns,
            layout=self.vault.layout,
            vault_id=self.vault.vault_id,
            drop=drop,
            grace_ns=grace_ns,
            dry_run=dry_run,
        )


def prune_by_url(memory: MemoryStore | FaultyStore, policy: KeepPolicy = LAST, **options: int) -> PruneReport:
    """As somebody does who has neither the vault nor a ledger."""
    ledger = OpenLedger(Holdings(), None, "")
    layout: VaultLayout | None = None
    return prune(memory, ledger, policy, layout=layout, **({"now_ns": START_NS, "grace_ns": WEEK_NS} | options))  # type: ignore[arg-type]


def synced_machine(scratch: Path) -> Machine:
    """Three snapshots and five segments on the remote; the newest snapshot needs the second, fourth and fifth."""
    scratch.mkdir(parents=True, exist_ok=True)
    machine = Machine(small_vault(scratch / "vault"), MemoryStore("memory:one"), scratch / "state")
    machine.require_synced()
    return machine


def kinds(memory: MemoryStore) -> dict[str, int]:
    """How many objects there are of each kind."""
    found: dict[str, int] = {}
    for key in memory.objects:
        parts = key.split("/")
        kind = parts[0] if parts[0] != "heads" or len(parts[1]) == 64 else f"heads/{parts[1]}"
        found[kind] = found.get(kind, 0) + 1
    return found


def stored_segments(machine: Machine) -> set[str]:
    return {name for name in machine.vault.segments if segment_key(name) in machine.memory.objects}
