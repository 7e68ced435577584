"""What servers are told to report, and who hears of it, in the handshake era."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import trio
import trio.lowlevel
from trio.testing import MockClock
from unit.session.people_kit import (
    Person,
    call,
    nothing,
    present,
    watchable,
)
from unit.session.upstream_kit import open_rig, with_settings

from kars_router.config.schema import SessionScope
from kars_router.testing import Reply as Reply_
from kars_router.testing import RpcError

# Logging


async def test_log_messages_go_where_they_belong(autojump_clock: MockClock) -> None:
    async with open_rig(ping_interval=None, capabilities={"logging": {}}) as rig:
        port = present(rig)
        person = Person()

        async def chatty(tool_call: Any) -> dict[str, Any]:
            tool_call.notify("notifications/message", {"level": "info", "data": "on the call"})
            await trio.lowlevel.checkpoint()
            return {"content": []}

        rig.server.add_tool("chatty", chatty)
        await call(rig, person, "chatty")
        rig.server.notify(
            "notifications/message", {"level": "error", "data": "aside"}, rig.upstream_id()
        )
        await trio.sleep(1)
        assert person.told == [("notifications/message", {"level": "info", "data": "on the call"})]
        assert port.told == [("s", "notifications/message", {"level": "error", "data": "aside"})]


async def test_the_level_is_set_before_the_call_and_again_after_a_loss(
    autojump_clock: MockClock,
) -> None:
    async with open_rig(
        ping_interval=None,
        capabilities={"logging": {}},
        prepare=lambda server: server.add_method("logging/setLevel", nothing),
    ) as rig:
        port = present(rig)
        port.log_level = "warning"
        await rig.call("increment")
        rig.server.forget()
        await rig.call("increment")
        order = [r.method for r in rig.server.log if r.method in ("logging/setLevel", "tools/call")]
        assert order == [
            "logging/setLevel",
            "tools/call",
            "tools/call",
            "logging/setLevel",
            "tools/call",
        ]
        levels = [r.params["level"] for r in rig.server.requests("logging/setLevel")]
        assert levels == ["warning", "warning"]
        port.log_level = "debug"
        rig.router.supervisor.set_log_level("a")
        await trio.sleep(1)
        assert rig.server.requests("logging/setLevel")[-1].params == {"level": "debug"}


async def test_a_call_waits_until_the_server_knows_of_a_changed_level(
    autojump_clock: MockClock,
) -> None:
    async def slowly(call: Any) -> Any:
        await trio.sleep(1)
        return await nothing(call)

    async with open_rig(
        ping_interval=None,
        capabilities={"logging": {}},
        prepare=lambda server: server.add_method("logging/setLevel", slowly),
    ) as rig:
        port = present(rig)
        await rig.call("increment")
        begun = trio.current_time()
        port.log_level = "debug"
        rig.router.supervisor.set_log_level("a")
        await rig.call("increment")
        assert trio.current_time() >= begun + 1


async def test_a_shared_session_gets_the_most_verbose_level(autojump_clock: MockClock) -> None:
    shared = with_settings(session_scope=SessionScope.SHARED)
    async with open_rig(
        settings=shared,
        ping_interval=None,
        capabilities={"logging": {}},
        prepare=lambda server: server.add_method("logging/setLevel", nothing),
    ) as rig:
        levels = {"a": "error", "b": "info", "c": "critical"}
        for agent, level in levels.items():
            present(rig, agent).log_level = level
            rig.router.supervisor.set_log_level(agent)
            await rig.call("increment", agent)
        sent = [r.params["level"] for r in rig.server.requests("logging/setLevel")]
        assert sent == ["error", "info"]


async def test_a_server_without_logging_is_not_asked_for_it(autojump_clock: MockClock) -> None:
    async with open_rig(ping_interval=None) as rig:
        present(rig).log_level = "debug"
        await rig.call("increment")
        assert rig.server.requests("logging/setLevel") == []


# Subscriptions


async def test_a_resource_is_watched_once_for_all_who_share(autojump_clock: MockClock) -> None:
    shared = with_settings(session_scope=SessionScope.SHARED)
    async with open_rig(
        settings=shared,
        ping_interval=None,
        capabilities={"resources": {"subscribe": True}},
        prepare=watchable,
    ) as rig:
        ports = {agent: present(rig, agent) for agent in "abc"}
        supervisor = rig.router.supervisor
        for agent in "ab":
            assert await supervisor.subscribe_resource(agent, "s", "test://x") is None
        assert len(rig.server.requests("resources/subscribe")) == 1
        rig.server.notify("notifications/resources/updated", {"uri": "test://x/part"})
        rig.server.notify("notifications/resources/updated", {"uri": "test://xy"})
        await trio.sleep(1)
        said = [("s", "notifications/resources/updated", {"uri": "test://x/part"})]
        assert [port.told for port in ports.values()] == [said, said, []]
        supervisor.unsubscribe_resource("a", "s", "test://x")
        supervisor.unsubscribe_resource("c", "s", "test://x")
        await trio.sleep(1)
        assert rig.server.requests("resources/unsubscribe") == []
        supervisor.end_agent("b", "gone")
        await trio.sleep(1)
        assert len(rig.server.requests("resources/unsubscribe")) == 1


async def test_subscriptions_outlive_a_lost_session(autojump_clock: MockClock) -> None:
    async with open_rig(
        ping_interval=None, capabilities={"resources": {"subscribe": True}}, prepare=watchable
    ) as rig:
        port = present(rig)
        await rig.router.supervisor.subscribe_resource("a", "s", "test://x")
        rig.server.forget()
        await rig.call("increment")
        await trio.sleep(1)
        subscribed = rig.server.requests("resources/subscribe")
        assert [r.params for r in subscribed] == [{"uri": "test://x"}] * 2
        assert subscribed[1].session == rig.upstream_id()
        rig.server.notify("notifications/resources/updated", {"uri": "test://x"})
        await trio.sleep(1)
        # Once because of the gap, in which nobody could say anything, and once by the server.
        updated = ("s", "notifications/resources/updated", {"uri": "test://x"})
        assert port.told == [updated, updated]


async def test_a_refused_subscription_is_none(autojump_clock: MockClock) -> None:
    async with open_rig(ping_interval=None) as rig:
        present(rig)
        error = await rig.router.supervisor.subscribe_resource("a", "s", "test://x")
        assert msgspec.json.decode(error or b"null")["code"] == -32601
        assert rig.slot().watchers.uris == frozenset()


async def test_a_second_subscriber_waits_for_the_first(autojump_clock: MockClock) -> None:
    async def refused(_: Any) -> dict[str, Any]:
        await trio.sleep(2)
        raise RpcError(-32602, "no such resource")

    shared = with_settings(session_scope=SessionScope.SHARED)
    async with open_rig(
        settings=shared,
        ping_interval=None,
        prepare=lambda server: server.add_method("resources/subscribe", refused),
    ) as rig:
        errors: dict[str, bytes | None] = {}

        async def subscribe(agent: str) -> None:
            present(rig, agent)
            errors[agent] = await rig.router.supervisor.subscribe_resource(agent, "s", "test://x")

        async with trio.open_nursery() as nursery:
            for agent in "ab":
                nursery.start_soon(subscribe, agent)
        assert None not in errors.values()
        assert rig.slot("").watchers.uris == frozenset()


async def test_an_agent_watches_so_many_resources_and_no_more(autojump_clock: MockClock) -> None:
    async with open_rig(
        ping_interval=None, capabilities={"resources": {"subscribe": True}}, prepare=watchable
    ) as rig:
        present(rig)
        supervisor = rig.router.supervisor
        for number in range(256):
            assert await supervisor.subscribe_resource("a", "s", f"test://{number}") is None
        assert await supervisor.subscribe_resource("a", "s", "test://more") is not None


@pytest.mark.parametrize("lost", [False, True], ids=["idle", "lost"])
async def test_who_watches_is_told_without_ever_calling_again(
    autojump_clock: MockClock, lost: bool
) -> None:
    async with open_rig(
        ping_interval=None, capabilities={"resources": {"subscribe": True}}, prepare=watchable
    ) as rig:
        port = present(rig)
        await rig.router.supervisor.subscribe_resource("a", "s", "test://x")
        if lost:
            rig.server.forget()
        await trio.sleep(3 * 3600)
        port.told.clear()
        rig.server.notify("notifications/resources/updated", {"uri": "test://x"}, rig.upstream_id())
        await trio.sleep(1)
        assert len(port.told) == 1


async def test_a_level_that_was_refused_is_asked_for_again(autojump_clock: MockClock) -> None:
    async with open_rig(
        ping_interval=None,
        capabilities={"logging": {}},
        prepare=lambda server: server.add_method("logging/setLevel", nothing),
    ) as rig:
        port = present(rig)
        await rig.call("increment")
        rig.server.reply_next(Reply_.text(503), method="logging/setLevel")
        port.log_level = "debug"
        for _ in range(3):
            rig.router.supervisor.set_log_level("a")
            await trio.sleep(1)
        assert len(rig.server.requests("logging/setLevel")) == 2
