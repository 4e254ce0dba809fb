"""The table of verbs: name, module, one line of help.  Nothing here imports a verb's module."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Command = Callable[..., int]
"""What a verb runs: keyword and positional parameters are its command line; it returns the exit code."""


@dataclass(frozen=True)
class Verb:
    """A word after ``vaultfs``.

    Args:
        name: the word.
        group: the heading it stands under in ``vaultfs --help``.
        usage: its arguments, for the overview.
        summary: what it does, in one line.
    """

    name: str
    group: str
    usage: str
    summary: str

    def load(self) -> Command | Mapping[str, Command]:
        """Import the verb's module: its ``run``, or its ``SUBVERBS`` by name where it has any."""
        module: Any = importlib.import_module(f"vaultfs.cli.{self.name}")
        subverbs: Mapping[str, Command] | None = getattr(module, "SUBVERBS", None)
        if subverbs is not None:
            return subverbs
        run: Command = module.run
        return run


_USE = "Use a vault"
_KEYS = "Keys"
_CARE = "Check and keep"
_BACKUP = "Copies elsewhere"
_FILES = "Files, without mounting"
_MACHINE = "This machine"

VERBS: Mapping[str, Verb] = {
    verb.name: verb
    for verb in (
        Verb("init", _USE, "VAULT", "Create a vault."),
        Verb("mount", _USE, "VAULT DIR", "Mount a vault as a folder."),
        Verb("umount", _USE, "DIR", "Unmount; returns when everything is durable."),
        Verb("status", _USE, "[PATH]", "Show what is mounted, and what remotes lack."),
        Verb("passwd", _KEYS, "VAULT", "Change a password."),
        Verb("key", _KEYS, "add|list|remove|rotate VAULT", "Manage key slots, and rotate the master key."),
        Verb("fsck", _CARE, "VAULT", "Check a vault that is not mounted, and repair it."),
        Verb("scrub", _CARE, "VAULT|DIR", "Open every chunk, to find damage on the disk."),
        Verb("snapshot", _CARE, "create|list|delete VAULT|DIR", "Keep and list states of the whole vault."),
        Verb("remote", _BACKUP, "add|list|login|... VAULT", "Manage where a vault is copied to."),
        Verb("sync", _BACKUP, "VAULT|DIR [REMOTE...]", "Copy a vault to its remotes: only what they lack."),
        Verb("snapshots", _BACKUP, "VAULT [REMOTE]|URL", "List the snapshots of a vault, or of a remote."),
        Verb("prune", _BACKUP, "VAULT REMOTE|URL", "Give up old snapshots of a remote, and free their space."),
        Verb("verify", _BACKUP, "VAULT REMOTE|URL", "Check that a remote has all that it should."),
        Verb("restore", _BACKUP, "URL DEST [PATH...]", "Bring a vault, or files of it, back from a remote."),
        Verb("clone", _BACKUP, "URL VAULT", "Use a vault at once, and fetch from its remote what is read."),
        Verb("peer", _BACKUP, "init|serve|add|list|... VAULT", "Have other machines hold copies, and hold theirs."),
        Verb("mesh", _BACKUP, "replicate|status|... VAULT", "Have peers hold a vault, and see that they do."),
        Verb("put", _FILES, "VAULT LOCAL PATH", "Copy a local file or tree into a vault."),
        Verb("get", _FILES, "VAULT PATH LOCAL", "Copy a file or tree out of a vault."),
        Verb("cat", _FILES, "VAULT PATH...", "Write files of a vault to standard output."),
        Verb("ls", _FILES, "VAULT [PATH]", "List a directory of a vault."),
        Verb("rm", _FILES, "VAULT PATH...", "Remove files of a vault."),
        Verb("doctor", _MACHINE, "[PATH]", "Check whether this machine can mount vaults, and advise."),
        Verb("bench", _MACHINE, "[DIR]", "Measure encryption and disk speed in a few seconds."),
        Verb("completion", _MACHINE, "bash|zsh|fish", "Print a completion script for a shell."),
        Verb("version", _MACHINE, "", "Print the version."),
    )
}
