"""The MCP server that agents of the handshake era talk to.

Owns the methods and their order in a session. Must not know ASGI's messages nor upstream
sessions.

Source: MCP 2025-03-26, 2025-06-18, 2025-11-25 "Lifecycle", "Transports", "Tools".
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

import msgspec
import trio

from kars_router.errors import AgentError
from kars_router.front import declared
from kars_router.front.agents import AgentRegistry, AgentSession, TooManySessionsError
from kars_router.front.attendance import Attendance
from kars_router.front.callers import Requester
from kars_router.front.exchange import (
    JSON,
    LAST_EVENT_ID_HEADER,
    SESSION_HEADER,
    VERSION_HEADER,
    Exchange,
    Header,
)
from kars_router.front.handshake_caller import HandshakePort
from kars_router.front.operations import Operations
from kars_router.front.reading import members, text
from kars_router.front.streams import Outlet, answer, serve_get
from kars_router.session.caller import Reply
from kars_router.session.supervisor import Supervisor
from kars_router.telemetry import Metrics
from kars_router.wire import eras, jsonrpc, levels, raw
from kars_router.wire.jsonrpc import Kind, Message

_MAX_BATCH: Final = 64
_LOCAL: Final = frozenset(
    {"ping", "initialize", "logging/setLevel", "resources/subscribe", "resources/unsubscribe"}
)


class LegacyServer:
    """Handles the messages of handshake-era agents.

    Args:
        supervisor: the upstream side.
        agents: the agent sessions.
        metrics: where things are counted.
        operations: what can be asked of the servers.
        version: the router's version, for `serverInfo`.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        agents: AgentRegistry,
        metrics: Metrics,
        *,
        operations: Operations,
        version: str,
    ) -> None:
        self._supervisor = supervisor
        self._agents = agents
        self._metrics = metrics
        self._operations = operations
        self._version = version
        self._attendance = Attendance()

    async def run(  # noqa: ASYNC128, RUF100 - the attendance says when
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Looks after agents whose answers take a while, until cancelled."""
        await self._attendance.run(task_status=task_status)

    async def post(
        self,
        exchange: Exchange,
        endpoint: str,
        body: bytes,
        session: AgentSession | None = None,
    ) -> None:
        """Answers a POST.

        Args:
            exchange: the request.
            endpoint: one server's name, or "" for all.
            body: its body.
            session: the `session_of` the request, if that was found before its body came.

        Raises:
            AgentError: the message cannot be acted on.
            MalformedError: it is no JSON-RPC message.
        """
        if jsonrpc.is_batch(body):
            await self._batch(exchange, self.session_of(exchange, endpoint), body)
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
        if session is None or session.ended:
            session = self.session_of(exchange, endpoint)
        if message.kind is not Kind.REQUEST:
            self._take(session, message)
            await exchange.respond(202)
        elif message.method == "ping":
            await exchange.respond(200, jsonrpc.result(message.id, b"{}"), (JSON,))
        else:
            await self._answer(exchange, session, partial(self._handle, session, message))

    async def get(self, exchange: Exchange, endpoint: str) -> None:
        """Answers a GET: an event stream that lives as long as agent, session and router do."""
        session = self.session_of(exchange, endpoint)
        if not self._operations.accepting:
            found = session.log.find(exchange.header(LAST_EVENT_ID_HEADER))
            # A call in flight may still be waited for.
            if found is None or found[0].standing:
                raise AgentError(jsonrpc.REFUSED, "the router is shutting down", status=503)
        await serve_get(exchange, session)

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
        session_id = exchange.header(SESSION_HEADER)
        if not session_id:
            raise AgentError(
                jsonrpc.INVALID_REQUEST, "the header Mcp-Session-Id is missing", status=400
            )
        revision = exchange.header(VERSION_HEADER)
        if revision and revision not in eras.HANDSHAKE_REVISIONS:
            known = ", ".join(eras.HANDSHAKE_REVISIONS)
            raise AgentError(
                jsonrpc.INVALID_REQUEST,
                f"the revision in MCP-Protocol-Version is not supported; use one of {known}",
                status=400,
            )
        try:
            session = self._agents.find(session_id, endpoint, exchange.principal.owner)
        except TooManySessionsError as error:
            raise self._too_many() from error
        if session is None:
            raise AgentError(
                jsonrpc.INVALID_REQUEST, "unknown session; send initialize again", status=404
            )
        self.join(session)
        return session

    async def drain(self) -> None:
        """Refuses new calls, ends GET streams, and waits for calls in flight."""
        self._agents.close_streams()
        await self._operations.drain()

    async def _initialize(self, exchange: Exchange, endpoint: str, message: Message) -> None:
        params = members(message.params)
        asked = text(params.get("protocolVersion"))
        if asked is None:
            raise AgentError(jsonrpc.INVALID_PARAMS, "initialize needs a protocolVersion")
        name = raw.text((raw.fields(params.get("clientInfo")) or {}).get("name")) or ""
        offered = declared.keep(params.get("capabilities"))
        revision = eras.negotiate(asked)
        if not self._operations.accepting:
            raise AgentError(jsonrpc.REFUSED, "the router is shutting down", status=503)
        capabilities = await self._operations.capabilities(endpoint)
        try:
            session_id, session = self._agents.create(
                revision, endpoint, name, offered, owner=exchange.principal.owner
            )
        except TooManySessionsError as error:
            raise self._too_many() from error
        self.join(session)
        result: dict[str, Any] = {
            "protocolVersion": revision,
            "capabilities": msgspec.Raw(capabilities),
            "serverInfo": {"name": "kars-router", "version": self._version},
        }
        if instructions := self._operations.instructions(endpoint):
            result["instructions"] = instructions
        header: Header = (SESSION_HEADER, session_id.encode())
        body = jsonrpc.result(message.id, jsonrpc.encode(result))
        await exchange.respond(200, body, (JSON, header))

    def join(self, session: AgentSession) -> HandshakePort:
        """Makes a session known to the upstream side, if it is not yet."""
        port = session.port
        if not isinstance(port, HandshakePort):
            port = session.port = HandshakePort(session, self._operations.overheard)
            self._supervisor.join(session.agent, port)
        return port

    async def _batch(self, exchange: Exchange, session: AgentSession, body: bytes) -> None:
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

        async def one(index: int, part: bytes, outlet: Outlet) -> None:
            try:
                message = jsonrpc.parse(part)
            except jsonrpc.MalformedError as error:
                value = jsonrpc.error_object(error.code, str(error))
                answers[index] = jsonrpc.error(error.id, value)
                return
            if message.kind is Kind.REQUEST:
                answers[index] = await self._handle(session, message, outlet)
            else:
                self._take(session, message)

        async def work(outlet: Outlet) -> bytes | None:
            async with trio.open_nursery() as nursery:
                for index, part in enumerate(parts):
                    nursery.start_soon(one, index, part, outlet)
            said = [a for a in answers if a is not None]
            return b"[%b]" % b",".join(said) if said else None

        if any(_is_request(part) for part in parts):
            await self._answer(exchange, session, work)
            return
        for part in parts:
            self._take(session, jsonrpc.parse(part))
        await exchange.respond(202)

    async def _answer(
        self,
        exchange: Exchange,
        session: AgentSession,
        work: Callable[[Outlet], Awaitable[bytes | None]],
    ) -> None:
        # An answer that its agent does not read takes as much room as one that is being made.
        self._operations.unsent += 1
        try:
            await answer(exchange, session, self._attendance, work)
        finally:
            self._operations.unsent -= 1

    async def _handle(
        self, session: AgentSession, message: Message, outlet: Outlet
    ) -> bytes | None:
        session.in_flight += 1
        try:
            return await self._perform(session, message, outlet)
        except AgentError as error:
            return jsonrpc.error(message.id, jsonrpc.error_object(error.code, error.message))
        finally:
            session.in_flight -= 1
            session.touched = trio.current_time()

    async def _perform(
        self, session: AgentSession, message: Message, outlet: Outlet
    ) -> bytes | None:
        port = self.join(session)
        # Scopes are the request's own: the next one may show another token of the same subject.
        who = port.known_as(outlet.exchange.principal)
        if message.method in _LOCAL:
            wrong = await self._do(session, who, message)
            empty = jsonrpc.result(message.id, b"{}")
            return empty if wrong is None else jsonrpc.error(message.id, wrong)
        caller = port.caller(outlet)
        session.requests[message.id] = caller
        try:
            done = await self._operations.perform(who, message.method, message.params, caller)
        finally:
            session.questions.end(caller)
            if session.requests.get(message.id) is caller:
                del session.requests[message.id]
        if done.withdrawn or caller.withdrawn:
            for undo in done.undo:
                undo()
            return None
        outlet.undo.extend(done.undo)
        if done.error is not None:
            return jsonrpc.error(message.id, done.error)
        return jsonrpc.result(message.id, done.result or b"{}")

    async def _do(self, session: AgentSession, who: Requester, message: Message) -> bytes | None:
        """Does what the router can do by itself; says what is wrong, as a JSON-RPC error object."""
        wrong: bytes | None = None
        match message.method:
            case "initialize":
                raise AgentError(jsonrpc.INVALID_REQUEST, "initialize cannot be part of a batch")
            case "logging/setLevel":
                self._set_level(session, message.params)
            case "resources/subscribe":
                wrong = await self._operations.subscribe(who, message.params)
            case "resources/unsubscribe":
                self._operations.unsubscribe(who, message.params)
            case _:
                pass  # a ping
        return wrong

    def _take(self, session: AgentSession, message: Message) -> None:
        """Acts on what needs no answer; what it does not know it leaves alone."""
        if message.kind is Kind.RESPONSE:
            if not session.questions.answer(message.id, Reply(message.result, message.error)):
                self._metrics.replies_dropped.inc()
        elif message.method == "notifications/roots/list_changed":
            self._supervisor.roots_changed(session.agent)
        elif message.method == "notifications/cancelled":
            params = raw.fields(message.params) or {}
            caller = session.requests.get(bytes(params.get("requestId", b"")))
            reason = bytes(params.get("reason", b""))
            if caller is not None:
                caller.withdraw(reason if reason.startswith(b'"') else b"")

    def _set_level(self, session: AgentSession, params: bytes) -> None:
        level = text(members(params).get("level"))
        if level not in levels.LEVELS:
            known = ", ".join(levels.LEVELS)
            raise AgentError(jsonrpc.INVALID_PARAMS, f"the level must be one of {known}")
        self.join(session).log_level = level
        self._supervisor.set_log_level(session.agent)

    def _too_many(self) -> AgentError:
        return AgentError(
            jsonrpc.REFUSED,
            f"there are {self._agents.limit} agent sessions, which is the limit; end one first",
            status=503,
        )


def _is_request(part: bytes) -> bool:
    try:
        return jsonrpc.parse(part).kind is Kind.REQUEST
    except jsonrpc.MalformedError:
        return True
