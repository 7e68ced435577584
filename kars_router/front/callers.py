"""The agent's side of a request, as far as both eras share it.

Owns the way from a server's own names and URIs to those that the agent sees. How something is told
or asked is each era's own. Must not know HTTP.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final

from attrs import define, field, frozen

from kars_router.barriers import TransformError
from kars_router.front.view import View
from kars_router.session.caller import Caller, Reply, refusal
from kars_router.wire import capabilities, jsonrpc

_INTERNAL: Final = jsonrpc.INTERNAL_ERROR

Censor = Callable[[bytes], bytes]
# For what a server says to an agent outside of any request: names the server and the agent.
Overheard = Callable[[str, str], Censor | None]


def censored(censor: Censor | None, params: bytes) -> bytes | None:
    """What the agent gets to see of some params; None if it must see nothing of them."""
    if censor is None or not params:
        return params
    try:
        return censor(params)
    except TransformError:
        return None  # counted and logged where it failed


def everything(_server: str, _agent: str) -> None:
    """Nothing is taken out."""


@frozen(kw_only=True)
class Requester:
    """Who makes a request.

    Attributes:
        agent: identifier of the agent, as the upstream side knows it.
        endpoint: the one server that it speaks to, or "" for all.
        client: what its client calls itself; untrusted.
        subject: who it proved to be; "" if it had to prove nothing.
        scopes: what its token allows.
    """

    agent: str
    endpoint: str
    client: str = ""
    subject: str = ""
    scopes: tuple[str, ...] = ()


@define(eq=False, kw_only=True)
class AgentCaller(Caller, ABC):
    """One request of an agent, whichever era it is of.

    Attributes:
        view: names and URIs as this agent sees them.
        server: the server that the request goes to; set once that is known.
        censor: changes what the server says before the agent sees it, or None. Raises
            TransformError for what must not be seen.
    """

    view: View
    server: str = field(default="")
    censor: Censor | None = field(default=None)

    def begin(self) -> bool:
        """Told that the request is about to leave; False if its agent is gone, so it must not."""
        return True

    def notify(self, method: str, params: bytes) -> None:
        """See `Caller.notify`."""
        shown = censored(self.censor, params)
        if shown is not None:
            self.tell(method, self.view.told(self.server, method, shown))

    async def ask(self, method: str, params: bytes) -> Reply:
        """See `Caller.ask`; refuses what the agent did not declare."""
        missing = capabilities.allows(self.capabilities, method, params)
        if missing is not None:
            return refusal(f"the client does not offer {missing}")
        shown = censored(self.censor, params)
        if shown is None:
            return refusal("the question could not be checked for secrets", _INTERNAL)
        return await self.put(method, self.view.asked(self.server, method, shown))

    @abstractmethod
    def tell(self, method: str, params: bytes) -> None:
        """Passes a notification on, under the names that the agent sees; never waits."""

    @abstractmethod
    async def put(self, method: str, params: bytes) -> Reply:
        """Puts a question, under the names that the agent sees, and waits for the answer."""
