"""What an agent does with a browser, in terms of the pages of `servers.pages`."""

from __future__ import annotations

import re
from typing import Any

from attrs import frozen

from playwright.mcp_client import McpClient, text
from playwright.servers import OLD

_URL = re.compile(r"^- Page URL: (.*)$", re.MULTILINE)
_CLICKS = re.compile(r'Clicks: (\d+)"?$', re.MULTILINE)
_BUTTON = re.compile(r'button "Add".* \[ref=(\w+)\]')


@frozen
class Page:
    """What a snapshot shows: the address, and the counter if the page has one."""

    url: str
    clicks: int | None = None


@frozen
class Surfer:
    """An agent that drives one browser server.

    Attributes:
        client: its session.
        version: of the browser server, whose tools name an element by other arguments.
        prefix: of the tools' names.
    """

    client: McpClient
    version: str
    prefix: str = ""

    async def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """The result of a tool, whatever it says."""
        return await self.client.call(f"{self.prefix}{tool}", **arguments)

    async def open(self, url: str, *, clicks: int = 0) -> None:
        """Go to a page and click its button that often."""
        shown = page(await self.call("browser_navigate", url=url))
        assert shown is not None
        assert shown.url == url
        for _ in range(clicks):
            button = _BUTTON.search(text(await self.call("browser_snapshot")))
            assert button is not None
            argument = "ref" if self.version == OLD else "target"
            await self.call("browser_click", element="Add", **{argument: button[1]})

    async def look(self) -> Page | None:
        """The page that the browser shows now."""
        return page(await self.call("browser_snapshot"))


def page(result: dict[str, Any]) -> Page | None:
    """The page in a result; None if there is none."""
    shown = text(result)
    url, clicks = _URL.search(shown), _CLICKS.search(shown)
    return Page(url[1], int(clicks[1]) if clicks else None) if url else None
