"""Where things lie in a vault's directory.

What is found on disk is checked by name and type before it counts: other names, symlinks, FIFOs and directories in a
file's place are passed over and never followed.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vaultfs.errors import IntegrityError, NotAVaultError
from vaultfs.ids import SegmentName, SnapshotSeq
from vaultfs.storage.durable import fsync_directory, storage_errors

_SEGMENT_NAME: Final = re.compile(r"[0-9a-f]{64}")
_TOKEN: Final = re.compile(r"[0-9a-f]{32}")
_SHARD: Final = re.compile(r"[0-9a-f]{2}")
_MANIFEST: Final = re.compile(r"([0-9]{10,19})-([0-9a-f]{64})\.manifest")
_SUFFIX: Final = ".seg"


def is_segment_name(text: str) -> bool:
    """Whether a text is 64 hexadecimal digits in lower case."""
    return _SEGMENT_NAME.fullmatch(text) is not None


@dataclass(frozen=True)
class VaultLayout:
    """The paths of one vault.  Making one touches no disk.

    Attributes:
        root: the vault's directory.
    """

    root: Path

    @property
    def header(self) -> Path:
        """The public header."""
        return self.root / "vault.json"

    @property
    def database(self) -> Path:
        """The encrypted metadata."""
        return self.root / "metadata.db"

    @property
    def segments(self) -> Path:
        """The directory of sealed segments, in one directory for each first two digits of their names."""
        return self.root / "segments"

    @property
    def open_segments(self) -> Path:
        """The directory of segments being written."""
        return self.segments / "open"

    @property
    def heads(self) -> Path:
        """The directory of manifests and the head record."""
        return self.root / "heads"

    @property
    def head(self) -> Path:
        """The head record."""
        return self.heads / "HEAD"

    @property
    def history(self) -> Path:
        """The list of all snapshots that were ever made here."""
        return self.heads / "history"

    @property
    def kept(self) -> Path:
        """The directory of the manifests of kept snapshots: of histories that the vault has left for another one."""
        return self.heads / "kept"

    @property
    def adopting(self) -> Path:
        """The directory of what is fetched and made while the vault takes over another history."""
        return self.root / ".adopting"

    @property
    def remotes(self) -> Path:
        """The list of remotes; public, and absent while nothing may leave the machine."""
        return self.root / "remotes.json"

    @property
    def restoring(self) -> Path:
        """A file that is there while the vault is being fetched from elsewhere and is not complete."""
        return self.root / ".restoring"

    @property
    def cache(self) -> Path:
        """The directory of what was fetched of segments that lie elsewhere; it may be deleted while nobody uses it."""
        return self.root / "cache"

    @property
    def lock(self) -> Path:
        """The file that the one process working on the vault holds locked."""
        return self.root / "lock"

    def sealed_path(self, name: SegmentName) -> Path:
        """Where a sealed segment lies.

        Raises:
            IntegrityError: not the name of a segment, so it must not become part of a path.
        """
        if not is_segment_name(name):
            raise IntegrityError(f"not the name of a segment: {name!r}; run vaultfs fsck")
        return self.segments / name[:2] / (name + _SUFFIX)

    def open_path(self, token: str) -> Path:
        """Where a segment lies while it is written.

        Raises:
            IntegrityError: not a token, so it must not become part of a path.
        """
        if not _TOKEN.fullmatch(token):
            raise IntegrityError(f"not the token of a segment: {token!r}; run vaultfs fsck")
        return self.open_segments / (token + _SUFFIX)

    def manifest_path(self, seq: int, manifest_hash: str) -> Path:
        """Where a snapshot's manifest lies.

        Args:
            seq: the snapshot's number.
            manifest_hash: 64 hexadecimal digits, see `vaultfs.storage.manifest_format.manifest_hash`.

        Raises:
            IntegrityError: not such a hash, so it must not become part of a path.
        """
        if not is_segment_name(manifest_hash):
            raise IntegrityError(f"not the hash of a manifest: {manifest_hash!r}; run vaultfs fsck")
        return self.heads / f"{seq:010d}-{manifest_hash}.manifest"

    def kept_path(self, seq: int, manifest_hash: str) -> Path:
        """Where the manifest of a kept snapshot lies.

        Args:
            seq: the snapshot's number.
            manifest_hash: as for `manifest_path`.

        Raises:
            IntegrityError: not such a hash.
        """
        return self.kept / self.manifest_path(seq, manifest_hash).name

    def manifests_in(self, directory: Path) -> list[tuple[SnapshotSeq, str]]:
        """Number and id of every manifest in ``heads`` or ``heads/kept``, by their names, in order.

        Args:
            directory: one of the two.

        Raises:
            StorageError: it cannot be read.
        """
        found = []
        with storage_errors(f"cannot list {directory}"), os.scandir(directory) as entries:
            for entry in entries:
                match = _MANIFEST.fullmatch(entry.name)
                if match is not None and entry.is_file(follow_symlinks=False):
                    seq = SnapshotSeq(int(match[1]))
                    if self.manifest_path(seq, match[2]).name == entry.name:
                        found.append((seq, match[2]))
        return sorted(found)

    def create_directories(self) -> None:
        """Create the vault's directory and those in it, readable by their owner alone, durably; existing ones stay.

        Those inside are synced even if they existed: an earlier run may have died between creating and syncing them.
        What holds the vault's directory is synced only if this created it; else it may even be unreadable.

        Raises:
            NoSpaceError, ReadOnlyError, StorageError: also if something else has one of the names.
        """
        with storage_errors(f"cannot look at {self.root}"):
            is_new = not self.root.exists()
        for directory in (self.root, self.segments, self.open_segments, self.heads):
            with storage_errors(f"cannot create the directory {directory}"):
                directory.mkdir(mode=0o700, exist_ok=True)
        for directory in (self.segments, self.root, *([self.root.parent] if is_new else [])):
            fsync_directory(directory)

    def require_vault(self) -> None:
        """Check that this is a vault as far as can be seen without a key.

        Raises:
            NotAVaultError: there is no ``vault.json``, or it is not a regular file.
            StorageError: the disk failed.
        """
        with storage_errors(f"cannot look at {self.header}"):
            try:
                mode = self.header.lstat().st_mode
            except (FileNotFoundError, NotADirectoryError) as error:
                message = f"{self.root} is not a vault: it has no vault.json; create one with vaultfs init"
                raise NotAVaultError(message) from error
        if not stat.S_ISREG(mode):
            raise NotAVaultError(f"{self.root} is not a vault: its vault.json is not a regular file")

    def sealed_names(self) -> Iterator[SegmentName]:
        """The names of the sealed segments on disk, in ascending order.

        Raises:
            StorageError: a directory cannot be read.
        """
        for shard in _names(self.segments, _SHARD, "", directories=True):
            for name in _names(self.segments / shard, _SEGMENT_NAME, _SUFFIX):
                if name.startswith(shard):
                    yield SegmentName(name)

    def open_tokens(self) -> list[str]:
        """The tokens of the open segments on disk, in ascending order.

        Raises:
            StorageError: the directory cannot be read.
        """
        return _names(self.open_segments, _TOKEN, _SUFFIX)


def _names(directory: Path, pattern: re.Pattern[str], suffix: str, *, directories: bool = False) -> list[str]:
    """The sorted names in a directory that match, without their suffix: regular files, or directories if asked for.

    A directory that does not exist is an empty one.
    """
    found = []
    with storage_errors(f"cannot list {directory}"):
        try:
            entries = os.scandir(directory)
        except FileNotFoundError:
            return []
        with entries:
            for entry in entries:
                stem = entry.name.removesuffix(suffix)
                if not (entry.name.endswith(suffix) and pattern.fullmatch(stem)):
                    continue
                if entry.is_dir(follow_symlinks=False) if directories else entry.is_file(follow_symlinks=False):
                    found.append(stem)
    return sorted(found)
