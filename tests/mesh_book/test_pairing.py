"""A pairing code opens what it was made for, once and in time, and only to who knows it."""

from __future__ import annotations

import hashlib
import hmac
import json
import stat
from pathlib import Path

import pytest

from vaultfs.errors import FormatTooNewError, IntegrityError, UsageError
from vaultfs.ids import VaultId
from vaultfs.mesh.identity import Identity
from vaultfs.mesh.pairing import (
    ANY_VAULT,
    MOST_OFFERS,
    Meeting,
    Pairings,
    Redeemed,
    code_key,
    format_code,
    new_code,
    new_nonce,
    parse_code,
)

CALLER, PEER, OTHER = (Identity.of_seed(bytes([number]) * 32).peer_id for number in range(3))
VAULT = VaultId(bytes(range(16)))
ELSEWHERE = VaultId(bytes(range(1, 17)))
MINUTE_NS = 60 * 10**9
START_NS = 1_800_000_000 * 10**9


class Clock:
    def __init__(self) -> None:
        self.now_ns = START_NS

    def __call__(self) -> int:
        return self.now_ns


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "mesh" / "pairing.json"


@pytest.fixture
def pairings(path: Path, clock: Clock) -> Pairings:
    return Pairings(path, clock_ns=clock)


def meeting(vault: VaultId = VAULT) -> Meeting:
    return Meeting(CALLER, PEER, vault, new_nonce())


def redeem(pairings: Pairings, code: str, vault: VaultId = VAULT) -> Redeemed | None:
    met = meeting(vault)
    return pairings.redeem(met, met.caller_proof(code_key(parse_code(code))))


# --- codes


def test_codes_differ_and_can_be_typed() -> None:
    codes = {new_code() for _ in range(100)}
    assert len(codes) == 100
    for code in codes:
        assert [len(group) for group in code.split("-")] == [4, 4, 4, 4]
        assert format_code(parse_code(f"  {code.lower().replace('-', ' ')}\n")) == code


@pytest.mark.parametrize("text", ["", "ABCD-EFGH-IJKL-MNO", "ABCD-EFGH-IJKL-MNOPQ", "ABCD-EFGH-IJKL-MNO0", "ß" * 16])
def test_what_is_no_code(text: str) -> None:
    with pytest.raises(UsageError, match="that is not a pairing code") as caught:
        parse_code(text)
    assert not text or text not in str(caught.value)


def test_proofs_are_those_of_the_protocol() -> None:
    """Written down once more from docs/mesh-protocol.md, section 11."""
    nonce = bytes(range(32))
    met = Meeting(CALLER, PEER, VAULT, nonce)
    context = b"vaultfs mesh 1 pair\0" + CALLER + PEER + VAULT + nonce
    key = hashlib.sha256(b"vaultfs mesh 1 pairing code\0ABCDEFGHIJKLMNOP").digest()
    assert code_key(parse_code("abcd-efgh-ijkl-mnop")) == key
    assert met.caller_proof(key) == hmac.new(key, b"caller" + context, hashlib.sha256).digest()
    assert met.peer_proof(key) == hmac.new(key, b"peer" + context, hashlib.sha256).digest()


def test_every_part_of_a_meeting_counts() -> None:
    key = code_key("A" * 16)
    nonce = new_nonce()
    meetings = [
        Meeting(CALLER, PEER, VAULT, nonce),
        Meeting(OTHER, PEER, VAULT, nonce),
        Meeting(CALLER, OTHER, VAULT, nonce),
        Meeting(CALLER, PEER, ELSEWHERE, nonce),
        Meeting(CALLER, PEER, VAULT, new_nonce()),
    ]
    proofs = {met.caller_proof(key) for met in meetings} | {met.peer_proof(key) for met in meetings}
    assert len(proofs) == 2 * len(meetings)
    first = meetings[0]
    assert first.is_peer_proof(key, first.peer_proof(key))
    assert not first.is_peer_proof(key, first.caller_proof(key)), "an echo is no proof"
    assert not first.is_peer_proof(code_key("B" * 16), first.peer_proof(key))


# --- the file


def test_a_code_counts_once(pairings: Pairings) -> None:
    code = pairings.offer(vault=VAULT, may_write=False, quota_bytes=5, label="laptop")
    met = meeting()
    key = code_key(parse_code(code))
    found = pairings.redeem(met, met.caller_proof(key))
    assert found == Redeemed(VAULT, may_write=False, quota_bytes=5, label="laptop", proof=met.peer_proof(key))
    assert redeem(pairings, code) is None
    assert pairings.redeem(met, met.caller_proof(key)) is None


def test_a_wrong_proof_costs_nothing(pairings: Pairings, path: Path) -> None:
    code = pairings.offer()
    before = path.read_bytes()
    met = meeting()
    for wrong in (bytes(32), met.peer_proof(code_key(parse_code(code))), b""):
        assert pairings.redeem(met, wrong) is None
    assert redeem(pairings, new_code()) is None
    assert path.read_bytes() == before
    assert redeem(pairings, code) is not None


def test_a_proof_for_somebody_else(pairings: Pairings) -> None:
    """Who passes messages on has other ids than those that the proof is about."""
    key = code_key(parse_code(pairings.offer()))
    met = meeting()
    assert pairings.redeem(Meeting(OTHER, PEER, VAULT, met.nonce), met.caller_proof(key)) is None


@pytest.mark.parametrize(
    ("offered", "asked", "given"),
    [
        (ANY_VAULT, VAULT, VAULT),
        (ANY_VAULT, ANY_VAULT, ANY_VAULT),
        (VAULT, VAULT, VAULT),
        (VAULT, ANY_VAULT, VAULT),
        (VAULT, ELSEWHERE, None),
    ],
)
def test_for_which_vault(pairings: Pairings, offered: VaultId, asked: VaultId, given: VaultId | None) -> None:
    code = pairings.offer(vault=offered)
    found = redeem(pairings, code, asked)
    assert (None if found is None else found.vault) == given
    assert (redeem(pairings, code, offered) is None) == (given is not None), "what was refused can be asked for rightly"


def test_in_time(pairings: Pairings, clock: Clock) -> None:
    code = pairings.offer(minutes=10)
    clock.now_ns = START_NS + 10 * MINUTE_NS
    assert redeem(pairings, code) is None
    clock.now_ns = START_NS - 1
    assert redeem(pairings, code) is None, "a clock that was put back makes no code live longer"
    clock.now_ns = START_NS + 10 * MINUTE_NS - 1
    assert redeem(pairings, code) is not None


def test_several_at_once(pairings: Pairings) -> None:
    codes = [pairings.offer(label=str(number)) for number in range(3)]
    for number in (1, 0, 2):
        found = redeem(pairings, codes[number])
        assert found is not None
        assert found.label == str(number)


def test_too_many_until_they_expire(pairings: Pairings, clock: Clock, path: Path) -> None:
    for _ in range(MOST_OFFERS):
        pairings.offer(minutes=1)
    with pytest.raises(UsageError, match="open already"):
        pairings.offer()
    clock.now_ns += MINUTE_NS
    assert redeem(pairings, pairings.offer()) is not None
    assert json.loads(path.read_text())["offers"] == [], "what has expired is gone"


def test_the_code_itself_is_stored_nowhere(pairings: Pairings, path: Path) -> None:
    code = pairings.offer()
    text = path.read_text()
    assert code not in text
    assert parse_code(code) not in text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.with_name("pairing.json.lock").exists()


def test_without_a_file_nobody_is_let_in(pairings: Pairings, path: Path) -> None:
    assert redeem(pairings, new_code()) is None
    assert not path.parent.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"format": 1}',
        b'{"format": 1, "offers": [], "more": 1}',
        b'{"format": 1, "offers": [{"key": "00"}]}',
        b"[" * 100_000,
    ],
)
def test_a_damaged_file(pairings: Pairings, path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"pairing\.json is damaged"):
        redeem(pairings, new_code())
    with pytest.raises(IntegrityError, match=r"pairing\.json is damaged"):
        pairings.offer()
    assert path.read_bytes() == content


def test_a_file_of_a_newer_version(pairings: Pairings, path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b'{"format": 2}')
    with pytest.raises(FormatTooNewError):
        redeem(pairings, new_code())
