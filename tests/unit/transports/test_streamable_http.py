from __future__ import annotations

import gzip
from collections.abc import Callable, Mapping

import httpx
import msgspec
import pytest
import trio
from attrs import evolve
from http_kit import ok, scripted
from structlog.testing import capture_logs
from trio.testing import MockClock
from unit.transports.streamable_kit import ANSWER, CALL, STREAM, URL, open_wire
from unit.transports.test_http_sockets import listening

from kars_router.errors import CallFailed, UserError
from kars_router.model import Phase, Sent
from kars_router.testing import Fault, FaultPlan, Received, Reply
from kars_router.transports.base import Delivery, Position
from kars_router.transports.client import new_client
from kars_router.transports.http import TrioTransport
from kars_router.transports.streamable_http import StreamableHttp
from kars_router.wire.jsonrpc import Message


@pytest.mark.parametrize("reply", [Reply.json(ANSWER), Reply.events(ANSWER), Reply.json([ANSWER])])
async def test_an_answer_in_either_type_is_delivered(reply: Reply) -> None:
    async with open_wire(reply) as wire:
        await wire.send()
        assert wire.answers == [b"{}"]
        assert wire.delivery.sent is Sent.YES


async def test_the_headers_of_a_post() -> None:
    async with open_wire(Reply.json(ANSWER), headers={"x-extra": "1"}) as wire:
        wire.connection.session_id, wire.connection.revision = "sid", "2025-06-18"
        await wire.send()
        headers = wire.seen[0].headers
        assert headers["accept"] == "application/json, text/event-stream"
        assert headers["content-type"] == "application/json"
        assert headers["mcp-session-id"] == "sid"
        assert headers["mcp-protocol-version"] == "2025-06-18"
        assert headers["host"] == "upstream.test"
        assert headers["x-extra"] == "1"
        assert headers["accept-encoding"] == "identity"
        assert not {"authorization", "cookie", "origin"} & set(headers)
        assert wire.seen[0].body == CALL


async def test_cookies_of_the_server_are_kept_in_the_session_alone() -> None:
    reply = Reply.json(ANSWER, headers={"set-cookie": "node=1; Path=/"})
    async with open_wire(reply) as wire:
        await wire.send()
        await wire.send()
        other = StreamableHttp(new_client(wire.bridge), URL, server="s", deliver=wire.take)
        await other.send(CALL, method="tools/call", delivery=Delivery())
        assert [r.headers.get("cookie") for r in wire.seen] == [None, "node=1", None]


@pytest.mark.parametrize("status", [307, 308])
@pytest.mark.parametrize(
    "location", ["/other", "http://upstream.test/other", "//upstream.test:80/other"]
)
async def test_a_redirect_within_the_origin_is_followed(status: int, location: str) -> None:
    def script(received: Received) -> Reply:
        if received.path == "/mcp":
            return Reply.text(status, headers={"location": location})
        return Reply.json(ANSWER)

    async with open_wire(script) as wire:
        await wire.send()
        assert wire.answers == [b"{}"]
        assert [(r.http_method, r.path, r.body) for r in wire.seen] == [
            ("POST", "/mcp", CALL),
            ("POST", "/other", CALL),
        ]


@pytest.mark.parametrize(
    ("status", "location"),
    [
        (301, "/other"),
        (302, "/other"),
        (303, "/other"),
        *(
            (307, location)
            for location in (
                "http://elsewhere.test/mcp",
                "https://upstream.test/mcp",
                "http://upstream.test:81/mcp",
                "http://user@upstream.test/mcp",
                "http://upstream.test.evil/mcp",
                "//elsewhere.test/mcp",
                "http://upstream.test:99999/mcp",
                "http://upstream.test:0/mcp",
                "file:///etc/passwd",
            )
        ),
    ],
)
async def test_any_other_redirect_is_refused(status: int, location: str) -> None:
    reply = Reply.text(status, headers={"location": location})
    async with open_wire(reply) as wire:
        failure = (await wire.refused()).failure
        assert (failure.code, failure.status) == ("redirect", status)
        assert len(wire.seen) == 1


@pytest.mark.parametrize("location", ["http://[::1/mcp", "\x7f"])
async def test_a_redirect_to_nowhere_is_a_failure(location: str) -> None:
    async with open_wire(Reply.text(307, headers={"location": location})) as wire:
        assert (await wire.refused()).failure.sent is Sent.YES
        assert len(wire.seen) == 1


@pytest.mark.parametrize("headers", [{"location": "/mcp"}, {}])
async def test_a_redirect_in_a_circle_ends(headers: dict[str, str]) -> None:
    async with open_wire(Reply.text(308, headers=headers)) as wire:
        assert (await wire.refused()).failure.code == "redirect"
        assert len(wire.seen) == 4


class Keys:
    """Credentials that are right only after so many refreshes."""

    def __init__(self) -> None:
        self.refreshed: list[bool] = []

    async def headers(self, *, refresh: bool) -> Mapping[str, str]:
        await trio.lowlevel.checkpoint()
        self.refreshed.append(refresh)
        return {"authorization": f"Bearer {sum(self.refreshed)}"}


def guarded(needed: str, status: int = 401) -> Callable[[Received], Reply]:
    def script(received: Received) -> Reply:
        right = received.headers.get("authorization") == f"Bearer {needed}"
        return Reply.json(ANSWER) if right else Reply.text(status, "no")

    return script


@pytest.mark.parametrize("status", [401, 403])
async def test_credentials_are_refreshed_once_when_they_are_refused(status: int) -> None:
    keys = Keys()
    async with open_wire(guarded("1", status), credentials=keys) as wire:
        await wire.send()
        await wire.send()
        assert keys.refreshed == [False, True]
        assert len(wire.seen) == 3


@pytest.mark.parametrize("status", [401, 403])
async def test_credentials_that_stay_refused_are_reported(status: int) -> None:
    keys = Keys()
    async with open_wire(guarded("9", status), credentials=keys) as wire:
        assert (await wire.refused()).failure.status == status
        assert keys.refreshed == [False, True]
        assert len(wire.seen) == 2
        with pytest.raises(CallFailed) as caught:
            await wire.connection.listen(Position(), lambda: None)
        assert (caught.value.failure.status, caught.value.failure.phase) == (status, Phase.LISTEN)


async def test_credentials_that_cannot_be_had_fail_the_call_unsent() -> None:
    class NoKeys:
        async def headers(self, *, refresh: bool) -> Mapping[str, str]:
            await trio.lowlevel.checkpoint()
            raise UserError("servers.s: the variable X holds no usable bearer token")

    async with open_wire(Reply.json(ANSWER), credentials=NoKeys()) as wire:
        failure = (await wire.refused()).failure
        assert (failure.code, failure.sent) == ("credentials", Sent.NO)
        assert wire.seen == []


async def test_a_refusal_carries_the_start_of_its_body() -> None:
    async with open_wire(Reply.text(400, "x" * 100_000)) as wire:
        wire.connection.session_id = "sid"
        failure = (await wire.refused()).failure
        assert (failure.status, failure.body) == (400, "x" * 512)
        assert failure.had_session
        assert failure.sent is Sent.YES
    async with open_wire(
        Reply.json({"jsonrpc": "2.0", "id": None, "error": {"code": -32001, "message": "m"}}, 404)
    ) as wire:
        assert (await wire.refused()).failure.rpc_code == -32001


async def test_a_refusal_whose_body_never_ends_is_not_waited_for(
    autojump_clock: MockClock,
) -> None:
    async with open_wire(Reply.text(404, "Session", ending="hang")) as wire:
        start = trio.current_time()
        assert (await wire.refused()).failure.body == "Session"
        assert trio.current_time() - start <= 1


async def test_a_json_answer_beyond_the_limit_is_a_failure() -> None:
    async with open_wire(Reply.json({**ANSWER, "x": "y" * 5000}), body_limit=1000) as wire:
        assert (await wire.refused()).failure.code == "too_large"
        assert wire.taken == []


@pytest.mark.parametrize("size", [999, 1000, 1001])
async def test_a_json_answer_that_came_with_its_head_is_held_to_the_limit(size: int) -> None:
    body = msgspec.json.encode(ANSWER).ljust(size)
    taken: list[Message] = []
    async with listening(scripted(ok(body, headers=b"Content-Type: application/json\r\n"))) as port:
        url = f"http://127.0.0.1:{port}/mcp"
        async with TrioTransport(url) as transport:
            connection = StreamableHttp(
                new_client(transport),
                url,
                server="s",
                deliver=lambda message, _: taken.append(message),
                body_limit=1000,
            )
            sending = connection.send(CALL, method="tools/call", delivery=Delivery(), ident=b"7")
            if size > 1000:
                with pytest.raises(CallFailed) as caught:
                    await sending
                assert caught.value.failure.code == "too_large"
            else:
                await sending
    assert len(taken) == (size <= 1000)


async def test_an_event_beyond_the_limit_is_a_failure() -> None:
    async with open_wire(Reply.events({**ANSWER, "x": "y" * 5000}), event_limit=1000) as wire:
        failure = (await wire.refused()).failure
        assert (failure.code, failure.phase) == ("broken_stream", Phase.STREAM)


async def test_a_bad_event_is_skipped_and_the_next_one_taken() -> None:
    body = b'data: {\n\nevent: other\ndata: {"x":1}\n\ndata:\n\n' + Reply.events(ANSWER).body
    async with open_wire(Reply(headers=STREAM, body=body)) as wire:
        await wire.send()
        assert wire.answers == [b"{}"]


@pytest.mark.parametrize("status", [202, 204, 200])
async def test_no_body_is_no_answer_and_no_failure(status: int) -> None:
    async with open_wire(Reply.text(status)) as wire:
        await wire.send()
        assert wire.taken == []


@pytest.mark.parametrize(
    "reply",
    [Reply.text(200, "<html>"), Reply(headers={"content-type": "application/json"}, body=b"{")],
)
async def test_an_answer_that_cannot_be_read(reply: Reply) -> None:
    async with open_wire(reply) as wire:
        failure = (await wire.refused()).failure
        assert (failure.code, failure.sent) == ("protocol", Sent.YES)


@pytest.mark.parametrize(
    ("fault", "phase", "sent", "code"),
    [
        (Fault.connect(), Phase.CONNECT, Sent.NO, "connect"),
        (Fault.connect(httpx.ConnectTimeout), Phase.CONNECT, Sent.NO, "connect"),
        (Fault.connect(httpx.PoolTimeout), Phase.CONNECT, Sent.NO, "busy"),
        (Fault.send(0), Phase.CONNECT, Sent.NO, "transport"),
        (Fault.send(20), Phase.SEND, Sent.PARTLY, "transport"),
        (Fault.drop(), Phase.AWAIT, Sent.YES, "transport"),
        (Fault.drop(error=httpx.RemoteProtocolError), Phase.AWAIT, Sent.YES, "transport"),
        (Fault.cut(1), Phase.STREAM, Sent.YES, "broken_stream"),
    ],
)
async def test_how_far_a_broken_exchange_had_got(
    fault: Fault, phase: Phase, sent: Sent, code: str
) -> None:
    async with open_wire(Reply.json(ANSWER), faults=FaultPlan.nth(1, fault)) as wire:
        failure = (await wire.refused()).failure
        assert (failure.phase, failure.sent, failure.code) == (phase, sent, code)


async def test_cancellation_ends_the_exchange_wherever_it_is(autojump_clock: MockClock) -> None:
    for reply in (Reply.hang(), Reply.events(ending="hang"), Reply.json(ANSWER, ending="hang")):
        async with open_wire(reply) as wire:
            with trio.move_on_after(1):
                await wire.send()
            assert wire.delivery.sent is Sent.YES
            assert wire.bridge.open_responses == 0


async def test_only_the_initialize_answer_sets_the_session() -> None:
    reply = Reply.json(ANSWER, headers={"mcp-session-id": "sid"})
    async with open_wire(reply) as wire:
        await wire.send()
        assert wire.connection.session_id is None
        await wire.send(CALL, "initialize")
        assert wire.connection.session_id == "sid"


async def test_a_session_is_deleted_by_its_id_and_only_if_it_has_one() -> None:
    async with open_wire(Reply.text(405)) as wire:
        await wire.connection.close()
        assert wire.seen == []
        wire.connection.session_id = "sid"
        await wire.connection.close()
        assert [(r.http_method, r.session) for r in wire.seen] == [("DELETE", "sid")]


async def test_a_stream_keeps_its_position_up_to_date() -> None:
    body = b"id: 1\nretry: 2500\ndata:\n\nid: 2\n" + Reply.events(ANSWER).body.split(b"\n", 1)[1]
    opened: list[bool] = []
    position = Position()
    async with open_wire(Reply(headers=STREAM, body=body)) as wire:
        await wire.connection.listen(position, lambda: opened.append(True))
        assert (position.last_event_id, position.retry, opened) == ("2", 2.5, [True])
        await wire.connection.listen(position, lambda: opened.append(True))
        assert [r.headers.get("last-event-id") for r in wire.seen] == [None, "2"]
        assert wire.answers == [b"{}", b"{}"]


async def test_a_get_that_is_no_stream_is_a_failure() -> None:
    async with open_wire(Reply.json({})) as wire:
        with pytest.raises(CallFailed) as caught:
            await wire.connection.listen(Position(), lambda: pytest.fail("opened"))
        assert caught.value.failure.code == "protocol"


PACKED = {"content-encoding": "gzip"}


@pytest.mark.parametrize("encoding", ["gzip", "gzip, gzip", "identity, br", "unknown"])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_compressed_answer_is_refused_unread(encoding: str, stream: bool) -> None:
    reply = Reply.events(ANSWER) if stream else Reply.json(ANSWER)
    reply = evolve(reply, headers={**reply.headers, "content-encoding": encoding})
    async with open_wire(reply) as wire:
        failure = (await wire.refused()).failure
        assert (failure.code, failure.phase, failure.sent) == ("protocol", Phase.STREAM, Sent.YES)
        assert failure.body == ""
        with pytest.raises(CallFailed) as caught:
            await wire.connection.listen(Position(), lambda: pytest.fail("opened"))
        assert (caught.value.failure.code, caught.value.failure.phase) == ("protocol", Phase.LISTEN)
        assert wire.taken == []


@pytest.mark.parametrize("encoding", ["identity", "Identity , identity", ""])
async def test_an_answer_that_says_it_is_not_compressed_is_taken(encoding: str) -> None:
    async with open_wire(Reply.json(ANSWER, headers={"content-encoding": encoding})) as wire:
        await wire.send()
        assert wire.answers == [b"{}"]


@pytest.mark.parametrize(
    "body",
    [gzip.compress(b"Session not found", mtime=0), b"nothing to unpack"],
    ids=["packed", "not packed"],
)
async def test_a_compressed_refusal_is_judged_by_its_status_and_never_unpacked(
    body: bytes,
) -> None:
    async with open_wire(Reply(status=404, headers=PACKED, body=body)) as wire:
        failure = (await wire.refused()).failure
        assert (failure.code, failure.status, failure.body) == ("http_status", 404, "")


async def test_a_compressed_acknowledgement_of_nothing_is_one() -> None:
    async with open_wire(Reply.text(202, headers=PACKED)) as wire:
        await wire.send()
        assert wire.taken == []


class Token:
    """Credentials with a token that changes when it is refreshed."""

    def __init__(self) -> None:
        self.token = "first/Token-12345"

    async def headers(self, *, refresh: bool) -> Mapping[str, str]:
        await trio.lowlevel.checkpoint()
        if refresh:
            self.token = "second/Token-6789"
        return {"authorization": f"Bearer {self.token}", "x-api-key": "another-secret"}


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        ("bad token Bearer second/Token-6789!", "bad token ***!"),
        ("second/Token-6789 and first/Token-12345", "*** and ***"),
        ('{"t":"second\\/Token-6789"}', '{"t":"***"}'),
        ("SECOND/TOKEN-6789", "***"),
        ("key another-secret", "key ***"),
        ("tenant static-secret", "tenant ***"),
        ("no session session-1234", "no session ***"),
        ("x" * 500 + "second/Token-6789", "x" * 500 + "***"),
        ("cut short: second/Tok", "cut short: ***"),
        ("plain words", "plain words"),
    ],
)
async def test_a_refusal_that_repeats_a_secret_does_not_show_it(body: str, shown: str) -> None:
    async with open_wire(
        Reply.text(401, body), credentials=Token(), headers={"x-tenant": "static-secret"}
    ) as wire:
        wire.connection.session_id = "session-1234"
        assert (await wire.refused()).failure.body == shown


async def test_a_detail_that_repeats_a_secret_does_not_show_it() -> None:
    reply = Reply(headers={"content-type": "text/first/Token-12345"}, body=b"first/Token-12345")
    async with open_wire(reply, credentials=Token()) as wire:
        failure = (await wire.refused()).failure
        assert (failure.detail, failure.body) == ("an answer of type text/***", "***")


async def test_short_words_are_not_taken_for_secrets() -> None:
    async with open_wire(Reply.text(401, "1 session"), credentials=Keys()) as wire:
        wire.connection.session_id = "s"
        assert (await wire.refused()).failure.body == "1 session"


async def test_calls_that_are_refused_together_refresh_the_credentials_once() -> None:
    keys = Keys()
    async with open_wire(guarded("1"), credentials=keys) as wire, trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(wire.send)
    assert keys.refreshed == [False, True]
    assert wire.answers == [b"{}"] * 20
    assert len(wire.seen) == 40


async def test_a_call_whose_credentials_were_refreshed_meanwhile_is_only_sent_again(
    autojump_clock: MockClock,
) -> None:
    keys = Keys()

    def script(received: Received) -> Reply:
        if received.headers["authorization"] == "Bearer 1":
            return Reply.json(ANSWER)
        return Reply.text(401, seconds=5 if received.body == b"{}" else 0)

    async with open_wire(script, credentials=keys) as wire, trio.open_nursery() as nursery:
        nursery.start_soon(wire.send, b"{}")
        nursery.start_soon(wire.send)
    assert keys.refreshed == [False, True]
    assert len(wire.answers) == 2


async def test_a_refresh_that_fails_fails_everyone_who_waited_for_it(
    autojump_clock: MockClock,
) -> None:
    class Broken(Keys):
        async def headers(self, *, refresh: bool) -> Mapping[str, str]:
            headers = await super().headers(refresh=refresh)
            if refresh:
                await trio.sleep(10)
                raise UserError("no token to be had")
            return headers

    keys = Broken()
    details: list[tuple[str, str]] = []

    async def call() -> None:
        with pytest.raises(CallFailed) as caught:
            await wire.send()
        details.append((caught.value.failure.code, caught.value.failure.detail))

    async with open_wire(guarded("9"), credentials=keys) as wire:
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(call)
        assert details == [("credentials", "no token to be had")] * 5
        assert keys.refreshed == [False, True]
        await call()
        assert keys.refreshed == [False, True, True]


@pytest.mark.parametrize("count", [0, 1, 1000])
async def test_bad_events_are_counted_not_logged_one_by_one(count: int) -> None:
    body = b"data: {bad\n\n" * count + Reply.events(ANSWER).body
    async with open_wire(Reply(headers=STREAM, body=body)) as wire:
        for _ in range(2):
            with capture_logs() as logs:
                await wire.send()
            expected = [("malformed_message", None), ("malformed_messages", count)]
            assert [(line["event"], line.get("count")) for line in logs] == expected[
                : min(count, 2)
            ]


async def test_bad_events_are_counted_in_a_stream_that_breaks(autojump_clock: MockClock) -> None:
    async with open_wire(Reply(headers=STREAM, body=b"data: [\n\n" * 3, ending="hang")) as wire:
        with capture_logs() as logs, trio.move_on_after(1):
            await wire.send()
        assert [line.get("count") for line in logs] == [None, 3]


async def test_an_answer_with_half_a_character_is_not_lost() -> None:
    body = b'{"jsonrpc":"2.0","id":7,"result":{"text":"cut \\ud83d"}}'
    kind = {"content-type": "application/json"}
    async with open_wire(Reply(headers=kind, body=body)) as wire:
        await wire.send()
        assert wire.answers == [b'{"text":"cut \\ufffd"}']
