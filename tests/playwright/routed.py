"""What the tests ask of a router: its configuration, and its words to an agent."""

from __future__ import annotations

from typing import Any

from playwright.servers import BrowserServer

_SESSION = "kars.azure.com/session"
_CALL = "kars.azure.com/call"


def configuration(*browsers: BrowserServer, **more: Any) -> dict[str, Any]:
    """The content of a kars.yaml with these servers and nothing that is not needed."""
    entries = {b.name: {"url": b.url, "allowedTools": ["browser_*"]} for b in browsers}
    return {"servers": entries, **more}


def reset_in(result: dict[str, Any]) -> dict[str, Any] | None:
    """What a result says of a lost session, None if nothing."""
    notice: dict[str, Any] | None = result.get("_meta", {}).get(_SESSION)
    return notice


def failure_in(result: dict[str, Any]) -> dict[str, Any] | None:
    """What a result says of a call that the router could not complete, None if nothing."""
    notice: dict[str, Any] | None = result.get("_meta", {}).get(_CALL)
    return notice
