"""The status page in a real browser: a held call is shown there, and decided there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import trio
from governance_kit import meta
from unit.cli.test_approvals import Scene, held

from kars_router.testing import text_of
from playwright.mcp_client import McpClient, text
from playwright.servers import NEW, BrowserServer

# The calls of one agent that follow each other, on a machine that is busy with more.
BRIEFLY = 60.0


async def seen(browser: McpClient, pattern: str) -> re.Match[str]:
    """The first place of the page that fits, once there is one: it asks every two seconds."""
    while True:
        shown = text(await browser.call("browser_snapshot"))
        if found := re.search(pattern, shown):
            return found
        await trio.sleep(0.1)


async def decide(browser: McpClient, word: str) -> None:
    """Clicks the button of the only held call."""
    failed = True
    while failed:  # the page may have been drawn anew since it was looked at
        button = (await seen(browser, rf'button "{word}".* \[ref=(\w+)\]'))[1]
        result = await browser.call("browser_click", element=word, target=button)
        failed = bool(result.get("isError"))


async def log_in(browser: McpClient, scene: Scene, token: str) -> None:
    field = (await seen(browser, r'textbox "Admin token".* \[ref=(\w+)\]'))[1]
    typed = {"element": "Admin token", "target": field, "text": token, "submit": True}
    assert not (await browser.call("browser_type", **typed)).get("isError")


@pytest.mark.parametrize("word", ["Approve once", "Deny"])
async def test_a_held_call_is_shown_and_decided(
    word: str, browsers: Mapping[str, BrowserServer], tmp_path: Path
) -> None:
    async with held(tmp_path) as scene, McpClient.connect(browsers[NEW].url) as browser:
        with trio.fail_after(BRIEFLY):
            await browser.call("browser_navigate", url=f"{scene.admin}/")
            await seen(browser, r'cell "box"')  # the servers are nobody's secret
            # Nothing of a call is shown without the token.
            assert "increment" not in text(await browser.call("browser_snapshot"))
            await log_in(browser, scene, "not the admin token")
            await seen(browser, "this is not the admin token")
            await log_in(browser, scene, (tmp_path / "admin-token").read_text().strip())
            await seen(browser, "increment")
            await seen(browser, "It deletes things")
            shown = text(await browser.call("browser_snapshot"))
            assert "plain-agent" in shown
            assert "u001b" in shown  # what an agent says cannot be anything but text
            await decide(browser, word)
            await seen(browser, "approved: " if word != "Deny" else "denied: ")
            while not scene.results:  # noqa: ASYNC110 - the answer is another task's
                await trio.sleep(0.01)
        if word == "Deny":
            assert meta(scene.results[0])["code"] == "approval_denied"
        else:
            assert text_of(scene.results[0]) == "counter: 1"
        await browser.delete()
