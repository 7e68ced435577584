"""The tools of the scripted stateless server, and what a test needs to add its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec
import trio
from attrs import define, field

from kars_router.testing._tools import RpcError, text
from kars_router.testing.replies import Json, Received

if TYPE_CHECKING:
    from kars_router.testing.stateless_server import StatelessServer

PROTOCOL: Final = "io.modelcontextprotocol/"
LEVELS: Final = (
    "debug",
    "info",
    "notice",
    "warning",
    "error",
    "critical",
    "alert",
    "emergency",
)
# What a client has to declare to be asked.
NEEDED: Final = {
    "elicitation/create": "elicitation",
    "sampling/createMessage": "sampling",
    "roots/list": "roots",
}
NAME_FORM: Final = {
    "method": "elicitation/create",
    "params": {
        "mode": "form",
        "message": "What is your name?",
        "requestedSchema": {"type": "object", "properties": {"name": {"type": "string"}}},
    },
}


@define(eq=False, kw_only=True)
class StatelessCall:
    """A request as its handler sees it.

    Attributes:
        server: the server that works on it.
        received: the request as it came in.
        say: puts a message on the request's own stream.
    """

    server: StatelessServer
    received: Received
    say: Callable[[Json], None] = field(repr=False)

    @property
    def params(self) -> Mapping[str, Any]:
        """The params as they came."""
        return self.received.params

    @property
    def meta(self) -> Mapping[str, Any]:
        """The `_meta` of the request; empty if there is none."""
        meta = self.params.get("_meta")
        return meta if isinstance(meta, dict) else {}

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The arguments of a tool or a prompt."""
        arguments = self.params.get("arguments")
        return arguments if isinstance(arguments, dict) else {}

    @property
    def capabilities(self) -> Mapping[str, Any]:
        """What the client declared with this request."""
        declared = self.meta.get(f"{PROTOCOL}clientCapabilities")
        return declared if isinstance(declared, dict) else {}

    @property
    def answers(self) -> Mapping[str, Any] | None:
        """The answers that a client brings when it calls again; None if it brings none."""
        answers = self.params.get("inputResponses")
        return answers if isinstance(answers, dict) else None

    def notify(self, method: str, params: Mapping[str, Any]) -> None:
        """Send a notification on the request's own stream."""
        self.say({"jsonrpc": "2.0", "method": method, "params": params})

    def progress(self, done: float, total: float) -> None:
        """Report progress if the client asked for it."""
        token = self.meta.get("progressToken")
        if token is not None:
            params = {"progressToken": token, "progress": done, "total": total}
            self.notify("notifications/progress", params)

    def log(self, level: str, data: Any) -> None:
        """Send a log message if the client asked for this level."""
        least = self.meta.get(f"{PROTOCOL}logLevel")
        if least in LEVELS and LEVELS.index(level) >= LEVELS.index(least):
            self.notify("notifications/message", {"level": level, "logger": "test", "data": data})

    def ask(self, requests: Mapping[str, Any], state: str | None) -> Json:
        """A result that asks the client for input; the state is remembered.

        Raises:
            RpcError: -32021, if the client did not declare what it is asked for.
        """
        missing: Json = {
            NEEDED[request["method"]]: {}
            for request in requests.values()
            if request.get("method") in NEEDED
            and NEEDED[request["method"]] not in self.capabilities
        }
        if missing and self.server.check_capabilities:
            raise RpcError(-32021, "a capability is missing", {"requiredCapabilities": missing})
        result: Json = {"resultType": "input_required"}
        if requests:
            result["inputRequests"] = requests
        if state is not None:
            self.server.states.add(state)
            result["requestState"] = state
        return result

    def state(self) -> str | None:
        """The state that the client brought back, if it is one that it was given.

        Raises:
            RpcError: it is another one.
        """
        state = self.params.get("requestState")
        if state is not None and state not in self.server.states:
            raise RpcError(-32602, "the request state was tampered with")
        return state if isinstance(state, str) else None


StatelessHandler: TypeAlias = Callable[[StatelessCall], Awaitable[Mapping[str, Any]]]


async def _echo(call: StatelessCall) -> Json:
    await trio.lowlevel.checkpoint()
    words = msgspec.json.encode(call.arguments).decode()
    return {
        "content": [{"type": "text", "text": words, "x-unknown": {"kept": True}}],
        "structuredContent": call.arguments,
        "_meta": {"kars.test/params": call.params},
        "x-unknown": [0, None, "kept"],
    }


async def _counter(call: StatelessCall) -> Json:
    await trio.lowlevel.checkpoint()
    call.server.counter += 1
    return text(f"counter: {call.server.counter}")


async def _slow(call: StatelessCall) -> Json:
    seconds = float(call.arguments.get("seconds", 1))
    call.progress(0, seconds)
    await trio.sleep(seconds)
    return text(f"slept {seconds:g} s")


async def _progress(call: StatelessCall) -> Json:
    steps = int(call.arguments.get("steps", 3))
    for step in range(steps):
        call.progress(step + 1, steps)
        await trio.sleep(float(call.arguments.get("seconds", 0)))
    return text(f"{steps} steps")


async def _log(call: StatelessCall) -> Json:
    await trio.lowlevel.checkpoint()
    for level in LEVELS:
        call.log(level, f"said at {level}")
    return text("logged")


async def _fail(call: StatelessCall) -> Json:
    await trio.lowlevel.checkpoint()
    return text(str(call.arguments.get("message", "the tool failed")), error=True)


async def _error(call: StatelessCall) -> Json:
    await trio.lowlevel.checkpoint()
    raise RpcError(
        int(call.arguments.get("code", -31000)),
        str(call.arguments.get("message", "the tool raised")),
        call.arguments.get("data"),
    )


async def _trigger(call: StatelessCall) -> Json:
    await trio.lowlevel.checkpoint()
    call.server.notify_changed(str(call.arguments.get("list", "tools")))
    return text("triggered")


async def ask(call: StatelessCall) -> Json:
    """Ask in as many rounds as the argument `rounds` says, and tell all answers."""
    await trio.lowlevel.checkpoint()
    return _ask_rounds(call, int(call.arguments.get("rounds", 1)))


async def _ask_twice(call: StatelessCall) -> Json:
    await trio.lowlevel.checkpoint()
    return _ask_rounds(call, 2)


def _ask_rounds(call: StatelessCall, rounds: int) -> Json:
    given = call.state()
    # With characters that a hop which decodes and encodes would write in another way.
    seen: list[Any] = msgspec.json.decode(given.partition(" \u00e9/\x7f ")[0]) if given else []
    if call.answers is not None:
        seen.append(call.answers)
    if len(seen) >= rounds:
        return text(msgspec.json.encode(seen).decode())
    requests = call.arguments.get("requests", {"name": NAME_FORM})
    return call.ask(requests, msgspec.json.encode(seen).decode() + " \u00e9/\x7f ")


def _schema(**properties: str) -> Json:
    return {"type": "object", "properties": {k: {"type": v} for k, v in properties.items()}}


_REGION: Final[Json] = {
    "type": "object",
    "properties": {
        "region": {"type": "string", "x-mcp-header": "Region"},
        "query": {"type": "string"},
    },
}

BUILT_IN: Final[Mapping[str, tuple[str, Json, StatelessHandler]]] = {
    "echo": ("Returns its arguments.", _schema(), _echo),
    "ask": ("Asks the client, then tells the answers.", _schema(rounds="integer"), ask),
    "ask_twice": ("Asks the client two times.", _schema(), _ask_twice),
    "slow": ("Answers after some seconds.", _schema(seconds="number"), _slow),
    "progress": ("Reports progress.", _schema(steps="integer", seconds="number"), _progress),
    "log": ("Says one thing at each level.", _schema(), _log),
    "counter": ("Counts the calls that were carried out.", _schema(), _counter),
    "region": ("Wants an argument mirrored in a header.", _REGION, _echo),
    "trigger": ("Says that a list changed.", _schema(list="string"), _trigger),
    "fail": ("Fails with a tool error.", _schema(message="string"), _fail),
    "error": ("Fails with a JSON-RPC error.", _schema(code="integer", message="string"), _error),
}
"""Description, input schema and handler of each tool by name."""
