"""Opening: two at once, read-only after a crash, older copies, odd clocks, forks, a random source that repeats."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vaultfs.crypto.aead import NONCE_BYTES
from vaultfs.errors import IntegrityError, ReadOnlyError, RollbackError, VaultError, VaultLockedError
from vaultfs.vault import opening
from vaultfs.vault.api import Vault

from .vaults import CHUNK_BYTES, KEY, Makers, Place, on_disk, read, require_consistent, write


def crashed(place: Place) -> dict[str, bytes]:
    """A vault with chunks in an open segment, records in the log, and an orphan; return what is in its files."""
    fs = place.open()
    vault = Vault(fs)
    write(vault, "/a", b"a" * 3 * CHUNK_BYTES)
    write(vault, "/b", b"b" * 100)
    write(vault, "/gone", b"c" * 2 * CHUNK_BYTES)
    vault.commit()
    gone = vault.open("/gone", "r+b")
    vault.remove("/gone")
    write(vault, "/a", b"A" * 2 * CHUNK_BYTES, 100)
    vault.truncate("/b", 50)
    fs.committer.fsync()
    place.crash(fs)
    gone.close()
    content = bytearray(b"a" * 3 * CHUNK_BYTES)
    content[100 : 100 + 2 * CHUNK_BYTES] = b"A" * 2 * CHUNK_BYTES
    return {"/a": bytes(content), "/b": b"b" * 50}


def test_two_at_once(place: Place) -> None:
    with place.opened(), pytest.raises(VaultLockedError, match="in use by process"):
        place.open()
    with place.opened():
        pass


def test_two_at_once_on_the_command_line(place: Place, tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("whatever\n")
    secret.chmod(0o600)
    with place.opened():
        done = subprocess.run(
            [sys.executable, "-m", "vaultfs.cli", "ls", place.root, "--passfile", secret],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 11, done.stderr
    assert "in use" in done.stderr


def test_reading_a_crashed_vault_changes_nothing(place: Place) -> None:
    expected = crashed(place)
    before = on_disk(place.root)
    fs = place.open(read_only=True)
    vault = Vault(fs)
    assert {f"/{name.decode()}": read(vault, f"/{name.decode()}") for name in vault.listdir()} == expected
    with pytest.raises(ReadOnlyError):
        write(vault, "/a", b"x")
    fs.close()
    assert on_disk(place.root) == before
    with place.opened() as later:
        assert {f"/{name.decode()}": read(later, f"/{name.decode()}") for name in later.listdir()} == expected
    require_consistent(place.root)


def test_reading_a_closed_vault_changes_nothing(place: Place) -> None:
    with place.opened() as vault:
        write(vault, "/a", b"a" * 3 * CHUNK_BYTES)
    before = on_disk(place.root)
    fs = place.open(read_only=True)
    assert read(Vault(fs), "/a") == b"a" * 3 * CHUNK_BYTES
    fs.close()
    assert on_disk(place.root) == before


@pytest.mark.parametrize("read_only", [False, True])
def test_an_older_copy_of_the_vault_is_refused(place: Place, read_only: bool) -> None:
    with place.opened() as vault:
        write(vault, "/a", b"old")
    older = place.base / "older"
    shutil.copytree(place.root, older)
    with place.opened() as vault:
        write(vault, "/a", b"new")
    newer, place.root = place.root, older
    before = on_disk(older)
    with pytest.raises(RollbackError, match="older copy"):
        place.open(read_only=read_only)
    assert on_disk(older) == before
    place.root = newer
    with place.opened() as vault:
        assert read(vault, "/a") == b"new"


def test_an_older_copy_from_before_a_crash_is_refused(place: Place) -> None:
    shutil.copytree(place.root, place.base / "older")
    place.crash(place.open())
    place.root = place.base / "older"
    # The crashed mount has announced itself to the witness, so this fork of the vault is known to be older.
    with pytest.raises(RollbackError):
        place.open()


def test_without_a_witness_any_copy_is_taken(place: Place) -> None:
    shutil.copytree(place.root, place.base / "older")
    with place.opened():
        pass
    shutil.rmtree(place.base / "state")
    place.root = place.base / "older"
    with place.opened():
        pass


def test_an_older_database_is_refused(place: Place) -> None:
    database = place.root / "metadata.db"
    older = database.read_bytes()
    with place.opened() as vault:
        write(vault, "/a", b"text")
    database.write_bytes(older)
    with pytest.raises(IntegrityError, match="not the database"):
        place.open()


def test_a_clock_that_goes_back_ten_years(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with place.opened() as vault:
        write(vault, "/a", b"first")
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() - 10 * 365 * 86_400 * 10**9)
    with place.opened() as vault:
        write(vault, "/a", b"second")
        vault.create_snapshot()
        assert vault.stat("/a").st_mtime_ns < real() - 9 * 365 * 86_400 * 10**9
    monkeypatch.undo()
    os.environ["XDG_STATE_HOME"] = str(place.base / "state")
    with place.opened() as vault:
        assert read(vault, "/a") == b"second"
        assert len(vault.snapshots()) == 1
    require_consistent(place.root)


def nonces(root: Path) -> list[bytes]:
    """Of all chunks, found through the database."""
    place = Place(root.parent, root)
    fs = place.open(read_only=True)
    found = []
    for segment in fs.chunk_rows.segments():
        assert segment.name is not None
        data = (root / "segments" / segment.name[:2] / f"{segment.name}.seg").read_bytes()
        found += [
            segment.salt + data[row.offset : row.offset + NONCE_BYTES]
            for row in fs.chunk_rows.chunks_of_segment(segment.id)
        ]
    fs.close()
    return found


def test_a_random_source_that_repeats(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments have one salt then, and so one key; chunks that differ still have nonces that differ."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "urandom", lambda size: b"\7" * size)
        for number in range(3):
            with place.opened() as vault:
                content = b"".join(bytes([number * 10 + each + 1]) * CHUNK_BYTES for each in range(8))
                write(vault, f"/{number}", content)
    found = nonces(place.root)
    assert len(found) == 24
    assert len(set(found)) == 24
    require_consistent(place.root)


def test_a_fork_has_nonces_of_its_own(place: Place) -> None:
    """As when a mount goes into the background: parent and child write the same chunk into their own copies."""
    fs = place.open()
    vault = Vault(fs)
    write(vault, "/before", b"x" * CHUNK_BYTES)
    fs.committer.commit()
    fs.close()
    copy = place.base / "copy"
    shutil.copytree(place.root, copy)
    other = Place(place.base, copy)
    fs = place.open()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.environ["XDG_STATE_HOME"] = str(place.base / "other-state")
            other.base = place.base / "other"
            other.base.mkdir()
            with other.opened() as theirs:
                write(theirs, "/new", b"y" * CHUNK_BYTES)
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert status == 0
    write(Vault(fs), "/new", b"y" * CHUNK_BYTES)
    fs.close()
    shutil.rmtree(place.base / "state")
    found = nonces(place.root) + nonces(copy)
    assert len(found) == 4
    assert len(set(found)) == 3


def test_out_of_descriptors(makers: Makers, scratch: Path) -> None:
    """Each operation fails or succeeds as a whole, and all is well once there are descriptors again."""
    place = makers.place(scratch)
    with place.opened() as vault:
        for number in range(6):
            write(vault, f"/{number}", bytes([number + 1]) * 2 * CHUNK_BYTES)
            vault.commit()
            vault.filesystem.pipeline.seal()
            vault.commit()
    fs = place.open()
    vault = Vault(fs)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(int(name) for name in os.listdir("/proc/self/fd"))
    spare: list[int] = []
    while not spare or spare[-1] < used + 12:
        spare.append(os.dup(0))
    acknowledged, failed = b"", 0
    for round_ in range(12):
        content = bytes([round_ + 100]) * 2 * CHUNK_BYTES
        resource.setrlimit(resource.RLIMIT_NOFILE, (spare[-1] + 1, hard))
        try:
            for number in range(6):
                assert read(vault, f"/{number}") == bytes([number + 1]) * 2 * CHUNK_BYTES
            write(vault, "/new", content)
            fs.committer.commit()
            acknowledged = content
        except VaultError:
            failed += 1
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        os.close(spare.pop(0))
    for descriptor in spare:
        os.close(descriptor)
    for number in range(6):
        assert read(vault, f"/{number}") == bytes([number + 1]) * 2 * CHUNK_BYTES
    assert failed
    assert failed
    place.crash(fs)
    with place.opened() as found:
        for number in range(6):
            assert read(found, f"/{number}") == bytes([number + 1]) * 2 * CHUNK_BYTES
        if acknowledged:
            assert read(found, "/new") == acknowledged
    require_consistent(place.root)


def test_a_wrong_key_changes_nothing(place: Place) -> None:
    from vaultfs.crypto.slots import Secret
    from vaultfs.errors import WrongPasswordError

    before = on_disk(place.root)
    with pytest.raises(WrongPasswordError):
        opening.open_filesystem(place.root, Secret.generate_recovery()[0])
    assert on_disk(place.root) == before
    opening.open_filesystem(place.root, KEY).close()
