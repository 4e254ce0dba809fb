"""Objects come in, are checked, and have their names then."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh_replicas.peer_objects import (
    ALICE,
    BOB,
    DEVICE,
    NOTE,
    OTHER_VAULT,
    STRANGER,
    VAULT,
    begin,
    check,
    data_of,
    digest_of,
    head_key,
    header,
    manifest,
    put,
    put_segment,
    read,
    segment_key,
    send,
)
from vaultfs.errors import (
    FormatTooNewError,
    IntegrityError,
    ObjectExistsError,
    ObjectMissingError,
    RemoteError,
    RemoteRefusedError,
)
from vaultfs.mesh.partial_uploads import Upload
from vaultfs.mesh.replica_keys import ObjectKey
from vaultfs.mesh.replica_names import ObjectNames
from vaultfs.mesh.replica_vault import HeldVault
from vaultfs.mesh.replicas import ReplicaStore

SHARE = "shares/" + "7" * 64 + "/2-3-0-100000-{}"


def test_objects_of_every_kind(store: ReplicaStore, root: Path) -> None:
    data = data_of(1, 700_000)
    objects = {
        segment_key(data): data,
        SHARE.format(digest_of(b"share").hex()): b"share",
        head_key(manifest()): manifest(),
        "vault.json": header(),
        NOTE: b"",
        "heads/condemned/" + "1" * 64: b"note",
        "heads/sweeping/" + "2" * 64: b"note",
        "heads/spared/" + "3" * 64: b"note",
        "heads/branches/" + "4" * 64: b"note",
        "probe/abc": b"probe",
    }
    for key, content in objects.items():
        assert put(store, key, content, revision=1)
        assert not put(store, key, content, revision=1)
        assert read(store, key) == content
        assert (root / VAULT.hex() / key).read_bytes() == content
        assert store.stat(VAULT, key) == (len(content), int(key == "vault.json"))
        check(root, store)
    for key, content in objects.items():
        with pytest.raises(ObjectExistsError):
            begin(store, key, content, revision=2, if_absent=True)
    assert store.vaults() == [VAULT]
    assert not list((root / VAULT.hex() / ".mesh" / "partial").iterdir())


def test_the_directory_is_for_this_user_alone(store: ReplicaStore, root: Path) -> None:
    path = root / VAULT.hex() / put_segment(store, b"x")
    assert path.stat().st_mode & 0o777 == 0o600
    assert {each.stat().st_mode & 0o777 for each in (root, root / VAULT.hex(), path.parent)} == {0o700}


IMPOSSIBLE = [
    (segment_key(b"x"), 0, 0),
    (segment_key(b"x"), (128 << 20) + 1, 0),
    (segment_key(b"y"), 1, 0),
    (SHARE.format(digest_of(b"y").hex()), 1, 0),
    (SHARE.format(digest_of(b"x").hex()), (128 << 20) + 1, 0),
    (f"heads/{DEVICE.public_key.hex()}/0000000001-{digest_of(b'y').hex()}", 1, 0),
    (f"heads/{DEVICE.public_key.hex()}/0000000001-{digest_of(b'x').hex()}", (16 << 20) + 1, 0),
    ("vault.json", 1, 0),
    ("vault.json", 1, 1 << 63),
    ("vault.json", 0, 1),
    ("vault.json", (1 << 20) + 1, 1),
    (NOTE, (16 << 20) + 1, 0),
    ("probe/x", (64 << 10) + 1, 0),
]


def test_what_cannot_be_right_is_refused_before_a_byte(store: ReplicaStore, root: Path) -> None:
    for key, size_bytes, revision in IMPOSSIBLE:
        with pytest.raises(IntegrityError):
            store.begin_put(ALICE, VAULT, key, size_bytes, digest_of(b"x"), False, revision, None)
    assert not (root / VAULT.hex()).exists()


@pytest.mark.parametrize("key", ["x", "segments/x", "../x", ".mesh/record.json", "vault.json/x", "", "probe/a/b/c/d"])
def test_other_names_are_none(store: ReplicaStore, root: Path, key: str) -> None:
    for action in (
        lambda: begin(store, key, b"x"),
        lambda: store.stat(VAULT, key),
        lambda: store.reader(VAULT, key),
        lambda: store.delete(VAULT, [key]),
        lambda: store.forget(VAULT, key),
    ):
        with pytest.raises(RemoteRefusedError):
            action()
    assert not (root / VAULT.hex()).exists()


def test_wrong_bytes_leave_nothing(store: ReplicaStore, root: Path) -> None:
    data = data_of(1, 5000)
    upload = begin(store, segment_key(data), data)
    assert upload is not None
    upload.write(bytes(5000))
    with pytest.raises(IntegrityError):
        upload.finish()
    assert store.usage(ALICE) == 0
    assert not list((root / VAULT.hex() / ".mesh" / "partial").iterdir())
    check(root, store)
    again = begin(store, segment_key(data), data)
    assert again is not None
    assert again.offset == 0
    send(again, data)


def test_more_bytes_than_announced(store: ReplicaStore) -> None:
    data = data_of(1, 5000)
    upload = begin(store, segment_key(data), data)
    assert upload is not None
    upload.write(data[:4000])
    with pytest.raises(IntegrityError):
        upload.write(data[4000:] + b"x")
    assert upload.received_bytes == 4000
    upload.abort(keep=False)
    assert store.usage(ALICE) == 0


def test_too_few_bytes_are_kept_for_another_try(store: ReplicaStore, root: Path) -> None:
    data = data_of(1, 50_000)
    upload = begin(store, segment_key(data), data)
    assert upload is not None
    upload.write(data[:30_000])
    with pytest.raises(IntegrityError):
        upload.finish()
    assert store.stat(VAULT, segment_key(data)) == (None, 0)
    check(root, store)
    again = begin(store, segment_key(data), data)
    assert again is not None
    assert (again.offset, again.received_bytes) == (30_000, 30_000)
    send(again, data)
    assert read(store, segment_key(data)) == data
    check(root, store)


def test_when_it_is_over_it_is_over(store: ReplicaStore) -> None:
    data = data_of(1, 5000)
    upload = begin(store, segment_key(data), data)
    assert upload is not None
    upload.write(data)
    upload.finish()
    upload.abort(keep=False)
    upload.abort(keep=True)
    for action in (upload.finish, lambda: upload.write(b"")):
        with pytest.raises(RemoteError, match="over"):
            action()
    assert read(store, segment_key(data)) == data


@pytest.mark.parametrize("sent_bytes", [1, 30_000, 50_000])
def test_an_interrupted_transfer_goes_on_after_a_restart(
    store: ReplicaStore, root: Path, sent_bytes: int, clock: object
) -> None:
    data = data_of(1, 50_000)
    upload = begin(store, segment_key(data), data)
    assert upload is not None
    upload.write(data[:sent_bytes])
    store.close()
    with pytest.raises(RemoteError, match="over"):
        upload.write(data[sent_bytes:])
    again = ReplicaStore.open(root, None, reserve_bytes=0)
    try:
        check(root, again)
        resumed = begin(again, segment_key(data), data)
        assert resumed is not None
        assert resumed.offset == sent_bytes
        send(resumed, data)
        assert read(again, segment_key(data)) == data
        check(root, again)
    finally:
        again.close()


def test_a_damaged_earlier_part_is_noticed_at_the_end_and_removed(store: ReplicaStore, root: Path) -> None:
    data = data_of(1, 50_000)
    upload = begin(store, segment_key(data), data)
    assert upload is not None
    upload.write(data[:30_000])
    upload.abort(keep=True)
    (partial,) = (root / VAULT.hex() / ".mesh" / "partial").iterdir()
    partial.write_bytes(bytes(60_000))  # also longer than the object
    with pytest.raises(IntegrityError):
        put(store, segment_key(data), data)
    assert not partial.exists()
    assert put(store, segment_key(data), data)
    check(root, store)


def test_two_transfers_of_the_same_at_once(store: ReplicaStore, root: Path) -> None:
    data = data_of(1, 50_000)
    uploads = [begin(store, segment_key(data), data, caller=caller) for caller in (ALICE, ALICE, BOB)]
    for upload in uploads:
        assert upload is not None
        assert upload.offset == 0
        upload.write(data[:25_000])
    for upload in uploads:
        assert upload is not None
        upload.write(data[25_000:])
        upload.finish()
    check(root, store)
    assert read(store, segment_key(data)) == data
    assert store.usage(BOB) == 0


def test_the_second_of_two_at_once_cannot_go_on_later(store: ReplicaStore, root: Path) -> None:
    data = data_of(1, 50_000)
    first, second = begin(store, segment_key(data), data), begin(store, segment_key(data), data)
    assert first is not None
    assert second is not None
    second.write(data[:20_000])
    second.abort(keep=True)
    first.write(data[:10_000])
    first.abort(keep=True)
    again = begin(store, segment_key(data), data)
    assert again is not None
    assert again.offset == 10_000
    again.abort(keep=False)
    check(root, store)


def test_nobody_goes_on_with_what_another_has_sent(store: ReplicaStore) -> None:
    data = data_of(1, 50_000)
    upload = begin(store, segment_key(data), data)
    assert upload is not None
    upload.write(data[:30_000])
    upload.abort(keep=True)
    other = begin(store, segment_key(data), data, caller=BOB)
    assert other is not None
    assert other.offset == 0
    other.abort(keep=False)


def test_a_damaged_segment_counts_as_missing_and_is_replaced(store: ReplicaStore, root: Path) -> None:
    data = data_of(1, 50_000)
    key = put_segment(store, data)
    path = root / VAULT.hex() / key
    for damage in (bytes(50_000), data[:-1], data + b"x", b""):
        path.write_bytes(damage)
        for if_absent in (False, True):
            upload = begin(store, key, data, if_absent=if_absent)
            assert upload is not None
            upload.abort(keep=False)
        assert path.read_bytes() == damage
        assert put(store, key, data, if_absent=True)
        assert path.read_bytes() == data


@pytest.mark.parametrize("damage", [b"", bytes(100_000)])
def test_what_was_damaged_when_it_was_counted(store: ReplicaStore, root: Path, damage: bytes) -> None:
    data = data_of(1, 50_000)
    key = put_segment(store, data)
    (root / VAULT.hex() / key).write_bytes(damage)
    store.close()
    again = ReplicaStore.open(root, None, reserve_bytes=0)
    assert put(again, key, data)
    check(root, again)
    again.close()


def test_the_end_of_one_transfer_does_not_touch_the_next(
    store: ReplicaStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An object is deleted and comes again while the first thread is not quite through with it."""
    data = data_of(1, 50_000)
    key = segment_key(data)
    sync = ObjectNames.sync
    others: list[Upload | None] = []

    def begin_another(names: ObjectNames, held: HeldVault, wanted: ObjectKey) -> None:
        sync(names, held, wanted)
        monkeypatch.undo()
        store.delete(VAULT, [key])
        others.append(begin(store, key, data))

    monkeypatch.setattr(ObjectNames, "sync", begin_another)
    put_segment(store, data)
    others.append(begin(store, key, data))
    for upload in others:
        assert upload is not None
        assert upload.offset == 0
        upload.write(data[:20_000])
    for upload in others:
        assert upload is not None
        send_rest(upload, data)
    assert read(store, key) == data
    check(root, store)


def send_rest(upload: Upload, data: bytes) -> None:
    upload.write(data[upload.received_bytes :])
    upload.finish()


def test_who_was_faster(store: ReplicaStore, root: Path) -> None:
    data = data_of(1, 5000)
    key = segment_key(data)
    slow = begin(store, key, data, if_absent=True)
    put(store, key, data, caller=BOB)
    assert slow is not None
    with pytest.raises(ObjectExistsError):
        send(slow, data)
    check(root, store)
    assert not list((root / VAULT.hex() / ".mesh" / "partial").iterdir())


def test_notes_are_replaced_unless_that_is_forbidden(store: ReplicaStore, root: Path) -> None:
    put(store, NOTE, b"old")
    with pytest.raises(ObjectExistsError):
        put(store, NOTE, b"new", if_absent=True)
    assert read(store, NOTE) == b"old"
    assert put(store, NOTE, b"newer")
    assert read(store, NOTE) == b"newer"
    check(root, store)


@pytest.mark.parametrize(
    ("data", "key"),
    [
        (manifest(vault=OTHER_VAULT), head_key(manifest(vault=OTHER_VAULT))),
        (manifest(seq=2), head_key(manifest(seq=2), seq=1)),
        (manifest(), head_key(manifest(), device=STRANGER)),
        (manifest()[:-1], head_key(manifest()[:-1])),
        (b"VFSMAN\0\x01" + bytes(64), head_key(b"VFSMAN\0\x01" + bytes(64))),
    ],
)
def test_what_is_no_manifest_of_its_key_is_refused(store: ReplicaStore, root: Path, data: bytes, key: str) -> None:
    with pytest.raises(IntegrityError):
        put(store, key, data)
    assert store.newest_heads(VAULT) == []
    assert store.usage(ALICE) == 0
    check(root, store)


def test_a_manifest_of_a_newer_version_is_left_to_others(store: ReplicaStore, root: Path) -> None:
    data = b"VFSMAN\0\x02" + manifest()[8:]
    with pytest.raises(FormatTooNewError):
        put(store, head_key(data), data)
    check(root, store)


def test_vaults_do_not_see_each_other(store: ReplicaStore, root: Path) -> None:
    key = put_segment(store, b"x")
    put_segment(store, b"y", vault=OTHER_VAULT)
    with pytest.raises(ObjectMissingError):
        store.reader(OTHER_VAULT, key)
    assert store.have(OTHER_VAULT, digest_of(b"x") + digest_of(b"y")) == [0, 1]
    check(root, store, (VAULT, OTHER_VAULT))


def test_messages_name_no_path_of_the_peer(store: ReplicaStore, root: Path) -> None:
    put_segment(store, b"x")
    path = root / VAULT.hex() / segment_key(b"y")
    path.mkdir(parents=True)
    with pytest.raises(RemoteError) as caught:
        put_segment(store, b"y")
    assert str(root) not in str(caught.value)
    assert "directory" in str(caught.value)
