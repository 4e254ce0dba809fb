"""Real names, false servers: a proxy on loopback that ends the TLS of whoever tunnels through it, and answers itself.

A client that honours ``HTTPS_PROXY`` and ``SSL_CERT_FILE`` sends it what it would send to the real hosts, and nothing
leaves the machine: a host that nobody plays is refused, and remembered.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.message import Message
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qsl, unquote, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


@dataclass(frozen=True)
class Request:
    """What a client asked.

    Attributes:
        target: path and query, as sent.
    """

    method: str
    host: str
    target: str
    headers: Message
    body: bytes

    @cached_property
    def path(self) -> str:
        """Without the query, decoded."""
        return unquote(urlsplit(self.target).path)

    @cached_property
    def query(self) -> dict[str, str]:
        return dict(parse_qsl(urlsplit(self.target).query, keep_blank_values=True))

    @cached_property
    def form(self) -> dict[str, str]:
        return dict(parse_qsl(self.body.decode(), keep_blank_values=True))

    @cached_property
    def document(self) -> Any:
        return json.loads(self.body)

    @property
    def bearer(self) -> str | None:
        """The token that was sent, if one was."""
        kind, _, token = (self.headers["Authorization"] or "").partition(" ")
        return token if kind == "Bearer" else None


@dataclass
class Response:
    """What is answered."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def as_json(content: object, status: int = 200) -> Response:
    return Response(status, json.dumps(content).encode(), {"Content-Type": "application/json"})


def part(request: Request, data: bytes, headers: Mapping[str, str] | None = None) -> Response:
    """Bytes of a file, or those of the range that was asked for."""
    wanted = request.headers["Range"]
    named = {"Content-Type": "application/octet-stream", **(headers or {})}
    if wanted is None:
        return Response(200, data, named)
    first_text, _, last_text = wanted.removeprefix("bytes=").partition("-")
    first, last = int(first_text), min(int(last_text or len(data)), len(data) - 1)
    if first > last:
        return Response(416, b"", {"Content-Range": f"bytes */{len(data)}"})
    named["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
    return Response(206, data[first : last + 1], named)


Player = Callable[[Request], Response]


class Web:
    """A running proxy and who plays which host.

    Attributes:
        environment: what a process needs in its environment to be deceived.
        players: by host.
        asked: all that came.
        strangers: hosts that nobody plays and somebody asked for.
    """

    def __init__(self, port: int, authority: Path) -> None:
        url = f"http://127.0.0.1:{port}"
        self.environment = {"HTTPS_PROXY": url, "SSL_CERT_FILE": str(authority), "NO_PROXY": "127.0.0.1,localhost"}
        self.players: dict[str, Player] = {}
        self.asked: list[Request] = []
        self.strangers: list[str] = []


@contextmanager
def serving(where: Path, hosts: Iterator[str] | list[str]) -> Iterator[Web]:
    """Run a proxy.

    Args:
        where: a directory for certificates.
        hosts: that will be played.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority = make_certificates(where, list(hosts))
    context.load_cert_chain(where / "server.pem")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        host = ""

        def do_CONNECT(self) -> None:
            host = self.path.partition(":")[0]
            if host not in web.players:
                web.strangers.append(self.path)
                self.send_error(502)
                return
            self.send_response(200)
            self.end_headers()
            self.wfile.flush()
            try:
                self.connection = context.wrap_socket(self.connection, server_side=True)
            except (ssl.SSLError, OSError):  # whoever it is does not believe us
                self.close_connection = True
                return
            self.rfile = cast("Any", self.connection.makefile("rb"))
            self.wfile = cast("Any", self.connection.makefile("wb"))
            self.host = host
            self.close_connection = False

        def _handle(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            request = Request(self.command, self.host, self.path, self.headers, body)
            web.asked.append(request)
            answer = web.players[self.host](request) if self.host else Response(400)
            self.send_response_only(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            if answer.status != 204:
                self.send_header("Content-Length", str(len(answer.body)))
            self._headers_buffer.append(b"\r\n" + (answer.body if self.command != "HEAD" else b""))  # type: ignore[attr-defined]
            with suppress(OSError):  # it has hung up already
                self.flush_headers()
                self.wfile.flush()

        do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = _handle  # noqa: N815

        def finish(self) -> None:
            with suppress(OSError):
                super().finish()
            with suppress(OSError):
                self.connection.close()  # in TLS it is not the one that the server knows

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    web = Web(server.server_port, authority)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield web
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def make_certificates(where: Path, hosts: list[str]) -> Path:
    """Make an authority of our own and a certificate for some hosts; returns the authority's."""
    now = dt.datetime.now(dt.UTC)
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "an authority for tests")])
    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())

    def build(subject: x509.Name, public_key: ec.EllipticCurvePublicKey, *, is_authority: bool) -> x509.Certificate:
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(public_key)
        builder = builder.serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(now - dt.timedelta(days=1))
        builder = builder.not_valid_after(now + dt.timedelta(days=2))
        builder = builder.add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        authority_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
        builder = builder.add_extension(authority_id, critical=False)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        if is_authority:
            usage = x509.KeyUsage(
                digital_signature=True,
                key_cert_sign=True,
                crl_sign=True,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                encipher_only=False,
                decipher_only=False,
            )
            builder = builder.add_extension(usage, critical=True)
        else:
            names = x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts])
            builder = builder.add_extension(names, critical=False)
            purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
            builder = builder.add_extension(purpose, critical=False)
        return builder.sign(authority_key, hashes.SHA256())

    pem = serialization.Encoding.PEM
    authority = build(issuer, authority_key.public_key(), is_authority=True)
    server = build(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a server for tests")]), key.public_key(), is_authority=False
    )
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (where / "server.pem").write_bytes(private + server.public_bytes(pem))
    os.chmod(where / "server.pem", 0o600)
    (where / "authority.pem").write_bytes(authority.public_bytes(pem))
    return where / "authority.pem"
