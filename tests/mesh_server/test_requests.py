"""Every request, and who may make it."""

from __future__ import annotations

import hmac
from collections.abc import Callable

import blake3
import pytest
from mesh_replicas.peer_objects import (
    NOTE,
    OTHER_VAULT,
    VAULT,
    data_of,
    digest_of,
    manifest,
    put,
    put_head,
    put_segment,
    segment_key,
)

from vaultfs.mesh.failure_codes import Code
from vaultfs.mesh.frames import MAX_PAYLOAD_BYTES
from vaultfs.mesh.messages import (
    MAGIC,
    MOST_ENTRIES,
    Abort,
    Audit,
    Challenge,
    Data,
    Delete,
    Deleted,
    Fail,
    Forget,
    Get,
    Goodbye,
    Have,
    Hello,
    Holds,
    List,
    Listing,
    Message,
    Pair,
    Paired,
    Ping,
    Pong,
    Proof,
    Put,
    Range,
    Size,
    Stat,
    State,
    Statement,
    Status,
    Welcome,
    Witness,
)
from vaultfs.mesh.pairing import ANY_VAULT, Meeting, code_key, parse_code
from vaultfs.mesh.witness import verify_statement

from .running import ALICE, BOB, HELLO, PEER, STRANGER, Peer

N32 = bytes(32)


async def test_hello_is_answered_with_what_both_know(peer: Peer) -> None:
    async with peer.connected(ALICE) as caller:
        welcome = await caller.ask(HELLO, Welcome)
        assert (welcome.version, welcome.features, welcome.is_known) == (1, ("shares", "witness"), True)
    async with peer.connected(STRANGER) as caller:
        assert not (await caller.ask(HELLO, Welcome)).is_known


@pytest.mark.parametrize(
    "hello", [Hello("something", (1,), (), ""), Hello(MAGIC, (2, 3), (), ""), Ping(1), Goodbye("")], ids=str
)
async def test_another_hello_ends_the_connection(peer: Peer, hello: Message) -> None:
    async with peer.connected(ALICE) as caller:
        await caller.say(hello)
        assert (await caller.hears_failure_and_end()).code is Code.NOT_UNDERSTOOD


async def test_answers_say_what_the_store_holds(peer: Peer) -> None:
    data = data_of(1, 5000)
    key = put_segment(peer.store, data)
    name = digest_of(data)
    async with peer.call() as caller:
        assert await caller.ask(Ping(1), Pong) == Pong(1)
        assert (await caller.ask(Have(2, VAULT, name + N32), Holds)).sizes == (5000, 0)
        assert (await caller.ask(List(3, VAULT, "segments/", ""), Listing)).entries == ((key, 5000),)
        assert await caller.ask(Stat(4, VAULT, key), Size) == Size(4, 5000, 0)
        assert await caller.ask(Stat(5, VAULT, NOTE), Size) == Size(5, None, 0)
        ranges = (Range(name, 10, 100), Range(N32, 0, 1))
        proof = await caller.ask(Audit(6, VAULT, b"k" * 32, ranges), Proof)
        text = name + (10).to_bytes(8, "big") + data[10:110]
        assert proof.digests == blake3.blake3(text, key=b"k" * 32).digest() + N32
        state = await caller.ask(Status(7, VAULT), State)
        assert (state.request, state.objects, state.may_write) == (7, 1, True)


async def test_a_witness_says_what_it_has_seen_and_signs(peer: Peer) -> None:
    put_head(peer.store, 3)
    async with peer.call() as caller:
        said = await caller.ask(Witness(1, VAULT, b"n" * 32), Statement)
    statement = verify_statement(
        said.statement, said.public_key, said.signature, vault=VAULT, peer=PEER.peer_id, nonce=b"n" * 32
    )
    assert [(head.seq, head.hash) for head in statement.heads] == [(3, digest_of(manifest(3)))]


async def test_notes_are_forgotten(peer: Peer) -> None:
    put(peer.store, NOTE, b"note")
    async with peer.call() as caller:
        assert await caller.ask(Forget(1, VAULT, NOTE), Deleted) == Deleted(1, 1)
        assert await caller.ask(Forget(2, VAULT, NOTE), Deleted) == Deleted(2, 0)


async def test_answers_come_in_the_order_of_requests_sent_ahead(peer: Peer) -> None:
    data = data_of(1, 300_000)
    key = put_segment(peer.store, data)
    async with peer.call() as caller:
        for number in range(1, 32):
            await caller.say(Stat(number, VAULT, key) if number % 2 else Have(number, VAULT, digest_of(data)))
        await caller.say(Ping(32))
        for number in range(1, 32):
            answer = await (caller.hear(Size) if number % 2 else caller.hear(Holds))
            assert answer.request == number
        await caller.hear(Pong)


async def test_a_listing_with_long_keys_fits_into_a_frame(peer: Peer) -> None:
    for number in range(MOST_ENTRIES):
        put(peer.store, f"probe/{number:04d}-{'x' * 195}/{'y' * 199}", b"x")
    found: list[str] = []
    async with peer.call() as caller:
        has_more = True
        answers = 0
        while has_more:
            listing = await caller.ask(List(caller.next(), VAULT, "probe/", found[-1] if found else ""), Listing)
            found += [key for key, _ in listing.entries]
            has_more = listing.has_more
            answers += 1
    assert len(found) == len(set(found)) == MOST_ENTRIES
    assert found == sorted(found)
    assert answers == -(-MOST_ENTRIES * 430 // MAX_PAYLOAD_BYTES)


@pytest.mark.parametrize("numbers", [(0,), (1, 1), (5, 4)], ids=str)
async def test_numbers_that_do_not_rise_end_the_connection(peer: Peer, numbers: tuple[int, ...]) -> None:
    async with peer.call() as caller:
        for number in numbers[:-1]:
            await caller.ask(Ping(number), Pong)
        await caller.say(Ping(numbers[-1]))
        assert (await caller.hears_failure_and_end()).code is Code.NOT_UNDERSTOOD


@pytest.mark.parametrize("message", [HELLO, Data(b"x"), Abort(7)], ids=str)
async def test_what_is_no_request_ends_the_connection(peer: Peer, message: Message) -> None:
    async with peer.call() as caller:
        await caller.say(message)
        assert (await caller.hears_failure_and_end()).code is Code.NOT_UNDERSTOOD


async def test_goodbye_ends_after_what_came_before(peer: Peer) -> None:
    async with peer.call() as caller:
        await caller.say(Ping(1))
        await caller.say(Goodbye("enough"))
        await caller.say(Ping(2))
        await caller.hear(Pong)
        await caller.hears_end()


READS: list[Callable[[int], Message]] = [
    lambda n: Have(n, VAULT, N32),
    lambda n: List(n, VAULT, "", ""),
    lambda n: Stat(n, VAULT, NOTE),
    lambda n: Audit(n, VAULT, N32, (Range(N32, 0, 1),)),
    lambda n: Status(n, VAULT),
    lambda n: Witness(n, VAULT, N32),
    lambda n: Get(n, VAULT, NOTE, 0, None),
]
WRITES: list[Callable[[int], Message]] = [
    lambda n: Put(n, VAULT, NOTE, 4, digest_of(b"note"), False, 0),
    lambda n: Forget(n, VAULT, NOTE),
    lambda n: Delete(n, VAULT, (NOTE,), N32, bytes(64)),
]


async def refused(peer: Peer, who: object, requests: list[Callable[[int], Message]]) -> None:
    assert requests
    async with peer.call(who) as caller:  # type: ignore[arg-type]
        for make in requests:
            number = caller.next()
            fail = await caller.ask(make(number), Fail)
            assert (fail.request, fail.code) == (number, Code.REFUSED)
        await caller.ask(Ping(caller.next()), Pong)


async def test_strangers_may_only_ping_and_pair(peer: Peer) -> None:
    put(peer.store, NOTE, b"note")
    await refused(peer, STRANGER, [*READS, *WRITES, Challenge])


async def test_a_grant_for_another_vault_allows_nothing(peer: Peer) -> None:
    put(peer.store, NOTE, b"note")
    peer.grant(BOB, "write", OTHER_VAULT)
    await refused(peer, BOB, [*READS, *WRITES])
    assert peer.store.stat(VAULT, NOTE)[0] == 4


async def test_a_grant_to_read_does_not_allow_to_write(peer: Peer) -> None:
    put(peer.store, NOTE, b"note")
    peer.grant(BOB, "read")
    await refused(peer, BOB, WRITES)
    assert peer.store.stat(VAULT, NOTE)[0] == 4
    async with peer.call(BOB) as caller:
        assert not (await caller.ask(Status(1, VAULT), State)).may_write
        assert (await caller.ask(Stat(2, VAULT, NOTE), Size)).size_bytes == 4


@pytest.mark.parametrize("make", [*READS, *WRITES, Challenge])
async def test_a_revoked_caller_is_cut_at_the_next_request(peer: Peer, make: Callable[[int], Message]) -> None:
    put(peer.store, NOTE, b"note")
    async with peer.call() as caller:
        await caller.ask(Ping(1), Pong)
        peer.revoke(ALICE)
        await caller.say(make(2))
        assert (await caller.hears_failure_and_end()).code is Code.REFUSED
    assert peer.store.stat(VAULT, NOTE)[0] == 4


async def test_grants_that_cannot_be_read_allow_nothing_and_name_no_path(
    peer: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    async with peer.call() as caller:
        peer.grants._path.write_bytes(b"{")
        fail = await caller.ask(Status(1, VAULT), Fail)
        assert (fail.code, fail.request) == (Code.FAILED, 1)
        assert "/" not in fail.text
    async with peer.connected(ALICE) as caller:
        await caller.say(HELLO)
        assert (await caller.hears_failure_and_end()).code is Code.FAILED
    assert "grants.json is damaged" in caplog.text


async def test_pairing_gives_a_grant_and_uses_the_code_up(peer: Peer) -> None:
    key = code_key(parse_code(peer.pairings.offer(vault=VAULT, quota_bytes=77)))
    meeting = Meeting(STRANGER.peer_id, PEER.peer_id, ANY_VAULT, b"n" * 32)
    ask = Pair(1, ANY_VAULT, b"n" * 32, meeting.caller_proof(key), "lap\ntop")
    async with peer.call(STRANGER) as caller:
        paired = await caller.ask(ask, Paired)
        assert meeting.is_peer_proof(key, paired.proof)
        assert paired.label == "nas"
        assert (await caller.ask(Status(2, VAULT), State)).quota_bytes == 77
    grant = peer.grants.lookup(STRANGER.peer_id, VAULT)
    assert grant is not None
    assert (grant.label, grant.vault, grant.access) == ("laptop", VAULT, "write")
    async with peer.call(STRANGER) as caller:
        assert (await caller.ask(ask, Fail)).code is Code.REFUSED


async def test_a_wrong_or_foreign_proof_pairs_nobody(peer: Peer) -> None:
    key = code_key(parse_code(peer.pairings.offer()))
    foreign = Meeting(BOB.peer_id, PEER.peer_id, VAULT, N32).caller_proof(key)
    async with peer.call(STRANGER) as caller:
        for proof in (N32, foreign, hmac.digest(key, b"caller", "sha256")):
            assert (await caller.ask(Pair(caller.next(), VAULT, N32, proof, ""), Fail)).code is Code.REFUSED
    assert not peer.grants.is_known(STRANGER.peer_id)


async def test_keys_that_nothing_has_are_refused(peer: Peer) -> None:
    async with peer.call() as caller:
        for key in ("../../grants.json", "/etc/passwd", "segments/aa/../x", segment_key(b"") + "/x"):
            assert (await caller.ask(Stat(caller.next(), VAULT, key), Fail)).code is Code.REFUSED
            assert (await caller.ask(Get(caller.next(), VAULT, key, 0, None), Fail)).code is Code.REFUSED
