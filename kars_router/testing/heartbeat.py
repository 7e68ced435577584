"""A scripted MCP server that pings its clients and destroys the sessions that do not answer.

It speaks the handshake era of Streamable HTTP (2025-03-26 to 2025-11-25) as an ASGI application
on Trio, keeps a counter per session, and by default behaves like `@playwright/mcp` 0.0.70 where
that was measured: pings only on the GET stream, the first with id 0; a session whose ping is
not answered in time ends there and then, with its GET stream at a clean end of file, its
running calls at a 200 without a message, and `404 Session not found` from then on.

It shares no code with the router, so that the two cannot agree on the same mistake. All timing
is on Trio's clock.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Literal

import msgspec
import trio
from attrs import define, field

from kars_router.testing._asgi import Receive, Scope, Send, run_lifespan
from kars_router.testing._endpoint import Endpoint
from kars_router.testing._nursery import open_owned_nursery
from kars_router.testing._sessions import Session
from kars_router.testing._streams import EventLog
from kars_router.testing._tools import BUILT_IN, ToolHandler
from kars_router.testing.replies import Happening, Json, Received, Reply, Script

VERSIONS = ("2025-11-25", "2025-06-18", "2025-03-26")


@define(eq=False, kw_only=True)
class HeartbeatServer:
    """The server. Make one with `HeartbeatServer.open`; `app` is the ASGI application.

    Every option can be changed while it runs and holds for what comes after. Tools: `increment`
    and `read` (the session's counter as `counter: N`), `slow` (`seconds`), `echo`, `fail`
    (a tool error), `error` (a JSON-RPC error), `ask` (sends `method` to the client on the
    call's own stream and tells the answer).

    Attributes:
        ping_interval: seconds from an answered ping to the next; None sends none.
        ping_deadline: seconds after which an unanswered request to the client ends the session
            (ping) or is given up (others).
        first_ping_after: seconds from the first tools/call to the first ping.
        heartbeat_without_get: True, like 0.0.70: pings start with the first tools/call, and
            without a GET stream they are lost. False, like 0.0.83: not before a GET was tried.
        responses: whether requests are answered by event streams or plain JSON.
        offers_get: False answers GET with 405.
        event_ids: whether events have ids, and what was missed can be had by `Last-Event-ID`.
        retry: milliseconds for the `retry:` field of event streams, or None.
        list_changed: whether `tools.listChanged` is declared.
        capabilities: what is declared beside `tools`.
        page_size: tools per page of tools/list; None for one page.
        cursor_cycle: whether the last page points back to the first.
        versions: revisions it speaks, newest first.
        script: asked before every request; what it returns is answered instead.
        sessions: live sessions by id.
        log: every request that came in, in order.
        history: what befell the sessions, in order.
    """

    ping_interval: float | None = 3.0
    ping_deadline: float = 5.0
    first_ping_after: float = 0.0
    heartbeat_without_get: bool = True
    responses: Literal["sse", "json"] = "sse"
    offers_get: bool = True
    event_ids: bool = False
    retry: int | None = None
    list_changed: bool = True
    capabilities: Mapping[str, Any] = field(factory=dict)
    page_size: int | None = None
    cursor_cycle: bool = False
    versions: tuple[str, ...] = VERSIONS
    script: Script | None = None
    sessions: dict[str, Session] = field(factory=dict, init=False)
    log: list[Received] = field(factory=list, init=False)
    history: list[Happening] = field(factory=list, init=False)
    tools: dict[str, tuple[str, Json, ToolHandler]] = field(
        factory=lambda: dict(BUILT_IN), init=False, repr=False
    )
    methods: dict[str, ToolHandler] = field(factory=dict, init=False, repr=False)
    _queued: list[tuple[Callable[[Received], bool], Reply]] = field(factory=list, init=False)
    _nursery: trio.Nursery | None = field(default=None, init=False)
    _changed: trio.Event = field(factory=trio.Event, init=False)

    @classmethod
    @asynccontextmanager
    async def open(cls, **options: Any) -> AsyncIterator[HeartbeatServer]:
        """Run a server with these options (the attributes of the class) for a `with` block.

        On leaving, every session ends with its streams broken off; requests that still come are
        given no response.

        Raises:
            TypeError: an option does not exist.
        """
        server = cls(**options)
        async with open_owned_nursery() as nursery:
            server._nursery = nursery
            try:
                yield server
            finally:
                server._nursery = None
                server.restart()

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application; any path is the endpoint."""
        await trio.lowlevel.checkpoint()
        if scope["type"] == "lifespan":
            await run_lifespan(receive, send)
        elif scope["type"] == "http" and self._nursery is not None:
            await Endpoint(self).handle(scope, receive, send)

    # What a test does to it

    def reply_next(
        self,
        reply: Reply,
        *,
        method: str | None = None,
        http_method: str | None = None,
        times: int = 1,
    ) -> None:
        """Answer the next `times` requests with this JSON-RPC or HTTP method by `reply`.

        Several such orders are served in the order they were given; a `script` is asked first.
        """

        def fits(received: Received) -> bool:
            return method in (None, received.method) and http_method in (
                None,
                received.http_method,
            )

        self._queued.extend([(fits, reply)] * times)

    def forget(self, session_id: str | None = None, *, keep_streams: bool = False) -> None:
        """Lose a session (or all): 404 from now on.

        Its streams end cleanly and without a message, unless they are kept: then they stay open
        with nothing more on them but the answers of calls that run.
        """
        for session in self._chosen(session_id):
            del self.sessions[session.id]
            self.note(session, "forgotten")
            if not keep_streams:
                session.end(cut=False)

    def restart(self) -> None:
        """Crash and come back: every stream is broken off and every session is unknown."""
        for session in self._chosen(None):
            del self.sessions[session.id]
            self.note(session, "forgotten", "restart")
            session.end(cut=True)

    def drop_listen(self, session_id: str | None = None, *, cut: bool = False) -> None:
        """End the GET stream of a session (or of all), cleanly or broken off; keep the session."""
        for session in self._chosen(session_id):
            session.listen.detach(cut=cut)

    def drop_posts(self, session_id: str | None = None, *, cut: bool = False) -> None:
        """End the responses to running POSTs without their answers; the calls go on.

        With `event_ids` the answers can be had by a GET with `Last-Event-ID`.
        """
        for session in self._chosen(session_id):
            for log in session.posts.values():
                log.detach(cut=cut)

    def notify(
        self,
        method: str,
        params: Mapping[str, Any] | None = None,
        session_id: str | None = None,
    ) -> None:
        """Send a notification on the GET stream of a session (or of all)."""
        message: Json = {"method": method, "jsonrpc": "2.0"}
        if params is not None:
            message["params"] = params
        for session in self._chosen(session_id):
            session.listen.append(msgspec.json.encode(message))

    def notify_tools_changed(self) -> None:
        """Say on every GET stream that the list of tools changed."""
        self.notify("notifications/tools/list_changed")

    async def ask(
        self, method: str, params: Mapping[str, Any] | None = None, session_id: str | None = None
    ) -> Mapping[str, Any] | None:
        """Send a request on the GET stream of a session (the only one by default).

        Returns the whole answer message, or None after `ping_deadline`.
        """
        session = self.session if session_id is None else self.sessions[session_id]
        return await session.ask(method, params, session.listen, seconds=self.ping_deadline)

    def add_tool(
        self,
        name: str,
        handler: ToolHandler,
        *,
        description: str = "",
        schema: Mapping[str, Any] | None = None,
    ) -> None:
        """Offer a tool, or replace one; says nothing to the clients."""
        self.tools[name] = (description, dict(schema or {"type": "object"}), handler)

    def add_method(self, name: str, handler: ToolHandler) -> None:
        """Answer a method that is not built in; what the handler returns is the result."""
        self.methods[name] = handler

    def remove_tool(self, name: str) -> None:
        """Stop offering a tool; says nothing to the clients."""
        del self.tools[name]

    # What a test asks it

    @property
    def session(self) -> Session:
        """The only live session.

        Raises:
            LookupError: there are none or several.
        """
        if len(self.sessions) != 1:
            raise LookupError(f"{len(self.sessions)} sessions are live, not one")
        return next(iter(self.sessions.values()))

    def requests(
        self, method: str | None = None, *, http_method: str | None = None
    ) -> list[Received]:
        """What came in with this JSON-RPC and HTTP method, in order."""
        return [
            received
            for received in self.log
            if method in (None, received.method) and http_method in (None, received.http_method)
        ]

    def happenings(self, what: str, session_id: str | None = None) -> list[Happening]:
        """What happened of this kind, to a session or to any, in order."""
        return [h for h in self.history if h.what == what and session_id in (None, h.session)]

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Return once `condition()` is true; asked again at each entry of `log` or `history`."""
        while not condition():
            await self._changed.wait()

    # What the endpoint does with it

    def record(self, received: Received) -> None:
        """Add to the log."""
        self.log.append(received)
        self._wake()

    def note(self, session: Session, what: str, detail: str = "") -> None:
        """Add to the history."""
        self.history.append(Happening(trio.current_time(), session.id, what, detail))
        self._wake()

    def choose_reply(self, received: Received) -> Reply | None:
        """What the script or an order of the test says to answer, if anything."""
        if self.script is not None and (reply := self.script(received)) is not None:
            return reply
        for index, (fits, reply) in enumerate(self._queued):
            if fits(received):
                del self._queued[index]
                return reply
        return None

    async def open_session(self, version: str, capabilities: Mapping[str, Any]) -> Session:
        """Begin a session, heartbeat included."""
        await trio.lowlevel.checkpoint()
        if self._nursery is None:
            raise RuntimeError("the server is closed")
        session = Session(
            id=str(uuid.uuid4()),
            version=version,
            capabilities=capabilities,
            listen=self.new_log("get", version),
        )
        self.sessions[session.id] = session
        await self._nursery.start(self._run_session, session)
        self.note(session, "opened", version)
        return session

    def end_session(self, session: Session, what: str, detail: str = "") -> None:
        """End a session with its streams at a clean end of file."""
        if self.sessions.pop(session.id, None) is not None:
            self.note(session, what, detail)
            session.end(cut=False)

    def new_log(self, key: str, version: str) -> EventLog:
        """A log with the options as they are now."""
        priming = version >= "2025-11-25"  # older clients choke on an event without data
        return EventLog(key, with_ids=self.event_ids, retry=self.retry, priming=priming)

    async def _run_session(
        self, session: Session, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        with session.scope:
            async with trio.open_nursery() as nursery:
                session.nursery = nursery
                task_status.started()
                await self._beat(session)
                await trio.sleep_forever()

    async def _beat(self, session: Session) -> None:
        await session.called.wait()
        if not self.heartbeat_without_get:
            await session.listened.wait()
        await trio.sleep(self.first_ping_after)
        while self.ping_interval is not None and session.id in self.sessions:
            answer = await session.ask(
                "ping",
                None,
                session.listen,
                seconds=self.ping_deadline,
                sent=lambda rpc_id: self.note(session, "ping", str(rpc_id)),
            )
            if answer is None or "error" in answer:
                reason = "a ping was not answered" if answer is None else "an error as a pong"
                self.end_session(session, "reaped", reason)
                return
            self.note(session, "pong", repr(answer.get("id")))
            await trio.sleep(self.ping_interval)

    def _chosen(self, session_id: str | None) -> list[Session]:
        return list(self.sessions.values()) if session_id is None else [self.sessions[session_id]]

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
