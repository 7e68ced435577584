"""A watch of the fake cluster, as the body of its answer. Knows no HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final

import msgspec
import trio

from kars_router.kube.resources import Resource
from kars_router.testing._kube_fields import Manifest
from kars_router.testing._kube_selectors import Matcher
from kars_router.testing._kube_store import Change, Store
from kars_router.testing._kube_wire import Dropped, Refused, Seen

_SECONDS: Final = 1800.0  # for a watch that names no time, about what real servers have


class WatchBody:
    """Lines of JSON, one for each event, until its time is over or it is dropped.

    Attributes:
        over: it has ended, or broken off.
    """

    def __init__(
        self,
        store: Store,
        resource: Resource,
        seen: Seen,
        selected: Matcher,
        *,
        breaks: Callable[[], bool],
        bookmark_seconds: float,
    ) -> None:
        self.over = False
        self._store = store
        self._resource = resource
        self._namespace = seen.namespace
        self._selected = selected
        self._breaks = breaks
        self._bookmark_seconds = bookmark_seconds
        self._bookmarks = seen.query.get("allowWatchBookmarks") == "true"
        self._ends = trio.current_time() + float(seen.query.get("timeoutSeconds", _SECONDS))
        self._next_bookmark = trio.current_time() + bookmark_seconds
        self._ready: list[bytes] = []
        self._failure = ""
        self._last = False
        version = seen.query.get("resourceVersion") or "0"
        if version == "0":
            self._version = store.version
            found = store.all(resource, seen.namespace)
            self._ready += [_line("ADDED", each) for each in found if selected(each)]
        else:
            self._version = int(version)

    def drop(self) -> None:
        """Has it break off."""
        self._failure = "the connection was dropped"
        self._wake()

    def close(self) -> None:
        """The client has left."""
        self.over = True

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        await trio.lowlevel.checkpoint()
        while True:
            self._collect()
            if self._ready:
                lines, self._ready = b"".join(self._ready), []
                return lines
            if self._failure:
                self.over = True
                raise Dropped(self._failure)
            if self._last:
                self.over = True
                raise StopAsyncIteration
            changed = self._store.changed
            with trio.move_on_at(min(self._ends, self._next_bookmark)):
                await changed.wait()
            self._tick()

    def _collect(self) -> None:
        if self._last or self._failure:
            return
        if self._version < self._store.oldest:
            gone = Refused(410, "Expired", f"too old resource version: {self._version}")
            self._ready.append(_line("ERROR", gone.object))
            self._last = True
            return
        for change in self._store.since(self._version):
            self._version = change.version
            for line in self._lines(change):
                if self._breaks():
                    self._failure = "the connection was dropped"
                    return
                self._ready.append(line)

    def _lines(self, change: Change) -> Iterator[bytes]:
        if change.resource != self._resource:
            return
        namespace = change.now["metadata"].get("namespace")
        if self._namespace not in {None, namespace}:
            return
        was = change.before is not None and self._selected(change.before)
        is_now = change.type != "DELETED" and self._selected(change.now)
        if is_now:
            yield _line("MODIFIED" if was else "ADDED", change.now)
        elif was:
            yield _line("DELETED", change.now)

    def _tick(self) -> None:
        now = trio.current_time()
        if now >= self._ends:
            self._last = True
        due = now >= self._next_bookmark
        if due:
            self._next_bookmark = now + self._bookmark_seconds
        # To a watch from a version that is yet to come, a server says nothing at all.
        reached = self._version <= self._store.version
        if self._bookmarks and reached and (self._last or due):
            self._ready.append(_line("BOOKMARK", self._bookmark()))

    def _bookmark(self) -> Manifest:
        return {
            "kind": self._resource.kind,
            "apiVersion": self._resource.api_version,
            "metadata": {"resourceVersion": str(self._version)},
        }

    def _wake(self) -> None:
        changed, self._store.changed = self._store.changed, trio.Event()
        changed.set()


def _line(kind: str, value: Any) -> bytes:
    return msgspec.json.encode({"type": kind, "object": value}) + b"\n"
