"""What becomes of a `Status` object."""

from __future__ import annotations

import pytest

from kars_router.errors import KarsError
from kars_router.kube import (
    ApiError,
    Cause,
    ConflictError,
    ForbiddenError,
    GoneError,
    NotFoundError,
    UnauthorizedError,
    UnreachableError,
)
from kars_router.kube.errors import error_of


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (401, UnauthorizedError),
        (403, ForbiddenError),
        (404, NotFoundError),
        (409, ConflictError),
        (410, GoneError),
        (422, ApiError),
        (429, ApiError),
        (500, ApiError),
    ],
)
def test_the_status_decides_on_the_class(code: int, kind: type[ApiError]) -> None:
    error = error_of({"code": code, "reason": "R", "message": "m"})
    assert type(error) is kind
    assert (error.status, error.reason, error.message, str(error)) == (code, "R", "m", "m")


def test_causes_and_waiting_time_are_kept() -> None:
    error = error_of(
        {
            "reason": "Invalid",
            "message": "it is\n  invalid",
            "details": {
                "retryAfterSeconds": 7,
                "causes": [
                    {"reason": "FieldValueInvalid", "message": "no", "field": "spec.url"},
                    "rubbish",
                    {"reason": 3},
                ],
            },
        },
        http_status=422,
    )
    assert error.message == "it is invalid"
    assert error.causes == (
        Cause("FieldValueInvalid", "no", "spec.url"),
        Cause("", "", ""),
    )
    assert error.retry_after == 7
    assert error_of({"details": {"retryAfterSeconds": 7}}, retry_after=2.0).retry_after == 2.0


@pytest.mark.parametrize(
    "status",
    [
        None,
        [],
        "x",
        {},
        {"code": True},
        {"code": "404"},
        {"details": []},
        {"details": {"causes": 1}},
    ],
)
def test_rubbish_is_an_error_of_the_server(status: object) -> None:
    error = error_of(status)
    assert (error.status, error.reason, error.message) == (500, "status 500", "status 500")
    assert error.retry_after is None


def test_long_messages_are_cut() -> None:
    assert len(str(error_of({"message": "x" * 100_000}))) < 600


def test_everything_is_an_error_of_this_project() -> None:
    assert issubclass(ApiError, KarsError)
    assert issubclass(UnreachableError, KarsError)
