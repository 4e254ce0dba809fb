from __future__ import annotations

import gc
import io
import shlex
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

import pytest

from vaultfs.errors import (
    IntegrityError,
    NoSpaceError,
    ObjectMissingError,
    RemoteError,
    RemoteRefusedError,
    RemoteUnreachableError,
    UsageError,
    VaultError,
)
from vaultfs.remotes import opendal_store
from vaultfs.remotes.bodies import PIECE_BYTES
from vaultfs.remotes.locations import parse
from vaultfs.remotes.memory_room import MemoryRoom
from vaultfs.remotes.opendal_errors import translated
from vaultfs.remotes.opendal_services import make_store as make_opendal
from vaultfs.remotes.opendal_store import OpenDalStore
from vaultfs.remotes.secret_commands import run_secret_command
from vaultfs.remotes.store import BytesSource, ObjectInfo, Store

from .conftest import free_port
from .data import body, read
from .fake_server import Answer, FakeServer, serving

SECRET = "very-secret"


def webdav(fake: FakeServer, options: Mapping[str, str] | None = None) -> Store:
    url = fake.url.replace("http:", "webdav+http:") + "/root"
    return make_opendal(parse(url), options or {"access_token_command": f"printf {SECRET}"})


def found(size_bytes: int, path: str = "/root/key") -> Answer:
    """What WebDAV says of a file."""
    text = f"""<?xml version="1.0"?><D:multistatus xmlns:D="DAV:"><D:response><D:href>{path}</D:href><D:propstat>
        <D:prop>
        <D:getlastmodified>Tue, 07 May 2024 06:39:47 GMT</D:getlastmodified><D:resourcetype/>
        <D:getcontentlength>{size_bytes}</D:getcontentlength></D:prop><D:status>HTTP/1.1 200 OK</D:status>
        </D:propstat></D:response></D:multistatus>"""
    return Answer(207, text.encode(), {"Content-Type": "application/xml"})


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    with serving() as server:
        yield server


REQUESTS: dict[str, Callable[[Store], object]] = {
    "put": lambda store: store.put("key", BytesSource(b"data")),
    "get": lambda store: read(store, "key"),
    "size_bytes": lambda store: store.size_bytes("key"),
    "list": lambda store: list(store.list("")),
    "delete": lambda store: store.delete("key"),
}


class TestErrors:
    @pytest.mark.parametrize(
        ("status", "error"),
        [
            (401, RemoteRefusedError),
            (403, RemoteRefusedError),
            (429, RemoteUnreachableError),
            (500, RemoteUnreachableError),
            (502, RemoteUnreachableError),
            (503, RemoteUnreachableError),
            (507, NoSpaceError),
            (400, RemoteError),
            (418, RemoteError),
        ],
    )
    @pytest.mark.parametrize("operation", REQUESTS)
    def test_answers(self, fake: FakeServer, operation: str, status: int, error: type[VaultError]) -> None:
        fake.answers = [Answer(status, f"token {SECRET}".encode(), {"X-Token": SECRET})]
        with pytest.raises(VaultError) as caught:
            REQUESTS[operation](webdav(fake))
        assert type(caught.value) is error
        assert fake.asked[0].headers["Authorization"] == f"Bearer {SECRET}"
        everything = "".join(traceback.format_exception(caught.value))
        assert SECRET not in everything
        context: BaseException | None = caught.value
        while context is not None:
            assert SECRET not in str(context)
            context = context.__cause__ or context.__context__

    @pytest.mark.parametrize("operation", REQUESTS)
    def test_a_server_that_is_not_there(self, operation: str) -> None:
        store = make_opendal(parse(f"webdav+http://127.0.0.1:{free_port()}/x"), {})
        with pytest.raises(RemoteUnreachableError) as caught:
            REQUESTS[operation](store)
        assert "Backtrace" not in str(caught.value)

    def test_a_connection_that_breaks(self, fake: FakeServer) -> None:
        fake.answers = [Answer(0)]
        with pytest.raises(RemoteUnreachableError):
            webdav(fake).size_bytes("key")

    def test_a_server_that_does_not_answer(self, fake: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(opendal_store, "_TIMEOUT_S", 0.3)
        fake.answers = [Answer(wait_s=30.0)]
        with pytest.raises(RemoteUnreachableError):
            webdav(fake).size_bytes("key")

    def test_a_listing_that_waits_stops_no_other_thread(
        self, fake: FakeServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The server runs in this process: were the interpreter's lock held, it could not answer."""
        fake.answers = [Answer(404)]
        assert list(webdav(fake).list("")) == []

    @pytest.mark.parametrize(
        ("text", "error"),
        [
            ("Unexpected (permanent) at write => insufficient_space/...", NoSpaceError),
            ("PermissionDenied (permanent) at write => storageQuotaExceeded", NoSpaceError),
            (
                "PermissionDenied (permanent) at write => The user's Drive storage quota has been exceeded.",
                NoSpaceError,
            ),
            ("Unexpected (temporary) at write => No space left on device (os error 28)", NoSpaceError),
            ("PermissionDenied (permanent) at read => userRateLimitExceeded", RemoteUnreachableError),
            ("RateLimited (temporary) at read => x", RemoteUnreachableError),
            ("PermissionDenied (permanent) at read => x", RemoteRefusedError),
            ("Unexpected (permanent) at read => status: 401", RemoteRefusedError),
            ("Unexpected (persistent) at read => x", RemoteUnreachableError),
            ("Unexpected (temporary) at stat => invalid peer certificate: UnknownIssuer", RemoteRefusedError),
            ("ConfigInvalid (permanent) at x => endpoint is empty", RemoteRefusedError),
            ("Unexpected (permanent) at x => no valid credential found", RemoteRefusedError),
            ("NotFound (permanent) at read => x", ObjectMissingError),
            ("Unexpected (permanent) at read => x", RemoteError),
            ("", RemoteError),
        ],
    )
    def test_kinds(self, text: str, error: type[VaultError]) -> None:
        answer = translated(RuntimeError(f"{text} {SECRET}"), "reading key", "store")
        assert type(answer) is error
        assert SECRET not in str(answer)


class TestCredentials:
    def tokens(self, tmp_path: Path) -> str:
        """A command that prints another token each time: token-1, token-2, and so on."""
        program = tmp_path / "tokens.py"
        program.write_text(
            "import pathlib\n"
            f"count = pathlib.Path({str(tmp_path / 'count')!r})\n"
            "number = int(count.read_text()) + 1 if count.exists() else 1\n"
            "count.write_text(str(number))\n"
            "print(f'token-{number}')\n"
        )
        return shlex.join([sys.executable, "-S", str(program)])

    def store(self, fake: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_s: float) -> Store:
        monkeypatch.setattr(opendal_store, "_FRESH_S", fresh_s)
        return webdav(fake, {"access_token_command": self.tokens(tmp_path)})

    def seen(self, fake: FakeServer) -> list[str]:
        return [asked.headers["Authorization"].removeprefix("Bearer ") for asked in fake.asked]

    def test_a_token_is_asked_for_once(self, fake: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        store = self.store(fake, tmp_path, monkeypatch, 0.0)
        assert not (tmp_path / "count").exists()
        fake.answers = [Answer(404)]
        for _ in range(3):
            assert store.size_bytes("key") is None
        assert self.seen(fake) == ["token-1"] * 3

    def test_one_that_has_expired_is_replaced(
        self, fake: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = self.store(fake, tmp_path, monkeypatch, 0.0)
        fake.answers = [Answer(401), found(5)]
        assert store.size_bytes("key") == 5
        assert self.seen(fake) == ["token-1", "token-2"]

    def test_a_put_that_meets_an_expired_one(
        self, fake: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = self.store(fake, tmp_path, monkeypatch, 0.0)
        fake.answers = [Answer(401), Answer(207), Answer(201), Answer(201)]
        with pytest.raises(RemoteError):  # this server says nothing sensible of the folder
            store.put("key", BytesSource(b"data"))
        assert set(self.seen(fake)[1:]) == {"token-2"}

    def test_it_is_replaced_once(self, fake: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        store = self.store(fake, tmp_path, monkeypatch, 0.0)
        fake.answers = [Answer(401)]
        with pytest.raises(RemoteRefusedError):
            store.size_bytes("key")
        assert self.seen(fake) == ["token-1", "token-2"]

    def test_a_new_one_that_is_refused_is_not_replaced(
        self, fake: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = self.store(fake, tmp_path, monkeypatch, 1000.0)
        fake.answers = [Answer(401)]
        with pytest.raises(RemoteRefusedError):
            store.size_bytes("key")
        assert self.seen(fake) == ["token-1"]

    def test_many_threads_ask_for_one(self, fake: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        store = self.store(fake, tmp_path, monkeypatch, 1000.0)
        fake.answers = [Answer(404)]
        threads = [threading.Thread(target=store.size_bytes, args=("key",)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert self.seen(fake) == ["token-1"] * 6

    def test_one_near_its_end_is_replaced_before_it_is_refused(self, fake: FakeServer) -> None:
        made: list[str] = []
        ending = [False, True, False]

        def configure() -> dict[str, str]:
            made.append(f"token-{len(made) + 1}")
            return {"scheme": "webdav", "endpoint": fake.url, "token": made[-1]}

        store = OpenDalStore("store", configure, is_ending=lambda: ending.pop(0))
        fake.answers = [Answer(404)]
        for _ in range(4):
            assert store.size_bytes("key") is None
        assert self.seen(fake) == ["token-1", "token-1", "token-2", "token-2"]

    def test_a_password(self, make_store: Callable[[str], Store], webdav_root: Path, webdav_endpoint: str) -> None:
        url = parse(f"webdav+http://{webdav_endpoint}/passwords")
        right = make_opendal(url, {"username": "user", "password_command": f"printf {SECRET}"})
        right.put("a/key", BytesSource(b"data"))
        assert (webdav_root / "passwords/a/key").read_bytes() == b"data"
        for options in ({"username": "user", "password_command": "printf wrong"}, {}):
            with pytest.raises(RemoteRefusedError):
                make_opendal(url, options).size_bytes("a/key")

    @pytest.mark.parametrize(
        ("url", "options"),
        [
            ("webdav+http://example.org/x", {"username": "me"}),
            ("webdav+http://example.org/x", {"access_token_command": "x"}),
            ("azblob://c", {"account": "me", "endpoint": "http://example.org", "account_key_command": "x"}),
        ],
    )
    def test_they_never_go_in_the_clear(self, url: str, options: dict[str, str]) -> None:
        with pytest.raises(UsageError, match="in the clear"):
            make_opendal(parse(url), options)

    @pytest.mark.parametrize(
        ("url", "options"),
        [
            ("webdav+https://", {}),
            ("webdav+https://host/a/%2e%2e/b", {}),
            ("webdav+https://host/%0a", {}),
            ("webdav+https://host", {"username": "two words"}),
            ("gcs://", {}),
            ("gcs://bucket:80", {}),
            ("gcs://bucket/../x", {}),
            ("azblob://container", {"account": "me", "endpoint": "nonsense"}),
            ("gdrive://folder/x", {"access_token_command": "x"}),
        ],
    )
    def test_urls_that_make_no_sense(self, url: str, options: dict[str, str]) -> None:
        with pytest.raises(UsageError):
            make_opendal(parse(url), options)

    def test_each_service_can_be_made(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """OpenDAL refuses settings that it does not know or that it lacks, before anything is asked."""
        monkeypatch.setattr(opendal_store, "_TIMEOUT_S", 0.2)
        monkeypatch.setenv("B2_APPLICATION_KEY_ID", "id")
        monkeypatch.setenv("B2_APPLICATION_KEY", SECRET)
        monkeypatch.setenv("AZURE_STORAGE_KEY", "a2V5")
        token = {"access_token_command": f"printf {SECRET}"}
        for url, options in {
            "gcs://bucket/a": token,
            "azblob://container/a": {"account": "me"},
            "b2://bucket/a": {"bucket_id": "id"},
            "gdrive:a b".replace(" ", "%20"): token,
            "dropbox:a": token,
            "onedrive:a": token,
            "webdav+https://host/a": {"username": "me", "password_command": f"printf {SECRET}"},
        }.items():
            store = make_opendal(parse(url), options)
            assert isinstance(store, OpenDalStore)
            operator = store._get_operator("test")
            assert SECRET not in repr(operator)
            store.close()


class TestSecretCommands:
    def test_what_it_prints(self) -> None:
        assert run_secret_command("o", "printf '  a b \\n'") == "a b"
        assert run_secret_command("o", "echo '$HOME; x'") == "$HOME; x"

    @pytest.mark.parametrize(
        "command",
        [
            "",
            "'unbalanced",
            "/no/such/program",
            "false",
            "true",
            "sh -c 'echo very-secret; exit 3'",
            "printf 'very-secret\\nsecond'",
            "printf 'very-secret\\303'",
            "head -c 100000 /dev/zero",
            "a\0b",
        ],
    )
    def test_failures(self, command: str) -> None:
        with pytest.raises(RemoteRefusedError, match="the option o ") as caught:
            run_secret_command("o", command)
        assert SECRET not in str(caught.value)

    def test_one_that_takes_too_long(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("vaultfs.remotes.secret_commands._TIMEOUT_S", 0.2)
        with pytest.raises(RemoteRefusedError, match="longer than"):
            run_secret_command("o", "sleep 30")


class TestBodies:
    def test_one_that_grows_meanwhile(self, fake: FakeServer) -> None:
        fake.answers = [found(5), Answer(200, b"123456")]
        with pytest.raises(RemoteError, match="more than the 5 bytes"):
            read(webdav(fake), "key")

    def test_one_that_shrinks_meanwhile(self, fake: FakeServer) -> None:
        fake.answers = [found(5), Answer(200, b"1234")]
        with pytest.raises(RemoteError, match="4 bytes instead of 5"):
            read(webdav(fake), "key")

    def test_one_that_breaks_off(self, fake: FakeServer) -> None:
        fake.answers = [found(5), Answer(200, b"123", announced=5)]
        with pytest.raises(RemoteUnreachableError):
            read(webdav(fake), "key")

    def test_a_part_is_one_request(self, fake: FakeServer) -> None:
        data = body(3 * PIECE_BYTES)
        part = data[10 : 10 + 2 * PIECE_BYTES]
        headers = {"Content-Range": f"bytes 10-{10 + len(part) - 1}/{len(data)}"}
        fake.answers = [found(len(data)), Answer(206, part, headers)]
        assert read(webdav(fake), "key", offset=10, length=len(part)) == part
        assert [asked.method for asked in fake.asked] == ["PROPFIND", "GET"]
        assert fake.asked[1].headers["Range"].startswith("bytes=10-")

    def test_an_entry_without_a_length_is_looked_up(self) -> None:
        class Entry:
            path = "a/key"

            class metadata:  # noqa: N801
                content_length = None

        store = OpenDalStore("memory:", lambda: {"scheme": "memory"})
        store.put("a/key", BytesSource(b"data"))
        lots = [[Entry()], []]

        class Listing:
            def take(self) -> list[Entry]:
                return lots.pop(0)

            def close(self) -> None:
                pass

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(opendal_store._Listing, "begin", staticmethod(lambda _operator, **_: Listing()))
            assert list(store.list("")) == [ObjectInfo("a/key", 4)]

    def test_listings_of_several_lots(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(opendal_store, "_LOT", 7)
        store = OpenDalStore("memory:", lambda: {"scheme": "memory"})
        for number in range(30):
            store.put(f"a/{number}", BytesSource(body(number + 1)))
        assert {info.key for info in store.list("a/")} == {f"a/{number}" for number in range(30)}
        half = store.list("a/")
        next(half)
        del half

    def test_a_folder_is_not_removed(
        self, webdav_root: Path, make_store: Callable[[str], Store], webdav_endpoint: str
    ) -> None:
        options = {"username": "user", "password_command": f"printf {SECRET}"}
        store = make_opendal(parse(f"webdav+http://{webdav_endpoint}/folders"), options)
        store.put("a/b/key", BytesSource(b"data"))
        store.delete("a/b")
        store.delete("a")
        assert (webdav_root / "folders/a/b/key").read_bytes() == b"data"
        assert store.size_bytes("a/b") is None


class TestLargeObjects:
    """They go through a file of OpenDAL's, in one request that is made at its end."""

    SIZE = 3 * PIECE_BYTES + 5

    def azure(self, fake: FakeServer) -> OpenDalStore:
        settings = {"scheme": "azblob", "container": "c", "endpoint": fake.url, "account_name": "a"}
        return OpenDalStore("azblob:", lambda: {**settings, "account_key": "a2V5"}, is_renewable=True)

    def test_one_request_for_one_object(self, fake: FakeServer) -> None:
        fake.answers = [Answer(201, headers={"ETag": '"x"'})]
        data = body(self.SIZE)
        self.azure(fake).put("key", BytesSource(data))
        [asked] = fake.asked
        assert (asked.method, asked.path) == ("PUT", "/c/key")
        assert asked.body == data

    def test_the_condition_goes_along(self, fake: FakeServer) -> None:
        fake.answers = [Answer(409)]
        with pytest.raises(VaultError):
            self.azure(fake).put("key", BytesSource(body(self.SIZE)), if_absent=True)
        assert [asked.headers["If-None-Match"] for asked in fake.asked] == ["*"]

    def test_nothing_is_sent_of_a_source_that_fails(self, fake: FakeServer) -> None:
        class Failing(io.BytesIO):
            def read(self, size: int | None = -1, /) -> bytes:
                if self.tell() >= 2 * PIECE_BYTES:
                    raise IntegrityError("the last piece is wrong")
                return super().read(size)

        class Source(BytesSource):
            def open(self) -> Failing:
                return Failing(bytes(TestLargeObjects.SIZE))

        fake.answers = [Answer(201, headers={"ETag": '"x"'})]
        with pytest.raises(IntegrityError, match="the last piece"):
            self.azure(fake).put("key", Source(bytes(self.SIZE)))
        gc.collect()
        assert fake.asked == []

    def test_with_new_credentials_it_is_read_again(self, fake: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(opendal_store, "_FRESH_S", 0.0)
        fake.answers = [Answer(403), Answer(201, headers={"ETag": '"x"'})]
        data = body(self.SIZE)
        self.azure(fake).put("key", BytesSource(data))
        assert [asked.body for asked in fake.asked] == [data, data]

    def test_only_so_many_are_in_memory(self, fake: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
        """Two fit; the third and the fourth are not read before one of them is stored."""
        monkeypatch.setattr(opendal_store, "_room", MemoryRoom(2 * self.SIZE))
        opening = threading.Semaphore(0)
        answering = threading.Event()
        read_of: list[int] = []

        class Source(BytesSource):
            def open(self) -> AbstractContextManager[BinaryIO]:
                read_of.append(1)
                opening.release()
                assert answering.wait(30)
                return super().open()

        fake.answers = [Answer(201, headers={"ETag": '"x"'})]
        store = self.azure(fake)
        with ThreadPoolExecutor(4) as pool:
            done = [pool.submit(store.put, f"key{number}", Source(bytes(self.SIZE))) for number in range(4)]
            assert opening.acquire(timeout=30)
            assert opening.acquire(timeout=30)
            assert not opening.acquire(timeout=0.05)
            assert len(read_of) == 2
            answering.set()
            for future in done:
                future.result(30)
        assert len(fake.asked) == len(read_of) == 4
