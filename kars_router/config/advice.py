"""What is allowed but seldom meant: sentences for whoever runs the router.

Pure. Knows no plugin, no environment.
"""

from __future__ import annotations

import ipaddress

from kars_router.config.addresses import Address
from kars_router.config.auth import AgentAuth
from kars_router.config.schema import Config

_OPEN = AgentAuth()


def advice(config: Config) -> list[tuple[str, str]]:
    """What to think about: pairs of a path and the rest of a sentence, as problems have them.

    None of it is a reason to refuse the configuration.
    """
    found = []
    if not _is_here_only(config.listen) and config.agent_auth == _OPEN:
        sentence = (
            "can be reached from other machines, and agents have to show nothing; set agentAuth, "
            "or listen on 127.0.0.1, which is enough for an agent in the same pod"
        )
        found.append(("listen", sentence))
    return found


def _is_here_only(address: Address) -> bool:
    """Whether only this machine, or this pod, can connect."""
    if address.path or address.host == "localhost":
        return True
    try:
        return ipaddress.ip_address(address.host).is_loopback
    except ValueError:
        return False  # a name may lead anywhere
