"""``vaultfs verify``: check that a remote has all that it should.  No password is needed, but one shows more."""

from __future__ import annotations

import re
from contextlib import ExitStack
from typing import Annotated, Final

from vaultfs.cli.output import counted, emit_json, note, printable, say
from vaultfs.cli.parsing import ValueIfAlone
from vaultfs.cli.progress import progress
from vaultfs.cli.remote_place import RemotePlace
from vaultfs.cli.secret_sources import SecretOption
from vaultfs.cli.sizes import format_size
from vaultfs.cli.targets import OptionWords, Stores, parse_options, parse_rate
from vaultfs.cli.unlocked_checks import UnlockedChecks, unlocked_checks
from vaultfs.errors import ExitCode, UsageError
from vaultfs.remotes.counting import CountingStore
from vaultfs.remotes.urls import redacted
from vaultfs.storage.layout import VaultLayout
from vaultfs.sync.ledger import Ledger
from vaultfs.sync.public_header import read_header
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
    unlock: bool = False,
    repair: bool = False,
    option: OptionWords = None,
    bwlimit: str | None = None,
    quiet: bool = False,
    json: bool = False,
    secret: SecretOption | None = None,
) -> int:
    """Check that a remote has all that its snapshots need. No password is needed; nothing is changed without --repair.

    Without --read-data this costs a listing and the manifests: it finds what is missing, or has a wrong size. With it,
    segments are fetched and their hashes checked. With --unlock the vault's key is used as well: to check who has
    signed the manifests, and to open all data that is read.

    Args:
        vault: A vault, or a folder where one is mounted; or the URL of a remote, and nothing else.
        remote: The name of a remote of the vault.
        read_data: Read the data too: everything, or a share of the segments drawn at random, as in --read-data=10%.
        unlock: Use the key too: check the signatures of manifests, and open the chunks of what --read-data reads.
        repair: Send again from the vault what is missing or damaged, and check that.
        option: With a URL: a setting of the store, as KEY=VALUE; may be given several times.
        bwlimit: Bytes per second at most, as in 500K or 10M.
        quiet: Show no progress.
        json: Show progress as JSON lines on standard error, and print the outcome as JSON.
        secret: Where the password comes from, with --unlock.
    """
    if secret is not None and secret.given() and not unlock:
        raise UsageError(f"{secret.given()[0]} goes with --unlock; without it no password is needed")
    share = _share(read_data)
    rate = parse_rate(bwlimit)
    hint = "a share of the data is written --read-data=10%"
    place = RemotePlace.of("verify", vault, remote, parse_options(option), hint)
    name = place.name
    if repair and unlock:
        raise UsageError("--repair and --unlock exclude each other: repair first, then verify with --unlock")
    if repair and place.layout is None:
        raise UsageError("--repair sends again what the vault has: name the vault and the remote, not a URL")
    bar = progress(f"verify {name}", "none" if quiet or not share else "json" if json else "auto")
    wrong_header: list[str] = []
    with Stores(rate) as stores, ExitStack() as stack:
        store = stores.open(place.url, place.options)
        unlocked = stack.enter_context(unlocked_checks(store, secret, name, wrong_header)) if unlock else None
        with bar, stores.interruptible() as is_stopped:
            report = verify(
                store,
                read_share=share,
                keyed=unlocked,
                progress=lambda state: bar(state.done_bytes, state.total_bytes),
                is_stopped=is_stopped,
            )
            if unlocked is not None:
                report.problems += unlocked.rest(is_stopped)
        if repair and report.problems and place.layout is not None:
            if not json:
                _show_problems(report)
            report = _repaired(place, place.layout, store, stores, report)
            wrong_header = []
    report.problems[:0] = wrong_header
    code = ExitCode.INTEGRITY if report.problems else ExitCode.OK
    if json:
        document = {
            "url": redacted(place.url),
            "problems": report.problems,
            "objects": report.objects,
            "snapshots": report.snapshots,
            "unused_segments": report.unused_segments,
            "bytes_read": report.bytes_read,
        }
        emit_json(document if unlocked is None else document | unlocked.as_json())
    else:
        _show(name, report, unlocked)
    return code


def _repaired(
    place: RemotePlace, layout: VaultLayout, store: CountingStore, stores: Stores, report: VerifyReport
) -> VerifyReport:
    """Send again what is bad, and look again at that.

    Raises:
        VaultError: nothing could be sent.
    """
    from vaultfs.sync.repair import send_again  # noqa: PLC0415  # few ask for it
    from vaultfs.sync.upload import Target  # noqa: PLC0415

    target = Target(place.name, store, Ledger.of(read_header(layout).vault_id, place.name))
    with stores.interruptible() as is_stopped:
        outcome = send_again(layout, target, report, is_stopped=is_stopped)
        if outcome.error is not None and not outcome.segments and not outcome.manifests:
            raise outcome.error
        note(
            f"sent {counted(outcome.segments, 'segment')} and {counted(outcome.manifests, 'snapshot')}, "
            f"{format_size(outcome.bytes)}, to {printable(place.name)}; looking again"
        )
        return verify(store, read_also=report.bad_segments, is_stopped=is_stopped)


def _show_problems(report: VerifyReport) -> None:
    for problem in report.problems[:_SHOWN]:
        say(printable(problem))
    if len(report.problems) > _SHOWN:
        say(f"and {len(report.problems) - _SHOWN} more; --json shows all")


def _show(name: str, report: VerifyReport, unlocked: UnlockedChecks | None) -> None:
    _show_problems(report)
    verdict = counted(len(report.problems), "problem") if report.problems else "nothing is wrong"
    parts = [counted(report.snapshots, "snapshot"), counted(report.objects, "object")]
    if report.unused_segments:
        parts.append(f"{counted(report.unused_segments, 'segment')} that no snapshot needs")
    parts.append(f"{format_size(report.bytes_read)} read")
    if unlocked is not None:
        parts += unlocked.summary()
    say(f"{printable(name)}: {', '.join(parts)}: {verdict}")
    if report.problems:
        note(
            "'vaultfs verify --repair' sends again from the vault what is missing or damaged there; what the vault "
            "does not have any more stays as it is"
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
