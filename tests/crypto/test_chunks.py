"""Sealing and opening chunks: the format, nonces, limits, and that nothing but what was sealed opens."""

from __future__ import annotations

import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vaultfs.crypto import aead
from vaultfs.crypto.aead import LARGEST_SEAL_COUNT, NONCE_BYTES, OVERHEAD_BYTES, SegmentCipher
from vaultfs.crypto.keys import Buffer
from vaultfs.errors import ChunkIntegrityError, IntegrityError, UsageError
from vaultfs.ids import ChunkId, VaultId

from . import longhand

KEY = bytes(range(32))
VAULT = VaultId(bytes(range(100, 116)))
SALT = bytes(range(200, 232))
PRINT = bytes(range(60, 92))


def cipher(*, key: bytes = KEY, vault: bytes = VAULT, salt: bytes = SALT) -> SegmentCipher:
    return SegmentCipher(key, VaultId(vault), salt)


def sealed(
    plaintext: Buffer,
    *,
    by: SegmentCipher | None = None,
    chunk: int = 9,
    fingerprint: bytes = PRINT,
    length: int | None = None,
) -> bytes:
    out = bytearray(len(plaintext) + OVERHEAD_BYTES)
    (by or cipher()).seal_into(
        memoryview(out), ChunkId(chunk), plaintext, fingerprint, length=len(plaintext) if length is None else length
    )
    return bytes(out)


# ------------------------------------------------------------------------------------------------ the format


def test_a_chunk_is_sealed_as_documented(dead_random: None) -> None:
    plaintext = b"the quick brown fox jumps over it"
    expected = longhand.seal_chunk(KEY, VAULT, SALT, 9, 50, plaintext, PRINT, b"\x5a" * 16)
    assert sealed(plaintext, length=50) == expected


def test_the_format_never_changes(dead_random: None) -> None:
    """A change here makes every chunk there is unreadable."""
    assert sealed(b"vaultfs").hex() == "29caca366c45afe938e1f2b7a76e7a6d9fab112dea8f46ab6fc9729b20f434c16ae108"
    assert (
        cipher().seal_record(b"index", b"vaultfs").hex()
        == "f6d60f571c90ff89ab5558090bfd5b76a5ff3b919365ec564e552ec53733aa10e07e45"
    )


def test_a_chunk_made_longhand_opens() -> None:
    made = longhand.seal_chunk(KEY, VAULT, SALT, 2**64 - 1, 2**32 - 1, b"x" * 100, PRINT, os.urandom(16))
    assert cipher().open(ChunkId(2**64 - 1), made, length=2**32 - 1) == b"x" * 100


@given(st.binary(max_size=500), st.integers(0, 2**64 - 1), st.integers(0, 2**20))
def test_what_was_sealed_opens(plaintext: bytes, chunk: int, more: int) -> None:
    length = len(plaintext) + more
    both = cipher()
    assert both.open(ChunkId(chunk), sealed(plaintext, by=both, chunk=chunk, length=length), length=length) == plaintext


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_buffers_of_each_kind_are_taken(kind: type) -> None:
    made = sealed(kind(b"abc" * 2000))
    assert cipher().open(ChunkId(9), kind(made), length=6000) == b"abc" * 2000


def test_only_the_room_that_is_needed_is_written() -> None:
    out = bytearray(b"\xee" * 100)
    written = cipher().seal_into(memoryview(out)[10:90], ChunkId(9), b"plain", PRINT, length=5)
    assert written == 5 + OVERHEAD_BYTES
    assert out[:10] == b"\xee" * 10
    assert out[10 + written :] == b"\xee" * (90 - written)
    assert cipher().open(ChunkId(9), out[10 : 10 + written], length=5) == b"plain"


# ------------------------------------------------------------------------------------------------ tampering


@pytest.mark.parametrize("size", [0, 1, 33])
def test_any_flipped_bit_of_nonce_ciphertext_or_tag_is_noticed(size: int) -> None:
    reader, made = cipher(), sealed(os.urandom(size))
    for bit in range(8 * len(made)):
        changed = bytearray(made)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ChunkIntegrityError):
            reader.open(ChunkId(9), changed, length=size)


def test_any_flipped_bit_of_key_vault_or_salt_is_noticed() -> None:
    made = sealed(b"plain")
    for name, value in (("key", KEY), ("vault", VAULT), ("salt", SALT)):
        for bit in range(8 * len(value)):
            changed = bytearray(value)
            changed[bit // 8] ^= 1 << bit % 8
            with pytest.raises(ChunkIntegrityError):
                cipher(**{name: bytes(changed)}).open(ChunkId(9), made, length=5)


def test_another_chunk_id_or_length_is_noticed() -> None:
    made = sealed(b"plain", length=8)
    assert cipher().open(ChunkId(9), made, length=8) == b"plain"
    for bit in range(64):
        with pytest.raises(ChunkIntegrityError, match=f"chunk {9 ^ 1 << bit} does not open"):
            cipher().open(ChunkId(9 ^ 1 << bit), made, length=8)
    for bit in range(32):
        with pytest.raises(ChunkIntegrityError):
            cipher().open(ChunkId(9), made, length=8 ^ 1 << bit)


def test_the_vault_is_bound_in_beyond_its_keys() -> None:
    """Two vaults with one chunk key: it cannot happen, and a chunk would not cross even then."""
    with pytest.raises(ChunkIntegrityError):
        cipher(vault=bytes(16)).open(ChunkId(9), sealed(b"plain"), length=5)


def test_cut_and_grown_chunks_are_noticed() -> None:
    made = sealed(b"a chunk of some bytes")
    for size in range(len(made)):
        with pytest.raises(ChunkIntegrityError):
            cipher().open(ChunkId(9), made[:size], length=21)
        with pytest.raises(ChunkIntegrityError):
            cipher().open(ChunkId(9), made[size + 1 :], length=21)
    for more in (b"\0", b"\0" * 16, made):
        with pytest.raises(ChunkIntegrityError):
            cipher().open(ChunkId(9), made + more, length=21)
        with pytest.raises(ChunkIntegrityError):
            cipher().open(ChunkId(9), more + made, length=10**6)


def test_swapped_chunks_are_noticed() -> None:
    both = cipher()
    first, second = sealed(b"one", by=both, chunk=1), sealed(b"two", by=both, chunk=2)
    for chunk, made in ((1, second), (2, first)):
        with pytest.raises(ChunkIntegrityError):
            both.open(ChunkId(chunk), made, length=3)
    other = cipher(salt=bytes(32))
    with pytest.raises(ChunkIntegrityError):
        other.open(ChunkId(1), first, length=3)


def test_a_chunk_longer_than_its_length_is_refused() -> None:
    """Sealing refuses it too, so only someone with the key could have made it."""
    made = longhand.seal_chunk(KEY, VAULT, SALT, 9, 5, b"longer", PRINT, os.urandom(16))
    with pytest.raises(ChunkIntegrityError):
        cipher().open(ChunkId(9), made, length=5)


@pytest.mark.parametrize(("chunk", "length"), [(-1, 5), (2**64, 5), (9, 2**32)])
def test_ids_and_lengths_out_of_range_are_integrity_errors(chunk: int, length: int) -> None:
    """They come from rows of the metadata."""
    with pytest.raises(ChunkIntegrityError):
        cipher().open(ChunkId(chunk), sealed(b"plain"), length=length)


@given(st.binary(max_size=200), st.integers(-(2**70), 2**70), st.integers(-(2**40), 2**40))
def test_garbage_raises_one_error(made: bytes, chunk: int, length: int) -> None:
    with pytest.raises(ChunkIntegrityError):
        cipher().open(ChunkId(chunk), made, length=length)


# ------------------------------------------------------------------------------------------------ nonces


@given(st.binary(min_size=1, max_size=500), st.integers(0, 2**64 - 1))
def test_opening_into_a_buffer_is_opening(plaintext: bytes, chunk: int) -> None:
    both = cipher()
    out = bytearray(b"\xff" * (len(plaintext) + 20))
    both.open_into(memoryview(out)[10:-10], ChunkId(chunk), sealed(plaintext, by=both, chunk=chunk))
    assert out == b"\xff" * 10 + plaintext + b"\xff" * 10


@pytest.mark.parametrize("size", [1, 33, 5000])
def test_what_does_not_open_leaves_zeros_in_the_buffer(size: int) -> None:
    made = sealed(bytes(range(1, 252)) * 20)[: NONCE_BYTES + size] + b"t" * 16  # decrypts, and has a wrong tag
    good = sealed(b"\x01" * size)
    flipped = [bytearray(good) for _ in range(3)]
    for place, each in zip((0, NONCE_BYTES, -1), flipped, strict=True):
        each[place] ^= 1
    cases: list[tuple[int, Buffer]] = [(9, made), (8, good), (9, good[:-1]), (9, good + b"x"), (9, b"")]
    for chunk, bad in cases + [(9, each) for each in flipped]:
        out = bytearray(b"\xff" * size)
        with pytest.raises(ChunkIntegrityError, match=f"chunk {chunk} does not open"):
            cipher().open_into(memoryview(out), ChunkId(chunk), bad)
        assert out == bytes(size)


def test_a_compressed_chunk_is_not_opened_into_a_buffer_of_its_stored_length() -> None:
    made = sealed(b"short", length=100)
    with pytest.raises(ChunkIntegrityError):
        cipher().open_into(memoryview(bytearray(5)), ChunkId(9), made)


def test_nonces_are_all_different() -> None:
    writer = cipher()
    assert len({sealed(b"same", by=writer)[:NONCE_BYTES] for _ in range(5000)}) == 5000


def test_a_dead_random_source_gives_another_nonce_to_another_chunk(dead_random: None) -> None:
    """Each thing that differs is enough: plaintext, id, length, and the size after compression."""
    made = [
        sealed(b"data"),
        sealed(b"data", fingerprint=bytes(32)),
        sealed(b"data", chunk=10),
        sealed(b"data", length=5),
        sealed(b"dat", length=4),
        sealed(b"data", by=cipher(salt=bytes(32))),
        sealed(b"data", by=cipher(key=bytes(32))),
    ]
    assert len({one[:NONCE_BYTES] for one in made}) == len(made)


def test_a_dead_random_source_repeats_only_the_very_same_chunk(dead_random: None) -> None:
    assert sealed(b"data") == sealed(b"data")


def test_a_rewound_random_source_is_hedged_for_records(dead_random: None) -> None:
    made = [
        aead.seal_record(KEY, purpose, data)
        for purpose, data in ((b"ab", b"c"), (b"a", b"bc"), (b"ab", b"d"), (b"a", b"c"))
    ]
    assert len({one[:NONCE_BYTES] for one in made}) == len(made)


def test_each_seal_asks_the_kernel_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """A buffer of random bytes would be copied by fork and by clones of a virtual machine."""
    asked: list[int] = []
    genuine = os.urandom

    def urandom(count: int) -> bytes:
        asked.append(count)
        return genuine(count)

    monkeypatch.setattr(os, "urandom", urandom)
    writer = cipher()
    for _ in range(5):
        sealed(b"data", by=writer)
    assert asked == [16] * 5


def test_after_fork_parent_and_child_use_other_nonces() -> None:
    writer = cipher()
    sealed(b"data", by=writer)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, b"".join(sealed(b"data", by=writer)[:NONCE_BYTES] for _ in range(50)))
        finally:
            os._exit(0)  # not back into pytest
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        theirs = pipe.read()
    assert os.waitpid(child, 0)[1] == 0
    ours = b"".join(sealed(b"data", by=writer)[:NONCE_BYTES] for _ in range(50))
    both = theirs + ours
    assert len(theirs) == 50 * NONCE_BYTES
    assert len({both[start : start + NONCE_BYTES] for start in range(0, len(both), NONCE_BYTES)}) == 100


# ------------------------------------------------------------------------------------------------ limits and misuse


def test_a_segment_key_seals_no_more_than_its_limit() -> None:
    writer = cipher()
    out = memoryview(bytearray(OVERHEAD_BYTES))
    for chunk in range(LARGEST_SEAL_COUNT):
        assert writer.seal_count == chunk
        writer.seal_into(out, ChunkId(chunk), b"", PRINT, length=0)
    for _ in range(2):
        with pytest.raises(UsageError, match="begin another"):
            writer.seal_into(out, ChunkId(0), b"", PRINT, length=0)
    assert writer.seal_count == LARGEST_SEAL_COUNT == 2**16


@pytest.mark.parametrize("missing", [1, 16, OVERHEAD_BYTES, OVERHEAD_BYTES + 5])
def test_a_buffer_without_room_is_refused_and_left_alone(missing: int) -> None:
    out = bytearray(b"\xee" * (5 + OVERHEAD_BYTES - missing))
    with pytest.raises(UsageError, match="no room"):
        cipher().seal_into(memoryview(out), ChunkId(9), b"plain", PRINT, length=5)
    assert set(out) <= {0xEE}


@pytest.mark.parametrize(
    ("chunk", "fingerprint", "length"),
    [
        (9, PRINT[:-1], 5),
        (9, PRINT + b"x", 5),
        (9, b"", 5),
        (9, PRINT, 4),
        (9, PRINT, -1),
        (9, PRINT, 2**32),
        (-1, PRINT, 5),
        (2**64, PRINT, 5),
    ],
)
def test_arguments_out_of_range_are_refused(chunk: int, fingerprint: bytes, length: int) -> None:
    with pytest.raises(UsageError):
        sealed(b"plain", chunk=chunk, fingerprint=fingerprint, length=length)


@pytest.mark.parametrize(
    ("key", "vault", "salt"),
    [
        (b"", VAULT, SALT),
        (KEY[:16], VAULT, SALT),
        (KEY[:24], VAULT, SALT),
        (KEY + KEY, VAULT, SALT),
        (KEY, VAULT[:15], SALT),
        (KEY, VAULT, SALT[:31]),
        (KEY, VAULT, SALT + b"x"),
    ],
)
def test_keys_ids_and_salts_of_another_length_are_refused(key: bytes, vault: bytes, salt: bytes) -> None:
    with pytest.raises(UsageError):
        SegmentCipher(key, VaultId(vault), salt)


def test_two_threads_share_a_cipher() -> None:
    writer = cipher()
    plaintext = os.urandom(1 << 16)
    wrong: list[int] = []
    nonces: list[bytes] = []

    def work(first: int) -> None:
        out = memoryview(bytearray(len(plaintext) + OVERHEAD_BYTES))
        for chunk in range(first, first + 200):
            size = len(plaintext) if chunk % 2 else 1000
            end = writer.seal_into(out, ChunkId(chunk), plaintext[:size], PRINT, length=size)
            nonces.append(bytes(out[:NONCE_BYTES]))
            if writer.open(ChunkId(chunk), out[:end], length=size) != plaintext[:size]:
                wrong.append(chunk)

    threads = [threading.Thread(target=work, args=(first,)) for first in (0, 1000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(set(nonces)) == 400


# ------------------------------------------------------------------------------------------------ records


def test_a_record_is_sealed_as_documented(dead_random: None) -> None:
    random = b"\x5a" * 16
    assert aead.seal_record(KEY, b"head", b"data") == longhand.seal_record(KEY, b"head", b"data", random)
    record_key = longhand.hkdf(KEY, SALT, b"vaultfs 1 segment", 96)[64:]
    expected = longhand.seal_record(record_key, b"recordindex" + VAULT, b"rows", random)
    assert cipher().seal_record(b"index", b"rows") == expected


@given(st.binary(max_size=200), st.binary(max_size=20))
def test_records_open_with_their_purpose_only(data: bytes, purpose: bytes) -> None:
    made = aead.seal_record(KEY, purpose, data)
    assert len(made) == len(data) + OVERHEAD_BYTES
    assert aead.open_record(KEY, purpose, memoryview(made)) == data
    with pytest.raises(IntegrityError):
        aead.open_record(KEY, purpose + b"\0", made)
    with pytest.raises(IntegrityError):
        aead.open_record(bytes(32), purpose, made)


@given(st.binary(max_size=100))
def test_garbage_is_no_record(made: bytes) -> None:
    with pytest.raises(IntegrityError):
        aead.open_record(KEY, b"head", made)
    with pytest.raises(IntegrityError, match="the index record"):
        cipher().open_record(b"index", made)


def test_any_flipped_bit_of_a_record_is_noticed() -> None:
    made = cipher().seal_record(b"trailer", b"where the index is")
    assert cipher().open_record(b"trailer", made) == b"where the index is"
    for bit in range(8 * len(made)):
        changed = bytearray(made)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(IntegrityError):
            cipher().open_record(b"trailer", changed)


def test_records_keep_to_their_kind_segment_and_vault() -> None:
    made = cipher().seal_record(b"index", b"rows")
    for other, kind in (
        (cipher(), b"trailer"),
        (cipher(salt=bytes(32)), b"index"),
        (cipher(vault=bytes(16)), b"index"),
        (cipher(key=bytes(32)), b"index"),
    ):
        with pytest.raises(IntegrityError):
            other.open_record(kind, made)


@pytest.mark.parametrize("size", [0, 16, 24, 31, 33, 64])
def test_a_record_key_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(UsageError):
        aead.seal_record(bytes(size), b"head", b"data")
    with pytest.raises(UsageError):
        aead.open_record(bytes(size), b"head", bytes(100))
