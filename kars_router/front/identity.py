"""Who a stateless agent is, and how long it is remembered.

This era has no sessions, but servers of the other one have, and an agent must find its own again.
So each request is somebody's. The first of these that is there decides:

1. `subject:ISSUER NAME`: whom the request's token names, where tokens are asked for.
2. `principal:NAME`: whom a middleware in front of the router has authenticated. It sets
   `scope["state"]["kars.principal"]`, a string.
3. `certificate:NAME`: the name in the client certificate that the TLS listener has verified (the
   ASGI `tls` extension).
4. `agent:KEY`: what the request says in `_meta["kars.azure.com/agent"]`, at most 128 characters.
   Anybody can say anything there; it tells apart agents that trust each other.
5. `listener`: nobody in particular. All of them are one agent, which is the normal case in a pod.

No key can make an agent out to be a principal, for each has its own prefix. Must not know HTTP
methods or what is said in a request.

Source: ASGI "TLS Extension"; MCP 2026-07-28 "Overview / _meta".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

import trio
from attrs import define, field

from kars_router.errors import AgentError
from kars_router.front import declared
from kars_router.front.exchange import Scope
from kars_router.front.principal import NOBODY, Principal
from kars_router.session.caller import AgentPort, Caller
from kars_router.telemetry import log
from kars_router.wire import jsonrpc, raw

AGENT_KEY: Final = "kars.azure.com/agent"
PRINCIPAL_KEY: Final = "kars.principal"
LISTENER: Final = "listener"
_LONGEST_KEY: Final = 128
# Nobody has that much to declare; what a request may be asked is held against its own anyway.
_LONGEST_DECLARED: Final = 16 * 1024
_DEEPEST: Final = 4
_SWEEP_SECONDS: Final = 15.0
_ABANDONED_SECONDS: Final = 60.0


def identity_of(scope: Scope, params: bytes, proved: Principal = NOBODY) -> str:
    """Who makes a request.

    Args:
        scope: what the ASGI server and the middleware say of it.
        params: the request's params as JSON, with its `_meta`; or empty.
        proved: whom its token names.

    Raises:
        AgentError: the key is no string of 1 to 128 characters.
    """
    if proved.subject:
        return proved.identity
    principal = _member(scope.get("state"), PRINCIPAL_KEY)
    if isinstance(principal, str) and principal:
        return f"principal:{principal}"
    tls = _member(scope.get("extensions"), "tls")
    certified = _member(tls, "client_cert_name")
    if isinstance(certified, str) and certified and not _member(tls, "client_cert_error"):
        return f"certificate:{certified}"
    if AGENT_KEY.encode() not in params and b"\\" not in params:
        return LISTENER
    meta = raw.fields((raw.fields(params) or {}).get("_meta")) or {}
    if AGENT_KEY not in meta:
        return LISTENER
    key = raw.text(meta[AGENT_KEY])
    if not key or len(key) > _LONGEST_KEY:
        text = f"{AGENT_KEY} must be a string of 1 to {_LONGEST_KEY} characters"
        raise AgentError(jsonrpc.INVALID_PARAMS, text, status=400)
    return f"agent:{key}"


class Ear(Protocol):
    """An open stream on which an agent hears what belongs to no request."""

    def notify(self, server: str, method: str, params: bytes) -> None:
        """See `AgentPort.notify`."""
        ...

    def close(self) -> None:
        """Ends the stream once what is queued was taken."""
        ...


@define(eq=False)
class Identity:
    """One stateless agent, as an `AgentPort`.

    Attributes:
        agent: its identifier.
        since: trio's clock when it came, in seconds.
        touched: the same at the end of its last request.
        capabilities: everything that it has declared in any request so far, since the sessions
            with its servers outlive each of them. Each question is held against its own request.
        log_level: "", for it hears log messages with its requests only.
        in_flight: requests that have not ended, parked ones included.
        ears: its open streams, oldest first.
        called: whether a server may keep something for it.
        ended: whether it was forgotten.
    """

    agent: str
    since: float
    touched: float
    capabilities: bytes = b"{}"
    log_level: str = ""
    has_sessions: bool = False
    in_flight: int = 0
    ears: list[Ear] = field(factory=list)
    called: bool = False
    ended: bool = False

    @property
    def busy(self) -> bool:
        """Whether it waits for anything."""
        return bool(self.in_flight or self.ears)

    def use(self) -> bool:
        """Notes that a request is about to leave; False if it must not."""
        self.called = True
        return not self.ended

    def declare(self, capabilities: bytes) -> None:
        """Adds what a request declares.

        When that is too much, only what a server can make use of is kept; see `declared`.

        Raises:
            MalformedError: it is nested too deeply.
        """
        if capabilities == self.capabilities:
            return
        if len(capabilities) <= _LONGEST_DECLARED:
            written = _added(self.capabilities, capabilities)
            if len(written) <= _LONGEST_DECLARED:
                self.capabilities = written
                return
        known = declared.keep(self.capabilities)
        self.capabilities = _added(known, declared.keep(capabilities))

    def notify(self, server: str, method: str, params: bytes) -> None:
        """See `AgentPort.notify`."""
        for ear in self.ears:
            ear.notify(server, method, params)

    def bystander(self, server: str) -> Caller | None:  # noqa: ARG002 - of the protocol
        """See `AgentPort.bystander`: no stream of this era carries questions."""
        return None


class Identities:
    """The stateless agents of one router.

    Args:
        join: makes an agent known to the upstream side.
        on_end: told of each one that is forgotten, with the reason.
        limit: most agents at once, those of `others` included.
        idle: seconds without a request or a stream until one is forgotten.
        lifetime: seconds until it is forgotten as soon as no request is in flight.
        others: how many agents there are that are none of these.
        make_room_elsewhere: ends one of those others that can be spared; False if none can be.
    """

    def __init__(
        self,
        join: Callable[[str, AgentPort], None],
        on_end: Callable[[str, str], None],
        *,
        limit: int,
        idle: float,
        lifetime: float,
        others: Callable[[], int],
        make_room_elsewhere: Callable[[], bool] = lambda: False,
    ) -> None:
        self.limit, self.idle, self.lifetime = limit, idle, lifetime
        self._join = join
        self._on_end = on_end
        self._others = others
        self._make_room_elsewhere = make_room_elsewhere
        self._live: dict[str, Identity] = {}

    def __len__(self) -> int:
        return len(self._live)

    def all(self) -> list[Identity]:
        """The agents that are there."""
        return list(self._live.values())

    def find(self, agent: str, capabilities: bytes) -> Identity:
        """The agent that makes a request; made known first if it is new.

        Args:
            agent: its identifier.
            capabilities: what the request declares, as a JSON object.

        Raises:
            AgentError: the limit is reached.
            MalformedError: the capabilities are nested too deeply.
        """
        identity = self._live.get(agent)
        if identity is not None:
            identity.declare(capabilities)
            return identity
        self._make_room()
        now = trio.current_time()
        identity = Identity(agent, now, now)
        identity.declare(capabilities)
        self._live[agent] = identity
        self._join(agent, identity)
        log().info("agent_joined", agent=agent)
        return identity

    def end(self, identity: Identity, reason: str) -> None:
        """Forgets an agent; its streams and its upstream sessions end."""
        if self._live.pop(identity.agent, None) is None:
            return
        identity.ended = True
        for ear in identity.ears:
            ear.close()
        log().info("agent_forgotten", agent=identity.agent, reason=reason)
        self._on_end(identity.agent, reason)

    def close_streams(self) -> None:
        """Ends every open stream; the agents stay."""
        for identity in self._live.values():
            for ear in identity.ears:
                ear.close()

    async def run(self) -> None:
        """Forgets agents as they reach their limits, until cancelled."""
        while True:
            await trio.sleep(min(_SWEEP_SECONDS, self.idle / 4))
            now = trio.current_time()
            for identity in self.all():
                if identity.busy:
                    identity.touched = now
                if now - identity.since > self.lifetime and not identity.in_flight:
                    self.end(identity, "its lifetime is over")
                elif now - identity.touched > self.idle:
                    self.end(identity, f"idle for {self.idle:g} s")

    def make_room(self) -> bool:
        """Forgets an abandoned agent, the longest silent first; False if there is none."""
        # An agent that calls itself something else each time leaves names behind that hold nothing.
        long_ago = trio.current_time() - _ABANDONED_SECONDS
        for identity in sorted(self._live.values(), key=lambda one: one.touched):
            if identity.touched > long_ago:
                break
            if not (identity.called or identity.busy):
                self.end(identity, "idle without a call, and its place was needed")
                return True
        return False

    def _make_room(self) -> None:
        if len(self._live) + self._others() < self.limit:
            return
        if self.make_room() or self._make_room_elsewhere():
            return
        text = f"there are {self.limit} agents, which is the limit; try again later"
        raise AgentError(jsonrpc.REFUSED, text, status=503)


def _member(mapping: Any, name: str) -> Any:
    return mapping.get(name) if isinstance(mapping, Mapping) else None


def _added(one: bytes, other: bytes) -> bytes:
    return jsonrpc.encode(_union(jsonrpc.decode(one), jsonrpc.decode(other)))


def _union(one: Any, other: Any, depth: int = 0) -> Any:
    if depth < _DEEPEST and isinstance(one, dict) and isinstance(other, dict):
        deeper = {k: _union(one[k], v, depth + 1) for k, v in other.items() if k in one}
        return {**one, **other, **deeper}
    return other
