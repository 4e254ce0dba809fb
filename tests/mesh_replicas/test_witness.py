"""Statements of witnesses, and what they say of a source."""

from __future__ import annotations

import msgspec
import pytest

from mesh_replicas.peer_objects import DEVICE, NOW_NS, OTHER_VAULT, STRANGER, VAULT, data_of
from vaultfs.errors import IntegrityError
from vaultfs.ids import PeerId
from vaultfs.mesh.identity import Identity, verify_signature
from vaultfs.mesh.witness import (
    MOST_HEADS,
    Claim,
    Finding,
    Head,
    WitnessStatement,
    judge,
    make_statement,
    verify_statement,
)

PEER = Identity.of_seed(b"p" * 32)
OTHER = Identity.of_seed(b"o" * 32)
NONCE = data_of(50, 32)


def head(seq: int, number: int = 0, device: Identity = DEVICE) -> Head:
    return Head(seq, data_of(1000 * seq + number, 32), device.public_key)


def verify(data: bytes, signature: bytes, peer: Identity = PEER) -> WitnessStatement:
    return verify_statement(data, peer.public_key, signature, vault=VAULT, peer=PEER.peer_id, nonce=NONCE)


def test_made_and_verified() -> None:
    heads = [head(3), head(5), head(5, 1), head(4), head(3)]
    data, signature = make_statement(PEER, VAULT, NONCE, NOW_NS, heads)
    first, second = sorted((head(5), head(5, 1)), key=lambda each: each.hash)
    expected = (first, second, head(4), head(3))
    assert verify(data, signature) == WitnessStatement(VAULT, PEER.peer_id, NONCE, NOW_NS, expected)
    assert msgspec.msgpack.decode(data) == [
        1,
        VAULT,
        PEER.peer_id,
        NONCE,
        NOW_NS,
        [[each.seq, each.hash, each.device] for each in expected],
    ]
    assert verify_signature(PEER.public_key, b"vaultfs mesh 1 witness\0" + data, signature)


def test_at_most_so_many_and_the_newest() -> None:
    data, signature = make_statement(PEER, VAULT, NONCE, -5, [head(seq) for seq in range(1, 41)])
    statement = verify(data, signature)
    assert [each.seq for each in statement.heads] == list(range(40, 40 - MOST_HEADS, -1))
    assert statement.time_ns == 0
    assert verify(*make_statement(PEER, VAULT, NONCE, 0, [])).heads == ()


def test_what_does_not_count() -> None:
    data, signature = make_statement(PEER, VAULT, NONCE, NOW_NS, [head(1)])
    with pytest.raises(IntegrityError, match="signed"):
        verify(data, bytes(64))
    with pytest.raises(IntegrityError, match="signed"):
        verify(data + b"x", signature)
    with pytest.raises(IntegrityError, match="signed"):
        verify(data, PEER.sign(data))
    with pytest.raises(IntegrityError, match="key"):
        verify(data, OTHER.sign(b"vaultfs mesh 1 witness\0" + data), OTHER)
    for vault, nonce, peer in [(OTHER_VAULT, NONCE, PEER), (VAULT, data_of(51, 32), PEER)]:
        data, signature = make_statement(peer, vault, nonce, NOW_NS, [head(1)])
        with pytest.raises(IntegrityError, match="another question"):
            verify(data, signature)
    data, _ = make_statement(OTHER, VAULT, NONCE, NOW_NS, [head(1)])  # another's, signed as one's own
    with pytest.raises(IntegrityError, match="another question"):
        verify(data, PEER.sign(b"vaultfs mesh 1 witness\0" + data))


def test_strict() -> None:
    good = [
        1,
        VAULT,
        PEER.peer_id,
        NONCE,
        NOW_NS,
        [[2, data_of(1, 32), data_of(2, 32)], [1, data_of(1, 32), data_of(2, 32)]],
    ]
    encode = msgspec.msgpack.encode
    assert WitnessStatement.decode(encode(good)).time_ns == NOW_NS
    wrong: list[object] = [
        [2, *good[1:]],
        [*good, 1],
        good[:-1],
        [*good[:1], VAULT[1:], *good[2:]],
        [*good[:2], b"x" * 31, *good[3:]],
        [*good[:3], b"x" * 33, *good[4:]],
        [*good[:4], -1, good[5]],
        [*good[:4], 1 << 63, good[5]],
        [*good[:5], [[0, data_of(1, 32), data_of(2, 32)]]],
        [*good[:5], [[1, data_of(1, 31), data_of(2, 32)]]],
        [*good[:5], [[1, data_of(1, 32), data_of(2, 32)]] * 2],
        [*good[:5], [[1, data_of(1, 32), data_of(2, 32)], [2, data_of(1, 32), data_of(2, 32)]]],
        [*good[:5], [[100 - seq, data_of(1, 32), data_of(2, 32)] for seq in range(33)]],
        {"x": 1},
        None,
    ]
    for content in wrong:
        with pytest.raises(IntegrityError):
            WitnessStatement.decode(encode(content))
    data = encode(good)
    for other in (
        b"",
        data[:-1],
        data + b"x",
        b"\xdc\0\x06" + data[1:],
        data.replace(b"\x01", b"\xcc\x01", 1),
        b"\x91" * 20_000,
    ):
        with pytest.raises(IntegrityError):
            WitnessStatement.decode(other)


def test_what_cannot_be_said() -> None:
    peer = PEER.peer_id
    for statement in (
        WitnessStatement(VAULT, peer, NONCE, 0, (head(1), head(2))),
        WitnessStatement(VAULT, peer, NONCE, 0, (head(1), head(1))),
        WitnessStatement(VAULT, peer, NONCE, -1, ()),
        WitnessStatement(VAULT, peer, NONCE[1:], 0, ()),
        WitnessStatement(VAULT, peer, NONCE, 0, tuple(head(100 - seq) for seq in range(33))),
    ):
        with pytest.raises(ValueError):
            statement.encode()


def say(peer: int, *heads: Head) -> WitnessStatement:
    return WitnessStatement(VAULT, PeerId(bytes([peer]) * 32), NONCE, 0, tuple(heads))


A, B = PeerId(b"\1" * 32), PeerId(b"\2" * 32)


@pytest.mark.parametrize(
    ("statements", "shown", "finding", "newer", "forks", "agreeing"),
    [
        ([], [], Finding.FINE, [], [], 0),
        ([say(1)], [], Finding.FINE, [], [], 1),
        ([say(1)], [head(3)], Finding.FINE, [], [], 1),
        ([say(1, head(3), head(2))], [head(3)], Finding.FINE, [], [], 1),
        ([say(1, head(2), head(1))], [head(3), head(2)], Finding.FINE, [], [], 1),
        ([say(1, head(3, 1))], [head(3), head(4)], Finding.FINE, [], [], 1),
        ([say(1, head(1))], [], Finding.ROLLBACK, [Claim(head(1), (A,))], [], 0),
        ([say(1, head(4), head(3))], [head(3)], Finding.ROLLBACK, [Claim(head(4), (A,))], [], 0),
        ([say(1, head(3, 1))], [head(3)], Finding.FORK, [], [Claim(head(3, 1), (A,))], 0),
        ([say(1, head(3, 1))], [head(3), head(3, 1)], Finding.FINE, [], [], 1),
        (
            [say(2, head(5), head(4)), say(1, head(4), head(3, 1)), say(3, head(3))],
            [head(3)],
            Finding.ROLLBACK,
            [Claim(head(5), (B,)), Claim(head(4), (A, B))],
            [Claim(head(3, 1), (A,))],
            1,
        ),
        ([say(1, head(9)), say(1, head(3))], [head(3)], Finding.FINE, [], [], 1),
        ([say(1, head(3, 0, STRANGER))], [head(3)], Finding.FINE, [], [], 1),
    ],
)
def test_judging(
    statements: list[WitnessStatement],
    shown: list[Head],
    finding: Finding,
    newer: list[Claim],
    forks: list[Claim],
    agreeing: int,
) -> None:
    judged = judge(statements, shown)
    assert (judged.finding, list(judged.newer), list(judged.forks), judged.agreeing) == (
        finding,
        newer,
        forks,
        agreeing,
    )
