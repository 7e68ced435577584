"""The two ways in which a naive client loses its session, tried on the real servers.

What the router does is only worth something where these clients fail.
"""

from __future__ import annotations

import attrs
import pytest
import trio
from attrs import frozen

from playwright.mcp_client import McpClient, Refused
from playwright.servers import NEW, OLD, REAP_TIME, BrowserServer
from playwright.surfing import Page, Surfer


@frozen
class Control:
    """How a naive client fared.

    Attributes:
        refusal: the server's answer to the last call, None if the session was still there.
        page: what that call showed otherwise.
        pings: how many the client got.
        lived: seconds from the first tools/call to the end of the client's GET stream.
    """

    refusal: tuple[int, str] | None
    page: Page | None
    pings: int = 0
    lived: float | None = None

    @property
    def reaped(self) -> bool:
        """Whether it lost its session."""
        return self.refusal == (404, "Session not found")


@frozen
class Controls:
    """Both."""

    without_stream: Control
    without_pongs: Control

    def require_reaped(self) -> None:
        """Fail the test if a naive client kept its session: then these servers show nothing."""
        for name, control in attrs.asdict(self, recurse=False).items():
            if not control.reaped:
                pytest.fail(f"the control {name} was not reaped: {control}", pytrace=False)


async def run_controls(old: BrowserServer, new: BrowserServer, page: str) -> Controls:
    """Try each on the version that punishes it, side by side."""
    found: dict[str, Control] = {}

    async def first() -> None:
        found[OLD] = await without_stream(old.url, OLD, page)

    async def second() -> None:
        found[NEW] = await without_pongs(new.url, NEW, page)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(first)
        nursery.start_soon(second)
    return Controls(found[OLD], found[NEW])


async def without_stream(url: str, version: str, page: str) -> Control:
    """Opens `page`, never a GET stream, and idles."""
    async with McpClient.connect(url) as client:
        surfer = Surfer(client, version)
        await surfer.open(page)
        # The time itself is what is tried: ping, REAP_TIME, and a margin for a busy machine.
        await trio.sleep(REAP_TIME + 4)
        return await _look(surfer)


async def without_pongs(url: str, version: str, page: str) -> Control:
    """Opens a GET stream and `page`, and answers no ping until the server ends the stream."""
    async with McpClient.connect(url) as client, trio.open_nursery() as nursery:
        surfer = Surfer(client, version)
        await nursery.start(client.listen)
        began = trio.current_time()
        await surfer.open(page)
        with trio.move_on_after(3 * REAP_TIME):
            await client.stream_ended.wait()
        ended = client.stream_ended.is_set()
        lived = trio.current_time() - began if ended else None
        found = await _look(surfer)
        nursery.cancel_scope.cancel()
    return attrs.evolve(found, pings=client.pings, lived=lived)


async def _look(surfer: Surfer) -> Control:
    try:
        return Control(None, await surfer.look())
    except Refused as refused:
        return Control((refused.status, refused.body), None)
    finally:
        with trio.move_on_after(5, shield=True):
            await surfer.client.delete()
