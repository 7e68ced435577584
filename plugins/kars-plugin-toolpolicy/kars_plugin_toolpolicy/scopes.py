"""Which calls a limit is for, and which counter each of them is counted in.

Pure. Knows the patterns and `per`; not what is counted.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from hashlib import blake2b
from typing import Final

from attrs import frozen

from kars_plugin_toolpolicy.concurrency import Key
from kars_router.config.globs import matches_any
from kars_router.config.toolpolicy import Per
from kars_router.model import GovernedCall

TOOL: Final = "tools/call"
_LONGEST_PART: Final = 128
_SESSION: Final = "session:"


@frozen(kw_only=True)
class Scope:
    """What a limit is for.

    Attributes:
        kind: what is counted; limits of different kinds never share a counter.
        policy: the policy's name, or its place.
        limit: the limit's name, or its place.
        servers: groups of patterns; a server has to match one of each group.
        tools: groups of patterns likewise. A group with `*` is for everything that a server
            offers; any other one is for tools only.
        per: what has a counter of its own.
        session: whether each agent session has one, whoever the agent is.
    """

    kind: str
    policy: str
    limit: str
    servers: tuple[tuple[str, ...], ...] = ()
    tools: tuple[tuple[str, ...], ...] = ()
    per: AbstractSet[Per] = frozenset()
    session: bool = False

    @property
    def rule(self) -> str:
        """How it is called in decisions."""
        return f"{self.policy}/{self.limit}"

    def covers(self, call: GovernedCall) -> bool:
        """Whether a call is counted."""
        if not all(matches_any(call.server, group) for group in self.servers):
            return False
        return all(
            "*" in group or (call.method == TOOL and matches_any(call.name, group))
            for group in self.tools
        )

    def key(self, call: GovernedCall) -> Key:
        """The counter that a call is counted in."""
        agent = server = tool = ""
        if self.session:
            agent = _SESSION + call.agent
        elif Per.AGENT in self.per:
            agent = who(call)
        if Per.SERVER in self.per:
            server = call.server
        if Per.TOOL in self.per:
            # A tool is that of its server. URIs are an agent's to make up, so what is not a tool
            # has one counter for each method.
            server = call.server
            tool = call.name if call.method == TOOL else call.method
        return (self.kind, self.policy, self.limit, _short(agent), server, _short(tool))

    def minted(self, key: Key) -> bool:
        """Whether an agent gets another counter by opening another session."""
        return key[3].startswith(_SESSION)


def who(call: GovernedCall) -> str:
    """Who calls: whoever the agent proved to be, and its session if it had to prove nothing."""
    return f"subject:{call.subject}" if call.subject else _SESSION + call.agent


def _short(part: str) -> str:
    if len(part) <= _LONGEST_PART:
        return part
    kind = part[: len(_SESSION)]  # so that it stays known what it is
    return kind + blake2b(part.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
