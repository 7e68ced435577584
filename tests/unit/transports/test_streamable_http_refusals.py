"""The JSON-RPC error in a refusal (`Failure.rpc_error`)."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import trio
from attrs import evolve
from structlog.testing import capture_logs
from trio.testing import MockClock
from unit.transports.streamable_kit import CALL, STREAM, Trickle, open_wire, send_over

from kars_router.errors import CallFailed
from kars_router.model import Failure
from kars_router.testing import Fault, FaultPlan, Reply
from kars_router.transports.base import Delivery, Position

MOST = 64 * 1024
UNSUPPORTED = b'{"code": -32022, "message":"no", "data":{"supported":["2026-07-28"], "n":1.50}}'


def refusal(error: bytes, ident: bytes = b"7", status: int = 400, **more: Any) -> Reply:
    body = b'{"jsonrpc":"2.0", "id":%b, "error": %b }\n' % (ident, error)
    return Reply(status=status, headers={"content-type": "application/json"}, body=body, **more)


def sized(size: int) -> bytes:
    """An error object of so many bytes."""
    error = b'{"code":-32022,"message":"%b"}'
    return error % (b"x" * (size - len(error % b"")))


async def failure_of(reply: Reply, **options: Any) -> Failure:
    async with open_wire(reply, **options) as wire:
        return (await wire.refused()).failure


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 503])
@pytest.mark.parametrize("ident", [b"7", b"null", b'"server-error"'])
async def test_it_is_kept_as_the_server_wrote_it(ident: bytes, status: int) -> None:
    failure = await failure_of(refusal(UNSUPPORTED, ident, status))
    assert failure.rpc_error == UNSUPPORTED
    assert (failure.rpc_code, failure.status) == (-32022, status)


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "Application/JSON"])
async def test_it_is_read_however_its_type_is_spelt(kind: str) -> None:
    error = sized(10_000)
    failure = await failure_of(evolve(refusal(error), headers={"content-type": kind}))
    assert failure.rpc_error == error


@pytest.mark.parametrize("size", [100, 10**6])
async def test_a_large_one_is_kept_and_its_excerpt_stays_short(size: int) -> None:
    error = sized(MOST)
    reply = refusal(error, b'"%b"' % (b"i" * 3000))
    trickle = Trickle(reply, size)
    with pytest.raises(CallFailed) as caught:
        await send_over(trickle)
    failure = caught.value.failure
    assert failure.rpc_error == error
    assert failure.body == reply.body[:512].decode()


@pytest.mark.parametrize(
    ("kind", "most"), [("application/json", MOST + 5000), ("text/html", 600), ("", 600)]
)
async def test_no_more_is_read_than_could_be_kept(kind: str, most: int) -> None:
    trickle = Trickle(evolve(refusal(sized(4 * MOST)), headers={"content-type": kind}))
    with pytest.raises(CallFailed) as caught:
        await send_over(trickle)
    failure = caught.value.failure
    assert trickle.taken <= most
    assert (failure.rpc_error, failure.rpc_code) == (b"", None)
    assert failure.body == trickle.reply.body[:512].decode()


async def test_one_that_is_too_large_leaves_its_code() -> None:
    failure = await failure_of(refusal(sized(MOST + 1)))
    assert (failure.rpc_error, failure.rpc_code) == (b"", -32022)
    assert len(failure.body) == 512


async def test_one_that_does_not_come_in_time_is_not_waited_for(autojump_clock: MockClock) -> None:
    reply = refusal(UNSUPPORTED, ending="hang")
    start = trio.current_time()
    failure = await failure_of(evolve(reply, body=reply.body[:-3]))
    assert failure.rpc_error == b""
    assert failure.body == reply.body[:-3].decode()
    assert trio.current_time() - start == pytest.approx(1.0)


async def test_one_that_breaks_off_leaves_the_status() -> None:
    failure = await failure_of(refusal(UNSUPPORTED), faults=FaultPlan.nth(1, Fault.cut(20)))
    assert (failure.status, failure.rpc_error) == (400, b"")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b'{"error":{"code":1}}',
        b'{"jsonrpc":"2.0","id":7,"result":{}}',
        b'{"jsonrpc":"2.0","id":7,"method":"x"}',
        b'[{"jsonrpc":"2.0","id":7,"error":{"code":1,"message":""}}]',
    ],
)
async def test_what_is_no_error_response_holds_none(body: bytes) -> None:
    failure = await failure_of(evolve(refusal(UNSUPPORTED), body=body))
    assert (failure.rpc_error, failure.rpc_code, failure.code) == (b"", None, "http_status")


@pytest.mark.parametrize("packed", ["gzip", "br"])
async def test_a_compressed_one_is_not_read(packed: str) -> None:
    reply = refusal(UNSUPPORTED)
    failure = await failure_of(evolve(reply, headers={**reply.headers, "content-encoding": packed}))
    assert (failure.rpc_error, failure.rpc_code, failure.body) == (b"", None, "")


async def test_a_redirect_holds_none() -> None:
    failure = await failure_of(refusal(UNSUPPORTED, status=302))
    assert (failure.code, failure.rpc_error) == ("redirect", b"")


async def test_a_get_that_is_refused_has_one_too() -> None:
    async with open_wire(refusal(UNSUPPORTED)) as wire:
        with pytest.raises(CallFailed) as caught:
            await wire.connection.listen(Position(), lambda: None)
        assert caught.value.failure.rpc_error == UNSUPPORTED


async def test_it_is_neither_redacted_nor_logged() -> None:
    secret = "static-secret"
    error = msgspec.json.encode({"code": -32022, "message": f"x {secret}", "data": "d" * 600})
    with capture_logs() as logs:
        failure = await failure_of(refusal(error), headers={"x-tenant": secret})
    assert failure.rpc_error == error
    assert secret not in failure.body
    for text in (repr(failure), failure.summary(), str(CallFailed(failure)), str(logs)):
        assert secret not in text
        assert "d" * 600 not in text


async def test_an_error_with_status_200_is_an_answer() -> None:
    for headers in ({"content-type": "application/json"}, STREAM):
        reply = evolve(refusal(UNSUPPORTED, status=200), headers=headers)
        if headers is STREAM:
            reply = evolve(reply, body=b"data: " + reply.body + b"\n")
        async with open_wire(reply) as wire:
            await wire.connection.send(CALL, method="tools/call", delivery=Delivery(), ident=b"7")
            assert [message.error for message in wire.taken] == [UNSUPPORTED]
