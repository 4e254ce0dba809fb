from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vaultfs.errors import RemoteRefusedError, RemoteUnreachableError, UsageError
from vaultfs.remotes.locations import LARGEST_URL, Location, parse
from vaultfs.remotes.retrying import RetryingStore
from vaultfs.remotes.store import BytesSource
from vaultfs.remotes.urls import open_store, redacted

from .data import read

SECRET = "very-secret"


class TestRedacted:
    @pytest.mark.parametrize(
        ("url", "shown"),
        [
            ("s3://bucket/prefix", "s3://bucket/prefix"),
            ("file:///dir/a%20b", "file:///dir/a%20b"),
            ("gdrive:folder/x", "gdrive:folder/x"),
            ("webdav+https://host:8443/x", "webdav+https://host:8443/x"),
            ("webdav+https://user:very-secret@host/x", "webdav+https://host/x"),
            ("webdav+https://very-secret@host/x", "webdav+https://host/x"),
            ("webdav+https://user:very/secret@host/very-secret@other/x", "webdav+https://other/x"),
            ("webdav+https://user:very-secret?x@host/x", "webdav+https://…"),
            ("webdav+https://user:very-secret#x@host/x", "webdav+https://…"),
            ("webdav+https://user:very-secret%40host/x", "webdav+https://…/x"),
            ("s3://bucket/prefix?key=very-secret", "s3://bucket/prefix"),
            ("s3://bucket/prefix#very-secret", "s3://bucket/prefix"),
            ("s3://bucket/p?a=very-secret@x", "s3://…"),
            ("gdrive:very-secret@folder?very-secret", "gdrive:folder"),
            ("very-secret@x", "x"),
            ("", ""),
            ("s3://b/\x1b[31m\n", "s3://b/?[31m?"),
        ],
    )
    def test_examples(self, url: str, shown: str) -> None:
        if "\x1b" in url:
            assert "\x1b" not in redacted(url)
            assert "\n" not in redacted(url)
        else:
            assert redacted(url) == shown

    @given(
        st.text(alphabet="abz:/?#@%.\n ", max_size=8), st.text(alphabet="abz:/?#@%. ", max_size=8), st.text(max_size=8)
    )
    def test_what_is_before_an_at_is_not_shown(self, user: str, password: str, rest: str) -> None:
        shown = redacted(f"webdav+https://{user}:QXQ{password}@{rest}")
        assert "QXQ" not in shown

    @given(st.text())
    def test_anything(self, url: str) -> None:
        shown = redacted(url)
        assert all(character.isprintable() for character in shown)
        assert len(shown) <= LARGEST_URL + 1


class TestParse:
    @pytest.mark.parametrize(
        ("url", "expected"),
        [
            ("s3://bucket/a/b/", Location("s3", "bucket", "a/b", "s3://bucket/a/b/")),
            ("S3://bucket", Location("s3", "bucket", "", "S3://bucket")),
            ("file:///dir", Location("file", "", "dir", "file:///dir")),
            ("gdrive:a/b", Location("gdrive", "", "a/b", "gdrive:a/b")),
            ("gdrive:", Location("gdrive", "", "", "gdrive:")),
            ("webdav+https://[::1]:80/x", Location("webdav+https", "[::1]:80", "x", "webdav+https://[::1]:80/x")),
        ],
    )
    def test_valid(self, url: str, expected: Location) -> None:
        assert parse(url) == expected

    @pytest.mark.parametrize(
        "url",
        [
            "",
            "/dir",
            "dir",
            "://x",
            "1x://y",
            "s3 ://bucket",
            "s3://bucket/a b",
            "s3://bücket",
            "s3://bucket\n",
            "s3://bucket/" + "x" * LARGEST_URL,
            "s3://[::1",
            "s3://bu%63ket/x",
            "s3://bucket:x/y",
        ],
    )
    def test_invalid(self, url: str) -> None:
        with pytest.raises(UsageError):
            parse(url)

    @pytest.mark.parametrize(
        "url",
        [
            "webdav+https://user:very-secret@host/x",
            "webdav+https://user:very@secret@host/x",
            "s3://key:very-secret@bucket",
            "s3://very-secret@bucket",
            "gdrive:very-secret@folder",
        ],
    )
    def test_a_password_is_refused_with_advice(self, url: str) -> None:
        with pytest.raises(UsageError, match="Credentials belong") as caught:
            open_store(url)
        assert SECRET not in str(caught.value)

    @pytest.mark.parametrize("url", ["s3://bucket/x?token=very-secret", "s3://bucket#very-secret"])
    def test_a_query_is_refused(self, url: str) -> None:
        with pytest.raises(UsageError) as caught:
            open_store(url)
        assert SECRET not in str(caught.value)

    @given(st.text())
    @example("s3://[")
    @example("file://[x]/")
    @example("webdav+https://:80/")
    @example("gdrive://")
    def test_anything_else_is_a_usage_error(self, text: str) -> None:
        for url in (text, f"s3://{text}", f"file:///{text}", f"webdav+https://{text}", f"gdrive:{text}"):
            try:
                open_store(url).close()
            except UsageError as error:
                assert "\n" not in str(error)  # noqa: PT017  # most texts are refused, and some are not


class TestOpenStore:
    def test_a_directory(self, tmp_path: Path) -> None:
        path = tmp_path / "with space, ü"
        path.mkdir()
        store = open_store(path.as_uri())
        assert isinstance(store, RetryingStore)
        assert store.name == path.as_uri()
        store.put("key", BytesSource(b"data"))
        assert (path / "key").read_bytes() == b"data"

    @pytest.mark.timeout(20)
    def test_a_directory_that_is_not_there_is_not_waited_for(self, tmp_path: Path) -> None:
        with pytest.raises(RemoteUnreachableError):
            list(open_store((tmp_path / "none").as_uri()).list(""))

    @pytest.mark.parametrize(
        "url", ["file://host/dir", "file:", "file:///", "file:///a/../b", "file:///a/%2e%2e/b", "file:///a%00b"]
    )
    def test_directories_that_cannot_be(self, url: str) -> None:
        with pytest.raises(UsageError):
            open_store(url)

    def test_s3(self, s3_endpoint: str) -> None:
        options = {"endpoint": s3_endpoint, "region": "us-east-1", "path_style": "true"}
        store = open_store("s3://contract/urls/", options)
        store.put("key", BytesSource(b"data"))
        assert read(store, "key") == b"data"
        assert store.name == "s3://contract/urls"
        store.delete("key")
        store.close()

    @pytest.mark.parametrize("url", ["s3://", "s3:///x", "s3://bucket/../x", "s3://bucket/.x", "s3://bucket/a//b"])
    def test_buckets_that_cannot_be(self, url: str) -> None:
        with pytest.raises(UsageError):
            open_store(url)

    @pytest.mark.parametrize(
        "url",
        [
            "file:///dir",
            "s3://bucket",
            "webdav+https://host",
            "gcs://b",
            "azblob://c",
            "b2://b",
            "gdrive:",
            "dropbox:x",
        ],
    )
    @pytest.mark.parametrize("option", ["secret_access_key", "password", "access_token", "token", "root", "scheme"])
    def test_options_that_it_does_not_know(self, url: str, option: str) -> None:
        with pytest.raises(UsageError, match="Secrets are never options") as caught:
            open_store(url, {option: SECRET})
        assert SECRET not in str(caught.value)

    @pytest.mark.parametrize("url", ["ftp://host/x", "http://host", "memory:", "fs:///", "s4://bucket"])
    def test_kinds_that_are_not_there(self, url: str) -> None:
        with pytest.raises(UsageError, match="no kind of remote"):
            open_store(url)

    def test_nothing_is_asked_yet(self) -> None:
        for url in ("s3://bucket/x", "gcs://bucket", "gdrive:x", "webdav+https://host/x", "b2://bucket", "azblob://c"):
            open_store(url).close()

    @pytest.mark.parametrize("url", ["gdrive:x", "dropbox:", "onedrive:a/b"])
    def test_a_login_that_is_lacking(self, url: str) -> None:
        with pytest.raises(RemoteRefusedError, match="nobody has logged in"):
            open_store(url).size_bytes("key")

    @pytest.mark.parametrize("url", ["b2://bucket/x", "azblob://container"])
    def test_credentials_that_are_lacking(self, url: str) -> None:
        with pytest.raises(RemoteRefusedError, match="needs the option"):
            open_store(url).size_bytes("key")
