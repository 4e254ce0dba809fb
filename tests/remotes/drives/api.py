"""What the fakes of the three drives share: whose tokens count, and failures on order."""

from __future__ import annotations

import threading
from collections.abc import Callable

from .web import Request, Response

PAGE = 25
"""Entries in a page of a listing, so that listings have several; the real ones have hundreds."""

MODIFIED = "2026-01-02T03:04:05Z"


class Api:
    """A server that wants a token.

    Attributes:
        accepts: whether a token counts.
        failures: what is answered next instead; then it goes on as usual.
        before: is called before each request is answered.
        refused: how many requests had a token that does not count.
        calls: what was asked and answered in earnest, as ``GET /path``.
    """

    def __init__(self) -> None:
        self.accepts: Callable[[str | None], bool] = lambda token: token is not None
        self.failures: list[Response] = []
        self.before: Callable[[Request], None] = lambda _: None
        self.refused = 0
        self.calls: list[str] = []
        self._lock = threading.Lock()

    def __call__(self, request: Request) -> Response:
        with self._lock:
            self.before(request)
            if self.failures:
                return self.failures.pop(0)
            if not self.may(request):
                self.refused += 1
                return self.refusal(request)
            self.calls.append(f"{request.method} {request.path}")
            return self.answer(request)

    def forget(self) -> None:
        """Be empty again."""
        with self._lock:
            self.failures.clear()
            self.calls.clear()
            self.before = lambda _: None
            self.refused = 0
            self.clear()

    def may(self, request: Request) -> bool:
        """Whether a request comes from somebody who may make it."""
        return self.accepts(request.bearer)

    def clear(self) -> None:
        """Throw all objects away."""
        raise NotImplementedError

    def refusal(self, request: Request) -> Response:
        """What is said to a token that does not count.  Like the real ones it repeats what should not be repeated."""
        raise NotImplementedError

    def answer(self, request: Request) -> Response:
        """Do what is asked."""
        raise NotImplementedError
