"""The HTTP side of the scripted stateless server: one endpoint that takes nothing but POST.

What it refuses, in which order and with which status is what the revision asks of servers.
"""

from __future__ import annotations

import base64
import contextlib
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec
import trio

from kars_router.testing import _asgi
from kars_router.testing._asgi import Receive, Scope, Send
from kars_router.testing._stateless_tools import PROTOCOL, StatelessCall
from kars_router.testing._tools import RpcError
from kars_router.testing.replies import Json, Received, Reply, decode_message, encode_event

if TYPE_CHECKING:
    from kars_router.testing.stateless_server import StatelessServer

TEXT: Final = {"content-type": "text/plain; charset=utf-8"}
JSON: Final = {"content-type": "application/json"}
EVENTS: Final = {
    "content-type": "text/event-stream",
    "cache-control": "no-cache, no-transform",
    "x-accel-buffering": "no",
}
_STATUSES: Final = {-32020: 400, -32021: 400, -32022: 400, -32601: 404, -32602: 400}
_NAMED: Final = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}
_LISTS: Final = {
    "tools/list": "tools",
    "prompts/list": "prompts",
    "resources/list": "resources",
    "resources/templates/list": "resourceTemplates",
}
_KEEPALIVE: Final = b": keepalive\n\n"


class Listen:
    """One open stream of `subscriptions/listen`.

    Attributes:
        id: the id of the request that opened it.
        honoured: the filter as far as the server agreed to it.
    """

    def __init__(self, id: Any, honoured: Mapping[str, Any]) -> None:  # noqa: A002 - the wire's word
        self.id = id
        self.honoured = honoured
        self.cut = False
        self._sender, self.events = trio.open_memory_channel[bytes](math.inf)

    @property
    def uris(self) -> list[str]:
        """The resources whose updates are reported."""
        return list(self.honoured.get("resourceSubscriptions", ()))

    def notify(self, method: str, params: Mapping[str, Any] | None = None) -> None:
        """Say something on this stream."""
        self._say({"jsonrpc": "2.0", "method": method, "params": self._marked(params or {})})

    def complete(self) -> None:
        """End it with the result of the request."""
        result = self._marked({"resultType": "complete"})
        self._say({"jsonrpc": "2.0", "id": self.id, "result": result})
        self.end()

    def end(self, *, cut: bool = False) -> None:
        """End it without a word, cleanly or broken off."""
        self.cut = cut
        self._sender.close()

    def _marked(self, value: Mapping[str, Any]) -> Json:
        return {**value, "_meta": {f"{PROTOCOL}subscriptionId": self.id}}

    def _say(self, message: Json) -> None:
        with contextlib.suppress(trio.ClosedResourceError, trio.BrokenResourceError):  # it is over
            self._sender.send_nowait(encode_event(msgspec.json.encode(message)))


class StatelessEndpoint:
    """Handles one HTTP request for a `StatelessServer`."""

    def __init__(self, server: StatelessServer) -> None:
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
            await self._post(received, receive, send)
        else:
            await self._play(reply, received, receive, send)

    async def _play(self, reply: Reply, received: Received, receive: Receive, send: Send) -> None:
        if reply.execute:
            await self._post(received, _asgi.never, _asgi.discard)
        await trio.sleep(reply.seconds)
        if reply.status is not None:
            if reply.ending == "end":
                await _asgi.respond(send, reply.status, reply.headers, reply.body)
                return
            await _asgi.send_head(send, reply.status, reply.headers)
            await _asgi.send_body(send, reply.body, more=True)
        if reply.ending == "hang":
            await _asgi.wait_disconnect(receive)
            self._server.note(received, "left")

    async def _post(self, received: Received, receive: Receive, send: Send) -> None:
        accept = received.headers.get("accept", "")
        if received.http_method != "POST":
            await _asgi.respond(send, 405, {**TEXT, "allow": "POST"}, b"only POST")
        elif "application/json" not in accept or "text/event-stream" not in accept:
            await _refuse(send, 406, None, RpcError(-32000, "Not Acceptable"))
        elif received.message is None:
            await _refuse(send, 400, None, RpcError(-32700, "Parse error"))
        elif received.is_answer:
            await _refuse(send, 400, None, RpcError(-32600, "responses are not taken"))
        elif "id" not in received.message:
            await _asgi.respond(send, 202, TEXT)
        else:
            try:
                self._check(received)
            except RpcError as error:
                await _refuse(send, _STATUSES.get(error.code, 400), received.id, error)
                return
            if received.method == "subscriptions/listen" and self._server.listen:
                await self._listen(received, receive, send)
            else:
                await self._answer(received, receive, send)

    def _check(self, received: Received) -> None:
        versions = list(self._server.versions)
        if received.method == "initialize":
            asked = {"supported": versions, "requested": received.params.get("protocolVersion")}
            raise RpcError(-32022, "this server knows no handshake", asked)
        meta = received.params.get("_meta")
        meta = meta if isinstance(meta, dict) else {}
        for name in ("protocolVersion", "clientCapabilities"):
            if f"{PROTOCOL}{name}" not in meta:
                raise RpcError(-32602, f"_meta has no {PROTOCOL}{name}")
        version = meta[f"{PROTOCOL}protocolVersion"]
        if self._server.check_headers:
            self._compare(received, "mcp-protocol-version", version)
            self._compare(received, "mcp-method", received.method)
            if received.method in _NAMED:
                self._compare(received, "mcp-name", received.params.get(_NAMED[received.method]))
        if version not in versions:
            asked = {"supported": versions, "requested": version}
            raise RpcError(-32022, "Unsupported protocol version", asked)
        if self._server.check_headers and received.method == "tools/call":
            self._check_params(received)

    def _check_params(self, received: Received) -> None:
        tool = self._server.tools.get(str(received.params.get("name")))
        arguments = received.params.get("arguments", {})
        for name, schema in (tool[1].get("properties", {}) if tool else {}).items():
            if "x-mcp-header" in schema:
                wanted = arguments.get(name)
                self._compare(received, f"mcp-param-{schema['x-mcp-header'].lower()}", wanted)

    def _compare(self, received: Received, header: str, wanted: Any) -> None:
        found = received.headers.get(header)
        if found is not None and found.startswith("=?base64?") and found.endswith("?="):
            found = base64.b64decode(found[9:-2]).decode()
        if found != wanted:
            raise RpcError(-32020, f"the header {header} does not match the body")

    async def _answer(self, received: Received, receive: Receive, send: Send) -> None:
        sender, messages = trio.open_memory_channel[Json](math.inf)
        call = StatelessCall(server=self._server, received=received, say=sender.send_nowait)
        answered = False
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                await _asgi.wait_disconnect(receive)
                if not answered:
                    self._server.note(received, "left")
                    nursery.cancel_scope.cancel()

            async def work() -> None:
                sender.send_nowait(await self._outcome(call))
                sender.close()

            nursery.start_soon(watch)
            nursery.start_soon(work)
            first = await self._first(messages)
            if first is not None and "id" in first and self._server.responses == "auto":
                status = _STATUSES.get(first.get("error", {}).get("code"), 200)
                await _asgi.respond(send, status, JSON, msgspec.json.encode(first))
            else:
                await self._stream(first, messages, send)
            answered = True
            self._server.note(received, "answered")
            nursery.cancel_scope.cancel()

    async def _first(self, messages: trio.MemoryReceiveChannel[Json]) -> Json | None:
        """The first message; None if none came before a comment is due."""
        with trio.move_on_after(self._server.keepalive or math.inf):
            return await messages.receive()
        return None

    async def _stream(
        self, first: Json | None, messages: trio.MemoryReceiveChannel[Json], send: Send
    ) -> None:
        await _asgi.send_head(send, 200, EVENTS)
        message = first
        while message is None or "id" not in message:
            part = encode_event(msgspec.json.encode(message)) if message else _KEEPALIVE
            await _asgi.send_body(send, part, more=True)
            message = await self._first(messages)
        await _asgi.send_body(send, encode_event(msgspec.json.encode(message)))

    async def _outcome(self, call: StatelessCall) -> Json:
        answer: Json = {"jsonrpc": "2.0", "id": call.received.id}
        try:
            result = await self._perform(call)
        except RpcError as error:
            return {**answer, "error": _error_object(error)}
        info = {f"{PROTOCOL}serverInfo": {"name": "stateless", "version": "1"}}
        result = {"resultType": "complete", **result, "_meta": {**result.get("_meta", {}), **info}}
        return {**answer, "result": result}

    async def _perform(self, call: StatelessCall) -> Mapping[str, Any]:
        server, method = self._server, call.received.method
        if method == "tools/call":
            tool = server.tools.get(str(call.params.get("name")))
            if tool is None:
                raise RpcError(-32602, f"there is no tool {call.params.get('name')!r}")
            return await tool[2](call)
        await trio.lowlevel.checkpoint()
        if method == "server/discover":
            return server.discover()
        if method in _LISTS:
            return self._page(call, _LISTS[method])
        if method == "resources/read":
            return self._read(call.params.get("uri"))
        if method == "prompts/get":
            prompt = server.get_prompt(call)
            if prompt is None:
                raise RpcError(-32602, "there is no such prompt")
            return prompt
        if method == "completion/complete":
            start = call.params.get("argument", {}).get("value", "")
            values = [v for v in ("paris", "park", "party") if v.startswith(start)]
            return {"completion": {"values": values, "total": len(values), "hasMore": False}}
        raise RpcError(-32601, "Method not found")

    def _page(self, call: StatelessCall, name: str) -> Json:
        items = self._server.items(name)
        size = self._server.page_size or max(len(items), 1)
        cursor = call.params.get("cursor", "0")
        if not isinstance(cursor, str) or not cursor.isdigit():
            raise RpcError(-32602, "Invalid cursor")
        start = int(cursor)
        result: Json = {name: items[start : start + size], **self._server.freshness()}
        if start + size < len(items):
            result["nextCursor"] = str(start + size)
        return result

    def _read(self, uri: Any) -> Json:
        content = self._server.resources.get(uri)
        if content is None and str(uri).startswith("test://item/"):
            content = str(uri).removeprefix("test://item/")
        if content is None:
            raise RpcError(-32602, "there is no such resource", {"uri": uri})
        contents = [{"uri": uri, "mimeType": "text/plain", "text": content}]
        return {"contents": contents, **self._server.freshness()}

    async def _listen(self, received: Received, receive: Receive, send: Send) -> None:
        asked = received.params.get("notifications", {})
        honoured = {
            name: wanted
            for name, wanted in asked.items()
            if name in self._server.honours and wanted
        }
        listen = Listen(received.id, honoured)
        await trio.sleep(self._server.listen_delay)
        self._server.listens.append(listen)
        listen.notify("notifications/subscriptions/acknowledged", {"notifications": honoured})
        self._server.note(received, "listening")
        try:
            await _asgi.send_head(send, 200, EVENTS)
            await _asgi.send_until_disconnect(receive, send, self._events(listen))
        finally:
            self._server.listens.remove(listen)
            self._server.note(received, "left")
        if not listen.cut:
            await _asgi.send_body(send)

    def _events(self, listen: Listen) -> _Comments:
        return _Comments(listen.events, self._server.keepalive or math.inf)


class _Comments:
    """Events, and a comment whenever there was none for so many seconds."""

    def __init__(self, events: trio.MemoryReceiveChannel[bytes], seconds: float) -> None:
        self._events = events
        self._seconds = seconds

    def __aiter__(self) -> _Comments:
        return self

    async def __anext__(self) -> bytes:
        with trio.move_on_after(self._seconds):
            try:
                return await self._events.receive()
            except trio.EndOfChannel:
                raise StopAsyncIteration from None
        return _KEEPALIVE


def _error_object(error: RpcError) -> Json:
    body: Json = {"code": error.code, "message": error.message}
    if error.data is not None:
        body["data"] = error.data
    return body


async def _refuse(send: Send, status: int, rpc_id: Any, error: RpcError) -> None:
    body = {"jsonrpc": "2.0", "id": rpc_id, "error": _error_object(error)}
    await _asgi.respond(send, status, JSON, msgspec.json.encode(body))
