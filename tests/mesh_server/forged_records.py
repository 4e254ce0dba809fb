"""Records of TLS 1.3 made by hand, for what no TLS library sends: the keys come from the log of keys of a context."""

from __future__ import annotations

import hashlib
import hmac
import ssl
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from vaultfs.mesh.identity import Identity
from vaultfs.mesh.tls import client_context

APPLICATION_DATA: Final = 23
HANDSHAKE: Final = 22
_HASH: Final = "sha384"  # that of TLS_AES_256_GCM_SHA384, which both sides prefer
_SECRET_BYTES: Final = 48


def _expand(secret: bytes, label: bytes, length: int) -> bytes:
    """HKDF-Expand-Label of RFC 8446, for at most one block."""
    full = b"tls13 " + label
    info = length.to_bytes(2, "big") + bytes([len(full)]) + full + b"\0"
    return hmac.digest(secret, info + b"\x01", _HASH)[:length]


def logging_context(who: Identity, log: Path) -> ssl.SSLContext:
    """A client's, which writes its keys to a file."""
    context = client_context(who)
    context.keylog_filename = str(log)
    return context


class ForgedRecords:
    """What the client of one connection sends after its handshake.

    Args:
        log: of a context that has made one handshake, and has sent nothing since.
    """

    def __init__(self, log: Path) -> None:
        lines = [line.split() for line in log.read_text().splitlines()]
        (secret,) = [words[2] for words in lines if words and words[0] == "CLIENT_TRAFFIC_SECRET_0"]
        assert len(secret) == 2 * _SECRET_BYTES == 2 * hashlib.new(_HASH).digest_size
        self._secret = bytes.fromhex(secret)
        self._take_keys()

    def _take_keys(self) -> None:
        self._cipher = AESGCM(_expand(self._secret, b"key", 32))
        self._iv = int.from_bytes(_expand(self._secret, b"iv", 12), "big")
        self._number = 0

    def record(self, content: bytes, kind: int = APPLICATION_DATA) -> bytes:
        """One record."""
        inner = content + bytes([kind])
        head = b"\x17\x03\x03" + (len(inner) + 16).to_bytes(2, "big")
        nonce = (self._iv ^ self._number).to_bytes(12, "big")
        self._number += 1
        return head + self._cipher.encrypt(nonce, inner, head)

    def key_update(self, *, is_answer_wanted: bool) -> bytes:
        """New keys for this side; the other side is to take new ones too, or not."""
        made = self.record(b"\x18\x00\x00\x01" + bytes([is_answer_wanted]), HANDSHAKE)
        self._secret = _expand(self._secret, b"traffic upd", _SECRET_BYTES)
        self._take_keys()
        return made
