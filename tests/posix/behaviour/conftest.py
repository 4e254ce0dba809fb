"""One vault, mounted through the command line, for all tests of this package; each test has a folder of its own in it.

With the variable VAULTFS_TEST_NATIVE naming a directory, the tests run in that directory instead: what fails on ext4 or
tmpfs as well is a fault of the test.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from backup_faults.real_processes import Forker

NATIVE_VARIABLE = "VAULTFS_TEST_NATIVE"
PASSWORD = "correct horse battery staple"
PACKAGE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if PACKAGE not in item.path.parents:
            continue
        item.add_marker(pytest.mark.fuse)
        if item.get_closest_marker("root") and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="takes another user's place, which needs root"))


class Volume:
    """A filesystem to test: a mounted vault, or a native directory.

    Attributes:
        root: the folder.
        backing: where its bytes are stored in the end.
    """

    def __init__(self, base: Path, native: Path | None, forker: Forker) -> None:
        self._forker = forker
        self.is_native = native is not None
        self.root = native or base / "folder"
        self.backing = native or base / "vault"
        self._passfile = base / "password"
        if not self.is_native:
            self._passfile.write_text(f"{PASSWORD}\n", encoding="ascii")
            self._passfile.chmod(0o600)
            self.root.mkdir()
            self._vaultfs("init", self.backing, "--passfile", self._passfile, "--kdf-memory", "64M")
            forker.stretch(self.backing, PASSWORD)

    def mount(self) -> None:
        if self.is_native:
            return
        # The rights of root that mount(2) grants to nobody by default; tests of set-id bits and devices need them.
        more = ["--allow-other", "-o", "suid,dev"] if os.geteuid() == 0 else []
        self._vaultfs("mount", self.backing, self.root, "--passfile", self._passfile, *more)

    def umount(self) -> None:
        if not self.is_native:
            self._vaultfs("umount", self.root)

    def remount(self) -> None:
        """Unmount and mount again: whatever only the daemon or the kernel knew is forgotten."""
        self.umount()
        self.mount()

    def _vaultfs(self, *words: str | Path) -> None:
        ended = self._forker.run(*words)
        assert ended.code == 0, f"vaultfs {words[0]}: exit code {ended.code}\n{ended.err}"


@contextmanager
def new_volume(forker: Forker) -> Iterator[Volume]:
    # Not below pytest's own directory: other users could not reach it.
    base = Path(tempfile.mkdtemp(prefix="vaultfs-posix-"))
    base.chmod(0o711)
    native = os.environ.get(NATIVE_VARIABLE)
    volume = Volume(base, Path(native).resolve() if native else None, forker)
    volume.mount()
    try:
        yield volume
    finally:
        volume.umount()
        shutil.rmtree(base)


@contextmanager
def folder_in(volume: Volume) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="test-", dir=volume.root))
    folder.chmod(0o755)
    mask = os.umask(0o022)
    try:
        yield folder
    finally:
        os.umask(mask)
        # rm, because shutil.rmtree cannot remove paths longer than 4,095 bytes.
        subprocess.run(["rm", "-rf", "--", folder], check=True)


@pytest.fixture(scope="session")
def volume(forker: Forker) -> Iterator[Volume]:
    """The volume that all tests share."""
    with new_volume(forker) as volume:
        yield volume


@pytest.fixture
def own_volume(forker: Forker) -> Iterator[Volume]:
    """A volume of the test's own, that it may unmount."""
    with new_volume(forker) as volume:
        yield volume


@pytest.fixture
def mounted(volume: Volume) -> Iterator[Path]:
    """An empty folder in the shared volume."""
    with folder_in(volume) as folder:
        yield folder
