"""``vaultfs verify --unlock``: what only the key tells: who signed, and whether what has the right hash also opens."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import blake3
import pytest

import vaultfs
from vaultfs.crypto.aead import OVERHEAD_BYTES, SegmentCipher
from vaultfs.crypto.device import DeviceKey
from vaultfs.crypto.keys import Keyring
from vaultfs.errors import ExitCode, IntegrityError, RemoteUnreachableError
from vaultfs.ids import ChunkId, InodeId, KeyEpoch, SegmentName, SnapshotSeq, VaultId
from vaultfs.remotes.counting import CountingStore
from vaultfs.storage.layout import VaultLayout
from vaultfs.storage.manifest_format import Manifest, manifest_hash
from vaultfs.storage.segment_format import IndexEntry, SegmentHeader, encode_index, encode_trailer
from vaultfs.sync import verify as sync_verify
from vaultfs.vault.opening import load_header
from vaultfs.vault.segment_index import read_index
from vaultfs.vault.snapshot_manifest import SegmentFacts, open_manifest, write_manifest

from .conftest import PASSWORD, Run, digest, make_snapshot, objects, opened, write_file


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The cache directory of one test, in which nothing is left at its end."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache home"))
    where = tmp_path / "cache home" / "vaultfs"
    yield where
    assert not where.exists() or not list(where.iterdir())


@pytest.fixture
def copied(backed_up: Path, run: Run) -> Path:
    assert run("sync", backed_up, "--snapshot").code == 0
    return backed_up


def keys_of(vault: Path) -> Keyring:
    return load_header(VaultLayout(vault)).unlock(vaultfs.Secret.password(PASSWORD))


def put_segment(disk: Path, data: bytes) -> SegmentName:
    """A segment on the remote with the right name, whatever is in it."""
    name = SegmentName(blake3.blake3(data).hexdigest())
    (disk / "segments" / name[:2]).mkdir(exist_ok=True)
    (disk / "segments" / name[:2] / name).write_bytes(data)
    return name


def garbage(vault_id: bytes, epoch: int = 1) -> bytes:
    """A segment by its header, which is public, of somebody who has no key."""
    return SegmentHeader(VaultId(vault_id), KeyEpoch(epoch), os.urandom(32)).encode() + os.urandom(10_000)


def the_manifest(disk: Path) -> Manifest:
    (ours,) = (path for path in (disk / "heads").rglob("*") if path.is_file())
    return Manifest.decode(ours.read_bytes())[0]


def forge(disk: Path, *segments: tuple[SegmentName, int]) -> str:
    """A newer manifest, correct in every respect but for the key that signed it; its name."""
    genuine, forger = the_manifest(disk), DeviceKey(bytes(32))
    manifest = Manifest(
        genuine.vault_id,
        forger.public,
        SnapshotSeq(genuine.seq + 1),
        genuine.created_ns,
        genuine.previous,
        tuple(sorted((*genuine.segments, *segments))),
        genuine.private,
    )
    data = manifest.encode(forger.sign(manifest.signed_bytes()))
    name = f"heads/{forger.public.hex()}/{manifest.seq:010d}-{manifest_hash(data)}"
    (disk / name).parent.mkdir()
    (disk / name).write_bytes(data)
    return name


def sign_again(
    vault: Path, disk: Path, tmp_path: Path, *, add: SegmentFacts | None = None, piece_in: SegmentName | None = None
) -> None:
    """A newer manifest, signed with the vault's key, that names one segment more, or a piece where there is none."""
    keyring, genuine = keys_of(vault), the_manifest(disk)
    (file,) = (path for path in (disk / "heads").rglob("*") if path.is_file())
    _, content = open_manifest(keyring, file.read_bytes(), genuine.seq, file.name[11:])
    elsewhere = VaultLayout(tmp_path / "elsewhere")
    elsewhere.create_directories()
    seq = SnapshotSeq(content.seq + 1)
    fields = {**vars(content), "seq": seq, "segments": (*content.segments, *([] if add is None else [add]))}
    if piece_in is not None:
        (index,) = (index for index, each in enumerate(content.segments) if each.name == piece_in)
        fields["pieces"] = (*content.pieces[:-1], content.pieces[-1]._replace(segment=index, offset=100))
    name = write_manifest(elsewhere, keyring, type(content)(**fields), bytes.fromhex(file.name[11:]))
    (file.parent / f"{seq:010d}-{name}").write_bytes(elsewhere.manifest_path(seq, name).read_bytes())


def unlocked(run: Run, disk: Path, *words: str) -> dict[str, Any]:
    """The report; its exit code says whether there is a problem."""
    said = run("verify", disk.as_uri(), "--unlock", "--json", *words)
    document: dict[str, Any] = json.loads(said.out)
    assert said.code == (ExitCode.INTEGRITY if document["problems"] else 0)
    return document


def test_nothing_is_wrong(copied: Path, disk: Path, run: Run) -> None:
    """Every chunk that is there is opened, those of the metadata too; nothing is changed."""
    before = digest(disk)
    layout, keyring = VaultLayout(copied), keys_of(copied)
    chunks = sum(len(read_index(layout, name, keyring).entries) for name in layout.sealed_names())
    assert chunks > 24
    said = run("verify", copied, "disk", "--unlock", "--read-data", "--quiet")
    assert (said.code, said.err) == (0, "")
    assert said.out.decode().endswith(f" read, {chunks} chunks opened: nothing is wrong\n")
    document = unlocked(run, disk, "--read-data")
    assert (document["chunks_opened"], document["strange_segments"], document["problems"]) == (chunks, 0, [])
    assert document["bytes_read"] == sum(map(len, objects(disk).values()))
    assert unlocked(run, disk)["chunks_opened"] == 0
    assert digest(disk) == before


def test_a_manifest_that_another_key_signed(copied: Path, disk: Path, run: Run) -> None:
    name = forge(disk)
    assert run("verify", disk.as_uri(), "--read-data", "--quiet", bare=True).code == 0
    (problem,) = unlocked(run, disk)["problems"]
    assert problem.startswith(name)
    assert "a key that this vault does not have" in problem


def test_a_segment_that_another_key_made(copied: Path, disk: Path, run: Run) -> None:
    """With the right hash, and named by a manifest: it takes the key to see that it is foreign."""
    vault_id = the_manifest(disk).vault_id
    contents = [garbage(vault_id), garbage(bytes(16)), garbage(vault_id, 99), b"VFSSEG\0\xff" + bytes(100)]
    names = [put_segment(disk, data) for data in contents]
    forge(disk, *((name, len(data)) for name, data in zip(names, contents, strict=True)))
    assert run("verify", disk.as_uri(), "--read-data", "--quiet", bare=True).code == 0
    assert len(unlocked(run, disk)["problems"]) == 1
    problems = unlocked(run, disk, "--read-data")["problems"]
    assert len(problems) == 5
    reasons = ["does not open with the key", "of another vault", "key epoch 99", "newer than this vaultfs"]
    for name, reason in zip(names, reasons, strict=True):
        (problem,) = [each for each in problems if name in each]
        assert reason in problem


def test_a_strange_segment_that_nothing_needs(copied: Path, disk: Path, run: Run) -> None:
    """It does no harm, so it is no problem."""
    put_segment(disk, garbage(the_manifest(disk).vault_id))
    put_segment(disk, b"this is no segment")
    said = run("verify", disk.as_uri(), "--unlock", "--read-data", "--quiet")
    assert said.code == 0
    assert b"opened, 2 segments that no snapshot needs could not be opened: nothing is wrong" in said.out
    assert unlocked(run, disk, "--read-data")["strange_segments"] == 2


def test_a_chunk_that_does_not_open(copied: Path, disk: Path, run: Run) -> None:
    """The hash is that of what was written, but what was written was wrong."""
    keyring = keys_of(copied)
    salt = os.urandom(32)
    cipher = SegmentCipher(keyring.current.chunk, keyring.vault_id, salt)
    data = bytearray(SegmentHeader(keyring.vault_id, keyring.epoch, salt).encode())
    entries = []
    for number in range(1, 8):
        entries.append(IndexEntry(ChunkId(number), len(data), 100 + OVERHEAD_BYTES, 100, InodeId(0), 0))
        sealed = bytearray(100 + OVERHEAD_BYTES)
        cipher.seal_into(memoryview(sealed), ChunkId(number), bytes(100), bytes(32), length=100)
        sealed[50] ^= number > 3
        data += sealed
    offset = len(data)
    data += cipher.seal_record(b"index", encode_index(entries))
    data += cipher.seal_record(b"trailer", encode_trailer(offset, len(data) - offset, len(entries)))
    name = put_segment(disk, bytes(data))
    assert run("verify", disk.as_uri(), "--read-data", "--quiet", bare=True).code == 0
    (problem,) = unlocked(run, disk, "--read-data")["problems"]
    assert problem.startswith(f"segments/{name[:2]}/{name}: 4 of its 7 chunks do not open: chunk 4: ")
    assert problem.endswith("; ...")


def test_a_piece_of_metadata_that_does_not_open(copied: Path, disk: Path, tmp_path: Path, run: Run) -> None:
    """A manifest may name chunks that no index names."""
    name = max(
        VaultLayout(copied).sealed_names(), key=lambda each: VaultLayout(copied).sealed_path(each).stat().st_size
    )
    sign_again(copied, disk, tmp_path, piece_in=name)
    assert run("verify", disk.as_uri(), "--read-data", "--quiet", bare=True).code == 0
    (problem,) = unlocked(run, disk, "--read-data")["problems"]
    assert problem.startswith(f"segments/{name[:2]}/{name}: 1 of its ")


# --- segments that a crash has left open: they have no index


@pytest.fixture
def crashed(vault: Path, disk: Path, run: Run) -> Path:
    """A vault with 8 chunks of one file and 24 of another in a segment that nobody has sealed."""
    found = opened(vault)
    for name, size in (("/left", 1 << 20), ("/right", 3 << 20)):
        with found.open(name, "wb") as file:
            file.write(os.urandom(size))
    found.commit()
    found.filesystem.abandon()
    assert run("remote", "add", vault, "disk", disk.as_uri(), bare=True).code == 0
    return vault


def test_without_an_index(crashed: Path, disk: Path, run: Run) -> None:
    """The metadata of a snapshot tells where its chunks are."""
    assert run("sync", crashed, "--snapshot").code == 0
    write_file(crashed, "/later", b"later")
    assert run("sync", crashed, "--snapshot").code == 0
    document = unlocked(run, disk, "--read-data")
    with opened(crashed) as found:
        fs = found.filesystem
        chunks = sum(len(fs.chunk_rows.chunks_of_segment(row.id)) for row in fs.chunk_rows.segments())
    assert (document["problems"], document["chunks_opened"]) == ([], chunks)


def test_damaged_without_an_index(crashed: Path, disk: Path, run: Run) -> None:
    """Bits flipped before it got its hash: nothing but the key can tell."""
    (left,) = (crashed / "segments" / "open").iterdir()
    data = bytearray(left.read_bytes())
    for offset in (200_000, 500_000):
        data[offset] ^= 1
    left.write_bytes(data)
    assert run("sync", crashed, "--snapshot").code == 0
    assert run("verify", disk.as_uri(), "--read-data", "--quiet", bare=True).code == 0
    (problem,) = unlocked(run, disk, "--read-data")["problems"]
    assert ": 2 of its 32 chunks do not open: chunk " in problem


def test_what_later_snapshots_do_not_need(crashed: Path, disk: Path, run: Run) -> None:
    """A chunk that is in the first snapshot on the remote only, and in no snapshot here, is opened as well."""
    (left,) = (crashed / "segments" / "open").iterdir()
    data = bytearray(left.read_bytes())
    data[200_000] ^= 1
    left.write_bytes(data)
    assert run("sync", crashed, "--snapshot").code == 0
    with opened(crashed) as found:
        found.remove("/left")
        found.create_snapshot("second")
        found.delete_snapshot(1)
        assert [row.name for row in found.filesystem.chunk_rows.segments() if row.size > 3 << 20], "it is needed still"
    assert run("sync", crashed, bare=True).code == 0
    (problem,) = unlocked(run, disk, "--read-data")["problems"]
    assert ": 1 of its 32 chunks do not open: chunk " in problem


def test_a_piece_of_metadata_without_an_index(crashed: Path, disk: Path, tmp_path: Path, run: Run) -> None:
    assert run("sync", crashed, "--snapshot").code == 0
    layout = VaultLayout(crashed)
    name = max(layout.sealed_names(), key=lambda each: layout.sealed_path(each).stat().st_size)
    sign_again(crashed, disk, tmp_path, piece_in=name)
    (problem,) = unlocked(run, disk, "--read-data")["problems"]
    assert problem.startswith(f"segments/{name[:2]}/{name}: 1 of its 33 chunks do not open")


def test_without_an_index_and_without_metadata(crashed: Path, disk: Path, run: Run) -> None:
    assert run("sync", crashed, "--snapshot").code == 0
    layout, keyring = VaultLayout(crashed), keys_of(crashed)
    for name in layout.sealed_names():
        try:
            read_index(layout, name, keyring)
        except IntegrityError:
            continue
        (disk / "segments" / name[:2] / name).unlink()
    problems = unlocked(run, disk, "--read-data")["problems"]
    assert [each for each in problems if "what is in it cannot be told: snapshot 1" in each]


def test_a_segment_of_which_no_metadata_knows(copied: Path, disk: Path, tmp_path: Path, run: Run) -> None:
    data = garbage(the_manifest(disk).vault_id)
    name = put_segment(disk, data)
    header = SegmentHeader.decode(data[:64])
    sign_again(copied, disk, tmp_path, add=SegmentFacts(name, header.epoch, header.salt, len(data)))
    assert run("verify", disk.as_uri(), "--read-data", "--quiet", bare=True).code == 0
    assert unlocked(run, disk)["problems"] == []
    assert unlocked(run, disk, "--read-data")["problems"] == [
        f"segments/{name[:2]}/{name}: it has no index, and snapshot 2 does not say what is in it"
    ]


def test_a_header_that_is_not_the_one_that_was_signed(copied: Path, disk: Path, tmp_path: Path, run: Run) -> None:
    data = garbage(the_manifest(disk).vault_id)
    name = put_segment(disk, data)
    sign_again(copied, disk, tmp_path, add=SegmentFacts(name, KeyEpoch(1), bytes(32), len(data)))
    assert unlocked(run, disk, "--read-data")["problems"] == [
        f"segments/{name[:2]}/{name}: its header is not the one that the snapshots name"
    ]


@pytest.mark.parametrize("how", ["interrupted", "unreachable"])
def test_stopped_in_the_end(crashed: Path, disk: Path, run: Run, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Looking into the metadata is part of what Ctrl-C ends; and a remote that goes away then gives no verdict."""
    assert run("sync", crashed, "--snapshot").code == 0
    real = CountingStore.get
    parts = 0

    def get(self: CountingStore, key: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        nonlocal parts
        if length is not None:  # nothing else asks for parts
            parts += 1
            if how == "unreachable":
                raise RemoteUnreachableError("it went away")
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, key, offset=offset, length=length)

    monkeypatch.setattr(CountingStore, "get", get)
    said = run("verify", disk.as_uri(), "--unlock", "--read-data", "--quiet")
    assert said.code == (ExitCode.REMOTE_UNREACHABLE if how == "unreachable" else ExitCode.SIGINT)
    assert (said.out, parts) == (b"", 1)


# --- the password, the header, the disk


def test_a_wrong_password(copied: Path, disk: Path, tmp_path: Path, run: Run) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("wrong")
    wrong.chmod(0o600)
    said = run("verify", copied, "disk", "--unlock", "--passfile", wrong, bare=True)
    assert said.code == ExitCode.WRONG_PASSWORD
    assert said.error_line
    said = run("verify", copied, "disk", "--passfile", wrong, bare=True)
    assert (said.code, "--passfile goes with --unlock" in said.error_line) == (ExitCode.USAGE, True)


@pytest.mark.parametrize("how", ["missing", "damaged", "changed", "hollow"])
def test_without_a_header(copied: Path, disk: Path, run: Run, how: str) -> None:
    """The rest is checked without a key, and it is told."""
    header = disk / "vault.json"
    if how == "missing":
        header.unlink()
    elif how == "damaged":
        header.write_bytes(header.read_bytes()[:-10])
    else:
        fields = json.loads(header.read_bytes())
        if how == "changed":
            fields["mac"] = "0" * len(fields["mac"])
        else:
            del fields["slots"]
        header.write_text(json.dumps(fields))
    said = run("verify", disk.as_uri(), "--unlock", "--read-data", "--quiet")
    assert said.code == ExitCode.INTEGRITY
    assert "vault.json gives no key, so nothing is checked with one" in said.err
    assert said.out.decode().startswith("vault.json")
    assert said.out.decode().endswith(" read: 1 problem\n")


def test_no_room_for_what_is_looked_at(copied: Path, disk: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_all(descriptor: int, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(sync_verify, "write_all", write_all)
    said = run("verify", disk.as_uri(), "--unlock", "--read-data", "--quiet")
    assert (said.code, said.error_line.endswith("No space left on device")) == (ExitCode.ERROR, True)


def test_several_snapshots(copied: Path, disk: Path, run: Run) -> None:
    """Each is verified, and what they share is opened once."""
    for label in ("second", "third"):
        write_file(copied, "/small", label.encode())
        make_snapshot(copied, label)
    assert run("sync", copied, bare=True).code == 0
    document = unlocked(run, disk, "--read-data")
    assert (document["snapshots"], document["problems"]) == (3, [])
