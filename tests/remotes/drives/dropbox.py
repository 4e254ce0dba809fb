"""The part of Dropbox's API v2 that matters here.  Names are compared without case, and kept as they were given."""

from __future__ import annotations

import json
from typing import Any, Final

from .api import MODIFIED, PAGE, Api
from .web import Request, Response, as_json, part

HOSTS: Final = ("api.dropboxapi.com", "content.dropboxapi.com")


def failed(summary: str, status: int = 409) -> Response:
    """An error, as Dropbox words it."""
    return as_json({"error_summary": f"{summary}/..", "error": {".tag": summary.partition("/")[0]}}, status)


def too_many() -> Response:
    answer = failed("too_many_write_operations", 429)
    answer.headers["Retry-After"] = "1"
    return answer


def full() -> Response:
    return failed("path/insufficient_space")


class Dropbox(Api):
    """A Dropbox.

    Attributes:
        files: content by path, in lower case.
        names: of files and folders, as they were given, by path in lower case.
    """

    def __init__(self) -> None:
        super().__init__()
        self.files: dict[str, bytes] = {}
        self.names: dict[str, str] = {}
        self._cursors: dict[str, list[dict[str, Any]]] = {}

    def clear(self) -> None:
        self.files.clear()
        self.names.clear()

    def refusal(self, request: Request) -> Response:
        return failed(f"expired_access_token/{request.bearer}", 401)

    def answer(self, request: Request) -> Response:
        calls = {
            "/2/files/upload": self._upload,
            "/2/files/download": self._download,
            "/2/files/get_metadata": self._metadata,
            "/2/files/delete_v2": self._delete,
            "/2/files/list_folder": self._list,
            "/2/files/list_folder/continue": self._continue,
        }
        call = calls.get(request.path)
        return call(request) if request.method == "POST" and call is not None else Response(404)

    def _is_folder(self, path: str) -> bool:
        return path == "" or (path in self.names and path not in self.files)

    def _entry(self, path: str) -> dict[str, Any]:
        shown = self.names[path]
        entry: dict[str, Any] = {
            ".tag": "file" if path in self.files else "folder",
            "name": shown.rpartition("/")[2],
            "path_lower": path,
            "path_display": shown,
            "id": f"id:{abs(hash(path))}",
        }
        if path in self.files:
            times = {"client_modified": MODIFIED, "server_modified": MODIFIED}
            entry |= {**times, "rev": "0123456789", "size": len(self.files[path]), "is_downloadable": True}
        return entry

    def _upload(self, request: Request) -> Response:
        argument = json.loads(request.headers["Dropbox-API-Arg"])
        shown = argument["path"]
        path = shown.lower()
        assert request.headers["Content-Type"] == "application/octet-stream"
        if self._is_folder(path):
            return failed("path/conflict/folder")
        parts = path.split("/")
        above = ["/".join(parts[:count]) for count in range(2, len(parts))]
        if any(folder in self.files for folder in above):
            return failed("path/conflict/file_ancestor")
        for folder in above:
            self.names.setdefault(folder, shown[: len(folder)])
        self.names.setdefault(path, shown)
        self.files[path] = request.body
        return as_json(self._entry(path))

    def _download(self, request: Request) -> Response:
        path = json.loads(request.headers["Dropbox-API-Arg"])["path"].lower()
        if path not in self.files:
            return failed("path/not_found")
        return part(request, self.files[path], {"Dropbox-API-Result": json.dumps(self._entry(path))})

    def _metadata(self, request: Request) -> Response:
        path = request.document["path"].lower()
        if path == "":
            return Response(400, b"The root folder is unsupported.")
        return as_json(self._entry(path)) if path in self.names else failed("path/not_found")

    def _delete(self, request: Request) -> Response:
        path = request.document["path"].lower()
        if path not in self.names:
            return failed("path_lookup/not_found")
        entry = self._entry(path)
        for each in [known for known in self.names if known == path or known.startswith(f"{path}/")]:
            del self.names[each]
            self.files.pop(each, None)
        return as_json({"metadata": entry})

    def _list(self, request: Request) -> Response:
        path = request.document["path"].lower()
        if path in self.files:
            return failed("path/not_folder")
        if not self._is_folder(path):
            return failed("path/not_found")
        if request.document["recursive"]:
            below = [known for known in self.names if known == path or known.startswith(f"{path}/")]
        else:
            below = [known for known in self.names if known.rpartition("/")[0] == path]
        return self._page([self._entry(each) for each in sorted(below)])

    def _continue(self, request: Request) -> Response:
        rest = self._cursors.pop(request.document["cursor"], None)
        return failed("reset") if rest is None else self._page(rest)

    def _page(self, entries: list[dict[str, Any]]) -> Response:
        cursor = f"cursor-{len(self._cursors)}-{len(entries)}"
        if rest := entries[PAGE:]:
            self._cursors[cursor] = rest
        return as_json({"entries": entries[:PAGE], "cursor": cursor, "has_more": bool(rest)})
