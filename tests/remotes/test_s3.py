from __future__ import annotations

import hashlib
import io
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from vaultfs.errors import (
    NoSpaceError,
    ObjectExistsError,
    ObjectMissingError,
    RemoteError,
    RemoteRefusedError,
    RemoteUnreachableError,
    StorageError,
    UsageError,
    VaultError,
)
from vaultfs.remotes import s3
from vaultfs.remotes.bodies import PIECE_BYTES
from vaultfs.remotes.s3 import LARGEST_PUT_BYTES, S3Options, S3Store
from vaultfs.remotes.store import BytesSource, ObjectInfo, Store

from .conftest import BUCKET, free_port, shared_client
from .data import FileSource, body, read
from .fake_server import Answer, FakeServer, s3_error, serving

REQUESTS: dict[str, Callable[[Store], object]] = {
    "put": lambda store: store.put("key", BytesSource(b"data")),
    "create": lambda store: store.put("key", BytesSource(b"data"), if_absent=True),
    "get": lambda store: read(store, "key"),
    "part": lambda store: read(store, "key", offset=1, length=2),
    "size_bytes": lambda store: store.size_bytes("key"),
    "list": lambda store: list(store.list("")),
    "delete": lambda store: store.delete("key"),
}


@pytest.fixture(scope="module")
def fake_server() -> Iterator[FakeServer]:
    with serving() as server:
        yield server


@pytest.fixture
def fake(fake_server: FakeServer) -> FakeServer:
    fake_server.begin()
    return fake_server


@pytest.fixture
def fresh_store(fake: FakeServer) -> Iterator[S3Store]:
    """A store that makes a client of its own."""
    made = S3Store("bucket", "some/prefix", S3Options(fake.url, "us-east-1", path_style=True))
    yield made
    made.close()


@pytest.fixture
def store(fresh_store: S3Store, monkeypatch: pytest.MonkeyPatch) -> S3Store:
    monkeypatch.setattr(s3, "_make_client", shared_client)
    return fresh_store


def assert_tells_nothing(error: VaultError) -> None:
    text = str(error)
    assert "very-secret" not in text
    assert "?" not in text
    assert "Signature=" not in text
    assert "http" not in text


class TestRequests:
    def test_a_put_is_one_request_with_a_length_and_a_signed_hash(self, fake: FakeServer, store: S3Store) -> None:
        fake.answers = [Answer(headers={"ETag": '"x"'})]
        data = body(3 * PIECE_BYTES + 1)
        store.put("a/key", BytesSource(data))
        (asked,) = fake.asked
        assert (asked.method, asked.path) == ("PUT", "/bucket/some/prefix/a/key")
        assert asked.body == data
        assert asked.headers["Content-Length"] == str(len(data))
        assert asked.headers["X-Amz-Content-SHA256"] == hashlib.sha256(data).hexdigest()
        assert "If-None-Match" not in asked.headers
        assert "Transfer-Encoding" not in asked.headers
        assert not [name for name in asked.headers if "checksum" in name.lower() or "trailer" in name.lower()]

    def test_a_put_of_a_file(self, fake: FakeServer, store: S3Store, tmp_path: Path) -> None:
        fake.answers = [Answer(headers={"ETag": '"x"'})]
        data = body(PIECE_BYTES + 1)
        (tmp_path / "file").write_bytes(data)
        store.put("key", FileSource(tmp_path / "file", len(data)))
        assert fake.asked[0].body == data

    def test_creating_is_conditional(self, fake: FakeServer, store: S3Store) -> None:
        fake.answers = [Answer(headers={"ETag": '"x"'})]
        store.put("key", BytesSource(b"data"), if_absent=True)
        assert fake.asked[0].headers["If-None-Match"] == "*"

    @pytest.mark.parametrize(
        ("offset", "length", "expected"),
        [(0, 5, "bytes=0-4"), (7, 1, "bytes=7-7"), (7, None, "bytes=7-"), (0, None, None)],
    )
    def test_parts(
        self, fake: FakeServer, store: S3Store, offset: int, length: int | None, expected: str | None
    ) -> None:
        data = body(10)
        end = 10 if length is None else offset + length
        is_part = expected is not None
        headers = {"Content-Range": f"bytes {offset}-{end - 1}/10"} if is_part else {}
        fake.answers = [Answer(206 if is_part else 200, data[offset:end], headers)]
        assert read(store, "key", offset=offset, length=length) == data[offset:end]
        assert len(fake.asked) == 1
        assert fake.asked[0].headers.get("Range") == expected

    @pytest.mark.parametrize("operation", REQUESTS)
    def test_nothing_is_retried_here(self, fake: FakeServer, store: S3Store, operation: str) -> None:
        fake.answers = [s3_error(503, "SlowDown")]
        with pytest.raises(RemoteUnreachableError):
            REQUESTS[operation](store)
        assert len(fake.asked) == 1

    def test_a_source_that_fails_while_it_is_sent_is_no_broken_connection(
        self, fake: FakeServer, store: S3Store
    ) -> None:
        """It is read twice: to be signed, and to be sent."""

        class Failing(io.BytesIO):
            def read(self, size: int | None = -1, /) -> bytes:
                if sending.is_set():
                    raise OSError(5, "Input/output error")
                return super().read(size)

        class Source(BytesSource):
            def open(self) -> AbstractContextManager[BinaryIO]:
                return Failing(b"data")

        sending = threading.Event()

        def begin(**_: object) -> None:
            sending.set()

        client = store._client()
        client.meta.events.register("before-send.s3", begin)
        try:
            with pytest.raises(StorageError, match="cannot read what is to be stored as key"):
                store.put("key", Source(b"data"))
        finally:
            client.meta.events.unregister("before-send.s3", begin)

    def test_more_than_one_request_can_take(self, fake: FakeServer, store: S3Store) -> None:
        with pytest.raises(UsageError):
            store.put("key", FileSource(Path("/nowhere"), LARGEST_PUT_BYTES + 1))
        assert not fake.asked

    def test_closing_and_using_again(self, fake: FakeServer, store: S3Store) -> None:
        store.close()
        store.close()
        fake.answers = [Answer(204)]
        store.delete("key")
        assert len(fake.asked) == 1


class TestErrors:
    @pytest.mark.parametrize(
        ("answer", "error"),
        [
            (s3_error(403, "AccessDenied"), RemoteRefusedError),
            (s3_error(403, "InvalidAccessKeyId"), RemoteRefusedError),
            (s3_error(403, "SignatureDoesNotMatch"), RemoteRefusedError),
            (s3_error(400, "ExpiredToken"), RemoteRefusedError),
            (s3_error(403, "RequestTimeTooSkewed"), RemoteRefusedError),
            (s3_error(403, "SomethingElse"), RemoteRefusedError),
            (s3_error(401, "Unauthorized"), RemoteRefusedError),
            (s3_error(404, "NoSuchBucket"), RemoteRefusedError),
            (s3_error(503, "SlowDown"), RemoteUnreachableError),
            (s3_error(503, "ServiceUnavailable"), RemoteUnreachableError),
            (s3_error(500, "InternalError"), RemoteUnreachableError),
            (s3_error(429, "TooManyRequests"), RemoteUnreachableError),
            (s3_error(400, "RequestTimeout"), RemoteUnreachableError),
            (s3_error(502, "x"), RemoteUnreachableError),
            (Answer(502, b"<html>Bad gateway"), RemoteUnreachableError),
            (Answer(0), RemoteUnreachableError),
            (s3_error(507, "InsufficientStorage"), NoSpaceError),
            (s3_error(403, "QuotaExceeded"), NoSpaceError),
            (s3_error(400, "InvalidArgument"), RemoteError),
            (s3_error(501, "NotImplemented"), RemoteError),
            (s3_error(418, "\x1b[31m very-secret ?x=y"), RemoteError),
        ],
        ids=lambda value: value.__name__ if isinstance(value, type) else f"{value.status}-{value.body[13:25]!r}",
    )
    @pytest.mark.parametrize("operation", ["put", "create", "get", "part", "list", "delete"])
    def test_answers(
        self, fake: FakeServer, store: S3Store, answer: Answer, error: type[VaultError], operation: str
    ) -> None:
        fake.answers = [answer]
        with pytest.raises(VaultError) as caught:
            REQUESTS[operation](store)
        assert type(caught.value) is error
        assert_tells_nothing(caught.value)
        assert "\x1b" not in str(caught.value)
        assert "s3://bucket/some/prefix" in str(caught.value)

    @pytest.mark.parametrize("status", [400, 401, 403, 500, 503])
    def test_head_has_no_code(self, fake: FakeServer, store: S3Store, status: int) -> None:
        fake.answers = [Answer(status)]
        with pytest.raises(RemoteError) as caught:
            store.size_bytes("key")
        expected = {400: RemoteError, 401: RemoteRefusedError, 403: RemoteRefusedError}
        assert type(caught.value) is expected.get(status, RemoteUnreachableError)

    @pytest.mark.parametrize("answer", [s3_error(412, "PreconditionFailed"), s3_error(409, "Conflict")])
    def test_what_is_there_already(self, fake: FakeServer, store: S3Store, answer: Answer) -> None:
        fake.answers = [answer]
        with pytest.raises(ObjectExistsError):
            store.put("key", BytesSource(b"data"), if_absent=True)
        with pytest.raises(RemoteError) as caught:
            store.put("key", BytesSource(b"data"))
        assert type(caught.value) is RemoteError

    @pytest.mark.parametrize("code", ["ConditionalRequestConflict", "OperationAborted"])
    @pytest.mark.parametrize("if_absent", [False, True])
    def test_somebody_else_stores_it_at_this_moment(
        self, fake: FakeServer, store: S3Store, code: str, if_absent: bool
    ) -> None:
        """Whether that succeeds nobody knows: it is tried again."""
        fake.answers = [s3_error(409, code)]
        with pytest.raises(RemoteUnreachableError):
            store.put("key", BytesSource(b"data"), if_absent=if_absent)

    def test_what_is_missing(self, fake: FakeServer, store: S3Store) -> None:
        fake.answers = [s3_error(404, "NoSuchKey")]
        with pytest.raises(ObjectMissingError):
            read(store, "key")
        assert store.size_bytes("key") is None
        store.delete("key")

    def test_a_server_that_is_not_there(self) -> None:
        store = S3Store("bucket", "", S3Options(f"http://127.0.0.1:{free_port()}", "us-east-1", path_style=True))
        for request in REQUESTS.values():
            with pytest.raises(RemoteUnreachableError, match="cannot be reached") as caught:
                request(store)
            assert_tells_nothing(caught.value)

    def test_a_name_that_is_not_known(self) -> None:
        store = S3Store("bucket", "", S3Options("http://no-such-host.invalid", "us-east-1", path_style=True))
        with pytest.raises(RemoteUnreachableError, match="cannot be reached"):
            store.size_bytes("key")

    def test_a_server_that_does_not_answer(
        self, fake: FakeServer, fresh_store: S3Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(s3, "_READ_TIMEOUT_S", 0.2)
        fake.answers = [Answer(wait_s=30.0)]
        with pytest.raises(RemoteUnreachableError, match="stopped answering"):
            fresh_store.size_bytes("key")

    def test_a_server_without_tls(self, fake: FakeServer) -> None:
        options = S3Options(fake.url.replace("http:", "https:"), "us-east-1", path_style=True)
        with pytest.raises(RemoteUnreachableError, match="secure"):
            S3Store("bucket", "", options).size_bytes("key")

    def test_a_certificate_that_nobody_signed(self, tmp_path: Path) -> None:
        import datetime as dt

        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import NameOID

        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
        now = dt.datetime.now(dt.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(1)
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .sign(key, hashes.SHA256())
        )
        path = tmp_path / "server.pem"
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        with socket.create_server(("127.0.0.1", 0)) as listener:

            def serve() -> None:
                connection, _ = listener.accept()
                with connection:
                    try:
                        context.wrap_socket(connection, server_side=True).close()
                    except OSError:
                        return

            thread = threading.Thread(target=serve)
            thread.start()
            options = S3Options(f"https://localhost:{listener.getsockname()[1]}", "us-east-1", path_style=True)
            with pytest.raises(RemoteRefusedError, match="not trusted"):
                S3Store("bucket", "", options).size_bytes("key")
            thread.join()

    def test_no_credentials(self, fake: FakeServer, fresh_store: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        for request in REQUESTS.values():
            with pytest.raises(RemoteRefusedError, match="no credentials"):
                request(fresh_store)
        assert not fake.asked

    def test_a_profile_that_is_not_there(self, fake: FakeServer) -> None:
        store = S3Store("bucket", "", S3Options(fake.url, "us-east-1", "nobody"))
        with pytest.raises(RemoteRefusedError, match="profile"):
            store.size_bytes("key")


class TestLies:
    def test_a_page_instead_of_an_object_is_not_stored(self, fake: FakeServer, store: S3Store) -> None:
        """A portal of a hotel answers 200 to everything."""
        fake.answers = [Answer(200)]
        with pytest.raises(RemoteError, match="not S3"):
            store.put("key", BytesSource(b"data"))
        fake.answers = [Answer(200, b"<html>Please log in")]
        with pytest.raises(RemoteError):
            store.put("key", BytesSource(b"data"))
        with pytest.raises(RemoteError):
            list(store.list(""))

    @pytest.mark.parametrize(("offset", "length"), [(0, None), (1, 8), (1, None)])
    def test_a_body_that_breaks_off(self, fake: FakeServer, store: S3Store, offset: int, length: int | None) -> None:
        data = body(10)
        wanted = 10 - offset if length is None else length
        fake.answers = [
            Answer(
                206 if offset else 200,
                data[offset : offset + wanted - 3],
                {"Content-Range": f"bytes {offset}-{offset + wanted - 1}/10"} if offset else {},
                announced=wanted,
            )
        ]
        came: list[bytes] = []
        with pytest.raises(RemoteUnreachableError):
            came.extend(store.get("key", offset=offset, length=length))
        assert data[offset:].startswith(b"".join(came))

    @pytest.mark.parametrize(
        "answer",
        [
            Answer(200, b"0123456789"),  # the whole
            Answer(206, b"01234", {"Content-Range": "bytes 0-4/10"}),  # another part
            Answer(206, b"2345", {"Content-Range": "bytes 2-5/10"}),  # less
            Answer(206, b"234567", {"Content-Range": "bytes 2-7/10"}),  # more
            Answer(206, b"23456", {"Content-Range": "nonsense"}),
            Answer(206, b"23456"),
            Answer(206, b"23456", {"Content-Range": "bytes 2-6/6"}),  # the object ends before
        ],
    )
    def test_another_part_than_was_asked_for(self, fake: FakeServer, store: S3Store, answer: Answer) -> None:
        fake.answers = [answer]
        with pytest.raises(RemoteError) as caught:
            read(store, "key", offset=2, length=5)
        assert type(caught.value) is RemoteError

    def test_a_part_that_is_refused_though_it_is_there(self, fake: FakeServer, store: S3Store) -> None:
        fake.answers = [s3_error(416, "InvalidRange"), Answer(200, b"0123456789")]
        with pytest.raises(RemoteError, match="none were sent"):
            read(store, "key", offset=2, length=5)

    def test_a_listing_of_other_things(self, fake: FakeServer, store: S3Store) -> None:
        names = [
            "some/prefix/a/1",
            "some/prefix/",
            "some/prefix/a/",
            "some/prefix/.b",
            "other/c",
            "some/prefixd",
            "a/1",
        ]
        contents = "".join(f"<Contents><Key>{name}</Key><Size>5</Size></Contents>" for name in names)
        page = f"<ListBucketResult><IsTruncated>false</IsTruncated>{contents}</ListBucketResult>"
        fake.answers = [Answer(200, page.encode(), {"Content-Type": "application/xml"})]
        assert list(store.list("")) == [ObjectInfo("a/1", 5)]
        assert "prefix=some%2Fprefix%2F" in fake.asked[0].path

    def test_a_listing_without_end(self, fake: FakeServer, store: S3Store) -> None:
        page = (
            "<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>x</NextContinuationToken>"
            "</ListBucketResult>"
        )
        fake.answers = [Answer(200, page.encode(), {"Content-Type": "application/xml"})]
        with pytest.raises(RemoteError):
            list(store.list(""))
        assert len(fake.asked) == 2


class TestOptions:
    @pytest.mark.parametrize(
        "options",
        [
            {"endpoint": "ftp://host"},
            {"endpoint": "host"},
            {"endpoint": "https://"},
            {"endpoint": "https://user:very-secret@host"},
            {"endpoint": "https://host/?very-secret"},
            {"endpoint": "https://[::1"},
            {"endpoint": "https://host:99999"},
            {"region": "eu central"},
            {"region": ""},
            {"path_style": "yes"},
        ],
    )
    def test_those_that_make_no_sense(self, options: dict[str, str]) -> None:
        with pytest.raises(UsageError) as caught:
            S3Options.parse(options)
        assert "very-secret" not in str(caught.value)

    def test_all(self) -> None:
        options = {"endpoint": "https://host:9000", "region": "eu-1", "profile": "me", "path_style": "false"}
        assert S3Options.parse(options) == S3Options("https://host:9000", "eu-1", "me", path_style=False)
        assert S3Options.parse({}) == S3Options()

    @pytest.mark.parametrize("bucket", ["", "a", "-ab", "a b", "a/b", "x" * 64, "é" * 5])
    def test_buckets_that_cannot_be(self, bucket: str) -> None:
        with pytest.raises(UsageError):
            S3Store(bucket)

    @pytest.mark.parametrize(("path_style", "host"), [(True, "example.org"), (False, "bucket.example.org")])
    def test_they_reach_boto3(self, path_style: bool, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
        client = shared_client(S3Options("https://example.org", "eu-7", None, path_style))
        url = client.generate_presigned_url("get_object", {"Bucket": "bucket", "Key": "key"})
        assert url.startswith(f"https://{host}/")
        assert client.meta.region_name == "eu-7"

    def test_the_profile_reaches_boto3(self, fake: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        path = tmp_path / "credentials"
        path.write_text("[me]\naws_access_key_id = mine\naws_secret_access_key = very-secret\n")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
        fake.answers = [Answer(204)]
        S3Store("bucket", "", S3Options(fake.url, "eu-7", "me", path_style=True)).delete("key")
        assert "Credential=mine/" in fake.asked[0].headers["Authorization"]
        assert "/eu-7/s3/" in fake.asked[0].headers["Authorization"]


def test_a_listing_of_many_pages(make_store: Callable[[str], Store], monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store("s3")
    client: Any = store._client()  # type: ignore[attr-defined]
    real = client.get_paginator("list_objects_v2")

    class Small:
        def paginate(self, **parameters: object) -> Any:
            return real.paginate(**parameters, PaginationConfig={"PageSize": 7})

    monkeypatch.setattr(client, "get_paginator", lambda _: Small())
    for number in range(30):
        store.put(f"a/{number}", BytesSource(body(number)))
    expected = sorted(ObjectInfo(f"a/{number}", number) for number in range(30))
    assert sorted(store.list("a/")) == expected
    assert sorted(store.list("")) == expected


def test_a_bucket_without_a_prefix(s3_endpoint: str) -> None:
    store = S3Store(BUCKET, "", S3Options(s3_endpoint, "us-east-1", path_style=True))
    store.put("key-at-the-root", BytesSource(b"data"))
    try:
        assert ObjectInfo("key-at-the-root", 4) in list(store.list(""))
        assert read(store, "key-at-the-root") == b"data"
    finally:
        store.delete("key-at-the-root")
        store.close()
