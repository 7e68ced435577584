"""Live calls of stateless agents, and those among them that wait for the agent's next request.

When a server of the handshake era asks something in the middle of a call, the agent's HTTP request
is answered, and the call stays where it is: parked. The state that the agent sends along with its
answers leads back to it. Owns the tasks of these calls, and how many may be parked for how long.
Must not know HTTP or upstream sessions.

A state is worth nothing to anybody else: it is sealed and bound to the agent, the endpoint, the
method and the params, expires, and opens one round only. One that opens nothing is refused; the
call that it may once have belonged to is never made again.

Source: MCP 2026-07-28 "Multi Round-Trip Requests" (`requestState` may come from an attacker).
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
import trio

from kars_router.errors import AgentError
from kars_router.front.operations import Answer
from kars_router.front.rounds import StatelessCaller
from kars_router.front.sealing import Seal
from kars_router.telemetry import log
from kars_router.wire import jsonrpc

# Servers of this era make states of their own, which pass through unchanged, and a server may be
# a router behind this one: ours begin with this and a digest of our key.
_PREFIX: Final = "kars1."
_PURPOSE: Final = b"kars-router request state, version 2"
_EXPIRED: Final = b'"the client did not come back with its answers in time"'
_STOPPING: Final = b'"the router is shutting down"'
_NAME_BYTES: Final = 16
_MOST_ROUNDS: Final = 10

Work = Callable[[], Awaitable[Answer]]


class _State(msgspec.Struct, frozen=True, rename={"call": "c", "round": "r", "expires": "e"}):
    """What a state holds: a call's name, the round that it opens, seconds since the epoch."""

    call: str
    round: int
    expires: float


class ParkingLot:
    """The calls of all stateless agents.

    Args:
        key: 32 bytes, for the states.
        limit: most calls that are parked at once; one agent may hold half of them, and one in any
            case.
        seconds: how long a call may be parked; then it is cancelled.
        clock: the wall clock, in seconds.
    """

    def __init__(
        self, key: bytes, *, limit: int, seconds: float, clock: Callable[[], float] = time.time
    ) -> None:
        self.limit, self.seconds = limit, seconds
        self._seal = Seal(key, _PURPOSE, _State)
        self._prefix = f"{_PREFIX}{hashlib.sha256(_PURPOSE + key).hexdigest()[:8]}."
        self._clock = clock
        self._parked: dict[str, StatelessCaller] = {}
        self._closed = False
        self._nursery: trio.Nursery | None = None

    def __len__(self) -> int:
        return len(self._parked)

    def parked_by(self, agent: str) -> int:
        """How many calls of one agent are parked."""
        return sum(call.who.agent == agent for call in self._parked.values())

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Holds the tasks of the calls until cancelled; calls that still run are cut off then."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None

    def start(self, call: StatelessCaller, work: Work) -> None:
        """Makes a call, in a task of its own that outlives any HTTP request.

        Args:
            call: gets the end.
            work: makes it; raises AgentError for a request that cannot be acted on.

        Raises:
            AgentError: the router is going down.
        """
        if self._nursery is None:
            raise AgentError(jsonrpc.REFUSED, "the router is shutting down", status=503)
        self._nursery.start_soon(_make, call, work)

    def park(self, call: StatelessCaller) -> str | None:
        """Parks a call that asks, whose HTTP request is about to be answered.

        Returns:
            the state that leads back to it; None if there is no room or it was asked too often.
        """
        held = self.parked_by(call.who.agent)
        full = len(self._parked) >= self.limit or held >= max(self.limit // 2, 1)
        if full:
            log().warning("parking_full", agent=call.who.agent, parked=len(self), limit=self.limit)
        if full or self._closed or self._nursery is None or call.rounds >= _MOST_ROUNDS:
            return None
        call.rounds += 1
        call.resumed = trio.Event()
        name = secrets.token_hex(_NAME_BYTES)
        state = _State(name, call.rounds, self._clock() + self.seconds)
        sealed = self._seal.seal(state, call.bound)
        self._parked[name] = call
        self._nursery.start_soon(self._wait, name, call)
        return self._prefix + sealed

    def unpark(self, call: StatelessCaller, number: int) -> bool:
        """Takes a call out again whose state did not reach the agent.

        Args:
            call: the call.
            number: its `rounds` when it was parked.

        Returns:
            whether it was still parked there; if not, it has been resumed or given up since.
        """
        if call.rounds != number:
            return False
        for name, parked in self._parked.items():
            if parked is call:
                del self._parked[name]
                call.resumed.set()
                return True
        return False

    def made(self, state: str) -> bool:
        """Whether a state looks like one of ours."""
        return state.startswith(self._prefix)

    def resume(self, state: str, bound: bytes) -> StatelessCaller:
        """Takes a call out again; each state does so once.

        Args:
            state: what the agent sent, for which `made` is true.
            bound: what the request that it came with is bound to.

        Raises:
            AgentError: it leads to no call, for whatever reason; nothing was made.
        """
        opened = self._seal.open(state.removeprefix(self._prefix), bound)
        call = self._parked.get(opened.call) if opened is not None else None
        if opened is None or call is None or opened.expires < self._clock():
            raise AgentError(
                jsonrpc.INVALID_PARAMS,
                "this requestState is not, or no longer, valid for this request; nothing was done",
                status=400,
            )
        del self._parked[opened.call]
        return call

    def close(self) -> None:
        """Parks nothing more, and ends what is parked: its server is told, its fate logged."""
        self._closed = True
        for name in list(self._parked):
            self._drop(name, _STOPPING)

    async def _wait(self, name: str, call: StatelessCaller) -> None:
        with trio.move_on_after(self.seconds):
            await call.resumed.wait()
            return
        if name in self._parked:
            log().info("parked_call_expired", agent=call.who.agent, method=call.method)
            self._drop(name, _EXPIRED)

    def _drop(self, name: str, reason: bytes) -> None:
        call = self._parked.pop(name)
        call.withdraw(reason)
        call.resumed.set()


async def _make(call: StatelessCaller, work: Work) -> None:
    try:
        answer = await work()
    except AgentError as error:
        call.fail(error)
    except Exception:  # noqa: BLE001 - crash barrier: one call
        # It has no connection to go down with, and must not take the others along.
        log().exception("call_crashed", agent=call.who.agent, method=call.method)
        call.fail(AgentError(jsonrpc.INTERNAL_ERROR, "the router failed; see its log"))
    else:
        call.finish(answer)
