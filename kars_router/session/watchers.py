"""Which agents want to hear of a resource: counted, so that the server is asked once.

Pure. Must not know sessions.

Source: MCP 2025-11-25 "Resources / Subscriptions" (an update may name a part of what was
subscribed).
"""

from __future__ import annotations


class Watchers:
    """The subscriptions behind one slot.

    They outlive its sessions.
    """

    def __init__(self) -> None:
        self._agents: dict[str, set[str]] = {}

    @property
    def uris(self) -> frozenset[str]:
        """Every URI that somebody watches."""
        return frozenset(self._agents)

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Every agent with each URI that it watches."""
        return [(agent, uri) for uri, agents in self._agents.items() for agent in agents]

    def count(self, agent: str) -> int:
        """How many URIs an agent watches."""
        return sum(agent in agents for agents in self._agents.values())

    def add(self, agent: str, uri: str) -> bool:
        """Notes that an agent watches a URI; whether it is the first to do so."""
        watching = self._agents.setdefault(uri, set())
        watching.add(agent)
        return len(watching) == 1

    def remove(self, agent: str, uri: str) -> bool:
        """Notes that it does so no longer; whether it was the last."""
        watching = self._agents.get(uri)
        if watching is None or agent not in watching:
            return False
        watching.remove(agent)
        if not watching:
            del self._agents[uri]
        return not watching

    def forget(self, agent: str) -> list[str]:
        """Forgets an agent; returns the URIs that nobody watches any more."""
        return [uri for uri in list(self._agents) if self.remove(agent, uri)]

    def of(self, uri: str) -> set[str]:
        """The agents to tell of an update of a URI."""
        return {
            agent
            for watched, agents in self._agents.items()
            if uri == watched or uri.startswith(f"{watched.rstrip('/')}/")
            for agent in agents
        }
