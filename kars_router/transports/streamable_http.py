"""Streamable HTTP as a client: one POST for each message, one GET stream, one DELETE.

Owns the requests of one session: their headers, redirects and credentials. Must not know whether
a failure is a loss, nor when a message or the GET stream is to be tried again.

Source: MCP 2025-11-25 "Transports / Streamable HTTP"; MCP 2026-07-28 "Streamable HTTP".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine, Mapping
from functools import lru_cache, partial
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
import trio

from kars_router.errors import CallFailed, UserError
from kars_router.hookspecs import Credentials
from kars_router.model import Failure, Phase, Sent
from kars_router.telemetry import log
from kars_router.transports.answers import (
    Answers,
    Reading,
    describe,
    media_type,
    read_refusal,
    release,
)
from kars_router.transports.authorization import Authorization
from kars_router.transports.base import Deliver, Delivery, Position, Told
from kars_router.transports.client import Client, Outline, Reply
from kars_router.transports.guard import AddressRefusedError
from kars_router.transports.http import Exchange
from kars_router.transports.http_unread import Unread
from kars_router.transports.lookout import Lookout
from kars_router.transports.redaction import SHORTEST, redact
from kars_router.transports.resumption import is_resumable, resume, resumption_id
from kars_router.wire import eras

_MAX_REDIRECTS: Final = 3
_REDIRECTS: Final = (307, 308)
_UNAUTHORIZED: Final = (401, 403)
_MOST_COOKIE_CHARACTERS: Final = 8 * 1024
_SHORTEST_STATIC_SECRET: Final = 8
# MCP 2025-11-25 "Session Management"
_SESSION_ID: Final = re.compile(r"[\x21-\x7e]+")
# Those with session ids and resumption; a server that was not asked yet may be of one of them.
_HANDSHAKE_ERA: Final = frozenset({None, "2024-11-05", *eras.HANDSHAKE_REVISIONS})


# The same for all sessions of a server, which may be many.
@lru_cache
def _parsed(url: str) -> httpx.URL:
    return httpx.URL(url)


@lru_cache
def _limits(connect_timeout: float) -> Mapping[str, float | None]:
    return {"connect": connect_timeout, "write": connect_timeout, "read": None, "pool": None}


class StreamableHttp:
    """One session over Streamable HTTP.

    Args:
        client: the session's own client (it holds the session's cookies).
        url: the server's endpoint.
        server: its configured name, for failures.
        deliver: takes every message that arrives, at once and without waiting.
        credentials: supplies authentication, or None.
        headers: static extra headers.
        connect_timeout: seconds to get a connection, and for control messages as a whole.
        event_limit: most bytes of one event.
        body_limit: most bytes of one JSON response.
        lookout: waits for what comes on the GET stream, together with those of other sessions.
    """

    correlates = True

    def __init__(
        self,
        client: Client,
        url: str,
        *,
        server: str,
        deliver: Deliver,
        credentials: Credentials | None = None,
        headers: Mapping[str, str] | None = None,
        connect_timeout: float = 5.0,
        event_limit: int = 16 * 1024 * 1024,
        body_limit: int = 64 * 1024 * 1024,
        lookout: Lookout | None = None,
    ) -> None:
        self.session_id: str | None = None
        self.revision: str | None = None
        self._client = client
        self._url = _parsed(url)
        self._server = server
        self._authorization = Authorization(credentials)
        self._extra = dict(headers or {})
        self._limits = _limits(connect_timeout)
        self._outline: tuple[object, Outline] | None = None
        self._redirected = False
        self._lookout = lookout
        self._answers = Answers(
            server, deliver, self._failure, event_limit=event_limit, body_limit=body_limit
        )

    async def open(self, nursery: trio.Nursery) -> None:  # noqa: ARG002 - the protocol's
        """See `Connection.open`; there is nothing to be opened."""
        await trio.lowlevel.checkpoint()

    async def send(
        self,
        payload: bytes,
        *,
        method: str,
        delivery: Delivery,
        ident: bytes = b"",
        control: bool = False,
        headers: Mapping[str, str] | None = None,
        unread: Unread | None = None,
    ) -> None:
        """See `Connection.send`. With `unread`, it has been sent, and the rest is done.

        An event stream that ends before its response is gone on with, see `resume`. Where that is
        given up, the outcome is that of the first stream.
        """
        extra = {name.lower(): value for name, value in headers.items()} if headers else None
        reply = await self._open(
            "POST",
            payload,
            name=method,
            delivery=delivery,
            control=control,
            extra=extra,
            unread=unread,
        )
        reading = Reading(method, ident, delivery)
        failure: Failure | None = None
        try:
            delivery.heard = trio.current_time()
            if delivery.on_open is not None:
                delivery.on_open()
            if method == "initialize":
                self._take_session_id(reply)
            await self._answers.read(reply, reading)
        except CallFailed as error:
            if not self._resumable(reading):
                raise
            failure = error.failure
        finally:
            if not reply.is_closed:
                await release(reply)  # noqa: ASYNC102 - shielded and bounded there
        if self._resumable(reading):
            await resume(reading, self._stream, server=self._server)
            if failure is not None and not reading.answered:
                raise CallFailed(failure)

    def send_now(self, payload: bytes, told: Told) -> bool:
        """See `Connection.send_now`; only without TLS, tokens to be refreshed, and redirects."""
        # What is redirected has to be sent again, at once; nobody would know before the next use.
        if self._authorization.refreshable or self._redirected:
            return False
        outline = self._outlined("POST", self._url, None, with_body=True)
        return self._client.send_now(
            outline, payload, self._limits, partial(self._told, payload, told)
        )

    def _told(self, payload: bytes, told: Told, unread: Unread | None) -> bool:
        rest = None
        if unread is not None:
            rest = partial(
                self.send, payload, method="", delivery=Delivery(), control=True, unread=unread
            )
        return told(rest)

    def listen(self, position: Position, on_open: Callable[[], None]) -> Coroutine[Any, Any, None]:
        """See `Connection.listen`."""
        return self._stream(Reading("GET", position=position, phase=Phase.LISTEN), on_open)

    async def close(self) -> None:
        """See `Connection.close`."""
        if self._session is None:
            return
        reply = await self._open(
            "DELETE", None, name="DELETE", delivery=Delivery(), control=True, tolerated=(404, 405)
        )
        await release(reply)

    @property
    def _session(self) -> str | None:
        """The session id to be sent; None where the revision knows none."""
        return self.session_id if self.revision in _HANDSHAKE_ERA else None

    def _take_session_id(self, reply: Reply) -> None:
        session_id = reply.header(eras.SESSION_HEADER)
        if not session_id or self.session_id is not None or self.revision not in _HANDSHAKE_ERA:
            return
        if not _SESSION_ID.fullmatch(session_id):
            raise self._failure(
                Phase.HANDSHAKE,
                "initialize",
                "a session id with other characters than visible ASCII",
                code="protocol",
                status=reply.status,
                sent=Sent.YES,
            )
        self.session_id = session_id

    def _resumable(self, reading: Reading) -> bool:
        return is_resumable(reading) and self.revision in _HANDSHAKE_ERA

    async def _stream(self, reading: Reading, on_open: Callable[[], None] | None = None) -> None:
        """Reads the event stream of a GET on from where `reading` stands, to its end or response.

        Raises:
            CallFailed: with phase LISTEN if the GET was refused; else it could not be made, or
                the stream broke off.
        """
        name = reading.name
        extra = {"accept": eras.STREAM_TYPE}
        if ident := resumption_id(reading.position):
            extra[eras.LAST_EVENT_ID_HEADER] = ident
        # Also for a call's stream: what has been executed does not wait behind what has not. The
        # calls on their way bound the number of those.
        reply = await self._open(
            "GET", None, name=name, delivery=Delivery(), control=True, extra=extra
        )
        try:
            kind = media_type(reply)
            if kind != eras.STREAM_TYPE:
                raise self._failure(
                    Phase.LISTEN,
                    name,
                    f"a GET was answered with {kind or 'no content type'}",
                    code="protocol",
                    status=reply.status,
                    sent=Sent.YES,
                )
            self._answers.check_encoding(reply, Phase.LISTEN, name)
            if on_open is not None:
                on_open()
            if self._lookout is not None and not reading.ident:
                reply.share_waits(self._lookout)
            # Servers hold the stream of a GET open, whoever's it was. A POST's is waited for: at
            # its end its connection can be kept.
            await self._answers.read_events(reply, reading, until_answered=bool(reading.ident))
        finally:
            await release(reply)  # noqa: ASYNC102 - shielded and bounded there

    async def _open(
        self,
        verb: str,
        payload: bytes | None,
        *,
        name: str,
        delivery: Delivery,
        control: bool,
        extra: Mapping[str, str] | None = None,
        tolerated: tuple[int, ...] = (),
        unread: Unread | None = None,
    ) -> Reply:
        refreshed = False
        url = self._url
        redirects = 0
        while True:
            if self._authorization.refreshable:
                await self._authorize(name, urgent=control)
            # Read before anything is awaited, so these are the ones which are sent.
            shown = self._authorization.headers
            reply = await self._once(
                verb,
                url,
                payload,
                name=name,
                delivery=delivery,
                control=control,
                extra=extra,
                unread=unread,
            )
            unread = None
            status = reply.status
            if status < 300 or status in tolerated:
                return reply
            if status in _REDIRECTS and redirects < _MAX_REDIRECTS:
                target = self._same_origin(reply)
                if target is not None:
                    self._redirected = True
                    await release(reply)
                    url, redirects = target, redirects + 1
                    continue
            if status in _UNAUTHORIZED and self._authorization.refreshable and not refreshed:
                refreshed = True
                refusal = await self._refused(reply, verb, name)
                if await self._reauthorize(name, shown, reply):
                    continue
                raise refusal
            raise await self._refused(reply, verb, name)

    async def _once(
        self,
        verb: str,
        url: httpx.URL,
        payload: bytes | None,
        *,
        name: str,
        delivery: Delivery,
        control: bool,
        extra: Mapping[str, str] | None,
        unread: Unread | None,
    ) -> Reply:
        exchange = Exchange(control=control) if unread is None else unread.exchange
        delivery.sent = Sent.NO
        phase = Phase.CONNECT
        try:
            outline = self._outlined(verb, url, extra, with_body=payload is not None)
            if unread is None:
                reply = await self._client.exchange(outline, payload, exchange, self._limits)
            else:
                reply = await self._client.receive(outline, unread)
        except httpx.TransportError as error:
            if exchange.complete:
                phase = Phase.AWAIT
            elif exchange.accepted:
                phase = Phase.SEND
            raise self._failure(
                phase, name, describe(error), code=_code_of(error), sent=_sent(exchange)
            ) from error
        finally:
            delivery.sent = _sent(exchange)
        if reply.header("set-cookie"):
            self._limit_cookies()
        return reply

    def _outlined(
        self, verb: str, url: httpx.URL, extra: Mapping[str, str] | None, *, with_body: bool
    ) -> Outline:
        """What requests to a place have in common; of calls it hardly ever changes."""
        known = (verb, url, self._session, self.revision, self._authorization.headers)
        if extra is None and self._outline is not None and self._outline[0] == known:
            return self._outline[1]
        headers = {**self._extra, **self._authorization.headers, "accept": eras.ACCEPT_BOTH}
        if with_body:
            headers["content-type"] = eras.JSON_TYPE
        if (session_id := self._session) is not None:
            headers[eras.SESSION_HEADER] = session_id
        if self.revision is not None:
            headers[eras.VERSION_HEADER] = self.revision
        headers.update(extra or {})
        outline = self._client.outline(verb, url, headers)
        if extra is None:
            self._outline = known, outline
        return outline

    def _limit_cookies(self) -> None:
        # Cookies are kept for load balancers that pin a session by one; a server that sets more
        # and more of them would make each request larger than the one before.
        jar = self._client.cookies.jar
        if sum(len(c.name) + len(c.value or "") for c in jar) > _MOST_COOKIE_CHARACTERS:
            log().warning("cookies_dropped", server=self._server, cookies=len(jar))
            jar.clear()

    async def _authorize(self, name: str, *, urgent: bool) -> None:
        try:
            await self._authorization.ensure(urgent=urgent)
        except UserError as error:
            raise self._failure(Phase.CONNECT, name, str(error), code="credentials") from error

    async def _reauthorize(self, name: str, shown: Mapping[str, str], reply: Reply) -> bool:
        challenge = reply.header("www-authenticate")
        try:
            return await self._authorization.renew(shown, status=reply.status, challenge=challenge)
        except UserError as error:
            raise self._failure(Phase.CONNECT, name, str(error), code="credentials") from error

    def _same_origin(self, reply: Reply) -> httpx.URL | None:
        try:
            target = reply.url.join(reply.header("location"))
            same = origin_of(target) == origin_of(self._url) and not target.userinfo
        except (httpx.InvalidURL, ValueError):  # the latter for a port out of range
            return None
        return target if same else None

    async def _refused(self, reply: Reply, verb: str, name: str) -> CallFailed:
        status = reply.status
        refusal = await read_refusal(reply)
        return self._failure(
            Phase.LISTEN if verb == "GET" else Phase.AWAIT,
            name,
            f"{verb} was refused",
            code="redirect" if status < 400 else "http_status",
            status=status,
            body=refusal.text,
            rpc_code=refusal.rpc_code,
            rpc_error=refusal.rpc_error if status >= 400 else b"",
            sent=Sent.YES,
        )

    def _secrets(self) -> set[str]:
        found = {self.session_id or "", *self._authorization.values()}
        kept = {secret for secret in found if len(secret) >= SHORTEST}
        return kept | {v for v in self._extra.values() if len(v) >= _SHORTEST_STATIC_SECRET}

    def _failure(
        self,
        phase: Phase,
        name: str,
        detail: str,
        *,
        code: str,
        sent: Sent = Sent.NO,
        status: int | None = None,
        body: str = "",
        rpc_code: int | None = None,
        rpc_error: bytes = b"",
    ) -> CallFailed:
        secrets = self._secrets()
        return CallFailed(
            Failure(
                server=self._server,
                phase=phase,
                sent=sent,
                status=status,
                body=redact(body, secrets),
                rpc_code=rpc_code,
                rpc_error=rpc_error,
                had_session=self._session is not None,
                method=name,
                detail=redact(detail, secrets),
                code=code,
            )
        )


def _sent(exchange: Exchange) -> Sent:
    if exchange.complete:
        return Sent.YES
    return Sent.PARTLY if exchange.accepted else Sent.NO


def origin_of(url: httpx.URL) -> tuple[str, str, int | None]:
    """Scheme, host and port of a URL, comparable (RFC 6454, section 4)."""
    parts = urlsplit(str(url))
    port = {"http": 80, "https": 443}.get(parts.scheme) if parts.port is None else parts.port
    return parts.scheme, (parts.hostname or "").lower(), port


def _code_of(error: httpx.TransportError) -> str:
    if isinstance(error.__cause__, AddressRefusedError):
        return "address_refused"
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return "connect"
    if isinstance(error, httpx.PoolTimeout):
        return "busy"
    return "transport"
