"""All upstream servers of a router, and the way of a call to one of them.

Owns which servers there are, the life of a call after it was admitted (session, replay, fate),
and what is known of agents on the upstream side. Must not know HTTP or public names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import trio
from attrs import evolve, frozen

from kars_router import loss
from kars_router.config.schema import OnSessionLoss, Server
from kars_router.errors import HandshakeError
from kars_router.model import CallOutcome, Failure, Fate, Phase, Sent, SessionReset, ToolCall
from kars_router.plugins import Plugins
from kars_router.session.pending import Pending
from kars_router.session.records import Records
from kars_router.session.server import Connector, ServerRuntime, Surroundings
from kars_router.session.slot import Slot
from kars_router.session.upstream import UpstreamSession
from kars_router.telemetry import Metrics, log
from kars_router.wire import jsonrpc
from kars_router.wire.jsonrpc import Message

# A server that loses each new session at once must not be asked for ever.
_MAX_REPLAYS: Final = 2
_INSPECT_LIMIT: Final = 256 * 1024

MakeConnector = Callable[[str, Server], Connector]


@frozen(kw_only=True)
class SessionStatus:
    """A live upstream session, as the admin address shows it."""

    server: str
    agent: str
    generation: int
    listen: str
    pings: int
    calls: int
    in_flight: int
    idle_seconds: float


class Supervisor:
    """The upstream side of a router.

    Args:
        plugins: the loaded plugins.
        metrics: where everything is counted.
        records: what outlives the process.
        connector: makes connectors for a server's settings.
        version: the router's version, for `clientInfo`.
        tool_limit: most tools kept of one server.
    """

    def __init__(
        self,
        plugins: Plugins,
        metrics: Metrics,
        records: Records,
        connector: MakeConnector,
        *,
        version: str,
        tool_limit: int = 5000,
    ) -> None:
        self.servers: dict[str, ServerRuntime] = {}
        self._metrics = metrics
        self._plugins = plugins
        self._records = records
        self._make_connector = connector
        self._listeners: list[Callable[[str], None]] = []
        self._nursery: trio.Nursery | None = None
        self._around = Surroundings(
            plugins=plugins,
            metrics=metrics,
            records=records,
            version=version,
            tool_limit=tool_limit,
            changed=self._changed,
        )

    async def run(
        self,
        servers: Mapping[str, Server],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Runs all servers until cancelled; they start concurrently, in the background.

        Cancellation deletes every upstream session, each within a bound.
        """
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for name, settings in servers.items():
                await self._start(name, settings)
            task_status.started()
            await trio.sleep_forever()

    async def apply(self, servers: Mapping[str, Server]) -> None:
        """Takes over a new set of servers without touching the sessions of unchanged ones.

        A changed server takes calls under its new configuration before its old sessions are
        ended; calls in flight in those end with their fate. Returns when they are deleted.
        """
        stopping: list[ServerRuntime] = []
        for name, settings in servers.items():
            old = self.servers.get(name)
            if old is not None and _same_sessions(old.settings, settings):
                if old.settings != settings:
                    old.update(settings)
                continue
            await self._start(name, settings, reconfigured=True, replaces=old)
            if old is not None:
                stopping.append(old)
        stopping += [r for name, r in self.servers.items() if name not in servers]
        # The order is the configuration's, because lists show it.
        self.servers = {name: self.servers[name] for name in servers}
        for old in stopping:
            now = self.servers.get(old.name)
            if now is None or not now.catalogue.same_as(old.catalogue):
                self._changed(old.name)
        async with trio.open_nursery() as nursery:
            for old in stopping:
                nursery.start_soon(old.stop)

    def subscribe(self, listener: Callable[[str], None]) -> None:
        """Registers a function that is told the name of each server whose tools changed."""
        self._listeners.append(listener)

    def end_agent(self, agent: str, reason: str) -> None:
        """Ends everything that belongs to an agent session; deletion goes on in the background."""
        for runtime in self.servers.values():
            runtime.end_agent(agent, reason)
            for slot in runtime.slots.values():
                slot.forget(agent)
        self._records.note_end(agent)

    def return_reset(self, agent: str, server: str, reset: SessionReset) -> None:
        """Takes back a notice that did not reach its agent; the next result will carry it."""
        runtime = self.servers.get(server)
        slot = runtime.existing_slot(agent) if runtime else None
        if slot is not None and not self._records.has_ended(agent):
            slot.return_reset(agent, reset)

    async def wait_tried(self, seconds: float, only: str = "") -> None:
        """Waits until each server's first attempt has ended, for at most so many seconds.

        Args:
            seconds: the longest wait.
            only: the one server to wait for, or "" for all.
        """
        untried = [
            runtime.tried
            for name, runtime in self.servers.items()
            if only in ("", name) and not runtime.tried.is_set()
        ]
        if not untried:
            return
        with trio.move_on_after(seconds):
            for tried in untried:
                await tried.wait()

    async def call(self, call: ToolCall) -> CallOutcome:
        """Makes a tools/call and says how it ended; never raises for a failure.

        Cancellation stops the waiting; the call itself goes on to its end in its session.
        """
        outcome: CallOutcome | None = None
        try:
            outcome = await self._call(call)
        finally:
            code = "abandoned" if outcome is None else outcome.code
            fate = Fate.UNKNOWN if outcome is None else outcome.fate
            self._metrics.calls.labels(call.server, fate.value, code).inc()
            if outcome is None or outcome.result is None:
                log().warning(
                    "call_ended",
                    server=call.server,
                    tool=call.tool,
                    agent=call.agent,
                    fate=fate.value,
                    code=code,
                )
        return outcome

    def sessions(self) -> list[SessionStatus]:
        """The live upstream sessions."""
        now = trio.current_time()
        return [
            SessionStatus(
                server=runtime.name,
                agent=slot.agent,
                generation=slot.generation,
                listen=session.listener.state.value,
                pings=session.pings,
                calls=session.calls,
                in_flight=session.in_flight,
                idle_seconds=round(now - slot.last_used, 3),
            )
            for runtime in self.servers.values()
            for slot in runtime.slots.values()
            if (session := slot.session) is not None
        ]

    async def _start(
        self,
        name: str,
        settings: Server,
        *,
        reconfigured: bool = False,
        replaces: ServerRuntime | None = None,
    ) -> None:
        runtime = ServerRuntime(
            name,
            settings,
            self._make_connector(name, settings),
            self._around,
            reconfigured=reconfigured,
            replaces=replaces,
        )
        # Not before it can take calls: one that came earlier would find the server removed.
        if self._nursery is not None:
            await self._nursery.start(runtime.run)
        self.servers[name] = runtime

    def _changed(self, name: str) -> None:
        for listener in self._listeners:
            listener(name)

    async def _call(self, call: ToolCall) -> CallOutcome:
        runtime = self.servers.get(call.server)
        if runtime is None:
            return _refusal("server_removed", f"The server {call.server} is not available.")
        slot = runtime.slot_for(call.agent)
        if slot is None:
            return _closing(call)
        replays = 0
        while True:
            try:
                session = await slot.acquire()
            except HandshakeError as error:
                log().debug("acquire_failed", failure=error.failure.summary())
                if error.failure.code == "closing":
                    return _closing(call)
                return _refusal(
                    "upstream_unavailable",
                    f"The server {call.server} cannot be reached at the moment, so the call was "
                    "not made. It may be tried again later.",
                    retryable=True,
                )
            generation = slot.generation
            before = self._note_use(slot, call, generation)
            pending = session.submit(
                "tools/call", call.params, time_limit=runtime.settings.timeouts.call
            )
            await pending.wait()
            slot.last_used = trio.current_time()
            failure = pending.failure or _no_failure(call)
            fate = Fate.EXECUTED if pending.reply is not None else loss.fate_of(failure)
            if fate is not Fate.NOT_EXECUTED:
                slot.served.add(call.agent)
                self._records.note_use(call.agent, call.server, generation)
            elif before is None and call.agent not in slot.served:
                # It has no state there that could be lost, so it is not to be told of a loss.
                self._records.forget_use(call.agent, call.server)
            if pending.reply is not None:
                return self._answered(call, slot, session, pending.reply)
            replay = runtime.settings.on_session_loss is OnSessionLoss.REPLAY
            if pending.lost and fate is Fate.NOT_EXECUTED and replay and replays < _MAX_REPLAYS:
                replays += 1
                self._metrics.replays.labels(call.server).inc()
                log().info(
                    "call_replayed",
                    server=call.server,
                    tool=call.tool,
                    agent=call.agent,
                    generation=generation,
                )
                continue
            log().warning("call_failed", tool=call.tool, failure=failure.summary())
            return _failed(call, pending, failure, fate)

    def _note_use(self, slot: Slot, call: ToolCall, generation: int) -> int | None:
        before = self._records.used(call.agent, call.server)
        slot.note_use(call.agent, generation, before)
        self._records.note_use(call.agent, call.server, generation)
        return before

    def _answered(
        self, call: ToolCall, slot: Slot, session: UpstreamSession, reply: Message
    ) -> CallOutcome:
        if reply.error is not None:
            self._judge_error(call, session, reply.error)
            return CallOutcome(fate=Fate.EXECUTED, code="rpc_error", error=reply.error)
        result = reply.result or b"{}"
        outcome = CallOutcome(fate=Fate.EXECUTED, result=result, reset=slot.take_reset(call.agent))
        if self._plugins.detects_state_loss and len(result) <= _INSPECT_LIMIT and slot.info:
            try:
                decoded: Any = jsonrpc.decode(result)
            except jsonrpc.MalformedError:
                return outcome
            if isinstance(decoded, dict):
                clause = self._plugins.detect_state_loss(call, slot.info, decoded)
                if clause and outcome.reset is None:
                    self._metrics.losses.labels(call.server, "state").inc()
                    log().warning(
                        "state_lost",
                        server=call.server,
                        agent=call.agent,
                        generation=slot.generation,
                        reason=clause,
                    )
                    outcome = evolve(outcome, reset=SessionReset(slot.generation, clause))
        return outcome

    def _judge_error(self, call: ToolCall, session: UpstreamSession, error: bytes) -> None:
        # The built-in classifier never takes a 2xx answer for a loss, but a plugin may know better.
        code, text = jsonrpc.error_code(error)
        failure = Failure(
            server=call.server,
            phase=Phase.RESULT,
            sent=Sent.YES,
            status=200,
            body=text[:512],
            rpc_code=code,
            had_session=session.session_id is not None,
            method="tools/call",
            code="rpc_error",
            detail="the server answered with an error",
        )
        verdict = self._plugins.classify_loss(failure)
        if verdict.lost:
            session.lose(verdict, failure)


def _same_sessions(old: Server, new: Server) -> bool:
    """Whether sessions opened under one configuration may go on under the other."""
    taken_over = evolve(old, allowed_tools=new.allowed_tools, on_session_loss=new.on_session_loss)
    return taken_over == new


def _refusal(code: str, message: str, *, retryable: bool = False) -> CallOutcome:
    return CallOutcome(fate=Fate.NOT_EXECUTED, code=code, message=message, retryable=retryable)


def _closing(call: ToolCall) -> CallOutcome:
    return _refusal(
        "closing",
        f"The server {call.server} is being shut down or reconfigured, so the call was not made. "
        "It may be tried again later.",
        retryable=True,
    )


def _failed(call: ToolCall, pending: Pending, failure: Failure, fate: Fate) -> CallOutcome:
    if pending.lost:
        what = f"The session with the server {call.server} was lost"
    elif failure.code == "timeout":
        what = f"The server {call.server} did not answer in time"
    else:
        what = f"The call to the server {call.server} failed"
    if fate is Fate.NOT_EXECUTED:
        end = "; the call was not executed."
    else:
        end = "; whether the call was executed is not known. Check before repeating it."
    return CallOutcome(
        fate=fate,
        code="session_lost" if pending.lost else failure.code,
        message=what + end,
        retryable=fate is Fate.NOT_EXECUTED and (pending.lost or loss.is_retryable(failure)),
    )


def _no_failure(call: ToolCall) -> Failure:
    return Failure(server=call.server, phase=Phase.AWAIT, sent=Sent.YES, code="internal")
