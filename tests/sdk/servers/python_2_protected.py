"""A server on the official Python SDK 2.x that wants tokens made for it.

python python_2_protected.py PORT ISSUER
"""

from __future__ import annotations

import hashlib
import json
import sys
import urllib.parse
import urllib.request
from collections import Counter
from typing import Any

import anyio.to_thread
from mcp.server.auth.provider import AccessToken
from mcp.server.auth.settings import AuthSettings
from mcp.server.mcpserver import Context, MCPServer

port, issuer = sys.argv[1:]
introspection = urllib.parse.urljoin(issuer, "/introspect")


def introspect(token: str) -> Any:
    """What the authorization server says of a token (RFC 7662)."""
    form = urllib.parse.urlencode({"token": token}).encode()
    with urllib.request.urlopen(introspection, form, timeout=5) as answer:
        return json.load(answer)


class Verifier:
    async def verify_token(self, token: str) -> AccessToken | None:
        said = await anyio.to_thread.run_sync(introspect, token)
        if not said["active"]:
            return None
        return AccessToken(
            token=token,
            client_id=said["client_id"],
            scopes=said["scope"].split(),
            expires_at=said["exp"],
            resource=said["aud"],
            subject=said["sub"],
        )


server = MCPServer(
    "protected",
    token_verifier=Verifier(),
    auth=AuthSettings(
        issuer_url=issuer,
        resource_server_url=f"http://127.0.0.1:{port}/mcp",
        required_scopes=["mcp"],
        validate_token_resource=True,
    ),
)
counts: Counter[str] = Counter()


@server.tool()
def count(context: Context) -> str:
    """How often this session has called, and a digest of the token that it showed."""
    session = context.headers["mcp-session-id"]
    counts[session] += 1
    shown = hashlib.sha256(context.headers["authorization"].encode()).hexdigest()
    return f"{counts[session]} {shown}"


server.run(transport="streamable-http", host="127.0.0.1", port=int(port))
