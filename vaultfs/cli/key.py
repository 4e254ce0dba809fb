"""``vaultfs key``: manage key slots, and rotate the master key."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vaultfs.cli.core_warnings import show_warnings
from vaultfs.cli.mounts import require_unmounted_vault, vault_at
from vaultfs.cli.output import emit_json, note, printable, say, table
from vaultfs.cli.progress import ProgressStyle
from vaultfs.cli.progress import progress as progress_of
from vaultfs.cli.secret_sources import (
    KeepOption,
    KeepOptions,
    NewPasswordOption,
    NewPasswordOptions,
    Prompt,
    SecretOption,
    SecretOptions,
    UnlockOption,
    UnlockOptions,
    obtain,
    obtain_kept,
    obtain_keyfile,
    obtain_new_password,
)
from vaultfs.cli.sizes import format_size, parse_size
from vaultfs.cli.spare_segments import lent_segments
from vaultfs.crypto.header import SlotInfo
from vaultfs.crypto.kdf import KdfParameters
from vaultfs.crypto.slots import Secret
from vaultfs.errors import UsageError
from vaultfs.vault.keyslots import add_slot, list_slots, remove_slot
from vaultfs.vault.rotation import Rotation
from vaultfs.vault.rotation import rotate as rotate_key


def add(
    vault: Path,
    /,
    *,
    recovery: bool = False,
    keyfile: Path | None = None,
    label: str | None = None,
    kdf_memory: str | None = None,
    secret: UnlockOption | None = None,
    new: NewPasswordOption | None = None,
    json: bool = False,
) -> int:
    """Add a key slot: another password, a recovery key or a key file.

    Args:
        vault: The vault's directory, not mounted.
        recovery: Make a recovery key and print it, once. Keep it on paper.
        keyfile: Let the contents of this file open the vault.
        label: Name of the new slot; its kind, and a number if need be, if not given.
        kdf_memory: Memory that every guess costs, at least 64M; as in the other slots if not given.
        secret: Unlocks the vault.
        new: The new password.
        json: Print JSON.
    """
    directory = require_unmounted_vault(vault, "key add")
    new = new or NewPasswordOptions()
    if sum((recovery, keyfile is not None, new != NewPasswordOptions())) > 1:
        raise UsageError("--recovery, --keyfile and a new password exclude each other: one slot has one secret")
    cost = guess_cost(kdf_memory)
    unlocking = obtain((secret or UnlockOptions()).plain(), Prompt(f"Password for {vault}"))
    text = ""
    if recovery:
        chosen, text = Secret.generate_recovery()
    elif keyfile is not None:
        chosen = obtain_keyfile(keyfile, "--keyfile")
    else:
        chosen = obtain_new_password(new, Prompt(f"Another password for {vault}", twice=True))
    warn_if_weak(chosen)
    name = label if label is not None else _free_label(chosen.kind, list_slots(directory))
    added = add_slot(directory, unlocking, chosen, label=name, kdf=cost)
    if json:
        emit_json(slot_json(added) | ({"recovery_key": text} if recovery else {}))
        return 0
    say(f"Added the key slot {added.label!r} ({added.kind}).")
    if recovery:
        say("Recovery key, shown only now; write it down and keep it where the password is not:")
        say(f"  {text}")
    return 0


def show(vault: Path, /, *, json: bool = False) -> int:
    """List the key slots. No secret is needed.

    Args:
        vault: The vault's directory; it may be mounted.
        json: Print JSON.
    """
    slots = list_slots(vault_at(vault))
    if json:
        emit_json({"slots": [slot_json(slot) for slot in slots]})
    else:
        table(
            ("LABEL", "KIND", "CREATED", "ID"),
            [(printable(slot.label), slot.kind, _day(slot.created_s), slot.id) for slot in slots],
        )
    return 0


def remove(vault: Path, label: str, /, *, secret: SecretOption | None = None, json: bool = False) -> int:
    """Remove a key slot; unlock with a secret that stays.

    Whoever knows the removed secret and kept a copy of the vault's old vault.json can still read the vault; 'vaultfs
    key rotate' ends that.

    Args:
        vault: The vault's directory, not mounted.
        label: Label or id of the slot.
        secret: Unlocks the vault.
        json: Print JSON.
    """
    directory = require_unmounted_vault(vault, "key remove")
    unlocking = obtain(secret or SecretOptions(), Prompt(f"Password for {vault}"))
    removed = remove_slot(directory, unlocking, label)
    if json:
        emit_json(slot_json(removed))
    else:
        say(f"Removed the key slot {removed.label!r} ({removed.kind}).")
    return 0


def rotate(
    vault: Path,
    /,
    *,
    yes: bool = False,
    wait: bool = False,
    kdf_memory: str | None = None,
    secret: SecretOption | None = None,
    keep: KeepOption | None = None,
    progress: ProgressStyle = "auto",
    json: bool = False,
) -> int:
    """Begin a new master key, so that whoever lost access really has none.

    The new key is in force when this returns. What the old one sealed is written again in the background while the
    vault is mounted, and then the old key is thrown away. Only the key slots whose secrets are given survive: that of
    the secret which unlocks, and those of the --keep options.

    Args:
        vault: The vault's directory, not mounted.
        yes: Let all other key slots go.
        wait: Write everything again now; an interrupted run goes on in the background of later mounts.
        kdf_memory: Memory that every guess costs, at least 64M; as before if not given.
        secret: Unlocks the vault.
        keep: Secrets of further slots that survive.
        progress: How to show progress with --wait.
        json: Print JSON.
    """
    directory = require_unmounted_vault(vault, "key rotate")
    survivors = obtain_kept(keep or KeepOptions())
    cost = guess_cost(kdf_memory)
    unlocking = obtain(secret or SecretOptions(), Prompt(f"Password for {vault}"))
    show_warnings()
    with (
        lent_segments(directory) as source,
        progress_of("write again", progress if wait else "none", resumable=True) as display,
    ):
        done = rotate_key(
            directory,
            unlocking,
            survivors,
            lose_others=yes,
            kdf=cost,
            rewrite=display if wait else None,
            source=source,
        )
    if json:
        emit_json(_rotation_json(done))
    else:
        _tell_rotation(done)
    return 0


def _rotation_json(done: Rotation) -> dict[str, Any]:
    return {
        "epoch": done.state.epoch,
        "kept": [slot_json(slot) for slot in done.kept],
        "lost": [slot_json(slot) for slot in done.lost],
        "old_segments": done.state.old_segments,
        "old_bytes": done.state.old_bytes,
        "snapshots": done.state.snapshots,
        "is_over": done.state.is_over,
    }


def _tell_rotation(done: Rotation) -> None:
    state = done.state
    say(f"The master key is new (epoch {state.epoch}).  It is in: {', '.join(repr(slot.label) for slot in done.kept)}.")
    if done.lost:
        say(f"These key slots are gone: {', '.join(repr(slot.label) for slot in done.lost)}.")
    if state.is_over:
        say("Nothing is sealed with an older key, and the older keys are gone.")
        return
    say(
        f"{format_size(state.old_bytes)} in {state.old_segments} segments are sealed with older keys.  They are "
        "written again while the vault is mounted; a backup then uploads as much."
    )
    if state.snapshots:
        say(f"{state.snapshots} snapshots need what they need as it is: the older keys stay until those are deleted.")


def guess_cost(kdf_memory: str | None) -> KdfParameters | None:
    """What a guess shall cost, from ``--kdf-memory``; None: as much as before.

    Args:
        kdf_memory: as written; how many passes take about a second with it is measured.

    Raises:
        UsageError: it is no size, or not from 64M to 4G.
    """
    if kdf_memory is None:
        return None
    size = parse_size(kdf_memory, "--kdf-memory")
    if not 64 << 20 <= size <= 4 << 30:
        raise UsageError(f"--kdf-memory: {kdf_memory} is not from 64M to 4G")
    return KdfParameters.calibrate(size >> 10)


def warn_if_weak(secret: Secret) -> None:
    """Tell the person what is weak about a new secret.

    Args:
        secret: as chosen.
    """
    weakness = secret.weakness()
    if weakness is not None:
        note(f"warning: {weakness}")


def slot_json(slot: SlotInfo) -> dict[str, Any]:
    """A key slot as JSON shows it.

    Args:
        slot: public facts only.
    """
    return {"id": slot.id, "label": slot.label, "kind": slot.kind, "created_s": slot.created_s}


def _free_label(kind: str, slots: tuple[SlotInfo, ...]) -> str:
    """``recovery``, or ``recovery 2`` and so on."""
    taken = {slot.label for slot in slots}
    return next(
        label for label in (kind, *(f"{kind} {number}" for number in range(2, len(taken) + 3))) if label not in taken
    )


def _day(moment_s: int) -> str:
    """The day of a moment; the header may hold any number, so one beyond the calendar is shown as it is."""
    try:
        return time.strftime("%Y-%m-%d", time.localtime(moment_s))
    except (OverflowError, ValueError, OSError):
        return str(moment_s)


SUBVERBS: Mapping[str, Callable[..., int]] = {"add": add, "list": show, "remove": remove, "rotate": rotate}
