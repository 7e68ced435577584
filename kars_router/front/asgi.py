"""The agent side as an ASGI application: from an HTTP request to the right handler.

Owns paths, HTTP methods, the checks that come before a body is read, and which era's strategy
answers: both live on the same paths, and each request says for itself which era it is of. Must not
know JSON-RPC methods.

Source: MCP 2025-11-25 and 2026-07-28 "Streamable HTTP"; order of the checks as in the official SDK
servers.
"""

from __future__ import annotations

import functools
from typing import Final

from kars_router.errors import AgentError
from kars_router.front.agents import AgentSession
from kars_router.front.auth import AgentGate
from kars_router.front.bearer import take_authorization
from kars_router.front.exchange import (
    JSON,
    SESSION_HEADER,
    VERSION_HEADER,
    BodyTooLargeError,
    BodyTooSlowError,
    DisconnectedError,
    Exchange,
    Header,
    Receive,
    Scope,
    Send,
    accept_lifespan,
)
from kars_router.front.guard import FORBIDDEN, Guard
from kars_router.front.legacy import LegacyServer
from kars_router.front.stateless import StatelessServer, claims
from kars_router.session.supervisor import Supervisor
from kars_router.wire import eras, jsonrpc
from kars_router.wire.jsonrpc import MalformedError

PATH: Final = "/mcp"
_ALLOW: Final[Header] = (b"allow", b"GET, POST, DELETE")
_ALLOW_POST: Final[Header] = (b"allow", b"POST")


class AgentApp:
    """The ASGI application that agents talk to.

    Args:
        legacy: handles messages of handshake-era agents.
        supervisor: says which servers there are.
        guard: says who may talk.
        body_limit: most bytes of a request's body.
        stateless: handles requests of stateless-era agents; None for a router without them.
        gate: lets in who shows the right token; None for a router that asks for none.
    """

    def __init__(
        self,
        legacy: LegacyServer,
        supervisor: Supervisor,
        guard: Guard,
        *,
        body_limit: int,
        stateless: StatelessServer | None = None,
        gate: AgentGate | None = None,
    ) -> None:
        self.body_limit = body_limit
        self.guard = guard
        self.gate = gate
        self._legacy = legacy
        self._stateless = stateless
        self._supervisor = supervisor

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one HTTP request, or follows the server's lifespan."""
        if scope["type"] == "lifespan":
            await accept_lifespan(receive, send)
            return
        if scope["type"] != "http":
            return  # hypercorn then refuses the web socket
        exchange = Exchange(scope, receive, send)
        try:
            await self._route(exchange)
        except AgentError as error:
            value = jsonrpc.error_object(error.code, error.message)
            await _refuse(exchange, error.status, jsonrpc.error(b"", value))
        except MalformedError as error:
            value = jsonrpc.error_object(error.code, str(error))
            await _refuse(exchange, 400, jsonrpc.error(error.id, value))
        except BodyTooLargeError:
            text = f"the body exceeds {self.body_limit} bytes"
            value = jsonrpc.error_object(jsonrpc.INVALID_REQUEST, text)
            await _refuse(exchange, 413, jsonrpc.error(b"", value), ((b"connection", b"close"),))
        except BodyTooSlowError:
            value = jsonrpc.error_object(jsonrpc.INVALID_REQUEST, "the body did not come in time")
            await _refuse(exchange, 408, jsonrpc.error(b"", value), ((b"connection", b"close"),))
        except DisconnectedError:
            return

    async def _route(self, exchange: Exchange) -> None:
        status = self.guard.refuses(exchange.header(b"host"), exchange.header(b"origin"))
        if status is not None:
            header = "Origin" if status == FORBIDDEN else "Host"
            raise AgentError(jsonrpc.INVALID_REQUEST, f"this {header} is not allowed", status)
        # Taken from the request even where none is asked for: it is for nobody behind this point.
        shown = take_authorization(exchange)
        if self.gate is not None and not await self.gate.admit(exchange, shown):
            return
        endpoint = self._endpoint(exchange.path)
        if exchange.method == "POST":
            _check_post(exchange.header(b"accept"), exchange.header(b"content-type"))
            await self._post(exchange, endpoint)
        elif eras.is_stateless(exchange.header(VERSION_HEADER)):
            await _refuse(exchange, 405, _error("this revision has POST only"), (_ALLOW_POST,))
        elif exchange.method == "GET":
            await self._get(exchange, endpoint)
        elif exchange.method == "DELETE":
            await exchange.body(self.body_limit)
            await self._legacy.delete(exchange, endpoint)
        else:
            await _refuse(exchange, 405, _error("use POST, GET or DELETE"), (_ALLOW,))

    async def _post(self, exchange: Exchange, endpoint: str) -> None:
        version = exchange.header(VERSION_HEADER).strip(" \t")
        named = exchange.header(SESSION_HEADER)
        session: AgentSession | None = None
        stranger: AgentError | None = None
        if named and not eras.is_stateless(version):
            # Strangers' bodies take no room, unless it is the body that has to say whether the
            # session means anything: the stateless era ignores it.
            try:
                session = self._legacy.session_of(exchange, endpoint)
            except AgentError as error:
                if version or self._stateless is None:
                    raise
                stranger = error
        body = await exchange.body(self.body_limit)
        # With a session id, a revision that nobody knows is the other era's to refuse, unless the
        # body has the envelope of this one.
        known = version in eras.STATELESS_REVISIONS or not named
        if self._stateless is not None and claims(version if known else "", body):
            await self._stateless.post(exchange, endpoint, body)
        elif stranger is not None:
            raise stranger
        else:
            await self._legacy.post(exchange, endpoint, body, session)

    async def _get(self, exchange: Exchange, endpoint: str) -> None:
        if not eras.accepts(exchange.header(b"accept"), eras.STREAM_TYPE):
            raise AgentError(
                jsonrpc.INVALID_REQUEST, f"a GET must accept {eras.STREAM_TYPE}", status=406
            )
        if not exchange.header(SESSION_HEADER):
            # Several clients take a 404 or 400 here for a broken server.
            await _refuse(exchange, 405, _error("a GET needs a session; initialize"), (_ALLOW,))
            return
        await exchange.body(self.body_limit)
        await self._legacy.get(exchange, endpoint)

    def _endpoint(self, path: str) -> str:
        path = path.removesuffix("/")
        if path == PATH:
            return ""
        name = path.removeprefix(f"{PATH}/")
        if name == path or name not in self._supervisor.servers:
            raise AgentError(
                jsonrpc.INVALID_REQUEST, "no such endpoint; use /mcp or /mcp/<server>", status=404
            )
        return name


@functools.lru_cache(maxsize=64)  # agents keep sending the same few
def _check_post(accept: str, content_type: str) -> None:
    if not (eras.accepts(accept, eras.JSON_TYPE) and eras.accepts(accept, eras.STREAM_TYPE)):
        raise AgentError(
            jsonrpc.INVALID_REQUEST,
            f"a POST must accept both {eras.JSON_TYPE} and {eras.STREAM_TYPE}",
            status=406,
        )
    kind = content_type.partition(";")[0].strip().lower()
    if kind != eras.JSON_TYPE:
        raise AgentError(
            jsonrpc.INVALID_REQUEST, f"the content type must be {eras.JSON_TYPE}", status=415
        )


def _error(text: str) -> bytes:
    return jsonrpc.error(b"", jsonrpc.error_object(jsonrpc.INVALID_REQUEST, text))


async def _refuse(
    exchange: Exchange, status: int, body: bytes, headers: tuple[Header, ...] = ()
) -> None:
    await exchange.respond(status, body, (JSON, *headers))
