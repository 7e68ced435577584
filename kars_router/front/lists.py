"""Prompts and resources as an agent sees them: lists over several servers, and the way back.

Lists are read from the servers each time, page by page, because what a session's resources are
changes with its state, and few servers say when. Must not know HTTP.

Source: MCP 2025-11-25 "Prompts", "Resources", "Pagination".
"""

from __future__ import annotations

from typing import Final

from attrs import frozen

from kars_router.errors import AgentError, CallFailed, HandshakeError
from kars_router.front import cursors
from kars_router.front.callers import Requester
from kars_router.front.view import PLAIN, View
from kars_router.session.server import ServerRuntime
from kars_router.session.supervisor import Supervisor
from kars_router.telemetry import log
from kars_router.wire import capabilities, jsonrpc, names, uris

PAGE_SIZE: Final = 200
PAGE_BYTES: Final = 768 * 1024
_MOST_PAGES: Final = 100
_REMEMBERED: Final = 10_000


@frozen
class Kind:
    """A kind of list.

    Attributes:
        method: the request for it.
        member: where the items stand in the result.
        needs: the capability of a server that has such a list.
        key: the member of an item that is its name.
    """

    method: str
    member: str
    needs: str
    key: str


PROMPTS: Final = Kind("prompts/list", "prompts", "prompts", "name")
RESOURCES: Final = Kind("resources/list", "resources", "resources", "uri")
TEMPLATES: Final = Kind("resources/templates/list", "resourceTemplates", "resources", "uriTemplate")


class Lists:
    """The prompts and resources of all servers, or of one.

    Args:
        supervisor: the upstream side.
    """

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        # Public names that had to be changed, which cannot be read back.
        self._changed_names: dict[str, tuple[str, str]] = {}

    async def page(self, kind: Kind, who: Requester, cursor: str | None, view: View) -> bytes:
        """One page of a list, as a JSON-RPC result.

        Args:
            kind: what is listed.
            who: for whom.
            cursor: the previous page's `nextCursor`, or None for the first page.
            view: names and URIs as the agent sees them.

        Raises:
            AgentError: the cursor was not made here, or the server does not know its part of it.
        """
        start, inner = "", None
        if cursor is not None:
            start, inner = cursors.read(cursor, str, (str, type(None)))
        runtimes = self._having(kind, who.endpoint)
        index = 0
        if start:
            named = [runtime.name for runtime in runtimes]
            if start not in named:
                raise AgentError(jsonrpc.INVALID_PARAMS, "unknown cursor")
            index = named.index(start)
        found: list[bytes] = []
        size = 0
        for _ in range(_MOST_PAGES):
            if index == len(runtimes) or len(found) >= PAGE_SIZE or size >= PAGE_BYTES:
                break
            runtime = runtimes[index]
            items, inner = await self._fetch(kind, runtime, who, inner)
            for item in items:
                if (shown := self._shown(kind, runtime, item, view)) is not None:
                    found.append(shown)
                    size += len(shown)
            if inner is None:
                index += 1
        more = b""
        if index < len(runtimes):
            more = b',"nextCursor":%b' % jsonrpc.encode(cursors.make(runtimes[index].name, inner))
        return b'{"%b":[%b]%b}' % (kind.member.encode(), b",".join(found), more)

    async def find_prompt(self, who: Requester, name: str) -> tuple[str, str]:
        """The server of a prompt, and its name there.

        Raises:
            AgentError: there is no such prompt; says nothing of those that are not admitted.
        """
        servers = self._supervisor.servers
        if who.endpoint:
            found: tuple[str, str] | None = (who.endpoint, name)
        else:
            found = names.split_public(name) or names.split_dotted(name)
            if found is None or found[0] not in servers:
                found = await self._changed(who, name)
        if found is None or found[0] not in servers:
            found = None
        if found is None or not servers[found[0]].admits_prompt(found[1]):
            raise AgentError(jsonrpc.INVALID_PARAMS, f"unknown prompt: {name[:128]}")
        return found

    def find_resource(self, who: Requester, uri: str) -> tuple[str, str]:
        """The server of a resource, and its URI there.

        Raises:
            AgentError: there is no such resource; says nothing of those that are not admitted.
        """
        servers = self._supervisor.servers
        found = (who.endpoint, uri) if who.endpoint else uris.unwrap(uri)
        if found is None or found[0] not in servers:
            found = None
        if found is None or not servers[found[0]].admits_resource(found[1]):
            raise AgentError(jsonrpc.INVALID_PARAMS, f"unknown resource: {uri[:256]}")
        return found

    def _having(self, kind: Kind, endpoint: str) -> list[ServerRuntime]:
        return [
            runtime
            for name, runtime in self._supervisor.servers.items()
            if endpoint in ("", name)
            and runtime.state == "ready"
            and capabilities.has(runtime.keeper.capabilities or b"{}", kind.needs)
        ]

    async def _fetch(
        self, kind: Kind, runtime: ServerRuntime, who: Requester, cursor: str | None
    ) -> tuple[list[bytes], str | None]:
        params = b"" if cursor is None else jsonrpc.encode({"cursor": cursor})
        limit = runtime.settings.timeouts.connect * 2
        try:
            session = await runtime.reading_session(who.agent)
            result = jsonrpc.members(await session.request(kind.method, params, time_limit=limit))
            items = jsonrpc.elements(bytes(result.get(kind.member, b"[]")))
            following = jsonrpc.decode(bytes(result.get("nextCursor", b"null")))
        except (HandshakeError, CallFailed) as error:
            if cursor is not None and error.failure.rpc_code == jsonrpc.INVALID_PARAMS:
                raise AgentError(jsonrpc.INVALID_PARAMS, "unknown cursor") from error
            # One server that cannot list must not hide what the others have.
            if error.failure.rpc_code != jsonrpc.METHOD_NOT_FOUND:
                log().warning("list_failed", method=kind.method, failure=error.failure.summary())
            return [], None
        except jsonrpc.MalformedError as error:
            log().warning(
                "list_unusable", method=kind.method, server=runtime.name, error=str(error)
            )
            return [], None
        if following == cursor or not isinstance(following, str):
            following = None
        return [bytes(item) for item in items], following

    def _shown(self, kind: Kind, runtime: ServerRuntime, item: bytes, view: View) -> bytes | None:
        try:
            name = jsonrpc.decode(bytes(jsonrpc.members(item).get(kind.key, b"null")))
        except jsonrpc.MalformedError:
            return None
        if not isinstance(name, str):
            log().warning("item_unusable", method=kind.method, server=runtime.name)
            return None
        admitted = runtime.admits_prompt if kind is PROMPTS else runtime.admits_resource
        if not admitted(name):
            return None
        if kind is PROMPTS:
            self._remember(runtime.name, name)
        return view.item(runtime.name, kind.key, item)

    def _remember(self, server: str, name: str) -> None:
        public = names.public_name(server, name)
        if names.split_public(public) is None and len(self._changed_names) < _REMEMBERED:
            self._changed_names[public] = (server, name)

    async def _changed(self, who: Requester, name: str) -> tuple[str, str] | None:
        runtime = self._supervisor.servers.get(names.server_of(name) or "")
        if name in self._changed_names or runtime is None:
            return self._changed_names.get(name)
        cursor: str | None = None
        for _ in range(_MOST_PAGES):
            items, cursor = await self._fetch(PROMPTS, runtime, who, cursor)
            for item in items:
                self._shown(PROMPTS, runtime, item, PLAIN)
            if cursor is None or name in self._changed_names:
                break
        return self._changed_names.get(name)
