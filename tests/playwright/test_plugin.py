"""The Playwright plugin in a real router, with a browser that the server closes.

0.0.83 closes an idle browser and keeps the MCP session: no 404, no error, an empty page.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import trio
from attrs import frozen
from peers import REPOSITORY, RunningRouter, run_router

from playwright.mcp_client import McpClient, text
from playwright.routed import configuration, reset_in
from playwright.servers import NEW, BrowserServer, browser_server, until
from playwright.surfing import Page, Surfer, page

# Seconds without a call until the server closes the browser.
IDLE_TIMEOUT = 4.0
BLANK = Page("about:blank")

# The calls of one agent that follow each other, on a machine that is busy with more.
BRIEFLY = 60.0


@pytest.fixture(scope="module")
def plugin_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """PYTHONPATH with the plugin from this tree, and the metadata that an installer makes of it.

    The built distribution is what `tox -e plugins` tests. Here neither an installer nor a package
    index is needed.
    """
    source = REPOSITORY / "plugins" / "kars-plugin-playwright"
    project = tomllib.loads((source / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    target = tmp_path_factory.mktemp("plugin")
    name, version = project["name"], project["version"]
    metadata = target / f"{name.replace('-', '_')}-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8"
    )
    points = [
        line
        for group, entries in project["entry-points"].items()
        for line in (f"[{group}]", *(f"{key} = {value}" for key, value in entries.items()))
    ]
    (metadata / "entry_points.txt").write_text("\n".join(points) + "\n", encoding="utf-8")
    return os.pathsep.join([str(target), str(source)])


@frozen
class Stage:
    """A server that closes idle browsers, behind a router that notices and one that does not."""

    browser: BrowserServer
    watching: RunningRouter
    plain: RunningRouter


@pytest.fixture(scope="module")
def stage(plugin_path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    options = ["--idle-timeout", str(int(IDLE_TIMEOUT * 1000))]
    environment = {"PYTHONPATH": plugin_path}
    with ExitStack() as stack:
        browser = stack.enter_context(
            browser_server(NEW, tmp_path_factory.mktemp("browser"), *options)
        )
        watching = configuration(browser, plugins={"options": {"playwright": {"servers": ["new"]}}})
        plain = configuration(browser, plugins={"blocked": ["playwright"]})
        routers = [
            stack.enter_context(run_router(config, tmp_path_factory.mktemp("r"), env=environment))
            for config in (watching, plain)
        ]
        yield Stage(browser, *routers)


async def test_a_browser_closed_for_idleness_is_told_of_by_the_plugin_alone(
    stage: Stage, pages: str
) -> None:
    async with (
        McpClient.connect(stage.watching.mcp("new")) as told,
        McpClient.connect(stage.plain.mcp("new")) as untold,
    ):
        one, other = Surfer(told, NEW), Surfer(untold, NEW)
        closed = stage.browser.browsers_closed()
        with trio.fail_after(BRIEFLY):
            await one.open(f"{pages}/apples", clicks=1)
            await other.open(f"{pages}/pears")
        # One browser serves both, each in a context of its own.
        await until(
            "the server closes its idle browser",
            lambda: stage.browser.browsers_closed() > closed,
            within=IDLE_TIMEOUT + 10,
        )

        with trio.fail_after(BRIEFLY):
            # The control: by itself the result says nothing.
            silent = await other.call("browser_snapshot")
            assert page(silent) == BLANK
            assert not silent.get("isError")
            assert reset_in(silent) is None

            result = await one.call("browser_snapshot")
            assert page(result) == BLANK
            assert not result.get("isError")
            notice = reset_in(result)
            assert notice is not None
            assert notice["reset"] is True
            assert isinstance(notice["generation"], int)
            assert "reset to about:blank" in notice["reason"]
            assert notice["reason"] in text(result)
            # Once only.
            assert reset_in(await one.call("browser_snapshot")) is None

            await told.delete()
            await untold.delete()


async def test_an_agent_that_empties_its_own_browser_is_told_nothing(
    stage: Stage, pages: str
) -> None:
    async with McpClient.connect(stage.watching.mcp("new")) as client:
        surfer = Surfer(client, NEW)
        leave = "() => { location.href = 'about:blank' }"
        with trio.fail_after(BRIEFLY):
            for tool, arguments in [
                ("browser_navigate", {"url": "about:blank"}),
                ("browser_navigate_back", {}),
                ("browser_evaluate", {"function": leave}),
                ("browser_tabs", {"action": "close"}),
                ("browser_close", {}),
            ]:
                await surfer.open(f"{pages}/apples")
                left = await surfer.call(tool, **arguments)
                assert not left.get("isError"), text(left)
                after = await surfer.call("browser_snapshot")
                if tool != "browser_navigate_back":
                    assert page(after) == BLANK, tool
                assert reset_in(left) is None
                assert reset_in(after) is None
            await client.delete()
