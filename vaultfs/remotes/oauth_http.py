"""The few requests of a login: a form goes out, a JSON object comes back.

Proxies and certificates are those of the environment (``HTTPS_PROXY``, ``NO_PROXY``, ``SSL_CERT_FILE``), as for the
drives themselves.  A redirection is never followed: what is sent here is secret.  No text of an answer is shown or kept
in an error, as it may repeat what was sent.
"""

from __future__ import annotations

import http.client
import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode, urlsplit

from vaultfs.errors import RemoteError, RemoteRefusedError, RemoteUnreachableError

TIMEOUT_S: Final = 30.0
_LARGEST_BYTES: Final = 1 << 20


class Answer(NamedTuple):
    """What came back.

    Attributes:
        status: of HTTP; below 500, and not 429.
        document: the object; empty if there was none.
    """

    status: int
    document: dict[str, Any]


def post(url: str, form: Mapping[str, str] | None = None, *, bearer: str | None = None) -> Answer:
    """Send a form.

    Args:
        url: https.
        form: the fields; None sends no body.
        bearer: a token for the header.

    Raises:
        RemoteUnreachableError: there is no answer, or one that says to come again later.
        RemoteRefusedError: the server's certificate is not trusted.
    """
    host = urlsplit(url).hostname or ""
    data = b"" if form is None else urlencode(form).encode("ascii")
    request = urllib.request.Request(url, data, {"Accept": "application/json"}, method="POST")  # noqa: S310  # constants
    if form is None:
        request.remove_header("Content-type")
    if bearer is not None:
        request.add_unredirected_header("Authorization", f"Bearer {bearer}")
    failure: RemoteError
    try:
        status, body = _send(request)
    except urllib.error.URLError as error:
        failure = _unreachable(host, error.reason)
    except (OSError, http.client.HTTPException) as error:
        failure = _unreachable(host, error)
    else:
        if status == 429 or status >= 500:
            raise RemoteUnreachableError(f"{host} is too busy or broken ({status}); try again later")
        return Answer(status, _object(body))
    raise failure  # here, where the original is not the context


def _send(request: urllib.request.Request) -> tuple[int, bytes]:
    handler = urllib.request.HTTPSHandler(context=ssl.create_default_context())
    opener = urllib.request.build_opener(handler, _NoRedirect)
    try:
        with opener.open(request, timeout=TIMEOUT_S) as answer:
            return answer.status, answer.read(_LARGEST_BYTES)
    except urllib.error.HTTPError as error:  # an answer all the same
        with error:
            return error.code, error.read(_LARGEST_BYTES)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        """Nowhere."""


def _unreachable(host: str, reason: object) -> RemoteError:
    if isinstance(reason, ssl.SSLCertVerificationError):
        return RemoteRefusedError(f"the certificate of {host} is not trusted")
    kind = reason.strerror if isinstance(reason, OSError) and not isinstance(reason, ssl.SSLError) else None
    return RemoteUnreachableError(f"{host} cannot be reached: {kind or type(reason).__name__}; try again later")


def _object(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}
