"""Streamable HTTP as a client: one POST for each message, one GET stream, one DELETE.

Owns headers, content types and event streams of one session. Must not know whether a failure is
a loss, nor when to try again.

Source: MCP 2025-11-25 "Transports / Streamable HTTP".
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Final
from urllib.parse import urlsplit

import httpx
import trio

from kars_router.errors import CallFailed, UserError
from kars_router.hookspecs import Credentials
from kars_router.model import Failure, Phase, Sent
from kars_router.telemetry import log
from kars_router.transports.base import Deliver, Delivery, Position
from kars_router.transports.http import Exchange
from kars_router.transports.redaction import SHORTEST, redact
from kars_router.wire import eras, jsonrpc, sse

_EXCERPT: Final = 512
_MAX_REDIRECTS: Final = 3
_REDIRECTS: Final = (307, 308)
_UNAUTHORIZED: Final = (401, 403)
_NO_BODY: Final = (202, 204)
_DRAIN_SECONDS: Final = 1.0
_MOST_COOKIE_CHARACTERS: Final = 8 * 1024
_SHORTEST_STATIC_SECRET: Final = 8
_REMEMBERED_CREDENTIALS: Final = 4
# MCP 2025-11-25 "Session Management"
_SESSION_ID: Final = re.compile(r"[\x21-\x7e]+")


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
    """

    def __init__(
        self,
        client: httpx.AsyncClient,
        url: str,
        *,
        server: str,
        deliver: Deliver,
        credentials: Credentials | None = None,
        headers: Mapping[str, str] | None = None,
        connect_timeout: float = 5.0,
        event_limit: int = 16 * 1024 * 1024,
        body_limit: int = 64 * 1024 * 1024,
    ) -> None:
        self.session_id: str | None = None
        self.revision: str | None = None
        self._client = client
        self._url = httpx.URL(url)
        self._server = server
        self._deliver = deliver
        self._credentials = credentials
        self._extra = dict(headers or {})
        # The newest last; the ones before it may still come back in the answer to an older request.
        self._auths: deque[Mapping[str, str]] = deque(maxlen=_REMEMBERED_CREDENTIALS)
        self._auth_generation = 0
        self._auth_lock = trio.Lock()
        self._auth_failures = 0
        self._auth_failure = ""
        self._event_limit = event_limit
        self._body_limit = body_limit
        self._timeout = httpx.Timeout(None, connect=connect_timeout, write=connect_timeout)

    async def send(
        self, payload: bytes, *, method: str, delivery: Delivery, control: bool = False
    ) -> None:
        """See `Connection.send`."""
        response = await self._open(
            "POST", payload, name=method, delivery=delivery, control=control
        )
        try:
            await self._read_answer(response, method)
        finally:
            await _release(response)  # noqa: ASYNC102 - shielded and bounded there

    async def listen(self, position: Position, on_open: Callable[[], None]) -> None:
        """See `Connection.listen`."""
        extra = {"accept": eras.STREAM_TYPE}
        # An empty id takes back the ones before; one that no header can hold cannot be resumed at.
        if position.last_event_id and position.last_event_id.isprintable():
            extra[eras.LAST_EVENT_ID_HEADER] = position.last_event_id
        response = await self._open(
            "GET", None, name="GET", delivery=Delivery(), control=True, extra=extra
        )
        try:
            kind = _media_type(response)
            if kind != eras.STREAM_TYPE:
                raise self._failure(
                    Phase.LISTEN,
                    "GET",
                    f"a GET was answered with {kind or 'no content type'}",
                    code="protocol",
                    status=response.status_code,
                    sent=Sent.YES,
                )
            self._check_encoding(response, Phase.LISTEN, "GET")
            on_open()
            decoder = sse.Decoder(self._event_limit)
            decoder.last_event_id, decoder.retry = position.last_event_id, position.retry
            await self._read_events(response, decoder, "GET", position)
        finally:
            await _release(response)  # noqa: ASYNC102 - shielded and bounded there

    async def close(self) -> None:
        """See `Connection.close`."""
        if self.session_id is None:
            return
        response = await self._open(
            "DELETE", None, name="DELETE", delivery=Delivery(), control=True, tolerated=(404, 405)
        )
        await _release(response)

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
    ) -> httpx.Response:
        refreshed = False
        url = self._url
        redirects = 0
        while True:
            await self._authorize(name)
            # Read before anything is awaited, so it is that of the headers which are sent.
            generation = self._auth_generation
            response = await self._once(
                verb, url, payload, name=name, delivery=delivery, control=control, extra=extra
            )
            status = response.status_code
            if status < 300 or status in tolerated:
                return response
            if status in _REDIRECTS and redirects < _MAX_REDIRECTS:
                target = self._same_origin(response)
                if target is not None:
                    await _release(response)
                    url, redirects = target, redirects + 1
                    continue
            if status in _UNAUTHORIZED and self._credentials is not None and not refreshed:
                await _release(response)
                refreshed = True
                await self._authorize(name, refused=generation)
                continue
            raise await self._refused(response, verb, name)

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
    ) -> httpx.Response:
        exchange = Exchange(control=control)
        headers = {
            **self._extra,
            **(self._auths[-1] if self._auths else {}),
            "accept": eras.ACCEPT_BOTH,
        }
        if payload is not None:
            headers["content-type"] = eras.JSON_TYPE
        if self.session_id is not None:
            headers[eras.SESSION_HEADER] = self.session_id
        if self.revision is not None:
            headers[eras.VERSION_HEADER] = self.revision
        headers.update(extra or {})
        request = self._client.build_request(
            verb,
            url,
            content=payload,
            # As bytes, because httpx takes ASCII only of text, and event ids are UTF-8.
            headers=[(name.encode(), value.encode()) for name, value in headers.items()],
            timeout=self._timeout,
            extensions={"kars_exchange": exchange},
        )
        self._limit_cookies()
        delivery.sent = Sent.NO
        phase = Phase.CONNECT
        try:
            return await self._client.send(request, stream=True)
        except httpx.TransportError as error:
            if exchange.complete:
                phase = Phase.AWAIT
            elif exchange.accepted:
                phase = Phase.SEND
            raise self._failure(
                phase, name, _describe(error), code=_code_of(error), sent=_sent(exchange)
            ) from error
        finally:
            delivery.sent = _sent(exchange)

    def _limit_cookies(self) -> None:
        # Cookies are kept for load balancers that pin a session by one; a server that sets more
        # and more of them would make each request larger than the one before.
        jar = self._client.cookies.jar
        if sum(len(c.name) + len(c.value or "") for c in jar) > _MOST_COOKIE_CHARACTERS:
            log().warning("cookies_dropped", server=self._server, cookies=len(jar))
            jar.clear()

    async def _authorize(self, name: str, *, refused: int = 0) -> None:
        """See to it that there are credentials newer than those of the generation `refused`.

        Requests that are refused together wait for one refresh, and share its failure too.
        """
        if self._credentials is None or self._auth_generation > refused:
            return
        failures = self._auth_failures
        async with self._auth_lock:
            if self._auth_generation > refused:
                return
            if self._auth_failures > failures:
                raise self._failure(Phase.CONNECT, name, self._auth_failure, code="credentials")
            try:
                self._auths.append(await self._credentials.headers(refresh=refused > 0))
            except UserError as error:
                self._auth_failures += 1
                self._auth_failure = str(error)
                raise self._failure(Phase.CONNECT, name, str(error), code="credentials") from error
            self._auth_generation += 1

    def _same_origin(self, response: httpx.Response) -> httpx.URL | None:
        try:
            target = response.url.join(response.headers.get("location", ""))
            same = _origin(target) == _origin(self._url) and not target.userinfo
        except (httpx.InvalidURL, ValueError):  # the latter for a port out of range
            return None
        return target if same else None

    async def _refused(self, response: httpx.Response, verb: str, name: str) -> CallFailed:
        body = b""
        try:
            with trio.move_on_after(_DRAIN_SECONDS):
                async with _chunks(response) as chunks:
                    async for chunk in chunks:
                        body += chunk
                        if len(body) >= _EXCERPT:
                            break
        except httpx.TransportError:
            pass  # the status alone is enough to judge by
        finally:
            await _release(response)  # noqa: ASYNC102 - shielded and bounded there
        if _encoding(response):
            body = b""  # nothing that a person or a rule could read
        status = response.status_code
        code, rpc_code = "http_status", None
        if body.lstrip().startswith(b"{"):
            try:
                message = jsonrpc.parse(body)
            except jsonrpc.MalformedError:
                pass
            else:
                rpc_code = jsonrpc.error_code(message.error)[0] if message.error else None
        if 300 <= status < 400:
            code = "redirect"
        return self._failure(
            Phase.LISTEN if verb == "GET" else Phase.AWAIT,
            name,
            f"{verb} was refused",
            code=code,
            status=status,
            body=body[:_EXCERPT].decode("utf-8", "replace"),
            rpc_code=rpc_code,
            sent=Sent.YES,
        )

    async def _read_answer(self, response: httpx.Response, name: str) -> None:
        session_id = response.headers.get(eras.SESSION_HEADER)
        if session_id and self.session_id is None and name == "initialize":
            if not _SESSION_ID.fullmatch(session_id):
                raise self._failure(
                    Phase.HANDSHAKE,
                    name,
                    "a session id with other characters than visible ASCII",
                    code="protocol",
                    status=response.status_code,
                    sent=Sent.YES,
                )
            self.session_id = session_id
        if response.status_code in _NO_BODY:
            return
        self._check_encoding(response, Phase.STREAM, name)
        kind = _media_type(response)
        if kind == eras.STREAM_TYPE:
            await self._read_events(response, sse.Decoder(self._event_limit), name, Position())
            return
        body = await self._read_body(response, name)
        if not body.strip():
            return
        if kind != eras.JSON_TYPE:
            raise self._failure(
                Phase.STREAM,
                name,
                f"an answer of type {kind or '(none)'}",
                code="protocol",
                status=response.status_code,
                sent=Sent.YES,
                body=body[:_EXCERPT].decode("utf-8", "replace"),
            )
        try:
            self._take(body)
        except jsonrpc.MalformedError as error:
            raise self._failure(
                Phase.STREAM,
                name,
                f"the server sent {error}",
                code="protocol",
                status=response.status_code,
                sent=Sent.YES,
            ) from error

    async def _read_body(self, response: httpx.Response, name: str) -> bytes:
        parts: list[bytes] = []
        size = 0
        try:
            async with _chunks(response) as chunks:
                async for chunk in chunks:
                    size += len(chunk)
                    if size > self._body_limit:
                        raise self._failure(
                            Phase.STREAM,
                            name,
                            f"an answer exceeds {self._body_limit} bytes",
                            code="too_large",
                            status=response.status_code,
                            sent=Sent.YES,
                        )
                    parts.append(chunk)
        except httpx.TransportError as error:
            raise self._failure(
                Phase.STREAM,
                name,
                _describe(error),
                code="broken_stream",
                status=response.status_code,
                sent=Sent.YES,
            ) from error
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _read_events(
        self, response: httpx.Response, decoder: sse.Decoder, name: str, position: Position
    ) -> None:
        phase = Phase.LISTEN if name == "GET" else Phase.STREAM
        malformed = 0
        try:
            async with _chunks(response) as chunks:
                async for chunk in chunks:
                    position.heard = trio.current_time()
                    events = decoder.feed(chunk)
                    position.last_event_id, position.retry = decoder.last_event_id, decoder.retry
                    for event in events:
                        if event.event == "message" and event.data:
                            malformed += not self._take_event(event.data, quiet=malformed > 0)
        except (httpx.TransportError, sse.EventTooLargeError) as error:
            raise self._failure(
                phase,
                name,
                _describe(error),
                code="broken_stream",
                status=response.status_code,
                sent=Sent.YES,
            ) from error
        finally:
            if malformed > 1:
                log().warning("malformed_messages", server=self._server, count=malformed)

    def _take_event(self, data: bytes, *, quiet: bool) -> bool:
        # One bad event says nothing about the ones after it, so the stream goes on; a call whose
        # answer it was ends as a stream without an answer. Only the first of a stream is logged,
        # as a server may send nothing else.
        try:
            self._take(data)
        except jsonrpc.MalformedError as error:
            if not quiet:
                log().warning("malformed_message", server=self._server, error=str(error))
            return False
        return True

    def _check_encoding(self, response: httpx.Response, phase: Phase, name: str) -> None:
        # We ask for identity. What is compressed all the same is not unpacked: a few kilobytes
        # can become gigabytes, and httpx unpacks before any limit is asked.
        if encoding := _encoding(response):
            raise self._failure(
                phase,
                name,
                f"an answer in the content encoding {encoding[:40]}",
                code="protocol",
                status=response.status_code,
                sent=Sent.YES,
            )

    def _take(self, data: bytes) -> None:
        if jsonrpc.is_batch(data):
            messages = [jsonrpc.parse(part) for part in jsonrpc.split_batch(data)]
        else:
            messages = [jsonrpc.parse(data)]
        for message in messages:
            self._deliver(message)

    def _secrets(self) -> set[str]:
        found = {self.session_id or ""}
        for auth in self._auths:
            for value in auth.values():
                found |= {value, value.partition(" ")[2]}  # the latter without "Bearer"
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
                had_session=self.session_id is not None,
                method=name,
                detail=redact(detail, secrets),
                code=code,
            )
        )


def _sent(exchange: Exchange) -> Sent:
    if exchange.complete:
        return Sent.YES
    return Sent.PARTLY if exchange.accepted else Sent.NO


def _media_type(response: httpx.Response) -> str:
    value: str = response.headers.get("content-type", "")
    return value.partition(";")[0].strip().lower()


def _encoding(response: httpx.Response) -> str:
    """The content encoding, or "" if there is none (RFC 9110, section 8.4)."""
    value: str = response.headers.get("content-encoding", "")
    plain = all(part.strip().lower() in ("", "identity") for part in value.split(","))
    return "" if plain else value


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    parts = urlsplit(str(url))
    port = {"http": 80, "https": 443}.get(parts.scheme) if parts.port is None else parts.port
    return parts.scheme, (parts.hostname or "").lower(), port


def _describe(error: Exception) -> str:
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _code_of(error: httpx.TransportError) -> str:
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return "connect"
    if isinstance(error, httpx.PoolTimeout):
        return "busy"
    return "transport"


@asynccontextmanager
async def _chunks(response: httpx.Response) -> AsyncIterator[AsyncIterator[bytes]]:
    # Whoever walks away in the middle leaves httpx's generators suspended, one inside the other,
    # and closing the outermost one leaves the others to the garbage collector. The error that
    # comes out of a stream which has been closed ends all of them.
    chunks = response.aiter_raw()
    try:
        yield chunks
    finally:
        await _release(response)  # noqa: ASYNC102 - shielded and bounded there
        with suppress(httpx.RequestError, httpx.StreamError):
            with trio.move_on_after(_DRAIN_SECONDS, shield=True):  # noqa: ASYNC100, RUF100
                async for _ in chunks:
                    pass


async def _release(response: httpx.Response) -> None:
    # Closing a response whose body was not read to its end drops the connection, which may say
    # goodbye to a TLS peer; that must not hold anything up.
    with trio.move_on_after(_DRAIN_SECONDS, shield=True):
        await response.aclose()
