"""Makes functions of ``os`` fail."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest


def failing(
    patch: pytest.MonkeyPatch,
    name: str,
    code: int,
    *,
    skip: int = 0,
    times: int | None = None,
    only: Callable[..., bool] = lambda *_args, **_kwargs: True,
) -> None:
    """Let calls of ``os.<name>`` raise ``OSError(code)``.

    Args:
        patch: undoes it.
        name: of the function.
        code: errno.
        skip: how many calls succeed first.
        times: how many calls fail; None for all that follow.
        only: which calls count, by their arguments.
    """
    real: Callable[..., Any] = getattr(os, name)
    seen = 0

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal seen
        if not only(*args, **kwargs):
            return real(*args, **kwargs)
        seen += 1
        if seen <= skip or (times is not None and seen > skip + times):
            return real(*args, **kwargs)
        raise OSError(code, os.strerror(code))

    patch.setattr(os, name, call)
