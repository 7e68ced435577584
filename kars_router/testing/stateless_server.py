"""A scripted MCP server of the stateless era (2026-07-28), as an ASGI application on Trio.

It knows no sessions: each request carries all that is needed, what the server wants to know it
asks by an `input_required` result, and what it has to say outside of requests it says on the
streams of `subscriptions/listen`. It checks its clients as strictly as the revision allows.

It shares no code with the router, so that the two cannot agree on the same mistake. All timing
is on Trio's clock.

Source: MCP 2026-07-28 "Streamable HTTP", "Multi Round-Trip Requests", "Subscriptions", "Caching".
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, Literal

import msgspec
import trio
from attrs import define, field

from kars_router.testing._asgi import Receive, Scope, Send, run_lifespan
from kars_router.testing._stateless_endpoint import Listen, StatelessEndpoint
from kars_router.testing._stateless_tools import (
    BUILT_IN,
    NAME_FORM,
    PROTOCOL,
    StatelessCall,
    StatelessHandler,
)
from kars_router.testing.replies import Happening, Json, Received, Reply, Script

REVISION: Final = "2026-07-28"


@define(eq=False, kw_only=True)
class StatelessServer:
    """The server. Make one with `StatelessServer.open`; `app` is the ASGI application.

    Every option can be changed while it runs and holds for what comes after. Tools: `echo`,
    `counter` (of this server, as `counter: N`), `slow` (`seconds`), `progress` (`steps`,
    `seconds`), `log`, `ask` (`requests`, `rounds`), `ask_twice`, `region` (its argument has an
    `x-mcp-header`), `trigger` (`list`), `fail`, `error`. Prompts: `greet`, and `ask`, which asks
    first.

    Attributes:
        versions: revisions it speaks.
        capabilities: what it declares.
        instructions: for the model; "" for none.
        responses: `auto` answers in JSON unless something is said before the answer; `sse` always
            by an event stream.
        listen: False answers `subscriptions/listen` as an unknown method.
        honours: the kinds of notifications that it agrees to, by the names in the filter.
        listen_delay: seconds from a listen request to its acknowledgement.
        keepalive: seconds after which a silent stream gets a comment; None sends none.
        check_headers: whether headers have to agree with the body.
        check_capabilities: whether clients are asked only for what they declared.
        ttl_ms: how long lists and resources stay fresh.
        page_size: items per page of a list; None for one page.
        script: asked before every request; what it returns is answered instead.
        resources: texts by URI; change one with `change_resource`.
        counter: how many calls of `counter` were carried out.
        states: the request states that were given out.
        listens: the open streams of `subscriptions/listen`, oldest first.
        log: every request that came in, in order.
        history: `listening`, `left` (the client closed before the answer) and `answered`, each
            with the JSON-RPC method as its session and the id as its detail.
    """

    versions: tuple[str, ...] = (REVISION,)
    capabilities: Json = field(
        factory=lambda: {
            "tools": {"listChanged": True},
            "prompts": {"listChanged": True},
            "resources": {"listChanged": True, "subscribe": True},
            "completions": {},
            "logging": {},
        }
    )
    instructions: str = "Count, then ask."
    responses: Literal["auto", "sse"] = "auto"
    listen: bool = True
    honours: frozenset[str] = frozenset(
        {
            "toolsListChanged",
            "promptsListChanged",
            "resourcesListChanged",
            "resourceSubscriptions",
        }
    )
    listen_delay: float = 0.0
    keepalive: float | None = 15.0
    check_headers: bool = True
    check_capabilities: bool = True
    ttl_ms: int = 60_000
    page_size: int | None = None
    script: Script | None = None
    resources: dict[str, str] = field(
        factory=lambda: {"test://static": "static", "test://changing": "0"}
    )
    counter: int = field(default=0, init=False)
    states: set[str] = field(factory=set, init=False)
    listens: list[Listen] = field(factory=list, init=False)
    log: list[Received] = field(factory=list, init=False)
    history: list[Happening] = field(factory=list, init=False)
    tools: dict[str, tuple[str, Json, StatelessHandler]] = field(
        factory=lambda: dict(BUILT_IN), init=False, repr=False
    )
    _queued: list[tuple[str | None, Reply]] = field(factory=list, init=False)
    _changed: trio.Event = field(factory=trio.Event, init=False)
    _open: bool = field(default=False, init=False)

    @classmethod
    @asynccontextmanager
    async def open(cls, **options: Any) -> AsyncIterator[StatelessServer]:
        """Run a server with these options (the attributes of the class) for a `with` block.

        On leaving, the streams of `subscriptions/listen` are broken off; requests that still
        come are given no response.

        Raises:
            TypeError: an option does not exist.
        """
        server = cls(**options)
        server._open = True
        await trio.lowlevel.checkpoint()
        try:
            yield server
        finally:
            server._open = False
            server.drop_listens(cut=True)

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application; any path is the endpoint."""
        await trio.lowlevel.checkpoint()
        if scope["type"] == "lifespan":
            await run_lifespan(receive, send)
        elif scope["type"] == "http" and self._open:
            await StatelessEndpoint(self).handle(scope, receive, send)

    # What a test does to it

    def reply_next(self, reply: Reply, *, method: str | None = None, times: int = 1) -> None:
        """Answer the next `times` requests with this JSON-RPC method (or any) by `reply`.

        Several such orders are served in the order they were given; a `script` is asked first.
        """
        self._queued.extend([(method, reply)] * times)

    def notify_changed(self, what: str) -> None:
        """Say that the list of `tools`, `prompts` or `resources` changed, to who listens."""
        for listen in self.listens:
            if f"{what}ListChanged" in listen.honoured:
                listen.notify(f"notifications/{what}/list_changed")

    def change_resource(self, uri: str, content: str) -> None:
        """Give a resource another content, and say so to who watches it."""
        self.resources[uri] = content
        for listen in self.listens:
            if uri in listen.uris:
                listen.notify("notifications/resources/updated", {"uri": uri})

    def drop_listens(self, *, cut: bool = False) -> None:
        """End the streams of `subscriptions/listen` without a word, cleanly or broken off."""
        for listen in self.listens:
            listen.end(cut=cut)

    def end_listens(self) -> None:
        """End the streams of `subscriptions/listen` as a server does that is going down."""
        for listen in self.listens:
            listen.complete()

    def add_tool(
        self,
        name: str,
        handler: StatelessHandler,
        *,
        description: str = "",
        schema: Mapping[str, Any] | None = None,
    ) -> None:
        """Offer a tool, or replace one; says nothing to the clients."""
        self.tools[name] = (description, dict(schema or {"type": "object"}), handler)

    def remove_tool(self, name: str) -> None:
        """Stop offering a tool; says nothing to the clients."""
        del self.tools[name]

    # What a test asks it

    def requests(self, method: str | None = None) -> list[Received]:
        """What came in with this JSON-RPC method, in order."""
        return [received for received in self.log if method in (None, received.method)]

    def happenings(self, what: str, method: str | None = None) -> list[Happening]:
        """What happened of this kind, to requests with this method or any, in order."""
        return [h for h in self.history if h.what == what and method in (None, h.session)]

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Return once `condition()` is true; asked again at each entry of `log` or `history`."""
        while not condition():
            await self._changed.wait()

    # What the endpoint does with it

    def record(self, received: Received) -> None:
        """Add to the log."""
        self.log.append(received)
        self._wake()

    def note(self, received: Received, what: str) -> None:
        """Add to the history."""
        detail = msgspec.json.encode(received.id).decode()
        self.history.append(Happening(trio.current_time(), received.method or "", what, detail))
        self._wake()

    def choose_reply(self, received: Received) -> Reply | None:
        """What the script or an order of the test says to answer, if anything."""
        if self.script is not None and (reply := self.script(received)) is not None:
            return reply
        for index, (method, reply) in enumerate(self._queued):
            if method in (None, received.method):
                del self._queued[index]
                return reply
        return None

    def discover(self) -> Json:
        """The result of `server/discover`."""
        result: Json = {
            "supportedVersions": list(self.versions),
            "capabilities": self.capabilities,
            **self.freshness(),
        }
        if self.instructions:
            result["instructions"] = self.instructions
        return result

    def freshness(self) -> Json:
        """What says how long a result may be kept."""
        return {"ttlMs": self.ttl_ms, "cacheScope": "public"}

    def items(self, name: str) -> list[Json]:
        """What a list holds, in order, by the name of the list in the result."""
        if name == "tools":
            return [
                {"name": tool, "description": description, "inputSchema": schema}
                for tool, (description, schema, _) in self.tools.items()
            ]
        if name == "prompts":
            return [{"name": "greet", "arguments": [{"name": "name"}]}, {"name": "ask"}]
        if name == "resources":
            return [{"uri": uri, "name": uri} for uri in self.resources]
        return [{"uriTemplate": "test://item/{id}", "name": "item"}]

    def get_prompt(self, call: StatelessCall) -> Json | None:
        """The result of `prompts/get`; None if there is no such prompt."""
        name = call.params.get("name")
        if name == "ask" and call.answers is None:
            return call.ask({"name": NAME_FORM}, None)
        if name not in ("greet", "ask"):
            return None
        answers = msgspec.json.encode(call.answers or call.arguments).decode()
        content = {"type": "text", "text": f"Say hello to {answers}"}
        return {"messages": [{"role": "user", "content": content}]}

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


__all__ = ["PROTOCOL", "REVISION", "Listen", "StatelessCall", "StatelessHandler", "StatelessServer"]
