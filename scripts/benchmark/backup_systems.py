"""The programs of the backup rows: how each makes a store, fills it from a tree, and brings everything back.

Each keeps its defaults, as a person who reads its manual's first page gets them, and encrypts what it stores; rclone
does through its ``crypt`` remote.  Nothing is tuned: not the number of connections, not the size of pieces.
"""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from benchmark.backup_places import Place, S3Place, Usage, measured
from benchmark.own import forget_peak_memory, peak_memory_mib
from benchmark.runner import warm_memory
from benchmark.systems import PASSWORD, Vaultfs, processor_ticks, run

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Restored:
    """What a restore took.

    Args:
        usable: until what came back could be used: a vault, or plain files.
        plain: until all plain files were there, by the program's own command.
        copied: until they were there, copied out of a mounted vault; the same for programs that know no vault.
    """

    usable: Usage
    plain: Usage
    copied: Usage

    @classmethod
    def plainly(cls, usage: Usage) -> Restored:
        """Of a program that restores plain files."""
        return cls(usage, usage, usage)


class Program:
    """A backup program with a store of its own.

    Args:
        home: an empty directory for its state.
        tree: what is backed up.
        place: where the store goes; this program's alone.
    """

    name: ClassVar[str]
    places: ClassVar[tuple[str, ...]] = (Place.kind, S3Place.kind)

    def __init__(self, home: Path, tree: Path, place: Place) -> None:
        self.home = home
        self.tree = tree
        self.place = place

    @classmethod
    def installed(cls) -> bool:
        """Return whether the program is there."""
        return shutil.which(cls.name) is not None

    @classmethod
    def version(cls) -> str:
        """Return one line that names program and version."""
        package = "borgbackup" if cls.name == "borg" else cls.name
        return run(["dpkg-query", "-W", "-f", "${Package} ${Version}", package])

    @property
    def environment(self) -> dict[str, str]:
        """Passwords, credentials, and a home of its own."""
        return {
            "HOME": str(self.home),
            "XDG_CACHE_HOME": str(self.home / "cache"),
            "XDG_CONFIG_HOME": str(self.home / "config"),
            "XDG_STATE_HOME": str(self.home / "state"),
            "AWS_ACCESS_KEY_ID": "bench",
            "AWS_SECRET_ACCESS_KEY": "bench",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def create(self) -> None:
        """Make an empty store."""
        raise NotImplementedError

    def take_in(self) -> Usage:
        """Have the tree where the program wants it: nothing to do, but for vaultfs."""
        return Usage(0.0, 0.0, 0.0)

    def change(self, names: list[str]) -> None:
        """Have changes of some files of the tree where the program wants them."""

    def back_up(self) -> Usage:
        """Back the tree up, as it is now."""
        raise NotImplementedError

    def restore(self, target: Path) -> Restored:
        """Bring everything back.

        Args:
            target: not there yet; the plain files are in it at the end.
        """
        raise NotImplementedError

    def end(self) -> None:
        """Leave nothing running."""


class Restic(Program):
    """restic: packs of 16 MiB, content-defined chunks, compressed."""

    name = "restic"

    @property
    def environment(self) -> dict[str, str]:
        where = f"s3:{self.place.endpoint}/{self.place.bucket}" if isinstance(self.place, S3Place) else None
        repository = where or str(self.place.directory)
        return {**super().environment, "RESTIC_PASSWORD": PASSWORD, "RESTIC_REPOSITORY": repository}

    def create(self) -> None:
        measured(["restic", "init"], env=self.environment)

    def back_up(self) -> Usage:
        return measured(["restic", "backup", "."], env=self.environment, cwd=self.tree)

    def restore(self, target: Path) -> Restored:
        usage = measured(["restic", "restore", "latest", "--target", str(target)], env=self.environment)
        inside = target / self.tree.relative_to("/")
        if inside.is_dir():  # which versions keep the whole path
            for entry in inside.iterdir():
                entry.rename(target / entry.name)
            shutil.rmtree(target / self.tree.parts[1])
        return Restored.plainly(usage)


class Borg(Program):
    """borg: segments of 500 MiB, content-defined chunks, compressed; knows no S3."""

    name = "borg"
    places = (Place.kind,)

    @property
    def environment(self) -> dict[str, str]:
        return {
            **super().environment,
            "BORG_PASSPHRASE": PASSWORD,
            "BORG_REPO": str(self.place.directory),
            "BORG_BASE_DIR": str(self.home),
        }

    def create(self) -> None:
        self.number = 0
        measured(["borg", "init", "--encryption", "repokey"], env=self.environment)

    def back_up(self) -> Usage:
        self.number += 1
        return measured(["borg", "create", f"::{self.number}", "."], env=self.environment, cwd=self.tree)

    def restore(self, target: Path) -> Restored:
        target.mkdir()
        usage = measured(["borg", "extract", f"::{self.number}"], env=self.environment, cwd=target)
        return Restored.plainly(usage)


class Rclone(Program):
    """rclone: a file for a file, encrypted; keeps no versions and finds no duplicates."""

    name = "rclone"

    @property
    def environment(self) -> dict[str, str]:
        settings = {
            **super().environment,
            "RCLONE_CONFIG": str(self.home / "rclone.conf"),
            "RCLONE_CONFIG_STORE_TYPE": "crypt",
            "RCLONE_CONFIG_STORE_REMOTE": str(self.place.directory),
            "RCLONE_CONFIG_STORE_PASSWORD": self.obscured,
        }
        if isinstance(self.place, S3Place):
            settings |= {
                "RCLONE_CONFIG_STORE_REMOTE": f"cloud:{self.place.bucket}",
                "RCLONE_CONFIG_CLOUD_TYPE": "s3",
                "RCLONE_CONFIG_CLOUD_PROVIDER": "Other",
                "RCLONE_CONFIG_CLOUD_ENDPOINT": self.place.endpoint,
                "RCLONE_CONFIG_CLOUD_ENV_AUTH": "true",
            }
        return settings

    def create(self) -> None:
        (self.home / "rclone.conf").touch()
        self.obscured = run(["rclone", "obscure", PASSWORD]).strip()

    def back_up(self) -> Usage:
        return measured(["rclone", "sync", str(self.tree), "store:"], env=self.environment)

    def restore(self, target: Path) -> Restored:
        return Restored.plainly(measured(["rclone", "copy", "store:", str(target)], env=self.environment))


class VaultfsSync(Program):
    """This project: what is backed up lies in a mounted vault, encrypted already."""

    name = "vaultfs"

    def __init__(self, home: Path, tree: Path, place: Place) -> None:
        super().__init__(home, tree, place)
        self.source = _Mounted(home / "source", self.environment)
        self.back = _Mounted(home / "back", {**self.environment, "XDG_STATE_HOME": str(home / "other-state")})

    @classmethod
    def installed(cls) -> bool:
        return Vaultfs.installed()

    @classmethod
    def version(cls) -> str:
        return Vaultfs.version()

    @property
    def environment(self) -> dict[str, str]:
        return {**super().environment, "VAULTFS_PASSWORD": PASSWORD}

    @property
    def url(self) -> str:
        """Where the remote is."""
        return f"s3://{self.place.bucket}" if isinstance(self.place, S3Place) else self.place.directory.as_uri()

    @property
    def options(self) -> list[str]:
        """How the remote is reached."""
        if not isinstance(self.place, S3Place):
            return []
        settings = (f"endpoint={self.place.endpoint}", "region=us-east-1", "path_style=true")
        return [word for setting in settings for word in ("--option", setting)]

    def create(self) -> None:
        self.source.create()
        self.source.mount()
        command = [Vaultfs.executable, "remote", "add", str(self.source.vault), "away", self.url, *self.options]
        measured(command, env=self.environment)
        self.place.sent()

    def take_in(self) -> Usage:
        usage = self.source.working(["cp", "-a", f"{self.tree}/.", str(self.source.mount_point)])
        self.source.settle()
        return usage

    def change(self, names: list[str]) -> None:
        for name in names:
            shutil.copyfile(self.tree / name, self.source.mount_point / name)
        self.source.settle()

    def back_up(self) -> Usage:
        return self.source.working([Vaultfs.executable, "sync", str(self.source.mount_point), "--quiet"])

    def restore(self, target: Path) -> Restored:
        self.source.unmount()
        self.back.prepare()
        restore = [Vaultfs.executable, "restore", self.url, "--quiet", *self.options]
        usable = measured([*restore, str(self.back.vault)], env=self.back.environment)
        start = time.perf_counter()
        self.back.mount()
        mounting = Usage(time.perf_counter() - start, 0.0, 0.0)
        copying = self.back.working(["cp", "-a", f"{self.back.mount_point}/.", str(target)])
        self.back.destroy()
        run(["diff", "-r", "--no-dereference", str(self.tree), str(target)])
        shutil.rmtree(target)
        warm_memory()
        plain = measured([*restore, str(target), "/"], env=self.back.environment)
        return Restored(usable, plain, usable + mounting + copying)

    def end(self) -> None:
        self.source.destroy()
        self.back.destroy()


class _Mounted(Vaultfs):
    """A vault whose daemon's work counts too.

    Args:
        home: see `System`.
        settings: variables of its commands.
    """

    def __init__(self, home: Path, settings: dict[str, str]) -> None:
        super().__init__(home)
        self.settings = settings

    @property
    def environment(self) -> dict[str, str]:
        return self.settings

    def working(self, command: list[str]) -> Usage:
        """Run a command, and add what the daemon does meanwhile."""
        forget_peak_memory(self)
        before = sum(processor_ticks(pid) for pid in self.daemons())
        usage = measured(command, env=self.environment)
        ticks = sum(processor_ticks(pid) for pid in self.daemons()) - before
        return usage + Usage(0.0, ticks / TICKS_PER_S, peak_memory_mib(self))


PROGRAMS: dict[str, type[Program]] = {kind.name: kind for kind in (VaultfsSync, Restic, Borg, Rclone)}
