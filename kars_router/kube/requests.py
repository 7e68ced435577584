"""Single requests to an API server: sent, answered, and sent again where that is harmless.

Owns headers, time limits and what is tried again. Must not know what is asked for.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import httpx
import msgspec
import trio
from attrs import define, field, frozen

from kars_router.kube.answers import check_encoding, read_object
from kars_router.kube.connection import Connection
from kars_router.kube.errors import UnauthorizedError, UnreachableError
from kars_router.transports.http import EXTENSION, Exchange

JSON: Final = "application/json"
MERGE: Final = "application/merge-patch+json"
APPLY: Final = "application/apply-patch+yaml"  # of which JSON is a part

_CONNECT_SECONDS: Final = 10.0


@frozen(kw_only=True)
class Request:
    """One request.

    Attributes:
        method: of HTTP.
        path: below the server's URL.
        query: its parameters.
        body: to be sent as JSON; None for nothing.
        content: the type of the body.
        repeatable: doing it twice comes to the same as doing it once.
        control: it lasts, and takes no place from others.
    """

    method: str
    path: str
    query: Mapping[str, str] = field(factory=dict)
    body: object = None
    content: str = JSON
    repeatable: bool = False
    control: bool = False


@define
class Requester:
    """Sends requests.

    Attributes:
        connection: the server and who we are.
        client: carries them.
        renew: closes kept connections, which may have been opened with other credentials.
    """

    connection: Connection
    client: httpx.AsyncClient
    renew: Callable[[], Awaitable[None]] | None = None

    @property
    def where(self) -> str:
        """The server, for messages."""
        return f"the API server {self.connection.server}"

    async def ask(self, request: Request) -> dict[str, Any]:
        """Sends a request and reads its answer.

        Raises:
            ApiError, UnreachableError, UserError: as `Kube` says.
        """
        return await self._read(await self.open(request))

    async def open(self, request: Request) -> httpx.Response:
        """Sends a request; returns its answer, whose body is still to be read.

        Raises:
            ApiError, UnreachableError, UserError: as `Kube` says.
        """
        again = request.repeatable
        renewed = False
        while True:
            exchange = Exchange(control=request.control)
            try:
                response = await self._send(request, exchange)
            except httpx.TransportError as error:
                if not again or not exchange.reused:
                    raise self._unreachable(error) from error
                again = False
                continue
            if response.status_code < 300:
                await check_encoding(response, self.where)
                return response
            try:
                await self._read(response)
            except UnauthorizedError:
                if renewed or not self.connection.credentials.refused():
                    raise
                renewed = True
                if self.renew is not None:
                    await self.renew()

    async def _read(self, response: httpx.Response) -> dict[str, Any]:
        try:
            with trio.move_on_after(self.connection.seconds):
                return await read_object(response, self.where)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        raise self._late()

    async def _send(self, request: Request, exchange: Exchange) -> httpx.Response:
        identity = await self.connection.credentials.headers()
        content = None if request.body is None else msgspec.json.encode(request.body, enc_hook=dict)
        headers = [*identity.items(), *self.connection.impersonate]
        if content is not None:
            headers.append(("content-type", request.content))
        message = self.client.build_request(
            request.method,
            f"{self.connection.server}{request.path}",
            params=request.query,
            content=content,
            headers=headers,
            timeout=httpx.Timeout(None, connect=_CONNECT_SECONDS),
            extensions={EXTENSION: exchange},
        )
        with trio.move_on_after(self.connection.seconds):
            return await self.client.send(message, stream=True)
        raise self._late()

    def _late(self) -> UnreachableError:
        return UnreachableError(f"{self.where} did not answer within {self.connection.seconds:g} s")

    def _unreachable(self, error: httpx.TransportError) -> UnreachableError:
        return UnreachableError(f"{self.where} cannot be reached: {error}")
