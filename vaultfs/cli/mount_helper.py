"""``/sbin/mount.fuse.vaultfs``: what mount(8) and fstab call as ``mount.fuse.vaultfs SOURCE DIR [-sfnv] [-o OPTS]``.

The password comes from ``-o passfile=FILE`` (or ``keyfile=``, ``password_command=``), or as for ``vaultfs mount``.
"""

from __future__ import annotations

import getopt
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from vaultfs.cli.main import guarded
from vaultfs.cli.mount_options import MountOptions, parse_words, split_words
from vaultfs.cli.mounts import mount_at
from vaultfs.errors import ExitCode, MountError, UsageError

_SHOWN_BY_KERNEL: Final = ("remount", "user_id=", "group_id=", "max_read=", "blksize=")


def run(words: Sequence[str]) -> int:
    """Mount as mount(8) asks.

    Args:
        words: the arguments, without the program's name.

    Raises:
        UsageError: they are not those of a mount helper.
    """
    from vaultfs.cli.mount import execute, make_plan  # noqa: PLC0415  # inside the guard, so that failures are explained
    from vaultfs.cli.secret_sources import SecretOptions  # noqa: PLC0415

    try:
        options, rest = getopt.gnu_getopt(list(words), "sfnvo:t:N:")
    except getopt.GetoptError as error:
        raise UsageError(f"mount.fuse.vaultfs: {error}") from None
    if len(rest) != 2:
        raise UsageError("usage: mount.fuse.vaultfs VAULT DIR [-sfnv] [-o OPTIONS]")
    words_of_o = [word for name, text in options if name == "-o" for word in split_words(text)]
    is_remount = "remount" in words_of_o
    if is_remount:  # mount(8) adds what /proc/self/mountinfo shows
        words_of_o = [word for word in words_of_o if not word.startswith(_SHOWN_BY_KERNEL)]
    if os.geteuid() == 0:
        # mount(8) leaves out what it takes for everyone's default; nosuid and nodev follow where they were wanted.
        words_of_o = ["suid", "dev", *words_of_o]
    parsed = parse_words(words_of_o)
    if ("-f", "") in options:  # "fake": mount(8) wants everything done but the mounting
        return ExitCode.OK
    source, directory = rest
    if is_remount:
        return _remount(Path(directory), parsed)
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


def _remount(directory: Path, parsed: MountOptions) -> int:
    """Let the kernel change what it decides itself, as ro and noatime; the daemon goes on as it is.

    Raises:
        MountError: no vault is mounted there, or the kernel refused.
    """
    if mount_at(directory) is None:
        raise MountError(f"{directory}: no vault is mounted there")
    words = ",".join(["remount", "ro" if parsed.read_only else "rw", *parsed.kernel])
    # -i: without helper, or mount(8) would call this one again.
    done = subprocess.run(  # noqa: S603  # words that were checked
        ["mount", "-i", "-o", words, "--", directory],  # noqa: S607  # the system's own mount(8), as its helper
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise MountError(f"{directory}: {' '.join(done.stderr.split()) or 'mount failed'}")
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(guarded(lambda: run(sys.argv[1:])))
