"""How one server's sessions are run.

Must not know what a session is.
"""

from __future__ import annotations

from collections.abc import Callable

from attrs import field, frozen

from kars_router.session.caller import Caller
from kars_router.session.questions import RootsMemory


@frozen(kw_only=True)
class SessionOptions:
    """How one server's sessions are run; all times in seconds.

    Attributes:
        connect_timeout: for the handshake, for each control message, and for how long the first
            call waits for the GET stream to open.
        silence: how long a GET stream may be silent before the session is probed.
        client_version: the router's version, for `clientInfo`.
        capabilities: what the server is told that can be asked, as a JSON object.
        input_timeout: how long an agent, or the person behind it, may take for an answer.
        roots: the agent's last roots.
        bystander: who can be asked outside of any request; returns None if nobody.
    """

    server: str
    connect_timeout: float = 5.0
    silence: float = 600.0
    client_version: str = "0"
    capabilities: bytes = b"{}"
    input_timeout: float = 600.0
    roots: RootsMemory = field(factory=RootsMemory)
    bystander: Callable[[], Caller | None] = lambda: None
