from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock
from unit.session.stateless_kit import Rig, meta, open_rig

from kars_router.session.eras import OTHER_REVISION
from kars_router.session.listener import ListenState
from kars_router.session.stateless import StatelessSession
from kars_router.testing import Reply
from kars_router.testing.stateless_server import StatelessServer

LISTEN = "subscriptions/listen"
ALL = {"toolsListChanged": True, "promptsListChanged": True, "resourcesListChanged": True}
TOOLS: tuple[str, Any] = ("notifications/tools/list_changed", {})
EVERYTHING = [
    (f"notifications/{name}/list_changed", None) for name in ("prompts", "resources", "tools")
]
CHANGING = "test://changing"


def updated(uri: str = CHANGING) -> tuple[str, Any]:
    return ("notifications/resources/updated", {"uri": uri})


def asked(rig: Rig) -> list[Any]:
    return [received.params["notifications"] for received in rig.listens]


def rpc_error(status: int, code: int) -> Reply:
    error = {"jsonrpc": "2.0", "id": None, "error": {"code": code, "message": "no"}}
    return Reply.json(error, status=status)


# What is asked for


async def test_all_that_the_server_can_report_is_asked_for(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        (received,) = rig.listens
        assert asked(rig) == [ALL]
        assert received.headers["mcp-method"] == LISTEN
        assert meta(received, "protocolVersion") == "2026-07-28"
        assert meta(received, "clientCapabilities") == {}
        assert rig.state() is ListenState.OPEN
        assert rig.session.heard
        assert rig.states == [ListenState.OPENING, ListenState.OPEN]
        assert rig.notices == []


async def test_what_it_cannot_report_is_not(autojump_clock: MockClock) -> None:
    capabilities = {"tools": {"listChanged": False}, "prompts": {"listChanged": True}}
    async with open_rig(capabilities=capabilities) as rig:
        assert asked(rig) == [{"promptsListChanged": True}]


async def test_where_nothing_can_be_reported_there_is_no_stream_until_there_is(
    autojump_clock: MockClock,
) -> None:
    async with open_rig(capabilities={"tools": {}, "resources": {}}) as rig:
        assert rig.state() is ListenState.NONE
        assert not rig.session.heard
        await trio.sleep(1000)
        assert rig.listens == []
        assert await rig.session.subscribe(CHANGING, time_limit=5) is None
        assert asked(rig) == [{"resourceSubscriptions": [CHANGING]}]
        assert rig.state() is ListenState.OPEN
        rig.session.unsubscribe(CHANGING)
        await trio.sleep(10)
        assert rig.state() is ListenState.NONE
        assert rig.server.listens == []


async def test_what_the_server_says_is_told_without_its_mark(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        rig.server.listens[0].notify("notifications/prompts/list_changed", {"x": 1})
        rig.server.notify_changed("tools")
        await trio.sleep(1)
        assert rig.notices == [("notifications/prompts/list_changed", {"x": 1}), TOOLS]


async def test_what_was_not_asked_for_is_not_told(autojump_clock: MockClock) -> None:
    async with open_rig(capabilities={"tools": {"listChanged": True}}) as rig:
        (listen,) = rig.server.listens
        listen.notify("notifications/prompts/list_changed")
        listen.notify("notifications/resources/updated", {"uri": CHANGING})
        listen.notify("notifications/message", {"level": "error", "data": "x"})
        listen.notify("notifications/tools/list_changed")
        await trio.sleep(1)
        assert rig.notices == [TOOLS]


async def test_nothing_is_told_before_the_acknowledgement(autojump_clock: MockClock) -> None:
    early = {"jsonrpc": "2.0", "method": "notifications/tools/list_changed"}
    reply = Reply.events(early, ending="hang")
    async with open_rig(prepare=lambda s: s.reply_next(reply, method=LISTEN)) as rig:
        assert rig.notices == []
        assert len(rig.listens) == 2


# Resources


async def test_a_resource_is_watched_until_it_is_not(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        assert await rig.session.subscribe(CHANGING, time_limit=5) is None
        rig.server.change_resource(CHANGING, "1")
        rig.server.change_resource("test://static", "1")
        await trio.sleep(1)
        assert rig.notices == [updated()]
        rig.session.unsubscribe(CHANGING)
        await trio.sleep(1)
        rig.server.change_resource(CHANGING, "2")
        rig.server.notify_changed("tools")
        await trio.sleep(1)
        assert rig.notices == [updated(), TOOLS]
        assert asked(rig) == [ALL, {**ALL, "resourceSubscriptions": [CHANGING]}, ALL]
        assert len(rig.server.listens) == 1


async def test_several_are_one_union(autojump_clock: MockClock) -> None:
    uris = [f"test://item/{n}" for n in range(5)]
    async with open_rig() as rig:
        found: list[Any] = []

        async def subscribe(uri: str) -> None:
            found.append(await rig.session.subscribe(uri, time_limit=30))

        async with trio.open_nursery() as nursery:
            for uri in uris:
                nursery.start_soon(subscribe, uri)
        assert found == [None] * 5
        assert asked(rig)[-1]["resourceSubscriptions"] == uris
        assert len(rig.listens) <= 3
        await trio.sleep(1)
        assert len(rig.server.listens) == 1


async def test_a_new_session_goes_on_with_what_was_watched(autojump_clock: MockClock) -> None:
    async with open_rig(listening=False) as rig:
        rig.session.restore(frozenset({CHANGING}), "debug")
        await rig.settle()
        await trio.sleep(1)
        assert asked(rig)[-1]["resourceSubscriptions"] == [CHANGING]
        rig.server.change_resource(CHANGING, "1")
        await trio.sleep(1)
        assert rig.notices == [updated()]


async def test_a_server_that_does_not_agree_is_believed(autojump_clock: MockClock) -> None:
    honours = frozenset({"toolsListChanged"})
    async with open_rig(honours=honours) as rig:
        error = await rig.session.subscribe(CHANGING, time_limit=5)
        assert error is not None
        assert msgspec.json.decode(error)["code"] == -32602
        await trio.sleep(1)
        assert asked(rig)[-1] == ALL  # it is not asked for again and again
        assert rig.session.standing.honoured.lists == {"tools"}


async def test_without_a_stream_nothing_can_be_watched(autojump_clock: MockClock) -> None:
    async with open_rig(listen=False) as rig:
        for _ in range(2):
            error = await rig.session.subscribe(CHANGING, time_limit=5)
            assert error is not None
            assert msgspec.json.decode(error)["code"] == -32601
        rig.server.listen = True
        assert await rig.session.subscribe(CHANGING, time_limit=5) is None


async def test_a_server_that_says_nothing_is_not_waited_for_for_ever(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig:
        rig.server.listen_delay = 1e6
        error = await rig.session.subscribe(CHANGING, time_limit=3)
        assert trio.current_time() == 3.0
        assert error is not None
        assert msgspec.json.decode(error)["code"] == -32603
        rig.server.listen_delay = 0
        rig.server.notify_changed("tools")
        await trio.sleep(60)
        assert rig.notices == [TOOLS]
        assert len(rig.listens) == 2


async def test_waiting_for_a_session_that_ends_ends(autojump_clock: MockClock) -> None:
    found: list[bytes | None] = []

    async def subscribe(session: StatelessSession) -> None:
        found.append(await session.subscribe(CHANGING, time_limit=1000))

    async with trio.open_nursery() as nursery, open_rig() as rig:
        rig.server.listen_delay = 1e6
        nursery.start_soon(subscribe, rig.session)  # noqa: ASYNC111 - waits while that ends
        await trio.sleep(1)
    assert found[0] is not None
    assert trio.current_time() < 5


# One stream takes over from another


async def test_the_old_stream_lives_until_the_new_one_is_acknowledged(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig:
        rig.server.listen_delay = 2.0
        assert await rig.session.subscribe(CHANGING, time_limit=5) is None
        await trio.sleep(1)
        opened = rig.server.happenings("listening", LISTEN)[1].time
        (closed,) = rig.server.happenings("left", LISTEN)
        assert opened == pytest.approx(2.0)
        assert closed.time >= opened
        assert rig.states == [ListenState.OPENING, ListenState.OPEN]


@pytest.mark.parametrize("moment", [0.0, 1.0, 1.99, 2.0, 2.01, 2.05, 2.09, 2.11, 3.0])
async def test_no_change_is_lost_or_told_twice_while_streams_change(
    autojump_clock: MockClock, moment: float
) -> None:
    async with open_rig() as rig:
        rig.server.listen_delay = 2.0
        rig.session.restore(frozenset({CHANGING}), "")
        await trio.sleep(moment)
        rig.server.notify_changed("tools")
        await trio.sleep(10)
        assert rig.notices == [TOOLS]
        rig.server.change_resource(CHANGING, "1")
        await trio.sleep(10)
        assert rig.notices == [TOOLS, updated()]
        assert len(rig.server.listens) == 1


async def test_what_is_only_on_the_old_stream_is_told(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        (old,) = rig.server.listens
        rig.server.listen_delay = 2.0
        rig.session.restore(frozenset({CHANGING}), "")
        await trio.sleep(2.05)
        assert len(rig.server.listens) == 2
        old.notify("notifications/tools/list_changed")
        await trio.sleep(1)
        assert rig.notices == [TOOLS]


async def test_what_is_only_on_the_new_stream_is_told(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        rig.server.listen_delay = 2.0
        rig.session.restore(frozenset({CHANGING}), "")
        await trio.sleep(2.05)
        rig.server.listens[1].notify("notifications/tools/list_changed")
        await trio.sleep(1)
        assert rig.notices == [TOOLS]


async def test_streams_that_were_replaced_say_nothing_against_the_next_one(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig:
        for n in range(5):
            assert await rig.session.subscribe(f"test://item/{n}", time_limit=5) is None
        now = trio.current_time()
        assert now < 1.0
        rig.server.drop_listens()
        await trio.sleep(0.01)
        assert rig.listens[-1].time == now


async def test_a_new_stream_that_is_refused_leaves_the_old_one(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        rig.server.reply_next(rpc_error(400, -32602), method=LISTEN)
        error = await rig.session.subscribe(CHANGING, time_limit=5)
        assert error is not None
        rig.server.notify_changed("tools")
        await trio.sleep(100)
        assert rig.notices == [TOOLS]
        assert rig.state() is ListenState.OPEN
        assert len(rig.listens) == 2


async def test_a_new_stream_that_fails_is_tried_again_beside_the_old_one(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig:
        rig.server.reply_next(Reply.text(503), method=LISTEN, times=3)
        assert await rig.session.subscribe(CHANGING, time_limit=60) is None
        assert len(rig.listens) == 5
        assert rig.states == [ListenState.OPENING, ListenState.OPEN]
        assert rig.notices == []


async def test_if_the_old_stream_breaks_meanwhile_everything_counts_as_changed(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig:
        rig.server.listen_delay = 2.0
        rig.session.restore(frozenset({CHANGING}), "")
        await trio.sleep(1)
        rig.server.drop_listens(cut=True)
        await trio.sleep(10)
        assert rig.notices == [*EVERYTHING, updated()]


# A stream that ends


@pytest.mark.parametrize("how", ["end", "cut", "complete"])
async def test_a_stream_that_ends_is_reopened_and_everything_counts_as_changed(
    autojump_clock: MockClock, how: str
) -> None:
    async with open_rig() as rig:
        assert await rig.session.subscribe(CHANGING, time_limit=5) is None
        await trio.sleep(100)
        now = trio.current_time()
        if how == "complete":
            rig.server.end_listens()
        else:
            rig.server.drop_listens(cut=how == "cut")
        await trio.sleep(0.01)
        assert rig.listens[-1].time == now
        assert asked(rig)[-1] == asked(rig)[-2]
        assert rig.notices == [*EVERYTHING, updated()]
        assert rig.state() is ListenState.OPEN


async def test_however_often_a_stream_ends_it_is_reopened_at_once_if_it_has_lived(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig:
        for _ in range(5):
            await trio.sleep(100)
            now = trio.current_time()
            rig.server.drop_listens()
            await trio.sleep(0.01)
            assert rig.listens[-1].time == now


async def test_only_what_the_server_agreed_to_counts_as_changed(autojump_clock: MockClock) -> None:
    async with open_rig(honours=frozenset({"toolsListChanged"})) as rig:
        await trio.sleep(100)
        rig.server.drop_listens()
        await trio.sleep(1)
        assert rig.notices == [("notifications/tools/list_changed", None)]


async def test_a_stream_that_always_ends_at_once_is_no_busy_loop(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig:
        rig.server.script = lambda r: Reply.events() if r.method == LISTEN else None
        rig.server.drop_listens()
        await trio.sleep(600)
        assert 10 < len(rig.listens) < 60
        assert rig.state() is ListenState.WAITING


async def test_a_stream_that_is_acknowledged_and_ends_at_once_is_none_either(
    autojump_clock: MockClock,
) -> None:
    def prepare(server: StatelessServer) -> None:
        def script(received: Any) -> Reply | None:
            if received.method != LISTEN:
                return None
            method = "notifications/subscriptions/acknowledged"
            params = {"notifications": received.params["notifications"]}
            return Reply.events({"jsonrpc": "2.0", "method": method, "params": params})

        server.script = script

    async with open_rig(prepare=prepare) as rig:
        await trio.sleep(600)
        assert 10 < len(rig.listens) < 60


async def test_silence_ends_a_stream_and_comments_do_not(autojump_clock: MockClock) -> None:
    async with open_rig(silence=60.0) as rig:
        await trio.sleep(1000)
        assert len(rig.listens) == 1
        rig.server.keepalive = None
        rig.server.drop_listens()
        await trio.sleep(0.01)
        start = trio.current_time()
        await trio.sleep(61)
        assert [round(r.time - start) for r in rig.listens[1:]] == [0, 60]
        assert rig.state() is ListenState.OPEN


# Servers that offer none


@pytest.mark.parametrize(
    "reply",
    [
        rpc_error(404, -32601),
        rpc_error(400, -32602),
        Reply.text(405),
        Reply.text(404, "<html>"),
        Reply.events({"jsonrpc": "2.0", "id": 1, "error": {"code": -32601, "message": "no"}}),
    ],
)
async def test_a_server_that_refuses_is_not_asked_again(
    autojump_clock: MockClock, reply: Reply
) -> None:
    async with open_rig(prepare=lambda s: s.reply_next(reply, method=LISTEN, times=99)) as rig:
        await trio.sleep(1000)
        assert rig.state() is ListenState.NONE
        assert len(rig.listens) == 1
        assert not rig.session.heard
        assert await rig.text("counter") == "counter: 1"


@pytest.mark.parametrize("status", [401, 403])
async def test_a_server_that_wants_other_credentials_is_not_asked_again(
    autojump_clock: MockClock, status: int
) -> None:
    reply = rpc_error(status, -32001)
    async with open_rig(prepare=lambda s: s.reply_next(reply, method=LISTEN, times=99)) as rig:
        await trio.sleep(1000)
        assert rig.state() is ListenState.UNAUTHORIZED
        assert len(rig.listens) == 1


@pytest.mark.parametrize(
    "reply",
    [Reply.text(503), rpc_error(500, -32603), rpc_error(429, -1), Reply.cut(), Reply.text(408)],
)
async def test_a_passing_failure_is_waited_out_with_growing_delays(
    autojump_clock: MockClock, reply: Reply
) -> None:
    async with open_rig(
        prepare=lambda s: s.reply_next(reply, method=LISTEN, times=12), listening=False
    ) as rig:
        await trio.sleep(5)
        assert rig.state() is ListenState.WAITING
        await rig.settle_within(400)
        assert rig.state() is ListenState.OPEN
        times = [r.time for r in rig.listens]
        gaps = [b - a for a, b in pairwise(times)]
        assert len(gaps) == 12
        assert 0.125 <= gaps[0] <= 0.25
        assert all(15.0 <= gap <= 30.0 for gap in gaps[8:])


async def test_a_stream_that_is_not_acknowledged_is_tried_again(autojump_clock: MockClock) -> None:
    reply = Reply.events(ending="hang")
    async with open_rig(prepare=lambda s: s.reply_next(reply, method=LISTEN)) as rig:
        first, second = rig.listens
        assert 5.0 < second.time - first.time < 6.0
        assert rig.state() is ListenState.OPEN
        assert len(rig.server.happenings("left", LISTEN)) == 1


# What the stream says of the server


async def test_a_revision_that_is_refused_there_ends_the_session(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        rig.server.versions = ("2025-11-25",)
        rig.server.drop_listens()
        assert (await rig.loss()).code == OTHER_REVISION


async def test_a_server_of_the_other_era_in_its_place_is_noticed(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        rig.server.script = lambda _: rpc_error(400, -32000)
        rig.server.drop_listens(cut=True)
        assert (await rig.loss()).code == OTHER_REVISION


async def test_the_stream_ends_with_the_session(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        server = rig.server
        await rig.session.subscribe(CHANGING, time_limit=5)
        states = rig.states
    assert states[-1] is ListenState.CLOSED
    assert rig.state() is ListenState.CLOSED
    assert server.listens == []


# When lists have to be read again without a word


async def test_lists_are_polled_only_where_changes_are_not_told(autojump_clock: MockClock) -> None:
    async with open_rig(ttl_ms=100_000) as rig:
        await rig.session.request("tools/list", time_limit=5)
        assert math.isinf(rig.session.poll_seconds)
        rig.server.listen = False
        rig.server.drop_listens()
        await trio.sleep(1)
        assert 90 <= rig.session.poll_seconds <= 110
    async with open_rig(honours=frozenset({"promptsListChanged"}), ttl_ms=100_000) as rig:
        assert 270 <= rig.session.poll_seconds <= 330
        await rig.session.request("tools/list", time_limit=5)
        assert 90 <= rig.session.poll_seconds <= 110


@pytest.mark.parametrize(("ttl", "seconds"), [(0, 60), (10**12, 86_400), (-5, 60)])
async def test_the_ttl_has_its_bounds(autojump_clock: MockClock, ttl: int, seconds: float) -> None:
    async with open_rig(listen=False, ttl_ms=ttl) as rig:
        await rig.session.request("tools/list", time_limit=5)
        assert 0.9 * seconds <= rig.session.poll_seconds <= 1.1 * seconds
