"""``vaultfs sync --install-timer`` and ``--remove-timer``: a regular sync by systemd.

The units go to the user's own systemd, or to the system's for root.  What was written is told before systemd is asked
for anything, so that nothing is half done in silence.  No secret is written anywhere.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vaultfs.cli.output import emit_json, note, printable, say
from vaultfs.cli.secret_sources import SecretOptions
from vaultfs.cli.systemd import Systemd, enabling, require_ours, understands_calendar
from vaultfs.cli.targets import chosen_remotes, vault_of
from vaultfs.cli.timer_units import MARK, SyncTimer, unit_name
from vaultfs.errors import ExitCode, NotAVaultError, UsageError
from vaultfs.storage.durable import atomic_replace, fsync_directory, storage_errors

_ENABLED_IN: Final = "timers.target.wants"


@dataclass(frozen=True)
class Schedule:
    """What was asked for.

    Attributes:
        every: ``daily``, ``hourly``, or a calendar expression of systemd.
        arguments: options of ``sync`` that the timer shall use.
        enable: let systemd know at once.
        json: print the outcome as JSON.
    """

    every: str
    arguments: Sequence[str]
    enable: bool
    json: bool


def run(
    path: Path,
    remotes: Sequence[str],
    *,
    install_timer: bool,
    remove_timer: bool,
    every: str | None,
    no_enable: bool,
    arguments: Callable[[], list[str]],
    others: Mapping[str, bool],
    json: bool,
) -> int:
    """What ``sync`` does if any of its options about timers is given.

    Args:
        path: as written.
        remotes: as written.
        install_timer: as written.
        remove_timer: as written.
        every: as written.
        no_enable: as written.
        arguments: gives the options that the timer shall use, as `schedule_arguments`.
        others: options that go with no timer, and whether they were given.
        json: as written.

    Raises:
        UsageError: they make no sense together.
        VaultError: as `install` and `remove`.
    """
    if install_timer == remove_timer:
        raise UsageError(
            "--install-timer and --remove-timer exclude each other"
            if install_timer
            else f"{'--no-enable' if no_enable else '--every'} goes with --install-timer"
        )
    wrong = [name for name, is_given in others.items() if is_given]
    if wrong:
        raise UsageError(f"{wrong[0]} goes with no timer")
    words = arguments()
    if install_timer:
        return install(path, remotes, Schedule(every or "daily", words, enable=not no_enable, json=json))
    if words or remotes or every is not None or no_enable:
        raise UsageError("--remove-timer goes with a vault, and with nothing else")
    return remove(path, json=json)


def install(path: Path, remotes: Sequence[str], schedule: Schedule) -> int:
    """Write a service and a timer, and enable the timer.

    Args:
        path: a vault, or a folder where one is mounted.
        remotes: names of remotes; all that the vault has if none is given.
        schedule: what was asked for.

    Returns:
        The exit code: 3 if the units are there, but systemd does not know of them.

    Raises:
        UsageError: something cannot be written into a unit, or other units have these names.
        NotAVaultError: there is no vault.
        NoSpaceError, ReadOnlyError, StorageError: a unit cannot be written; those before it were told.
    """
    layout, _ = vault_of(path)
    chosen_remotes(layout, remotes)
    systemd = Systemd()
    timer = SyncTimer(
        layout.root,
        program_words(),
        schedule.arguments,
        schedule.every,
        {key: os.environ[key] for key in ("XDG_STATE_HOME",) if os.environ.get(key)},
        systemd.is_system,
        remotes,
    )
    name = unit_name(layout.root)
    texts = {f"{name}.service": timer.service(), f"{name}.timer": timer.timer()}
    if not understands_calendar(schedule.every):
        raise UsageError(f"--every: systemd does not understand {schedule.every!r}; see systemd.time(7)")
    for unit in texts:
        require_ours(systemd.directory / unit, MARK)
    with storage_errors(f"cannot create the directory {systemd.directory}"):
        systemd.directory.mkdir(parents=True, exist_ok=True)
    for unit, text in texts.items():
        atomic_replace(systemd.directory / unit, text.encode(), mode=0o644)
        if not schedule.json:
            say(f"Wrote {printable(str(systemd.directory / unit))}")
    is_enabled = schedule.enable and systemd.enable(f"{name}.timer", "timer")
    if schedule.json:
        emit_json(
            {
                "service": str(systemd.directory / f"{name}.service"),
                "timer": str(systemd.directory / f"{name}.timer"),
                "every": schedule.every,
                "is_enabled": is_enabled,
            }
        )
    if not is_enabled:
        for words in enabling(f"{name}.timer"):
            note(f"to enable it: {shlex.join([*systemd.command, *words])}")
    elif not systemd.is_system:
        note("it runs while you are logged in; at other times too after: loginctl enable-linger")
    return ExitCode.OK if is_enabled or not schedule.enable else ExitCode.PARTIAL


def remove(path: Path, *, json: bool) -> int:
    """Disable the timer of a vault, and remove its units.

    Args:
        path: a vault, a folder where one is mounted, or where the vault was.
        json: print the outcome as JSON.

    Raises:
        UsageError: there is none, or the units are somebody else's.
        StorageError: a unit cannot be removed; those before it were told.
    """
    try:
        root = vault_of(path)[0].root
    except NotAVaultError:
        root = path.resolve()
    systemd = Systemd()
    name = unit_name(root)
    timer = f"{name}.timer"
    files = [systemd.directory / timer, systemd.directory / f"{name}.service"]
    present = [file for file in files if os.path.lexists(file)]
    if not present:
        raise UsageError(f"there is no timer for {root}: {files[0]} does not exist")
    for file in present:
        require_ours(file, MARK)
    answers = systemd.answers()
    if answers:
        systemd.run("disable", "--now", timer)
    # What `enable` makes, for a systemd that does not answer now.
    for file in (systemd.directory / _ENABLED_IN / timer, *present):
        if os.path.lexists(file):
            with storage_errors(f"cannot remove {file}"):
                file.unlink()
            if not json:
                say(f"Removed {printable(str(file))}")
    fsync_directory(systemd.directory)
    if answers:
        systemd.run("daemon-reload")
    if json:
        emit_json({"removed": [str(file) for file in present]})
    return ExitCode.OK


def schedule_arguments(
    *, snapshot: bool, secret: SecretOptions | None, bwlimit: str | None, connections: int | None
) -> list[str]:
    """The options of ``sync`` that a timer can use, as words; files by absolute paths.

    Args:
        snapshot: make a snapshot of a vault that is not mounted.
        secret: where its password comes from: a file.
        bwlimit: as written.
        connections: as written; None if it is the default.

    Raises:
        UsageError: a secret comes from something that a timer does not have.
    """
    words = []
    given = [] if secret is None else secret.given()
    if given and not snapshot:
        raise UsageError(f"{given[0]} goes with --snapshot; without it no password is needed")
    if snapshot:
        words.append("--snapshot")
        if secret is None or given not in (["--passfile"], ["--keyfile"]):
            raise UsageError(
                "a timer with --snapshot takes its password from --passfile FILE or --keyfile FILE, and nothing else"
            )
        file = secret.passfile or secret.keyfile
        assert file is not None
        if not file.is_file():
            raise UsageError(f"{given[0]}: {file} is no file")
        words += [given[0], str(file.absolute())]
    if bwlimit is not None:
        words += ["--bwlimit", bwlimit]
    if connections is not None:
        words += ["--connections", str(connections)]
    return words


def program_words() -> list[str]:
    """How this vaultfs is run from anywhere: the absolute path of its program, or of its Python."""
    beside = Path(sys.executable).with_name("vaultfs")
    if os.access(beside, os.X_OK):
        return [str(beside)]
    found = shutil.which("vaultfs")
    return [str(Path(found).absolute())] if found else [sys.executable, "-m", "vaultfs.cli"]
