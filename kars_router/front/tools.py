"""The tools as an agent sees them: lists in stable pages, and the way from a name to a server.

Must not know HTTP.

Source: MCP 2025-11-25 "Tools", "Pagination" (cursors are opaque; a bad one is -32602).
"""

from __future__ import annotations

from typing import Final

from kars_router.errors import AgentError
from kars_router.front import cursors
from kars_router.model import Tool
from kars_router.session.server import ServerRuntime
from kars_router.session.supervisor import Supervisor
from kars_router.wire import jsonrpc, names

PAGE_SIZE: Final = 200
PAGE_BYTES: Final = 768 * 1024


class ToolView:
    """The tools of all servers, or of one.

    Args:
        supervisor: the upstream side.
    """

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._by_public: dict[str, Tool] = {}
        self._lists: dict[str, list[Tool]] = {}
        supervisor.subscribe(self._forget)

    def page(self, endpoint: str, cursor: str | None) -> bytes:
        """One page of tools/list, as a JSON-RPC result.

        Pages stay stable while the list changes: a cursor names the tool after which to go on,
        not a position.

        Args:
            endpoint: one server's name, or "" for all under their public names.
            cursor: the previous page's `nextCursor`, or None for the first page.

        Raises:
            AgentError: the cursor was not made here.
        """
        listed = self._listed(endpoint)
        start = 0
        if cursor is not None:
            after = tuple(cursors.read(cursor, str, str))
            start = next((i for i, tool in enumerate(listed) if _order(tool) > after), len(listed))
        chosen = _within(listed[start : start + PAGE_SIZE])
        body = b",".join(tool.own if endpoint else tool.public for tool in chosen)
        if start + len(chosen) < len(listed):
            following = jsonrpc.encode(cursors.make(*_order(chosen[-1])))
            return b'{"tools":[%b],"nextCursor":%b}' % (body, following)
        return b'{"tools":[%b]}' % body

    def find(self, endpoint: str, name: str) -> Tool | ServerRuntime:
        """The tool that a call means.

        Returns:
            the tool; or the server alone, when its tools are not known yet because it has not
            been reached so far.

        Raises:
            AgentError: there is no such tool; says nothing of tools that are not admitted.
        """
        servers = self._supervisor.servers
        if endpoint:
            runtime = servers.get(endpoint)
            tool = runtime.catalogue.tools.get(name) if runtime else None
        else:
            tool = self._public().get(name) or self._dotted(name)
            runtime = servers.get(names.server_of(name) or "")
        if tool is not None:
            return tool
        if runtime is not None and runtime.state != "ready" and not runtime.catalogue.tools:
            return runtime
        raise AgentError(jsonrpc.INVALID_PARAMS, f"unknown tool: {name[:128]}")

    def _dotted(self, name: str) -> Tool | None:
        parts = names.split_dotted(name)
        runtime = self._supervisor.servers.get(parts[0]) if parts else None
        return runtime.catalogue.tools.get(parts[1]) if runtime and parts else None

    def _listed(self, endpoint: str) -> list[Tool]:
        found = self._lists.get(endpoint)
        if found is None:
            servers = self._supervisor.servers
            chosen = [servers[endpoint]] if endpoint in servers else []
            found = [
                tool
                for runtime in (chosen if endpoint else servers.values())
                for tool in runtime.catalogue.tools.values()
            ]
            found.sort(key=_order)
            self._lists[endpoint] = found
        return found

    def _public(self) -> dict[str, Tool]:
        if not self._by_public:
            self._by_public = {tool.public_name: tool for tool in self._listed("")}
        return self._by_public

    def _forget(self, _server: str) -> None:
        self._lists.clear()
        self._by_public = {}


def _within(tools: list[Tool]) -> list[Tool]:
    """As many of the tools, and at least one, as a client that limits messages will take."""
    size = 0
    for index, tool in enumerate(tools):
        size += len(tool.public)
        if index and size > PAGE_BYTES:
            return tools[:index]
    return tools


def _order(tool: Tool) -> tuple[str, str]:
    return tool.server, tool.name
