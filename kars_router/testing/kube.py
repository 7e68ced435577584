"""A Kubernetes API server in memory, which fails when it is told to.

For tests of what an API server does when it does not do well (conflicts, forgotten versions,
overload, dropped watches, a restart) and for tests that make hours pass at once: there is no
socket, so `autojump_clock` works. It validates nothing and runs no controllers; what a real API
server makes of an object is for tests against a real one.

Owns what tests see of it. What a request does is `_kube_server`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from copy import deepcopy
from random import Random
from typing import Any, Final

import httpx
import trio

from kars_router.kube.client import Kube, open_kube
from kars_router.kube.connection import Connection
from kars_router.kube.resources import CILIUM_NETWORK_POLICIES, KNOWN, Resource, resource_of
from kars_router.testing._asgi import (
    Receive,
    Scope,
    Send,
    read_body,
    respond,
    run_lifespan,
    send_head,
    send_until_disconnect,
)
from kars_router.testing._kube_faults import Plan, Trouble, matching
from kars_router.testing._kube_fields import Manager, Manifest, Owners, leaves
from kars_router.testing._kube_server import Check, Server, key_of
from kars_router.testing._kube_store import Store
from kars_router.testing._kube_wire import Answer, Body, Dropped, Seen, read

URL: Final = "http://kubernetes.test"


class FakeCluster(httpx.AsyncBaseTransport):
    """An API server. It is an httpx transport for `open_kube`, and an ASGI application for `serve`.

    There are namespaces `default` and `kube-system`; an object in one that does not exist is
    refused. What a deleted object owned is deleted at once, and so is what is in a deleted
    namespace.

    Args:
        served: the kinds that there are; all that the project knows, but Cilium's, by default.
        remember: how many changes a watch can go back.
        bookmark_seconds: between bookmarks of a watch in which nothing happens.
        token: what requests have to bring; anybody may do anything if it is empty.

    Attributes:
        served: see above; may be changed.
        store: the objects.
        seen: every request so far.
    """

    def __init__(
        self,
        served: Iterable[Resource] | None = None,
        *,
        remember: int = 10_000,
        bookmark_seconds: float = 60.0,
        token: str = "",
    ) -> None:
        known = {*KNOWN} - {CILIUM_NETWORK_POLICIES}
        self.served = set(known if served is None else served)
        self.store = Store(remember=remember)
        self.seen: list[Seen] = []
        self._plan = Plan()
        self._server = Server(
            self.served, self.store, token, bookmark_seconds, breaks=self._plan.breaks
        )
        for name in ("default", "kube-system"):
            self.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})

    @property
    def checks(self) -> dict[Resource, Check]:
        """What the server has to say against objects of a kind, as its validation would."""
        return self._server.checks

    # --- for tests: clients ----------------------------------------------------------------------

    def connection(self, namespace: str = "default", seconds: float = 30.0) -> Connection:
        """How a client reaches it by way of this transport."""
        return Connection(
            server=URL, namespace=namespace, source="the fake cluster", seconds=seconds
        )

    def open(self, namespace: str = "default") -> AbstractAsyncContextManager[Kube]:
        """A client, for an `async with` block."""
        return open_kube(self.connection(namespace), transport=self)

    # --- for tests: objects, as somebody else changes them ---------------------------------------

    def put(self, manifest: Mapping[str, Any], *, manager: str = "somebody") -> Manifest:
        """Makes or replaces an object, its status included, and returns a copy."""
        resource = resource_of(manifest)
        wanted = deepcopy(dict(manifest))
        key = key_of(resource, wanted)
        if self.store.find(resource, key) is None:
            wanted["metadata"] = wanted["metadata"] | ({"namespace": key[0]} if key[0] else {})
            owners: Owners = {Manager(manager, "Update"): set(leaves(wanted))}
            return deepcopy(self.store.add(resource, wanted, owners))
        return deepcopy(self.store.change(resource, key, wanted, Manager(manager, "Update")))

    def find(self, resource: Resource, name: str, namespace: str = "default") -> Manifest | None:
        """A copy of an object; None if it is not there."""
        return deepcopy(self.store.find(resource, (namespace if resource.namespaced else "", name)))

    def all(self, resource: Resource, namespace: str | None = None) -> list[Manifest]:
        """Copies of the objects of a kind."""
        return deepcopy(self.store.all(resource, namespace))

    def remove(self, resource: Resource, name: str, namespace: str = "default") -> None:
        """Deletes an object, as far as its finalizers let it.

        Raises:
            KeyError: it is not there.
        """
        self.store.delete(resource, (namespace if resource.namespaced else "", name))

    # --- for tests: faults -----------------------------------------------------------------------

    def trouble(
        self,
        status: int = 0,
        *,
        times: int = 1,
        verb: str = "",
        resource: Resource | None = None,
        name: str = "",
        retry_after: int | None = None,
        body: tuple[bytes, str] | None = None,
        error: type[httpx.TransportError] | None = None,
        executed: bool = False,
        seconds: float = 0.0,
    ) -> None:
        """Has the next requests fail.

        Args:
            status: of the answer; 0 with `error`, or if requests are only to be slow.
            times: how many requests.
            verb: only this one; see `Seen`.
            resource: only of this kind.
            name: only of this object.
            retry_after: seconds, said in the answer.
            body: what the answer is in place of a `Status`, and its content type.
            error: what the client's transport raises; there is no answer.
            executed: whether the server does what it is asked for first.
            seconds: how long it takes.
        """
        trouble = Trouble(
            status=status,
            retry_after=retry_after,
            body=body,
            error=error,
            executed=executed,
            seconds=seconds,
        )
        self._plan.add(trouble, matching(verb, resource, name), times)

    def chaos(self, random: Random, fraction: float) -> None:
        """Has a fraction of all requests fail, in every way there is, until `calm`.

        Some answers are lost after the request was carried out. Watches break off too.
        """
        self._plan.random, self._plan.fraction = random, fraction

    def calm(self) -> None:
        """Ends all faults."""
        self._plan.clear()

    def stop(self) -> None:
        """Nobody listens any more, and watches break off; the objects stay."""
        self._plan.refuses = True
        self.drop_watches()

    def start(self) -> None:
        """Listens again."""
        self._plan.refuses = False

    def drop_watches(self) -> None:
        """Has every watch break off."""
        for watch in self._server.watches:
            watch.drop()
        self._server.watches.clear()

    def forget(self) -> None:
        """Forgets old versions: watches and pages that go back to them get a 410."""
        self._server.forget()

    @property
    def watching(self) -> int:
        """How many watches are open."""
        return sum(not watch.over for watch in self._server.watches)

    # --- the two ways in -------------------------------------------------------------------------

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Answers as a transport."""
        body = b"".join([part async for part in request.stream])  # type: ignore[union-attr]
        target = (request.url.raw_path.partition(b"?")[0].decode(), request.url.query.decode())
        headers = dict(request.headers.items())
        limits: Mapping[str, float | None] = request.extensions.get("timeout") or {}
        await trio.lowlevel.checkpoint()
        seen, trouble = self._take(request.method, target, headers, body)
        if trouble is not None and trouble.seconds:
            with trio.move_on_after(limits.get("read") or float("inf")) as scope:
                await trio.sleep(trouble.seconds)
            if scope.cancelled_caught:
                raise httpx.ReadTimeout("timed out", request=request)
        found = self._outcome(seen, trouble)
        if found is None:
            error = trouble.error if trouble is not None and trouble.error else httpx.ReadError
            raise error("injected", request=request)
        return httpx.Response(
            found.status, headers=dict(found.headers), stream=Body(found.body, request)
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers as an ASGI application."""
        if scope["type"] == "lifespan":
            await run_lifespan(receive, send)
            return
        body = await read_body(receive)
        if body is None:
            return
        target = (scope["raw_path"].decode(), scope["query_string"].decode())
        headers = {
            name.decode().lower(): value.decode("latin-1") for name, value in scope["headers"]
        }
        seen, trouble = self._take(scope["method"], target, headers, body)
        if trouble is not None and trouble.seconds:
            await trio.sleep(trouble.seconds)
        found = self._outcome(seen, trouble)
        if found is None:
            await send_head(send, 200, {"content-length": "1"})
            return  # before the end, so the connection is closed
        if isinstance(found.body, bytes):
            await respond(send, found.status, found.headers, found.body)
            return
        await send_head(send, found.status, found.headers)
        try:
            await send_until_disconnect(receive, send, found.body)
        except* Dropped:
            pass  # it ends without an end, so the connection is closed
        finally:
            found.body.close()

    def _take(
        self, method: str, target: tuple[str, str], headers: Mapping[str, str], body: bytes
    ) -> tuple[Seen, Trouble | None]:
        seen = read(method, target, headers, body, served=self.served)
        self.seen.append(seen)
        return seen, self._plan.take(seen)

    def _outcome(self, seen: Seen, trouble: Trouble | None) -> Answer | None:
        if (
            trouble is None
            or trouble.executed
            or not (trouble.status or trouble.error or trouble.body)
        ):
            found = self._server.answer(seen)
            if trouble is None or not (trouble.status or trouble.error or trouble.body):
                return found
        return trouble.answer(seen)
