"""Identities: what people type, what is on the disk, what certificates say."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from vaultfs.errors import IntegrityError, UsageError
from vaultfs.ids import PeerId
from vaultfs.mesh.identity import (
    Identity,
    authority_key,
    authority_pem,
    format_peer_id,
    parse_peer_id,
    peer_id_of,
    peer_id_of_key,
    require_identity,
    short_peer_id,
    verify_signature,
)

ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"


@given(st.binary(min_size=32, max_size=32))
def test_an_id_is_read_as_it_was_printed(data: bytes) -> None:
    printed = format_peer_id(PeerId(data))
    assert parse_peer_id(printed) == data
    assert parse_peer_id(f"  {printed.upper().replace('-', ' ')}") == data
    assert [len(group) for group in printed.split("-")] == [8] * 7
    assert printed.startswith(short_peer_id(PeerId(data)))


@given(st.binary(min_size=32, max_size=32), st.integers(0, 55), st.sampled_from(ALPHABET))
def test_a_typing_error_is_found(data: bytes, position: int, letter: str) -> None:
    plain = format_peer_id(PeerId(data)).replace("-", "")
    typed = plain[:position] + letter + plain[position + 1 :]
    if typed == plain:
        return
    with pytest.raises(UsageError, match="mistyped"):
        parse_peer_id(typed)


@given(st.binary(min_size=32, max_size=32), st.integers(0, 54))
def test_two_letters_that_change_places_are_found(data: bytes, position: int) -> None:
    plain = format_peer_id(PeerId(data)).replace("-", "")
    typed = plain[:position] + plain[position + 1] + plain[position] + plain[position + 2 :]
    if typed == plain:
        return
    with pytest.raises(UsageError, match="mistyped"):
        parse_peer_id(typed)


@pytest.mark.parametrize("text", ["", "a", "a" * 55, "a" * 57, "a" * 64, "0" * 56, "ä" * 56, "=" * 56, "a" * 10**6])
def test_what_is_no_id_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not the id"):
        parse_peer_id(text)


def test_a_key_is_stored_for_its_user_alone(tmp_path: Path) -> None:
    identity = Identity.new()
    path = tmp_path / "new" / "identity.pem"
    identity.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    loaded = require_identity(path)
    assert loaded.peer_id == identity.peer_id
    assert verify_signature(identity.public_key, b"data", loaded.sign(b"data"))


def test_a_key_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "identity.pem"
    Identity.new().save(path)
    before = path.read_bytes()
    with pytest.raises(UsageError, match="already"):
        Identity.new().save(path)
    assert path.read_bytes() == before


def test_no_key_is_said_so(tmp_path: Path) -> None:
    assert Identity.load(tmp_path / "identity.pem") is None
    with pytest.raises(UsageError, match="peer init"):
        require_identity(tmp_path / "identity.pem")


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "identity.pem"
    Identity.new().save(path)
    path.chmod(0o640)
    with pytest.raises(IntegrityError, match="chmod 600"):
        Identity.load(path)


@pytest.mark.parametrize("content", [b"", b"-----BEGIN PRIVATE KEY-----\n", b"\xff" * 5000])
def test_a_damaged_key_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "identity.pem"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(IntegrityError, match="damaged"):
        Identity.load(path)


def test_a_key_of_another_kind_is_refused(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.serialization import NoEncryption, PrivateFormat

    path = tmp_path / "identity.pem"
    key = ec.generate_private_key(ec.SECP256R1())
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    path.chmod(0o600)
    with pytest.raises(IntegrityError, match="not the key of a peer"):
        Identity.load(path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "identity.pem", 0o600)
    with pytest.raises(IntegrityError, match="not a regular file"):
        Identity.load(tmp_path / "identity.pem")


def test_a_certificate_tells_the_id() -> None:
    identity = Identity.new()
    certificate = x509.load_pem_x509_certificate(identity.certificate_pem())
    assert peer_id_of(certificate.public_bytes(Encoding.DER)) == identity.peer_id
    assert peer_id_of_key(identity.public_key) == identity.peer_id
    assert certificate.not_valid_before_utc.year == 1970
    assert certificate.not_valid_after_utc.year == 9999


def test_the_authority_is_the_same_everywhere() -> None:
    assert authority_pem() == authority_pem()
    certificate = x509.load_pem_x509_certificate(authority_pem().encode())
    certificate.verify_directly_issued_by(certificate)
    assert certificate.public_key() == authority_key().public_key()


def test_no_certificate_is_no_peer() -> None:
    with pytest.raises(IntegrityError, match="no certificate"):
        peer_id_of(None)


@pytest.mark.parametrize("der", [b"", b"\x30\x03\x02\x01\x01"])
def test_a_certificate_that_is_none_is_no_peer(der: bytes) -> None:
    with pytest.raises(IntegrityError, match="not that of a peer"):
        peer_id_of(der)


@pytest.mark.parametrize("what", ["key", "data", "signature"])
def test_a_signature_of_something_else_is_none(what: str) -> None:
    identity = Identity.of_seed(bytes(32))
    values = {"key": identity.public_key, "data": b"data", "signature": identity.sign(b"data")}
    assert verify_signature(values["key"], values["data"], values["signature"])
    values[what] = bytes([values[what][0] ^ 1]) + values[what][1:]
    assert not verify_signature(values["key"], values["data"], values["signature"])


@pytest.mark.parametrize("key", [b"", bytes(31), bytes(33)])
def test_a_key_of_another_length_signs_nothing(key: bytes) -> None:
    assert not verify_signature(key, b"data", bytes(64))


def test_nothing_secret_is_shown() -> None:
    identity = Identity.of_seed(bytes(range(32)))
    assert repr(identity) == f"Identity({short_peer_id(identity.peer_id)})"
