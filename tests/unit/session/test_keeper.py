"""The session that reads the catalogue: how often it is opened, and when it lists again."""

from __future__ import annotations

import msgspec
import trio
from trio.testing import MockClock
from unit.session.upstream_kit import open_rig

from kars_router.testing import Call, HeartbeatServer, Received, Reply


async def nothing(_: Call) -> dict[str, object]:
    return {"content": []}


async def test_sessions_that_are_lost_after_listing_are_opened_ever_more_slowly(
    autojump_clock: MockClock,
) -> None:
    # The GET stream is refused as soon as the tools have been listed.
    listed: set[str | None] = set()

    def script(r: Received) -> Reply | None:
        if r.method == "tools/list":
            listed.add(r.session)
        if r.http_method == "GET":
            return Reply.text(404, seconds=0.3)
        return Reply.text(404) if r.method == "ping" and r.session in listed else None

    async with open_rig(ping_interval=None) as rig:
        rig.server.script = script
        rig.server.restart()
        await trio.sleep(60)
        opened = len(rig.server.requests("initialize"))
        assert 5 <= opened <= 16
        rig.server.script = None
        # One whose stream was refused a moment ago may live on without it: it goes too, and is
        # missed when its tools are listed again.
        rig.server.restart()
        await trio.sleep(1200)
        assert rig.runtime.state == "ready"
        # After a session that lived, the next one comes at once.
        before = len(rig.server.requests("initialize"))
        rig.server.restart()
        await trio.sleep(3)  # what was not forgotten would take five at least
        assert len(rig.server.requests("initialize")) == before + 1
        # And what was slow before is forgotten.
        rig.server.restart()
        await trio.sleep(3)
        assert len(rig.server.requests("initialize")) == before + 2


async def test_a_change_before_the_stream_was_open_is_seen(autojump_clock: MockClock) -> None:
    def prepare(server: HeartbeatServer) -> None:
        server.script = lambda r: (
            Reply.text(503) if r.http_method == "GET" and trio.current_time() < late else None
        )

    late = trio.current_time() + 3
    async with open_rig(prepare=prepare, ping_interval=None) as rig:
        assert "fresh" not in rig.runtime.catalogue.tools
        assert len(rig.server.requests("tools/list")) == 1
        rig.server.add_tool("fresh", nothing)  # nobody listens yet
        await trio.sleep(10)
        assert "fresh" in rig.runtime.catalogue.tools
        assert len(rig.server.requests("tools/list")) == 2


async def test_where_the_stream_opens_at_once_the_tools_are_listed_once(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig:
        await trio.sleep(60)
        assert len(rig.server.requests("tools/list")) == 1


def endless(seconds: float, received: Received) -> Reply | None:
    if received.method != "tools/list":
        return None
    cursor = int((received.params or {}).get("cursor", "0")) + 1
    result = {"tools": [{"name": f"t{cursor}", "inputSchema": {}}], "nextCursor": str(cursor)}
    body = msgspec.json.encode({"jsonrpc": "2.0", "id": received.id, "result": result})
    return Reply(headers={"content-type": "application/json"}, body=body, seconds=seconds)


async def test_a_catalogue_that_takes_for_ever_is_given_up(autojump_clock: MockClock) -> None:
    def prepare(server: HeartbeatServer) -> None:
        server.script = lambda r: endless(4.0, r)

    start = trio.current_time()
    async with open_rig(prepare=prepare, ping_interval=None) as rig:
        # Others' first lists and the readiness do not wait for it.
        assert trio.current_time() - start <= 10.0
        assert rig.runtime.tried.is_set()
        assert rig.runtime.state == "starting"
        assert "10 s" in rig.runtime.error
        await trio.sleep(31)
        assert rig.runtime.state == "down"
        assert "40 s" in rig.runtime.error
        assert rig.runtime.catalogue.tools == {}
        asked = len(rig.server.requests("tools/list"))
        await trio.sleep(5)
        assert len(rig.server.requests("tools/list")) > asked
        rig.server.script = None
        await trio.sleep(60)
        assert (rig.runtime.state, rig.runtime.error) == ("ready", "")
