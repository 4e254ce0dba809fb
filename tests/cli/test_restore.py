"""``vaultfs restore``: everything comes back and is checked; what is wrong, forged or in the way is told in time."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from remotes.conftest import BUCKET, s3_endpoint

import vaultfs
from vaultfs.errors import ExitCode

from .conftest import PASSWORD, Run, command, digest, make_snapshot, objects, process, read_file, write_file

__all__ = ["s3_endpoint"]

PATIENCE_S = 60


@pytest.fixture
def copied(backed_up: Path, run: Run) -> Path:
    """A vault whose remote has everything."""
    assert run("sync", backed_up, "--snapshot").code == 0
    return backed_up


def segments(directory: Path) -> list[Path]:
    return sorted(path for path in (directory / "segments").rglob("*") if path.is_file())


def stored(back: Path) -> int:
    """Bytes of the segments that a restore has fetched."""
    return sum(path.stat().st_size for path in back.glob("segments/??/*.seg"))


def change(path: Path, data: bytes) -> None:
    path.chmod(0o600)
    path.write_bytes(data)


def test_everything_comes_back(copied: Path, disk: Path, tmp_path: Path, run: Run) -> None:
    random = read_file(copied, "/random")
    shutil.rmtree(copied)
    said = run("restore", disk.as_uri(), copied, "--quiet")
    assert said.code == 0
    assert "its old directory is refused as an older copy" in said.error_line
    assert said.out.decode().startswith("Restored snapshot 1 (")
    assert said.out.decode().endswith(f"Mount it with: vaultfs mount {copied} DIR\n")
    assert read_file(copied, "/random") == random
    assert read_file(copied, "/small") == b"a few bytes"
    assert run("fsck", copied, "--quiet").code == 0
    assert copied.stat().st_mode & 0o077 == 0


def test_on_another_machine(
    copied: Path, disk: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "other state"))
    said = run("restore", disk.as_uri(), tmp_path / "back", "--quiet")
    assert (said.code, said.err) == (0, "")
    assert read_file(tmp_path / "back", "/small") == b"a few bytes"


def test_a_trial_beside_the_vault(
    copied: Path, disk: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The restored one is the vault from then on, but not for a state directory that knows nothing of it."""
    with monkeypatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path / "trial"))
        assert run("restore", disk.as_uri(), tmp_path / "trial vault").code == 0
    assert run("ls", copied).code == 0
    assert run("restore", disk.as_uri(), tmp_path / "back").code == 0
    assert run("ls", tmp_path / "back").code == 0
    assert run("ls", copied).code == ExitCode.INTEGRITY


def test_mounted(copied: Path, disk: Path, tmp_path: Path, folder: Path, passfile: Path) -> None:
    back = tmp_path / "back"
    assert process("restore", disk.as_uri(), back, "--passfile", passfile).code == 0
    assert process("mount", back, folder, "--passfile", passfile).code == 0
    assert (folder / "small").read_bytes() == b"a few bytes"
    (folder / "new").write_bytes(b"new")
    assert process("umount", folder).code == 0
    assert read_file(back, "/new") == b"new"


def test_the_restored_vault_goes_on_with_its_remote(copied: Path, disk: Path, tmp_path: Path, run: Run) -> None:
    back = tmp_path / "back"
    shutil.rmtree(copied)
    assert run("restore", disk.as_uri(), back).code == 0
    assert run("remote", "add", back, "disk", disk.as_uri(), bare=True).code == 0
    write_file(back, "/later", b"later")
    before = objects(disk)
    said = run("sync", back, "--snapshot")
    assert (said.code, said.out.endswith(b"; up to date\n")) == (0, True)
    assert before.items() <= objects(disk).items()
    assert run("restore", disk.as_uri(), tmp_path / "again").code == 0
    assert read_file(tmp_path / "again", "/later") == b"later"


def test_json(copied: Path, disk: Path, tmp_path: Path, run: Run) -> None:
    said = run("restore", disk.as_uri(), tmp_path / "back", "--json")
    document = json.loads(said.out)
    assert document["vault"] == str(tmp_path / "back")
    assert (document["snapshot"]["seq"], document["snapshot"]["files"]) == (1, 3)
    assert document["received_bytes"] >= sum(map(len, objects(disk).values()))
    last = json.loads(said.err.splitlines()[-1])
    assert (last["finished"], last["resumable"]) == (True, True)


def test_an_older_snapshot(backed_up: Path, disk: Path, tmp_path: Path, run: Run) -> None:
    make_snapshot(backed_up, "first")
    write_file(backed_up, "/small", b"changed")
    make_snapshot(backed_up, "second")
    assert run("sync", backed_up, bare=True).code == 0
    assert run("restore", disk.as_uri(), tmp_path / "one", "--snapshot", "1").code == 0
    assert read_file(tmp_path / "one", "/small") == b"a few bytes"
    (newest,) = (disk / "heads").rglob("0000000002-*")
    assert run("restore", disk.as_uri(), tmp_path / "two", "--snapshot", newest.name[11:17]).code == 0
    assert read_file(tmp_path / "two", "/small") == b"changed"
    said = run("restore", disk.as_uri(), tmp_path / "three", "--snapshot", "3")
    assert (said.code, "no snapshot '3'" in said.error_line) == (ExitCode.USAGE, True)
    assert not (tmp_path / "three").exists()


# --- the password


def test_a_wrong_password_fetches_nothing(copied: Path, disk: Path, tmp_path: Path, run: Run) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("wrong")
    wrong.chmod(0o600)
    said = run("restore", disk.as_uri(), tmp_path / "back", "--passfile", wrong, bare=True)
    assert said.code == ExitCode.WRONG_PASSWORD
    assert said.error_line
    assert not (tmp_path / "back").exists()


def test_no_password_at_all(copied: Path, disk: Path, tmp_path: Path) -> None:
    said = process("restore", disk.as_uri(), tmp_path / "back")
    assert (said.code, "no terminal to ask on" in said.error_line) == (ExitCode.USAGE, True)
    assert not (tmp_path / "back").exists()


# --- places


def test_a_place_that_is_taken(copied: Path, disk: Path, tmp_path: Path, run: Run) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis").write_bytes(b"mine")
    (tmp_path / "file").write_bytes(b"")
    for place in (full, copied, tmp_path / "file", tmp_path / "no" / "parent"):
        before = digest(place) if place.exists() else None
        said = run("restore", disk.as_uri(), place, "--quiet")
        assert said.code == ExitCode.USAGE
        assert (digest(place) if place.exists() else None) == before


def test_half_of_another_vault_is_in_the_way(copied: Path, disk: Path, tmp_path: Path, run: Run) -> None:
    other = tmp_path / "other"
    vaultfs.create_vault(other, vaultfs.Secret.password(PASSWORD), kdf=vaultfs.KdfParameters.weakest())
    for path in (other / "metadata.db", other / "heads" / "HEAD"):
        path.unlink()
    before = digest(other)
    said = run("restore", disk.as_uri(), other, "--quiet")
    assert (said.code, "another vault" in said.err) == (ExitCode.USAGE, True)
    assert digest(other) == before


# --- interrupting


@pytest.mark.parametrize("how", ["interrupted", "killed"])
def test_gone_on_with(backed_up: Path, disk: Path, tmp_path: Path, passfile: Path, run: Run, how: str) -> None:
    contents = {f"/{each}": os.urandom(1 << 20) for each in range(6)}
    for name, data in contents.items():
        write_file(backed_up, name, data)  # each in a segment of its own
    assert run("sync", backed_up, "--snapshot").code == 0
    back = tmp_path / "back"
    words = command("restore", disk.as_uri(), back, "--bwlimit", "2M", "--connections", "1", "--passfile", passfile)
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as restore:
        deadline = time.monotonic() + PATIENCE_S
        while stored(back) < 1 << 20 and time.monotonic() < deadline:
            time.sleep(0.01)
        restore.send_signal(signal.SIGINT if how == "interrupted" else signal.SIGKILL)
        out, err = restore.communicate(timeout=PATIENCE_S)
    assert restore.returncode == (ExitCode.SIGINT if how == "interrupted" else -signal.SIGKILL)
    assert out == b""
    assert b"done" not in err
    for verb in (["mount", back, tmp_path], ["fsck", "--repair", back], ["status", back]):
        refused = run(*verb, bare=True)
        assert (refused.code, "the same command again" in refused.error_line) == (ExitCode.NOT_A_VAULT, True)
    done = stored(back)

    said = run("restore", disk.as_uri(), back, "--json")
    assert said.code == 0
    total = sum(len(data) for data in objects(disk).values())
    assert json.loads(said.out)["received_bytes"] <= total - done + (1 << 20)
    assert {name: read_file(back, name) for name in contents} == contents


# --- what the remote has done


def test_a_segment_was_changed(copied: Path, disk: Path, tmp_path: Path, run: Run) -> None:
    victim = max(segments(disk), key=lambda path: path.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    change(victim, bytes(data))
    said = run("restore", disk.as_uri(), tmp_path / "back", "--quiet")
    assert said.code == ExitCode.INTEGRITY
    assert victim.name in said.err.splitlines()[-1]
    assert not (tmp_path / "back" / "heads" / "HEAD").exists()
    data[len(data) // 2] ^= 1
    change(victim, bytes(data))
    assert run("restore", disk.as_uri(), tmp_path / "back", "--quiet").code == 0, "the same command goes on"


def test_a_segment_is_missing(copied: Path, disk: Path, tmp_path: Path, run: Run) -> None:
    lost = segments(disk)[0]
    lost.unlink()
    said = run("restore", disk.as_uri(), tmp_path / "back", "--quiet")
    assert (said.code, lost.name in said.err.splitlines()[-1]) == (ExitCode.ERROR, True)
    assert run("ls", tmp_path / "back").code != 0, "what was fetched is no vault yet"


@pytest.mark.parametrize("part", ["vault.json", "heads"])
def test_a_bit_of_what_is_small(copied: Path, disk: Path, tmp_path: Path, run: Run, part: str) -> None:
    """Noticed before any segment is fetched."""
    (victim,) = [path for path in (disk / part, *(disk / part).rglob("*")) if path.is_file()]
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    change(victim, bytes(data))
    said = run("restore", disk.as_uri(), tmp_path / "back", "--quiet")
    assert said.code in {ExitCode.INTEGRITY, ExitCode.NOT_A_VAULT, ExitCode.WRONG_PASSWORD}
    assert not (tmp_path / "back").exists()


def test_a_snapshot_that_another_key_signed(copied: Path, disk: Path, tmp_path: Path, run: Run) -> None:
    """Who can write to the remote, but has no key, puts a newer snapshot there: correct but for the key."""
    from vaultfs.crypto.device import DeviceKey
    from vaultfs.storage.manifest_format import Manifest, manifest_hash

    (ours,) = (path for path in (disk / "heads").rglob("*") if path.is_file())
    manifest, _ = Manifest.decode(ours.read_bytes())
    forger = DeviceKey(bytes(32))
    forged = Manifest(
        manifest.vault_id,
        forger.public,
        type(manifest.seq)(manifest.seq + 1),
        manifest.created_ns,
        manifest.previous,
        manifest.segments,
        manifest.private,
    )
    data = forged.encode(forger.sign(forged.signed_bytes()))
    place = disk / "heads" / forger.public.hex()
    place.mkdir()
    (place / f"{forged.seq:010d}-{manifest_hash(data)}").write_bytes(data)
    said = run("restore", disk.as_uri(), tmp_path / "back", "--quiet")
    assert (said.code, "a key that this vault does not have" in said.error_line) == (ExitCode.INTEGRITY, True)
    assert not (tmp_path / "back").exists(), "nothing was fetched for it"
    assert run("restore", disk.as_uri(), tmp_path / "back", "--snapshot", "1", "--quiet").code == 0


def test_no_vault_there(disk: Path, tmp_path: Path, run: Run) -> None:
    said = run("restore", disk.as_uri(), tmp_path / "back")
    assert (said.code, "no snapshot on the remote" in said.error_line) == (ExitCode.USAGE, True)
    said = run("restore", (tmp_path / "nothing").as_uri(), tmp_path / "back")
    assert said.code == ExitCode.REMOTE_UNREACHABLE
    said = run("restore", "s3://user:secret-8f1@bucket", tmp_path / "back")
    assert (said.code, "secret-8f1" in said.err) == (ExitCode.USAGE, False)
    assert not (tmp_path / "back").exists()


# --- S3


def test_through_s3(
    backed_up: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, s3_endpoint: str
) -> None:
    """Add, sync, verify, delete the vault, restore."""
    secret = "canary-5e0b-secret-key"
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    url = f"s3://{BUCKET}/{tmp_path.name}"
    options = ["--option", f"endpoint={s3_endpoint}", "--option", "region=us-east-1", "--option", "path_style=true"]
    added = run("remote", "add", backed_up, "cloud", url, *options, bare=True)
    assert (added.code, added.err) == (0, "")
    said = run("sync", backed_up, "cloud", "--snapshot", "--json")
    assert said.code == 0
    assert run("sync", backed_up, "cloud", bare=True).out == b"cloud: up to date\n"
    assert run("verify", backed_up, "cloud", "--read-data", bare=True).code == 0
    random = read_file(backed_up, "/random")
    listed = run("remote", "list", backed_up, bare=True)
    assert secret.encode() not in added.out + said.out + said.err.encode() + listed.out
    assert secret not in (backed_up / "remotes.json").read_text()
    shutil.rmtree(backed_up)
    assert run("restore", url, backed_up, *options).code == 0
    assert read_file(backed_up, "/random") == random
