"""``vaultfs restore URL DEST PATH...``: chosen files and trees of a snapshot, as plaintext.

The snapshot is opened read-only where it lies: its metadata is fetched into a scratch directory, then the parts of
segments that the chosen files need.  No vault is made, so neither a HEAD nor a witness is written, and this machine
believes nothing new of the vault, however old the snapshot is.

Files are copied as ``vaultfs get`` does: whole and verified or not at all, and nothing is replaced unasked.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vaultfs.cli.one_remote import OneRemote, no_tick
from vaultfs.cli.opened import report, vault_path
from vaultfs.cli.output import counted, emit_json, error_line, note, printable, say
from vaultfs.cli.progress import Progress, ProgressStyle, progress
from vaultfs.cli.remote_vault import checked
from vaultfs.cli.scratch import scratch_directory
from vaultfs.cli.secret_sources import SecretOptions
from vaultfs.cli.sizes import format_size
from vaultfs.errors import ExitCode, FileSystemError, IntegrityError, UsageError, VaultError
from vaultfs.ids import InodeId
from vaultfs.remotes.counting import CountingStore
from vaultfs.storage.layout import VaultLayout
from vaultfs.sync.download import RemoteHead, fetch
from vaultfs.vault import transfer_out
from vaultfs.vault.api import Vault
from vaultfs.vault.fetch_ahead import FetchAhead
from vaultfs.vault.inodes import Inode
from vaultfs.vault.snapshot_image import open_with_keys

if TYPE_CHECKING:
    from vaultfs.mesh.store import MeshStore

_FULL: Final = {errno.ENOSPC, errno.EDQUOT}
_ROOT: Final = b"/"


def chosen_paths(words: Sequence[str], dest: Path) -> list[bytes]:
    """The paths in the vault that words mean, after all that can be checked before anything is fetched.

    Args:
        words: as written.
        dest: where they go.

    Raises:
        UsageError: a path or the destination makes no sense, or two paths would get one name.
    """
    paths = [vault_path(word) for word in words]
    if _ROOT in {path.rstrip(b"/") or _ROOT for path in paths}:
        if len(paths) > 1:
            raise UsageError("PATH: / is everything, so no other path goes with it")
        if os.path.lexists(dest):
            raise UsageError(f"{dest} exists; the whole tree needs a name of its own")
        if not dest.absolute().parent.is_dir():
            raise UsageError(f"{dest}: the directory {dest.absolute().parent} does not exist")
        _refuse_vault(dest)
        return [_ROOT]
    names: dict[bytes, bytes] = {}
    for path in paths:
        name = _name(path)
        if name in {b".", b".."}:
            raise UsageError(f"PATH: {os.fsdecode(path)!r} names no file or directory")
        if name in names:
            raise UsageError(
                f"PATH: {os.fsdecode(names[name])!r} and {os.fsdecode(path)!r} would both be "
                f"{dest / os.fsdecode(name)}; restore them one after the other, into different directories"
            )
        names[name] = path
    if os.path.lexists(dest) and not dest.is_dir():
        raise UsageError(f"{dest} is not a directory; name one for what is restored")
    if not dest.absolute().parent.is_dir():
        raise UsageError(f"{dest}: the directory {dest.absolute().parent} does not exist")
    _refuse_vault(dest)
    return paths


def _name(path: bytes) -> bytes:
    return path.rstrip(b"/").rpartition(b"/")[2]


def _refuse_vault(dest: Path) -> None:
    """A vault's directory is the last place for plaintext, and is copied to remotes besides."""
    real = Path(os.path.realpath(dest))
    for directory in (real, *real.parents):
        layout = VaultLayout(directory)
        if layout.header.exists() and layout.segments.is_dir() and layout.heads.is_dir():
            raise UsageError(f"{dest} is in a vault's directory; choose another place for plaintext")


def restore_files(
    store: CountingStore,
    head: RemoteHead,
    dest: Path,
    paths: Sequence[bytes],
    *,
    replace: bool,
    style: ProgressStyle,
    secret: SecretOptions | None,
    name: str,
    wanted: str | None,
    peers: MeshStore | None,
    connections: int,
    hurry: Callable[[], None],
    json: bool,
) -> int:
    """Copy files and trees of a snapshot out of a remote; on the disk on return.

    Args:
        store: the remote.
        head: which snapshot.
        dest: a directory, or the name of a new one.
        paths: from `chosen_paths`.
        replace: put a file in the place of another.
        style: of the progress.
        secret: where the secret comes from.
        name: of the remote, for the prompt.
        wanted: how the person named the snapshot; None: it is the newest there.
        peers: the store below, if it is one of peers.
        connections: how many requests at once for the contents of files.
        hurry: lets requests that are under way end soon.
        json: print the outcome as JSON.

    Returns:
        The exit code: 3 if some paths could not be restored or not in full, 15 if something is damaged; if nothing
        could be restored, that of the reason.

    Raises:
        VaultError: the snapshot cannot be opened, or the remote cannot be reached; what is restored already stays.
    """
    _, keyring, info, _ = checked(store, head, secret, name, wanted, peers)
    with scratch_directory() as scratch:
        layout = VaultLayout(scratch / "vault")
        source = OneRemote(store)

        def end() -> None:
            source.close()
            hurry()

        with progress(f"metadata of snapshot {info.seq}", style) as bar:
            source.tick = lambda: bar(store.counts.received_bytes, None)
            fetch(store, layout, head, with_segments=False)
            vault = Vault(open_with_keys(layout, keyring, head.seq, source, scratch))
        source.is_gap_damage, source.tick = True, no_tick
        with vault:
            work = _Work(vault, dest, replace=replace)
            work.run(paths, style, connections, end)
    if json:
        document = {"directory": str(dest.absolute()), "snapshot": asdict(info), "files": work.files}
        document |= {"bytes": work.done_bytes, "problems": work.problems}
        emit_json(document | {"received_bytes": store.counts.received_bytes})
    elif work.restored:
        say(
            f"Restored {work.restored} of {counted(len(paths), 'path')} of snapshot {info.seq} ({info.id[:12]}) to "
            f"{printable(str(dest))}: {format_size(work.done_bytes)}; "
            f"{format_size(store.counts.received_bytes)} were fetched."
        )
    return work.exit_code()


class _State:
    """The progress of one path as a part of that of all.

    Args:
        bar: shows it.
        ahead: fetches what comes next.
        total_bytes: of all paths.
    """

    def __init__(self, bar: Progress, ahead: FetchAhead, total_bytes: int) -> None:
        self._bar = bar
        self._ahead = ahead
        self._total_bytes = total_bytes
        self._base_bytes = 0
        self._base_files = 0

    def __call__(self, done_bytes: int, total_bytes: int | None, files: int) -> None:  # noqa: ARG002  # of this path
        """So much of this path is done."""
        self._ahead.reached(self._base_bytes + done_bytes)
        self._bar(self._base_bytes + done_bytes, self._total_bytes, self._base_files + files)

    def begin_next(self, size_bytes: int, files: int) -> None:
        """A path is done with, of so many bytes; so many files were written until now."""
        self._base_bytes += size_bytes
        self._ahead.reached(self._base_bytes)
        self._base_files = files


class _Work:
    """One run: what became of each path.

    Attributes:
        restored: paths that were restored, perhaps not in full.
        files: entries that were written.
        done_bytes: of their contents.
        problems: how many lines told of something that is missing.
    """

    def __init__(self, vault: Vault, dest: Path, *, replace: bool) -> None:
        self._vault = vault
        self._dest = dest
        self._replace = replace
        self._codes: list[ExitCode] = []
        self.restored = 0
        self.files = 0
        self.done_bytes = 0
        self.problems = 0

    def run(self, paths: Sequence[bytes], style: ProgressStyle, connections: int, hurry: Callable[[], None]) -> None:
        """Restore what is there.

        Args:
            paths: from `chosen_paths`.
            style: of the progress.
            connections: how many requests at once.
            hurry: makes requests end soon.

        Raises:
            VaultError: the remote failed.
            OSError: the destination cannot be made.
        """
        fs = self._vault.filesystem
        tops = {path: inode for path in paths if (inode := self._inode(path)) is not None}
        if not tops:
            return
        sizes = {path: transfer_out.total_bytes(fs, inode) for path, inode in tops.items()}
        if _ROOT not in sizes:
            self._dest.mkdir(mode=0o700, exist_ok=True)
        destination = os.fspath(self._dest)
        ahead = FetchAhead(fs, tops.values(), connections, hurry)
        with progress(f"restore {destination}", style) as bar, ahead:
            state = _State(bar, ahead, sum(sizes.values()))
            for number, (path, size) in enumerate(sizes.items()):
                try:
                    outcome = transfer_out.get(self._vault, path, destination, replace=self._replace, progress=state)
                except (UsageError, FileSystemError, IntegrityError) as error:
                    self._failed(path, str(error), error.exit_code)
                except OSError as error:
                    self._failed(path, f"{self._dest}: {error.strerror}")
                    if error.errno in _FULL:
                        self._give_up(list(sizes)[number + 1 :])
                        return
                except VaultError:
                    if self.restored:
                        note(f"{self.restored} of {counted(len(paths), 'path')} were restored before this")
                    raise
                else:
                    self._codes += [ExitCode(report(outcome))] if outcome.problems else []
                    self.problems += len(outcome.problems)
                    self.restored += 1
                    self.files += outcome.files
                    self.done_bytes += outcome.done_bytes
                state.begin_next(size, self.files)

    def _inode(self, path: bytes) -> Inode | None:
        """A file or tree; None if there is none, which is told."""
        try:
            return self._vault.filesystem.inodes.get(InodeId(self._vault.stat(path, follow=False).st_ino))
        except FileSystemError as error:
            self._failed(path, f"{os.strerror(error.errno)} in the snapshot")
            return None

    def _give_up(self, paths: Sequence[bytes]) -> None:
        for path in paths:
            self._failed(path, "not tried, because the disk is full")

    def _failed(self, path: bytes, reason: str, code: ExitCode = ExitCode.ERROR) -> None:
        shown = os.fsdecode(path)
        error_line(reason if reason.startswith(shown) else f"{shown}: {reason}")
        self._codes.append(code)
        self.problems += 1

    def exit_code(self) -> int:
        """Of the whole command."""
        if self.restored:
            return max((max(code, ExitCode.PARTIAL) for code in self._codes), default=ExitCode.OK)
        return max(self._codes)
