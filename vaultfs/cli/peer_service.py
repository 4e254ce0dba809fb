"""``vaultfs peer serve --install-service`` and ``--remove-service``: the peer as a service of systemd.

The unit goes to the user's own systemd, or to the system's for root.  What was written is told before systemd is asked
for anything, so that nothing is half done in silence.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from vaultfs.cli.output import emit_json, note, printable, say
from vaultfs.cli.peer_unit import MARK, UNIT_NAME, PeerService
from vaultfs.cli.sync_timer import program_words
from vaultfs.cli.systemd import Systemd, enabling, require_ours
from vaultfs.errors import ExitCode, UsageError
from vaultfs.mesh.places import grants_path
from vaultfs.storage.durable import atomic_replace, fsync_directory, storage_errors
from vaultfs.storage.private_files import make_private_directory

_VARIABLES: Final = ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME")
_ENABLED_IN: Final = ("multi-user.target.wants", "default.target.wants")


def install(store: Path, arguments: Sequence[str], *, enable: bool, json: bool) -> int:
    """Write the unit, and enable it.

    Args:
        store: where replicas are kept, absolute; it is made if need be.
        arguments: options of ``peer serve``.
        enable: let systemd know at once.
        json: print the outcome as JSON.

    Returns:
        The exit code: 3 if the unit is there, but systemd does not know of it.

    Raises:
        UsageError: something cannot be written into a unit, or another unit has this name.
        NoSpaceError, ReadOnlyError, StorageError: the unit or a directory cannot be written.
    """
    systemd = Systemd()
    service = PeerService(
        program_words(),
        arguments,
        {key: os.environ[key] for key in _VARIABLES if os.environ.get(key)},
        [store, grants_path().parent],
        systemd.is_system,
    )
    text = service.text()
    path = systemd.directory / UNIT_NAME
    require_ours(path, MARK)
    for directory in service.writable:  # systemd starts no service whose ReadWritePaths= are not there
        make_private_directory(directory)
    with storage_errors(f"cannot create the directory {systemd.directory}"):
        systemd.directory.mkdir(parents=True, exist_ok=True)
    atomic_replace(path, text.encode(), mode=0o644)
    if not json:
        say(f"Wrote {printable(str(path))}")
    is_enabled = enable and systemd.enable(UNIT_NAME, "service")
    if json:
        emit_json({"service": str(path), "store": str(store), "is_enabled": is_enabled})
    if not is_enabled:
        for words in enabling(UNIT_NAME):
            note(f"to enable it: {shlex.join([*systemd.command, *words])}")
    elif not systemd.is_system:
        note("it runs while you are logged in; at other times too after: loginctl enable-linger")
    return ExitCode.OK if is_enabled or not enable else ExitCode.PARTIAL


def remove(*, json: bool) -> int:
    """Stop and disable the service, and remove its unit.  What is stored stays.

    Args:
        json: print the outcome as JSON.

    Raises:
        UsageError: there is none, or it is somebody else's.
        StorageError: it cannot be removed.
    """
    systemd = Systemd()
    path = systemd.directory / UNIT_NAME
    if not os.path.lexists(path):
        raise UsageError(f"there is no service: {path} does not exist")
    require_ours(path, MARK)
    answers = systemd.answers()
    if answers:
        systemd.run("disable", "--now", UNIT_NAME)
    # What `enable` makes, for a systemd that does not answer now.
    for file in (*(systemd.directory / target / UNIT_NAME for target in _ENABLED_IN), path):
        if os.path.lexists(file):
            with storage_errors(f"cannot remove {file}"):
                file.unlink()
            if not json:
                say(f"Removed {printable(str(file))}")
    fsync_directory(systemd.directory)
    if answers:
        systemd.run("daemon-reload")
    if json:
        emit_json({"removed": str(path)})
    return ExitCode.OK
