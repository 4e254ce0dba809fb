"""``vaultfs fsck``: check a vault that is not mounted, and repair it."""

from __future__ import annotations

from pathlib import Path

from vaultfs.cli.core_warnings import show_warnings
from vaultfs.cli.mounts import require_unmounted_vault
from vaultfs.cli.output import counted, emit_json, name_text, say
from vaultfs.cli.progress import progress
from vaultfs.cli.secret_sources import Prompt, SecretOption, SecretOptions, obtain
from vaultfs.cli.sizes import format_size
from vaultfs.cli.spare_segments import known_elsewhere, lent_segments
from vaultfs.errors import VaultLockedError
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.lock import read_holder
from vaultfs.vault.fsck import check
from vaultfs.vault.fsck_report import Finding, FsckReport


def run(
    vault: Path,
    /,
    *,
    repair: bool = False,
    metadata_only: bool = False,
    quiet: bool = False,
    json: bool = False,
    secret: SecretOption | None = None,
) -> int:
    """Check a vault that is not mounted: its metadata, and every chunk. Nothing is changed without --repair.

    A repair deletes nothing: what has lost its name goes to /lost+found in the vault, a file of which a part is lost
    stays, and a copy of what can be read is put beside. Make a backup of the vault's directory first.

    Args:
        vault: The vault's directory.
        repair: Put right what can be, and accept the vault as it lies there even if HEAD says otherwise.
        metadata_only: Do not read the data; damage in it is not found then.
        quiet: Show no progress.
        json: Show progress as JSON lines on standard error, and print the outcome as JSON.
        secret: Where the password comes from.
    """
    show_warnings()
    root = require_unmounted_vault(vault, "fsck")
    holder = read_holder(VaultLayout(root))
    if holder is not None:  # before anybody types a password
        raise VaultLockedError(f"the vault {vault} is in use by {holder}; unmount it or wait until it is done")
    unlocking = obtain(secret or SecretOptions(), Prompt(f"Password for {vault}"))
    with (
        lent_segments(root) as source,
        progress(f"fsck {vault}", "none" if quiet else "json" if json else "auto") as bar,
    ):
        report = check(
            root,
            unlocking,
            repair=repair,
            reads_data=not metadata_only,
            on_progress=bar,
            elsewhere=None if source is None else known_elsewhere(root),
            source=source,
        )
    if json:
        emit_json(report.as_json())
    else:
        _show(report)
    return report.exit_code


def _show(report: FsckReport) -> None:
    for finding in report.findings:
        say(_line(finding))
        if finding.saved:
            say(f"    {_text(finding.saved)}")
    for code, count in report.omitted.items():
        say(f"and {count} more of the kind {code}")
    if report.elsewhere_segments:
        amount = format_size(report.elsewhere_bytes)
        say(f"{counted(report.elsewhere_segments, 'segment')}, {amount}, only on a remote: not looked at")
    looked = f"{report.inodes} files and directories, {report.chunks} chunks, {report.segments} segments, "
    say(f"{looked}{format_size(report.read_bytes)} read: {_verdict(report)}")


def _line(finding: Finding) -> str:
    repaired = " [repaired]" if finding.is_repaired else ""
    return f"{finding.severity}: {_text(finding.message)}{repaired}"


def _text(text: str) -> str:
    return name_text(text.encode(errors="surrogateescape"))


def _verdict(report: FsckReport) -> str:
    if report.is_clean:
        return "nothing is wrong"
    count = f"{report.problems} problem{'' if report.problems == 1 else 's'}"
    if not report.is_repair:
        return f"{count}; --repair puts right what can be"
    unrepaired, lost = report.unrepaired, report.losses
    if not unrepaired and not lost:
        return f"{count}, all put right"
    return f"{count}, {unrepaired} not put right, {lost} with something lost for good"
