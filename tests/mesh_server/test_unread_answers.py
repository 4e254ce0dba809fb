"""Who does not read his answers costs a peer what TCP holds and one answer in bytes, and not the question as well."""

from __future__ import annotations

import weakref

import pytest
import trio
import trio.testing

from vaultfs.mesh import conversation
from vaultfs.mesh.answers import Answers
from vaultfs.mesh.message_codec import decode_from_caller, encode
from vaultfs.mesh.messages import FromCaller, Message, Ping, Pong

from .running import Peer

REPEATED = 4_000_000
"""More bytes of answers than the sockets of both sides hold: 28 MB."""


class SeenPing(Ping, tag=10, frozen=True, weakref=True):
    """A question whose end can be seen."""


class SeenPong(Pong, tag=11, frozen=True, weakref=True):
    """An answer whose end can be seen."""


async def test_neither_question_nor_answer_is_kept_while_nobody_reads(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[weakref.ref[SeenPing] | weakref.ref[SeenPong]] = []

    def decode(payload: bytes) -> FromCaller:
        message = decode_from_caller(payload)
        if not isinstance(message, Ping):
            return message
        question = SeenPing(message.request)
        seen.append(weakref.ref(question))
        return question

    def answer(answers: Answers, caller: object, message: Ping, nonce: object) -> Message:
        pong = SeenPong(message.request)
        seen.append(weakref.ref(pong))
        return pong

    def long(message: Message) -> bytes:
        return encode(message) * REPEATED

    async with peer.call() as caller:
        monkeypatch.setattr(conversation, "decode_from_caller", decode)
        monkeypatch.setattr(conversation, "encode", long)
        monkeypatch.setattr(Answers, "answer", answer)
        await caller.say(Ping(1))
        while len(seen) < 2:
            await trio.testing.wait_all_tasks_blocked(0.001)
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert peer.server.connections == 1
        assert [each() for each in seen] == [None, None]
