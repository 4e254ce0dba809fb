"""The part of Microsoft Graph that matters here: items of a drive by path, uploads in sessions, downloads elsewhere.

Where a file is downloaded and uploaded in parts, the address itself is the permission: a token sent there is refused.
"""

from __future__ import annotations

import re
from itertools import count
from typing import Any, Final

from .api import MODIFIED, PAGE, Api
from .web import Request, Response, as_json, part

DOWNLOADS: Final = "public.dm.files.1drv.com"
HOSTS: Final = ("graph.microsoft.com", DOWNLOADS)
_ITEM: Final = re.compile(r"/v1\.0/me/drive/root(?::(?P<path>/.*?)(?::(?P<call>/\w+))?|(?P<of_root>/children))?")
_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


def failed(status: int, code: str, message: str = "") -> Response:
    """An error, as Microsoft words it."""
    return as_json({"error": {"code": code, "message": message or code}}, status)


def too_many() -> Response:
    answer = failed(503, "serviceNotAvailable")
    answer.headers["Retry-After"] = "1"
    return answer


def full() -> Response:
    return failed(507, "quotaLimitReached")


class Onedrive(Api):
    """A OneDrive.

    Attributes:
        files: content by path, in lower case.
        names: of files and folders, as they were given, by path in lower case.
    """

    def __init__(self) -> None:
        super().__init__()
        self.files: dict[str, bytes] = {}
        self.names: dict[str, str] = {}
        self._sessions: dict[str, tuple[str, bytearray]] = {}
        self._pages: dict[str, list[dict[str, Any]]] = {}
        self._now = count(1)

    def clear(self) -> None:
        self.files.clear()
        self.names.clear()
        self._sessions.clear()
        self._pages.clear()

    def refusal(self, request: Request) -> Response:
        return failed(401, "InvalidAuthenticationToken", f"IDX14100: {request.bearer}")

    def may(self, request: Request) -> bool:
        if request.host == DOWNLOADS:
            return request.headers["Authorization"] is None
        return super().may(request)

    def answer(self, request: Request) -> Response:
        if request.host == DOWNLOADS:
            return self._part(request)
        if token := request.query.get("$skiptoken"):
            return self._page(self._pages.pop(token))
        place = _ITEM.fullmatch(request.path)
        if place is None:
            return failed(400, "invalidRequest")
        path = place["path"] or ""
        if path.endswith("/"):
            return failed(400, "invalidRequest", "a path ends with a slash")
        match request.method, place["call"] or place["of_root"]:
            case "GET", None:
                return as_json(self._item(path.lower())) if self._is_there(path.lower()) else self._missing()
            case "GET", "/children":
                return self._children(path.lower())
            case "GET", "/content":
                return self._download(path.lower())
            case "PUT", "/content":
                return self._upload(path, request.body)
            case "POST", "/createUploadSession":
                return self._begin(path)
            case "DELETE", None:
                return self._delete(path.lower())
        return failed(400, "invalidRequest")

    def _missing(self) -> Response:
        return failed(404, "itemNotFound")

    def _is_there(self, path: str) -> bool:
        return path == "" or path in self.names

    def _item(self, path: str) -> dict[str, Any]:
        shown = self.names.get(path, "")
        above = shown.rpartition("/")[0]
        item: dict[str, Any] = {
            "id": f"id{abs(hash(path))}",
            "name": shown.rpartition("/")[2] or "root",
            "lastModifiedDateTime": MODIFIED,
            "eTag": '"{1},1"',
            "size": len(self.files.get(path, b"")),
            "parentReference": {"driveId": "drive", "driveType": "personal"},
        }
        if path:
            item["parentReference"] |= {"id": f"id{abs(hash(above.lower()))}", "path": f"/drive/root:{above}"}
        if path in self.files:
            return item | {"file": {"mimeType": "application/octet-stream"}}
        return item | {"folder": {"childCount": len(self._below(path))}}

    def _below(self, path: str) -> list[str]:
        return sorted(known for known in self.names if known.rpartition("/")[0] == path)

    def _children(self, path: str) -> Response:
        if not self._is_there(path) or path in self.files:
            return self._missing()
        return self._page([self._item(each) for each in self._below(path)])

    def _page(self, items: list[dict[str, Any]]) -> Response:
        answer: dict[str, Any] = {"value": items[:PAGE]}
        if rest := items[PAGE:]:
            token = f"skip{next(self._now)}"
            self._pages[token] = rest
            answer["@odata.nextLink"] = f"https://graph.microsoft.com/v1.0/me/drive/root/children?$skiptoken={token}"
        return as_json(answer)

    def _download(self, path: str) -> Response:
        if path not in self.files:
            return self._missing()
        return Response(302, b"", {"Location": f"https://{DOWNLOADS}/{path.encode().hex()}"})

    def _store(self, path: str, data: bytes) -> Response:
        is_new = path.lower() not in self.files
        parts = path.split("/")
        for number in range(2, len(parts)):
            folder = "/".join(parts[:number])
            if folder.lower() in self.files:
                return failed(404, "itemNotFound", "a file is no folder")
            self.names.setdefault(folder.lower(), folder)
        if path.lower() in self.names and is_new:
            return failed(409, "nameAlreadyExists")
        self.names.setdefault(path.lower(), path)
        self.files[path.lower()] = data
        return as_json(self._item(path.lower()), 201 if is_new else 200)

    def _upload(self, path: str, data: bytes) -> Response:
        if len(data) > 4 << 20:
            return failed(413, "tooLarge")
        return self._store(path, data)

    def _begin(self, path: str) -> Response:
        session = f"session{next(self._now)}"
        self._sessions[session] = (path, bytearray())
        return as_json({"uploadUrl": f"https://{DOWNLOADS}/{session}", "expirationDateTime": "2099-01-01T00:00:00Z"})

    def _part(self, request: Request) -> Response:
        name = request.path.removeprefix("/")
        if request.method == "GET":
            path = bytes.fromhex(name).decode()
            return part(request, self.files[path]) if path in self.files else self._missing()
        path, data = self._sessions[name]
        first, last, total = (int(number) for number in _RANGE.fullmatch(request.headers["Content-Range"]).groups())  # type: ignore[union-attr]
        if (
            first != len(data)
            or last - first + 1 != len(request.body)
            or (last + 1 < total and len(request.body) % 327_680)
        ):
            return failed(416, "invalidRange")
        data += request.body
        if len(data) < total:
            return as_json({"nextExpectedRanges": [f"{len(data)}-"]}, 202)
        del self._sessions[name]
        return self._store(path, bytes(data))

    def _delete(self, path: str) -> Response:
        if path not in self.names:
            return self._missing()
        for each in [known for known in self.names if known == path or known.startswith(f"{path}/")]:
            del self.names[each]
            self.files.pop(each, None)
        return Response(204)
