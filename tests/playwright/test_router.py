"""An agent that does nothing but call, with a real browser behind the router.

It never opens a GET stream and answers nothing, as the controls do, which lose their pages.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import frozen
from peers import RunningRouter, run_router

from playwright.controls import Controls
from playwright.mcp_client import McpClient, Refused, text
from playwright.routed import configuration, failure_in, reset_in
from playwright.servers import NEW, OLD, REAP_TIME, VERSIONS, BrowserServer, browser_server, until
from playwright.surfing import Page, Surfer

IDLE = 20.0
assert IDLE > 3 * REAP_TIME

# The calls of one agent that follow each other, on a machine that is busy with more.
BRIEFLY = 60.0

# A session that is not deleted but abandoned is found dead no sooner than this.
AT_ONCE = REAP_TIME - 1


@pytest.fixture(autouse=True)
def naive_clients_are_reaped(controls: Controls) -> None:
    controls.require_reaped()


@pytest.mark.parametrize("version", VERSIONS)
async def test_idle_agents_keep_their_session_their_counter_and_their_page(
    version: str, router: RunningRouter, browsers: Mapping[str, BrowserServer], pages: str
) -> None:
    name = browsers[version].name
    async with AsyncExitStack() as stack:
        # One agent on the server's own path, one on the path of all servers.
        own = await stack.enter_async_context(McpClient.connect(router.mcp(name)))
        every = await stack.enter_async_context(McpClient.connect(router.mcp()))
        one = Surfer(own, version)
        other = Surfer(every, version, prefix=f"{name}__")
        with trio.fail_after(BRIEFLY):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: one.open(f"{pages}/apples", clicks=1))
                nursery.start_soon(lambda: other.open(f"{pages}/pears", clicks=2))
        sessions = own.session, every.session

        await trio.sleep(IDLE)

        with trio.fail_after(BRIEFLY):
            for surfer, kept in [
                (one, Page(f"{pages}/apples", 1)),
                (other, Page(f"{pages}/pears", 2)),
            ]:
                result = await surfer.call("browser_snapshot")
                assert reset_in(result) is None
                assert not result.get("isError")
                assert await surfer.look() == kept
            assert (own.session, every.session) == sessions
            assert [await own.delete(), await every.delete()] == [200, 200]


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_call_longer_than_the_reap_time_is_answered(
    version: str, router: RunningRouter, browsers: Mapping[str, BrowserServer], pages: str
) -> None:
    async with McpClient.connect(router.mcp(browsers[version].name)) as client:
        surfer = Surfer(client, version)
        with trio.fail_after(BRIEFLY):
            await surfer.open(f"{pages}/apples", clicks=1)
            result = await surfer.call("browser_wait_for", time=2 * REAP_TIME)
            assert "Waited for 10" in text(result)
            assert failure_in(result) is None
            assert await surfer.look() == Page(f"{pages}/apples", 1)
            await client.delete()


@pytest.mark.parametrize("version", VERSIONS)
async def test_an_agent_is_told_that_its_browser_died(
    version: str, pages: str, tmp_path: Path
) -> None:
    with ExitStack() as processes:
        first = processes.enter_context(browser_server(version, tmp_path / "first"))
        router = processes.enter_context(run_router(configuration(first), tmp_path))
        async with McpClient.connect(router.mcp(first.name)) as client:
            surfer = Surfer(client, version)
            cut: list[dict[str, Any]] = []

            async def wait_for_long() -> None:
                cut.append(await surfer.call("browser_wait_for", time=25))

            with trio.fail_after(BRIEFLY):
                await surfer.open(f"{pages}/apples", clicks=1)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(wait_for_long)
                    await until(
                        "the call arrives", lambda: first.calls("browser_wait_for") > 0, within=10
                    )
                    first.process.kill()
            [result] = cut
            assert result["isError"] is True
            failure = failure_in(result)
            assert failure is not None
            assert failure.pop("code")
            assert failure == {"fate": "unknown", "server": first.name, "retryable": False}
            assert str(first.port) not in text(result)

            refused = await surfer.call("browser_snapshot")
            failure = failure_in(refused)
            assert refused["isError"] is True
            assert failure is not None
            assert failure.pop("code")
            assert failure == {"fate": "not_executed", "server": first.name, "retryable": True}
            assert reset_in(refused) is None

            second = processes.enter_context(
                browser_server(version, tmp_path / "second", port=first.port)
            )
            with trio.fail_after(BRIEFLY):
                told = await surfer.call("browser_snapshot")
                notice = reset_in(told)
                assert notice is not None
                assert notice["reset"] is True
                assert notice["generation"] == 2
                assert notice["reason"]
                assert notice["reason"] in text(told)

                await surfer.open(f"{pages}/pears")
                after = await surfer.call("browser_snapshot")
                assert reset_in(after) is None
                assert await surfer.look() == Page(f"{pages}/pears", 0)
            assert second.created() >= 1


@frozen
class Stage:
    """Servers that nobody else uses, so that every session in their logs is accounted for."""

    browsers: Mapping[str, BrowserServer]
    router: RunningRouter


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with ExitStack() as processes:
        browsers = {
            version: processes.enter_context(browser_server(version, tmp_path / version))
            for version in VERSIONS
        }
        router = processes.enter_context(run_router(configuration(*browsers.values()), tmp_path))
        yield Stage(browsers, router)


@pytest.mark.parametrize("version", VERSIONS)
async def test_an_agent_that_leaves_ends_its_session_on_the_server(
    version: str, stage: Stage, pages: str
) -> None:
    browser = stage.browsers[version]
    async with (
        McpClient.connect(stage.router.mcp(browser.name)) as leaving,
        McpClient.connect(stage.router.mcp(browser.name)) as staying,
    ):
        with trio.fail_after(BRIEFLY):
            await Surfer(leaving, version).open(f"{pages}/pears")
            await Surfer(staying, version).open(f"{pages}/apples", clicks=1)
            assert browser.deleted() == 0
            assert await leaving.delete() == 200
        await until("delete http session", lambda: browser.deleted() == 1, within=AT_ONCE)
        with trio.fail_after(BRIEFLY):
            with pytest.raises(Refused, match="404"):
                await Surfer(leaving, version).look()
            assert await Surfer(staying, version).look() == Page(f"{pages}/apples", 1)
        assert browser.deleted() == 1


async def test_a_terminated_router_leaves_no_session_behind(stage: Stage, pages: str) -> None:
    old, new = stage.browsers[OLD], stage.browsers[NEW]
    async with AsyncExitStack() as stack:
        for browser, path in [(old, "apples"), (new, "apples"), (new, "pears")]:
            agent = McpClient.connect(stage.router.mcp(browser.name))
            client = await stack.enter_async_context(agent)
            with trio.fail_after(BRIEFLY):
                await Surfer(client, browser.version).open(f"{pages}/{path}")
        assert old.deleted() == new.deleted() == 0
        stage.router.process.signal(signal.SIGTERM)
        code = await trio.to_thread.run_sync(stage.router.process.wait, BRIEFLY)
    assert code == 0, stage.router.process.log()
    assert old.created() >= 1
    assert new.created() >= 2
    for browser in (old, new):
        await until(f"{browser.name} has no session", browser.is_deserted, within=1)
