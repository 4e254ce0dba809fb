"""``vaultfs scrub``: open every chunk, to find damage on the disk."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from vaultfs.cli.core_warnings import show_warnings
from vaultfs.cli.live import request
from vaultfs.cli.mounts import LiveMount, mount_at, vault_at
from vaultfs.cli.output import counted, emit_json, name_text, say
from vaultfs.cli.progress import Progress, progress
from vaultfs.cli.secret_sources import Prompt, SecretOption, SecretOptions, obtain
from vaultfs.cli.sizes import format_size
from vaultfs.cli.spare_segments import known_elsewhere
from vaultfs.errors import VaultLockedError
from vaultfs.ids import ChunkId, InodeId
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.lock import read_holder
from vaultfs.vault.scrub import DamagedRange, ScrubReport, scrub

_SHOWN = 1000
"""Damaged ranges that are printed; JSON has them all."""


def run(
    path: Path,
    /,
    *,
    quiet: bool = False,
    json: bool = False,
    secret: SecretOption | None = None,
) -> int:
    """Open every chunk of a vault, and name the files and bytes that are damaged. Nothing is changed.

    A mounted vault is asked through its daemon: no password is needed, and programs go on meanwhile.

    Args:
        path: A vault that is not mounted, or a mounted folder.
        quiet: Show no progress.
        json: Show progress as JSON lines on standard error, and print the outcome as JSON.
        secret: Where the password comes from, if the vault is not mounted.
    """
    mount = mount_at(path)
    bar = progress(f"scrub {path}", "none" if quiet else "json" if json else "auto")
    report = _unmounted(path, secret, bar) if mount is None else _mounted(mount, bar)
    if json:
        emit_json(report.as_json())
    else:
        _show(report)
    return report.exit_code


def _unmounted(path: Path, options: SecretOption | None, bar: Progress) -> ScrubReport:
    show_warnings()
    vault = vault_at(path)
    holder = read_holder(VaultLayout(vault))
    if holder is not None:  # before anybody types a password
        raise VaultLockedError(f"the vault {path} is in use by {holder}; name the folder where it is mounted")
    secret = obtain(options or SecretOptions(), Prompt(f"Password for {path}"))
    known = known_elsewhere(vault)
    with bar:
        return scrub(vault, secret, on_progress=bar, elsewhere=() if known is None else known.names)


def _mounted(mount: LiveMount, bar: Progress) -> ScrubReport:
    report = ScrubReport()
    segment = chunk = passed_bytes = 0
    known: Collection[str] | None = None
    with bar:
        while True:
            answer = request(mount, "scrub", segment=segment, chunk=chunk)
            segment, chunk = answer["segment"], answer["chunk"]
            report.chunks += answer["chunks"]
            report.read_bytes += answer["bytes"]
            report.damaged_chunks += answer["damaged_chunks"]
            report.lost_chunks += answer["lost_chunks"]
            report.others += answer["others"]
            report.ranges += [
                DamagedRange(
                    tuple(each["paths"]),
                    InodeId(each["inode"]),
                    each["offset"],
                    each["length"],
                    ChunkId(each["chunk"]),
                    each["reason"],
                )
                for each in answer["damaged"]
            ]
            if answer["elsewhere"] and known is None:
                known = _known(request(mount, "status"))
            for name, size in answer["elsewhere"]:
                passed_bytes += size
                _pass_over(report, name, size, known or ())
            # Programs may write meanwhile: then more is read than was there at first.
            bar(report.read_bytes, max(report.read_bytes, answer["total_bytes"] - passed_bytes))
            if answer["done"]:
                return report


def _known(status: dict[str, Any]) -> Collection[str]:
    found = known_elsewhere(Path(status["vault"]))
    return () if found is None else found.names


def _pass_over(report: ScrubReport, name: str, size: int, known: Collection[str]) -> None:
    """Count a segment that is not on this disk: as elsewhere, or as lost if nothing says so."""
    if name in known:
        report.elsewhere_segments += 1
        report.elsewhere_bytes += size
    else:
        report.damaged_chunks += 1
        report.others.append(
            f"the segment {name} is missing, and no remote is known to have it: vaultfs fsck tells more"
        )


def _show(report: ScrubReport) -> None:
    for each in report.ranges[:_SHOWN]:
        names = ", ".join(name_text(path.encode(errors="surrogateescape")) for path in each.paths)
        say(f"{names}: bytes {each.offset} to {each.offset + each.length - 1} are damaged: {each.reason}")
    if len(report.ranges) > _SHOWN:
        say(f"and {len(report.ranges) - _SHOWN} more; --json shows all")
    for text in report.others:
        say(text)
    if report.elsewhere_segments:
        amount = format_size(report.elsewhere_bytes)
        say(f"{counted(report.elsewhere_segments, 'segment')}, {amount}, only on a remote: not looked at")
    say(
        f"{report.chunks} chunks, {format_size(report.read_bytes)}: "
        + (f"{report.damaged_chunks} damaged" if report.damaged_chunks else "all whole")
        + (f", {report.lost_chunks} known to be lost" if report.lost_chunks else "")
    )
