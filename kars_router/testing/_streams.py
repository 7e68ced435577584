"""The messages of one event stream, apart from the responses that carry them.

A log outlives its readers: with event ids on, a client whose connection broke goes on reading
where it was. Without them, what nobody read is lost, as with `@playwright/mcp`.
"""

from __future__ import annotations

import trio

from kars_router.testing.replies import encode_event


class EventLog:
    """An append-only list of JSON messages with any number of readers.

    Args:
        key: its name, the first part of its event ids; unique in its session.
        with_ids: whether events carry ids.
        retry: milliseconds for a `retry:` field at the start of each response, or None.
        priming: whether a response starts with an event that has an id and no data.
    """

    def __init__(
        self, key: str, *, with_ids: bool = False, retry: int | None = None, priming: bool = False
    ) -> None:
        self.key = key
        self.messages: list[bytes] = []
        self.finished = False
        self.cut = False
        self.readers: list[Reader] = []
        self.changed = trio.Event()
        self._with_ids = with_ids
        self._retry = retry
        self._priming = priming

    def append(self, message: bytes) -> None:
        """Add a message; a finished log drops it."""
        if not self.finished:
            self.messages.append(message)
            self._wake()

    def finish(self, *, cut: bool = False) -> None:
        """End the log: readers get what is in it and then the end, or a broken stream."""
        if not self.finished:
            self.finished = True
            self.cut = cut
            self._wake()

    def detach(self, *, cut: bool = False) -> None:
        """End the responses that read from it now, after what is in it; the log goes on."""
        for reader in self.readers:
            reader.stop_at = len(self.messages)
            reader.cut = cut
        self._wake()

    def read(self, start: int) -> Reader:
        """A reader that begins with message number `start`, counted from 0."""
        reader = Reader(self, start)
        self.readers.append(reader)
        return reader

    def encode(self, index: int) -> bytes:
        """Message number `index` as an event. Event ids count from 1; 0 is the priming event."""
        event_id = f"{self.key}/{index + 1}" if self._with_ids else ""
        return encode_event(self.messages[index], event_id=event_id)

    def opening(self, start: int) -> bytes:
        """What a response sends before its first message; may be empty."""
        lines = []
        if self._with_ids and self._priming:
            lines.append(f"id: {self.key}/{start}")
        if self._retry is not None:
            lines.append(f"retry: {self._retry}")
        if self._with_ids and self._priming:
            lines.append("data: ")
        return ("\n".join(lines) + "\n\n").encode() if lines else b""

    def _wake(self) -> None:
        self.changed.set()
        self.changed = trio.Event()


class Reader:
    """One response's way through an `EventLog`: an iterator of encoded events.

    Attributes:
        cut: after the end, whether the response is to be broken off instead of completed.
        stop_at: the number of the message before which this reader alone ends.
    """

    def __init__(self, log: EventLog, start: int) -> None:
        self.cut = False
        self.stop_at: int | None = None
        self._log = log
        self._next = start
        self._opening: bytes | None = log.opening(start)

    def __aiter__(self) -> Reader:
        return self

    async def __anext__(self) -> bytes:
        await trio.lowlevel.checkpoint()
        if self._opening is not None:
            opening, self._opening = self._opening, None
            if opening:
                return opening
        while True:
            if self._next == self.stop_at:
                raise StopAsyncIteration
            if self._next < len(self._log.messages):
                self._next += 1
                return self._log.encode(self._next - 1)
            if self._log.finished:
                self.cut = self._log.cut
                raise StopAsyncIteration
            await self._log.changed.wait()

    def close(self) -> None:
        """Take it off its log."""
        if self in self._log.readers:
            self._log.readers.remove(self)


def parse_event_id(text: str) -> tuple[str, int] | None:
    """Split an event id into its log's key and the number of messages already read."""
    key, slash, number = text.rpartition("/")
    if not slash or not (number.isascii() and number.isdigit()):
        return None
    return key, int(number)
