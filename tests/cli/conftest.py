"""One vault is made for all tests of this package; each test gets a copy of it, and a state directory of its own."""

from __future__ import annotations

import hashlib
import importlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

import vaultfs
from vaultfs.cli import systemd
from vaultfs.cli.main import main
from vaultfs.cli.verbs import VERBS
from vaultfs.ids import InodeId

if TYPE_CHECKING:
    from backup_faults.real_processes import Forker

REPOSITORY = Path(__file__).parents[2]
PASSWORD = "correct horse battery staple"
NOBODY = 65534


@dataclass(frozen=True)
class Said:
    """What a command answered."""

    code: int
    out: bytes
    err: str

    @property
    def error_line(self) -> str:
        """The one line on standard error."""
        lines = self.err.splitlines()
        assert len(lines) == 1, f"not one line: {self.err!r}"
        assert lines[0].startswith("vaultfs: ")
        return lines[0]


@pytest.fixture
def tmp_path(scratch: Path) -> Path:
    """In memory: vaults are synced all the time."""
    return scratch


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty vault with the cheapest key derivation."""
    base = tmp_path_factory.mktemp("template")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(base / "state"))
        vaultfs.create_vault(base / "vault", vaultfs.Secret.password(PASSWORD), kdf=vaultfs.KdfParameters.weakest())
    return base / "vault"


@pytest.fixture(scope="session", autouse=True)
def quick_unlocking() -> Iterator[None]:
    """Each secret is stretched once per salt: a key derivation takes longer than most tests."""
    known: dict[tuple[object, bytes, bytes], bytes] = {}
    real = vaultfs.KdfParameters.derive

    def derive(self: vaultfs.KdfParameters, secret: bytes, salt: bytes) -> bytes:
        key = (self, bytes(secret), bytes(salt))
        if key not in known:
            known[key] = real(self, secret, salt)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vaultfs.KdfParameters, "derive", derive)
        yield


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Witnesses of one test's copy of the vault say nothing about another's."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for name in ("VAULTFS_PASSWORD", "CREDENTIALS_DIRECTORY", "VAULTFS_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "state"


@pytest.fixture
def vault(template: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "vault"
    shutil.copytree(template, copy)
    return copy


@pytest.fixture
def passfile(tmp_path: Path) -> Path:
    file = tmp_path / "password"
    file.write_text(PASSWORD + "\n", encoding="ascii")
    file.chmod(0o600)
    return file


Run = Callable[..., Said]


@pytest.fixture
def run(capsysbinary: pytest.CaptureFixture[bytes], passfile: Path) -> Run:
    """Call ``main`` in this process, with the password unless ``bare`` is given."""

    def call(verb: str, *words: str | Path, bare: bool = False) -> Said:
        capsysbinary.readouterr()
        secret = [] if bare else ["--passfile", str(passfile)]
        code = main([verb, *secret, *map(str, words)])
        out, err = capsysbinary.readouterr()
        return Said(code, out, err.decode(errors="surrogateescape"))

    return call


Command = Callable[..., list[str]]


def command(*words: str | Path) -> list[str]:
    """The command line of a real process."""
    return [sys.executable, "-m", "vaultfs.cli", *map(str, words)]


_quick: Final[list[Forker]] = []


@pytest.fixture(scope="session", autouse=True)
def quick_processes(forker: Forker, template: Path) -> Iterator[None]:
    """Real processes are forked from one that has imported everything and knows the key of the template."""
    forker.stretch(template, PASSWORD)
    _quick.append(forker)
    yield
    _quick.clear()


def process(*words: str | Path, **options: object) -> Said:
    """Run a real process, without a terminal; with options, a Python of its own begins it."""
    if _quick and not options:
        ended = _quick[0].run(*words)
        return Said(ended.code, ended.printed, ended.complained.decode(errors="surrogateescape"))
    settings: dict[str, object] = {"stdin": subprocess.DEVNULL, "start_new_session": True, **options}
    done = subprocess.run(command(*words), capture_output=True, check=False, timeout=120, **settings)  # type: ignore[call-overload]
    return Said(done.returncode, done.stdout, done.stderr.decode(errors="surrogateescape"))


def as_ordinary_user(*words: str | Path) -> int:
    """Run a command in a child of this process as an ordinary user, and return its exit code.

    Not a new process: such a user may not be able to read the Python that runs the tests.
    """
    for verb in VERBS:
        importlib.import_module(f"vaultfs.cli.{verb}")
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 255
    try:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        code = main([str(word) for word in words])
    finally:
        os._exit(code)


@pytest.fixture
def reachable(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory that an ordinary user can reach; pytest shuts its own ones to others whenever a run begins."""
    where = Path(tempfile.mkdtemp(prefix="vaultfs-cli-"))
    where.chmod(0o711)
    monkeypatch.setenv("XDG_STATE_HOME", str(where / "state"))
    yield where
    shutil.rmtree(where)


def give_to_ordinary_user(top: Path, *but: Path) -> None:
    """Let the ordinary user have a directory and what is in it."""
    for path in [top, *top.rglob("*")]:
        if path not in but:
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)


def opened(vault: Path) -> vaultfs.Vault:
    return vaultfs.open_vault(vault, vaultfs.Secret.password(PASSWORD))


def listing(vault: Path) -> list[bytes]:
    """The root directory, the hidden one included, as it is before anything is swept."""
    with vaultfs.open_vault(vault, vaultfs.Secret.password(PASSWORD), read_only=True) as found:
        return sorted(found.listdir("/"))


def write_file(vault: Path, path: str, data: bytes) -> None:
    with opened(vault) as found, found.open(path, "wb") as file:
        file.write(data)


def read_file(vault: Path, path: str) -> bytes:
    with (
        vaultfs.open_vault(vault, vaultfs.Secret.password(PASSWORD), read_only=True) as found,
        found.open(path) as file,
    ):
        return file.read()


def digest(directory: Path, *but: str) -> str:
    """A hash over every name, mode and byte below a directory.

    Left out are the contents of files that are named in ``but``, the lock, which tells who came last, and the state
    directory, which has the log of a mount that failed.
    """
    total = hashlib.sha256()
    for path in sorted(directory.rglob("*")):
        if directory / "state" in {path, *path.parents} or path.name in but:
            continue
        status = path.lstat()
        total.update(f"{path.relative_to(directory)} {status.st_mode} ".encode(errors="surrogateescape"))
        if path.is_file() and not path.is_symlink() and path.name != "lock":
            total.update(path.read_bytes())
    return total.hexdigest()


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A directory to be a remote."""
    where = tmp_path / "disk"
    where.mkdir()
    return where


@pytest.fixture
def backed_up(vault: Path, disk: Path, run: Run) -> Path:
    """A vault with some MiB in it, of which nothing was copied to its remote yet."""
    write_file(vault, "/random", os.urandom(3 << 20))
    write_file(vault, "/small", b"a few bytes")
    assert run("remote", "add", vault, "disk", disk.as_uri(), bare=True).code == 0
    return vault


def make_snapshot(vault: Path, label: str = "") -> int:
    """Its number."""
    with opened(vault) as found:
        return found.create_snapshot(label).seq


def objects(remote: Path) -> dict[str, bytes]:
    """Everything in a directory that is a remote; what is still being stored there has a hidden name."""
    files = (path for path in sorted(remote.rglob("*")) if path.is_file() and not path.name.startswith("."))
    return {str(path.relative_to(remote)): path.read_bytes() for path in files}


def damage(vault: Path, path: str, offset: int) -> None:
    """Flip a bit of the sealed chunk that holds a byte of a file."""
    with vaultfs.open_vault(vault, vaultfs.Secret.password(PASSWORD), read_only=True) as found:
        fs = found.filesystem
        number = vaultfs_inode(found, path)
        (place,) = fs.chunk_rows.places(number, offset // fs.chunk_size, offset // fs.chunk_size)
        segment = fs.chunk_rows.segment(place.segment)
        assert segment is not None
        assert segment.name is not None
    file = vault / "segments" / segment.name[:2] / f"{segment.name}.seg"
    mode = file.stat().st_mode
    file.chmod(0o600)
    with file.open("r+b") as stream:
        stream.seek(place.offset + place.stored // 2)
        byte = stream.read(1)[0]
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte ^ 1]))
    file.chmod(mode)


def vaultfs_inode(found: vaultfs.Vault, path: str) -> InodeId:
    return InodeId(found.stat(path).st_ino)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A mount point; what is left mounted on it is unmounted."""
    if not os.path.exists("/dev/fuse"):
        pytest.skip("there is no /dev/fuse")
    where = tmp_path / "folder"
    where.mkdir()
    yield where
    if os.path.ismount(where):
        process("umount", where)


# --- systemd

FAKE = """#!/bin/sh
printf '%s\\n' "$*" >> {log}
case "$*" in {fails}) echo "refused by the fake" >&2; exit 1;; esac
"""


@pytest.fixture
def units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the units of an ordinary user go, whoever runs the tests."""
    monkeypatch.setattr(systemd.os, "geteuid", lambda: 1000)  # type: ignore[attr-defined]
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config" / "systemd" / "user"


Programs = Callable[..., Callable[[], list[str]]]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    """Make a systemctl that fails for some words (a pattern of the shell), and give what it was asked since."""

    def make(fails: str = "''") -> Callable[[], list[str]]:
        where, log = tmp_path / "bin", tmp_path / "asked"
        where.mkdir(exist_ok=True)
        program = where / "systemctl"
        program.write_text(FAKE.format(log=shlex.quote(str(log)), fails=fails))
        program.chmod(0o700)
        monkeypatch.setenv("PATH", f"{where}:/usr/bin:/bin")

        def asked() -> list[str]:
            lines = log.read_text().splitlines() if log.exists() else []
            log.unlink(missing_ok=True)
            return lines

        return asked

    return make


@pytest.fixture
def no_systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without any program of systemd."""
    (tmp_path / "nothing").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))


@pytest.fixture
def scratch_directories(own_state: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What belongs to the user lies where syncing costs nothing."""
    for name in ("CONFIG", "CACHE", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(scratch / name.lower()))


@pytest.fixture
def no_scrub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peers do not look after their disks meanwhile: they would find damage before anybody asks."""
    from vaultfs.mesh.replica_scrub import Scrubbed  # few tests need it
    from vaultfs.mesh.replicas import ReplicaStore  # likewise

    monkeypatch.setattr(ReplicaStore, "scrub_some", lambda _store, _most_bytes: Scrubbed(0, 0, (), True))


@pytest.fixture
def own_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The address book and the identity of one test."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config"


@pytest.fixture(scope="session")
def held_by_peers(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vault with three snapshots, which two peers hold; each needs data that the others do not.

    With all that this machine and the peers have and know, to be copied by a test that uses it.
    """
    from .served_peers import ServedPeers  # loads an event loop

    base = tmp_path_factory.mktemp("held")
    shutil.copytree(template, base / "vault")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(base / "state"))
        patch.setenv("XDG_CONFIG_HOME", str(base / "config"))
        peers = ServedPeers.of(base)
        try:
            assert main(["remote", "add", str(base / "vault"), "mesh", peers.url]) == 0
            for label in ("first", "second", "third"):
                add_to_peers(base / "vault", label)
        finally:
            peers.close()
    return base


def add_to_peers(vault: Path, label: str) -> None:
    """Other data, a snapshot of it, and a sync."""
    write_file(vault, "/file", os.urandom(300_000))
    make_snapshot(vault, label)
    assert main(["sync", str(vault), "--quiet"]) == 0
