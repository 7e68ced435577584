"""What goes wrong between us and a Kubernetes API server.

    KubeError
    +-- ApiError             the server answered, and the answer is no
    |   +-- NotFoundError        404
    |   +-- ConflictError        409: a newer version, another field manager, or the name is taken
    |   +-- GoneError            410: a resourceVersion, or a page of a list, is too old
    |   +-- ForbiddenError       403
    |   +-- UnauthorizedError    401
    +-- UnreachableError     no answer, or none that can be understood
        +-- AnswerError          what answers there is no Kubernetes API, or breaks its rules

Owns the reading of a `Status` object. Knows no I/O.

Source: https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/status/.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from attrs import frozen

from kars_router.errors import KarsError

_SHOWN: Final = 500  # characters of a server's message that an error repeats
_MOST_CAUSES: Final = 100


class KubeError(KarsError):
    """Everything that this package raises about an API server."""


class UnreachableError(KubeError):
    """There was no answer that could be understood; whether a change was made is not known.

    The message is one clause that names the server.
    """


class AnswerError(UnreachableError):
    """Something answered, but not as the Kubernetes API does."""


@frozen
class Cause:
    """One of the reasons that the server gives for an error.

    Attributes:
        reason: a word such as `FieldValueInvalid` or `FieldManagerConflict`.
        message: a sentence for people.
        field: the path of the field, such as `.spec.url`; empty if it is about none.
    """

    reason: str
    message: str
    field: str


class ApiError(KubeError):
    """The API server refused.

    Args:
        status: the HTTP status.
        reason: one word, such as `NotFound`, `AlreadyExists`, `Conflict` or `Invalid`.
        message: the server's sentence.
        causes: what it says about single fields.
        retry_after: seconds after which it wants to be asked again; None if it does not say.
    """

    def __init__(
        self,
        status: int,
        reason: str,
        message: str,
        *,
        causes: tuple[Cause, ...] = (),
        retry_after: float | None = None,
    ) -> None:
        self.status = status
        self.reason = reason
        self.message = message
        self.causes = causes
        self.retry_after = retry_after
        super().__init__(message)


class NotFoundError(ApiError):
    """There is no such object, or the server does not serve the resource."""


class ConflictError(ApiError):
    """Somebody else has changed it, owns the field, or has taken the name."""


class GoneError(ApiError):
    """A resourceVersion or a page of a list is older than what the server remembers."""


class ForbiddenError(ApiError):
    """Who we are may not do that."""


class UnauthorizedError(ApiError):
    """The server does not accept our credentials."""


_BY_STATUS: Final[Mapping[int, type[ApiError]]] = {
    401: UnauthorizedError,
    403: ForbiddenError,
    404: NotFoundError,
    409: ConflictError,
    410: GoneError,
}


def error_of(status: object, *, http_status: int = 0, retry_after: float | None = None) -> ApiError:
    """Makes the error that a `Status` object stands for.

    Args:
        status: the decoded object; anything else than a mapping is passed over.
        http_status: of the answer; 0 for an event of a watch, which has its code inside.
        retry_after: seconds from the answer's header; stronger than those in the object.
    """
    body: Mapping[str, Any] = status if isinstance(status, Mapping) else {}
    code = http_status or _number(body.get("code")) or 500
    details = body.get("details")
    details = details if isinstance(details, Mapping) else {}
    if retry_after is None:
        retry_after = _number(details.get("retryAfterSeconds")) or None
    found = details.get("causes")
    reason = _text(body.get("reason")) or f"status {code}"
    return _BY_STATUS.get(code, ApiError)(
        code,
        reason,
        _text(body.get("message")) or reason,
        causes=tuple(
            Cause(_text(each.get("reason")), _text(each.get("message")), _text(each.get("field")))
            for each in (found if isinstance(found, list) else [])[:_MOST_CAUSES]
            if isinstance(each, Mapping)
        ),
        retry_after=retry_after,
    )


def _number(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _text(value: object) -> str:
    if not isinstance(value, str):
        return ""
    # It may be shown on a terminal.
    text = " ".join("".join(each if each.isprintable() else " " for each in value).split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
