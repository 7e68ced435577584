"""A world of authorization servers and of servers with metadata, without a network.

What is asked of it is what a real `TokenSource` asks; times are virtual.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final
from urllib.parse import parse_qsl

import httpx
import msgspec
import trio
from attrs import define, evolve, field, frozen

from kars_router.config.auth import OAuth
from kars_router.transports.oauth.endpoint import Endpoint
from kars_router.transports.oauth.tokens import TokenSource

SERVER: Final = "https://mcp.test/mcp"
ISSUER: Final = "https://as.test"
TOKEN_URL: Final = "https://as.test/token"
ISSUER_METADATA: Final = "https://as.test/.well-known/oauth-authorization-server"
SERVER_METADATA: Final = "https://mcp.test/.well-known/oauth-protected-resource/mcp"
SECRET: Final = "hush-hush-secret"
SETTINGS: Final = OAuth(issuer=ISSUER, client_id="router", client_secret_from_env="SECRET")


@frozen(kw_only=True)
class Answer:
    """What is answered: JSON unless there are other bytes, after so many seconds."""

    json: Any = None
    body: bytes = b""
    status: int = 200
    seconds: float = 0.0
    headers: Mapping[str, str] = field(factory=dict)
    broken: bool = False


@frozen
class Asked:
    """What was asked."""

    verb: str
    url: str
    form: Mapping[str, str]
    headers: Mapping[str, str]
    time: float


@define(eq=False)
class _Body(httpx.AsyncByteStream):
    body: bytes

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self.body


Rule = Answer | Callable[[Asked], Answer]


@define(eq=False)
class World(httpx.AsyncBaseTransport):
    """Answers by URL; 404 for what it does not know."""

    rules: dict[str, Rule] = field(factory=dict)
    asked: list[Asked] = field(factory=list)
    issued: int = 0
    open: int = 0
    lifetime: Any = 600

    def transport(self, url: str) -> httpx.AsyncBaseTransport:
        """A transport for the origin of a URL."""
        self.open += 1
        return self

    async def aclose(self) -> None:
        self.open -= 1

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        form = dict(
            parse_qsl((await request.aread()).decode(), strict_parsing=bool(request.content))
        )
        url = str(request.url)
        asked = Asked(request.method, url, form, dict(request.headers), trio.current_time())
        self.asked.append(asked)
        rule = self.rules.get(url, Answer(status=404))
        answer = rule(asked) if callable(rule) else rule
        await trio.sleep(answer.seconds)
        if answer.broken:
            raise httpx.ConnectError("connecting: refused", request=request)
        body = answer.body if answer.json is None else msgspec.json.encode(answer.json)
        headers = dict(answer.headers)
        return httpx.Response(answer.status, headers=headers, stream=_Body(body))

    def issue(self, asked: Asked) -> Answer:
        """The next token."""
        self.issued += 1
        fields = {"access_token": f"token-{self.issued}", "token_type": "Bearer"}
        more = {} if self.lifetime is None else {"expires_in": self.lifetime}
        return Answer(json=fields | more)

    def urls(self) -> list[str]:
        """Everything that was asked for, in order."""
        return [asked.url for asked in self.asked]

    def forms(self) -> list[Mapping[str, str]]:
        """The forms that were sent to the token endpoint, in order."""
        return [asked.form for asked in self.asked if asked.url == TOKEN_URL]


def metadata(issuer: str = ISSUER, **more: Any) -> Answer:
    """The metadata of an authorization server."""
    return Answer(json={"issuer": issuer, "token_endpoint": f"{issuer}/token", **more})


def resource(issuer: str = ISSUER, **more: Any) -> Answer:
    """The metadata of the server."""
    return Answer(json={"resource": SERVER, "authorization_servers": [issuer], **more})


def new_world(**options: Any) -> World:
    """One with an authorization server, and a server that names it."""
    world = World(**options)
    world.rules[ISSUER_METADATA] = metadata()
    world.rules[SERVER_METADATA] = resource()
    world.rules[TOKEN_URL] = world.issue
    return world


def new_source(world: World, **changes: Any) -> TokenSource:
    """A source without randomness; `changes` are to the settings."""
    settings = evolve(SETTINGS, **changes)
    return TokenSource(settings, SERVER, world.transport, random=lambda: 0.0)


def new_endpoint(world: World) -> Endpoint:
    """One for that world."""
    return Endpoint(world.transport)
