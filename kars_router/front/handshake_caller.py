"""Agents of the handshake era, as the upstream side sees them: whom to tell and whom to ask.

Owns on which stream something is said. Must not know HTTP or what becomes of an answer.

Source: MCP 2025-11-25 "Transports / Sending Messages to the Server", "Logging"; SEP-2260 (a
question goes to the stream of the request that caused it).
"""

from __future__ import annotations

from typing import Final

from attrs import define, evolve, field

from kars_router.front.agents import AgentSession
from kars_router.front.callers import (
    AgentCaller,
    Overheard,
    Requester,
    censored,
    everything,
)
from kars_router.front.principal import NOBODY, Principal
from kars_router.front.streams import Outlet
from kars_router.front.view import View, view_of
from kars_router.session.caller import Caller, Reply
from kars_router.wire import jsonrpc, levels, raw

MESSAGE: Final = "notifications/message"


def is_wanted(params: bytes, least: str) -> bool:
    """Whether a log message is to be passed on.

    Args:
        params: the params of a `notifications/message` as JSON.
        least: the least important level that the agent wants; "" if it never said, and then the
            server decides.
    """
    level = raw.text((raw.fields(params) or {}).get("level"))
    return not least or levels.passes(level or "", least)


@define(eq=False, kw_only=True)
class HandshakeCaller(AgentCaller):
    """One request of a handshake-era agent.

    Attributes:
        session: the agent's session.
        outlet: the way to the request's own stream.
    """

    session: AgentSession
    outlet: Outlet

    @property
    def audible(self) -> bool:
        """See `Caller.audible`."""
        return not (self.withdrawn or self.session.ended) and self.outlet.audible

    def begin(self) -> bool:
        """See `AgentCaller.begin`."""
        self.session.called = True
        return not self.session.ended

    def tell(self, method: str, params: bytes) -> None:
        """See `AgentCaller.tell`; writes on the request's own stream."""
        if self.withdrawn or (method == MESSAGE and not is_wanted(params, self.log_level)):
            return
        stream = self.outlet.open()
        if stream is not None:
            stream.put(jsonrpc.notification(method, params))

    async def put(self, method: str, params: bytes) -> Reply:
        """See `AgentCaller.put`; asks on the request's own stream."""
        stream = None if self.withdrawn else self.outlet.open()
        return await self.session.questions.put(self, stream, method, params)

    def withdraw(self, reason: bytes = b"") -> None:
        """See `Caller.withdraw`; takes the request's own questions back."""
        super().withdraw(reason)
        self.session.questions.end(self, reason)


@define(eq=False, kw_only=True)
class Bystander(AgentCaller):
    """A handshake-era agent that made no request, but listens.

    Attributes:
        session: the agent's session.
    """

    session: AgentSession

    def tell(self, method: str, params: bytes) -> None:
        """See `AgentCaller.tell`; writes on the GET stream."""
        if method != MESSAGE or is_wanted(params, self.log_level):
            self.session.notify(jsonrpc.notification(method, params), once=False)

    async def put(self, method: str, params: bytes) -> Reply:
        """See `AgentCaller.put`; asks on the GET stream."""
        streams = self.session.streams
        stream = streams[-1] if streams else None
        return await self.session.questions.put(self, stream, method, params)


@define(eq=False)
class HandshakePort:
    """A handshake-era agent outside of any request; see `AgentPort`.

    Attributes:
        session: the agent's session.
        overheard: what servers say outside of any request passes this.
        view: names and URIs as it sees them.
        who: the agent, as requests name it.
        capabilities: see `AgentPort`.
        log_level: see `AgentPort`.
    """

    session: AgentSession
    overheard: Overheard = everything
    view: View = field(init=False)
    who: Requester = field(init=False)
    capabilities: bytes = field(init=False)
    log_level: str = ""
    has_sessions: bool = True

    def __attrs_post_init__(self) -> None:
        ticket = self.session.ticket
        self.view = view_of(ticket.endpoint)
        self.who = Requester(agent=ticket.agent, endpoint=ticket.endpoint, client=ticket.client)
        self.capabilities = ticket.capabilities.encode()

    def known_as(self, principal: Principal) -> Requester:
        """The agent, as a request names it whose token proves this."""
        if principal is NOBODY:
            return self.who
        return evolve(self.who, subject=principal.subject, scopes=principal.scopes)

    def notify(self, server: str, method: str, params: bytes) -> None:
        """See `AgentPort.notify`; servers that the agent does not speak to are left out."""
        if self.who.endpoint not in ("", server):
            return
        logged = method == MESSAGE
        if logged and not is_wanted(params, self.log_level):
            return
        shown = censored(self.overheard(server, self.who.agent), params)
        if shown is None:
            return
        told = jsonrpc.notification(method, self.view.told(server, method, shown))
        # The same change of a list or resource need not be told twice; lines of a log do.
        self.session.notify(told, once=not logged)

    def bystander(self, server: str) -> Caller | None:
        """See `AgentPort.bystander`; somebody hears a question while a GET stream is open."""
        if self.who.endpoint not in ("", server) or not self.session.streams:
            return None
        return Bystander(
            view=self.view,
            server=server,
            censor=self.overheard(server, self.who.agent),
            capabilities=self.capabilities,
            log_level=self.log_level,
            session=self.session,
        )

    def caller(self, outlet: Outlet) -> HandshakeCaller:
        """The agent's side of a request whose answer goes to an outlet."""
        return HandshakeCaller(
            view=self.view,
            capabilities=self.capabilities,
            log_level=self.log_level,
            session=self.session,
            outlet=outlet,
        )
