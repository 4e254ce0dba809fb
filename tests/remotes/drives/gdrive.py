"""The part of Google Drive's API v3 that matters here.

A file is what its id says: two may have one name in one folder, and one in the bin is still there for who has its id.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final

from .api import MODIFIED, PAGE, Api
from .web import Request, Response, as_json, part

HOSTS: Final = ("www.googleapis.com",)
FOLDER: Final = "application/vnd.google-apps.folder"
_NAMED: Final = re.compile(r"name = '((?:[^'\\]|\\.)*)'")
_PARENT: Final = re.compile(r"'([^']+)' in parents")


def failed(status: int, reason: str, message: str) -> Response:
    """An error, as Google words it."""
    errors = [{"domain": "global", "reason": reason, "message": message}]
    return as_json({"error": {"code": status, "message": message, "errors": errors}}, status)


def too_many() -> Response:
    """Google says so with 403 as well."""
    return failed(403, "userRateLimitExceeded", "User Rate Limit Exceeded")


def full() -> Response:
    return failed(403, "storageQuotaExceeded", "The user's Drive storage quota has been exceeded.")


@dataclass
class Item:
    """A file or folder."""

    id: str
    name: str
    kind: str
    parents: list[str]
    born: int
    data: bytes = b""
    is_trashed: bool = False
    changed: int = field(default=0)

    def shown(self, fields: str | None) -> dict[str, Any]:
        """What is told of it: little, unless more is asked for."""
        told: dict[str, Any] = {"kind": "drive#file", "id": self.id, "name": self.name, "mimeType": self.kind}
        if fields is not None:
            told |= {"modifiedTime": MODIFIED, "parents": self.parents}
            if self.kind != FOLDER:
                told["size"] = str(len(self.data))
            wanted = set(re.findall(r"\w+", fields))
            told = {key: value for key, value in told.items() if key in wanted}
        return told


class Gdrive(Api):
    """A Drive.

    Attributes:
        items: by id.
    """

    def __init__(self) -> None:
        super().__init__()
        self.items: dict[str, Item] = {}
        self._pages: dict[str, list[dict[str, Any]]] = {}
        self._now = count(1)

    def clear(self) -> None:
        self.items.clear()
        self._pages.clear()

    def refusal(self, request: Request) -> Response:
        return failed(401, "authError", f"Invalid Credentials: {request.bearer}")

    def answer(self, request: Request) -> Response:
        path, _, identity = request.path.rpartition("/")
        match request.method, request.path, path:
            case "GET", "/drive/v3/files", _:
                return self._search(request)
            case "POST", "/drive/v3/files", _:
                return self._create_folder(request)
            case "POST", "/upload/drive/v3/files", _:
                return self._upload(request)
            case "PATCH", _, "/upload/drive/v3/files":
                return self._overwrite(request, identity)
            case "PATCH", _, "/drive/v3/files":
                return self._change(request, identity)
            case "GET", _, "/drive/v3/files":
                return self._get(request, identity)
        return Response(404)

    def add(self, parent: str, name: str, data: bytes = b"", kind: str = "application/octet-stream") -> Item:
        """Put something somewhere, whatever else has that name there."""
        now = next(self._now)
        item = Item(f"id-{now}", name, kind, [parent], now, data, changed=now)
        self.items[item.id] = item
        return item

    def live(self) -> list[Item]:
        """What is not in the bin."""
        return [item for item in self.items.values() if not item.is_trashed]

    def files(self) -> list[Item]:
        """As `live`, without folders."""
        return [item for item in self.live() if item.kind != FOLDER]

    def _missing(self, identity: str) -> Response:
        return failed(404, "notFound", f"File not found: {identity}.")

    def _search(self, request: Request) -> Response:
        if token := request.query.get("pageToken"):
            return self._page(self._pages.pop(token))
        query = request.query["q"]
        assert "trashed = false" in query
        parents = set(_PARENT.findall(query))
        assert parents
        if unknown := parents - self.items.keys() - {"root"}:
            return self._missing(unknown.pop())
        found = [item for item in self.live() if parents & {*item.parents}]
        if (named := _NAMED.search(query)) is not None:
            name = re.sub(r"\\(.)", r"\1", named[1])
            found = [item for item in found if item.name == name]
        if f"mimeType = '{FOLDER}'" in query:
            found = [item for item in found if item.kind == FOLDER]
        if request.query.get("orderBy") == "modifiedTime desc,createdTime desc":
            found.sort(key=lambda item: (-item.changed, -item.born))
        shown = [item.shown(request.query.get("fields")) for item in found]
        return self._page(shown, min(PAGE, int(request.query.get("pageSize", "100"))))

    def _page(self, entries: list[dict[str, Any]], size: int = PAGE) -> Response:
        answer: dict[str, Any] = {"files": entries[:size]}
        if rest := entries[size:]:
            token = f"page-{next(self._now)}"
            self._pages[token] = rest
            answer["nextPageToken"] = token
        return as_json(answer)

    def _create_folder(self, request: Request) -> Response:
        asked = request.document
        assert asked["mimeType"] == FOLDER
        (parent,) = asked["parents"]
        if parent != "root" and parent not in self.items:
            return self._missing(parent)
        return as_json(self.add(parent, asked["name"], kind=FOLDER).shown(None))

    def _upload(self, request: Request) -> Response:
        boundary = request.headers["Content-Type"].partition("boundary=")[2].strip('"')
        mark = b"--" + boundary.encode()
        assert request.body.endswith(mark + b"--\r\n"), "the body is whole"
        pieces = request.body.removesuffix(mark + b"--\r\n").split(mark + b"\r\n")[1:]
        told, data = (piece.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n") for piece in pieces)
        asked = json.loads(told)
        (parent,) = asked["parents"]
        if parent != "root" and parent not in self.items:
            return self._missing(parent)
        return as_json(self.add(parent, asked["name"], data).shown(None))

    def _overwrite(self, request: Request, identity: str) -> Response:
        item = self.items.get(identity)
        if item is None:
            return self._missing(identity)
        if item.kind == FOLDER:
            return failed(403, "fileNotUploadable", "This file cannot be uploaded")
        item.data, item.changed = request.body, next(self._now)
        return as_json(item.shown(None))

    def _change(self, request: Request, identity: str) -> Response:
        item = self.items.get(identity)
        if item is None:
            return self._missing(identity)
        assert set(request.document) == {"trashed"}, "nothing else is asked for by what vaultfs does"
        item.is_trashed = request.document["trashed"]
        return as_json(item.shown(None))

    def _get(self, request: Request, identity: str) -> Response:
        item = self.items.get(identity)
        if item is None:
            return self._missing(identity)
        if request.query.get("alt") != "media":
            return as_json(item.shown(request.query.get("fields")))
        if item.kind == FOLDER:
            return failed(403, "fileNotDownloadable", "Only files with binary content can be downloaded")
        return part(request, item.data)
