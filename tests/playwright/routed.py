"""What the tests ask of a router: its configuration, which is the example's, and its words."""

from __future__ import annotations

from typing import Any

from peers import REPOSITORY
from ruamel.yaml import YAML

from playwright.servers import BrowserServer

_SESSION = "kars.azure.com/session"
_CALL = "kars.azure.com/call"


def configuration(*browsers: BrowserServer, **more: Any) -> dict[str, Any]:
    """The content of a kars.yaml that has these servers, each set up as the example has its one.

    Its state is kept next to it: routers that share a directory would share their memory.
    """
    example = YAML(typ="safe").load(REPOSITORY / "examples" / "playwright" / "kars.yaml")
    server = example["servers"]["playwright"]
    entries = {browser.name: {**server, "url": browser.url} for browser in browsers}
    return {"servers": entries, "state": "state", **more}


def reset_in(result: dict[str, Any]) -> dict[str, Any] | None:
    """What a result says of a lost session, None if nothing."""
    notice: dict[str, Any] | None = result.get("_meta", {}).get(_SESSION)
    return notice


def failure_in(result: dict[str, Any]) -> dict[str, Any] | None:
    """What a result says of a call that the router could not complete, None if nothing."""
    notice: dict[str, Any] | None = result.get("_meta", {}).get(_CALL)
    return notice
