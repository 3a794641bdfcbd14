"""What an error of an S3 server or of the connection to it means: whether to ask again, and what a user can do.

Codes: "Error responses", Amazon S3 API Reference. Servers differ in the exception that their answer becomes, so the
HTTP status and the code decide. No message holds a credential.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from typing import Any, Final

import aiohttp
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    ProxyConnectionError,
)
from botocore.exceptions import ConnectionError as BotoConnectionError
from botocore.parsers import ResponseParserError
from s3fs.errors import translate_boto_error

from dsprobe.storage.retrying import TransientError

LIBRARY_ERRORS: Final = (
    BotoCoreError, ClientError, ResponseParserError, aiohttp.ClientError, ConnectionError, TimeoutError, ValueError
)  # fmt: skip
"""What one request can raise; ValueError: an endpoint that is no URL."""

_CONNECTION_ERRORS: Final = (
    BotoConnectionError, HTTPClientError, IncompleteReadError, ResponseParserError,
    aiohttp.ClientError, ConnectionError, TimeoutError,
)  # fmt: skip
"""Refused or reset connections, timeouts, and bodies cut short (a cut XML answer cannot be parsed)."""

_TRANSIENT_STATUSES: Final = frozenset({408, 409, 429, 500, 502, 503, 504})
"""409: another conditional request for the same name is under way."""

_TRANSIENT_CODES: Final = frozenset(
    {"RequestTimeout", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch", "InternalError", "SlowDown"}
)
"""Sent with HTTP 400 by some servers: a request body that arrived late, short or damaged."""

_NEVER_SENT: Final = (ConnectTimeoutError, ProxyConnectionError, aiohttp.ClientConnectorError)
"""There was no connection; botocore gives a reset connection and a refused one the same name."""

_REFUSED_STATUSES: Final = frozenset({408, 409, 429, 503})
"""The server says that it did not carry the request out."""

_CHAIN: Final = (
    "the usual AWS way: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE or `output.s3.profile`, "
    "~/.aws/credentials, or an instance role"
)

_REGION_HINT: Final = "the bucket is in another region; set `output.s3.region` or AWS_DEFAULT_REGION"
_CREDENTIALS_HINT: Final = f"the server does not accept these credentials; give valid ones {_CHAIN}"

_HINTS: Final = {
    "NoSuchBucket": "there is no such bucket; create it, or correct the URL or `output.s3.endpoint_url`",
    "AccessDenied": "these credentials do not allow it; they need to list, get, put and delete objects there",
    "InvalidAccessKeyId": _CREDENTIALS_HINT,
    "SignatureDoesNotMatch": _CREDENTIALS_HINT,
    "InvalidToken": _CREDENTIALS_HINT,
    "ExpiredToken": "the session token has expired; log in again",
    "RequestTimeTooSkewed": "this machine's clock differs from the server's by minutes; set it",
    "PermanentRedirect": _REGION_HINT,
    "AuthorizationHeaderMalformed": _REGION_HINT,
    "IllegalLocationConstraintException": _REGION_HINT,
    "PreconditionFailed": "the object has been replaced meanwhile",
    "NotImplemented": "the server lacks what dsprobe needs, conditional writes (If-None-Match: *) or multipart uploads",
    "403": "the server refuses; check the credentials and what they allow",
}


def http_status(error: BaseException) -> int | None:
    """The HTTP status behind an error, however deep; None where the server did not answer."""
    answer = _answer(error)
    return None if answer is None else int(answer["ResponseMetadata"]["HTTPStatusCode"])


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed when made again."""
    if isinstance(error, ClientError):
        return http_status(error) in _TRANSIENT_STATUSES or _code(error.response) in _TRANSIENT_CODES
    return isinstance(error, _CONNECTION_ERRORS) and _distrusted(error) is None


def translated(error: Exception) -> OSError:
    """What a failed request raises instead: `TransientError`, or an OSError that says what to do.

    A missing object is a FileNotFoundError, a missing bucket is not: nobody may take it for an empty folder.
    """
    if is_transient(error):
        never_sent = any(isinstance(cause, _NEVER_SENT) for cause in _chain(error))
        unknown = not never_sent and http_status(error) not in _REFUSED_STATUSES
        return TransientError(explain(error), unknown=unknown)
    if not isinstance(error, ClientError) or _code(error.response) == "NoSuchBucket":
        return OSError(explain(error))
    result: OSError = translate_boto_error(error, message=explain(error))
    return result


def explain(error: Exception) -> str:
    """Say in one line what happened and, where it is known, what to do."""
    if isinstance(error, ClientError):
        code = _code(error.response)
        hint = _HINTS.get(code) or str(error.response["Error"].get("Message") or "")
        return f"HTTP {http_status(error)} {code}" + (f": {hint}" if hint else "")
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return f"no complete credentials found; give them {_CHAIN}"
    if isinstance(error, ProfileNotFound):
        return f"{error}; see `output.s3.profile` and AWS_PROFILE"
    if (distrusted := _distrusted(error)) is not None:
        return f"the server's certificate is not trusted ({distrusted}); AWS_CA_BUNDLE names a file of others"
    return f"{type(error).__name__}: {error}"


def _code(answer: dict[str, Any]) -> str:
    return str(answer["Error"].get("Code") or answer["ResponseMetadata"]["HTTPStatusCode"])


def _answer(error: BaseException) -> dict[str, Any] | None:
    answers = (getattr(cause, "response", None) for cause in _chain(error))
    return next((answer for answer in answers if isinstance(answer, dict)), None)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and its causes, outermost first."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _distrusted(error: BaseException) -> ssl.SSLCertVerificationError | None:
    """The certificate error behind an error, if it is one."""
    return next((cause for cause in _chain(error) if isinstance(cause, ssl.SSLCertVerificationError)), None)
