"""The way of one request to its server: session, replay, fate.

Owns what happens to a request after it was admitted. Must not know HTTP or public names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
import trio
from attrs import evolve
from msgspec.structs import replace

from kars_router import loss
from kars_router.barriers import TransformError
from kars_router.config.schema import OnSessionLoss
from kars_router.errors import HandshakeError
from kars_router.model import (
    CallOutcome,
    Discreet,
    Failure,
    Fate,
    Phase,
    Sent,
    SessionReset,
    ToolCall,
)
from kars_router.plugins import Plugins
from kars_router.session import bridge
from kars_router.session.base import Session
from kars_router.session.caller import Caller
from kars_router.session.pending import Pending
from kars_router.session.records import Records
from kars_router.session.server import ServerRuntime
from kars_router.session.slot import Slot
from kars_router.telemetry import Metrics, log
from kars_router.transports.lookout import Lookout
from kars_router.wire import envelope, jsonrpc

# A server that loses each new session at once must not be asked for ever.
_MAX_REPLAYS: Final = 2
_MAX_VISITS: Final = 4
_INSPECT_LIMIT: Final = 256 * 1024
CALL: Final = "tools/call"
# Which addresses a server has is not an agent's business.
_AGENTS_CODES: Final = {"address_refused": "upstream_unavailable"}


class Request(Discreet, msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """A request of an agent to one server.

    Attributes:
        agent: identifier of the agent.
        server: the server's configured name.
        method: its method.
        params: its params as JSON, under the server's own names.
        call: the tool call that it is, or None.
        before_send: told the session's generation each time before something is sent; returns how
            the request ends if it must not be.
        censor: what is taken out of a server's words before the log sees them, or None. Takes and
            returns JSON; raises TransformError for what must not be seen.
    """

    agent: str
    server: str
    method: str
    params: bytes
    call: ToolCall | None = None
    before_send: Callable[[int], CallOutcome | None] | None = None
    censor: Callable[[bytes], bytes] | None = None

    unsaid = ("params", "censor")

    @property
    def label(self) -> str:
        """What it is called in the log."""
        return self.call.tool if self.call else self.method


class Requests:
    """Makes the requests of all agents.

    Args:
        servers: the servers by name.
        plugins: the loaded plugins.
        metrics: where calls are counted.
        records: what outlives the process.
        lookout: told of each request, so that nothing is late that a server says meanwhile.
    """

    def __init__(
        self,
        servers: Mapping[str, ServerRuntime],
        plugins: Plugins,
        metrics: Metrics,
        records: Records,
        *,
        lookout: Lookout,
    ) -> None:
        self.servers = servers
        self._plugins = plugins
        self._inspects = plugins.detects_state_loss  # no plugin comes later
        self._metrics = metrics
        self._records = records
        self._lookout = lookout

    async def make(self, request: Request, caller: Caller) -> CallOutcome:
        """Makes a request and says how it ended; never raises for a failure.

        Cancellation stops the waiting; the request itself goes on to its end in its session. An
        agent that cancels it says so by `caller.withdraw`.
        """
        outcome: CallOutcome | None = None
        self._lookout.begin()
        try:
            outcome = await self._make(request, caller)
        finally:
            self._lookout.end()
            code = "abandoned" if outcome is None else outcome.code
            fate = Fate.UNKNOWN if outcome is None else outcome.fate
            if request.call is not None:
                self._metrics.call_ended(request.server, fate, code)
            if outcome is None or outcome.result is None:
                log().warning(
                    "call_ended",
                    server=request.server,
                    tool=request.label,
                    agent=request.agent,
                    fate=fate.value,
                    code=code,
                )
        return outcome

    async def _make(self, request: Request, caller: Caller) -> CallOutcome:
        runtime = self.servers.get(request.server)
        if runtime is None:
            return _refusal("server_removed", f"The server {request.server} is not available.")
        try:
            # Once and for all: an agent that ends meanwhile gets no new place.
            slot = await runtime.slot_for(request.agent)
            if slot is None:
                return _closing(request)
            return await self._in_slot(request, caller, runtime, slot)
        except HandshakeError as error:
            log().debug("acquire_failed", failure=error.failure.summary())
            if error.failure.code == "closing":
                return _closing(request)
            return _refusal(
                "upstream_unavailable",
                f"The server {request.server} cannot be reached at the moment, so the call was "
                "not made. It may be tried again later.",
                retryable=True,
            )

    async def _in_slot(
        self, request: Request, caller: Caller, runtime: ServerRuntime, slot: Slot
    ) -> CallOutcome:
        replays = visits = 0
        while True:
            session = await slot.acquire()
            if runtime.misplaced(slot, session):
                found = await runtime.slot_for(request.agent)
                if found is None:
                    return _closing(request)
                slot, session = found, await found.acquire()
            generation = slot.generation
            refused = _refused_unmade(request, caller, session, generation)
            if refused is not None:
                return refused
            if caller.log_level and session.stateful:
                slot.want_level(caller.log_level)
            before = self._note_use(slot, request, generation) if session.stateful else None
            pending = session.submit(
                request.method,
                request.params,
                time_limit=runtime.settings.timeouts.call,
                caller=caller,
            )
            caller.pending = pending
            await pending.wait()
            slot.last_used = trio.current_time()
            fate = Fate.EXECUTED if pending.reply else loss.fate_of(_failure(request, pending))
            if session.stateful:
                self._note_fate(slot, request, (generation, before), fate)
            if pending.reply is not None:
                error = pending.reply.error
                if error is not None:
                    visits += 1
                    if visits <= _MAX_VISITS and await bridge.visit_urls(caller, error):
                        continue
                    self._judge_error(request, session, error)
                    error = bridge.error_for(caller, error)
                    return CallOutcome(fate=Fate.EXECUTED, code="rpc_error", error=error)
                result = pending.reply.result or b"{}"
                if session.stateful and caller.multi_round:
                    # What means something in the caller's era means nothing in the server's.
                    result = envelope.unstamp_result(result)
                return self._answered(request, slot, result)
            replay = runtime.settings.on_session_loss is OnSessionLoss.REPLAY
            if pending.lost and fate is Fate.NOT_EXECUTED and replay and replays < _MAX_REPLAYS:
                replays += 1
                self._metrics.replays.labels(request.server).inc()
                log().info(
                    "call_replayed",
                    server=request.server,
                    tool=request.label,
                    agent=request.agent,
                    generation=generation,
                )
                continue
            failure = _failure(request, pending)
            log().warning("call_failed", tool=request.label, failure=_said(request, failure))
            return _failed(request, pending, failure, fate)

    def _note_use(self, slot: Slot, request: Request, generation: int) -> int | None:
        before = self._records.used(request.agent, request.server)
        if before != generation:
            slot.note_use(request.agent, generation, before)
            self._records.note_use(request.agent, request.server, generation)
        return before

    def _note_fate(
        self, slot: Slot, request: Request, use: tuple[int, int | None], fate: Fate
    ) -> None:
        generation, before = use
        if fate is not Fate.NOT_EXECUTED:
            slot.served.add(request.agent)
            self._records.note_use(request.agent, request.server, generation)
        elif before is None and request.agent not in slot.served:
            # It has no state there that could be lost, so it is not to be told of a loss.
            self._records.forget_use(request.agent, request.server)

    def _answered(self, request: Request, slot: Slot, result: bytes) -> CallOutcome:
        call = request.call
        if call is None:
            return CallOutcome(fate=Fate.EXECUTED, result=result)
        outcome = CallOutcome(fate=Fate.EXECUTED, result=result, reset=slot.take_reset(call.agent))
        if self._inspects and len(result) <= _INSPECT_LIMIT and slot.info:
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
                    outcome = replace(outcome, reset=SessionReset(slot.generation, clause))
        return outcome

    def _judge_error(self, request: Request, session: Session, error: bytes) -> None:
        # The built-in classifier never takes a 2xx answer for a loss, but a plugin may know better.
        code, text = jsonrpc.error_code(error)
        failure = Failure(
            server=request.server,
            phase=Phase.RESULT,
            sent=Sent.YES,
            status=200,
            body=text[:512],
            rpc_code=code,
            had_session=session.session_id is not None,
            method=request.method,
            code="rpc_error",
            detail="the server answered with an error",
        )
        verdict = self._plugins.classify_loss(failure)
        if verdict.lost:
            session.lose(verdict, failure)


def _refused_unmade(
    request: Request, caller: Caller, session: Session, generation: int
) -> CallOutcome | None:
    if caller.withdrawn:
        return _refusal("cancelled", "The call was cancelled before it was made.")
    if session.stateful and caller.multi_round and _has_state(request.params):
        unknown = jsonrpc.error_object(jsonrpc.INVALID_PARAMS, "unknown requestState")
        return CallOutcome(fate=Fate.NOT_EXECUTED, code="rpc_error", error=unknown)
    # Last of all: whoever is told this may write down that the request was sent.
    return request.before_send(generation) if request.before_send else None


def _said(request: Request, failure: Failure) -> str:
    """A failure for the log, without the secrets that the server may have put into it."""
    if request.censor is None or not failure.body:
        return failure.summary()
    try:
        shown = jsonrpc.decode(request.censor(jsonrpc.encode({"message": failure.body})))
        body = str(shown["message"])
    except (TransformError, jsonrpc.MalformedError, KeyError, TypeError):
        body = ""
    return evolve(failure, body=body).summary()


def _has_state(params: bytes) -> bool:
    if b'"requestState"' not in params:
        return False
    try:
        return "requestState" in jsonrpc.members(params)
    except jsonrpc.MalformedError:
        return False


def _refusal(code: str, message: str, *, retryable: bool = False) -> CallOutcome:
    return CallOutcome(fate=Fate.NOT_EXECUTED, code=code, message=message, retryable=retryable)


def _closing(request: Request) -> CallOutcome:
    return _refusal(
        "closing",
        f"The server {request.server} is being shut down or reconfigured, so the call was not "
        "made. It may be tried again later.",
        retryable=True,
    )


def _failed(request: Request, pending: Pending, failure: Failure, fate: Fate) -> CallOutcome:
    if pending.lost:
        what = f"The session with the server {request.server} was lost"
    elif failure.code == "timeout":
        what = f"The server {request.server} did not answer in time"
    elif failure.code == "cancelled":
        what = f"The call to the server {request.server} was cancelled"
    else:
        what = f"The call to the server {request.server} failed"
    if fate is Fate.NOT_EXECUTED:
        end = "; the call was not executed."
    else:
        end = "; whether the call was executed is not known. Check before repeating it."
    return CallOutcome(
        fate=fate,
        code="session_lost" if pending.lost else _AGENTS_CODES.get(failure.code, failure.code),
        message=what + end,
        retryable=fate is Fate.NOT_EXECUTED and (pending.lost or loss.is_retryable(failure)),
    )


def _failure(request: Request, pending: Pending) -> Failure:
    return pending.failure or Failure(
        server=request.server, phase=Phase.AWAIT, sent=Sent.YES, code="internal"
    )
