"""``vaultfs passwd``: change a password."""

from __future__ import annotations

from pathlib import Path

from vaultfs.cli.key import guess_cost, slot_json, warn_if_weak
from vaultfs.cli.mounts import require_unmounted_vault
from vaultfs.cli.output import emit_json, say
from vaultfs.cli.secret_sources import (
    NewPasswordOption,
    NewPasswordOptions,
    Prompt,
    SecretOption,
    SecretOptions,
    obtain,
    obtain_new_password,
)
from vaultfs.errors import UsageError
from vaultfs.vault.keyslots import change_password


def run(
    vault: Path,
    /,
    *,
    slot: str | None = None,
    kdf_memory: str | None = None,
    secret: SecretOption | None = None,
    new: NewPasswordOption | None = None,
    json: bool = False,
) -> int:
    """Change a password of a vault that is not mounted.

    No data is written again. Whoever knows the old password and kept a copy of the vault's old vault.json can still
    read the vault; 'vaultfs key rotate' ends that.

    Args:
        vault: The vault's directory.
        slot: Label of the key slot that gets the new password; the one that the old password opens if not given. With
            it, a recovery key or a key file can replace a password that was forgotten.
        kdf_memory: Memory that every guess at the new password costs, at least 64M; as before if not given.
        secret: Unlocks the vault.
        new: The new password.
        json: Print JSON.
    """
    directory = require_unmounted_vault(vault, "passwd")
    options = secret or SecretOptions()
    if slot is None and (options.keyfile is not None or options.recovery_key_fd is not None):
        raise UsageError("say with --slot which password shall change; 'vaultfs key list' shows the key slots")
    cost = guess_cost(kdf_memory)
    old = obtain(options, Prompt(f"Password for {vault}"))
    chosen = obtain_new_password(new or NewPasswordOptions(), Prompt(f"New password for {vault}", twice=True))
    warn_if_weak(chosen)
    changed = change_password(directory, old, chosen, label=slot, kdf=cost)
    if json:
        emit_json(slot_json(changed))
    else:
        say(f"Changed the password of the key slot {changed.label!r}.")
    return 0
