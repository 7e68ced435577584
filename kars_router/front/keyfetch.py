"""Fetching the public keys of an issuer over HTTP, directly or by way of its metadata.

Owns what is fetched from where, how much of it and for how long. Must not know when.

Source: RFC 8414, sections 3 and 3.3; OpenID Connect Discovery 1.0, section 4; MCP 2026-07-28
"Authorization / Authorization Server Metadata Discovery" (the order).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import httpx
import trio
from attrs import frozen

from kars_router.config.auth import Jwt
from kars_router.front.jwks import KeySet, parse
from kars_router.front.keysource import FetchError
from kars_router.transports.answers import open_chunks
from kars_router.transports.client import new_client
from kars_router.transports.oauth.addresses import complaint, issuer_metadata_urls
from kars_router.wire import jsonrpc

Transports = Callable[[str], httpx.AsyncBaseTransport]

LIMIT: Final = 256 * 1024
SECONDS: Final = 10.0
_CLOSE_SECONDS: Final = 1.0


def is_safe(url: object, *, near: str = "") -> bool:
    """Whether what a URL answers can be trusted: over TLS, or from this machine.

    Who can change keys on their way can make any token.

    Args:
        url: the URL; untrusted.
        near: the one that named it, if it was not configured.
    """
    return not complaint(url, near=near)


@frozen
class KeyFetch:
    """Gets the keys of one issuer, within ten seconds in all and 256 KiB each.

    Redirects are not followed.

    Attributes:
        settings: names the issuer and, if its metadata is not to be asked, where its keys are.
        transports: makes the transport for a URL; closed after the request.
    """

    settings: Jwt
    transports: Transports

    async def __call__(self) -> KeySet:
        """Fetches them.

        Raises:
            FetchError: that failed, took too long, or what came is not to be trusted.
        """
        with trio.move_on_after(SECONDS):
            url = self.settings.jwks_url or await self._discover()
            try:
                return parse(await self._get(url))
            except ValueError as error:
                raise FetchError(f"{url} {error}") from error
        raise FetchError(f"there was no answer within {SECONDS:g} s")

    async def _discover(self) -> str:
        problems = []
        for url in issuer_metadata_urls(self.settings.issuer):
            try:
                return self._keys_in(await self._get(url), url)
            except FetchError as error:
                problems.append(str(error))
        raise FetchError("; ".join(problems))

    def _keys_in(self, data: bytes, source: str) -> str:
        try:
            metadata: Any = jsonrpc.decode(data)
        except (jsonrpc.MalformedError, RecursionError):
            metadata = None
        if not isinstance(metadata, dict):
            raise FetchError(f"{source} is no JSON object")
        if metadata.get("issuer") != self.settings.issuer:
            raise FetchError(f"{source} is that of another issuer")
        url = metadata.get("jwks_uri")
        if not isinstance(url, str) or not is_safe(url, near=source):
            raise FetchError(f"{source} names no jwks_uri that begins with https")
        return url

    async def _get(self, url: str) -> bytes:
        try:
            transport = self.transports(url)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise FetchError(f"{url}: {error}") from error
        try:
            # Not one of those that stay open: minutes pass until the next request.
            client = new_client(transport, headers={"accept": "application/json"})
            async with client, client.stream("GET", url) as response:
                if response.status_code != 200:
                    raise FetchError(f"{url} answered with status {response.status_code}")
                return await _body(response, url)
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            # OSError: the system's certificate authorities cannot be read.
            raise FetchError(f"{url}: {error}") from error
        finally:
            with trio.move_on_after(_CLOSE_SECONDS, shield=True):
                await transport.aclose()


async def _body(response: httpx.Response, url: str) -> bytes:
    data = bytearray()
    async with open_chunks(response) as chunks:
        async for part in chunks:
            data += part
            if len(data) > LIMIT:
                raise FetchError(f"{url} is larger than {LIMIT} bytes")
    return bytes(data)
