"""Event streams (text/event-stream) from and to bytes.

Owns framing only; must not know what an event means. Lines are split on CR, LF and CRLF alone:
the text helpers of Python and httpx also split on U+2028 and friends, which JSON may hold raw.

Source: WHATWG HTML, section 9.2.6 "Interpreting an event stream".
"""

from __future__ import annotations

from typing import Final

from attrs import frozen

# The id comes back in a request header, and servers refuse headers of more than some KiB.
_LONGEST_ID: Final = 1024
KEEPALIVE: Final = b": keep-alive\n\n"
_BOM: Final = b"\xef\xbb\xbf"


@frozen(slots=True)
class Event:
    """One dispatched event.

    Attributes:
        data: the data lines joined by LF; may be empty (a priming event).
        event: the event type; "message" if none was given.
        id: the last event id in force, or None if the stream has set none so far.
    """

    data: bytes
    event: str = "message"
    id: str | None = None


class EventTooLargeError(ValueError):
    """An event exceeds the limit; the stream cannot be read on."""


class Decoder:
    """An incremental decoder of one event stream.

    Args:
        limit: most bytes that one event (or one line) may take.

    Attributes:
        last_event_id: the last event id that the stream has set, for `Last-Event-ID`; one of
            more than 1 KiB is ignored.
        retry: the reconnection time that the stream asked for, in seconds, or None.
    """

    def __init__(self, limit: int = 16 * 1024 * 1024) -> None:
        self._limit = limit
        self._line = bytearray()
        self._data: list[bytes] = []
        self._size = 0
        self._event = ""
        self._skip_lf = False
        self._start = True
        self.last_event_id: str | None = None
        self.retry: float | None = None

    def feed(self, chunk: bytes) -> list[Event]:
        """Takes the next bytes, split anywhere.

        Returns:
            the events that they complete, in order.

        Raises:
            EventTooLargeError: an event exceeds the limit.
        """
        events: list[Event] = []
        for line in self._lines(chunk):
            if line:
                self._field(line)
            else:
                self._dispatch(events)
        return events

    def _lines(self, chunk: bytes) -> list[bytes | bytearray]:
        if self._skip_lf and chunk:
            # The previous chunk ended in CR: an LF that follows belongs to it.
            self._skip_lf = False
            if chunk.startswith(b"\n"):
                chunk = chunk[1:]
        if self._start:
            held = bytes(self._line) + chunk
            if len(held) < len(_BOM) and _BOM.startswith(held):
                self._line[:] = held
                return []
            self._start = False
            self._line.clear()
            chunk = held.removeprefix(_BOM)
        if not chunk:
            return []
        if b"\r" in chunk:
            self._skip_lf = chunk.endswith(b"\r")
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        lines: list[bytes | bytearray] = []
        if b"\n" in chunk:
            first, *others, last = chunk.split(b"\n")
            self._line += first
            lines = [self._line, *others]
            self._line = bytearray(last)
        else:  # in the middle of a long line, which is not to be copied more than it has to be
            self._line += chunk
        if self._size + len(lines[0] if lines else self._line) > self._limit:
            raise EventTooLargeError(f"an event exceeds {self._limit} bytes")
        return lines

    def _field(self, line: bytes | bytearray) -> None:
        colon = line.find(b":")
        end = len(line) if colon < 0 else colon
        name = line[:end]
        start = end + (2 if line.startswith(b": ", end) else 1)
        value = bytes(memoryview(line)[start:])  # large ones are copied once
        if name == b"data":
            self._size += len(value) + 1
            if self._size > self._limit:
                raise EventTooLargeError(f"an event exceeds {self._limit} bytes")
            self._data.append(value)
        elif name == b"event":
            self._event = value.decode("utf-8", "replace")
        elif name == b"id":
            if b"\0" not in value and len(value) <= _LONGEST_ID:
                self.last_event_id = value.decode("utf-8", "replace")
        elif name == b"retry" and value.isdigit() and len(value) <= 9:
            self.retry = int(value) / 1000

    def _dispatch(self, events: list[Event]) -> None:
        # An id without data sets the id and dispatches nothing, as the standard has it; an
        # empty data line is an event here, because MCP's priming event is one.
        if self._data:
            events.append(
                Event(b"\n".join(self._data), self._event or "message", self.last_event_id)
            )
        self._data.clear()
        self._size = 0
        self._event = ""


def encode(data: bytes, *, event: str = "message", ident: str | None = None) -> bytes:
    """Writes one event.

    Args:
        data: the payload; CR and LF in it become several data lines.
        event: the event type, without line breaks.
        ident: the event id, without line breaks or NUL.
    """
    head = f"event: {event}\n".encode()
    if ident is not None:
        head += f"id: {ident}\n".encode()
    if b"\n" in data or b"\r" in data:
        text = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        return head + b"".join(b"data: %b\n" % line for line in text.split(b"\n")) + b"\n"
    return b"%bdata: %b\n\n" % (head, data)
