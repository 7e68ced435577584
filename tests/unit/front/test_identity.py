from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock
from unit.front.stateless_kit import Rig, fixed, open_rig

from kars_router.errors import AgentError
from kars_router.front.callers import AgentCaller, Requester
from kars_router.front.identity import Identities, Identity, identity_of
from kars_router.front.operations import Answer
from kars_router.wire import jsonrpc

KEY = "kars.azure.com/agent"


def params(key: Any = None) -> bytes:
    return jsonrpc.encode({"name": "n", "_meta": {} if key is None else {KEY: key}})


@pytest.mark.parametrize(
    ("scope", "key", "agent"),
    [
        ({}, None, "listener"),
        ({}, "blue", "agent:blue"),
        ({}, "x" * 128, "agent:" + "x" * 128),
        ({}, "listener", "agent:listener"),
        ({}, "principal:alice", "agent:principal:alice"),
        ({"state": {"kars.principal": "alice"}}, None, "principal:alice"),
        ({"state": {"kars.principal": "alice"}}, "blue", "principal:alice"),
        ({"state": {"kars.principal": ""}}, "blue", "agent:blue"),
        ({"state": {"kars.principal": None}}, None, "listener"),
        ({"state": {"other": 1}, "extensions": {}}, None, "listener"),
        ({"extensions": {"tls": {"client_cert_name": "CN=a"}}}, "b", "certificate:CN=a"),
        ({"extensions": {"tls": {"client_cert_name": None}}}, "b", "agent:b"),
        (
            {"extensions": {"tls": {"client_cert_name": "CN=a", "client_cert_error": "expired"}}},
            None,
            "listener",
        ),
        (
            {
                "state": {"kars.principal": "alice"},
                "extensions": {"tls": {"client_cert_name": "CN=a"}},
            },
            "b",
            "principal:alice",
        ),
        ({"state": None, "extensions": {"tls": None}}, None, "listener"),
    ],
)
def test_the_first_sign_that_is_there_decides(scope: Any, key: Any, agent: str) -> None:
    assert identity_of(scope, params(key)) == agent


def test_an_escaped_key_is_the_same_key() -> None:
    escaped = params("blue").replace(b"kars.azure.com/agent", rb"kars.azure.com\/\u0061gent")
    assert identity_of({}, escaped) == "agent:blue"


@pytest.mark.parametrize("key", ["", "x" * 129, 1, {}, [], True])
def test_a_key_that_is_none_is_refused(key: Any) -> None:
    with pytest.raises(AgentError, match="must be a string"):
        identity_of({}, params(key))


def test_no_params_are_nobody_in_particular() -> None:
    assert identity_of({}, b"") == "listener"


def test_what_is_declared_adds_up() -> None:
    one = Identity("a", 0.0, 0.0)
    for declared in (
        b'{"sampling":{}}',
        b'{"elicitation":{"form":{}}}',
        b'{"elicitation":{"url":{}}}',
    ):
        one.declare(declared)
    assert jsonrpc.decode(one.capabilities) == {
        "sampling": {},
        "elicitation": {"form": {}, "url": {}},
    }


def test_what_is_declared_does_not_grow_without_end() -> None:
    one = Identity("a", 0.0, 0.0)
    for number in range(2000):
        one.declare(jsonrpc.encode({f"capability-{number}": {}}))
        assert len(one.capabilities) <= 16 * 1024
    one.declare(jsonrpc.encode({"x": "y" * 100_000}))
    assert len(one.capabilities) <= 16 * 1024


@pytest.mark.parametrize("size", [1000, 16_300, 100_000])
def test_too_much_of_it_does_not_hide_what_a_server_can_use(size: int) -> None:
    junk = {"experimental": {"x": "y" * size}}
    useful: dict[str, Any] = {
        "sampling": {"tools": {}},
        "elicitation": {"form": {}, "url": {}},
        "roots": {},
    }
    for rounds in (
        (junk, useful),
        (useful, junk),
        ({**junk, **useful}, junk),
        (junk, junk, useful),
    ):
        one = Identity("a", 0.0, 0.0)
        for declared in rounds:
            one.declare(jsonrpc.encode(declared))
        found = jsonrpc.decode(one.capabilities)
        assert {name: found[name] for name in useful} == useful


async def test_an_agent_is_joined_once_and_known_by_all_its_requests(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig:
        rig.operations.handlers["tools/call"] = fixed({})
        await rig.call(capabilities={"sampling": {}})
        await rig.call(path="/mcp/box", capabilities={"roots": {}})
        await rig.call(extra={KEY: "blue"})
        assert list(rig.joined) == ["listener", "agent:blue"]
        port = rig.joined["listener"]
        assert jsonrpc.decode(port.capabilities) == {"sampling": {}, "roots": {}}
        assert port.log_level == ""
        assert port.bystander("box") is None
        assert [who.agent for who, *_ in rig.operations.performed] == [
            "listener",
            "listener",
            "agent:blue",
        ]


async def test_a_key_of_a_wrong_kind_is_the_agents_mistake(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        response = await rig.post("tools/call", {"name": "n"}, extra={KEY: 5})
        assert response.status_code == 400
        assert response.json()["error"]["code"] == jsonrpc.INVALID_PARAMS
        assert not rig.joined


async def _waits(_: Requester, request: Any, ___: AgentCaller) -> Answer:
    await trio.sleep(request.get("seconds", 0))
    return Answer(result=b"{}")


def open_waiting(rig: Rig) -> None:
    rig.operations.handlers["tools/call"] = _waits


async def test_an_agent_that_is_idle_is_forgotten(autojump_clock: MockClock) -> None:
    async with open_rig(idle=100.0) as rig:
        open_waiting(rig)
        await rig.call()
        await trio.sleep(90)
        await rig.call()
        await trio.sleep(90)
        assert not rig.ended
        # A call in flight is no idleness, nor is an open stream.
        await rig.stream_to_end("tools/call", {"name": "n", "seconds": 300})
        async with rig.stream("subscriptions/listen", {"notifications": {}}):
            await trio.sleep(300)
        assert not rig.ended
        await trio.sleep(150)
        assert rig.ended == [("listener", "idle for 100 s")]
        rig.joined.clear()
        await rig.call()
        assert list(rig.joined) == ["listener"]


async def test_a_parked_call_keeps_its_agent(autojump_clock: MockClock) -> None:
    async def asks(_: Requester, __: Any, caller: AgentCaller) -> Answer:
        await caller.ask("roots/list", b"")
        return Answer(result=b"{}")

    async with open_rig(idle=100.0, seconds=600.0) as rig:
        rig.operations.handlers["tools/call"] = asks
        await rig.call(capabilities={"roots": {}})
        await trio.sleep(590)
        assert not rig.ended
        await trio.sleep(200)
        assert [agent for agent, _ in rig.ended] == ["listener"]


async def test_a_lifetime_ends_when_nothing_is_in_flight(autojump_clock: MockClock) -> None:
    async with open_rig(idle=1000.0, lifetime=5000.0) as rig:
        open_waiting(rig)
        async with rig.stream("subscriptions/listen", {"notifications": {}}) as listening:
            await trio.sleep(4900)
            await rig.stream_to_end("tools/call", {"name": "n", "seconds": 300})
            assert not rig.ended
            await trio.sleep(30)
            assert rig.ended == [("listener", "its lifetime is over")]
            # Its stream ends in order: it may simply be opened again.
            await listening.ended.wait()
            assert "result" in listening.messages[-1]


async def test_the_number_of_agents_is_bounded(autojump_clock: MockClock) -> None:
    async with open_rig(limit=3, others=1) as rig:
        open_waiting(rig)
        for name in ("one", "two"):
            await rig.call(extra={KEY: name})
        for method in ("tools/call", "subscriptions/listen"):
            request = {"name": "n", "notifications": {}}
            response = await rig.post(method, request, extra={KEY: "three"})
            assert response.status_code == 503
            assert response.json()["error"]["code"] == jsonrpc.REFUSED
        await rig.call(extra={KEY: "two"})
        # What a server may keep something for is not given up for the sake of another.
        await trio.sleep(100)
        assert (await rig.post("tools/call", extra={KEY: "three"})).status_code == 503


async def test_an_agent_that_holds_nothing_makes_room(autojump_clock: MockClock) -> None:
    async with open_rig(limit=1) as rig:
        assert (await rig.post("nonsense", extra={KEY: "one"})).status_code == 404
        assert (await rig.post("nonsense", extra={KEY: "two"})).status_code == 503
        await trio.sleep(61)
        assert (await rig.post("nonsense", extra={KEY: "two"})).status_code == 404
        assert [agent for agent, _ in rig.ended] == ["agent:one"]


async def test_a_request_of_an_agent_that_is_gone_does_not_leave(
    autojump_clock: MockClock,
) -> None:
    began: list[bool] = []

    async def late(_: Requester, __: Any, caller: AgentCaller) -> Answer:
        rig.identities.end(rig.identities.all()[0], "a test says so")
        began.append(caller.begin())
        return Answer(result=b"{}")

    async with open_rig() as rig:
        rig.operations.handlers["tools/call"] = late
        await rig.call()
        assert began == [False]
        assert len(rig.identities) == 0


async def test_room_is_asked_for_elsewhere_last(autojump_clock: MockClock) -> None:
    others, asked = 1, 0

    def make_room() -> bool:
        nonlocal others, asked
        asked += 1
        others, before = 0, others
        return before > 0

    identities = Identities(
        lambda *_: None,
        lambda *_: None,
        limit=2,
        idle=3600.0,
        lifetime=3600.0,
        others=lambda: others,
        make_room_elsewhere=make_room,
    )
    identities.find("one", b"{}")
    assert asked == 0
    await trio.sleep(61)
    identities.find("two", b"{}").use()  # in the place of the first one
    assert (asked, [identity.agent for identity in identities.all()]) == (0, ["two"])
    identities.find("three", b"{}").use()
    assert asked == 1
    with pytest.raises(AgentError, match="the limit"):
        identities.find("four", b"{}")
    assert (asked, len(identities)) == (2, 2)
