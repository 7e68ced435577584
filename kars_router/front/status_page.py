"""`/` of the admin address: one page for people, which asks the same API as everybody else.

Owns its security headers: nothing is loaded from anywhere, and only its own script runs.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib import resources

from kars_router.front.exchange import Exchange, Header


async def show(exchange: Exchange) -> None:
    """Serves the page."""
    body, headers = _page()
    await exchange.respond(200, b"" if exchange.method == "HEAD" else body, headers)


@cache
def _page() -> tuple[bytes, tuple[Header, ...]]:
    body = resources.files("kars_router.front").joinpath("status.html").read_bytes()
    script, style = (_source(body, tag) for tag in (b"script", b"style"))
    policy = (
        f"default-src 'none'; script-src '{script}'; style-src '{style}'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return body, (
        (b"content-type", b"text/html; charset=utf-8"),
        (b"content-security-policy", policy.encode()),
        (b"cache-control", b"no-store"),
        (b"referrer-policy", b"no-referrer"),
        (b"x-content-type-options", b"nosniff"),
        (b"x-frame-options", b"DENY"),
    )


def _source(body: bytes, tag: bytes) -> str:
    text = body.partition(b"<%b>" % tag)[2].partition(b"</%b>" % tag)[0]
    return f"sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}"
