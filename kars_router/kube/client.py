"""Requests to a Kubernetes API server.

Owns what each request looks like. Must not know what objects mean, and keeps none.

Source: https://kubernetes.io/docs/reference/using-api/api-concepts/,
https://kubernetes.io/docs/reference/using-api/server-side-apply/.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import httpx
import trio
from attrs import define, field

from kars_router._version import __version__
from kars_router.kube.connection import Connection
from kars_router.kube.errors import AnswerError, NotFoundError
from kars_router.kube.lists import Listing, collect
from kars_router.kube.requests import APPLY, JSON, MERGE, Request, Requester
from kars_router.kube.resources import Resource, name_of, resource_of
from kars_router.kube.tls import Trust, opener
from kars_router.kube.watch import GRACE_SECONDS, Watch
from kars_router.transports.answers import open_chunks
from kars_router.transports.client import new_client
from kars_router.transports.http import TrioTransport

_CLOSE_SECONDS: Final = 1.0

Manifest = dict[str, Any]


@define
class Kube:
    """A client of one API server; any number of tasks may use it.

    Every method raises `ApiError` (by status: `NotFoundError` and so on) if the server refuses,
    `UnreachableError` if there is no answer that can be understood, and `UserError` if there are
    no credentials to be had. Cancelled, a method leaves nothing behind, but what it asked for may
    have been done.

    A request that came to nothing on a connection which had been kept open is sent once more, if
    doing it twice is the same as doing it once; and so is one whose token had expired. Nothing
    else is tried again here.

    Args:
        requests: sends them.
    """

    _requests: Requester
    _discovered: dict[tuple[str, str], Resource] = field(factory=dict, init=False)

    @property
    def where(self) -> str:
        """The server, for messages."""
        return self._requests.where

    @property
    def connection(self) -> Connection:
        """The server and who we are."""
        return self._requests.connection

    async def get(self, resource: Resource, name: str, namespace: str | None = None) -> Manifest:
        """One object.

        Args:
            resource: its kind.
            name: its name.
            namespace: None for the connection's.
        """
        return await self._object(
            Request(
                method="GET", path=resource.path(self._namespace(namespace), name), repeatable=True
            )
        )

    async def list(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        labels: str = "",
        fields: str = "",
        limit: int = 500,
    ) -> Listing:
        """All objects of a kind, page by page, as they were at one moment.

        A page that the server does not remember any more restarts the list, and so does one that
        is too large, with smaller ones.

        Args:
            resource: the kind.
            namespace: None for all.
            labels: a label selector.
            fields: a field selector.
            limit: objects on a page.
        """
        query = _selectors(labels, fields)
        return await collect(self._requests, resource, namespace, query=query, limit=limit)

    @asynccontextmanager
    async def watch(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        resource_version: str,
        labels: str = "",
        fields: str = "",
        seconds: float = 300.0,
    ) -> AsyncIterator[Watch]:
        """Changes of objects from a version on, bookmarks included.

        Args:
            resource: the kind.
            namespace: None for all.
            resource_version: of the list, or of the last event, from which to go on.
            labels: a label selector.
            fields: a field selector.
            seconds: after which the server is to end the watch.

        Yields:
            The events; to be left before the block is.
        """
        query = {
            **_selectors(labels, fields),
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(max(1, round(seconds))),
        }
        request = Request(
            method="GET", path=resource.path(namespace), query=query, repeatable=True, control=True
        )
        deadline = trio.current_time() + seconds + GRACE_SECONDS
        response = await self._requests.open(request)
        async with open_chunks(response) as chunks:
            yield Watch(chunks, self.where, deadline)

    async def create(self, manifest: Mapping[str, Any], *, manager: str = "") -> Manifest:
        """Makes an object; `ConflictError` with reason `AlreadyExists` if the name is taken.

        Args:
            manifest: the object.
            manager: the field manager; the client's name if empty.
        """
        resource = await self.resource_of(manifest)
        namespace, _ = name_of(manifest)
        return await self._object(
            Request(
                method="POST",
                path=resource.path(self._namespace(namespace)),
                query=_manager(manager),
                body=manifest,
            )
        )

    async def replace(
        self, manifest: Mapping[str, Any], *, subresource: str = "", manager: str = ""
    ) -> Manifest:
        """Replaces an object; `ConflictError` if it is not of the version in the manifest.

        Args:
            manifest: the whole object, with the `resourceVersion` that it replaces.
            subresource: such as `status`.
            manager: the field manager; the client's name if empty.
        """
        path = await self._path(manifest, subresource)
        return await self._object(
            Request(method="PUT", path=path, query=_manager(manager), body=manifest)
        )

    async def apply(
        self,
        manifest: Mapping[str, Any],
        *,
        manager: str,
        force: bool = False,
        dry_run: bool = False,
        strict: bool = False,
        subresource: str = "",
    ) -> Manifest:
        """Has the server merge what a manager wants into an object, or make it (server-side apply).

        Args:
            manifest: the fields that the manager wants, and no others.
            manager: who wants them.
            force: take fields that others own, where `ConflictError` would name them.
            dry_run: go through all of it, but keep nothing.
            strict: refuse fields that the kind does not have, where they would be dropped.
            subresource: such as `status`.
        """
        query = {"fieldManager": manager, "force": "true" if force else "false"}
        if dry_run:
            query["dryRun"] = "All"
        if strict:
            query["fieldValidation"] = "Strict"
        return await self._object(
            Request(
                method="PATCH",
                path=await self._path(manifest, subresource),
                query=query,
                body=manifest,
                content=APPLY,
                repeatable=True,
            )
        )

    async def patch(
        self,
        resource: Resource,
        name: str,
        namespace: str | None,
        change: Mapping[str, Any],
        *,
        subresource: str = "",
        manager: str = "",
    ) -> Manifest:
        """Merges a change into an object (JSON merge patch: None takes a field away).

        Args:
            resource: its kind.
            name: its name.
            namespace: None for the connection's.
            change: what is to be different.
            subresource: such as `status`.
            manager: the field manager; the client's name if empty.
        """
        return await self._object(
            Request(
                method="PATCH",
                path=resource.path(self._namespace(namespace), name, subresource),
                query=_manager(manager),
                body=change,
                content=MERGE,
                # With a version, the second time would be a conflict with the first.
                repeatable="resourceVersion" not in (change.get("metadata") or {}),
            )
        )

    async def delete(
        self,
        resource: Resource,
        name: str,
        namespace: str | None = None,
        *,
        uid: str | None = None,
        propagation: str = "Background",
        dry_run: bool = False,
    ) -> None:
        """Deletes an object; that it is not there is fine.

        Args:
            resource: its kind.
            name: its name.
            namespace: None for the connection's.
            uid: the very object that is meant; `ConflictError` if another has its name now.
            propagation: what becomes of what it owns: `Background`, `Foreground` or `Orphan`.
            dry_run: go through all of it, but keep the object.
        """
        options: Manifest = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": propagation,
        }
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        path = resource.path(self._namespace(namespace), name)
        try:
            await self._requests.ask(
                Request(
                    method="DELETE",
                    path=path,
                    query={"dryRun": "All"} if dry_run else {},
                    body=options,
                    repeatable=True,
                )
            )
        except NotFoundError:
            return

    async def has(self, resource: Resource) -> bool:
        """Whether the server serves a kind, in its version."""
        return any(each.get("name") == resource.plural for each in await self._served(resource))

    async def resource_of(self, manifest: Mapping[str, Any]) -> Resource:
        """The resource of a manifest; asks the server about a kind that this project does not know.

        Raises:
            NotFoundError: the server does not serve it.
        """
        try:
            return resource_of(manifest)
        except KeyError:
            pass
        key = (str(manifest.get("apiVersion", "")), str(manifest.get("kind", "")))
        if key not in self._discovered:
            self._discovered[key] = await self._discover(*key)
        return self._discovered[key]

    async def _discover(self, api_version: str, kind: str) -> Resource:
        group, _, version = api_version.rpartition("/")
        root = Resource(group, version, "", kind)
        for each in await self._served(root):
            plural = each.get("name", "")
            if each.get("kind") == kind and plural and "/" not in plural:
                return Resource(group, version, plural, kind, bool(each.get("namespaced")))
        raise NotFoundError(404, "NotFound", f"{self.where} serves no {kind} of {api_version}")

    async def _served(self, resource: Resource) -> Sequence[Manifest]:
        try:
            found = await self._requests.ask(
                Request(method="GET", path=resource.root, repeatable=True)
            )
        except NotFoundError:
            return []
        listed = found.get("resources")
        return [each for each in listed or () if isinstance(each, dict)]

    async def _object(self, request: Request) -> Manifest:
        found = await self._requests.ask(request)
        if not isinstance(found.get("metadata"), dict):
            raise AnswerError(f"{self.where} answers with something that is no object of its own")
        return found

    def _namespace(self, namespace: str | None) -> str:
        return namespace or self.connection.namespace

    async def _path(self, manifest: Mapping[str, Any], subresource: str) -> str:
        resource = await self.resource_of(manifest)
        namespace, name = name_of(manifest)
        return resource.path(self._namespace(namespace), name, subresource)


@asynccontextmanager
async def open_kube(
    connection: Connection,
    *,
    name: str = "kars-router",
    connections: int = 16,
    transport: httpx.AsyncBaseTransport | None = None,
) -> AsyncIterator[Kube]:
    """A client for as long as the block lasts.

    Nothing is connected before the first request.

    Args:
        connection: the server and who we are.
        name: what the server sees in its logs, and the field manager where none is given.
        connections: most requests at a time; watches come on top.
        transport: carries the requests in place of real connections; not closed here.

    Raises:
        UserError: a certificate cannot be used.
    """
    carrier, renew = transport, None
    if carrier is None:
        own = carrier = _carrier(connection, connections)
        renew = own.renew
    client = new_client(carrier, headers={"accept": JSON, "user-agent": f"{name}/{__version__}"})
    try:
        yield Kube(Requester(connection, client, renew))
    finally:
        with trio.move_on_after(_CLOSE_SECONDS, shield=True):
            await client.aclose()
            if transport is None:
                await carrier.aclose()


def _carrier(connection: Connection, connections: int) -> TrioTransport:
    trust = Trust(connection)
    if connection.server.startswith("https:"):
        trust()  # a certificate that cannot be used is told now, not on the first request
    return TrioTransport(
        connection.server, max_connections=connections, opener=opener(connection), trust=trust
    )


def _selectors(labels: str, fields: str) -> dict[str, str]:
    found = {"labelSelector": labels, "fieldSelector": fields}
    return {name: value for name, value in found.items() if value}


def _manager(manager: str) -> dict[str, str]:
    return {"fieldManager": manager} if manager else {}
