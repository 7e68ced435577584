"""What a scripted server records of a request, and what a script may answer to one.

Pure values: no I/O, no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import msgspec
from attrs import field, frozen

Json: TypeAlias = dict[str, Any]
Ending: TypeAlias = Literal["end", "cut", "hang"]


@frozen(kw_only=True)
class Received:
    """One HTTP request as it came in.

    Attributes:
        time: Trio's clock when it was complete, in seconds.
        http_method: `POST`, `GET`, ...
        path: its path.
        headers: by lower-case name; repeated ones joined with a comma.
        body: its body.
        message: the body decoded, if it is a JSON object.
    """

    time: float
    http_method: str
    path: str
    headers: Mapping[str, str]
    body: bytes = field(default=b"", repr=False)
    message: Mapping[str, Any] | None = None

    @property
    def session(self) -> str | None:
        """The session id that was sent, if any."""
        return self.headers.get("mcp-session-id")

    @property
    def method(self) -> str | None:
        """The JSON-RPC method; None for an answer and for a request without a body."""
        return self.message.get("method") if self.message is not None else None

    @property
    def id(self) -> Any:
        """The JSON-RPC id with its JSON type; None if there is none."""
        return self.message.get("id") if self.message is not None else None

    @property
    def params(self) -> Mapping[str, Any]:
        """The JSON-RPC params; empty if there are none."""
        params = self.message.get("params") if self.message is not None else None
        return params if isinstance(params, dict) else {}

    @property
    def is_answer(self) -> bool:
        """Whether it is the client's answer to a request of the server."""
        return self.message is not None and "method" not in self.message


@frozen(kw_only=True)
class Reply:
    """What a script answers instead of the server.

    Attributes:
        status: the HTTP status; None sends nothing at all.
        headers: the response's headers.
        body: what is sent of the body.
        ending: `end` completes the response; `cut` breaks it off after `body` (with status
            None: closes the connection without a response, which a real HTTP server in front
            turns into a 500); `hang` leaves it open until the client goes.
        seconds: how long to wait before anything is sent.
        execute: whether the server acts on the request first, with its own answer dropped.
    """

    status: int | None = 200
    headers: Mapping[str, str] = field(factory=dict)
    body: bytes = b""
    ending: Ending = "end"
    seconds: float = 0.0
    execute: bool = False

    @classmethod
    def text(cls, status: int, body: str = "", **more: Any) -> Reply:
        """A plain-text response; `more` are further attributes."""
        kind = {"content-type": "text/plain; charset=utf-8"} if body else {}
        headers = {**kind, **more.pop("headers", {})}
        return cls(status=status, headers=headers, body=body.encode(), **more)

    @classmethod
    def json(cls, value: object, status: int = 200, **more: Any) -> Reply:
        """A JSON response; `more` are further attributes."""
        headers = {"content-type": "application/json", **more.pop("headers", {})}
        return cls(status=status, headers=headers, body=msgspec.json.encode(value), **more)

    @classmethod
    def events(cls, *messages: object, **more: Any) -> Reply:
        """An event stream of JSON messages; none makes a 200 with an empty stream."""
        headers = {"content-type": "text/event-stream", **more.pop("headers", {})}
        body = b"".join(encode_event(msgspec.json.encode(message)) for message in messages)
        return cls(headers=headers, body=body, **more)

    @classmethod
    def cut(cls, *, execute: bool = False) -> Reply:
        """Close the connection without a response."""
        return cls(status=None, ending="cut", execute=execute)

    @classmethod
    def hang(cls, *, execute: bool = False) -> Reply:
        """Never answer."""
        return cls(status=None, ending="hang", execute=execute)


Script: TypeAlias = Callable[[Received], Reply | None]


@frozen
class Happening:
    """Something that befell a session, seen from the server.

    Attributes:
        time: Trio's clock, in seconds.
        session: the session's id.
        what: `opened`, `listening`, `left`, `ping`, `pong`, `reaped`, `deleted`, `forgotten`.
        detail: one clause; the id for a ping or a pong.
    """

    time: float
    session: str
    what: str
    detail: str = ""


def encode_event(data: bytes, *, event_id: str = "", retry: int | None = None) -> bytes:
    """One server-sent event of one data line, as `@playwright/mcp` writes it."""
    lines = [b"event: message"]
    if event_id:
        lines.append(b"id: " + event_id.encode())
    if retry is not None:
        lines.append(b"retry: %d" % retry)
    lines.append(b"data: " + data)
    return b"\n".join(lines) + b"\n\n"


def decode_message(body: bytes) -> Json | None:
    """The JSON object in `body`, or None if it is not one."""
    try:
        value = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return None
    return value if isinstance(value, dict) else None
