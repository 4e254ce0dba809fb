"""What S3 and botocore mean by their errors, in vaultfs's own.

Texts are written here.  Those of botocore hold URLs with query strings, and those of a server may hold anything.
"""

from __future__ import annotations

import re
from typing import Final

from vaultfs.errors import (
    NoSpaceError,
    ObjectExistsError,
    ObjectMissingError,
    RemoteError,
    RemoteRefusedError,
    RemoteUnreachableError,
)

_CODE: Final = re.compile(r"[A-Za-z0-9.]{1,64}")

_FULL: Final = frozenset(
    {
        "InsufficientCapacity",
        "InsufficientStorage",
        "QuotaExceeded",
        "QuotaExceededException",
        "XMinioAdminBucketQuotaExceeded",
        "XMinioStorageFull",
    }
)
_BUSY: Final = frozenset(
    {
        "BandwidthLimitExceeded",
        "InternalError",
        "RequestThrottled",
        "RequestTimeout",
        "RequestTimeoutException",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
    }
)
_CONFLICT: Final = frozenset({"ConditionalRequestConflict", "OperationAborted"})
"""Of two requests at once, one is answered so, and has to be repeated: what comes of the other nobody knows yet."""
_ADVICE: Final = {
    "AccessDenied": "the credentials may not do this; check the bucket's policy and the user's rights",
    "AllAccessDisabled": "the owner has shut off the bucket",
    "AuthorizationHeaderMalformed": "it lies in another region; set the option region",
    "ExpiredToken": "the credentials are too old; get new ones, for example with aws sso login",
    "IllegalLocationConstraintException": "it lies in another region; set the option region",
    "InvalidAccessKeyId": "the server does not know the access key; check the credentials and the option profile",
    "InvalidBucketName": "the bucket cannot have this name",
    "InvalidToken": "the session token is not valid; get new credentials",
    "NoSuchBucket": "there is no such bucket; create it, or check its name and the options endpoint and region",
    "PermanentRedirect": "it lies in another region; set the option region",
    "RequestTimeTooSkewed": "the clock of this machine is wrong; set it",
    "SignatureDoesNotMatch": "the secret key is not the one of the access key, or the option endpoint is wrong",
    "TokenRefreshRequired": "the credentials are too old; get new ones",
}


class RangeError(RemoteError):
    """The part of an object that was asked for is not in it."""


def caught_errors() -> tuple[type[Exception], ...]:
    """What boto3's calls and bodies raise."""
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415
    from botocore.parsers import ResponseParserError  # noqa: PLC0415
    from urllib3.exceptions import HTTPError  # noqa: PLC0415

    # ValueError: botocore parses numbers and times in answers unguarded.  RecursionError: it follows redirects to other
    # regions by itself, and asks there in the same way.
    return (BotoCoreError, ClientError, ResponseParserError, HTTPError, OSError, ValueError, RecursionError)


def error_code(error: Exception) -> tuple[str, int]:
    """The error code and the HTTP status that a server sent; empty and 0 if it was not the server."""
    answer = getattr(error, "response", None)
    if not isinstance(answer, dict):
        return "", 0
    code = str(answer.get("Error", {}).get("Code", ""))
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return (code if _CODE.fullmatch(code) else ""), (status if isinstance(status, int) else 0)


def translated(error: Exception, what: str, store: str, *, if_absent: bool) -> RemoteError | NoSpaceError:
    """The error of vaultfs for one of `caught_errors`; the caller raises it.

    Args:
        error: what was raised.
        what: the request, for the message.
        store: the remote, for the message.
        if_absent: whether the request was to create an object.
    """
    from botocore.exceptions import ClientError  # noqa: PLC0415

    if isinstance(error, ClientError):
        code, status = error_code(error)
        return _of_answer(code, status, what, store, if_absent=if_absent)
    return _of_library(error, what, store)


def _of_answer(code: str, status: int, what: str, store: str, *, if_absent: bool) -> RemoteError | NoSpaceError:
    shown = f"{what} failed: {code or 'no error code'} ({status})"
    if code in _CONFLICT:
        return RemoteUnreachableError(f"{shown}: somebody else stores it at this moment; try again later")
    if if_absent and status in {409, 412}:
        return ObjectExistsError(f"{what} refused: it is there already")
    if code in _FULL or status == 507:
        return NoSpaceError(f"{shown}: {store} is full; make room there, or raise the quota")
    if code in _BUSY or status == 429 or (status >= 500 and status != 501):
        return RemoteUnreachableError(f"{shown}: the server is busy or broken; try again later")
    if code in _ADVICE:
        return RemoteRefusedError(f"{shown}: {_ADVICE[code]}")
    if code == "InvalidRange" or status == 416:
        return RangeError(shown)
    if code == "NoSuchKey" or status == 404:
        return ObjectMissingError(f"{what} failed: there is no such object")
    if status in {301, 307, 308}:
        return RemoteRefusedError(f"{shown}: {_ADVICE['PermanentRedirect']}")
    if status in {401, 403}:
        return RemoteRefusedError(f"{shown}: {_ADVICE['AccessDenied']}")
    return RemoteError(f"{shown}; if the options are right, report this to whoever runs the server")


def _of_library(error: Exception, what: str, store: str) -> RemoteError:
    from botocore import exceptions  # noqa: PLC0415
    from botocore.parsers import ResponseParserError  # noqa: PLC0415
    from urllib3.exceptions import HTTPError  # noqa: PLC0415

    if isinstance(error, exceptions.NoCredentialsError | exceptions.PartialCredentialsError):
        return RemoteRefusedError(
            f"there are no credentials for {store}: run aws configure, set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or give the option profile",
        )
    if isinstance(error, exceptions.ProfileNotFound):
        return RemoteRefusedError(f"{store}: ~/.aws has no profile of the name in the option profile")
    if isinstance(
        error,
        exceptions.CredentialRetrievalError
        | exceptions.MetadataRetrievalError
        | exceptions.TokenRetrievalError
        | exceptions.SSOError
        | exceptions.RefreshWithMFAUnsupportedError
        | exceptions.ConfigParseError
        | exceptions.ConfigNotFound,
    ):
        return RemoteRefusedError(f"credentials for {store} cannot be had ({type(error).__name__}): log in again")
    if isinstance(error, exceptions.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
        return RemoteRefusedError(
            f"{what} failed: the server's certificate is not trusted; if it is your own, name its authority in the "
            "variable AWS_CA_BUNDLE",
        )
    if isinstance(
        error,
        exceptions.HTTPClientError | exceptions.ConnectionError | exceptions.IncompleteReadError | HTTPError | OSError,
    ):
        return RemoteUnreachableError(f"{what} failed: {_connection_trouble(error)}; check the network and try again")
    if isinstance(error, RecursionError):
        return RemoteError(f"{what} failed: it redirects without end; check the options endpoint and region")
    if isinstance(error, ResponseParserError | ValueError | exceptions.PaginationError):
        return RemoteError(f"{what} failed: the answer makes no sense; what answers there is not S3")
    return RemoteError(f"{what} failed: {type(error).__name__}; check the options and ~/.aws")


def _connection_trouble(error: Exception) -> str:
    from botocore import exceptions  # noqa: PLC0415

    kinds: list[tuple[type[Exception], str]] = [
        (exceptions.ProxyConnectionError, "the proxy cannot be reached"),
        (exceptions.ConnectTimeoutError, "the server did not answer in time"),
        (exceptions.ReadTimeoutError, "the server stopped answering"),
        (exceptions.SSLError, "no secure connection could be made"),
        (exceptions.EndpointConnectionError, "the server cannot be reached"),
    ]
    return next((text for kind, text in kinds if isinstance(error, kind)), "the connection broke")
