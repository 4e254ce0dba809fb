"""What is special about Google Drive, Dropbox and OneDrive: OpenDAL's real requests, answered by fakes.

What holds for every store is in ``test_contract.py``.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import pytest

from remotes.data import body, read
from vaultfs.errors import (
    NoSpaceError,
    ObjectMissingError,
    RemoteError,
    RemoteRefusedError,
    RemoteUnreachableError,
    UsageError,
    VaultError,
)
from vaultfs.remotes.locations import parse
from vaultfs.remotes.opendal_services import make_store
from vaultfs.remotes.retrying import RetryingStore, RetryPolicy
from vaultfs.remotes.store import BytesSource, ObjectInfo, Store
from vaultfs.remotes.tokens import LoginFile

from . import dropbox, gdrive, onedrive
from .accounts import Accounts
from .api import Api
from .elsewhere import Elsewhere
from .gdrive import FOLDER, Item
from .logged_in import grow_older, known, log_in
from .town import NAMES, Town
from .web import Request, Response

MODULES = {"gdrive": gdrive, "dropbox": dropbox, "onedrive": onedrive}
REQUESTS: dict[str, Callable[[Store], object]] = {
    "put": lambda store: store.put("a/new", BytesSource(b"data")),
    "get": lambda store: read(store, "a/key"),
    "size_bytes": lambda store: store.size_bytes("a/key"),
    "list": lambda store: list(store.list("")),
    "delete": lambda store: store.delete("a/key"),
}


class Drive:
    """One of the three, with a login and a store that has the object ``a/key``."""

    def __init__(self, name: str, town: Town, near_town: Elsewhere) -> None:
        self.name = name
        self.api: Api = town.apis[name]
        self.accounts: Accounts = town.accounts[name]
        self.file: LoginFile = log_in(self.accounts)
        self.url = f"{name}:folder/{secrets.token_hex(4)}"
        self._near_town = near_town
        self.store: Store = self.open()
        self.store.put("a/key", BytesSource(b"old"))

    def open(self, **options: str) -> Store:
        """Another store in the same place."""
        return self._near_town.open(self.url, options)

    def patient(self) -> Store:
        """The store, as it is used: requests are repeated."""
        return RetryingStore(self.store, RetryPolicy(first_wait_s=0.0))


@pytest.fixture(params=NAMES)
def drive(request: pytest.FixtureRequest, town: Town, near_town: Elsewhere) -> Drive:
    town.forget()
    return Drive(request.param, town, near_town)


@pytest.fixture
def google(town: Town, near_town: Elsewhere) -> Drive:
    town.forget()
    return Drive("gdrive", town, near_town)


class TestTokens:
    @pytest.mark.parametrize("operation", REQUESTS)
    def test_one_that_is_refused_is_replaced_once(self, drive: Drive, operation: str) -> None:
        grow_older(drive.file, 100.0)
        drive.accounts.expire()
        store = drive.patient()  # a listing makes no request before it has begun
        REQUESTS[operation](store)
        assert (drive.accounts.refreshes, drive.api.refused) == (1, 1)
        REQUESTS[operation](store)
        assert (drive.accounts.refreshes, drive.api.refused) == (1, 1)

    def test_a_new_one_that_is_refused_is_not_replaced(self, drive: Drive) -> None:
        drive.accounts.expire()
        for _ in range(3):
            with pytest.raises(RemoteRefusedError):
                drive.store.size_bytes("a/key")
        assert drive.accounts.refreshes == 0

    def test_a_store_that_is_opened_with_an_old_one(self, drive: Drive) -> None:
        grow_older(drive.file, 100.0)
        drive.accounts.expire()
        assert drive.open().size_bytes("a/key") == 3
        assert drive.accounts.refreshes == 1

    def test_one_near_its_end_is_not_used(self, drive: Drive) -> None:
        grow_older(drive.file, drive.accounts.life_s - 200.0)
        drive.accounts.expire()
        assert drive.open().size_bytes("a/key") == 3
        assert (drive.accounts.refreshes, drive.api.refused) == (1, 0)

    def test_in_the_middle_of_a_listing(self, drive: Drive) -> None:
        """The listing begins anew with a new token, and nothing comes twice."""
        for number in range(60):
            drive.store.put(f"a/{number}", BytesSource(b"x"))
        grow_older(drive.file, 100.0)
        pages = count()

        def expire(request: Request) -> None:
            if any(part in request.target for part in ("list_folder", "/children", "parents")) and next(pages) == 2:
                drive.accounts.expire()

        drive.api.before = expire
        found = [info.key for info in drive.patient().list("a/")]
        assert sorted(found) == sorted(["a/key", *(f"a/{number}" for number in range(60))])
        assert (drive.accounts.refreshes, drive.api.refused) == (1, 1)

    def test_many_threads_refresh_once(self, drive: Drive) -> None:
        drive.accounts.is_rotating = True
        grow_older(drive.file, 100.0)
        drive.accounts.expire()
        stores = [drive.store, drive.store, drive.open(), drive.open()] * 2
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(lambda store: store.size_bytes("a/key"), stores)) == [3] * 8
        assert drive.accounts.refreshes == 1
        assert drive.accounts.problems == []

    def test_refresh_tokens_that_change(self, drive: Drive) -> None:
        drive.accounts.is_rotating = True
        for turn in range(1, 4):
            before = known(drive.file).refresh_token
            grow_older(drive.file, 100.0)
            drive.accounts.expire()
            assert drive.store.size_bytes("a/key") == 3
            assert drive.accounts.refreshes == turn
            assert {known(drive.file).refresh_token} == drive.accounts.refresh_tokens != {before}

    def test_refresh_tokens_that_stay(self, drive: Drive) -> None:
        before = known(drive.file).refresh_token
        grow_older(drive.file, 100.0)
        drive.accounts.expire()
        assert drive.store.size_bytes("a/key") == 3
        assert known(drive.file).refresh_token == before

    def test_a_login_that_has_ended(self, drive: Drive) -> None:
        grow_older(drive.file, 4000.0)
        drive.accounts.refresh_tokens.clear()
        for operation in REQUESTS.values():
            with pytest.raises(RemoteRefusedError, match=f"again with 'vaultfs remote login {drive.name}'") as caught:
                operation(drive.open())
            assert "canary" not in str(caught.value)

    def test_nobody_has_logged_in(self, drive: Drive) -> None:
        drive.file.remove()
        with pytest.raises(RemoteRefusedError, match=r"nobody has logged in .* as 'default'"):
            drive.open().size_bytes("a/key")
        with pytest.raises(RemoteRefusedError, match=f"'vaultfs remote login {drive.name} --account work'"):
            drive.open(account="work").size_bytes("a/key")

    def test_accounts_have_tokens_of_their_own(self, drive: Drive) -> None:
        log_in(drive.accounts, "work")
        drive.file.remove()
        assert drive.open(account="work").size_bytes("a/key") == 3

    def test_a_command_goes_on_working(self, drive: Drive) -> None:
        access, _ = drive.accounts.new_tokens()
        drive.file.remove()
        store = drive.open(access_token_command=f"printf {access}")
        assert list(store.list("")) == list(store.list("a/")) == [ObjectInfo("a/key", 3)]

    @pytest.mark.parametrize("service", NAMES)
    def test_a_command_or_an_account(self, service: str) -> None:
        with pytest.raises(UsageError, match="exclude each other"):
            make_store(parse(f"{service}:folder"), {"account": "work", "access_token_command": "true"})
        with pytest.raises(UsageError, match="name of an account"):
            make_store(parse(f"{service}:folder"), {"account": "../work"})


class TestAnswers:
    @pytest.mark.parametrize("operation", REQUESTS)
    def test_too_many_requests(self, drive: Drive, operation: str) -> None:
        drive.api.failures = [MODULES[drive.name].too_many()]
        with pytest.raises(RemoteUnreachableError):
            REQUESTS[operation](drive.store)
        drive.api.failures = [MODULES[drive.name].too_many(), Response(503, b"", {"Retry-After": "1"})]
        REQUESTS[operation](drive.patient())
        assert drive.api.failures == []

    def test_one_that_is_full(self, drive: Drive) -> None:
        whole = drive.api.answer
        drive.api.answer = (  # type: ignore[method-assign]
            lambda request: (
                MODULES[drive.name].full() if request.method != "GET" and b"data" in request.body else whole(request)
            )
        )
        try:
            with pytest.raises(NoSpaceError):
                REQUESTS["put"](drive.store)
        finally:
            del drive.api.answer
        assert read(drive.store, "a/key") == b"old"

    @pytest.mark.parametrize(
        ("answer", "error"),
        [
            (Response(400, b"canary"), RemoteError),
            (Response(403, b"canary"), RemoteRefusedError),
            (Response(500, b"canary"), RemoteUnreachableError),
            (Response(200, b"canary"), RemoteError),
        ],
        ids=["400", "403", "500", "nonsense"],
    )
    @pytest.mark.parametrize("operation", ["put", "size_bytes", "list", "delete"])
    def test_nothing_that_came_is_shown(
        self, drive: Drive, operation: str, answer: Response, error: type[VaultError]
    ) -> None:
        drive.api.failures = [answer] * 20
        with pytest.raises(RemoteError) as caught:
            REQUESTS[operation](drive.open())
        assert type(caught.value) is error
        assert "canary" not in str(caught.value)

    def test_a_body_that_is_longer_than_it_was(self, drive: Drive) -> None:
        """The length is asked for first; then the object is replaced."""

        def replace(request: Request) -> None:
            if any(part in request.target for part in ("alt=media", "/download", "1drv.com", ":/content")):
                _replace(drive.api, b"much longer")

        drive.api.before = replace
        with pytest.raises(RemoteError, match="more than the 3 bytes"):
            read(drive.store, "a/key")


def _replace(api: Api, data: bytes) -> None:
    """Replace the one file of a drive behind everybody's back."""
    if isinstance(api, gdrive.Gdrive):
        (item,) = api.files()
        item.data = data
    else:
        assert isinstance(api, dropbox.Dropbox | onedrive.Onedrive)
        (path,) = api.files
        api.files[path] = data


class TestListings:
    def test_folders_in_folders_and_many_pages(self, drive: Drive) -> None:
        keys = {f"segments/{number % 30:02x}/{number:064x}" for number in range(90)}
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda key: drive.store.put(key, BytesSource(key.encode())), sorted(keys)))
        for store in (drive.store, drive.open()):
            assert sorted(store.list("segments/")) == [ObjectInfo(key, len(key)) for key in sorted(keys)]
            assert {info.key for info in store.list("segments/1d/")} == {key for key in keys if "/1d/" in key}
            assert {info.key for info in store.list("")} == keys | {"a/key"}

    def test_a_failure_between_many_folders(self, drive: Drive) -> None:
        """Nothing is left out, and nothing comes twice."""
        keys = {f"segments/{number:02x}/object" for number in range(20)}
        for key in sorted(keys):
            drive.store.put(key, BytesSource(b"x"))
        requests = count()

        def fail(_: Request) -> None:
            if next(requests) in {3, 12}:
                drive.api.failures.append(MODULES[drive.name].too_many())

        drive.api.before = fail
        assert sorted(info.key for info in drive.patient().list("segments/")) == sorted(keys)

    def test_a_folder_that_goes_away_meanwhile(self, town: Town, near_town: Elsewhere) -> None:
        """What is in the other folders is listed all the same."""
        town.forget()
        drive = Drive("dropbox", town, near_town)
        for name in ("b/1", "c/2", "d/3"):
            drive.store.put(name, BytesSource(b"x"))
        fake = town.dropbox

        def remove(request: Request) -> None:
            if request.path == "/2/files/list_folder" and request.document["path"].endswith("/c"):
                # not only "/c": the folder of the remote may be called so, and with it all would go
                for path in [each for each in fake.names if each.endswith("/c") or "/c/" in each]:
                    del fake.names[path]
                    fake.files.pop(path, None)

        fake.before = remove
        assert {info.key for info in drive.store.list("")} == {"a/key", "b/1", "d/3"}

    @pytest.mark.parametrize("name", ["own stuff", ".hidden", "", ".."])
    def test_folders_of_others_are_left_alone(self, town: Town, near_town: Elsewhere, name: str) -> None:
        town.forget()
        drive = Drive("dropbox", town, near_town)
        (path,) = town.dropbox.files
        top = path.removesuffix("/a/key")
        town.dropbox.names[f"{top}/{name}"] = f"{top}/{name}"
        calls = len(drive.api.calls)
        assert [info.key for info in drive.store.list("")] == ["a/key"]
        assert drive.api.calls[calls:] == ["POST /2/files/list_folder"] * 2

    def test_one_folder_alone_is_asked_for(self, drive: Drive) -> None:
        for number in range(30):
            drive.store.put(f"segments/{number:02x}/object", BytesSource(b"x"))
        drive.store.put("heads/device/object", BytesSource(b"x"))
        store = drive.open()
        assert store.size_bytes("nothing") is None
        drive.api.calls.clear()
        assert [info.key for info in store.list("heads/")] == ["heads/device/object"]
        assert len(drive.api.calls) < 10

    def test_large_objects_in_parts(self, drive: Drive) -> None:
        data = body(9 << 20)
        for _ in range(2):  # created, and then replaced
            drive.store.put("a/large", BytesSource(data))
            assert read(drive.open(), "a/large") == data
            data = data[::-1]

    @pytest.mark.parametrize("url", ["gdrive:", "gdrive:/", "onedrive:", "onedrive:%2f"])
    def test_the_topmost_folder_is_none(self, url: str) -> None:
        with pytest.raises(UsageError, match="names no folder"):
            make_store(parse(url), {})

    def test_the_folder_of_an_app_is_one(self, town: Town, near_town: Elsewhere) -> None:
        town.forget()
        log_in(town.accounts["dropbox"])
        store = near_town.open("dropbox:")
        store.put("a/key", BytesSource(b"data"))
        assert set(town.dropbox.files) == {"/a/key"}
        assert list(near_town.open("dropbox:").list("")) == [ObjectInfo("a/key", 4)]


class TestTwoOfOneName:
    """Google Drive lets two things in one folder have one name."""

    def place(self, google: Drive) -> tuple[gdrive.Gdrive, Item]:
        """The fake, and the file ``a/key`` in it."""
        assert isinstance(google.api, gdrive.Gdrive)
        (item,) = google.api.files()
        return google.api, item

    def test_files(self, google: Drive) -> None:
        api, older = self.place(google)
        newer = api.add(older.parents[0], older.name, b"newer")
        assert list(google.open().list("")) == [ObjectInfo("a/key", 3)] or list(google.open().list("")) == [
            ObjectInfo("a/key", 5)
        ]
        store = google.open()
        assert (read(store, "a/key"), store.size_bytes("a/key")) == (b"newer", 5)
        store.put("a/key", BytesSource(b"newest"))
        assert (older.data, newer.data) == (b"old", b"newest")
        assert read(google.open(), "a/key") == b"newest"
        store.delete("a/key")
        assert (older.is_trashed, newer.is_trashed) == (False, True)

    def test_folders(self, google: Drive) -> None:
        """Of what is in the older one a listing tells, but it cannot be reached by its name: it counts as missing."""
        api, older = self.place(google)
        folder = api.items[older.parents[0]]
        newer = api.add(folder.parents[0], folder.name, kind=FOLDER)
        api.add(newer.id, "other", b"data")
        store = google.open()
        assert {info.key for info in store.list("")} == {"a/key", "a/other"}
        assert (store.size_bytes("a/other"), store.size_bytes("a/key")) == (4, None)
        with pytest.raises(ObjectMissingError):
            read(store, "a/key")
        store.put("a/key", BytesSource(b"again"))
        assert read(google.open(), "a/key") == b"again"

    def test_many_threads_make_one_folder(self, google: Drive) -> None:
        store = google.open()
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda number: store.put(f"new/folder/{number}", BytesSource(b"x")), range(16)))
        assert isinstance(google.api, gdrive.Gdrive)
        names = [item.name for item in google.api.live() if item.kind == FOLDER]
        assert (names.count("new"), names.count("folder")) == (1, 2)  # one is that of the remote
        assert len(list(google.open().list("new/"))) == 16
