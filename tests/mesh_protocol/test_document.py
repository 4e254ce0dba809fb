"""docs/mesh-protocol.md against the code: numbers and fields of messages, codes, limits; and the test vectors."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from vaultfs.ids import VaultId
from vaultfs.mesh import (
    connection,
    dialing,
    failure_codes,
    frames,
    message_codec,
    message_stream,
    messages,
    replica_keys,
)
from vaultfs.mesh.addresses import DEFAULT_PORT
from vaultfs.mesh.client import proof_of
from vaultfs.mesh.identity import Identity, authority_key, format_peer_id
from vaultfs.mesh.messages import Message
from vaultfs.mesh.pool_records import PoolLimits
from vaultfs.mesh.share_keys import parse_share_key, shares_prefix

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "mesh-protocol.md").read_text()
VECTORS: dict[str, Any] = json.loads((Path(__file__).parent / "vectors.json").read_text())


def section(title: str) -> str:
    match = re.search(rf"^## \d+\. {re.escape(title)}\n(.*?)(?=^## |\Z)", DOCUMENT, re.DOTALL | re.MULTILINE)
    assert match is not None, title
    return match[1]


def rows(text: str) -> list[list[str]]:
    found = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    ]
    return [row for row in found if not set(row[0]) <= {"-", " "}]


def kinds() -> dict[int, type[Message]]:
    found = {}
    for kind in {*get_args(messages.FromCaller), *get_args(messages.FromPeer)}:
        found[kind.__struct_config__.tag] = kind
    return found


def test_every_message_is_in_the_table_and_nothing_else() -> None:
    senders = {"caller", "peer", "both"}
    found = [row for row in rows(section("Messages")) if row[0].isdigit() and row[2] in senders]
    written = {int(row[0]): row for row in found}
    assert written.keys() == kinds().keys()
    for number, kind in kinds().items():
        _, name, sender, elements = written[number]
        assert name == kind.__name__
        assert (sender in {"caller", "both"}) == (kind in get_args(messages.FromCaller))
        assert (sender in {"peer", "both"}) == (kind in get_args(messages.FromPeer))
        plain = re.sub(r"\([^()]*\)", "", elements)
        assert [word.strip() for word in plain.split(",")] == [field.name for field in msgspec.structs.fields(kind)]


def test_every_code_is_in_the_table() -> None:
    written = {int(row[0]): row[1] for row in rows(section("Messages")) if row[0].isdigit() and row[1].isupper()}
    assert written == {code.value: code.name for code in failure_codes.Code}


def test_bounds_of_messages() -> None:
    text = section("Messages") + section("Frames") + section("A conversation")
    assert f"1 to {frames.MAX_PAYLOAD_BYTES:,}" in text
    assert f"1 to {frames.FIRST_PAYLOAD_BYTES:,}" in text
    assert f"data (1 to {frames.DATA_BYTES:,} bytes)" in text
    assert f"up to {messages.MOST_NAMES:,} hashes" in text
    assert f"up to {messages.MOST_ENTRIES:,} pairs" in text
    assert f"keys (up to {messages.MOST_KEYS})" in text
    assert f"up to {messages.MOST_RANGES} arrays" in text
    assert f"{messages.MOST_AUDITED_BYTES >> 20} MiB in all" in text
    assert f"up to {messages.MOST_PIPELINED} before the first answer" in text
    for feature in connection.FEATURES:
        assert f"`{feature}`" in text


def test_times_and_numbers() -> None:
    text = section("Limits and times")
    limits = PoolLimits()
    assert f"closed by the caller after {limits.idle_timeout_s:.0f} s" in text
    assert f"idle for {limits.health_check_after_s:.0f} s | {limits.ping_timeout_s:.0f} s" in text
    assert f"taking an answer | {message_stream.FRAME_S:.0f} s" in text
    assert f"TLS handshake and Hello | {dialing.DIAL_S:.0f} s together" in text
    assert f"default port {DEFAULT_PORT}" in DOCUMENT


def test_the_vectors_are_named_in_the_document() -> None:
    assert "tests/mesh_protocol/vectors.json" in DOCUMENT


def test_identity_vector() -> None:
    vector = VECTORS["identity"]
    identity = Identity.of_seed(bytes.fromhex(vector["seed"]))
    assert identity.public_key.hex() == vector["public_key"]
    assert hashlib.sha256(b"vaultfs mesh 1 peer" + identity.public_key).hexdigest() == vector["peer_id"]
    assert identity.peer_id.hex() == vector["peer_id"]
    checksum = hashlib.sha256(b"vaultfs mesh 1 peer id" + identity.peer_id).digest()[:3]
    assert checksum.hex() == vector["checksum"]
    assert format_peer_id(identity.peer_id) == vector["printed"]


def test_authority_vector() -> None:
    public = authority_key().public_key().public_bytes_raw()
    assert public.hex() == VECTORS["authority"]["public_key"]
    assert hashlib.sha256(b"vaultfs mesh 1 everybody's authority").hexdigest() == VECTORS["authority"]["seed"]


def sample(name: str) -> Message:
    values = VECTORS["messages"][name]
    kind = getattr(messages, name)
    found: Message = msgspec.convert([kind.__struct_config__.tag, *_plain(values["elements"])], kind)
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return bytes.fromhex(value["hex"])
    return [_plain(each) for each in value] if isinstance(value, list) else value


def test_every_message_has_a_vector() -> None:
    assert VECTORS["messages"].keys() == {kind.__name__ for kind in kinds().values()}


@pytest.mark.parametrize("name", sorted(VECTORS["messages"]))
def test_message_vector(name: str) -> None:
    message = sample(name)
    framed = bytes.fromhex(VECTORS["messages"][name]["frame"])
    assert message_codec.encode(message) == framed
    if type(message) in get_args(messages.FromCaller):
        assert message_codec.decode_from_caller(framed[4:]) == message
    if type(message) in get_args(messages.FromPeer):
        assert message_codec.decode_from_peer(framed[4:]) == message


def test_delete_order_vector() -> None:
    vector = VECTORS["delete_order"]
    order = message_codec.delete_order(
        bytes.fromhex(vector["nonce"]),
        bytes.fromhex(vector["peer_id"]),
        VaultId(bytes.fromhex(vector["vault"])),
        tuple(vector["keys"]),
    )
    assert order.hex() == vector["order"]
    identity = Identity.of_seed(bytes.fromhex(vector["device_seed"]))
    assert identity.sign(order).hex() == vector["signature"]


def test_share_proof_vector() -> None:
    vector = VECTORS["share_proof"]
    key = parse_share_key(f"{shares_prefix(vector['segment'])}{vector['share']}")
    assert key is not None
    data = bytes.fromhex(vector["bytes"])
    assert len(data) == vector["length"]
    assert proof_of(bytes.fromhex(vector["key"]), key.name, vector["offset"], data).hex() == vector["proof"]


def test_a_range_of_before_there_were_shares_is_one_of_a_segment() -> None:
    framed = bytes.fromhex(VECTORS["messages"]["Audit"]["frame"])
    message = message_codec.decode_from_caller(framed[4:])
    assert isinstance(message, messages.Audit)
    before = [message.ranges[0].name, message.ranges[0].offset, message.ranges[0].length]
    assert msgspec.convert(before, messages.Range) == message.ranges[0]
    assert not message.ranges[0].share
    assert message.ranges[1].share


def test_longest_objects() -> None:
    text = section("Objects")
    assert f"{replica_keys.LARGEST_MANIFEST_BYTES >> 20} MiB" in text
