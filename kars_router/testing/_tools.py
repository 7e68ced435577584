"""The tools of the scripted server, and what a test needs to add its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

import msgspec
import trio
from attrs import frozen

from kars_router.testing._sessions import Session
from kars_router.testing._streams import EventLog
from kars_router.testing.replies import Json


class RpcError(Exception):
    """A JSON-RPC error: raised by a tool to answer with one, by an agent that was given one.

    Args:
        code: the JSON-RPC error code.
        message: its message.
        data: its data; None leaves it out.
    """

    def __init__(self, code: int, message: str, data: Any = None) -> None:
        self.code = code
        self.message = message
        self.data = data
        super().__init__(f"{code}: {message}")


@frozen
class Call:
    """A tools/call as a tool sees it.

    Attributes:
        session: the caller's session; `session.counter` is its state.
        params: the params of the call as they came.
    """

    session: Session
    params: Mapping[str, Any]
    _log: EventLog
    _answer_within: float

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The arguments of the call."""
        arguments = self.params.get("arguments")
        return arguments if isinstance(arguments, dict) else {}

    def notify(self, method: str, params: Mapping[str, Any]) -> None:
        """Send a notification on the call's own stream; nothing if it is answered in JSON."""
        self._log.append(
            msgspec.json.encode({"jsonrpc": "2.0", "method": method, "params": params})
        )

    async def ask(
        self, method: str, params: Mapping[str, Any] | None = None
    ) -> Mapping[str, Any] | None:
        """Send a request on the call's own stream; return the answer, or None if none came."""
        return await self.session.ask(method, params, self._log, seconds=self._answer_within)


ToolHandler: TypeAlias = Callable[[Call], Awaitable[Mapping[str, Any]]]


def text(words: str, *, error: bool = False) -> Json:
    """A tool result of one text."""
    return {"content": [{"type": "text", "text": words}], "isError": error}


async def _increment(call: Call) -> Json:
    await trio.lowlevel.checkpoint()
    call.session.counter += 1
    return text(f"counter: {call.session.counter}")


async def _read(call: Call) -> Json:
    await trio.lowlevel.checkpoint()
    return text(f"counter: {call.session.counter}")


async def _slow(call: Call) -> Json:
    seconds = float(call.arguments.get("seconds", 1))
    meta = call.params.get("_meta")
    token = meta.get("progressToken") if isinstance(meta, dict) else None
    if token is not None:
        call.notify(
            "notifications/progress", {"progressToken": token, "progress": 0, "total": seconds}
        )
    await trio.sleep(seconds)
    return text(f"slept {seconds:g} s")


async def _echo(call: Call) -> Json:
    await trio.lowlevel.checkpoint()
    words = msgspec.json.encode(call.arguments).decode()
    return {
        "content": [{"type": "text", "text": words, "x-unknown": {"kept": True}}],
        "structuredContent": call.arguments,
        "_meta": {"kars.test/params": call.params},
        "x-unknown": [0, None, "kept"],
    }


async def _fail(call: Call) -> Json:
    await trio.lowlevel.checkpoint()
    return text(str(call.arguments.get("message", "the tool failed")), error=True)


async def _error(call: Call) -> Json:
    await trio.lowlevel.checkpoint()
    raise RpcError(
        int(call.arguments.get("code", -32000)),
        str(call.arguments.get("message", "the tool raised")),
        call.arguments.get("data"),
    )


async def _ask(call: Call) -> Json:
    method = str(call.arguments.get("method", "ping"))
    answer = await call.ask(method, call.arguments.get("params"))
    if answer is None:
        return text("no answer", error=True)
    kept = {name: answer[name] for name in ("result", "error") if name in answer}
    return text(msgspec.json.encode(kept).decode())


def _schema(**properties: str) -> Json:
    return {"type": "object", "properties": {k: {"type": v} for k, v in properties.items()}}


BUILT_IN: Mapping[str, tuple[str, Json, ToolHandler]] = {
    "increment": ("Adds one to this session's counter.", _schema(), _increment),
    "read": ("Tells this session's counter.", _schema(), _read),
    "slow": ("Answers after some seconds.", _schema(seconds="number"), _slow),
    "echo": ("Returns its arguments.", _schema(), _echo),
    "fail": ("Fails with a tool error.", _schema(message="string"), _fail),
    "error": ("Fails with a JSON-RPC error.", _schema(code="integer", message="string"), _error),
    "ask": (
        "Sends a request to the client on the call's own stream and tells the answer.",
        _schema(method="string", params="object"),
        _ask,
    ),
}
"""Description, input schema and handler of each tool by name."""
