from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from agent_kit import Bench, configuration, open_bench
from attrs import evolve
from governance_kit import ALLOW, Scripted, govern
from trio.testing import MockClock

from kars_router.config.auth import AgentAuth
from kars_router.config.load import load
from kars_router.config.tools_lock import write_lock
from kars_router.errors import ConfigError, PluginError
from kars_router.hookspecs import GovernanceSettings, Governor, Transformer, hookimpl
from kars_router.pinning import Pin
from kars_router.reload import stamp, watch
from kars_router.testing import HeartbeatServer, RpcError, text_of


@asynccontextmanager
async def open_two(**settings: Mapping[str, Any]) -> AsyncIterator[Bench]:
    """A router with the servers `box` and `other`, of which `other` is not configured yet."""
    async with HeartbeatServer.open() as box, HeartbeatServer.open() as other:
        config = configuration({"box": settings.get("box", {})})
        async with open_bench(config, servers={"box": box, "other": other}) as bench:
            yield bench


async def names(bench: Bench, path: str = "/mcp") -> set[str]:
    return {tool["name"] for tool in await (await bench.connect(path)).list_tools()}


async def test_other_tools_are_allowed_without_touching_sessions(
    autojump_clock: MockClock,
) -> None:
    async with open_two() as bench:
        box = bench.servers["box"]
        agent = await bench.connect()
        await agent.call("box__increment")
        sessions = set(box.sessions)
        async with bench.listen(agent.session) as listening:
            await trio.sleep(1)
            heard = len(listening.messages)
            await bench.router.apply(configuration({"box": {"allowedTools": ["read"]}}))
            await listening.wait_for(lambda it: len(it.messages) == heard + 1)
        assert await names(bench) == {"box__read"}
        with pytest.raises(RpcError):
            await agent.call("box__increment")
        assert text_of(await agent.call("box__read")) == "counter: 1"
        assert set(box.sessions) == sessions
        await bench.router.apply(configuration({"box": {}}))
        assert text_of(await agent.call("box__increment")) == "counter: 2"
        assert box.happenings("deleted") == []


async def test_a_new_server_appears(autojump_clock: MockClock) -> None:
    async with open_two() as bench:
        agent = await bench.connect()
        await agent.call("box__increment")
        async with bench.listen(agent.session) as listening:
            await trio.sleep(1)
            heard = len(listening.messages)
            await bench.router.apply(configuration({"other": {}, "box": {}}))
            await listening.wait_for(lambda it: len(it.messages) > heard)
        assert text_of(await agent.call("other__increment")) == "counter: 1"
        assert text_of(await agent.call("box__increment")) == "counter: 2"
        assert "increment" in await names(bench, "/mcp/other")
        assert list(bench.router.supervisor.servers) == ["other", "box"]


async def test_sessions_of_a_removed_server_are_deleted(autojump_clock: MockClock) -> None:
    async with open_two() as bench:
        await bench.router.apply(configuration({"box": {}, "other": {}}))
        agent = await bench.connect()
        single = await bench.connect("/mcp/box")
        await agent.call("box__increment")
        await agent.call("other__increment")
        await bench.router.apply(configuration({"other": {}}))
        assert bench.servers["box"].sessions == {}
        assert bench.servers["box"].happenings("reaped") == []
        assert not any(name.startswith("box") for name in await names(bench))
        with pytest.raises(RpcError):
            await agent.call("box__increment")
        gone = await bench.post({"jsonrpc": "2.0"}, single.session, path="/mcp/box")
        assert gone.status_code == 404
        assert text_of(await agent.call("other__increment")) == "counter: 2"


async def test_a_server_that_moved_gets_new_sessions_and_the_agent_is_told(
    autojump_clock: MockClock,
) -> None:
    async with open_two() as bench:
        agent = await bench.connect()
        await agent.call("box__increment")
        moved = configuration({"box": {"url": "http://box.test/elsewhere"}})
        await bench.router.apply(moved)
        result = await agent.call("box__increment")
        assert result["_meta"]["kars.azure.com/session"]["reset"] is True
        assert text_of(result).endswith("counter: 1")
        assert {r.path for r in bench.servers["box"].requests("tools/call")} == {
            "/mcp",
            "/elsewhere",
        }


async def test_limits_change_at_once(autojump_clock: MockClock) -> None:
    async with open_two() as bench:
        agent = await bench.connect()
        more: dict[str, Any] = {
            "limits": {"agentSessions": 1, "requestBytes": "64KiB", "concurrentCalls": 1},
            "allowedHosts": ["router.pod"],
            "allowedOrigins": ["https://ui.example"],
        }
        await bench.router.apply(configuration({"box": {}}, **more))
        headers = {"host": "router.pod", "origin": "https://ui.example"}
        ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
        assert (await bench.post(ping, agent.session, headers=headers)).status_code == 200
        assert (await bench.post(b" " * (65 << 10), agent.session)).status_code == 413
        start = {**ping, "method": "initialize", "params": {"protocolVersion": "2025-11-25"}}
        assert (await bench.post(start)).status_code == 503


# From here on with the file itself: threads read it, so the clock is the real one.


class File:
    """A configuration file that is being watched."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, lock: Path | None = None, **servers: Mapping[str, Any]) -> None:
        document = {
            **({"toolsLock": str(lock)} if lock else {}),
            "servers": {
                name: {"url": f"http://{name}.test/mcp", "allowedTools": ["*"], **settings}
                for name, settings in servers.items()
            },
        }
        self.replace(msgspec.json.encode(document))

    def replace(self, content: bytes) -> None:
        """At once, as a Kubernetes volume does."""
        fresh = self.path.with_suffix(".new")
        fresh.write_bytes(content)
        fresh.replace(self.path)


@asynccontextmanager
async def open_watched(tmp_path: Path) -> AsyncIterator[tuple[Bench, File]]:
    file = File(tmp_path / "kars.yaml")
    file.write(box={})
    config = evolve(load(file.path, environ={}), admin=None)
    async with (
        HeartbeatServer.open() as box,
        HeartbeatServer.open() as other,
        open_bench(config, servers={"box": box, "other": other}) as bench,
    ):
        file.write(box={}, other={})  # changed while nobody watched yet
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(watch, bench.router, file.path, poll=0.01))
            yield bench, file
            nursery.cancel_scope.cancel()


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(20):
        while not condition():  # noqa: ASYNC110 - a file gives no event
            await trio.sleep(0.01)


def reloads(bench: Bench, outcome: str) -> float:
    registry = bench.router.metrics.registry
    return registry.get_sample_value("kars_config_reloads_total", {"outcome": outcome}) or 0


async def test_a_changed_file_is_applied_and_an_invalid_one_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with open_watched(tmp_path) as (bench, file):
        await until(lambda: "other" in bench.router.supervisor.servers)
        agent = await bench.connect()
        await agent.call("box__increment")
        for bad in (b"servers: {box: {urll: x}}", b"{", b"servers:", b"\xff"):
            before = reloads(bench, "refused")
            capsys.readouterr()
            file.replace(bad)
            await until(lambda before=before: reloads(bench, "refused") == before + 1)  # type: ignore[misc]
            said = capsys.readouterr()
            assert "reload_refused" in said.out + said.err
            assert text_of(await agent.call("box__read")) == "counter: 1"
        file.path.unlink()
        await until(lambda: reloads(bench, "refused") == 5)
        file.write(box={"allowedTools": ["read"]}, other={})
        await until(lambda: reloads(bench, "applied") >= 2)
        assert text_of(await agent.call("box__read")) == "counter: 1"
        with pytest.raises(RpcError):
            await agent.call("box__increment")
        assert len(bench.servers["box"].happenings("deleted")) == 0


@pytest.mark.parametrize("changed", [False, True])
async def test_what_was_read_at_the_start_is_read_again_only_if_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: bool
) -> None:
    reads: list[Path | None] = []

    def counted(path: Path | None, **more: Any) -> Any:
        reads.append(path)
        return load(path, **more)

    monkeypatch.setattr("kars_router.reload.load", counted)
    file = File(tmp_path / "kars.yaml")
    file.write(box={})
    seen = [stamp(file.path)]
    config = evolve(load(file.path, environ={}), admin=None)
    seen.append(stamp(config.tools_lock))
    if changed:
        file.write(box={"allowedTools": ["read"]})
    async with (
        HeartbeatServer.open() as box,
        open_bench(config, servers={"box": box}) as bench,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(partial(watch, bench.router, file.path, seen=seen, poll=0.01))
        if not changed:
            await trio.sleep(0.2)  # twenty looks
            assert reads == []
            file.write(box={"allowedTools": ["read"]})
        await until(lambda: reloads(bench, "applied") == 1)
        assert reads == [file.path]
        nursery.cancel_scope.cancel()


async def test_a_file_written_anew_without_a_change_changes_nothing(tmp_path: Path) -> None:
    async with open_watched(tmp_path) as (bench, file):
        await until(lambda: reloads(bench, "applied") == 1)
        file.write(box={}, other={})
        file.write(box={}, other={})
        await trio.sleep(0.1)
        assert reloads(bench, "applied") == 1
        assert reloads(bench, "refused") == 0


async def test_a_file_that_was_mended_to_what_is_in_force_is_the_last_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = ""

    def unchanged() -> bool:
        nonlocal said
        new = capsys.readouterr()
        said += new.out + new.err
        return "reload_unchanged" in said

    async with open_watched(tmp_path) as (bench, file):
        await until(lambda: reloads(bench, "applied") == 1)
        file.replace(b"servers:")
        await until(lambda: reloads(bench, "refused") == 1)
        assert not unchanged()
        file.write(box={}, other={})
        await until(unchanged)
        assert reloads(bench, "applied") == 1


async def test_a_changed_lock_of_tools_is_applied_and_an_invalid_one_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = tmp_path / "tools.lock.json"
    async with open_watched(tmp_path) as (bench, file):
        await until(lambda: reloads(bench, "applied") == 1)
        agent = await bench.connect()
        await agent.call("box__increment")
        sessions = set(bench.servers["box"].sessions)
        pins = {
            tool["name"]: Pin.of(tool)
            for tool in await (await bench.connect("/mcp/box")).list_tools()
        }
        # A lock that is not there withholds nothing, for the file that names it is refused.
        file.write(lock=lock, box={}, other={})
        await until(lambda: reloads(bench, "refused") == 1)
        assert "box__read" in await names(bench)
        # It is noticed although the file that is in force names none.
        write_lock(lock, {"box": {"read": pins["read"]}})
        await until(lambda: reloads(bench, "applied") == 2)
        assert await names(bench) == {"box__read"}
        write_lock(lock, {"box": {"read": pins["read"], "increment": pins["increment"]}})
        await until(lambda: reloads(bench, "applied") == 3)
        assert await names(bench) == {"box__read", "box__increment"}
        capsys.readouterr()
        lock.write_bytes(lock.read_bytes().replace(b'"read"', b'"raed"'))
        await until(lambda: reloads(bench, "refused") == 2)
        said = capsys.readouterr()
        assert "was changed by hand" in said.out + said.err
        await trio.sleep(0.1)
        assert reloads(bench, "refused") == 2  # said once, though it is looked at again
        assert await names(bench) == {"box__read", "box__increment"}
        lock.unlink()
        await until(lambda: reloads(bench, "refused") == 3)
        assert await names(bench) == {"box__read", "box__increment"}
        assert text_of(await agent.call("box__read")) == "counter: 1"
        assert sessions <= set(bench.servers["box"].sessions)


async def test_a_changed_policy_applies_to_the_next_call_and_drops_nothing(
    tmp_path: Path,
) -> None:
    file = tmp_path / "kars.yaml"
    server = {"url": "http://box.test/mcp", "allowedTools": ["*"]}

    def write(*rules: Mapping[str, Any]) -> None:
        policy = {"name": "p", "default": "allow", "rules": rules}
        whole = {"servers": {"box": server}, "policies": [policy], "admin": None}
        fresh = tmp_path / "fresh"
        fresh.write_bytes(msgspec.json.encode(whole))
        fresh.replace(file)  # at once: half a file would be refused, rightly

    write()
    config = load(file, environ={})
    async with open_bench(config) as bench, trio.open_nursery() as nursery:
        agent = await bench.connect()
        assert text_of(await agent.call("box__increment")) == "counter: 1"
        nursery.start_soon(partial(watch, bench.router, file, poll=0.01))
        slow: list[Any] = []

        async def call_slowly() -> None:
            slow.append(await agent.call("box__slow", seconds=2))

        nursery.start_soon(call_slowly)
        await until(lambda: reloads(bench, "applied") == 1)
        async with bench.listen(agent.session) as listening:
            write({"effect": "deny", "tools": ["increment"], "name": "no"})
            await until(lambda: reloads(bench, "applied") == 2)
            denied = await agent.call("box__increment")
            assert denied["_meta"]["kars.azure.com/call"]["code"] == "denied"
            status = bench.router.policy_status.document()
            write({"effect": "deny", "tools": ["read"], "when": "args.x +"})
            await until(lambda: reloads(bench, "refused") == 1)
            refused = bench.router.policy_status.document()
            assert "policies[0].rules[0].when" in refused["refused"]["problems"][0]
            assert refused["digest"] == status["digest"]
            assert (await agent.call("box__increment"))["isError"]
            assert text_of(await agent.call("box__read")) == "counter: 1"
            write()
            await until(lambda: reloads(bench, "applied") == 3)
            assert text_of(await agent.call("box__increment")) == "counter: 2"
            assert bench.router.policy_status.document()["refused"] is None
            assert not listening.ended.is_set()
            await until(lambda: bool(slow))
        assert slow[0]["isError"] is False
        assert bench.server.happenings("deleted") == []
        nursery.cancel_scope.cancel()


async def test_what_is_refused_halfway_leaves_nothing_behind(autojump_clock: MockClock) -> None:
    made: list[str] = []
    wrong = ""

    class Plugin(Scripted):
        @hookimpl
        def kars_governors(self, settings: GovernanceSettings) -> Sequence[Governor]:
            made.append("governor")
            return [self]

        @hookimpl
        def kars_transformers(self, settings: GovernanceSettings) -> Sequence[Transformer]:
            if wrong == "transformers":
                raise ValueError("no")
            return []

    async with open_two() as bench:
        router = bench.router
        await govern(router, Plugin(ALLOW))
        before = (router.config, router.governance._rules, router.policy_status.document())
        made.clear()
        for wrong in ("transformers", "auth"):
            broken = configuration({"box": {"allowedTools": ["read"]}}, policies=[{}])
            if wrong == "auth":
                auth = AgentAuth(token_from_file=Path("/none/at/all"))
                broken = evolve(broken, agent_auth=auth)
            with pytest.raises((PluginError, ConfigError)):
                await router.apply(broken)
            after = (router.config, router.governance._rules, router.policy_status.document())
            assert after == before
            assert made == []
        agent = await bench.connect()
        assert text_of(await agent.call("box__increment")) == "counter: 1"
