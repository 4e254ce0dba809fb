"""What people write for addresses comes out as it is meant, or is refused with a reason."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vaultfs.errors import UsageError
from vaultfs.mesh.addresses import DEFAULT_PORT, Address, is_host, parse_address, parse_peer_address
from vaultfs.mesh.identity import Identity, format_peer_id

PEER = Identity.of_seed(bytes(32)).peer_id


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("nas", "nas", DEFAULT_PORT),
        ("nas:1", "nas", 1),
        ("nas.example.org:65535", "nas.example.org", 65535),
        ("nas.example.org.", "nas.example.org.", DEFAULT_PORT),
        ("my_host-2", "my_host-2", DEFAULT_PORT),
        ("3com.example", "3com.example", DEFAULT_PORT),
        ("10.0.0.9", "10.0.0.9", DEFAULT_PORT),
        ("10.0.0.9:80", "10.0.0.9", 80),
        ("[::1]", "::1", DEFAULT_PORT),
        ("[fd00::2]:7000", "fd00::2", 7000),
        ("[fe80::1%eth0]:7000", "fe80::1%eth0", 7000),
        ("[::ffff:10.0.0.9]", "::ffff:10.0.0.9", DEFAULT_PORT),
    ],
)
def test_addresses(text: str, host: str, port: int) -> None:
    address = parse_address(text, "PEER")
    assert address == Address(host, port)
    assert parse_address(str(address), "PEER") == address


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no address"),
        (":7741", "no address"),
        ("nas:", "no address"),
        ("nas:x", "no address"),
        ("nas:+1", "no address"),
        ("nas:٣", "no address"),
        ("nas:123456", "no address"),
        ("nas:0", "0 is no port"),
        ("nas:65536", "65536 is no port"),
        ("nas:1:2", "no address"),
        ("::1", r"in brackets, as in \[::1\]:7741"),
        ("fe80::1%eth0", "in brackets"),
        ("[::1", "no address"),
        ("[::1]7741", "no address"),
        ("[::1]:", "no address"),
        ("[nas]:7741", "no address"),
        ("[10.0.0.9]", "no address"),
        ("[fe80::1%]", "no address"),
        ("[fe80::1%a/b]", "no address"),
        ("[fe80::1%abcdefghijklmnop]", "no address"),
        ("10.0.0.999", "no address"),
        ("10.0.0", "no address"),
        ("7741", "no address"),
        ("-nas", "no address"),
        ("nas-", "no address"),
        ("a..b", "no address"),
        ("na s", "no address"),
        ("nas\n", "no address"),
        ("näs", "no address"),
        ("x" * 64, "no address"),
        (".".join(["x" * 63] * 4), "no address"),
        ("mesh://nas", "no address"),
    ],
)
def test_what_is_no_address(text: str, reason: str) -> None:
    with pytest.raises(UsageError, match=rf"^PEER: .*{reason}"):
        parse_address(text, "PEER")


def test_messages_are_printable() -> None:
    with pytest.raises(UsageError) as caught:
        parse_address("\x1b[31m\n" + "x" * 1000, "PEER")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


def test_a_port_that_the_system_chooses() -> None:
    assert parse_address("127.0.0.1:0", "--listen", may_be_any_port=True) == Address("127.0.0.1", 0)
    with pytest.raises(UsageError, match="65536 is no port"):
        parse_address("127.0.0.1:65536", "--listen", may_be_any_port=True)


def test_peers() -> None:
    printed = format_peer_id(PEER)
    assert parse_peer_address(f"{printed}@nas:9", "PEER") == (PEER, Address("nas", 9))
    assert parse_peer_address(f"{printed.upper().replace('-', ' ')}@[::1]", "PEER") == (PEER, Address("::1"))
    assert parse_peer_address("nas:9", "PEER") == (None, Address("nas", 9))
    wrong = ("b" if printed[0] == "a" else "a") + printed[1:]
    for text in (f"{wrong}@nas", "@nas", "me@nas", f"{printed}@{printed}@nas", f"{printed}@"):
        with pytest.raises(UsageError):
            parse_peer_address(text, "PEER")


@given(st.text(max_size=30) | st.text("[]:.%@-_a0", max_size=20))
def test_any_text(text: str) -> None:
    """Whatever is accepted can be stored, and is written again as the same."""
    try:
        address = parse_address(text, "PEER")
    except UsageError:
        return
    assert is_host(address.host)
    assert 1 <= address.port <= 65535
    assert parse_address(str(address), "PEER") == address
