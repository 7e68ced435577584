"""What goes over the wire between a client and the fake cluster: requests, answers, errors.

Knows no objects and no faults.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any, Protocol
from urllib.parse import parse_qsl, unquote

import httpx
import msgspec
import trio
from attrs import frozen

from kars_router.kube.resources import Resource

Json = dict[str, Any]


@frozen(kw_only=True)
class Seen:
    """A request as the server understands it.

    Attributes:
        verb: `get`, `list`, `watch`, `create`, `update`, `apply`, `patch`, `delete` or
            `discover`.
        resource: None for discovery, and for paths that are nothing.
        namespace: None for all, and for kinds that are in none.
        name: empty for a collection.
        subresource: such as `status`.
        path: as it was sent.
        query: its parameters.
        headers: in lower case.
        body: decoded; None if there is none.
    """

    verb: str
    resource: Resource | None
    namespace: str | None
    name: str
    subresource: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: Any


class Dropped(Exception):
    """Raised by a stream that breaks off."""


class Stream(Protocol):
    """A body that is not there yet."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    async def __anext__(self) -> bytes: ...

    def close(self) -> None:
        """The client has left."""
        ...


@frozen
class Answer:
    """What the server says: an object, or the stream of a watch."""

    status: int
    body: bytes | Stream
    headers: Mapping[str, str]


class Refused(Exception):
    """Raised where a request is refused; becomes a `Status`.

    Args:
        status: for HTTP.
        reason: one word.
        message: a sentence.
        causes: field, reason and message of each.
        retry_after: seconds.
    """

    def __init__(
        self,
        status: int,
        reason: str,
        message: str,
        *,
        causes: Iterable[Mapping[str, str]] = (),
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        details: Json = {"causes": [dict(cause) for cause in causes]}
        if retry_after is not None:
            details["retryAfterSeconds"] = retry_after
        self.retry_after = retry_after
        self.object: Json = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": reason,
            "details": {name: value for name, value in details.items() if value not in ([], None)},
            "code": status,
        }

    @property
    def answer(self) -> Answer:
        """The answer that says so."""
        found = answer(self.object, self.object["code"])
        if self.retry_after is None:
            return found
        return Answer(
            found.status, found.body, {**found.headers, "retry-after": str(self.retry_after)}
        )


def answer(value: Any, status: int = 200) -> Answer:
    """An answer in JSON."""
    return Answer(status, msgspec.json.encode(value), {"content-type": "application/json"})


def read(
    method: str,
    target: tuple[str, str],
    headers: Mapping[str, str],
    body: bytes,
    *,
    served: Iterable[Resource],
) -> Seen:
    """Understands a request.

    Args:
        method: of HTTP.
        target: path and query, as sent.
        headers: in lower case.
        body: as sent.
        served: what there is.
    """
    path, query = target
    parameters = dict(parse_qsl(query, keep_blank_values=True))
    parts = [unquote(part) for part in path.strip("/").split("/")]
    group, version, rest = _group(parts)
    namespace, name, subresource, resource = None, "", "", None
    if len(rest) >= 3 and rest[0] == "namespaces" and rest[2] != "status":
        namespace, rest = rest[1], rest[2:]
    if rest:
        name, subresource = [*rest[1:3], "", ""][:2]
        resource = next(
            (
                each
                for each in served
                if (each.group, each.version, each.plural) == (group, version, rest[0])
            ),
            None,
        )
    return Seen(
        verb=_verb(method, headers, name=name, parameters=parameters) if rest else "discover",
        resource=resource,
        namespace=namespace,
        name=name,
        subresource=subresource,
        path=path,
        query=parameters,
        headers=headers,
        body=msgspec.json.decode(body) if body else None,
    )


def group_of(path: str) -> tuple[str, str]:
    """The group and the version that a path for discovery names."""
    group, version, _ = _group(path.strip("/").split("/"))
    return group, version


def _group(parts: list[str]) -> tuple[str, str, list[str]]:
    if parts[:1] == ["api"] and len(parts) >= 2:
        return "", parts[1], parts[2:]
    if parts[:1] == ["apis"] and len(parts) >= 3:
        return parts[1], parts[2], parts[3:]
    return "", "", []


def _verb(
    method: str, headers: Mapping[str, str], *, name: str, parameters: Mapping[str, str]
) -> str:
    if method == "GET":
        if name:
            return "get"
        return "watch" if parameters.get("watch") in {"true", "1"} else "list"
    if method == "PATCH":
        applied = headers.get("content-type", "").startswith("application/apply-patch+")
        return "apply" if applied else "patch"
    return {"POST": "create", "PUT": "update", "DELETE": "delete"}.get(method, method.lower())


class Body(httpx.AsyncByteStream):
    """The body of an answer for httpx.

    Args:
        source: the body, or where it comes from.
        request: the request, for errors.
    """

    def __init__(self, source: bytes | Stream, request: httpx.Request) -> None:
        self._source: Stream | None = None if isinstance(source, bytes) else source
        self._data = source if isinstance(source, bytes) else b""
        self._request = request
        self._closed = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        await trio.lowlevel.checkpoint()
        if self._closed:
            raise httpx.ReadError("the response was closed", request=self._request)
        if self._source is not None:
            try:
                return await self._source.__anext__()
            except Dropped as dropped:
                raise httpx.ReadError(str(dropped), request=self._request) from dropped
        data, self._data = self._data, b""
        if not data:
            raise StopAsyncIteration
        return data

    async def aclose(self) -> None:
        """Reads no more."""
        self._closed = True
        if self._source is not None:
            self._source.close()
        await trio.lowlevel.cancel_shielded_checkpoint()
