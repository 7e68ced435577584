"""One session of the scripted server: its state, its streams, and what it asks its client."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import msgspec
import trio
from attrs import define, field

from kars_router.testing._streams import EventLog
from kars_router.testing.replies import Json

RpcKey: TypeAlias = tuple[type, Any]


def rpc_key(rpc_id: Any) -> RpcKey:
    """A key under which `0`, `"0"`, `0.0` and `false` are four different ids."""
    return (type(rpc_id), rpc_id)


@define
class _Question:
    answered: trio.Event = field(factory=trio.Event)
    answer: Mapping[str, Any] | None = None


@define(eq=False, kw_only=True)
class Session:
    """What the server remembers of one client.

    Attributes:
        id: the session id on the wire.
        version: the negotiated revision.
        capabilities: what the client declared.
        counter: the state that is lost with the session.
        listen: the log behind the GET stream.
        posts: the logs of POST streams by key; running ones, and ended ones if event ids are
            on, since a client may come back for those.
        scope: cancelled when the session ends, with everything that runs for it.
        nursery: where that runs; set while the session lives.
        called: set at the first tools/call.
        listened: set at the first GET, refused or not.
    """

    id: str
    version: str
    capabilities: Mapping[str, Any]
    listen: EventLog
    counter: int = 0
    posts: dict[str, EventLog] = field(factory=dict)
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    nursery: trio.Nursery | None = None
    called: trio.Event = field(factory=trio.Event)
    listened: trio.Event = field(factory=trio.Event)
    running: dict[RpcKey, trio.CancelScope] = field(factory=dict)
    _questions: dict[RpcKey, _Question] = field(factory=dict)
    _next_question: int = 0
    _next_post: int = 0

    def next_post_key(self) -> str:
        """A fresh key for the log of a POST stream."""
        self._next_post += 1
        return f"post-{self._next_post}"

    async def ask(
        self,
        method: str,
        params: Mapping[str, Any] | None,
        log: EventLog,
        *,
        seconds: float,
        sent: Callable[[int], None] = lambda _: None,
    ) -> Mapping[str, Any] | None:
        """Send a request to the client on `log` and wait for the answer.

        Returns the whole answer message, or None if none came within `seconds`. The ids of all
        requests of a session are numbers counted from 0.
        """
        rpc_id = self._next_question
        self._next_question += 1
        question = self._questions[rpc_key(rpc_id)] = _Question()
        message: Json = {"method": method, "jsonrpc": "2.0", "id": rpc_id}
        if params is not None:
            message["params"] = params
        log.append(msgspec.json.encode(message))
        sent(rpc_id)
        try:
            with trio.move_on_after(seconds):
                await question.answered.wait()
        finally:
            del self._questions[rpc_key(rpc_id)]
        return question.answer

    def resolve(self, answer: Mapping[str, Any]) -> bool:
        """Take the client's answer; False if nothing waits for that id."""
        question = self._questions.get(rpc_key(answer.get("id")))
        if question is None:
            return False
        question.answer = answer
        question.answered.set()
        return True

    def end(self, *, cut: bool) -> None:
        """End every stream, cleanly or broken off, and whatever runs."""
        for log in (self.listen, *self.posts.values()):
            log.finish(cut=cut)
        self.scope.cancel()
