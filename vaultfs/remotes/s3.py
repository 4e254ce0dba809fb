"""S3, and what speaks like it: ``s3://bucket/prefix``.

- Credentials are found by boto3 itself: variables, ``~/.aws``, single sign-on, the machine's role.
- An object is sent in one PUT with its length, so it appears whole, and ``If-None-Match: *`` makes creating exclusive.
  The newer checksums in trailers are off: many servers that speak S3 refuse them.  What is sent is protected by the
  SHA-256 in the signature, for which each source is read once before it is sent.
- boto3's own retries are off: `vaultfs.remotes.retrying` does that, where tests can see it.
- Messages are written here, of error codes: those of botocore hold whole URLs.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, Final, Self

from vaultfs.errors import ObjectMissingError, RemoteError, UsageError
from vaultfs.remotes.bodies import PIECE_BYTES, SourceReader, exact, opened, require_range, wanted_bytes
from vaultfs.remotes.keys import is_listed, require_key, require_prefix
from vaultfs.remotes.locations import require_endpoint
from vaultfs.remotes.s3_errors import RangeError, caught_errors, translated
from vaultfs.remotes.store import ObjectInfo, Source

LARGEST_PUT_BYTES: Final = 5 << 30

_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]")
_REGION: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,62}")
_CONTENT_RANGE: Final = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")
_CONNECT_TIMEOUT_S: Final = 15
_READ_TIMEOUT_S: Final = 60
_CONNECTIONS: Final = 32
_FRUITLESS_PAGES: Final = 100
"""So many pages of a listing may bring nothing, one after the other, and say that there is more."""


@dataclass(frozen=True)
class S3Options:
    """Where and how.

    Attributes:
        endpoint: URL of another server than Amazon's.
        region: where the bucket lies; as boto3 finds it if None.
        profile: whose credentials, by the name of a section in ``~/.aws``.
        path_style: whether the bucket is a part of the path, not of the host; as boto3 likes if None.
    """

    endpoint: str | None = None
    region: str | None = None
    profile: str | None = None
    path_style: bool | None = None

    @classmethod
    def parse(cls, options: Mapping[str, str]) -> Self:
        """Options as a person writes them.

        Raises:
            UsageError: one makes no sense.
        """
        endpoint = options.get("endpoint")
        if endpoint is not None:
            require_endpoint(endpoint)
        region = options.get("region")
        if region is not None and not _REGION.fullmatch(region):
            raise UsageError("the option region must be the name of a region, such as eu-central-1")
        path_style = options.get("path_style")
        if path_style not in {None, "true", "false"}:
            raise UsageError("the option path_style must be true or false")
        return cls(endpoint, region, options.get("profile"), None if path_style is None else path_style == "true")


class S3Store:
    """A bucket, or what lies below a prefix in it.  Nothing is asked, nor credentials looked for, before the first use.

    Args:
        bucket: its name.
        prefix: empty, or the beginning of keys, without the ``/`` that follows it.
        options: where and how.

    Raises:
        UsageError: the bucket's name cannot be one.
    """

    def __init__(self, bucket: str, prefix: str = "", options: S3Options = S3Options()) -> None:
        if not _BUCKET.fullmatch(bucket):
            raise UsageError(f"{bucket[:64]!r} is not the name of a bucket; write s3://bucket/prefix")
        self.name = f"s3://{bucket}/{prefix}" if prefix else f"s3://{bucket}"
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._options = options
        self._made: Any = None
        self._lock = threading.Lock()

    def put(self, key: str, source: Source, *, if_absent: bool = False) -> None:
        """Store an object, as `Store.put`, in one request."""
        require_key(key)
        if source.size_bytes > LARGEST_PUT_BYTES:
            raise UsageError(
                f"{key} has {source.size_bytes} bytes; S3 takes at most {LARGEST_PUT_BYTES} in one request"
            )
        condition = {"IfNoneMatch": "*"} if if_absent else {}
        with opened(key, source) as reader:
            reader.is_sending = False  # until it has been signed
            with self._errors("PUT", key, reader, if_absent=if_absent):
                answer = self._client().put_object(
                    Bucket=self._bucket,
                    Key=self._prefix + key,
                    Body=reader if source.size_bytes else reader.read(),  # botocore takes an empty file for none
                    ContentLength=source.size_bytes,
                    ContentType="application/octet-stream",
                    **condition,
                )
        if not answer.get("ETag"):
            raise RemoteError(f"{self.name} acknowledged {key} without an ETag: what answers there is not S3")

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Read an object, as `Store.get`."""
        require_key(key)
        require_range(offset, length)
        what = f"{key} on {self.name}"
        if length == 0:
            self._require_range_within(key, offset, length)
            return
        parameters = {"Bucket": self._bucket, "Key": self._prefix + key}
        if offset or length is not None:
            parameters["Range"] = f"bytes={offset}-{'' if length is None else offset + length - 1}"
        try:
            with self._errors("GET", key):
                answer = self._client().get_object(**parameters)
        except RangeError:
            self._require_range_within(key, offset, length)
            return
        with closing(answer["Body"]) as body:
            wanted = _announced(what, answer, offset, length, is_range="Range" in parameters)
            pieces = exact(what, body.iter_chunks(PIECE_BYTES), wanted)
            while True:
                with self._errors("GET", key):
                    piece = next(pieces, None)
                if piece is None:
                    return
                yield piece

    def size_bytes(self, key: str) -> int | None:
        """The length of an object, as `Store.size_bytes`."""
        require_key(key)
        try:
            with self._errors("HEAD", key):
                answer = self._client().head_object(Bucket=self._bucket, Key=self._prefix + key)
        except ObjectMissingError:
            return None
        return _length(f"{key} on {self.name}", answer)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """The objects whose keys begin so, as `Store.list`: a request for each thousand."""
        require_prefix(prefix)
        with self._errors("list", prefix):
            paginator = self._client().get_paginator("list_objects_v2")
        pages = iter(paginator.paginate(Bucket=self._bucket, Prefix=self._prefix + prefix))
        fruitless = 0
        while True:
            with self._errors("list", prefix):
                page = next(pages, None)
            if page is None:
                return
            is_whole = page.get("IsTruncated") is False or (
                page.get("IsTruncated") and page.get("NextContinuationToken")
            )
            if not is_whole:  # a web page, for example, which parses as a listing of nothing
                raise RemoteError(f"a listing was asked for, and something else came: {self._not_s3()}")
            infos = [info for found in page.get("Contents", []) if (info := self._listed(found, prefix)) is not None]
            fruitless = 0 if infos else fruitless + 1
            if fruitless > _FRUITLESS_PAGES:
                raise RemoteError(f"the listing of {prefix or 'all objects'} does not end: {self._not_s3()}")
            yield from infos

    def _listed(self, found: Mapping[str, Any], prefix: str) -> ObjectInfo | None:
        """An entry of a listing; None if it is not what was asked for.

        Raises:
            RemoteError: it lacks its name or its size.
        """
        name, size = found.get("Key"), found.get("Size")
        if not isinstance(name, str) or not isinstance(size, int):
            raise RemoteError(f"an object without name or size was listed: {self._not_s3()}")
        key = name.removeprefix(self._prefix)
        return ObjectInfo(key, size) if name.startswith(self._prefix) and is_listed(key, prefix) else None

    def _not_s3(self) -> str:
        return (
            f"what answers at {self.name} is not S3; check the option endpoint, and whether a login page is in between"
        )

    def delete(self, key: str) -> None:
        """Remove an object, as `Store.delete`."""
        require_key(key)
        try:
            with self._errors("DELETE", key):
                self._client().delete_object(Bucket=self._bucket, Key=self._prefix + key)
        except ObjectMissingError:
            return

    def close(self) -> None:
        """End connections."""
        with self._lock:
            client, self._made = self._made, None
        if client is not None:
            client.close()

    def _client(self) -> Any:
        """boto3's client, whose methods may be called in several threads; making it takes a tenth of a second."""
        with self._lock:
            if self._made is None:
                self._made = _make_client(self._options)
            return self._made

    def _require_range_within(self, key: str, offset: int, length: int | None) -> None:
        """See that an object has a part of no bytes, which S3 cannot be asked for.

        Raises:
            ObjectMissingError: there is no object.
            RemoteError: it ends before; or the part has bytes, but the remote said that there was none.
        """
        what = f"{key} on {self.name}"
        size_bytes = self.size_bytes(key)
        if size_bytes is None:
            raise ObjectMissingError(f"{self.name} has no {key}")
        if wanted_bytes(what, size_bytes, offset, length):
            raise RemoteError(f"{what} has {size_bytes} bytes, but none were sent from {offset} on")

    @contextmanager
    def _errors(
        self, verb: str, key: str, reader: SourceReader | None = None, *, if_absent: bool = False
    ) -> Iterator[None]:
        """Turn every error of botocore in the block into one of vaultfs."""
        try:
            yield
        except caught_errors() as error:
            if reader is not None:
                reader.check()  # what looks like a broken connection may be a disk that cannot be read
            raise translated(error, f"{verb} {key} on {self.name}", self.name, if_absent=if_absent) from error


def _make_client(options: S3Options) -> Any:
    import boto3  # noqa: PLC0415
    from botocore.config import Config  # noqa: PLC0415

    s3: dict[str, object] = {"payload_signing_enabled": True}
    if options.path_style is not None:
        s3["addressing_style"] = "path" if options.path_style else "virtual"
    config = Config(
        connect_timeout=_CONNECT_TIMEOUT_S,
        read_timeout=_READ_TIMEOUT_S,
        max_pool_connections=_CONNECTIONS,
        retries={"total_max_attempts": 1, "mode": "standard"},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        user_agent_extra="vaultfs",
        s3=s3,
    )
    session = boto3.session.Session(profile_name=options.profile, region_name=options.region)
    client = session.client("s3", endpoint_url=options.endpoint, config=config)
    client.meta.events.register("before-send.s3", _begin_sending)
    return client


def _begin_sending(request: Any, **_: object) -> None:
    """What botocore calls between signing a request and sending it."""
    if isinstance(request.body, SourceReader):
        request.body.is_sending = True


def _announced(what: str, answer: Mapping[str, Any], offset: int, length: int | None, *, is_range: bool) -> int:
    """How many bytes will come.

    Raises:
        RemoteError: not those that were asked for.
    """
    if not is_range:
        return _length(what, answer)
    match = _CONTENT_RANGE.fullmatch(answer.get("ContentRange", ""))
    if match is None or int(match[1]) != offset:
        raise RemoteError(f"{what}: a part was asked for, and something else came")
    return wanted_bytes(what, int(match[3]), offset, length)


def _length(what: str, answer: Mapping[str, Any]) -> int:
    """The length that a server announced.

    Raises:
        RemoteError: none.
    """
    length = answer.get("ContentLength")
    if not isinstance(length, int):
        raise RemoteError(f"{what}: the server did not tell its length; a proxy in between may be why")
    return length
