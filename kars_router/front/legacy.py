"""The MCP server that agents of the handshake era talk to.

Owns the methods and their order in a session. Must not know ASGI's messages nor upstream
sessions.

Source: MCP 2025-03-26, 2025-06-18, 2025-11-25 "Lifecycle", "Transports", "Tools".
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

import trio

from kars_router.errors import AgentError
from kars_router.front.agents import AgentRegistry, AgentSession, TooManySessionsError
from kars_router.front.calls import Calls, Undo, members
from kars_router.front.exchange import JSON, Exchange, Header
from kars_router.front.streams import answer, serve_get
from kars_router.front.tools import ToolView
from kars_router.session.supervisor import Supervisor
from kars_router.telemetry import Metrics
from kars_router.wire import eras, jsonrpc
from kars_router.wire.jsonrpc import Kind, Message

LIST_CHANGED: Final = jsonrpc.notification("notifications/tools/list_changed")
# Agents list tools right after start-up and some never again, so the first list waits for
# servers that are just being reached.
_FIRST_LIST_SECONDS: Final = 5.0
_MAX_BATCH: Final = 64


class LegacyServer:
    """Handles the messages of handshake-era agents.

    Args:
        supervisor: the upstream side.
        agents: the agent sessions.
        metrics: where things are counted.
        call_limit: most calls at once, over all agents.
        version: the router's version, for `serverInfo`.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        agents: AgentRegistry,
        metrics: Metrics,
        *,
        call_limit: int,
        version: str,
    ) -> None:
        self._supervisor = supervisor
        self._agents = agents
        self._metrics = metrics
        self._version = version
        self._tools = ToolView(supervisor)
        self.calls = Calls(supervisor, self._tools, limit=call_limit)
        supervisor.subscribe(self._tools_changed)

    async def post(self, exchange: Exchange, endpoint: str, body: bytes) -> None:
        """Answers a POST.

        Args:
            exchange: the request.
            endpoint: one server's name, or "" for all.
            body: its body.

        Raises:
            AgentError: the message cannot be acted on.
            MalformedError: it is no JSON-RPC message.
        """
        if jsonrpc.is_batch(body):
            await self._batch(exchange, endpoint, body)
            return
        message = jsonrpc.parse(body)
        if message.kind is Kind.REQUEST and message.method == "initialize":
            try:
                await self._initialize(exchange, endpoint, message)
            except AgentError as error:
                refusal = jsonrpc.error_object(error.code, error.message)
                body = jsonrpc.error(message.id, refusal)
                await exchange.respond(error.status, body, (JSON,))
            return
        session = self.session_of(exchange, endpoint)
        if message.kind is not Kind.REQUEST:
            # The router asks agents nothing in this era's present scope, and the notifications
            # that it acts on are none; both are accepted as the transport demands.
            await exchange.respond(202)
            return
        if message.method != "tools/call":
            await exchange.respond(200, await self._handle(session, message, []), (JSON,))
            return
        await self._answer(exchange, partial(self._handle, session, message))

    async def get(self, exchange: Exchange, endpoint: str) -> None:
        """Answers a GET: an event stream that lives as long as agent, session and router do."""
        session = self.session_of(exchange, endpoint)
        if not self.calls.accepting:
            raise AgentError(jsonrpc.REFUSED, "the router is shutting down", status=503)
        await serve_get(exchange, session, self._metrics)

    async def delete(self, exchange: Exchange, endpoint: str) -> None:
        """Answers a DELETE: ends the session."""
        session = self.session_of(exchange, endpoint)
        self._agents.end(session, "the agent ended it")
        await exchange.respond(200)

    def session_of(self, exchange: Exchange, endpoint: str) -> AgentSession:
        """The session that a request names.

        Raises:
            AgentError: with HTTP status 400 if it names none or an unusable revision, 404 if the
                session is not, or no longer, known, 503 if there are too many.
        """
        session_id = exchange.header(eras.SESSION_HEADER)
        if not session_id:
            raise AgentError(
                jsonrpc.INVALID_REQUEST, "the header Mcp-Session-Id is missing", status=400
            )
        revision = exchange.header(eras.VERSION_HEADER)
        if revision and revision not in eras.HANDSHAKE_REVISIONS:
            known = ", ".join(eras.HANDSHAKE_REVISIONS)
            raise AgentError(
                jsonrpc.INVALID_REQUEST,
                f"the revision in MCP-Protocol-Version is not supported; use one of {known}",
                status=400,
            )
        try:
            session = self._agents.find(session_id, endpoint)
        except TooManySessionsError as error:
            raise self._too_many() from error
        if session is None:
            raise AgentError(
                jsonrpc.INVALID_REQUEST, "unknown session; send initialize again", status=404
            )
        return session

    async def drain(self) -> None:
        """Refuses new calls, ends GET streams, and waits for calls in flight."""
        self._agents.close_streams()
        await self.calls.drain()

    async def _initialize(self, exchange: Exchange, endpoint: str, message: Message) -> None:
        params = members(message)
        asked = _text(params.get("protocolVersion"))
        if asked is None:
            raise AgentError(jsonrpc.INVALID_PARAMS, "initialize needs a protocolVersion")
        name = _client_name(params.get("clientInfo"))
        revision = eras.negotiate(asked)
        if not self.calls.accepting:
            raise AgentError(jsonrpc.REFUSED, "the router is shutting down", status=503)
        try:
            session_id, _ = self._agents.create(revision, endpoint, name)
        except TooManySessionsError as error:
            raise self._too_many() from error
        result: dict[str, Any] = {
            "protocolVersion": revision,
            "capabilities": {"tools": {"listChanged": True}},
            "serverInfo": {"name": "kars-router", "version": self._version},
        }
        if instructions := self._instructions(endpoint):
            result["instructions"] = instructions
        header: Header = (eras.SESSION_HEADER.encode(), session_id.encode())
        body = jsonrpc.result(message.id, jsonrpc.encode(result))
        await exchange.respond(200, body, (JSON, header))

    def _instructions(self, endpoint: str) -> str:
        servers = self._supervisor.servers
        if endpoint:
            runtime = servers.get(endpoint)
            return runtime.instructions if runtime else ""
        return "\n\n".join(
            f"# {name}\n{runtime.instructions[:4096]}"
            for name, runtime in servers.items()
            if runtime.instructions
        )

    async def _batch(self, exchange: Exchange, endpoint: str, body: bytes) -> None:
        session = self.session_of(exchange, endpoint)
        if not eras.allows_batch(session.ticket.revision):
            raise AgentError(
                jsonrpc.INVALID_REQUEST,
                f"revision {session.ticket.revision} has no batches",
                status=400,
            )
        parts = jsonrpc.split_batch(body)
        if len(parts) > _MAX_BATCH:
            raise AgentError(
                jsonrpc.INVALID_REQUEST, f"a batch may hold at most {_MAX_BATCH} messages", 400
            )
        answers: list[bytes | None] = [None] * len(parts)

        async def one(index: int, part: bytes, undone: list[Undo]) -> None:
            try:
                message = jsonrpc.parse(part)
            except jsonrpc.MalformedError as error:
                value = jsonrpc.error_object(error.code, str(error))
                answers[index] = jsonrpc.error(error.id, value)
                return
            if message.kind is Kind.REQUEST:
                answers[index] = await self._handle(session, message, undone)

        async def work(undone: list[Undo]) -> bytes:
            async with trio.open_nursery() as nursery:
                for index, part in enumerate(parts):
                    nursery.start_soon(one, index, part, undone)
            return b"[%b]" % b",".join(a for a in answers if a is not None)

        if any(_is_request(part) for part in parts):
            await self._answer(exchange, work)
        else:
            await exchange.respond(202)

    async def _answer(
        self, exchange: Exchange, work: Callable[[list[Undo]], Awaitable[bytes]]
    ) -> None:
        undone: list[Undo] = []
        # An answer that its agent does not read takes as much room as one that is being made.
        self.calls.unsent += 1
        try:
            if await answer(exchange, lambda: work(undone)):
                undone.clear()
        finally:
            self.calls.unsent -= 1
            for undo in undone:
                undo()

    async def _handle(self, session: AgentSession, message: Message, undone: list[Undo]) -> bytes:
        session.in_flight += 1
        try:
            if message.method == "tools/call":
                return await self.calls.make(session, message, undone)
            if message.method == "tools/list":
                return jsonrpc.result(message.id, await self._list(session, message))
            if message.method == "ping":
                return jsonrpc.result(message.id, b"{}")
            if message.method == "initialize":
                raise AgentError(jsonrpc.INVALID_REQUEST, "initialize cannot be part of a batch")
            raise AgentError(jsonrpc.METHOD_NOT_FOUND, f"unknown method: {message.method[:128]}")
        except AgentError as error:
            return jsonrpc.error(message.id, jsonrpc.error_object(error.code, error.message))
        finally:
            session.in_flight -= 1
            session.touched = trio.current_time()

    async def _list(self, session: AgentSession, message: Message) -> bytes:
        raw = members(message).get("cursor", b"null")
        cursor = _text(raw)
        if raw != b"null" and cursor is None:
            raise AgentError(jsonrpc.INVALID_PARAMS, "a cursor is a string")
        endpoint = session.ticket.endpoint
        await self._supervisor.wait_tried(_FIRST_LIST_SECONDS, endpoint)
        return self._tools.page(endpoint, cursor)

    def _tools_changed(self, server: str) -> None:
        self._agents.broadcast(LIST_CHANGED, lambda s: s.ticket.endpoint in ("", server))

    def _too_many(self) -> AgentError:
        return AgentError(
            jsonrpc.REFUSED,
            f"there are {self._agents.limit} agent sessions, which is the limit; end one first",
            status=503,
        )


def _text(value: bytes | None) -> str | None:
    """A member's value if it is a string."""
    if value is None or not value.startswith(b'"'):
        return None
    text: str = jsonrpc.decode(value)
    return text


def _client_name(info: bytes | None) -> str:
    try:
        name = jsonrpc.members(info or b"{}").get("name")
    except jsonrpc.MalformedError:
        return ""
    return _text(None if name is None else bytes(name)) or ""


def _is_request(part: bytes) -> bool:
    try:
        return jsonrpc.parse(part).kind is Kind.REQUEST
    except jsonrpc.MalformedError:
        return True
