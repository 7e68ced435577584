"""The HTTP side of the scripted server: one endpoint for POST, GET and DELETE.

Statuses and bodies are those of `@playwright/mcp` (that is, of the TypeScript SDK) where they
were measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from kars_router.testing import _asgi
from kars_router.testing._asgi import Receive, Scope, Send
from kars_router.testing._sessions import Session, rpc_key
from kars_router.testing._streams import EventLog, Reader, parse_event_id
from kars_router.testing._tools import Call, RpcError
from kars_router.testing.replies import Json, Received, Reply, decode_message

if TYPE_CHECKING:
    from kars_router.testing.heartbeat import HeartbeatServer

TEXT = {"content-type": "text/plain; charset=UTF-8"}
JSON = {"content-type": "application/json"}


class Endpoint:
    """Handles one HTTP request for a `HeartbeatServer`."""

    def __init__(self, server: HeartbeatServer) -> None:
        self._server = server

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Record the request, then answer it, or do what the test's script says."""
        body = await _asgi.read_body(receive)
        if body is None:
            return
        headers: dict[str, str] = {}
        for raw_name, raw_value in scope["headers"]:
            name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        received = Received(
            time=trio.current_time(),
            http_method=scope["method"],
            path=scope["path"],
            headers=headers,
            body=body,
            message=decode_message(body),
        )
        self._server.record(received)
        reply = self._server.choose_reply(received)
        if reply is None:
            await self._dispatch(received, receive, send)
        else:
            await self._play(reply, received, receive, send)

    async def _play(self, reply: Reply, received: Received, receive: Receive, send: Send) -> None:
        if reply.execute:
            await self._dispatch(received, _asgi.never, _asgi.discard)
        await trio.sleep(reply.seconds)
        if reply.status is not None:
            if reply.ending == "end":
                await _asgi.respond(send, reply.status, reply.headers, reply.body)
                return
            await _asgi.send_head(send, reply.status, reply.headers)
            await _asgi.send_body(send, reply.body, more=True)
        if reply.ending == "hang":
            await _asgi.wait_disconnect(receive)

    async def _dispatch(self, received: Received, receive: Receive, send: Send) -> None:
        handlers = {"POST": self._post, "GET": self._get, "DELETE": self._delete}
        handler = handlers.get(received.http_method)
        if handler is None:
            await _asgi.respond(send, 405, {"allow": "GET, POST, DELETE"})
        else:
            await handler(received, receive, send)

    async def _post(self, received: Received, receive: Receive, send: Send) -> None:
        accept = received.headers.get("accept", "")
        if "application/json" not in accept or "text/event-stream" not in accept:
            await _refuse(send, 406, -32000, "Not Acceptable: Client must accept both types")
        elif not received.headers.get("content-type", "").startswith("application/json"):
            await _refuse(send, 415, -32000, "Unsupported Media Type")
        elif received.message is None:
            await _refuse(send, 400, -32700, "Parse error")
        elif received.method == "initialize":
            await self._initialize(received, receive, send)
        elif received.session is None:
            await _refuse(send, 400, -32000, "Bad Request: Server not initialized")
        elif (session := self._server.sessions.get(received.session)) is None:
            await _not_found(send)
        elif not self._version_fits(received):
            await self._refuse_version(send)
        elif received.is_answer:
            session.resolve(received.message)
            await _asgi.respond(send, 202, TEXT)
        elif "id" not in received.message:
            self._take_notification(session, received)
            await _asgi.respond(send, 202, TEXT)
        else:
            await self._request(session, received, receive, send)

    async def _initialize(self, received: Received, receive: Receive, send: Send) -> None:
        if received.session in self._server.sessions:
            await _refuse(send, 400, -32600, "Invalid Request: Server already initialized")
            return
        asked = received.params.get("protocolVersion")
        version = asked if asked in self._server.versions else self._server.versions[0]
        session = await self._server.open_session(version, received.params.get("capabilities", {}))
        log = self._server.new_log(session.next_post_key(), version)
        tools = {"listChanged": True} if self._server.list_changed else {}
        result = {
            "protocolVersion": version,
            "capabilities": {"tools": tools, **self._server.capabilities},
            "serverInfo": {"name": "heartbeat", "version": "1"},
        }
        log.append(_answer(received.id, result=result))
        log.finish()
        await self._send_answer(session, log, receive, send)

    async def _request(
        self, session: Session, received: Received, receive: Receive, send: Send
    ) -> None:
        key = session.next_post_key()
        log = session.posts[key] = self._server.new_log(key, session.version)
        if session.nursery is not None:
            session.nursery.start_soon(self._run, session, received, log)
        try:
            await self._send_answer(session, log, receive, send)
        finally:
            if log.finished and not self._server.event_ids:
                session.posts.pop(key, None)

    async def _send_answer(
        self, session: Session, log: EventLog, receive: Receive, send: Send
    ) -> None:
        if self._server.responses == "sse":
            await self._stream(session, log.read(0), receive, send)
            return
        headers = {**JSON, "mcp-session-id": session.id}
        reader = log.read(0)
        async for _ in reader:
            pass
        if not reader.cut:
            messages = [msgspec.json.decode(message) for message in log.messages]
            answers = [message for message in messages if "method" not in message]
            body = msgspec.json.encode(answers[-1]) if answers else b""
            await _asgi.respond(send, 200, headers, body)

    async def _run(self, session: Session, received: Received, log: EventLog) -> None:
        """Carry out a request in the session's nursery: a client that leaves does not stop it."""
        await trio.lowlevel.checkpoint()
        scope = session.running[rpc_key(received.id)] = trio.CancelScope()
        try:
            with scope:
                try:
                    result = await self._perform(session, received, log)
                except RpcError as error:
                    body = {"code": error.code, "message": error.message}
                    if error.data is not None:
                        body["data"] = error.data
                    log.append(_answer(received.id, error=body))
                else:
                    log.append(_answer(received.id, result=result))
        finally:
            session.running.pop(rpc_key(received.id), None)
            log.finish()

    async def _perform(
        self, session: Session, received: Received, log: EventLog
    ) -> Mapping[str, Any]:
        if received.method == "tools/call":
            session.called.set()
            tool = self._server.tools.get(received.params.get("name", ""))
            if tool is None:
                raise RpcError(-32602, f"Tool {received.params.get('name')!r} not found")
            call = Call(session, received.params, log, self._server.ping_deadline)
            return await tool[2](call)
        await trio.lowlevel.checkpoint()
        if (handler := self._server.methods.get(received.method or "")) is not None:
            return await handler(Call(session, received.params, log, self._server.ping_deadline))
        if received.method == "tools/list":
            return self._list_tools(received.params.get("cursor"))
        if received.method == "ping":
            return {}
        raise RpcError(-32601, "Method not found")

    def _list_tools(self, cursor: Any) -> Json:
        tools = [
            {"name": name, "description": description, "inputSchema": schema}
            for name, (description, schema, _) in self._server.tools.items()
        ]
        size = self._server.page_size or max(len(tools), 1)
        cursors = [f"page-{n}" for n in range(max(-(-len(tools) // size), 1))]
        if cursor is not None and cursor not in cursors:
            raise RpcError(-32602, "Invalid cursor")
        page = cursors.index(cursor) if cursor is not None else 0
        result: Json = {"tools": tools[page * size : (page + 1) * size]}
        if page + 1 < len(cursors):
            result["nextCursor"] = cursors[page + 1]
        elif self._server.cursor_cycle:
            result["nextCursor"] = cursors[0]
        return result

    def _take_notification(self, session: Session, received: Received) -> None:
        if received.method == "notifications/cancelled":
            scope = session.running.get(rpc_key(received.params.get("requestId")))
            if scope is not None:
                scope.cancel()

    async def _get(self, received: Received, receive: Receive, send: Send) -> None:
        if received.session is None:
            await _asgi.respond(send, 400, TEXT, b"Invalid request")
            return
        session = self._server.sessions.get(received.session)
        if session is None:
            await _not_found(send)
            return
        session.listened.set()
        if not self._server.offers_get:
            await _asgi.respond(send, 405, {**TEXT, "allow": "POST, DELETE"}, b"no stream here")
        elif "text/event-stream" not in received.headers.get("accept", ""):
            await _refuse(send, 406, -32000, "Not Acceptable: Client must accept event streams")
        elif not self._version_fits(received):
            await self._refuse_version(send)
        else:
            await self._listen(session, received, receive, send)

    async def _listen(
        self, session: Session, received: Received, receive: Receive, send: Send
    ) -> None:
        log, start = session.listen, len(session.listen.messages)
        last = received.headers.get("last-event-id")
        if last is not None and self._server.event_ids:
            place = parse_event_id(last)
            logs = {**session.posts, session.listen.key: session.listen}
            if place is None or place[0] not in logs:
                await _refuse(send, 400, -32000, "Invalid event ID")
                return
            log, start = logs[place[0]], place[1]
        if log is not session.listen:
            await self._stream(session, log.read(start), receive, send)
        elif log.readers:
            words = "Conflict: Only one SSE stream is allowed per session"
            await _refuse(send, 409, -32000, words)
        else:
            reader = log.read(start)
            self._server.note(session, "listening")
            try:
                await self._stream(session, reader, receive, send)
            finally:
                self._server.note(session, "left")

    async def _stream(self, session: Session, reader: Reader, receive: Receive, send: Send) -> None:
        headers = {
            "content-type": "text/event-stream",
            "cache-control": "no-cache, no-transform",
            "mcp-session-id": session.id,
        }
        try:
            await _asgi.send_head(send, 200, headers)
            await _asgi.send_until_disconnect(receive, send, reader)
        finally:
            reader.close()
        if not reader.cut:
            await _asgi.send_body(send)

    async def _delete(self, received: Received, _: Receive, send: Send) -> None:
        if received.session is None:
            await _asgi.respond(send, 400, TEXT, b"Invalid request")
        elif (session := self._server.sessions.get(received.session)) is None:
            await _not_found(send)
        else:
            self._server.end_session(session, "deleted")
            await _asgi.respond(send, 200, TEXT)

    def _version_fits(self, received: Received) -> bool:
        return received.headers.get("mcp-protocol-version") in (None, *self._server.versions)

    async def _refuse_version(self, send: Send) -> None:
        known = ", ".join(self._server.versions)
        await _refuse(send, 400, -32000, f"Bad Request: Unsupported protocol version ({known})")


async def _refuse(send: Send, status: int, code: int, message: str) -> None:
    error = {"jsonrpc": "2.0", "error": {"code": code, "message": message}, "id": None}
    await _asgi.respond(send, status, JSON, msgspec.json.encode(error))


async def _not_found(send: Send) -> None:
    await _asgi.respond(send, 404, {}, b"Session not found")


def _answer(rpc_id: Any, **outcome: Any) -> bytes:
    return msgspec.json.encode({**outcome, "jsonrpc": "2.0", "id": rpc_id})
