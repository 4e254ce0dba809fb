"""Manifests, images and HEADs that somebody changed, swapped or put back: refused, never opened as something else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vault_snapshots.checking import problems
from vault_snapshots.sample import Sample, contents, write
from vaultfs.crypto.device import DeviceKey
from vaultfs.crypto.kdf import KdfParameters
from vaultfs.crypto.slots import Secret
from vaultfs.errors import IntegrityError, RollbackError, UsageError, VaultError
from vaultfs.ids import SnapshotSeq
from vaultfs.storage.manifest_format import Manifest, manifest_hash
from vaultfs.vault.opening import create_vault, load_header
from vaultfs.vault.snapshot_manifest import manifest_files, open_manifest


@pytest.fixture
def taken(sample: Sample) -> Sample:
    """A vault with two snapshots, closed."""
    with sample.open() as vault:
        vault.create_snapshot("first")
        write(vault, b"/small", b"changed")
        vault.create_snapshot("second")
        write(vault, b"/small", b"changed again")
    return sample


def manifest_paths(sample: Sample) -> list[Path]:
    return [sample.layout.manifest_path(*each) for each in manifest_files(sample.layout)]


def test_a_manifest_with_any_byte_changed(taken: Sample) -> None:
    path = manifest_paths(taken)[0]
    data = path.read_bytes()
    for position in [*range(0, len(data), max(len(data) // 60, 1)), len(data) - 1]:
        path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        with pytest.raises(IntegrityError):
            taken.open_snapshot(1)
    for changed in (b"", data[:-1], data + b"\0"):
        path.write_bytes(changed)
        with pytest.raises(IntegrityError):
            taken.open_snapshot(1)
    # The vault itself, and the other snapshot, are not hurt, and the damaged one can be deleted.
    with taken.open() as vault:
        assert taken.snapshot_contents(2)[b"/small"] == b"changed"
        vault.delete_snapshot(1)
        assert problems(vault.filesystem) == []


def test_a_manifest_with_any_byte_changed_under_a_fitting_name(taken: Sample) -> None:
    """Whoever has no key can compute the hash of a name, but neither signature nor seal."""
    (seq, name), _ = manifest_files(taken.layout)
    data = taken.layout.manifest_path(seq, name).read_bytes()
    for position in range(0, len(data), max(len(data) // 200, 1)):
        changed = data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]
        with pytest.raises(VaultError):
            open_manifest(taken.keyring, changed, seq, manifest_hash(changed))


def test_an_older_manifest_in_place_of_a_newer_one(taken: Sample) -> None:
    first, second = manifest_paths(taken)
    shutil.copy(first, second)
    with pytest.raises(IntegrityError, match="changed or replaced"):
        taken.open_snapshot(2)


def test_an_older_manifest_under_a_newer_number(taken: Sample) -> None:
    (_, name), (seq, other) = manifest_files(taken.layout)
    shutil.copy(manifest_paths(taken)[0], taken.layout.manifest_path(seq, name))
    taken.layout.manifest_path(seq, other).unlink()
    with pytest.raises(IntegrityError, match="is that of snapshot 1"):
        taken.open_snapshot(2)


def test_a_manifest_put_back_after_its_snapshot_was_deleted(taken: Sample, tmp_path: Path) -> None:
    """It is genuine, but what it needs is gone: nothing wrong is shown, and the next deletion sweeps it away."""
    path = manifest_paths(taken)[0]
    saved = path.read_bytes()
    with taken.open() as vault:
        vault.delete_snapshot(1)
    path.write_bytes(saved)
    with pytest.raises(IntegrityError):
        taken.open_snapshot(1)
    with taken.open() as vault:
        assert [info.seq for info in vault.snapshots()] == [2]
        vault.delete_snapshot(2)
        assert problems(vault.filesystem) == []


def test_a_manifest_of_another_vault(taken: Sample, tmp_path: Path) -> None:
    secret = Secret.password(b"another")
    create_vault(tmp_path / "other", secret, chunk_size_bytes=4096, kdf=KdfParameters.weakest())
    keyring = load_header(Sample(tmp_path / "other", taken.keyring).layout).unlock(secret)
    other = Sample(tmp_path / "other", keyring)
    with other.open() as vault:
        vault.create_snapshot()
    (seq, name) = manifest_files(other.layout)[0]
    for path in manifest_paths(taken):
        path.unlink()
    shutil.copy(manifest_paths(other)[0], taken.layout.manifest_path(seq, name))
    with pytest.raises(IntegrityError, match="another vault"):
        taken.open_snapshot(1)


def test_a_manifest_that_another_key_signed(taken: Sample) -> None:
    """With the right seal inside, so that only the signer is wrong."""
    seq, name = manifest_files(taken.layout)[0]
    manifest, _ = Manifest.decode(taken.layout.manifest_path(seq, name).read_bytes())
    stranger = DeviceKey(os.urandom(32))
    fields = (manifest.seq, manifest.created_ns, manifest.previous, manifest.segments, manifest.private)
    forged = Manifest(manifest.vault_id, stranger.public, *fields)
    data = forged.encode(stranger.sign(forged.signed_bytes()))
    with pytest.raises(IntegrityError, match="does not have"):
        open_manifest(taken.keyring, data, seq, manifest_hash(data))
    claimed = Manifest(manifest.vault_id, manifest.device, *fields)
    data = claimed.encode(stranger.sign(claimed.signed_bytes()))
    with pytest.raises(IntegrityError, match="signature"):
        open_manifest(taken.keyring, data, seq, manifest_hash(data))


def test_a_private_part_of_another_snapshot(taken: Sample) -> None:
    """Even the vault's own key cannot make one snapshot's private part open as another's."""
    files = manifest_files(taken.layout)
    first, second = (Manifest.decode(path.read_bytes())[0] for path in manifest_paths(taken))
    mixed = Manifest(
        first.vault_id, first.device, second.seq, second.created_ns, second.previous, first.segments, first.private
    )
    device = DeviceKey(taken.keyring.current.device)
    data = mixed.encode(device.sign(mixed.signed_bytes()))
    with pytest.raises(IntegrityError, match="another vault or place"):
        open_manifest(taken.keyring, data, files[1][0], manifest_hash(data))


def test_manifests_are_chained_even_across_deleted_ones(sample: Sample) -> None:
    hashes: list[str] = []
    with sample.open() as vault:
        for number in range(1, 5):
            info = vault.create_snapshot()
            data = sample.layout.manifest_path(info.seq, info.id).read_bytes()
            assert manifest_hash(data) == info.id
            manifest, _ = Manifest.decode(data)
            assert manifest.seq == number
            assert manifest.previous == (bytes.fromhex(hashes[-1]) if hashes else None)
            hashes.append(info.id)
            if number % 2 == 0:
                vault.delete_snapshot(number)


def test_a_manifest_shows_no_secret_but_the_segments(taken: Sample) -> None:
    with taken.open() as vault:
        vault.create_snapshot("a label that only key holders read")
    data = b"".join(path.read_bytes() for path in manifest_paths(taken))
    assert b"label" not in data
    assert b"first" not in data
    manifest, _ = Manifest.decode(manifest_paths(taken)[2].read_bytes())
    on_disk = {name: taken.layout.sealed_path(name).stat().st_size for name in taken.layout.sealed_names()}
    assert manifest.segments
    for name, size in manifest.segments:
        assert on_disk[name] == size


def test_a_flipped_bit_in_a_piece_of_the_image(taken: Sample) -> None:
    (seq, name), _ = manifest_files(taken.layout)
    _, content = open_manifest(taken.keyring, taken.layout.manifest_path(seq, name).read_bytes(), seq, name)
    for piece in (content.pieces[0], content.pieces[-1]):
        path = taken.layout.sealed_path(content.segments[piece.segment].name)
        data = path.read_bytes()
        path.chmod(0o600)
        for position in (piece.offset, piece.offset + piece.stored // 2, piece.offset + piece.stored - 1):
            path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
            with pytest.raises(IntegrityError, match="piece"):
                taken.open_snapshot(1)
        path.write_bytes(data)
    assert taken.snapshot_contents(1)[b"/small"] == b"a few bytes"


def test_a_flipped_bit_in_a_file_is_found_when_it_is_read(taken: Sample) -> None:
    with taken.open() as vault:
        number = vault.stat(b"/d/own").st_ino
        place = vault.filesystem.chunk_rows.places(number, 3, 3)[0]  # type: ignore[arg-type]
        row = vault.filesystem.chunk_rows.segment(place.segment)
        assert row is not None
        assert row.name is not None
        name = row.name
    path = taken.layout.segments / name[:2] / f"{name}.seg"
    data = path.read_bytes()
    path.chmod(0o600)
    path.write_bytes(data[: place.offset + 20] + bytes([data[place.offset + 20] ^ 1]) + data[place.offset + 21 :])
    snapshot = taken.open_snapshot(1)
    try:
        with snapshot.open(b"/d/own") as file, pytest.raises(IntegrityError):
            file.read(-1)
        assert snapshot.open(b"/twin").read(-1)
    finally:
        snapshot.close()


def test_a_missing_manifest(taken: Sample) -> None:
    manifest_paths(taken)[0].unlink()
    with pytest.raises(UsageError, match="no snapshot"):
        taken.open_snapshot(1)
    with taken.open() as vault:
        vault.delete_snapshot(1)
        assert problems(vault.filesystem) == []
    assert taken.snapshot_contents(2)[b"/small"] == b"changed"


@pytest.mark.parametrize("kind", ["symlink", "directory", "fifo"])
def test_something_else_in_a_manifests_place(taken: Sample, kind: str, tmp_path: Path) -> None:
    path = manifest_paths(taken)[0]
    path.rename(tmp_path / "moved")
    if kind == "symlink":
        path.symlink_to(tmp_path / "moved")
    elif kind == "directory":
        path.mkdir()
    else:
        os.mkfifo(path)
    with pytest.raises(UsageError, match="no snapshot"):
        taken.open_snapshot(1)


def test_files_that_are_no_manifests_are_passed_over(taken: Sample) -> None:
    known = manifest_files(taken.layout)
    for name in ("1.manifest", f"0000000003-{'g' * 64}.manifest", f"00000000003-{'a' * 64}.manifest", "x", "HEAD2"):
        (taken.layout.heads / name).write_bytes(b"")
    assert manifest_files(taken.layout) == known


def test_head_that_names_another_newest_snapshot(taken: Sample) -> None:
    """As if HEAD and database came from two states that share a generation."""
    vault = taken.open()
    first = bytes.fromhex(vault.snapshots()[0].id)
    generation = vault.filesystem.database.setting("generation")
    vault.filesystem.head.write_open(generation + 1, generation, manifest_hash=first)
    vault.filesystem.abandon()
    with pytest.raises(IntegrityError, match="newest snapshot, 2"):
        taken.open()


def test_the_vault_from_before_a_snapshot(sample: Sample, tmp_path: Path) -> None:
    before = sample.copy(tmp_path / "older")
    with sample.open() as vault:
        vault.create_snapshot()
    shutil.rmtree(sample.path)
    shutil.copytree(before.path, sample.path)
    with pytest.raises(RollbackError):
        sample.open()


def test_a_manifest_from_a_later_state_is_left_alone(taken: Sample) -> None:
    """It may be all that is left of that state; only what is known to be deleted is removed."""
    with taken.open() as vault:
        vault.create_snapshot()
    later = manifest_paths(taken)[2].read_bytes()
    with taken.open() as vault:
        vault.delete_snapshot(3)
        name = manifest_hash(later)
        stray = taken.layout.manifest_path(SnapshotSeq(9), name)
        stray.write_bytes(later)
        vault.delete_snapshot(2)
        assert stray.exists()
        assert contents(vault)


def test_reading_a_manifest_needs_few_imports() -> None:
    """The sidecar looks at the public part without any key code."""
    code = (
        "import sys, vaultfs.storage.manifest_format; "
        "sys.exit(any(name.split('.')[1:2] in (['crypto'], ['vault'], ['metadata']) "
        "for name in sys.modules if name.startswith('vaultfs.')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
