"""Going on with a request's event stream that ended before its response (MCP 2025-11-25)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import httpx
import msgspec
import pytest
import trio
from attrs import define, evolve, field
from structlog.testing import capture_logs
from trio.testing import MockClock
from unit.transports.streamable_kit import ANSWER, CALL, STREAM, Trickle, open_wire, send_over

from kars_router.errors import CallFailed, UserError
from kars_router.loss import classify, fate_of
from kars_router.model import Fate, Phase, Sent
from kars_router.testing import Fault, FaultPlan, Received, Reply
from kars_router.transports.base import Delivery, Position
from kars_router.wire import eras, jsonrpc

PROGRESS = {"jsonrpc": "2.0", "method": "notifications/progress", "params": {}}
REVISIONS = (None, *eras.HANDSHAKE_REVISIONS, "2024-11-05")


def event(message: Mapping[str, object] | None, ident: str = "", retry: int | None = None) -> bytes:
    """One event; None is for no data, as in a priming event."""
    lines = [f"id: {ident}".encode()] if ident else []
    lines += [f"retry: {retry}".encode()] if retry is not None else []
    lines += [b"data: " + (msgspec.json.encode(message) if message is not None else b"")]
    return b"\n".join(lines) + b"\n\n"


def stream(*events: bytes, **more: Any) -> Reply:
    return evolve(Reply(headers=STREAM, body=b"".join(events)), **more)


BROKEN = stream(event(None, "e1"), ending="cut")
ANSWERED = stream(event(ANSWER, "e9"))


@define
class Polled:
    """A server that answers a POST, and then GET after GET; the last reply stands for more."""

    replies: list[Reply]
    times: list[float] = field(factory=list)
    gets: list[Received] = field(factory=list)

    def __call__(self, received: Received) -> Reply:
        self.times.append(received.time)
        if received.http_method == "GET":
            self.gets.append(received)
            assert len(self.gets) < 50, "asked for again and again"
        return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]

    @property
    def ids(self) -> list[str | None]:
        return [received.headers.get("last-event-id") for received in self.gets]

    @property
    def pauses(self) -> list[float]:
        return [later - earlier for earlier, later in pairwise(self.times)]


def matching_gets(request: httpx.Request) -> bool:
    return request.method == "GET"


@pytest.mark.parametrize("revision", REVISIONS)
@pytest.mark.parametrize("ending", ["end", "cut"])
async def test_the_response_comes_on_a_get_after_exactly_the_pause_that_was_asked_for(
    autojump_clock: MockClock, ending: str, revision: str | None
) -> None:
    polled = Polled([stream(event(None, "e1", 500), ending=ending), ANSWERED])
    async with open_wire(polled, headers={"x-extra": "1"}) as wire:
        wire.connection.session_id, wire.connection.revision = "sid", revision
        await wire.send(headers={"Mcp-Name": "t"})
        assert (wire.answers, wire.causes) == ([b"{}"], [b"7"])
        assert polled.pauses == [pytest.approx(0.5)]
        headers = polled.gets[0].headers
        assert headers["last-event-id"] == "e1"
        assert headers["accept"] == "text/event-stream"
        assert headers["mcp-session-id"] == "sid"
        assert headers.get("mcp-protocol-version") == revision
        assert headers["x-extra"] == "1"
        assert "mcp-name" not in headers
        assert wire.delivery.sent is Sent.YES


async def test_the_pause_is_a_second_if_the_server_asked_for_none(
    autojump_clock: MockClock,
) -> None:
    polled = Polled([BROKEN, ANSWERED])
    async with open_wire(polled) as wire:
        await wire.send()
        assert polled.pauses == [pytest.approx(1.0)]


async def test_a_pause_of_nothing_is_not_taken_literally(autojump_clock: MockClock) -> None:
    polled = Polled([stream(event(None, "e1", 0)), stream(event(None, "e2")), ANSWERED])
    async with open_wire(polled) as wire:
        await wire.send()
        assert polled.pauses == [pytest.approx(0.05), pytest.approx(0.05)]


async def test_a_server_may_close_again_and_again(autojump_clock: MockClock) -> None:
    polls = [stream(event(PROGRESS, f"e{n}", 100 * n)) for n in range(1, 7)]
    polled = Polled([*polls, ANSWERED])
    async with open_wire(polled) as wire:
        await wire.send()
        assert wire.causes == [b"7"] * 7
        assert wire.answers == [None] * 6 + [b"{}"]
        assert polled.ids == ["e1", "e2", "e3", "e4", "e5", "e6"]
        assert polled.pauses == [pytest.approx(0.1 * n) for n in range(1, 7)]


async def test_requests_of_the_server_on_a_resumed_stream_belong_to_the_call(
    autojump_clock: MockClock,
) -> None:
    question = {"jsonrpc": "2.0", "id": 7, "method": "sampling/createMessage", "params": {}}
    polled = Polled([BROKEN, stream(event(question, "e2")), ANSWERED])
    async with open_wire(polled) as wire:
        await wire.send()
        assert [message.method for message in wire.taken] == ["sampling/createMessage", ""]
        assert wire.causes == [b"7", b"7"]
        assert polled.ids == ["e1", "e2"]


async def test_the_answer_to_something_else_is_not_the_response(
    autojump_clock: MockClock,
) -> None:
    other = {"jsonrpc": "2.0", "id": "7", "result": {}}
    polled = Polled([stream(event(other, "e1")), ANSWERED])
    async with open_wire(polled) as wire:
        await wire.send()
        assert [message.id for message in wire.taken] == [b'"7"', b"7"]


async def test_an_event_that_never_got_whole_is_asked_for_again(
    autojump_clock: MockClock,
) -> None:
    partly = event(ANSWER, "e2")[:-1]
    polled = Polled([stream(event(None, "e1"), partly, ending="cut"), ANSWERED])
    async with open_wire(polled) as wire:
        await wire.send()
        assert polled.ids == ["e1"]
        assert wire.answers == [b"{}"]


async def test_the_first_break_may_be_anywhere(autojump_clock: MockClock) -> None:
    first = stream(event(None, "e1", 10), event(PROGRESS, "e2"), event(ANSWER, "e3"))
    whole = len(first.body)
    for bytes_before in range(whole):
        polled = Polled([first, stream(event(PROGRESS, "e2"), event(ANSWER, "e3"))])
        faults = FaultPlan.nth(1, Fault.cut(bytes_before))
        async with open_wire(polled, faults=faults) as wire:
            primed = bytes_before >= len(event(None, "e1", 10))
            if primed:
                await wire.send()
                assert wire.answers[-1] == b"{}"
                assert set(wire.causes) == {b"7"}
            else:
                assert (await wire.refused()).failure.code == "broken_stream"
            assert len(polled.gets) == primed


NOTHING = stream()


@pytest.mark.parametrize("attempt", [NOTHING, evolve(NOTHING, ending="cut", body=b": here\n\n")])
@pytest.mark.parametrize("ending", ["end", "cut"])
async def test_three_attempts_in_a_row_that_bring_nothing_are_the_last(
    autojump_clock: MockClock, ending: str, attempt: Reply
) -> None:
    polled = Polled([stream(event(None, "e1"), ending=ending), attempt])
    async with open_wire(polled) as wire:
        if ending == "end":
            await wire.send()
        else:
            failure = (await wire.refused()).failure
            assert (failure.code, failure.phase) == ("broken_stream", Phase.STREAM)
            assert (failure.method, failure.status) == ("tools/call", 200)
            assert fate_of(failure) is Fate.UNKNOWN
        assert wire.taken == []
        assert polled.ids == ["e1"] * 3
        assert polled.pauses == [pytest.approx(1.0)] * 3


async def test_an_attempt_that_brings_something_starts_the_count_again(
    autojump_clock: MockClock,
) -> None:
    something = stream(event(None, "e2"))
    replies = [NOTHING, NOTHING, something, NOTHING, NOTHING, NOTHING, ANSWERED]
    polled = Polled([BROKEN, *replies])
    async with open_wire(polled) as wire:
        await wire.refused()
        assert polled.ids == ["e1", "e1", "e1", "e2", "e2", "e2"]


@pytest.mark.parametrize("fault", [Fault.connect(), Fault.send(20), Fault.drop()])
@pytest.mark.parametrize("times", [2, 3])
async def test_a_get_that_does_not_get_through_is_tried_again(
    autojump_clock: MockClock, fault: Fault, times: int
) -> None:
    polled = Polled([BROKEN, ANSWERED])
    faults = FaultPlan(dict.fromkeys(range(1, times + 1), fault), matching=matching_gets)
    start = trio.current_time()
    async with open_wire(polled, faults=faults) as wire:
        if fault.delivered and fault.stage == "response":
            polled.replies[1:] = [*[NOTHING] * times, ANSWERED]
        if times < 3:
            await wire.send()
            assert wire.answers == [b"{}"]
        else:
            failure = (await wire.refused()).failure
            assert (failure.code, failure.phase) == ("broken_stream", Phase.STREAM)
        # What became of a GET says nothing about how much of the call was sent.
        assert wire.delivery.sent is Sent.YES
        assert trio.current_time() - start == pytest.approx(3.0)


REFUSALS = [
    *(Reply.text(status, "no") for status in (400, 401, 403, 405, 406, 409, 410, 500, 503)),
    Reply.text(307, headers={"location": "http://elsewhere.test/"}),
    Reply.text(202),
    Reply.json(ANSWER),
    evolve(ANSWERED, headers={**STREAM, "content-encoding": "gzip"}),
]


@pytest.mark.parametrize("refusal", REFUSALS)
@pytest.mark.parametrize("ending", ["end", "cut"])
async def test_a_get_that_is_refused_is_the_last(
    autojump_clock: MockClock, ending: str, refusal: Reply
) -> None:
    polled = Polled([stream(event(None, "e1"), ending=ending), refusal])
    async with open_wire(polled) as wire:
        wire.connection.session_id = "sid"
        if ending == "end":
            await wire.send()
        else:
            failure = (await wire.refused()).failure
            assert (failure.code, failure.phase) == ("broken_stream", Phase.STREAM)
        assert wire.taken == []
        assert wire.delivery.sent is Sent.YES
        assert len(polled.gets) == 1


async def test_a_get_that_is_not_found_says_that_the_session_is_gone(
    autojump_clock: MockClock,
) -> None:
    polled = Polled([stream(event(None, "e1")), Reply.text(404, "Session not found")])
    async with open_wire(polled) as wire:
        wire.connection.session_id = "sid"
        failure = (await wire.refused()).failure
        assert (failure.status, failure.phase) == (404, Phase.LISTEN)
        assert (failure.method, failure.sent) == ("tools/call", Sent.YES)
        verdict = classify(failure)
        assert verdict is not None
        assert verdict.lost
        # The call itself had been accepted: made again in a new session, it could run twice.
        assert fate_of(failure) is Fate.UNKNOWN


async def test_a_get_that_is_not_found_where_there_is_no_session_says_nothing(
    autojump_clock: MockClock,
) -> None:
    polled = Polled([BROKEN, Reply.text(404)])
    async with open_wire(polled) as wire:
        assert (await wire.refused()).failure.code == "broken_stream"
        assert len(polled.gets) == 1


@pytest.mark.parametrize(
    "events",
    [
        event(PROGRESS),
        event(None),
        event(None, "e1") + b"id\ndata:\n\n",  # taken back
        event(None, "e\x01"),
        b"",
    ],
)
@pytest.mark.parametrize("ending", ["end", "cut"])
async def test_without_an_event_id_nothing_is_asked_for(
    autojump_clock: MockClock, ending: str, events: bytes
) -> None:
    polled = Polled([stream(events, ending=ending), ANSWERED])
    async with open_wire(polled) as wire:
        if ending == "end":
            await wire.send()
        else:
            assert (await wire.refused()).failure.code == "broken_stream"
        assert polled.gets == []


async def test_nothing_is_asked_for_after_the_response(autojump_clock: MockClock) -> None:
    for ending in ("end", "cut"):
        polled = Polled([evolve(ANSWERED, ending=ending)])
        async with open_wire(polled) as wire:
            if ending == "end":
                await wire.send()
            else:
                await wire.refused()
            assert wire.answers == [b"{}"]
            assert polled.gets == []


async def test_a_resumed_stream_that_breaks_after_the_response_is_no_failure(
    autojump_clock: MockClock,
) -> None:
    polled = Polled([BROKEN, evolve(ANSWERED, ending="cut")])
    async with open_wire(polled) as wire:
        with capture_logs() as logs:
            await wire.send()
        assert logs == []
        assert wire.answers == [b"{}"]
        assert len(polled.gets) == 1


async def test_a_resumed_stream_that_stays_open_is_left_with_the_response(
    autojump_clock: MockClock,
) -> None:
    polled = Polled([BROKEN, evolve(ANSWERED, ending="hang")])
    async with open_wire(polled) as wire:
        with trio.fail_after(1.5):
            await wire.send()
        assert wire.answers == [b"{}"]
        assert wire.bridge.open_responses == 0


async def test_nothing_is_asked_for_where_no_answer_is_expected(
    autojump_clock: MockClock,
) -> None:
    polled = Polled([stream(event(None, "e1"))])
    async with open_wire(polled) as wire:
        await wire.send(jsonrpc.result(b"0", b"{}"), "", b"")
        await wire.send(jsonrpc.notification("notifications/initialized"), "x", b"")
        assert polled.gets == []


@pytest.mark.parametrize("revision", ["2026-07-28", "2099-01-01"])
async def test_nothing_is_asked_for_in_the_stateless_era(
    autojump_clock: MockClock, revision: str
) -> None:
    polled = Polled([BROKEN, ANSWERED])
    async with open_wire(polled) as wire:
        wire.connection.revision = revision
        await wire.refused()
        assert polled.gets == []


LARGE = stream(event(None, "e2"), event({**ANSWER, "x": "y" * 5000}, "e3"))


async def test_an_event_that_is_too_large_is_not_asked_for_again(
    autojump_clock: MockClock,
) -> None:
    polled = Polled([stream(event(None, "e1")), LARGE])
    async with open_wire(polled, event_limit=1000) as wire:
        failure = (await wire.refused()).failure
        assert "exceeds 1000 bytes" in failure.detail
        assert (failure.phase, failure.status) == (Phase.STREAM, 200)
        assert len(polled.gets) == 1
    trickle = Trickle(LARGE)
    with pytest.raises(CallFailed, match="exceeds 1000 bytes"):
        await send_over(trickle, event_limit=1000)
    assert len(trickle.requests) == 1


async def test_the_pause_begins_when_the_stream_breaks_however_long_it_takes_to_close(
    autojump_clock: MockClock,
) -> None:
    trickle = Trickle(stream(event(None, "e1", 900)), closing=0.7, breaks=True)
    with trio.move_on_after(2.0):
        await send_over(trickle)
    start, *gets = trickle.times
    assert [time - start for time in gets] == [pytest.approx(0.9), pytest.approx(1.8)]


@pytest.mark.parametrize("seconds", [0.5, 2.0])
async def test_cancellation_ends_a_resumption_wherever_it_is(
    autojump_clock: MockClock, seconds: float
) -> None:
    polled = Polled([BROKEN, stream(event(PROGRESS, "e2"), ending="hang")])
    async with open_wire(polled) as wire:
        start = trio.current_time()
        with trio.move_on_after(seconds) as scope:
            await wire.send()
        assert scope.cancelled_caught
        assert trio.current_time() - start == pytest.approx(seconds)
        assert len(polled.gets) == (seconds > 1)
        assert wire.bridge.open_responses == 0


async def test_the_sessions_own_stream_is_another(autojump_clock: MockClock) -> None:
    nobody = {"jsonrpc": "2.0", "id": None, "error": {"code": 1, "message": ""}}
    own = stream(event(PROGRESS, "e0"), event(nobody, "own"), ending="hang", seconds=0.5)
    polled = Polled([BROKEN, ANSWERED])
    opened: list[bool] = []
    position = Position()

    def script(received: Received) -> Reply:
        is_own = received.http_method == "GET" and "last-event-id" not in received.headers
        return own if is_own else polled(received)

    async def listen() -> None:
        await wire.connection.listen(position, lambda: opened.append(True))

    async with open_wire(script) as wire, trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        start = trio.current_time()
        await trio.sleep(1)
        await wire.send()
        assert wire.causes == [b"", b"", b"7"]
        assert wire.bridge.open_responses == 1
        assert (position.last_event_id, opened) == ("own", [True])
        assert position.heard - start == pytest.approx(0.5)
        nursery.cancel_scope.cancel()


async def test_streams_of_several_calls_are_resumed_each_on_its_own(
    autojump_clock: MockClock,
) -> None:
    def script(received: Received) -> Reply:
        if received.http_method == "POST":
            ident = received.id
            return stream(event(None, f"call-{ident}", 100 * ident))
        ident = int(received.headers["last-event-id"].removeprefix("call-"))
        return stream(event({**ANSWER, "id": ident}))

    async with open_wire(script) as wire:
        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            for number in (3, 1, 2):
                ident = b"%d" % number
                call = jsonrpc.request(ident, "tools/call")
                nursery.start_soon(wire.send, call, "tools/call", ident)
        assert [message.id for message in wire.taken] == [b"1", b"2", b"3"]
        assert wire.causes == [b"1", b"2", b"3"]
        assert [time - start for time in wire.times] == [pytest.approx(n / 10) for n in (1, 2, 3)]


class Tokens:
    """Credentials that a refresh changes, or fails to."""

    def __init__(self, *, broken: bool) -> None:
        self.broken = broken
        self.refreshed = 0

    async def headers(self, *, refresh: bool) -> Mapping[str, str]:
        await trio.lowlevel.checkpoint()
        self.refreshed += refresh
        if refresh and self.broken:
            raise UserError("no token to be had")
        return {"authorization": f"Bearer {self.refreshed}"}


def expiring(polled: Polled) -> Callable[[Received], Reply]:
    """Takes the first token for the POST only."""

    def script(received: Received) -> Reply:
        old = received.headers["authorization"] == "Bearer 0"
        refused = old and received.http_method == "GET"
        return Reply.text(401) if refused else polled(received)

    return script


async def test_a_token_that_expired_during_the_call_is_refreshed(
    autojump_clock: MockClock,
) -> None:
    tokens = Tokens(broken=False)
    async with open_wire(expiring(Polled([BROKEN, ANSWERED])), credentials=tokens) as wire:
        await wire.send()
        assert (wire.answers, tokens.refreshed) == ([b"{}"], 1)


async def test_a_token_that_cannot_be_refreshed_does_not_unsend_the_call(
    autojump_clock: MockClock,
) -> None:
    tokens = Tokens(broken=True)
    async with open_wire(expiring(Polled([BROKEN, ANSWERED])), credentials=tokens) as wire:
        failure = (await wire.refused()).failure
        assert (failure.code, failure.sent) == ("broken_stream", Sent.YES)
        assert tokens.refreshed == 3


async def test_what_is_heard_on_a_resumed_stream_was_heard(autojump_clock: MockClock) -> None:
    opened: list[float] = []
    polled = Polled([BROKEN, stream(event(None, "e2"), seconds=4.0), ANSWERED])
    async with open_wire(polled) as wire:
        start = trio.current_time()
        wire.delivery = Delivery(on_open=lambda: opened.append(trio.current_time() - start))
        await wire.send()
        assert opened == [0.0]
        assert wire.delivery.heard - start == pytest.approx(6.0)


async def test_the_first_stream_may_be_that_of_initialize(autojump_clock: MockClock) -> None:
    first = evolve(stream(event(None, "e1")), headers={**STREAM, "mcp-session-id": "sid"})
    polled = Polled([first, ANSWERED])
    async with open_wire(polled) as wire:
        await wire.send(CALL, "initialize")
        assert wire.answers == [b"{}"]
        assert polled.gets[0].session == "sid"


async def test_the_failure_of_a_call_is_not_that_of_its_get(autojump_clock: MockClock) -> None:
    faults = FaultPlan(always_from=1, fault=Fault.connect(), matching=matching_gets)
    async with open_wire(Polled([BROKEN, ANSWERED]), faults=faults) as wire:
        with pytest.raises(CallFailed) as caught:
            await wire.send()
        assert "injected fault" not in caught.value.failure.detail
