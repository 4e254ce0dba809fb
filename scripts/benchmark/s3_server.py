"""A small S3 server for the backup rows: one process, files in a directory, a thread for each connection.

It knows what restic, rclone and vaultfs ask for, streams bodies in both directions, and counts.  It believes every
signature and syncs nothing, so that what is measured is the programs: a server that spends more for large objects than
for small ones, or the other way round, would choose the winner.

    python -m benchmark.s3_server DIRECTORY     prints the port; ends when its standard input does
    GET /-/counts                               what came since the last time, as JSON
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO
from urllib.parse import parse_qsl, quote, unquote, urlsplit
from xml.sax.saxutils import escape

from benchmark.s3_bucket import LISTED, Bucket, Counts, Stored

PIECE_BYTES = 1 << 20
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    bucket: Bucket

    def setup(self) -> None:
        """Send answers at once."""
        super().setup()
        self.connection.setsockopt(6, 1, 1)  # IPPROTO_TCP, TCP_NODELAY

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def handle_one_request(self) -> None:
        """Take clients that hang up for what they are."""
        try:
            super().handle_one_request()
        except ConnectionError:
            self.close_connection = True

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        """Answer with a body in memory."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def error(self, status: int, code: str) -> None:
        """Answer as S3 does when something is wrong."""
        body = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>{code}</Message></Error>"
        self.answer(status, body.encode(), Content_Type="application/xml")

    def handle_request(self) -> None:
        """Do what is asked."""
        parts = urlsplit(self.path)
        path = unquote(parts.path).lstrip("/")
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        if path == "-/counts":
            with self.bucket.lock:
                counts, self.bucket.counts = self.bucket.counts, Counts()
            self.answer(200, json.dumps(counts.__dict__).encode())
            return
        bucket, _, key = path.partition("/")
        kind = f"{self.command} {'object' if key else 'bucket'}"
        with self.bucket.lock:
            self.bucket.counts.requests[kind] = self.bucket.counts.requests.get(kind, 0) + 1
        if not key:
            self.about_bucket(bucket, query)
        elif self.command == "PUT":
            self.put(path)
        elif self.command in {"GET", "HEAD"}:
            self.get(path)
        elif self.command == "DELETE":
            self.bucket.delete(path)
            self.answer(204)
        else:
            self.error(501, "NotImplemented")

    do_GET = do_HEAD = do_PUT = do_DELETE = do_POST = handle_request  # noqa: N815  # names of http.server

    def about_bucket(self, bucket: str, query: dict[str, str]) -> None:
        """Answer what concerns no object: every bucket is there."""
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.command != "GET":
            self.answer(200)
        elif "location" in query:
            self.answer(200, b"<LocationConstraint>us-east-1</LocationConstraint>", Content_Type="application/xml")
        elif {"versioning", "object-lock", "policy"} & query.keys():
            self.error(501, "NotImplemented")
        else:
            self.listing(bucket, query)

    def listing(self, bucket: str, query: dict[str, str]) -> None:
        """Answer a listing, old style or new."""
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        after = query.get("continuation-token") or query.get("start-after") or query.get("marker") or ""
        keys, prefixes, following = self.bucket.listed(bucket, prefix, after, delimiter)

        def name(text: str) -> str:
            return quote(text) if query.get("encoding-type") == "url" else escape(text)

        out = [f"<ListBucketResult><Name>{bucket}</Name><Prefix>{name(prefix)}</Prefix><MaxKeys>{LISTED}</MaxKeys>"]
        out.append(f"<KeyCount>{len(keys) + len(prefixes)}</KeyCount>")
        if "encoding-type" in query:
            out.append("<EncodingType>url</EncodingType>")
        out.append(f"<IsTruncated>{'true' if following else 'false'}</IsTruncated>")
        if following:
            out += [f"<{tag}>{name(following)}</{tag}>" for tag in ("NextMarker", "NextContinuationToken")]
        found = ((key, self.bucket.objects.get(f"{bucket}/{key}")) for key in keys)
        out += [
            f"<Contents><Key>{name(key)}</Key><LastModified>{stored.iso_time}</LastModified><ETag>&quot;{stored.tag}"
            f"&quot;</ETag><Size>{stored.size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
            for key, stored in found
            if stored is not None
        ]
        out += [f"<CommonPrefixes><Prefix>{name(each)}</Prefix></CommonPrefixes>" for each in prefixes]
        self.answer(200, "".join([*out, "</ListBucketResult>"]).encode(), Content_Type="application/xml")

    def put(self, path: str) -> None:
        """Store an object, once all of it has come."""
        if "x-amz-copy-source" in self.headers:
            self.error(501, "NotImplemented")
            return
        place = self.bucket.new_path()
        with place.open("wb", buffering=0) as file:
            if self.headers.get("x-amz-content-sha256", "").startswith("STREAMING-"):
                size = self.take_chunked(file)
            else:
                size = self.take(file, int(self.headers["Content-Length"]))
        if size < 0:
            place.unlink()
            self.close_connection = True
            return
        names = ("content-type", "x-amz-meta-")
        metadata = {name: value for name, value in self.headers.items() if name.lower().startswith(names)}
        stored = Stored(place, size, place.stat().st_mtime, metadata)
        if not self.bucket.put(path, stored, only_new=self.headers.get("If-None-Match") == "*"):
            place.unlink()
            self.error(412, "PreconditionFailed")
            return
        self.answer(200, ETag=f'"{stored.tag}"')

    def take(self, file: BinaryIO, length: int) -> int:
        """Write what comes to a file; return how much, -1 if the client hung up before."""
        buffer = memoryview(bytearray(min(PIECE_BYTES, length)))
        rest = length
        while rest:
            got = self.rfile.readinto(buffer[: min(len(buffer), rest)])
            if not got:
                return -1
            file.write(buffer[:got])
            rest -= got
        with self.bucket.lock:
            self.bucket.counts.received_bytes += length
        return length

    def take_chunked(self, file: BinaryIO) -> int:
        """Write a body of signed chunks to a file, as `take`: a line with the length, the bytes, an empty line."""
        total = 0
        while True:
            line = self.rfile.readline(1000)
            size = int(line.split(b";")[0] or b"0", 16) if line else -1
            if size < 0 or self.take(file, size) < 0:
                return -1
            self.rfile.readline(10)
            if not size:
                return total
            total += size

    def get(self, path: str) -> None:
        """Send an object or a part of it."""
        stored = self.bucket.objects.get(path)
        if stored is None:
            self.error(404, "NoSuchKey")
            return
        match = _RANGE.fullmatch(self.headers.get("Range", ""))
        start = int(match[1]) if match else 0
        end = min(int(match[2]), stored.size - 1) if match and match[2] else stored.size - 1
        if match and start >= stored.size:
            self.error(416, "InvalidRange")
            return
        self.send_response(206 if match else 200)
        self.send_header("Content-Length", str(end + 1 - start))
        self.send_header("Last-Modified", formatdate(stored.time, usegmt=True))
        self.send_header("ETag", f'"{stored.tag}"')
        self.send_header("Accept-Ranges", "bytes")
        if match:
            self.send_header("Content-Range", f"bytes {start}-{end}/{stored.size}")
        for name, value in stored.metadata.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        with stored.path.open("rb", buffering=0) as file:
            while start <= end:
                sent = os.sendfile(self.connection.fileno(), file.fileno(), start, end + 1 - start)
                if not sent:
                    raise ConnectionError("the file has become shorter")
                start += sent
                with self.bucket.lock:
                    self.bucket.counts.sent_bytes += sent


class Server(ThreadingHTTPServer):
    """Takes many connections at once."""

    daemon_threads = True
    request_queue_size = 128


def serve(directory: Path) -> None:
    """Serve until standard input ends."""
    Handler.bucket = Bucket(directory)
    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    print(server.server_port, flush=True)
    sys.stdin.buffer.read()
    server.shutdown()
    thread.join()


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
