from __future__ import annotations

import pytest
from attrs import evolve

from kars_router.loss import classify, fate_of, is_retryable
from kars_router.model import Failure, Fate, Phase, Sent


def failure(
    status: int | None = None,
    body: str = "",
    *,
    had_session: bool = True,
    phase: Phase = Phase.AWAIT,
    sent: Sent = Sent.YES,
) -> Failure:
    return Failure(
        server="s", phase=phase, sent=sent, status=status, body=body, had_session=had_session
    )


def lost(status: int | None, body: str = "", *, had_session: bool = True) -> bool:
    verdict = classify(failure(status, body, had_session=had_session))
    return verdict is not None and verdict.lost


@pytest.mark.parametrize("body", ["", "Session not found", "anything", "<html>", "\x00"])
def test_404_with_a_session_is_a_loss_whatever_the_body(body: str) -> None:
    assert lost(404, body)


@pytest.mark.parametrize("phase", list(Phase))
@pytest.mark.parametrize("sent", list(Sent))
def test_the_end_of_a_channel_is_a_loss_however_it_is_noticed(phase: Phase, sent: Sent) -> None:
    verdict = classify(
        Failure(server="s", phase=phase, sent=sent, code="channel_closed", had_session=False)
    )
    assert verdict is not None
    assert verdict.lost
    assert not verdict.tentative


def test_404_without_a_session_is_none() -> None:
    assert not lost(404, "Session not found", had_session=False)


@pytest.mark.parametrize(
    "body",
    [
        "Bad Request: Server not initialized",
        "Bad Request: No valid session ID provided",
        "Bad Request: Missing session ID",
        "Not Found: Invalid or expired session ID",
        "Session not found",
        "Unknown session",
        "Invalid session id",
        "invalid session_id",
        "unknown sessionId",
        "Invalid MCP-Session-Id",
        "Mcp-Session-Id not found",
        "sessionId is unknown",
        "Session has been terminated",
        "The session expired",
        "the session does not exist",
        "session 'abc-123' is no longer there",
        "terminated session",
        '{"jsonrpc":"2.0","error":{"code":-32000,"message":"Session expired"},"id":null}',
        "SESSION IS INVALID",
    ],
)
def test_400_is_a_loss_when_the_text_says_so(body: str) -> None:
    assert lost(400, body)
    assert not lost(400, body, had_session=False)


@pytest.mark.parametrize(
    "body",
    [
        "",
        "sessionStorage key missing",
        "session storage key missing",
        "sessionStorage is invalid",
        "Bad Request: Unsupported protocol version",
        "invalid params",
        "the file is missing",
        "in this session all is well",
        "possession unknown",
        "obsession expired",
        "This is about a session. The key is missing",
        "the session is fine; the element was not found",
        "sessions",
    ],
)
def test_400_is_no_loss_otherwise(body: str) -> None:
    assert not lost(400, body)


@pytest.mark.parametrize("status", [200, 202, 204, 401, 403, 405, 409, 413, 429, 500, 502, 503])
def test_no_other_status_is_a_loss(status: int) -> None:
    assert not lost(status, "Session not found, Server not initialized")


def test_without_a_status_nothing_is_known() -> None:
    assert classify(failure(None)) is None
    assert classify(failure(404, phase=Phase.CONNECT)) is None


@pytest.mark.parametrize(
    ("given", "fate"),
    [
        (failure(sent=Sent.NO, phase=Phase.CONNECT), Fate.NOT_EXECUTED),
        (failure(sent=Sent.PARTLY, phase=Phase.SEND), Fate.NOT_EXECUTED),
        (failure(), Fate.UNKNOWN),
        (failure(200, phase=Phase.STREAM), Fate.UNKNOWN),
        (failure(302), Fate.UNKNOWN),
        (failure(400), Fate.NOT_EXECUTED),
        (failure(401), Fate.NOT_EXECUTED),
        (failure(404), Fate.NOT_EXECUTED),
        (failure(408), Fate.UNKNOWN),
        (failure(429), Fate.NOT_EXECUTED),
        (failure(499), Fate.NOT_EXECUTED),
        (failure(500), Fate.UNKNOWN),
        (failure(503), Fate.UNKNOWN),
        (evolve(failure(), rpc_code=-32022), Fate.NOT_EXECUTED),
        (evolve(failure(), rpc_code=-32022, begun=True), Fate.UNKNOWN),
        (evolve(failure(404), begun=True), Fate.UNKNOWN),
        (evolve(failure(500), rpc_code=-32021), Fate.UNKNOWN),
        # A GET for the rest of an answer, to a call that the server had taken.
        (failure(404, phase=Phase.LISTEN), Fate.UNKNOWN),
    ],
)
def test_the_fate_of_a_failed_call(given: Failure, fate: Fate) -> None:
    assert fate_of(given) is fate


@pytest.mark.parametrize(
    ("given", "retryable"),
    [
        (failure(sent=Sent.NO), True),
        (failure(sent=Sent.PARTLY), True),
        (failure(404), True),
        (failure(429), True),
        (failure(400), False),
        (failure(401), False),
        (failure(500), False),
        (failure(), False),
    ],
)
def test_only_what_was_not_executed_and_may_go_better_is_retryable(
    given: Failure, retryable: bool
) -> None:
    assert is_retryable(given) is retryable
