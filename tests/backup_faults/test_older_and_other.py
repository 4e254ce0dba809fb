"""A remote that shows an older state, another history, another vault, or something that nobody with a key has made."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from cli.conftest import Run, make_snapshot, read_file, write_file

from vaultfs.crypto.device import DeviceKey
from vaultfs.errors import ExitCode
from vaultfs.ids import SnapshotSeq
from vaultfs.storage.manifest_format import FORMAT_VERSION, Manifest, manifest_hash

from .conftest import require_complete_heads, require_next_is_clean, require_restored, verified
from .real_processes import Forker
from .s3_double import S3Double, Say, Stop, at, each

DEEP = 100_000
FORGER = DeviceKey(bytes(32))


def put(double: S3Double, device: str, seq: int, data: bytes) -> str:
    """Have a manifest on the remote, under the name that its content has."""
    key = f"backup/heads/{device}/{seq:010d}-{manifest_hash(data)}"
    double.objects[key] = data
    return key


def ours(double: S3Double) -> tuple[Manifest, bytes]:
    """The newest manifest on the remote, and its signature."""
    data = max((key.rpartition("/")[2], data) for key, data in double.stored().items() if key.startswith("heads/"))[1]
    return Manifest.decode(data)


def restore(double: S3Double, back: Path, run: Run, *more: str) -> tuple[int, str]:
    said = run("restore", double.url, back, *double.options, "--quiet", *more)
    return said.code, said.err


@pytest.fixture
def rolled_back(copied: Path, double: S3Double, run: Run) -> Path:
    """The vault has sent a second snapshot, and the remote is as it was before that, also in its header."""
    before = dict(double.objects)
    write_file(copied, "/later", b"later")
    assert run("sync", copied, "--snapshot", "--quiet").code == 0
    double.objects = before
    double.heal()
    return copied


@pytest.mark.parametrize("verb", ["restore", "clone"])
def test_an_older_state_is_not_taken_for_the_newest(
    rolled_back: Path, double: S3Double, run: Run, tmp_path: Path, verb: str
) -> None:
    words = [verb, double.url, tmp_path / "back", *double.options, "--quiet"]
    said = run(*words)
    assert (said.code, "this machine has put snapshot 2" in said.error_line) == (ExitCode.INTEGRITY, True), said.err
    assert "gone, or held back" in said.error_line
    assert not (tmp_path / "back").exists()
    chosen = said.error_line.rpartition("--snapshot ")[2]
    assert run(*words, "--snapshot", chosen).code == 0, "whoever asks for it gets it"
    if verb == "restore":
        require_restored(tmp_path / "back")


def test_an_older_state_is_brought_up_to_date(rolled_back: Path, double: S3Double, run: Run, tmp_path: Path) -> None:
    require_next_is_clean(rolled_back, double, run)
    assert restore(double, tmp_path / "back", run)[0] == 0
    assert read_file(tmp_path / "back", "/later") == b"later"


def test_a_newest_snapshot_that_is_only_not_listed(copied: Path, double: S3Double, run: Run, tmp_path: Path) -> None:
    write_file(copied, "/later", b"later")
    assert run("sync", copied, "--snapshot", "--quiet").code == 0
    listed = double.objects
    hidden = next(key for key in listed if "/0000000002-" in key)
    double.plan = lambda asked: (
        Say(200, _listing({key: data for key, data in listed.items() if key != hidden and key.startswith(asked.key)}))
        if asked.method == "LIST"
        else None
    )
    code, err = restore(double, tmp_path / "back", run)
    assert (code, "it is there, but not listed" in err) == (ExitCode.INTEGRITY, True), err
    require_next_is_clean(copied, double, run)
    assert restore(double, tmp_path / "back", run)[0] == 0


def _listing(objects: dict[str, bytes]) -> bytes:
    from .s3_double import listing

    return listing([(key, len(data)) for key, data in objects.items()]).body


def test_a_machine_that_has_sent_nothing_cannot_know(
    rolled_back: Path, double: S3Double, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the documentation says of a machine that has never seen the vault."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another machine"))
    assert restore(double, tmp_path / "back", run)[0] == 0
    require_restored(tmp_path / "back")


def test_an_old_header(copied: Path, double: S3Double, run: Run, tmp_path: Path) -> None:
    """The remote puts back the vault.json from before the password was changed: it is put there again."""
    old = double.objects["backup/vault.json"]
    new = tmp_path / "new"
    new.write_text("another password")
    new.chmod(0o600)
    assert run("passwd", copied, "--new-passfile", new).code == 0
    assert run("sync", copied, "--quiet", bare=True).code == 0
    double.objects["backup/vault.json"] = old
    require_next_is_clean(copied, double, run)


def test_two_copies_that_sync_at_once(
    copied: Path, double: S3Double, forker: Forker, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two machines have looked, and each puts its own second snapshot: two heads with one parent.

    Nothing is lost, both are whole, and from then on everybody is told.
    """
    twin, here, there = tmp_path / "twin", tmp_path / "state", tmp_path / "the other machine"
    shutil.copytree(copied, twin)
    shutil.copytree(here, there)
    write_file(copied, "/here", b"here")
    make_snapshot(copied)
    double.plan = each(lambda asked: asked.method == "PUT", Stop("before"), times=1)
    first = forker.start("sync", copied, "--quiet", "--connections", "1")
    double.stopped()
    with monkeypatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(there))
        write_file(twin, "/there", b"there")
        make_snapshot(twin)
        assert run("sync", twin, "--quiet", bare=True).code == 0
    double.release()
    assert first.wait().code == 0
    assert len([key for key in double.stored() if "/0000000002-" in key]) == 2
    require_complete_heads(double.stored())
    assert verified(double, run).code == 0

    write_file(copied, "/here too", b"here")
    said = run("sync", copied, "--snapshot", "--quiet")
    assert (said.code, "which this vault does not come from" in said.err) == (ExitCode.ERROR, True)
    code, err = restore(double, tmp_path / "back", run)
    assert (code, "choose" in err) == (ExitCode.USAGE, True)
    for each_one in [key for key in double.stored() if "/0000000002-" in key]:
        chosen = each_one.rpartition("-")[2][:12]
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / chosen))
        code, err = restore(double, tmp_path / f"back {chosen}", run, "--snapshot", chosen)
        assert code == 0, err
    assert double.troubles == []


# --- what nobody with a key has made


def forged_by_another_device(double: S3Double) -> str:
    manifest, _ = ours(double)
    seq = SnapshotSeq(manifest.seq + 1)
    forged = Manifest(
        manifest.vault_id, FORGER.public, seq, manifest.created_ns, None, manifest.segments, manifest.private
    )
    return put(double, FORGER.public.hex(), seq, forged.encode(FORGER.sign(forged.signed_bytes())))


def forged_signature(double: S3Double) -> str:
    manifest, _ = ours(double)
    seq = SnapshotSeq(manifest.seq + 1)
    forged = Manifest(
        manifest.vault_id, manifest.device, seq, manifest.created_ns, None, manifest.segments, manifest.private
    )
    return put(double, manifest.device.hex(), seq, forged.encode(bytes(64)))


def deep(double: S3Double) -> str:
    manifest, signature = ours(double)
    data = manifest.encode(signature)[:72] + b"\x91" * DEEP + b"\xc0"
    return put(double, manifest.device.hex(), manifest.seq + 1, data)


def of_impossible_segments(double: S3Double) -> str:
    """It needs, as it says, more than all disks of this world hold."""
    manifest, _ = ours(double)
    seq = SnapshotSeq(manifest.seq + 1)
    segments = tuple((type(manifest.segments[0][0])(f"{number:064x}"), 1 << 62) for number in range(1, 1000))
    forged = Manifest(manifest.vault_id, FORGER.public, seq, 0, None, segments, b"")
    return put(double, FORGER.public.hex(), seq, forged.encode(FORGER.sign(forged.signed_bytes())))


def of_another_vault(double: S3Double) -> str:
    manifest, _ = ours(double)
    seq = SnapshotSeq(manifest.seq + 1)
    other = Manifest(type(manifest.vault_id)(bytes(16)), FORGER.public, seq, 0, None, (), b"")
    return put(double, FORGER.public.hex(), seq, other.encode(FORGER.sign(other.signed_bytes())))


def newer(double: S3Double) -> str:
    """As the next version of vaultfs may write them."""
    data = b"VFSMAN\0" + bytes([FORMAT_VERSION + 1]) + bytes(64) + msgspec.msgpack.encode(["something new"])
    return put(double, "a" * 64, 2, data)


def too_long(double: S3Double) -> str:
    return put(double, "a" * 64, 2, bytes((64 << 20) + 1))


INTEGRITY, ERROR, TOO_NEW = ExitCode.INTEGRITY, ExitCode.ERROR, ExitCode.FORMAT_TOO_NEW


@pytest.mark.parametrize(
    ("forge", "sync", "verify", "fetch"),
    [
        # Without a key nobody sees that these are forged; so what the sync says is that somebody else was there.
        (forged_by_another_device, ERROR, ExitCode.OK, INTEGRITY),
        (forged_signature, ERROR, ExitCode.OK, INTEGRITY),
        (of_impossible_segments, ERROR, INTEGRITY, INTEGRITY),
        (deep, INTEGRITY, INTEGRITY, INTEGRITY),
        (of_another_vault, INTEGRITY, INTEGRITY, INTEGRITY),
        (newer, TOO_NEW, TOO_NEW, TOO_NEW),
        pytest.param(too_long, INTEGRITY, INTEGRITY, INTEGRITY, marks=pytest.mark.long),
    ],
)
def test_snapshots_that_somebody_put_there(
    copied: Path,
    double: S3Double,
    run: Run,
    tmp_path: Path,
    forge: Callable[[S3Double], str],
    sync: ExitCode,
    verify: ExitCode,
    fetch: ExitCode,
) -> None:
    """Refused before anything is fetched or written; without it all is as before."""
    double.watch = lambda _asked: None  # which would wonder
    key = forge(double)
    before = double.stored()
    write_file(copied, "/later", os.urandom(100))
    make_snapshot(copied)
    said = run("sync", copied, "--quiet", bare=True)
    assert (said.code, "internal error" in said.err) == (sync, False), said.err
    assert double.stored() == before, "nothing was written"
    said = verified(double, run)
    assert (said.code, "internal error" in said.err) == (verify, False), said
    code, err = restore(double, tmp_path / "back", run)
    assert (code, "internal error" in err) == (fetch, False), err
    assert not (tmp_path / "back").exists(), "nothing was fetched for it"
    assert not [asked.key for asked in double.asked if asked.method in {"PUT", "DELETE"}]
    del double.objects[key]
    require_next_is_clean(copied, double, run)


def test_the_newest_one_of_this_vault_can_still_be_restored(
    copied: Path, double: S3Double, run: Run, tmp_path: Path
) -> None:
    """Whoever can write to the remote cannot keep the vault from coming back."""
    for forge in (forged_by_another_device, deep, newer):
        forge(double)
    code, err = restore(double, tmp_path / "back", run, "--snapshot", "1")
    assert code == 0, err
    require_restored(tmp_path / "back")


def test_a_header_was_put_in_the_middle(source: Path, double: S3Double, forker: Forker, run: Run) -> None:
    """Another vault's header appears after this sync has looked: it is not written over."""
    foreign = double_header()
    double.plan = each(lambda asked: asked.method == "PUT", Stop("before"), times=1)
    running = forker.start("sync", source, "--quiet")
    double.stopped()
    double.objects["backup/vault.json"] = foreign
    double.release()
    ended = running.wait()
    assert ended.code != 0
    assert "internal error" not in ended.err
    assert double.stored() == {"vault.json": foreign}
    del double.objects["backup/vault.json"]
    require_next_is_clean(source, double, run)


def double_header() -> bytes:
    return b'{"type":"vaultfs vault","format":1,"slots":[],"vault_id":"%b","epoch":1}' % (b"b" * 32)


def test_nothing_is_asked_twice_of_a_sound_remote(copied: Path, double: S3Double, run: Run) -> None:
    """All that distrust costs nothing where there is nothing to do."""
    double.plan = at(99, Say(500))
    assert run("sync", copied, "--quiet", bare=True).code == 0
    assert [asked.method for asked in double.asked] == ["GET", "LIST"]
