"""``/sbin/mount.fuse.vaultfs``: what mount(8) and fstab call as ``mount.fuse.vaultfs SOURCE DIR [-sfnv] [-o OPTS]``.

The password comes from ``-o passfile=FILE`` (or ``keyfile=``, ``password_command=``), or as for ``vaultfs mount``.
"""

from __future__ import annotations

import getopt
import sys
from collections.abc import Sequence
from pathlib import Path

from vaultfs.cli.main import guarded
from vaultfs.errors import ExitCode, UsageError


def run(words: Sequence[str]) -> int:
    """Mount as mount(8) asks.

    Args:
        words: the arguments, without the program's name.

    Raises:
        UsageError: they are not those of a mount helper.
    """
    from vaultfs.cli.mount import execute, make_plan  # noqa: PLC0415  # inside the guard, so that failures are explained
    from vaultfs.cli.mount_options import parse_mount_options  # noqa: PLC0415
    from vaultfs.cli.secret_sources import SecretOptions  # noqa: PLC0415

    try:
        options, rest = getopt.gnu_getopt(list(words), "sfnvo:t:N:")
    except getopt.GetoptError as error:
        raise UsageError(f"mount.fuse.vaultfs: {error}") from None
    if len(rest) != 2:
        raise UsageError("usage: mount.fuse.vaultfs VAULT DIR [-sfnv] [-o OPTIONS]")
    parsed = parse_mount_options(text for name, text in options if name == "-o")
    if ("-f", "") in options:  # "fake": mount(8) wants everything done but the mounting
        return ExitCode.OK
    source, directory = rest
    plan = make_plan(
        Path(source),
        Path(directory),
        words=parsed,
        secret_options=SecretOptions(),
        idle_s=parsed.idle_s,
        commit_interval_s=parsed.commit_interval_s,
        snapshot=parsed.snapshot,
    )
    return execute(plan)


if __name__ == "__main__":
    sys.exit(guarded(lambda: run(sys.argv[1:])))
