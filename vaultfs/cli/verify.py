"""``vaultfs verify``: check that a remote has all that it should.  No password is needed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Final

from vaultfs.cli.output import counted, emit_json, printable, say
from vaultfs.cli.parsing import ValueIfAlone
from vaultfs.cli.progress import progress
from vaultfs.cli.sizes import format_size
from vaultfs.cli.targets import OptionWords, Stores, chosen_remotes, parse_options, parse_rate, vault_of
from vaultfs.errors import ExitCode, UsageError
from vaultfs.remotes.urls import redacted
from vaultfs.sync.verify import VerifyReport, verify

_SHOWN: Final = 1000
"""Problems that are printed; JSON has them all."""
_PERCENT: Final = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,6})?)%?")


def run(
    vault: str,
    remote: str | None = None,
    /,
    *,
    read_data: Annotated[str | None, ValueIfAlone("100%")] = None,
    option: OptionWords = None,
    bwlimit: str | None = None,
    quiet: bool = False,
    json: bool = False,
) -> int:
    """Check that a remote has all that its snapshots need. No password is needed, and nothing is changed.

    Without --read-data this costs a listing and the manifests: it finds what is missing, or has a wrong size. With it,
    segments are fetched and their hashes checked.

    Args:
        vault: A vault, or a folder where one is mounted; or the URL of a remote, and nothing else.
        remote: The name of a remote of the vault.
        read_data: Read the data too: everything, or a share of the segments drawn at random, as in --read-data=10%.
        option: With a URL: a setting of the store, as KEY=VALUE; may be given several times.
        bwlimit: Bytes per second at most, as in 500K or 10M.
        quiet: Show no progress.
        json: Show progress as JSON lines on standard error, and print the outcome as JSON.
    """
    share = _share(read_data)
    rate = parse_rate(bwlimit)
    options = parse_options(option)
    url, name = vault, redacted(vault)
    if remote is not None:
        if "://" in vault:
            raise UsageError("a URL stands alone; a share of the data is written --read-data=10%")
        if options:
            raise UsageError("--option goes with a URL; a remote has its own")
        layout, _ = vault_of(Path(vault))
        (chosen,) = chosen_remotes(layout, [remote])
        url, options, name = chosen.url, chosen.options, chosen.name
    elif ":" not in vault:
        raise UsageError("name a vault and one of its remotes, or the URL of a remote; see 'vaultfs verify --help'")
    bar = progress(f"verify {name}", "none" if quiet or not share else "json" if json else "auto")
    with Stores(rate) as stores:
        store = stores.open(url, options)
        with bar, stores.interruptible() as is_stopped:
            report = verify(
                store,
                read_share=share,
                progress=lambda state: bar(state.done_bytes, state.total_bytes),
                is_stopped=is_stopped,
            )
    code = ExitCode.INTEGRITY if report.problems else ExitCode.OK
    if json:
        emit_json(
            {
                "url": redacted(url),
                "problems": report.problems,
                "objects": report.objects,
                "snapshots": report.snapshots,
                "unused_segments": report.unused_segments,
                "bytes_read": report.bytes_read,
            }
        )
    else:
        _show(name, report)
    return code


def _show(name: str, report: VerifyReport) -> None:
    for problem in report.problems[:_SHOWN]:
        say(printable(problem))
    if len(report.problems) > _SHOWN:
        say(f"and {len(report.problems) - _SHOWN} more; --json shows all")
    verdict = counted(len(report.problems), "problem") if report.problems else "nothing is wrong"
    unused = f", {counted(report.unused_segments, 'segment')} that no snapshot needs" if report.unused_segments else ""
    say(
        f"{printable(name)}: {counted(report.snapshots, 'snapshot')}, {counted(report.objects, 'object')}{unused}, "
        f"{format_size(report.bytes_read)} read: {verdict}"
    )


def _share(text: str | None) -> float:
    """A part of one from ``10%`` or ``0.5%``.

    Raises:
        UsageError: it is no percentage from 0 to 100.
    """
    if text is None:
        return 0.0
    match = _PERCENT.fullmatch(text.strip())
    if match is None or not 0 < float(match[1]) <= 100:
        raise UsageError(f"--read-data: {text!r} is no share; write it like 10%, more than 0 and at most 100")
    return float(match[1]) / 100
