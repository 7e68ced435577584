"""A watch: events of an API server as they come, one JSON object on each line.

Owns the bounds on a line and on silence, and what the end of a watch means. Must not know what
follows from an event; who keeps the objects begins the next watch where this one ended.

Source: https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final, Literal, cast

import httpx
import msgspec
import trio
from attrs import frozen

from kars_router.kube.errors import AnswerError, UnreachableError, error_of

LONGEST_LINE: Final = 16 * 1024 * 1024  # objects are at most 1.5 MiB in etcd
GRACE_SECONDS: Final = 30.0  # that a server may be late with ending a watch

Type = Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK"]
_TYPES: Final = frozenset({"ADDED", "MODIFIED", "DELETED", "BOOKMARK"})


@frozen
class Event:
    """One change.

    Attributes:
        type: of a `BOOKMARK` only the object's `resourceVersion` means anything.
        object: as it is now; of a deleted one, as it was last.
    """

    type: Type
    object: dict[str, Any]

    @property
    def resource_version(self) -> str:
        """From where a next watch goes on after this event; empty if it does not say."""
        metadata = self.object.get("metadata")
        version = metadata.get("resourceVersion") if isinstance(metadata, Mapping) else None
        return version if isinstance(version, str) else ""


class Watch:
    """The events of one watch, to be iterated over once, by one task.

    It ends when the server ends it in good order, which is usual after some minutes.

    Args:
        chunks: the body of the answer.
        where: the server, for messages.
        deadline: the `trio.current_time()` by which the server must have ended it.
    """

    def __init__(self, chunks: AsyncIterator[bytes], where: str, deadline: float) -> None:
        self._chunks = chunks
        self._where = where
        self._deadline = deadline
        self._rest = bytearray()
        self._ready: deque[bytes] = deque()
        self._ended = False

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        """The next event.

        Raises:
            ApiError: the server ended the watch with an error; `GoneError` if it has forgotten
                the version that the watch began at.
            UnreachableError: the watch broke off, or fell silent.
        """
        while not self._ready:
            if self._ended:
                raise StopAsyncIteration
            await self._read()
        return self._event(self._ready.popleft())

    async def _read(self) -> None:
        try:
            with trio.move_on_at(self._deadline):
                chunk = await anext(self._chunks, None)
                if chunk is None:
                    self._end()
                else:
                    self._take(chunk)
                return
        except httpx.TransportError as error:
            raise UnreachableError(f"a watch of {self._where} broke off: {error}") from error
        raise UnreachableError(f"{self._where} did not end a watch when its time was over")

    def _take(self, chunk: bytes) -> None:
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            self._keep(end)
            self._ready.append(bytes(self._rest))
            self._rest.clear()
        self._keep(rest)

    def _keep(self, piece: bytes) -> None:
        if len(self._rest) + len(piece) > LONGEST_LINE:
            text = f"{self._where} sent an event of more than {LONGEST_LINE >> 20} MiB"
            raise AnswerError(text)
        self._rest += piece

    def _end(self) -> None:
        self._ended = True
        if self._rest:
            raise UnreachableError(f"a watch of {self._where} broke off inside an event")

    def _event(self, line: bytes) -> Event:
        try:
            value = msgspec.json.decode(line)
        except (msgspec.DecodeError, RecursionError):
            raise AnswerError(f"{self._where} sent an event that is no JSON") from None
        kind = value.get("type") if isinstance(value, dict) else None
        changed = value.get("object") if isinstance(value, dict) else None
        if kind == "ERROR":
            raise error_of(changed)
        if not isinstance(kind, str) or kind not in _TYPES or not isinstance(changed, dict):
            raise AnswerError(f"{self._where} sent an event that is none of a watch")
        return Event(cast(Type, kind), changed)
