"""Requests to authorization servers, and for metadata: small, bounded, never redirected.

Owns connections, sizes and times. Must not know what the documents mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx
import msgspec
import trio
from attrs import frozen

from kars_router.transports.answers import describe, open_chunks, release
from kars_router.transports.client import new_client
from kars_router.transports.http import TrioTransport
from kars_router.transports.oauth.addresses import origin_of
from kars_router.transports.oauth.errors import TokenError, harmless

MOST_BYTES: Final = 64 * 1024
REQUEST_SECONDS: Final = 3.0
_CLOSE_SECONDS: Final = 1.0
_MOST_RETRY_AFTER: Final = 300.0

Transports = Callable[[str], httpx.AsyncBaseTransport]


@frozen
class Document:
    """What was answered.

    Attributes:
        status: the HTTP status.
        content: the JSON object; empty if the body is none, or larger than 64 KiB.
        retry_after: seconds after which to come back; 0 if nothing was said.
    """

    status: int
    content: Mapping[str, Any]
    retry_after: float


def default_transports(ca_file: Path | None, allowed_networks: Iterable[str]) -> Transports:
    """Makes the real transport for an origin.

    Args:
        ca_file: PEM file of authorities to trust beside the system's.
        allowed_networks: CIDR blocks that names may lead to although they are not public.
    """

    def make(url: str) -> httpx.AsyncBaseTransport:
        return TrioTransport(
            url, max_connections=2, ca_file=ca_file, allowed_networks=allowed_networks
        )

    return make


class Endpoint:
    """The requests of one attempt to get a token; an asynchronous context manager.

    Connections last as long as the attempt: there is one every few minutes at most.

    Args:
        transports: makes the transport for the origin of a URL.
    """

    def __init__(self, transports: Transports) -> None:
        self._transports = transports
        self._clients: dict[tuple[str, str, int], httpx.AsyncClient] = {}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await trio.lowlevel.checkpoint()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with trio.move_on_after(_CLOSE_SECONDS, shield=True):
            await self._stack.aclose()

    async def get(self, url: str, what: str) -> Document:
        """Fetches a document; see `post`."""
        return await self._ask("GET", url, what)

    async def post(
        self, url: str, what: str, form: str, headers: Mapping[str, str] | None = None
    ) -> Document:
        """Sends a form, and reads the answer, whatever its status.

        Args:
            url: where to; has been checked.
            what: what is there, for the error.
            form: the body.
            headers: further headers.

        Raises:
            TokenError: there is no answer. The sentence names the origin of the URL.

        Cancelled, it drops the connection.
        """
        extra = {"content-type": "application/x-www-form-urlencoded", **(headers or {})}
        return await self._ask("POST", url, what, body=form.encode(), headers=extra)

    async def _ask(
        self,
        verb: str,
        url: str,
        what: str,
        *,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> Document:
        scheme, host, port = origin_of(url)
        place = f"{what} at {scheme}://{f'[{host}]' if ':' in host else host}:{port}"
        try:
            with trio.move_on_after(REQUEST_SECONDS):
                return await self._exchange(verb, url, body, headers or {})
        except (httpx.TransportError, httpx.InvalidURL) as error:
            # Not chained: the error holds the request, and that holds the secret.
            said = harmless(describe(error)) if isinstance(error, httpx.TransportError) else ""
            raise TokenError(f"{place} cannot be reached: {said or 'no such address'}") from None
        raise TokenError(f"{place} did not answer within {REQUEST_SECONDS:g} s")

    async def _exchange(
        self, verb: str, url: str, body: bytes, headers: Mapping[str, str]
    ) -> Document:
        client = self._client(url)
        response = await client.send(
            client.build_request(
                verb,
                url,
                content=body or None,
                headers={"accept": "application/json", **headers},
            ),
            stream=True,
        )
        try:
            received = bytearray()
            async with open_chunks(response) as chunks:
                async for chunk in chunks:
                    received += chunk
                    if len(received) > MOST_BYTES:
                        received.clear()
                        break
        finally:
            await release(response)  # noqa: ASYNC102 - shielded and bounded there
        return Document(
            response.status_code,
            _decoded(bytes(received)),
            _seconds(response.headers.get("retry-after", "")),
        )

    def _client(self, url: str) -> httpx.AsyncClient:
        origin = origin_of(url)
        if origin not in self._clients:
            transport = self._transports(url)
            self._stack.push_async_callback(transport.aclose)
            self._clients[origin] = new_client(transport)
        return self._clients[origin]


def _decoded(body: bytes) -> Mapping[str, Any]:
    try:
        content = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _seconds(retry_after: str) -> float:
    # A date is as good as nothing: clocks differ.
    digits = retry_after.strip()
    if not digits.isascii() or not digits.isdigit() or len(digits) > 9:
        return 0.0
    return min(float(digits), _MOST_RETRY_AFTER)
