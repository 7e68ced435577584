from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import httpx
import msgspec
import pytest
import trio
from trio.testing import MockClock
from unit.session.upstream_kit import Rig, open_rig, with_settings

from kars_router.config.schema import Limits
from kars_router.errors import CallFailed
from kars_router.model import CallOutcome, Failure, LossVerdict, Phase
from kars_router.session.base import Session
from kars_router.session.listener import Listener, ListenState
from kars_router.testing import Fault, FaultPlan, HeartbeatServer, Received, Reply
from kars_router.transports.base import Position

EMPTY_STREAM = Reply(headers={"content-type": "text/event-stream"})


def gets(server: HeartbeatServer) -> list[Received]:
    return server.requests(http_method="GET")


def refuse_gets(reply: Reply, times: int = 1_000_000) -> Callable[[HeartbeatServer], None]:
    left = times

    def prepare(server: HeartbeatServer) -> None:
        def script(received: Received) -> Reply | None:
            nonlocal left
            if received.http_method != "GET" or not left:
                return None
            left -= 1
            return reply

        server.script = script

    return prepare


async def test_the_stream_is_open_before_the_first_call_is_forwarded(
    autojump_clock: MockClock,
) -> None:
    slow_get = FaultPlan({2: Fault.delay(3.0)}, matching=lambda r: r.method == "GET")
    async with open_rig(faults=slow_get) as rig:
        await rig.call("increment")
        listening = rig.server.happenings("listening", rig.upstream_id())
        (call,) = rig.of("a", "tools/call")
        assert call.time >= listening[0].time
        assert rig.state() == "open"


async def test_a_call_waits_for_the_stream_only_so_long_and_only_once(
    autojump_clock: MockClock,
) -> None:
    def prepare(server: HeartbeatServer) -> None:
        server.script = lambda r: Reply.hang() if r.http_method == "GET" else None

    async with open_rig(prepare=prepare, ping_interval=None) as rig:
        start = trio.current_time()
        assert await rig.text("increment") == "counter: 1"
        assert 4.0 < trio.current_time() - start < 6.0
        start = trio.current_time()
        assert await rig.text("increment") == "counter: 2"
        assert trio.current_time() - start < 1.0


async def test_a_get_that_is_refused_for_good_does_not_delay_each_call(
    autojump_clock: MockClock,
) -> None:
    async with open_rig(prepare=refuse_gets(Reply.text(503)), ping_interval=None) as rig:
        await rig.call("increment")
        start = trio.current_time()
        await rig.call("increment")
        assert trio.current_time() - start < 1.0
        assert rig.state() in ("waiting", "opening")


async def test_405_means_no_stream_and_calls_go_on(autojump_clock: MockClock) -> None:
    async with open_rig(offers_get=False, ping_interval=None) as rig:
        start = trio.current_time()
        assert await rig.text("increment") == "counter: 1"
        assert trio.current_time() - start < 1.0
        await trio.sleep(300)
        assert await rig.text("increment") == "counter: 2"
        assert rig.state() == "none"
        assert len(rig.of("a", http_method="GET")) == 1
        assert rig.metric("kars_listen_streams", state="none") == 2


async def test_a_stream_that_ends_is_reopened_at_once_where_it_was(
    autojump_clock: MockClock,
) -> None:
    async with open_rig(event_ids=True, ping_interval=None) as rig:
        await rig.call("increment")
        rig.server.notify("notifications/x", session_id=rig.upstream_id())
        rig.server.notify("notifications/y", session_id=rig.upstream_id())
        await trio.sleep(10)
        for cut in (False, True):
            before = len(rig.of("a", http_method="GET"))
            now = trio.current_time()
            rig.server.drop_listen(rig.upstream_id(), cut=cut)
            await rig.server.wait_until(lambda n=before: len(rig.of("a", http_method="GET")) > n)  # type: ignore[misc]
            again = rig.of("a", http_method="GET")[-1]
            assert again.time == now
            assert again.headers["last-event-id"] == "get/2"
            await trio.sleep(10)
            assert rig.state() == "open"
        # What was said while no stream was open arrives on the next one, and only once.
        assert rig.metric("kars_dropped_messages_total", kind="notification") == 2


async def test_no_last_event_id_without_one(autojump_clock: MockClock) -> None:
    async with open_rig(ping_interval=None) as rig:
        await rig.call("increment")
        rig.server.drop_listen()
        await trio.sleep(5)
        assert [r.headers.get("last-event-id") for r in gets(rig.server)] == [None] * 4


@pytest.mark.parametrize("ident", ["", "\u00e9\u4e16", "tab\there", "\x01", "\x7f"])
async def test_whatever_event_id_a_server_gives_the_stream_goes_on(
    autojump_clock: MockClock, ident: str
) -> None:
    body = f"id: {ident}\ndata: \n\n".encode()
    reply = Reply(headers={"content-type": "text/event-stream"}, body=body)
    async with open_rig(prepare=refuse_gets(reply, 2), ping_interval=None) as rig:
        await rig.call("increment")
        await trio.sleep(60)
        assert rig.state() == "open"
        assert rig.slot().generation == 1
        assert await rig.text("increment") == "counter: 2"
        if not ident:
            assert all("last-event-id" not in r.headers for r in gets(rig.server))


async def test_a_stream_that_always_ends_at_once_is_no_busy_loop(
    autojump_clock: MockClock,
) -> None:
    async with open_rig(prepare=refuse_gets(EMPTY_STREAM), ping_interval=None) as rig:
        await rig.call("increment")
        await trio.sleep(600)
        times = [r.time for r in rig.of("a", http_method="GET")]
        assert 10 < len(times) < 60
        assert await rig.text("increment") == "counter: 2"


@pytest.mark.parametrize("status", [500, 502, 503, 429])
async def test_a_refused_stream_is_retried_with_growing_jittered_delays(
    autojump_clock: MockClock, status: int
) -> None:
    async with open_rig(prepare=refuse_gets(Reply.text(status), 16), ping_interval=None) as rig:
        await rig.call("increment")
        await trio.sleep(600)
        assert rig.state() == "open"
        times = [r.time for r in rig.of("a", http_method="GET")]
        assert len(times) > 5
        delays = [b - a for a, b in pairwise(times)]
        caps = [min(30.0, 0.25 * 2**n) for n in range(len(delays))]
        assert all(c / 2 <= d <= c for c, d in zip(caps, delays, strict=True)), delays
        assert len({round(d / c, 3) for c, d in zip(caps, delays, strict=True)}) > 3


async def test_a_broken_connection_is_retried_with_growing_delays(
    autojump_clock: MockClock,
) -> None:
    plan = FaultPlan(
        {n: Fault.connect() for n in range(2, 9)}, matching=lambda r: r.method == "GET"
    )
    async with open_rig(faults=plan, ping_interval=None) as rig:
        await rig.call("increment")
        await trio.sleep(120)
        assert plan.fired == 7
        assert rig.state() == "open"


async def test_the_servers_retry_is_respected_and_remembered(autojump_clock: MockClock) -> None:
    async with open_rig(retry=7000, ping_interval=None) as rig:
        await rig.call("increment")
        await trio.sleep(10)
        now = trio.current_time()
        rig.server.retry = None  # the next stream says nothing about it
        rig.server.drop_listen()
        await trio.sleep(6.9)
        assert rig.state() == "waiting"
        await trio.sleep(1)
        assert rig.state() == "open"
        rig.server.notify("notifications/x")
        await trio.sleep(10)
        rig.server.drop_listen()
        await trio.sleep(20)
        times = [r.time - now for r in rig.of("a", http_method="GET")]
        assert times[1] == 7
        assert times[2] == 7 + 0.9 + 10 + 7


async def test_retry_is_a_floor_for_refusals(autojump_clock: MockClock) -> None:
    async with open_rig(retry=7000, ping_interval=None) as rig:
        await rig.call("increment")
        await trio.sleep(10)
        rig.server.reply_next(Reply.text(503), http_method="GET", times=2)
        rig.server.drop_listen(rig.upstream_id())
        await trio.sleep(60)
        times = [r.time for r in rig.of("a", http_method="GET")]
        assert len(times) == 4
        assert all(b - a >= 7 for a, b in pairwise(times))


@pytest.mark.parametrize("status", [401, 403])
async def test_an_unauthorized_stream_is_reported_and_left(
    autojump_clock: MockClock, status: int
) -> None:
    async with open_rig(prepare=refuse_gets(Reply.text(status)), ping_interval=None) as rig:
        start = trio.current_time()
        assert await rig.text("increment") == "counter: 1"
        assert trio.current_time() == start
        await trio.sleep(600)
        assert rig.state() == "unauthorized"
        assert len(rig.of("a", http_method="GET")) == 1
        assert rig.slot().generation == 1


@pytest.mark.parametrize("status", [404, 400])
async def test_a_refusal_of_a_stream_that_was_open_is_a_loss(
    autojump_clock: MockClock, status: int
) -> None:
    async with open_rig(ping_interval=None) as rig:
        await rig.call("increment")
        await trio.sleep(10)
        first = rig.upstream_id()
        rig.server.reply_next(Reply.text(status, "whatever"), http_method="GET")
        rig.server.drop_listen(first)
        await trio.sleep(10)
        assert rig.slot().session is None
        outcome = await rig.call("increment")
        assert outcome.reset is not None
        assert outcome.reset.generation == 2
        assert rig.upstream_id() != first


@pytest.mark.parametrize("status", [404, 400])
async def test_a_server_without_a_get_route_keeps_its_session(
    autojump_clock: MockClock, status: int
) -> None:
    async with open_rig(prepare=refuse_gets(Reply.text(status)), ping_interval=None) as rig:
        assert await rig.text("increment") == "counter: 1"
        await trio.sleep(60)
        assert rig.state() == "none"
        assert await rig.text("increment") == "counter: 2"
        assert len(rig.of("a", http_method="GET")) == 1


async def test_404_at_the_first_get_of_a_dead_session_is_a_loss(
    autojump_clock: MockClock,
) -> None:
    killed: list[Received] = []
    async with open_rig(ping_interval=None) as rig:
        keeper = rig.upstream_id("")

        def script(received: Received) -> Reply | None:
            if received.http_method == "GET" and received.session != keeper and not killed:
                killed.append(received)
                rig.server.restart()
            return None

        rig.server.script = script
        outcome = await rig.call("increment")
        assert outcome.fate == "executed"
        assert rig.slot().generation == 2


async def test_409_is_never_followed_by_a_second_get(autojump_clock: MockClock) -> None:
    async with open_rig(prepare=refuse_gets(Reply.text(409)), ping_interval=None) as rig:
        assert await rig.text("increment") == "counter: 1"
        await trio.sleep(600)
        assert rig.state() == "conflict"
        assert len(rig.of("a", http_method="GET")) == 1
        assert await rig.text("increment") == "counter: 2"


async def test_a_silent_stream_is_probed_and_reopened(autojump_clock: MockClock) -> None:
    async with open_rig(settings=with_settings(listen_silence=30.0), ping_interval=None) as rig:
        await rig.call("increment")
        start = rig.of("a", http_method="GET")[0].time
        await trio.sleep(100)
        probes = [r.time - start for r in rig.of("a", "ping")]
        assert probes == [30, 60, 90]
        assert [r.time - start for r in rig.of("a", http_method="GET")] == [0, 30, 60, 90]
        assert rig.state() == "open"
        assert rig.slot().generation == 1


async def test_a_stream_with_pings_on_it_is_not_probed(autojump_clock: MockClock) -> None:
    async with open_rig(settings=with_settings(listen_silence=30.0)) as rig:
        await rig.call("increment")
        await trio.sleep(300)
        assert rig.of("a", "ping") == []
        assert len(rig.of("a", http_method="GET")) == 1


async def test_a_silent_stream_of_a_dead_session_is_a_loss(autojump_clock: MockClock) -> None:
    async with open_rig(settings=with_settings(listen_silence=30.0), ping_interval=None) as rig:
        await rig.call("increment")
        rig.server.script = lambda r: Reply.text(404) if r.method == "ping" else None
        await trio.sleep(40)
        assert rig.slot().session is None


async def test_a_silent_stream_whose_probe_gets_no_answer_is_reopened(
    autojump_clock: MockClock,
) -> None:
    async with open_rig(settings=with_settings(listen_silence=30.0), ping_interval=None) as rig:
        await rig.call("increment")
        rig.server.script = lambda r: Reply.hang() if r.method == "ping" else None
        await trio.sleep(50)
        assert rig.slot().generation == 1
        assert len(rig.of("a", http_method="GET")) == 2
        assert rig.state() == "open"


async def test_an_event_beyond_the_limit_costs_the_stream_and_not_the_session(
    autojump_clock: MockClock,
) -> None:
    async with open_rig(config={"limits": Limits(event_bytes=20_000)}, ping_interval=None) as rig:
        await rig.call("increment")
        await trio.sleep(10)
        rig.server.notify("notifications/x", {"pad": "x" * 30_000})
        await trio.sleep(10)
        assert rig.state() == "open"
        assert len(rig.of("a", http_method="GET")) == 2
        assert await rig.text("increment") == "counter: 2"


async def test_a_get_answered_with_something_else_is_retried_and_harms_nothing(
    autojump_clock: MockClock,
) -> None:
    async with open_rig(prepare=refuse_gets(Reply.json({}), 3), ping_interval=None) as rig:
        assert await rig.text("increment") == "counter: 1"
        await trio.sleep(60)
        assert rig.state() == "open"


async def test_each_state_is_counted_and_none_is_left_over(autojump_clock: MockClock) -> None:
    async with open_rig(ping_interval=None) as rig:
        await rig.call("increment")
        assert rig.metric("kars_listen_streams", state="open") == 2  # the agent's, the catalogue's
        rig.server.reply_next(Reply.text(503), http_method="GET", times=2)
        rig.server.drop_listen()
        await trio.sleep(0.05)
        assert rig.metric("kars_listen_streams", state="waiting") == 2
    states = ("opening", "open", "waiting", "none", "conflict", "unauthorized")
    assert [rig.metric("kars_listen_streams", state=state) for state in states] == [0] * 6


def last_get(rig: Rig) -> Received:
    return rig.of("a", http_method="GET")[-1]


async def test_the_stream_is_asked_for_as_the_protocol_has_it(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        await rig.call("increment")
        assert last_get(rig).headers["accept"] == "text/event-stream"
        assert last_get(rig).session == rig.upstream_id()
        assert last_get(rig).headers["mcp-protocol-version"] == "2025-11-25"


async def test_a_stream_that_is_reset_is_reopened(autojump_clock: MockClock) -> None:
    plan = FaultPlan(
        {2: Fault.cut(10, httpx.RemoteProtocolError)}, matching=lambda r: r.method == "GET"
    )
    async with open_rig(faults=plan, ping_interval=None) as rig:
        await rig.call("increment")
        rig.server.notify("notifications/x")
        await trio.sleep(60)
        assert plan.fired == 1
        assert rig.slot().generation == 1
        assert rig.state() == "open"
        assert await rig.text("read") == "counter: 1"


@pytest.mark.parametrize("opens", [True, False])
async def test_the_end_of_a_channel_is_the_end_of_the_session(
    autojump_clock: MockClock, nursery: trio.Nursery, opens: bool
) -> None:
    """There is nothing to be opened again, however often it would be tried."""
    failure = Failure(server="s", phase=Phase.LISTEN, code="channel_closed")
    lost: list[Failure] = []
    states: list[ListenState] = []

    class Channel:
        session_id = revision = None
        correlates = False
        listened = 0

        async def listen(self, position: Position, on_open: Callable[[], None]) -> None:
            self.listened += 1
            if opens:
                on_open()
                await trio.sleep(100)
            raise CallFailed(failure)

    async def probe() -> bool:
        raise AssertionError("it is known to be gone")

    channel = Channel()
    listener = Listener(
        channel,  # type: ignore[arg-type] # the rest of it is not used
        nursery,
        server="s",
        silence=600.0,
        probe=probe,
        lost=lost.append,
        changed=lambda _, new: states.append(new),
    )
    await listener.run()
    assert lost == [failure]
    assert channel.listened == 1
    assert listener.state is ListenState.CLOSED
    assert listener.settled.is_set()
    assert (ListenState.OPEN in states) is opens
    assert ListenState.WAITING not in states


def state_of(session: Session) -> ListenState:
    """The state of its stream; a function, since mypy takes an attribute for what it was."""
    return session.listen_state


async def lose_in_flight(rig: Rig, nursery: trio.Nursery, into: list[CallOutcome]) -> Received:
    """Has the session lost that a call is on its way in; the call."""
    await rig.call("increment")
    rig.server.script = lambda r: Reply.hang() if r.method == "tools/call" else None

    async def call() -> None:
        into.append(await rig.call("increment"))

    nursery.start_soon(call)
    await rig.server.wait_until(lambda: len(rig.of("a", "tools/call")) == 2)
    rig.session().lose(LossVerdict(True, "a test says so", "test"))
    return rig.of("a", "tools/call")[-1]


async def test_a_stream_is_held_while_what_is_in_flight_may_still_be_answered_on_it(
    autojump_clock: MockClock,
) -> None:
    outcomes: list[CallOutcome] = []
    async with open_rig(ping_interval=None) as rig:
        async with trio.open_nursery() as nursery:
            call = await lose_in_flight(rig, nursery, outcomes)
            start, first, session = trio.current_time(), rig.upstream_id(), rig.session()
            await trio.testing.wait_all_tasks_blocked()
            assert state_of(session) is ListenState.OPEN
            assert rig.server.happenings("left", first) == []
            # What is called now needs to know at once; only the way out waits.
            assert rig.slot().lost_reason == "a test says so"
            assert rig.metric("kars_session_losses_total", reason="unknown") == 1
            await trio.sleep(1)
            answer = {"jsonrpc": "2.0", "id": call.id, "result": {"content": []}}
            rig.server.sessions[first].listen.append(msgspec.json.encode(answer))
        assert [outcome.fate for outcome in outcomes] == ["executed"]
        # No longer than that, although the answer's own stream is still open, and lingers a second.
        await trio.sleep_until(start + 2.5)
        assert state_of(session) is ListenState.CLOSED
        assert rig.server.happenings("left", first)
        assert rig.slot().session is None


async def test_the_stream_of_a_lost_session_is_let_go_of_after_the_grace(
    autojump_clock: MockClock,
) -> None:
    outcomes: list[CallOutcome] = []
    async with open_rig(ping_interval=None) as rig:
        async with trio.open_nursery() as nursery:
            await lose_in_flight(rig, nursery, outcomes)
            start, session = trio.current_time(), rig.session()
            await trio.sleep(1.9)
            assert state_of(session) is ListenState.OPEN
        assert trio.current_time() == start + 2
        assert state_of(session) is ListenState.CLOSED
        assert [(o.fate, o.code) for o in outcomes] == [("unknown", "session_lost")]


async def test_the_stream_of_a_lost_session_without_requests_is_let_go_of_at_once(
    autojump_clock: MockClock,
) -> None:
    async with open_rig(ping_interval=None) as rig:
        await rig.call("increment")
        session, ident, before = rig.session(), rig.upstream_id(), trio.current_time()
        session.lose(LossVerdict(True, "a test says so", "test"))
        session.finish()  # as another who notices may do
        await trio.testing.wait_all_tasks_blocked()
        assert state_of(session) is ListenState.CLOSED
        assert rig.server.happenings("left", ident)
        assert rig.slot().session is None
        assert rig.metric("kars_session_losses_total", reason="unknown") == 1
        assert trio.current_time() == before


async def test_the_probe_of_a_stream_that_has_ended_is_nothing_to_the_next(
    autojump_clock: MockClock,
) -> None:
    """It takes five seconds to fail; the stream that came meanwhile has not been silent."""
    async with open_rig(settings=with_settings(listen_silence=3.0), ping_interval=None) as rig:
        await rig.call("increment")
        start = rig.of("a", http_method="GET")[0].time
        rig.server.script = lambda r: Reply.hang() if r.method == "ping" else None
        await trio.sleep_until(start + 4)
        rig.server.drop_listen(rig.upstream_id())
        await trio.sleep_until(start + 9)
        # The first was probed from 3 to 8, and ended at 4; the second is probed from 7 to 12.
        assert [r.time - start for r in rig.of("a", "ping")] == [3, 7]
        assert [r.time - start for r in rig.of("a", http_method="GET")] == [0, 4]
